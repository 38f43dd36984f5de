# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only door to psycopg2: connections, the leader's snapshot and locks, catalogue facts."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

from .errors import BackupError, LockedError, ServerError, UsageError, hint_of
from .model import DatabaseInfo, Server

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:
    psycopg2 = None  # type: ignore[assignment]

#: What a session needs so that COPY writes what any server reads back the same, and nothing ends it early.
_SESSION_SETTINGS = (
    "SET LOCAL row_security = off",
    "SET LOCAL extra_float_digits = 3",
    "SET LOCAL DateStyle = 'ISO, YMD'",
    "SET LOCAL IntervalStyle = 'postgres'",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL xmloption = content",
    "SET LOCAL synchronize_seqscans = off",
    "SET LOCAL search_path = ''",
)
#: A peer that is gone without a word (a failover, a firewall that forgot) is noticed after two minutes, where the
#: system's own defaults wait for hours, or for ever when nothing is sent. Only silence of the network counts: a server
#: that is long at a query still answers for its connection. Names as libpq has them; an option of the user's wins.
DEAD_PEER = (("keepalives_idle", "60"), ("keepalives_interval", "15"), ("keepalives_count", "4"))
SENT_IN_VAIN = ("tcp_user_timeout", "120000")  # milliseconds; libpq 12 and newer
AT_START = 5.0  # seconds for which a server that does not listen is asked again, before there is work to lose
STARTING = 60.0  # seconds for one that says it is starting
POOLER_PATIENCE = 5.0  # seconds
CONNECT_PAUSE = 0.25  # seconds between two attempts
CANCEL_PATIENCE = 2.0  # seconds until a statement that was cancelled is given up, and its connection with it
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
_LOCK_CLASS = 0x70677374  # "pgst": first half of the advisory lock's key; the second is the database's OID


Own = TypeVar("Own", bound="Session")
Result = TypeVar("Result")


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


def unhindered(major: int) -> Dict[str, str]:
    """Settings that keep what a role, database or server sets from ending or refusing our work."""
    names = _TIMEOUTS + (("idle_session_timeout",) if major >= 14 else ())
    names += ("transaction_timeout",) if major >= 17 else ()
    return {**{name: "0" for name in names}, "default_transaction_read_only": "off"}


def session_settings(major: int) -> List[str]:
    return ["SET LOCAL %s = '%s'" % item for item in unhindered(major).items()] + list(_SESSION_SETTINGS)


def connection_parameters(server: Server, libpq: int) -> Dict[str, str]:
    """What the user gave, over what notices a dead peer. `libpq`: its major version."""
    own = dict(DEAD_PEER + ((SENT_IN_VAIN,) if libpq >= 12 else ()))
    return {**own, **dict(server.connect_params)}


def require() -> None:
    if psycopg2 is None:
        raise UsageError("the Python package psycopg2 is not installed", hint="Install psycopg2 or psycopg2-binary.")


def quote(name: str) -> str:
    """A quoted identifier."""
    return '"%s"' % name.replace('"', '""')


def qualified(schema: str, name: str) -> str:
    return quote(schema) + "." + quote(name)


def literal(text: str) -> str:
    """A string literal on one line that any server reads the same, whatever standard_conforming_strings says."""
    escaped = text.replace("'", "''")
    special = escaped.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return "'%s'" % escaped if special == escaped else "E'%s'" % special


