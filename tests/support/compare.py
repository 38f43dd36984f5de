# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Say in which ways two databases differ: schema, rows, sequences, large objects, properties."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import subprocess
from contextlib import contextmanager
from itertools import groupby
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import psycopg2
from psycopg2.extensions import make_dsn

MAX_SCHEMA_LINES = 200

# What a dump says of its own run, and not of the database.
RUN_LINE = re.compile(r"\\(un)?restrict [0-9A-Za-z]+|-- (Dumped (from|by) |Started on |Completed on ).*")

# Where an object begins in a dump, and of what type it is.
OBJECT = re.compile(r"(?m)^(?=--\n-- (?:Name: |PostgreSQL database dump complete$))")
TYPE = re.compile(r"--\n-- Name: .*; Type: (.*); Schema: ")

# A restored enum has other OIDs, and with them other hashes, so its rows
# rightly move between hash partitions: such a tree is compared as one table.
TABLES_SQL = """
SELECT ns.nspname, whole.relname,
       format('%I.%I', leaf_ns.nspname, leaf.relname),
       (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attname COLLATE "C")
        FROM pg_attribute
        WHERE attrelid = whole.oid AND attnum > 0 AND NOT attisdropped)
FROM pg_class leaf
JOIN pg_namespace leaf_ns ON leaf_ns.oid = leaf.relnamespace
CROSS JOIN LATERAL (
    SELECT coalesce((
        SELECT ancestor.relid
        FROM pg_partition_ancestors(leaf.oid) WITH ORDINALITY AS ancestor (relid, distance)
        JOIN pg_partitioned_table tree ON tree.partrelid = ancestor.relid
        WHERE leaf.relispartition AND tree.partstrat = 'h'
          AND EXISTS (SELECT FROM unnest(tree.partclass::oid[]) AS key (opclass)
                      JOIN pg_opclass ON pg_opclass.oid = key.opclass
                      WHERE opcintype = 'anyenum'::regtype)
        ORDER BY distance DESC
        LIMIT 1
    ), leaf.oid) AS relid
) compared
JOIN pg_class whole ON whole.oid = compared.relid
JOIN pg_namespace ns ON ns.oid = whole.relnamespace
WHERE (leaf.relkind = 'r' OR (leaf.relkind = 'm' AND leaf.relispopulated))
  AND leaf_ns.nspname NOT IN ('pg_catalog', 'information_schema')
  AND leaf.relpersistence <> 't'
ORDER BY 1, 2, 3
"""

SEQUENCES_SQL = """
SELECT format('%I.%I', nspname, relname)
FROM pg_class JOIN pg_namespace ns ON ns.oid = relnamespace
WHERE relkind = 'S' AND relpersistence <> 't' AND nspname NOT IN ('pg_catalog', 'information_schema')
ORDER BY 1
"""

LARGE_OBJECTS_SQL = """
SELECT oid::bigint, encode(sha256(lo_get(oid)), 'hex'), pg_get_userbyid(lomowner),
       array(SELECT item::text FROM unnest(coalesce(lomacl, acldefault('L', lomowner))) AS item ORDER BY 1),
       obj_description(oid, 'pg_largeobject')
FROM pg_largeobject_metadata
ORDER BY 1
"""

# Columns that only some versions have are read through JSON, which gives
# NULL for those that are missing.
PROPERTIES_SQL = """
SELECT pg_encoding_to_char(encoding) AS encoding, datcollate AS collate, datctype AS ctype,
       to_jsonb(d) ->> 'datlocprovider' AS locale_provider,
       coalesce(to_jsonb(d) ->> 'datlocale', to_jsonb(d) ->> 'daticulocale') AS locale,
       to_jsonb(d) ->> 'daticurules' AS icu_rules,
       pg_get_userbyid(datdba) AS owner,
       array(SELECT item::text FROM unnest(coalesce(datacl, acldefault('d', datdba))) AS item ORDER BY 1) AS acl,
       shobj_description(d.oid, 'pg_database') AS comment,
       datconnlimit AS connection_limit,
       datistemplate AS is_template,
       (SELECT spcname FROM pg_tablespace WHERE oid = dattablespace) AS tablespace
FROM pg_database d
WHERE datname = current_database()
"""

