# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backup asks the server: the leader's snapshot and locks, catalogue facts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Dict, Iterable, Iterator, List, Sequence, Tuple

from .errors import LockedError
from .model import DatabaseInfo, Server
from .patterns import pattern_to_regex
from .quoting import literal, qualified, quote
from .session import AT_START, Session, session_settings

_LOCK_CLASS = 0x70677374  # "pgst": first half of the advisory lock's key; the second is the database's OID


@dataclass(frozen=True)
class TableFacts:
    """An ordinary table as the catalogue has it. `columns` are quoted and without generated ones."""

    oid: int
    schema: str
    name: str
    columns: Tuple[str, ...]
    pages: int  # of the heap alone
    size: int  # bytes, TOAST included
    splittable: bool  # a heap on a server that scans ctid ranges
    load_via: str = ""  # quoted name to COPY into, where rows cannot go straight into the partition


@dataclass(frozen=True)
class SequenceValue:
    schema: str
    name: str
    last_value: int
    is_called: bool


class Leader(Session):
    """The connection whose snapshot and locks the whole backup shares. Keep it open until the commit."""

    def __init__(self, server: Server, database: str) -> None:
        super().__init__(server, database, autocommit=False, patience=AT_START)
        self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True, deferrable=False)
        self.standby = bool(self.value("SELECT pg_catalog.pg_is_in_recovery()"))
        self.search_path: List[str] = self.value("SELECT pg_catalog.current_schemas(false)::text[]")
        self.execute("; ".join(session_settings(self.major)))
        self.snapshot = str(self.value("SELECT pg_catalog.pg_export_snapshot()"))
        self.snapshot_at = self.value("SELECT pg_catalog.clock_timestamp()")

    def take_run_lock(self, database: str) -> None:
        """No two backups of one database at once: an advisory lock that ends with the transaction."""
        held = self.value(
            "SELECT pg_catalog.pg_try_advisory_xact_lock(%s, (SELECT oid::int FROM pg_catalog.pg_database"
            " WHERE datname = pg_catalog.current_database()))",
            (_LOCK_CLASS,),
        )
        if not held:
            raise LockedError(
                "another backup of database %s is running" % database, hint="Wait for it, or end its session."
            )

    def lock_tables(self, names: Sequence[str], timeout: int) -> None:
        """ACCESS SHARE on every table, as pg_dump takes it, so that none changes its shape during the run."""
        self.execute("SET LOCAL lock_timeout = %s", ("%ds" % timeout,))
        for start in range(0, len(names), 500):
            self.execute("LOCK TABLE ONLY " + ", ONLY ".join(names[start : start + 500]) + " IN ACCESS SHARE MODE")
        self.execute("SET LOCAL lock_timeout = 0")

    def still_there(self) -> None:
        """Raise if the connection, and with it snapshot and locks, was lost."""
        self.value("SELECT 1")


_USER_TABLES = """
SELECT c.oid, n.nspname, c.relname
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass
                  AND d.objid = c.oid AND d.objsubid = 0 AND d.deptype = 'e')
ORDER BY 2, 3
"""


@dataclass(frozen=True)
class TableName:
    """A table or partitioned table. `visible`: found in the role's search path without naming its schema."""

    oid: int
    schema: str
    name: str
    visible: bool


def user_tables(leader: Leader) -> List[TableName]:
    """Every table and partitioned table that is no extension's."""
    rows = leader.rows(_USER_TABLES)
    first = {name: space for space in reversed(leader.search_path) for _oid, schema, name in rows if schema == space}
    return [TableName(int(oid), schema, name, first.get(name) == schema) for oid, schema, name in rows]


_PARTITIONS = """
WITH RECURSIVE below (oid) AS (
  SELECT inhrelid FROM pg_catalog.pg_inherits WHERE inhparent = ANY(%s::oid[])
  UNION SELECT i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid)
SELECT c.oid, n.nspname, c.relname
FROM below b JOIN pg_catalog.pg_class c ON c.oid = b.oid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relispartition AND c.relkind IN ('r', 'p', 'f')
ORDER BY 2, 3
"""