class Session:
    """One connection. Errors come up as ServerError (cannot connect) or BackupError, in the server's own words."""

    def __init__(self, server: Server, database: str, autocommit: bool = True, patience: float = 0) -> None:
        """`patience`: seconds for which a server that does not listen is asked again, as it may be restarting. One that
        says it is starting up is asked for STARTING."""
        require()
        self._server, self._database = server, database
        options: Dict[str, Any] = {
            "host": server.host,
            "user": server.user,
            "password": server.password,
            "sslmode": server.ssl_mode,
            "sslrootcert": server.ca_cert,
            "sslcert": server.ssl_cert,
            "sslkey": server.ssl_key,
        }
        options = {name: value for name, value in options.items() if value}
        options.update(connection_parameters(server, psycopg2.extensions.libpq_version() // 10000))
        options.update(
            dbname=database,
            port=server.port,
            connect_timeout=server.connect_timeout,
            application_name="pgstream.backup",
        )
        self._options = options
        began = time.monotonic()
        while True:
            try:
                self._connection = psycopg2.connect(**options)
                break
            except psycopg2.Error as error:
                if time.monotonic() - began >= _worth_waiting(str(error), patience):
                    raise ServerError(
                        "PostgreSQL unreachable at %s: %s" % (place(server), str(error).strip()),
                        hint=_connection_hint(str(error)),
                    ) from None
            time.sleep(CONNECT_PAUSE)
        try:
            self._settle(autocommit)
        except psycopg2.Error as error:
            self.close()
            raise translate(error) from None
        except BaseException:
            self.close()
            raise

    def _settle(self, autocommit: bool) -> None:
        self._connection.autocommit = True
        self.version = self._connection.server_version  # server_version_num
        self.major = self.version // 10000
        self.encoding = self._connection.info.parameter_status("server_encoding") or "UTF8"
        self.codec = "latin-1"
        # Names of an SQL_ASCII database are bytes of no known encoding: LATIN1 carries each one unchanged.
        client = "LATIN1" if self.encoding == "SQL_ASCII" else self.encoding
        self._connection.set_client_encoding(client)
        self.codec = psycopg2.extensions.encodings[self._connection.encoding]
        self.pooled = self._connection.info.backend_pid != self._backend()
        if self.pooled:
            self._refuse_transaction_pooling()
        self.execute("; ".join("SET %s = '%s'" % item for item in unhindered(self.major).items()))
        self._connection.autocommit = autocommit

    @property
    def lost(self) -> bool:
        """Whether a statement has found the connection gone."""
        return bool(self._connection.closed)

    def _backend(self) -> int:
        return int(self.value("SELECT pg_catalog.pg_backend_pid()"))

    def _refuse_transaction_pooling(self) -> None:
        """A pooler that hands out server connections by the transaction gives the one that we have just used to the
        next who begins one. Then settings go astray, and locks and temporary names with them."""
        ours, seen = self._backend(), queue.Queue()  # type: Tuple[int, queue.Queue[int]]

        def look() -> None:
            try:
                other = psycopg2.connect(**self._options)
            except psycopg2.Error:
                seen.put(0)
                return
            try:
                with other.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_backend_pid()")
                    seen.put(cursor.fetchone()[0])
            except psycopg2.Error:
                seen.put(ours)  # not even transactions: a pool of single statements
            finally:
                other.close()

        threading.Thread(target=look, name="pooler", daemon=True).start()
        try:
            theirs = seen.get(timeout=POOLER_PATIENCE)
        except queue.Empty:
            return  # a pool of sessions of which none is free
        if theirs == ours:
            raise ServerError(
                "a pooler in transaction mode stands before PostgreSQL at %s" % place(self._server),
                hint="Connect to PostgreSQL itself, or to a pool in session mode.",
            )

    def rows(self, sql: str, parameters: Optional[Sequence[object]] = None) -> List[Tuple[Any, ...]]:
        def run() -> List[Tuple[Any, ...]]:
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(sql, parameters)
                    return cursor.fetchall() if cursor.description else []
            except psycopg2.Error as error:
                raise translate(error) from None

        return self._interruptible(run)

    def value(self, sql: str, parameters: Optional[Sequence[object]] = None) -> Any:
        rows = self.rows(sql, parameters)
        return rows[0][0] if rows else None

    def execute(self, sql: str, parameters: Optional[Sequence[object]] = None) -> None:
        self.rows(sql, parameters)

    def _interruptible(self, work: Callable[[], Result]) -> Result:
        """Any statement may wait for ever: for a lock, for a server that is gone. So it runs in a thread of its own,
        and the main thread, which signals interrupt, can stop waiting: psycopg2 itself never would."""
        if threading.current_thread() is not threading.main_thread():
            return work()
        results: List[Result] = []
        failures: List[BaseException] = []
        done = threading.Event()  # not join: a signal that interrupts it makes CPython take the thread for ended

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            finally:
                done.set()

        threading.Thread(target=run, name="statement", daemon=True).start()
        try:
            done.wait()
        except BaseException:
            self._stop(done)
            raise
        if failures:
            raise failures[0]
        return results[0]

    def _stop(self, done: threading.Event) -> None:
        """Cancel the statement; where the server does not hear of it, end the connection under it."""
        threading.Thread(target=self.cancel, name="cancel", daemon=True).start()
        if not done.wait(CANCEL_PATIENCE):
            with socket.socket(fileno=os.dup(self._connection.fileno())) as connection:
                connection.shutdown(socket.SHUT_RDWR)
            done.wait(CANCEL_PATIENCE)

    def copy_to(self, sql: str, sink: Any) -> int:
        """COPY ... TO STDOUT into `sink.write`; the number of rows by the server's own count."""

        def copy() -> int:
            try:
                with self._connection.cursor() as cursor:
                    cursor.copy_expert(sql, sink, 1 << 20)
                    return int(cursor.rowcount)
            except psycopg2.Error as error:
                raise translate(error) from None

        return self._interruptible(copy)

    def commit(self) -> None:
        try:
            self._connection.commit()
        except psycopg2.Error as error:
            raise translate(error) from None

    def cancel(self) -> None:
        """Stop the statement that another thread is running on this connection. Not by psycopg2's own call, which
        holds the interpreter's lock until the server answers: one that is gone would stop every thread."""
        try:
            with Session(self._server, self._database) as other:
                other.rows("SELECT pg_catalog.pg_cancel_backend(%s)", (self._connection.info.backend_pid,))
        except BackupError:
            pass

    def close(self) -> None:
        try:
            self._connection.close()
        except psycopg2.Error:
            pass

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _worth_waiting(said: str, patience: float) -> float:
    """Seconds to go on asking a server of which a connection heard this. What is refused for a reason is final."""
    if not patience:
        return 0
    if "the database system is" in said:  # starting up, shutting down, in recovery mode, not yet accepting connections
        return STARTING
    absent = ("Connection refused", "No such file", "closed the connection")  # the last by a proxy that is in between
    return patience if any(words in said for words in absent) else 0


def place(server: Server) -> str:
    return "%s:%d" % (server.host or "the local socket", server.port)


def translate(error: Any) -> BackupError:
    """A psycopg2 error as one sentence of the server's, with a hint where a common cause is known."""
    diagnostics = error.diag
    # Without the server's word it is libpq's, whose first line says it; the others guess.
    text = diagnostics.message_primary or str(error).strip().partition("\n")[0] or type(error).__name__
    if diagnostics.message_detail:
        text = "%s (%s)" % (text, diagnostics.message_detail)
    code = error.pgcode or ""
    hints = {
        "53200": "Raise max_locks_per_transaction on the server: every table dumped needs one lock.",
        "55P03": "Another session holds a lock on the table; raise lock_timeout, or run when it is done.",
        "42501": "Grant the role what it lacks: pg_read_all_data is enough for most backups.",
        "3D000": "Check the database's name.",
        "55006": "Other sessions are connected to the database.",
    }
    hint = hints.get(code, "") or hint_of(text) or diagnostics.message_hint or ""
    cls = ServerError if code[:2] in ("08", "28", "57") or code in ("3D000",) or not code else BackupError
    return cls(text, hint=hint)


def _connection_hint(text: str) -> str:
    if "password authentication failed" in text or "no password supplied" in text:
        return "Check user and password."
    if "does not exist" in text:
        return "Check the names of database and role."
    if "Connection refused" in text or "could not translate" in text or "No such file" in text:
        return "Check host and port, and that the server runs."
    return ""


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
