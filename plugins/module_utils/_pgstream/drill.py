# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A restore for practice: into a scratch database by the ordinary restore, rows counted there, then dropped.

The scratch database is called `<name>_pgstream_drill_<id>`, and its comment says what it is. It is dropped however the
drill ends. What a drill that was killed outright left behind, the next one on that server drops: it goes by the
comment, and a drill at work holds an advisory lock, a dead one none.

On request the contents of each table are compared with the original. PostgreSQL does not tell whether a table was
written to since the snapshot, so any difference counts: it is for databases that stand still.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from . import catalog, restore
from .errors import BackupError, IntegrityError, UsageError
from .events import Log, new_correlation_id
from .model import Index, RestoreRequest, RestoreResult, Server, Table, VerifyRequest
from .quoting import qualified, quote
from .session import Session, session_settings, share_out
from .stages import stage
from .store.base import StoredObject
from .target import DRILL, MADE, marked
from .verify import Proof

_ID_LENGTH = 8  # hexadecimal digits
_NAME_LENGTH = 22  # bytes of the name kept: then the drill's suffix fits in any encoding
_MARK = re.compile(re.escape(DRILL) + r"([0-9a-f]{8})")
_LOCK_CLASS = 0x70677364  # "pgsd": first half of the advisory lock's key, the second is the drill's id
_DIFFERENCES_NAMED = 5

#: Of each named table: its OID, the topmost table it is a partition of, and whether an extension brought it along.
_PLACES = """
SELECT w.number, c.oid::bigint, COALESCE(pg_catalog.pg_partition_root(c.oid), c.oid)::bigint,
       EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
               AND d.objid = c.oid AND d.deptype = 'e')
FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[]))
     WITH ORDINALITY AS w(nspname, relname, number)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.nspname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname
"""

Print = Tuple[int, int]  # rows, and the sum of their hashes


@dataclass(frozen=True)
class _Unit:
    """A table, or all partitions of one: rows may come back in another partition than they were in."""

    name: str
    tables: Tuple[Table, ...]


def drill(request: VerifyRequest, item: StoredObject, index: Optional[Index], log: Log) -> Proof:
    """Restore `item` into a scratch database, check that, and drop it."""
    server = request.server
    source = index.database.name if index else ""
    identity = new_correlation_id()[:_ID_LENGTH]
    with stage("validation"):
        if request.compare_source:
            if index is None:
                raise UsageError("compare_source needs a backup with an index, which this one lacks")
            Session(server, source).close()
        at_work = _Lock(server, identity)
    name = source or catalog.parse_key(item.key)[0] or "dump"
    scratch = name.encode()[:_NAME_LENGTH].decode("utf-8", "ignore") + "_pgstream_drill_" + identity
    log.info("drill", scratch=scratch)
    with at_work as lock:
        lock.sweep(log)
        try:
            done = _restore(request, item, scratch, identity, log)
            units: Sequence[_Unit] = ()
            if index is not None:
                units = _check(request, index, scratch)
        except BaseException:
            _drop(server, identity, log)
            raise
        with stage("dropping the scratch database"):
            left = _drop(server, identity, log)
            if left is not None:
                raise left
    message = "restored whole into a scratch database: %d rows%s"
    counted = "" if index is None else " of %d tables, counted there again" % len(index.tables)
    if request.compare_source:
        counted += ", with the contents that the source has"
    return Proof(
        bytes_read=done.bytes_read,
        raw_bytes=done.raw_bytes,
        rows=done.rows,
        compared_tables=sum(len(unit.tables) for unit in units) if request.compare_source else 0,
        message=message % (done.rows, counted),
    )


class _Within(Log):
    """The restore's log lines as lines of the verification: its database is not the one that is verified."""

    def __init__(self, outer: Log) -> None:
        super().__init__()
        self._outer = outer

    def write(self, level: str, event: str, fields: Dict[str, Any]) -> None:
        if event != "started":
            self._outer.write(level, event, fields)

    def progress(self, done: int, total: int, what: str = "") -> None:
        self._outer.progress(done, total, what)


def _restore(request: VerifyRequest, item: StoredObject, scratch: str, identity: str, log: Log) -> RestoreResult:
    wanted = RestoreRequest(
        server=request.server,
        storage=request.storage,
        key=item.key,
        database=scratch,
        create=True,
        no_owner=request.no_owner,
        no_privileges=request.no_privileges,
        role=request.role,
        jobs=request.jobs,
        analyze=False,
        correlation_id=identity,
        mark=DRILL + identity,
    )
    try:
        return restore.restore(wanted, _Within(log))
    except BackupError as error:
        if error.stage == "creating the database" and "permission denied" in error.message:
            error.hint = "A drill makes a database of its own: ALTER ROLE ... CREATEDB."
        raise


class _Lock:
    """Held by a drill at work, for others to see."""

    def __init__(self, server: Server, identity: str) -> None:
        self._session = Session(server, server.maintenance_db)
        number = int(identity, 16)
        key = number - (1 << 32) if number >= 1 << 31 else number  # a signed integer to the server
        self._session.execute("SELECT pg_catalog.pg_advisory_lock(%s, %s)", (_LOCK_CLASS, key))

    def __enter__(self) -> _Lock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._session.close()

    def sweep(self, log: Log) -> None:
        """Drop what drills that were killed left on this server."""
        # The databases first: a drill takes its lock before it makes one, and drops it before the lock goes.
        databases = self._session.rows(
            "SELECT datname, pg_catalog.shobj_description(oid, 'pg_database') FROM pg_catalog.pg_database"
            " WHERE datname ~ %s",
            (MADE,),
        )
        query = "SELECT objid::bigint FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND classid::bigint = %s"
        alive = {int(number) for (number,) in self._session.rows(query, (_LOCK_CLASS,))}
        for name, comment in databases:
            match = _MARK.fullmatch(comment or "")
            if match is None or int(match.group(1), 16) in alive:
                continue
            try:
                self._session.execute(_drop_statement(name))
                log.info("dropped", object=name, reason="a drill that was killed left it behind")
            except BackupError as error:
                log.warning("not_dropped", object=name, message=error.sentence())