def partitions(leader: Leader, tables: Iterable[int]) -> List[Tuple[int, str, str]]:
    """OID, schema and name of all partitions below these tables, and below those in turn; foreign tables too."""
    return [(int(oid), schema, name) for oid, schema, name in leader.rows(_PARTITIONS, (list(tables),))]


_SCHEMA_FITS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace n
  WHERE %s = '' AND n.nspname OPERATOR(pg_catalog.~) %s COLLATE pg_catalog.default
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_')
"""
#: Kinds of relations as pg_dump's patterns mean them.
_RELATION_FITS = """
SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relname OPERATOR(pg_catalog.~) %s COLLATE pg_catalog.default
  AND CASE WHEN %s = '' THEN n.nspname = ANY(%s::name[])
      ELSE n.nspname OPERATOR(pg_catalog.~) %s COLLATE pg_catalog.default END
  AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_')
"""


def as_seen(leader: Leader, patterns: Sequence[str]) -> Tuple[str, ...]:
    """Patterns in the letters that names have here: in SQL_ASCII they are bytes of no known encoding, a letter each."""
    if leader.encoding != "SQL_ASCII":
        return tuple(patterns)
    return tuple(each.encode("utf-8", "surrogateescape").decode(leader.codec) for each in patterns)


def as_given(leader: Leader, names: Iterable[str]) -> Tuple[str, ...]:
    """Names of the server as arguments of a client program that speaks UTF-8, or of an SQL_ASCII database its bytes."""
    codec = leader.codec if leader.encoding == "SQL_ASCII" else "utf-8"
    return tuple(os.fsdecode(each.encode(codec)) for each in names)


def unmatched(leader: Leader, patterns: Sequence[str], schemas: bool = False) -> List[str]:
    """Those of pg_dump's patterns that match no table, view or sequence of the database, or none of its schemas.
    What is the server's own does not count."""
    found: List[str] = []
    for pattern, text in zip(patterns, as_seen(leader, patterns)):
        space, name = pattern_to_regex(text)
        values = (space, name) if schemas else (name, space, leader.search_path, space)
        try:
            text.encode(leader.codec)
            fits = leader.value(_SCHEMA_FITS if schemas else _RELATION_FITS, values)
        except UnicodeError:
            fits = False  # no name there has such letters
        if not fits:
            found.append(pattern)
    return found


# A hash partition on an enum hashes OIDs, which differ after a restore: rows must go through the root, as in pg_dump.
_TABLE_FACTS = """
SELECT c.oid, n.nspname, c.relname,
  pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::int,
  pg_catalog.pg_table_size(c.oid),
  COALESCE(am.amname = 'heap', true),
  COALESCE((SELECT pg_catalog.array_agg(a.attname::text ORDER BY a.attnum) FROM pg_catalog.pg_attribute a
            WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''), '{}'),
  CASE WHEN c.relispartition THEN (
    SELECT r.nspname || E'\\001' || r.relname
    FROM (SELECT pn.nspname, pc.relname, anc.ord, bool_or(COALESCE(
                   p.partstrat = 'h' AND EXISTS (
                     SELECT FROM pg_catalog.unnest(p.partclass::oid[]) k
                     JOIN pg_catalog.pg_opclass o ON o.oid = k
                     WHERE o.opcintype = 'pg_catalog.anyenum'::regtype), false)) OVER () AS unsafe
          FROM pg_catalog.pg_partition_ancestors(c.oid) WITH ORDINALITY AS anc(relid, ord)
          JOIN pg_catalog.pg_class pc ON pc.oid = anc.relid
          JOIN pg_catalog.pg_namespace pn ON pn.oid = pc.relnamespace
          LEFT JOIN pg_catalog.pg_partitioned_table p ON p.partrelid = anc.relid) r
    WHERE r.unsafe ORDER BY r.ord DESC LIMIT 1) END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE c.oid = ANY(%s::oid[]) AND c.relkind = 'r'
ORDER BY 2, 3
"""


