# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Back up what belongs to the server and to no database: roles, their memberships and settings, and tablespaces.

The object is one of ours, with index and footer, whose database has no name and whose `pre` block is what pg_dumpall
wrote. So it is found, verified, kept and pruned as every other, and `gunzip | psql` restores it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import replace
from datetime import datetime
from typing import Optional, Tuple

from . import catalog, codec, commit, limits
from .archive import ArchiveWriter
from .clients import Clients, find_clients
from .errors import BackupError, UsageError
from .events import Log, new_correlation_id, rfc3339, utc_now
from .model import ENGINE_VERSION, FORMAT_VERSION, BackupRequest, BackupResult, DatabaseInfo, Index
from .outset import summary, unchanged
from .process import Processes
from .session import AT_START, Session
from .stages import all_faults, stage
from .store.base import Store, Upload, open_store
from .workers import default_jobs

#: pg_dumpall's closing comment, with nothing after it but comments and empty lines.
_COMPLETE = re.compile(rb"\n-- PostgreSQL database cluster dump complete\r?\n(((--)[^\n]*|[ \t\r]*)(\n|\Z))*\Z")
#: Since August 2025, and unknown to older psql: before the first statement. What ends it has the same random word, so
#: such a line in the name of a role is another one.
_RESTRICT = re.compile(rb"\A(?:(?:--[^\n]*)?\n)*\\restrict ([^\n]+)\n")
_TAIL = 4096  # bytes in which its end is looked for
_HEAD = b"-- Roles and tablespaces of a server, no database. The definitions follow in the next block.\n"
_END = b"-- The end of the roles and tablespaces.\n"


def back_up_globals(request: BackupRequest, passwords: bool, log: Log) -> BackupResult:
    """Back them up as one object; whole in the store when this returns, and not there when this raises. Of `request`
    only the server, the storage and what is not about tables counts. `passwords`: with the hashes of the roles'
    passwords, which only a superuser may read."""
    with limits.time_limit(request.timeout):
        request, start, store, key, existing = _prepare(request, passwords, log)
        if existing is not None:
            log.info("unchanged", key=existing.key, reason=existing.message)
            return existing
        (clients, version), upload = _open_both(request, store, key)
        return _run(request, passwords, log, start, store, key, clients, version, upload)


def predict_globals(request: BackupRequest, passwords: bool, log: Log) -> BackupResult:
    """Check what `back_up_globals` would, and say what it would do. Changes nothing."""
    request, start, store, key, existing = _prepare(request, passwords, log)
    if existing is not None:
        return existing
    (clients, version), upload = _open_both(request, store, key)
    commit.abort(upload, log)
    return BackupResult(
        changed=True,
        database="",
        key=key,
        url=store.storage.url(key),
        correlation_id=request.correlation_id,
        compression=request.compression,
        jobs=1,
        server_version=version,
        started_at=rfc3339(start),
        message="would back up roles and tablespaces with pg_dumpall %d" % clients.major,
    )


def _prepare(
    request: BackupRequest, passwords: bool, log: Log
) -> Tuple[BackupRequest, datetime, Store, str, Optional[BackupResult]]:
    """As `backup._prepare` has it. A backup without the hashes of passwords is not fresh where they are asked for."""
    codec.check_level(request.compression, request.compression_level)
    request = replace(
        request,
        database="",
        key="",
        jobs=request.jobs or default_jobs(),
        correlation_id=request.correlation_id or new_correlation_id(),
    )
    log.correlation_id, log.operation, log.database = request.correlation_id, "globals", ""
    start, storage, existing = utc_now(), request.storage, None
    with stage("validation"):
        store = open_store(storage)
        key = commit.free_key(
            store, start, lambda moment: catalog.new_globals_key(storage, moment, request.compression)
        )
        if request.fresh_within:
            found = catalog.candidates(store, direct=True, only_globals=True)
            item = commit.fresh(store, found, start, request.fresh_within, passwords)
            if item is not None:
                existing = unchanged(request, store, item, "is younger than %d seconds" % request.fresh_within)
    return request, start, store, key, existing


