# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore roles and tablespaces: what the server lacks is made, what it has gets the properties of the backup.

Nothing is ever dropped. Any error ends it: roles, their settings and memberships come in one transaction, then each
tablespace, for which PostgreSQL allows none, then what is said of tablespaces in one more.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Iterator, List, Sequence, Set, Tuple

from . import archive, catalog, limits
from .clients import Clients, find_clients
from .errors import BackupError, UsageError
from .events import Log, new_correlation_id, rfc3339, utc_now
from .loading import Reader
from .model import Index, RestoreRequest, RestoreResult
from .process import Processes
from .quoting import quote
from .session import AT_START, Session
from .stages import all_faults, stage
from .store.base import Store, StoredObject, open_store

STRATEGY = "globals"
#: One piece of a script: a comment, a text, a quoted name, the end of a statement, or what lies between.
_PIECE = re.compile(
    rb"""--[^\n]*\n? | E'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" | ; | [^-E'";]+ | .""",
    re.VERBOSE | re.DOTALL,
)
_CREATE = re.compile(rb'CREATE (ROLE|TABLESPACE) ("(?:[^"]|"")+"|[^\s";]+)', re.DOTALL)
_HASH = re.compile(r"SCRAM-SHA-256\$[^\s'\"]*|\bmd5[0-9a-f]{32}\b")
_ROLES_DONE = b"SELECT 'done';"
_VERBS = (b"ALTER ", b"COMMENT ", b"CREATE ", b"GRANT ", b"REVOKE ", b"SECURITY LABEL ", b"SET ")
_ABOUT_TABLESPACE = re.compile(rb"(ALTER|COMMENT ON|(GRANT|REVOKE|SECURITY LABEL) .* ON) TABLESPACE ")


@dataclass(frozen=True)
class Script:
    """The statements in three parts, and what of them is made and what there was already."""

    roles: Tuple[bytes, ...]
    tablespaces: Tuple[bytes, ...]  # CREATE TABLESPACE, each outside of a transaction
    rest: Tuple[bytes, ...]  # about tablespaces
    made: Tuple[str, ...]  # such as `role app`
    found: Tuple[str, ...]

    @property
    def counts(self) -> str:
        return "%d to make, %d are there" % (len(self.made), len(self.found))


@dataclass(frozen=True)
class _Plan:
    request: RestoreRequest
    store: Store
    item: StoredObject
    index: Index
    script: Script
    clients: Clients
    start: datetime


def is_meant(request: RestoreRequest) -> bool:
    """Whether globals are to be restored: said so, or by the key."""
    return request.globals or catalog.is_globals(request.key)


def restore_globals(request: RestoreRequest, log: Log) -> RestoreResult:
    """Run the script of a backup of globals. When this raises before it comes to tablespaces, nothing has changed."""
    with limits.time_limit(request.timeout):
        began, planned = time.monotonic(), _plan(request, log)
        log.info("started", key=planned.item.key, strategy=STRATEGY)
        processes = Processes()
        try:
            _run(planned, processes)
        except BaseException:
            processes.kill_all()
            raise
    result = replace(
        _result(planned),
        seconds=round(time.monotonic() - began, 3),
        finished_at=rfc3339(utc_now()),
        message="restored roles and tablespaces: %d made, %d were there"
        % (len(planned.script.made), len(planned.script.found)),
    )
    log.info("restored", key=planned.item.key, made=list(planned.script.made), found=list(planned.script.found))
    return result


def predict_globals_restore(request: RestoreRequest, log: Log) -> RestoreResult:
    """Look at backup and server and say what a run would do. Changes nothing."""
    planned = _plan(request, log)
    return replace(_result(planned), message="would restore roles and tablespaces: " + planned.script.counts)