def table_facts(session: Session, oids: Iterable[int]) -> List[TableFacts]:
    """Facts of ordinary tables; they must be locked already, because their sizes are read under a lock."""
    facts = []
    for oid, schema, name, pages, size, heap, columns, via in session.rows(_TABLE_FACTS, (list(oids),)):
        load_via = qualified(*via.split("\x01", 1)) if via else ""
        facts.append(
            TableFacts(
                int(oid),
                schema,
                name,
                tuple(quote(column) for column in columns),
                int(pages or 0),
                int(size or 0),
                bool(heap) and session.major >= 14,
                load_via,
            )
        )
    return facts


_EXTENSION_TABLES = """
SELECT t.relid::oid, n.nspname, c.relname, c.relkind::text, COALESCE(t.condition, '')
FROM pg_catalog.pg_extension e,
     ROWS FROM (pg_catalog.unnest(e.extconfig), pg_catalog.unnest(e.extcondition)) AS t(relid, condition)
JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE e.oid = ANY(%s::oid[]) AND c.relkind IN ('r', 'S')
ORDER BY e.extname, c.relname
"""
_REFERENCES = """
SELECT conrelid::oid, confrelid::oid FROM pg_catalog.pg_constraint
WHERE contype = 'f' AND conrelid <> confrelid AND conrelid = ANY(%s::oid[]) AND confrelid = ANY(%s::oid[])
"""


def extension_tables(session: Session, extensions: Sequence[int]) -> List[Tuple[int, str, str, str, str]]:
    """(oid, schema, name, relkind, condition) of configuration tables and sequences, referenced tables first.

    Their foreign keys exist as soon as the extension does, so the order of their rows matters.
    """
    rows = [(int(oid), *rest) for oid, *rest in session.rows(_EXTENSION_TABLES, (list(extensions),))]
    oids = [row[0] for row in rows]
    needs: Dict[int, List[int]] = {}
    for source, target in session.rows(_REFERENCES, (oids, oids)):
        needs.setdefault(int(source), []).append(int(target))
    ordered: List[int] = []

    def visit(oid: int, path: Tuple[int, ...]) -> None:
        if oid in ordered or oid in path:
            return
        for target in needs.get(oid, []):
            visit(target, path + (oid,))
        ordered.append(oid)

    for oid in oids:
        visit(oid, ())
    return sorted(rows, key=lambda row: ordered.index(row[0]))  # type: ignore[arg-type,return-value]


def sequence_values(session: Session, oids: Sequence[int]) -> List[SequenceValue]:
    """Position of each sequence. Sequences are not transactional: it is that of now, as in pg_dump."""
    names = session.rows(
        "SELECT n.nspname, c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n"
        " ON n.oid = c.relnamespace WHERE c.oid = ANY(%s::oid[]) AND c.relkind = 'S' ORDER BY 1, 2",
        (list(oids),),
    )
    values: List[SequenceValue] = []
    for start in range(0, len(names), 200):
        batch = names[start : start + 200]
        selects = [
            "SELECT %d, last_value, is_called FROM %s" % (number, qualified(schema, name))
            for number, (schema, name) in enumerate(batch)
        ]
        for number, last_value, is_called in session.rows(" UNION ALL ".join(selects) + " ORDER BY 1"):
            values.append(SequenceValue(batch[number][0], batch[number][1], int(last_value), bool(is_called)))
    return values