def _drop(server: Server, identity: str, log: Log) -> Optional[BackupError]:
    """Drop the scratch database, whatever its name is by now. The error is logged, not raised."""
    try:
        return _drop_once(server, identity, log)
    except BaseException:  # asked to stop in the middle of it, which is asked but once
        _drop_once(server, identity, log)
        raise


def _drop_once(server: Server, identity: str, log: Log) -> Optional[BackupError]:
    """By a connection of its own: what went wrong may have been the others."""
    name = "the scratch database of drill " + identity
    try:
        with Session(server, server.maintenance_db) as session:
            for name in marked(session, DRILL + identity):
                session.execute(_drop_statement(name))
    except BackupError as error:
        log.warning("not_dropped", object=name, message=error.sentence())
        return error
    return None


def _drop_statement(name: str) -> str:
    return "DROP DATABASE IF EXISTS %s WITH (FORCE)" % quote(name)


def _check(request: VerifyRequest, index: Index, scratch: str) -> Sequence[_Unit]:
    """Count the rows of the restored tables, and compare their contents where that is asked for."""
    server, jobs, compare = request.server, request.jobs, request.compare_source
    with stage("counting the restored rows"):
        units = _units(server, scratch, index)
        tables = [table for unit in units for table in unit.tables]
        restored = _fingerprints(server, scratch, tables, compare, jobs)
        for unit in units:
            wanted, rows = sum(table.rows for table in unit.tables), _total(unit, restored)[0]
            if rows != wanted:
                raise IntegrityError(
                    "restored, table %s has %d rows, the backup's index says %d" % (unit.name, rows, wanted)
                )
    if compare:
        with stage("comparing with the source"):
            original = _fingerprints(server, index.database.name, tables, compare, jobs)
            _compare(units, restored, original, index)
    return units


def _units(server: Server, database: str, index: Index) -> List[_Unit]:
    """The index's tables by what they are partitions of. Tables of extensions are left out: CREATE EXTENSION puts rows
    of its own into them."""
    schemas = [table.schema for table in index.tables]
    names = [table.name for table in index.tables]
    with Session(server, database) as session:
        places = {int(number) - 1: rest for number, *rest in session.rows(_PLACES, (schemas, names))}
    groups: Dict[int, List[Table]] = {}
    for position, table in enumerate(index.tables):
        if position not in places:
            raise IntegrityError("restored, there is no table %s" % qualified(table.schema, table.name))
        _oid, root, extension = places[position]
        if not extension:
            groups.setdefault(int(root), []).append(table)
    return [_Unit(_name_of(tables), tuple(tables)) for tables in groups.values()]


def _name_of(tables: Sequence[Table]) -> str:
    name = qualified(tables[0].schema, tables[0].name)
    return name if len(tables) == 1 else "%s with %d other partitions" % (name, len(tables) - 1)


def _fingerprints(server: Server, database: str, tables: Sequence[Table], hashed: bool, jobs: int) -> Dict[int, Print]:
    """By table number: rows, and where `hashed` the sum of the hashes of each row's text, which no order changes."""
    total = "COALESCE(sum(pg_catalog.hashtextextended((t.*)::text, 0)::numeric), 0)::text" if hashed else "'0'"
    found: Dict[int, Print] = {}

    def connect() -> Session:
        session = Session(server, database, autocommit=False)
        session.execute("SET TRANSACTION READ ONLY")
        for setting in (*session_settings(session.major), "SET LOCAL TimeZone = 'UTC'"):
            session.execute(setting)
        return session

    def work(session: Session, table: Table) -> None:
        name = qualified(table.schema, table.name)
        ((rows, value),) = session.rows("SELECT count(*), %s FROM ONLY %s AS t" % (total, name))
        found[table.number] = int(rows), int(value)

    share_out(tables, jobs, connect, work)
    return found


def _total(unit: _Unit, prints: Dict[int, Print]) -> Print:
    rows, hashes = zip(*(prints[table.number] for table in unit.tables))
    return sum(rows), sum(hashes)


def _compare(units: Sequence[_Unit], restored: Dict[int, Print], original: Dict[int, Print], index: Index) -> None:
    different = []
    for unit in units:
        here, there = _total(unit, restored), _total(unit, original)
        if here[0] != there[0]:
            different.append("%s (restored %d rows, the source has %d)" % (unit.name, here[0], there[0]))
        elif here != there:
            different.append("%s (as many rows, other contents)" % unit.name)
    if different:
        more = len(different) - _DIFFERENCES_NAMED
        raise IntegrityError(
            "%d of %d tables differ from the source: %s%s"
            % (
                len(different),
                len(units),
                ", ".join(different[:_DIFFERENCES_NAMED]),
                " and %d more" % more if more > 0 else "",
            ),
            hint="Was the source written to after the snapshot of %s? Then this says nothing of the backup."
            % index.snapshot_at,
        )