SETTINGS_SQL = """
SELECT coalesce(rolname, ''), setting
FROM pg_db_role_setting
CROSS JOIN unnest(setconfig) AS setting
LEFT JOIN pg_roles ON pg_roles.oid = setrole
WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY 1, 2
"""


class Digest(NamedTuple):
    """The content of a table, whatever the order of its rows."""

    rows: int
    content: str


class LargeObject(NamedTuple):
    """What makes up one large object."""

    sha256: str
    owner: str
    acl: Tuple[str, ...]
    comment: Optional[str]


@contextmanager
def connect(server: Any, db: str) -> Iterator[Any]:
    """Open an autocommit connection that no setting of the database can sway."""
    connection = psycopg2.connect(
        host=server.host, port=server.port, user=server.user, password=server.password or None, dbname=db
    )
    try:
        connection.autocommit = True
        encoding = str(connection.get_parameter_status("server_encoding"))
        # LATIN1 takes every byte, so that names that are valid in no encoding
        # still become distinct strings.
        connection.set_client_encoding("LATIN1" if encoding == "SQL_ASCII" else encoding)
        with connection.cursor() as cursor:
            cursor.execute(
                "SET search_path = pg_catalog; SET DateStyle = ISO, YMD; SET IntervalStyle = postgres;"
                "SET extra_float_digits = 3; SET bytea_output = hex; SET row_security = off; SET xmloption = content;"
                "SET TimeZone = UTC; SET lc_monetary = 'C'; SET statement_timeout = 0; SET lock_timeout = 0"
            )
        yield connection
    finally:
        connection.close()


def _query(server: Any, db: str, sql: str) -> List[Tuple[Any, ...]]:
    with connect(server, db) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