_LARGE_OBJECTS = """
SELECT m.oid, pg_catalog.pg_get_userbyid(m.lomowner), pg_catalog.obj_description(m.oid, 'pg_largeobject'),
       m.lomacl IS NULL,
       ARRAY(SELECT ARRAY[CASE WHEN a.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END,
                          a.privilege_type, a.is_grantable::text]
             FROM pg_catalog.aclexplode(m.lomacl) a)
FROM pg_catalog.pg_largeobject_metadata m WHERE m.oid > %s ORDER BY m.oid LIMIT 1000
"""


def large_objects(session: Session) -> Iterator[Tuple[int, List[str]]]:
    """Each large object's OID, and the statements, a line each, that make it and say whose it is.

    Grants are given as if by the owner, security labels are not.
    """
    oid = 0
    while True:
        batch = session.rows(_LARGE_OBJECTS, (oid,))
        for oid, owner, comment, default_acl, grants in batch:
            name = "LARGE OBJECT %d" % oid
            lines = ["SELECT pg_catalog.lo_create('%d');" % oid, "ALTER %s OWNER TO %s;" % (name, quote(owner))]
            if comment:
                lines.append("COMMENT ON %s IS %s;" % (name, literal(comment)))
            if not default_acl:
                lines.append("REVOKE ALL ON %s FROM %s;" % (name, quote(owner)))
            for grantee, privilege, grantable in grants:
                option = " WITH GRANT OPTION" if grantable == "true" else ""
                to = quote(grantee) if grantee else "PUBLIC"
                lines.append("GRANT %s ON %s TO %s%s;" % (privilege, name, to, option))
            yield int(oid), lines
        if not batch:
            return


def large_object_chunk(session: Session, oid: int, offset: int, length: int) -> bytes:
    return bytes(session.value("SELECT pg_catalog.lo_get(%s::oid, %s::bigint, %s)", (oid, offset, length)) or b"")


def database_info(session: Session) -> DatabaseInfo:
    """What the database itself is like: all that CREATE DATABASE and ALTER DATABASE would need."""
    provider = "d.datlocprovider::text" if session.major >= 15 else "'c'"
    locale = "d.datlocale" if session.major >= 17 else "d.daticulocale" if session.major >= 15 else "NULL"
    rules = "d.daticurules" if session.major >= 16 else "NULL"
    row = session.rows(
        "SELECT d.oid, d.datname, pg_catalog.pg_encoding_to_char(d.encoding), d.datcollate, d.datctype,"
        " pg_catalog.pg_get_userbyid(d.datdba), %s, %s, %s, d.datconnlimit,"
        " pg_catalog.shobj_description(d.oid, 'pg_database'), d.datacl IS NULL"
        " FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()" % (provider, locale, rules)
    )[0]
    acl = session.rows(
        "SELECT CASE WHEN a.grantee = 0 THEN '' ELSE pg_catalog.pg_get_userbyid(a.grantee) END,"
        " a.privilege_type, a.is_grantable FROM pg_catalog.pg_database d, pg_catalog.aclexplode(d.datacl) a"
        " WHERE d.oid = %s ORDER BY 1, 2",
        (row[0],),
    )
    settings = session.rows(
        "SELECT COALESCE(r.rolname, ''), s.entry FROM pg_catalog.pg_db_role_setting c"
        " LEFT JOIN pg_catalog.pg_roles r ON r.oid = c.setrole, pg_catalog.unnest(c.setconfig) AS s(entry)"
        " WHERE c.setdatabase = %s ORDER BY 1, 2",
        (row[0],),
    )
    return DatabaseInfo(
        name=row[1],
        encoding=row[2],
        collate=row[3],
        ctype=row[4],
        owner=row[5],
        locale_provider=row[6],
        locale=row[7] or "",
        icu_rules=row[8] or "",
        connection_limit=int(row[9]),
        comment=row[10] or "",
        default_acl=bool(row[11]),
        acl=tuple((grantee, privilege, bool(grantable)) for grantee, privilege, grantable in acl),
        settings=tuple((role, entry.split("=", 1)[0], entry.split("=", 1)[1]) for role, entry in settings),
    )
