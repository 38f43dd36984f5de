# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a backup has before it runs: its defaults, its key, a backup that makes it needless, and both sides opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Dict, List, Optional, Tuple

from . import catalog, cipher, codec, commit, postgres, schema
from .clients import Clients, find_clients
from .errors import UsageError
from .events import Log, new_correlation_id, utc_now
from .model import BackupRequest, BackupResult, DatabaseInfo, Index, TableResult
from .part import Part, check_patterns, chosen
from .postgres import Leader, TableFacts
from .process import Process, Processes
from .quoting import qualified
from .stages import all_faults, stage
from .store.base import Store, StoredObject, Upload, open_store
from .workers import default_jobs


def prepare(request: BackupRequest, log: Log) -> Tuple[BackupRequest, datetime]:
    """The request with its defaults, and the start."""
    codec.check_level(request.compression, request.compression_level)
    if request.filters.tables and (request.filters.schemas or request.filters.exclude_schemas):
        raise UsageError("schemas have no effect beside tables, as in pg_dump", hint="Name them as tables: schema.*")
    if not request.database:
        raise UsageError("no database is named", hint="Set login_db or POSTGRES_DB.")
    request = replace(
        request,
        jobs=request.jobs or default_jobs(),
        correlation_id=request.correlation_id or new_correlation_id(),
    )
    log.correlation_id, log.operation, log.database = request.correlation_id, "backup", request.database
    return request, utc_now()


def looked_up(request: BackupRequest, start: datetime) -> Tuple[Optional[Tuple[Store, str]], Optional[BackupResult]]:
    """Where the object goes and the result if there is nothing to do, where the store can tell that."""
    if not (request.fresh_within or request.key and request.overwrite == "never"):
        return None, None
    store, key = _destination(request, start)
    return (store, key), _existing(request, store, key, start)


def _destination(request: BackupRequest, start: datetime) -> Tuple[Store, str]:
    part = catalog.part_of(request.filters)
    if not request.key:
        store = open_store(request.storage)
        with stage("validation"):
            return store, commit.free_key(
                store,
                start,
                lambda moment: catalog.new_key(request.storage, request.database, moment, request.compression, part),
            )
    named = catalog.compression_of(request.key)
    if named and named != request.compression:
        raise UsageError(
            "the key %s names another compression than %s" % (request.key, request.compression),
            hint="Leave one of the two out, or make them agree.",
        )
    cipher.check_name(request.storage, request.key)
    catalog.check_key(request.key, request.database, part)
    return open_store(request.storage), catalog.whole_key(request.storage, request.key)


def _existing(request: BackupRequest, store: Store, key: str, start: datetime) -> Optional[BackupResult]:
    """The result for a backup that is there already and good enough; None when a run is due."""
    with stage("validation"):
        if request.key and request.overwrite == "never":
            item = store.probe(key)
            if item is not None:
                return unchanged(request, store, item, "exists already")
        if request.fresh_within:
            part = catalog.part_of(request.filters)
            found = [one for one in catalog.candidates(store, request.database, direct=True) if one.part == part]
            item = commit.fresh(store, found, start, request.fresh_within)
            if item is not None:
                return unchanged(request, store, item, "is younger than %d seconds" % request.fresh_within)
    return None


def unchanged(request: BackupRequest, store: Store, item: StoredObject, why: str) -> BackupResult:
    """The result of a run that found `item` to be good enough."""
    sealed = store.sealed(item.key, item.size)
    index = catalog.read_index(store, item) if sealed is None else None
    result = BackupResult(
        changed=False,
        database=request.database,
        key=item.key,
        url=request.storage.url(item.key),
        correlation_id=request.correlation_id,
        version_id=item.version_id,
        etag=item.etag,
        compression=catalog.compression_of(item.key),
        stored_bytes=item.size,
        message="%s %s" % (item.key, why),
    )
    if sealed is not None:
        return replace(result, message=result.message + ", and is encrypted")
    if index is None:
        return replace(result, message=result.message + ", and was not written by this engine")
    return replace(
        result,
        **summary(index),  # type: ignore[arg-type]
        started_at=index.started_at,
        finished_at=index.finished_at,
    )


def summary(index: Index) -> Dict[str, object]:
    """What a result tells of what is in the backup."""
    return {
        "compression": index.compression,
        "raw_bytes": index.raw_bytes,
        "rows": index.rows,
        "tables": len(index.tables),
        "snapshot_at": index.snapshot_at,
        "server_version": index.server_version,
        "table_rows": tuple(TableResult(each.schema, each.name, each.rows, each.raw_bytes) for each in index.tables),
    }


@dataclass
class Source:
    """The server's side of a run, ready: tables locked and measured, pg_dump at work."""

    leader: Leader
    clients: Clients
    processes: Processes
    part: Part
    facts: List[TableFacts]
    info: DatabaseInfo
    pg_dump: Optional[Process]

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.processes.kill_all()
        self.leader.close()


Target = Tuple[Store, str, Upload]


def open_both(
    request: BackupRequest, start: datetime, log: Log, found: Optional[Tuple[Store, str]], dump: bool = True
) -> Tuple[Source, Target]:
    """The server's side and the store's, ready to run; every fault of either is named. The server comes first: pg_dump
    is at work while boto3 is imported and the store answers."""

    def begin() -> Target:
        with stage("validation"):
            store, key = found or _destination(request, start)
            metadata = {"pgstream-run": request.correlation_id}
            return store, key, store.begin(key, request.overwrite == "always", metadata)

    source, target = all_faults(lambda: _open(request, log, dump), begin)
    return source, target


def _open(request: BackupRequest, log: Log, dump: bool) -> Source:
    with stage("validation"):
        leader = Leader(request.server, request.database)
    processes = Processes()
    try:
        with stage("validation"):
            clients = find_clients(request.server, leader.major)
            check_patterns(leader, request.database, request.filters, log)
            leader.take_run_lock(request.database)
        with stage("snapshot"):
            part = _lock(leader, request)
        with stage("schema dump"):
            pg_dump = _start_dump(request, leader, clients, processes, part) if dump else None
            facts = postgres.table_facts(leader, [each.oid for each in part.tables])
            return Source(leader, clients, processes, part, facts, postgres.database_info(leader), pg_dump)
    except BaseException:
        processes.kill_all()
        leader.close()
        raise


def _lock(leader: Leader, request: BackupRequest) -> Part:
    """Lock every table that the filters do not rule out."""
    part = chosen(leader, request.filters)
    with stage("locking tables"):
        leader.lock_tables([qualified(each.schema, each.name) for each in part.tables], request.lock_timeout)
    return part


def _start_dump(request: BackupRequest, leader: Leader, clients: Clients, processes: Processes, part: Part) -> Process:
    return schema.start_dump(
        clients, processes, request.database, leader.encoding, leader.snapshot, part.named, request.lock_timeout
    )