def _open_both(request: BackupRequest, store: Store, key: str) -> Tuple[Tuple[Clients, int], Upload]:
    """The programs and the server's version, and an upload that is begun; every fault of either is named."""
    metadata = {"pgstream-run": request.correlation_id}
    with stage("validation"):
        both = all_faults(lambda: _open(request), lambda: store.begin(key, False, metadata))
        return both[0], both[1]


def _open(request: BackupRequest) -> Tuple[Clients, int]:
    server = request.server
    with Session(server, server.maintenance_db, patience=AT_START) as session:
        clients = find_clients(server, session.major)
        if not os.access(os.path.join(clients.bindir, "pg_dumpall"), os.X_OK):
            raise UsageError(
                "there is no pg_dumpall in %s" % clients.bindir,
                hint="Install postgresql-client-%d, or name its directory in pg_bindir." % clients.major,
            )
        return clients, session.version


def _run(
    request: BackupRequest,
    passwords: bool,
    log: Log,
    start: datetime,
    store: Store,
    key: str,
    clients: Clients,
    version: int,
    upload: Upload,
) -> BackupResult:
    began, processes = time.monotonic(), Processes()
    log.info("started", key=key, passwords=passwords, server_version=version)

    def write() -> Index:
        with stage("validation"):
            catalog.sweep(store, log)
        with stage("dumping roles and tablespaces"):
            taken = utc_now()
            script = dump(clients, processes, passwords)
        upload.expect(len(script))
        archive = ArchiveWriter(upload.write, request.compression, request.compression_level)
        for section, text in (("schema", _HEAD), ("pre", script), ("post", _END)):
            archive.text(section, text)
        index = Index(
            format_version=FORMAT_VERSION,
            engine_version=ENGINE_VERSION,
            correlation_id=request.correlation_id,
            compression=request.compression,
            database=DatabaseInfo(name="", encoding="UTF8", collate="", ctype="", owner=""),
            server_version=version,
            pg_dump_version=clients.major,
            snapshot_at=rfc3339(taken),
            started_at=rfc3339(start),
            finished_at=rfc3339(utc_now()),
            raw_bytes=archive.raw_bytes,
            stored_bytes=archive.offset,
            rows=0,
            tables=(),
            blocks=tuple(archive.blocks),
            passwords=passwords,
        )
        archive.finish(index)
        return index

    index, stored = commit.written(upload, key, log, processes, write, lambda: None, lambda error: error)
    seconds = time.monotonic() - began
    result = BackupResult(
        changed=True,
        database="",
        key=key,
        url=store.storage.url(key),
        correlation_id=request.correlation_id,
        version_id=stored.version_id,
        etag=stored.etag,
        stored_bytes=stored.size,
        seconds=round(seconds, 3),
        mb_per_second=round(index.raw_bytes / 1e6 / max(seconds, 0.001), 1),
        started_at=index.started_at,
        finished_at=rfc3339(utc_now()),
        jobs=1,
        message="backed up roles and tablespaces%s" % (", with hashes of passwords" if passwords else ""),
        **summary(index),  # type: ignore[arg-type]
    )
    log.info("committed", key=key, stored_bytes=stored.size, seconds=result.seconds)
    return result


def dump(clients: Clients, processes: Processes, passwords: bool) -> bytes:
    """What pg_dumpall writes of the globals, to its own last line. In UTF-8."""
    maintenance_db = clients.server.maintenance_db
    arguments = ["--globals-only", "--database=" + maintenance_db] + ([] if passwords else ["--no-role-passwords"])
    try:
        argv = clients.argv("pg_dumpall", arguments, maintenance_db)
        text = processes.run(argv, clients.environment(), "pg_dumpall")
    except BackupError as error:
        if "pg_authid" in error.message:
            error.hint = "Only a superuser may read the hashes of passwords: back up the globals without them."
        raise
    restricted = _RESTRICT.match(text)
    if restricted:
        for word in (b"restrict", b"unrestrict"):
            text = text.replace(b"\n\\%s %s\n" % (word, restricted[1]), b"\n")
    if not _COMPLETE.search(text[-_TAIL:]):
        raise BackupError("pg_dumpall ended without its last line, 'PostgreSQL database cluster dump complete'")
    return text