class _LineSum:
    """A file that takes the output of COPY and keeps the sum of the hashes of its lines.

    A sum does not depend on the order and, unlike an exclusive or, sees duplicates.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.total = 0
        self._pending: List[bytes] = []

    def write(self, data: bytes) -> int:
        lines = data.split(b"\n")
        rest = lines.pop()
        for line in lines:
            self._pending.append(line)
            self._add(b"".join(self._pending))
            self._pending.clear()
        if rest:
            self._pending.append(rest)
        return len(data)

    def _add(self, line: bytes) -> None:
        self.rows += 1
        self.total += int.from_bytes(hashlib.blake2b(line, digest_size=16).digest(), "big")

    def digest(self) -> Digest:
        return Digest(self.rows, f"{self.total % 2**128:032x}")


def schema_text(server: Any, db: str, bindir: Optional[str] = None) -> str:
    """Return all definitions as pg_dump writes them, without the lines that differ from run to run.

    Give the bindir of the newer server to compare databases of two versions.
    """
    command = [
        os.path.join(bindir or server.bindir, "pg_dump"),
        "--section=pre-data",
        "--section=post-data",
        "--dbname=" + make_dsn(dbname=db),
    ]
    run = subprocess.run(command, env=server.env(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"pg_dump failed: {run.stderr.decode('utf-8', 'replace')}")
    text = run.stdout.decode("utf-8", "surrogateescape")
    # Not splitlines(), which also splits at characters that belong to a name.
    return _in_order("\n".join(line for line in text.split("\n") if not RUN_LINE.fullmatch(line)))


def _in_order(dump: str) -> str:
    """Sort neighbours of one type: older releases of pg_dump write what has one name (a table's publications) by
    OID, and which of them a restore's jobs made first is chance.
    """
    runs = groupby(OBJECT.split(dump), key=lambda entry: (TYPE.match(entry) or [None] * 2)[1])
    return "".join(entry for _type, run in runs for entry in sorted(run))


def database_properties(server: Any, db: str) -> Dict[str, Any]:
    """Return what the catalogue says of the database itself, settings included."""
    with connect(server, db) as connection, connection.cursor() as cursor:
        cursor.execute(PROPERTIES_SQL)
        row = cursor.fetchone()
        properties = {column.name: value for column, value in zip(cursor.description, row)}
        cursor.execute(SETTINGS_SQL)
        properties["settings"] = cursor.fetchall()
    return properties


def table_digests(server: Any, db: str) -> Dict[Tuple[str, str], Digest]:
    """Return rows and content of every table and populated materialized view, by schema and name."""
    sums: Dict[Tuple[str, str], _LineSum] = {}
    with connect(server, db) as connection, connection.cursor() as cursor:
        cursor.execute(TABLES_SQL)
        for schema, name, stored, columns in cursor.fetchall():
            lines = sums.setdefault((schema, name), _LineSum())
            cursor.copy_expert(f"COPY (SELECT {columns or ''} FROM ONLY {stored}) TO STDOUT", lines)
    return {table: lines.digest() for table, lines in sums.items()}


def sequence_values(server: Any, db: str) -> Dict[str, Tuple[int, bool]]:
    """Return last_value and is_called of every sequence, by quoted name."""
    values = {}
    with connect(server, db) as connection, connection.cursor() as cursor:
        cursor.execute(SEQUENCES_SQL)
        for (name,) in cursor.fetchall():
            cursor.execute(f"SELECT last_value, is_called FROM {name}")
            values[name] = cursor.fetchone()
    return values


def large_objects(server: Any, db: str) -> Dict[int, LargeObject]:
    """Return content, owner, rights and comment of every large object."""
    return {
        oid: LargeObject(sha256, owner, tuple(acl), comment)
        for oid, sha256, owner, acl, comment in _query(server, db, LARGE_OBJECTS_SQL)
    }


def _schema_differences(text_a: str, text_b: str) -> List[str]:
    if text_a == text_b:
        return []
    diff = difflib.unified_diff(text_a.split("\n"), text_b.split("\n"), "a", "b", n=1, lineterm="")
    changed = [f"schema: {line}" for line in diff if not line.startswith(("---", "+++", "@@"))]
    if len(changed) > MAX_SCHEMA_LINES:
        changed[MAX_SCHEMA_LINES:] = [f"schema: and {len(changed) - MAX_SCHEMA_LINES} more lines"]
    return changed


def _mapping_differences(what: str, in_a: Dict[Any, Any], in_b: Dict[Any, Any]) -> List[str]:
    found = []
    for key in sorted(set(in_a) | set(in_b)):
        name = ".".join(key) if isinstance(key, tuple) else key
        if key not in in_b:
            found.append(f"{what} {name!r}: only in the first database")
        elif key not in in_a:
            found.append(f"{what} {name!r}: only in the second database")
        elif in_a[key] != in_b[key]:
            found.append(f"{what} {name!r}: {in_a[key]!r} against {in_b[key]!r}")
    return found


def _newer_bindir(server_a: Any, db_a: str, server_b: Any, db_b: str) -> str:
    versions = []
    for server, db in ((server_a, db_a), (server_b, db_b)):
        with connect(server, db) as connection:
            versions.append(connection.server_version)
    return server_a.bindir if versions[0] >= versions[1] else server_b.bindir


def differences(
    server_a: Any, db_a: str, server_b: Any, db_b: str, properties: bool = False, schema: bool = True
) -> List[str]:
    """Return one readable line for each difference between two databases; none when they are the same.

    Leave out the schema between two major versions: each writes the same view in its own way.
    """
    found: List[str] = []
    if schema:
        bindir = _newer_bindir(server_a, db_a, server_b, db_b)
        found += _schema_differences(schema_text(server_a, db_a, bindir), schema_text(server_b, db_b, bindir))
    compared: List[Tuple[str, Callable[[Any, str], Dict[Any, Any]]]]
    compared = [("table", table_digests), ("sequence", sequence_values), ("large object", large_objects)]
    if properties:
        compared.append(("database property", database_properties))
    for what, read in compared:
        found += _mapping_differences(what, read(server_a, db_a), read(server_b, db_b))
    return found