def _plan(request: RestoreRequest, log: Log) -> _Plan:
    start = utc_now()
    request = replace(request, correlation_id=request.correlation_id or new_correlation_id())
    log.correlation_id, log.operation, log.database = request.correlation_id, "restore", ""
    with stage("validation"):
        store = open_store(request.storage)
        (item, index), (version, existing) = all_faults(lambda: _find(store, request, log), lambda: _existing(request))
        clients = find_clients(request.server, max(version // 10000, index.pg_dump_version), "server and backup")
    log.known["key"] = item.key
    with stage("reading the backup"):
        blocks = [block for block in index.blocks if block.section == "pre"]
        reader = Reader(store, item.key, blocks)
        sql = b"".join(
            piece for block in blocks for piece in archive.block_sql(index.compression, block, reader.next_block(block))
        )
        return _Plan(request, store, item, index, script_of(sql, existing), clients, start)


def _find(store: Store, request: RestoreRequest, log: Log) -> Tuple[StoredObject, Index]:
    item = catalog.resolve(store, request.key, "", log, request.latest_before, of_globals=True)
    with stage("reading the index"):
        index = catalog.read_index(store, item)
        if index is not None and request.key == "latest":
            catalog.check_named(item.key, index)
    if index is None or not index.is_globals:
        what = "database " + index.database.name if index else "what another tool dumped"
        raise UsageError("%s is a backup of %s, not of globals" % (store.storage.url(item.key), what))
    return item, index


def _existing(request: RestoreRequest) -> Tuple[int, Set[bytes]]:
    """The server's version, and `ROLE name` and `TABLESPACE name` of all it has, in the script's encoding."""
    server = request.server
    with Session(server, server.maintenance_db, patience=AT_START) as session:
        rows = session.rows(
            "SELECT 'ROLE ' || rolname FROM pg_catalog.pg_roles"
            " UNION ALL SELECT 'TABLESPACE ' || spcname FROM pg_catalog.pg_tablespace"
        )
        encoding = session.codec if session.encoding == "SQL_ASCII" else "utf-8"
        return session.version, {text.encode(encoding) for (text,) in rows}


def statements(script: bytes) -> Iterator[bytes]:
    """The statements of a script by pg_dumpall, without comments and psql's own commands."""
    held: List[bytes] = []
    for match in _PIECE.finditer(script):
        piece = match.group()
        if piece == b";":
            yield b"".join(held).strip() + b";"
            held = []
        elif not piece.startswith(b"--"):
            held.append(piece)
    if b"".join(held).strip():
        raise BackupError("the script ends in the middle of a statement")


def script_of(sql: bytes, existing: Set[bytes]) -> Script:
    """What of the script is to be run on a server that has the `existing` roles and tablespaces."""
    roles: List[bytes] = []
    tablespaces: List[bytes] = []
    rest: List[bytes] = []
    made: List[str] = []
    found: List[str] = []
    for statement in statements(sql):
        if not statement.startswith(_VERBS):  # psql's own commands could do anything on this host
            raise BackupError("the script has a statement that pg_dumpall does not write")
        match = _CREATE.match(statement)
        if match:
            kind, name = match.group(1), match.group(2)
            name = name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name
            label = "%s %s" % (kind.decode().lower(), name.decode("utf-8", "backslashreplace"))
            there = kind + b" " + name in existing
            (found if there else made).append(label)
            if there:
                continue
            if kind == b"TABLESPACE":
                tablespaces.append(statement)
                continue
        (rest if _ABOUT_TABLESPACE.match(statement) else roles).append(statement)
    return Script(tuple(roles), tuple(tablespaces), tuple(rest), tuple(made), tuple(found))


def _run(planned: _Plan, processes: Processes) -> None:
    """In one session: the password of the role that restores may be among what is restored."""
    script, role = planned.script, planned.request.role
    lines = [b"\\set VERBOSITY terse\n"]  # no line of the script in a message: it may hold a hash
    if planned.clients.restricts:
        lines.append(b"\\restrict %s\n" % os.urandom(16).hex().encode())
    lines.append(b"SET client_encoding = 'UTF8';\nSET standard_conforming_strings = on;\n")
    lines += [("SET ROLE %s;\n" % quote(role)).encode()] if role else []
    lines += [*_together(script.roles), _ROLES_DONE]
    lines += [*script.tablespaces, *_together(script.rest)]
    process = planned.clients.psql(processes, planned.request.server.maintenance_db, "UTF8")
    try:
        process.write(b"\n".join(lines) + b"\n")
        process.close_input()
        process.finish()
    except BackupError as error:
        error.message = _HASH.sub("***", error.message)
        error.hint = error.hint or _hint(error.message)
        raise error.at("tablespaces" if process.said().strip() else "roles") from None


def _together(parts: Sequence[bytes]) -> Sequence[bytes]:
    return [b"BEGIN;", *parts, b"COMMIT;"] if parts else []


def _hint(message: str) -> str:
    if "directory" in message:
        return "Make the tablespace's directory on the server; the roles are there already."
    if "permission denied" in message or "must be superuser" in message:
        return "Restore globals as a superuser."
    return ""


def _result(planned: _Plan) -> RestoreResult:
    return RestoreResult(
        changed=True,
        database="",
        key=planned.item.key,
        url=planned.store.storage.url(planned.item.key),
        correlation_id=planned.request.correlation_id,
        strategy=STRATEGY,
        content="all",
        stored_bytes=planned.item.size,
        bytes_read=planned.store.bytes_read,
        raw_bytes=planned.index.raw_bytes,
        snapshot_at=planned.index.snapshot_at,
        started_at=rfc3339(planned.start),
        jobs=1,
    )
