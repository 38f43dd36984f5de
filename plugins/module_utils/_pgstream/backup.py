# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Back up one database into one object: many COPY streams, one snapshot, one commit."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Dict, List, Optional, Sequence, Tuple

from . import catalog, cipher, codec, commit, copying, limits, plan, postgres, schema
from .archive import ArchiveWriter
from .clients import Clients, find_clients
from .errors import BackupError, ServerError, StorageError, UsageError, hint_of
from .events import Log, new_correlation_id, rfc3339, utc_now
from .model import (
    ENGINE_VERSION,
    FORMAT_VERSION,
    BackupRequest,
    BackupResult,
    DatabaseInfo,
    Filters,
    Index,
    Table,
    TableResult,
)
from .part import Part, check_patterns, chosen
from .postgres import Leader, TableFacts
from .process import Processes
from .quoting import literal, qualified
from .stages import all_faults, stage
from .store.base import Store, StoredObject, Upload, open_store
from .workers import run_parallel

LARGE_OBJECT_PIECE = 1 << 20  # bytes of one lo_put


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """The smaller of 4 and the processors this process may use."""
    return min(4, processors())


def back_up(request: BackupRequest, log: Log) -> BackupResult:
    """Run a backup. It is whole in the store when this returns, and not there at all when this raises."""
    with limits.time_limit(request.timeout):
        return _back_up(request, log)


def _back_up(request: BackupRequest, log: Log) -> BackupResult:
    request, start, store, key, existing = _prepare(request, log)
    if existing is not None:
        log.info("unchanged", key=existing.key, reason=existing.message)
        return existing
    (leader, clients), upload = _open_both(request, store, key, log)
    try:
        return _Run(request, log, start, store, key, leader, clients, upload).run()
    finally:
        leader.close()


def predict_backup(request: BackupRequest, log: Log) -> BackupResult:
    """Connect, check everything that a run would, and say what it would do. Changes nothing."""
    request, start, store, key, existing = _prepare(request, log)
    if existing is not None:
        return existing
    (leader, clients), upload = _open_both(request, store, key, log)
    commit.abort(upload, log)
    with leader, stage("validation"):
        facts = _measure(leader, _lock(leader, request))
    return BackupResult(
        changed=True,
        database=request.database,
        key=key,
        url=request.storage.url(key),
        correlation_id=request.correlation_id,
        compression=request.compression,
        tables=len(facts),
        jobs=request.jobs,
        server_version=leader.version,
        started_at=rfc3339(start),
        estimated_bytes=sum(each.size for each in facts),
        table_rows=tuple(TableResult(each.schema, each.name, -1, each.size) for each in facts),
        message="would back up %d tables with pg_dump %d" % (len(facts), clients.major),
    )


def _prepare(request: BackupRequest, log: Log) -> Tuple[BackupRequest, datetime, Store, str, Optional[BackupResult]]:
    """The request with its defaults, the start, where the object goes, and the result if there is nothing to do."""
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
    start = utc_now()
    store, key = _destination(request, start)
    return request, start, store, key, _existing(request, store, key, start)


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


def _open_both(request: BackupRequest, store: Store, key: str, log: Log) -> Tuple[Tuple[Leader, Clients], Upload]:
    """The server's side and the store's, ready to run; every fault of either is named."""
    metadata = {"pgstream-run": request.correlation_id}
    with stage("validation"):
        both = all_faults(
            lambda: _open(request, log), lambda: store.begin(key, request.overwrite == "always", metadata)
        )
        return both[0], both[1]


def _open(request: BackupRequest, log: Log) -> Tuple[Leader, Clients]:
    leader = Leader(request.server, request.database)
    try:
        clients = find_clients(request.server, leader.major)
        check_patterns(leader, request.database, request.filters, log)
        leader.take_run_lock(request.database)
        return leader, clients
    except BaseException:
        leader.close()
        raise


def _lock(leader: Leader, request: BackupRequest) -> Part:
    """Lock every table that the filters do not rule out."""
    part = chosen(leader, request.filters)
    with stage("locking tables"):
        leader.lock_tables([qualified(each.schema, each.name) for each in part.tables], request.lock_timeout)
    return part


def _measure(leader: Leader, part: Part) -> List[TableFacts]:
    """The facts of those with rows of their own."""
    return postgres.table_facts(leader, [each.oid for each in part.tables])


@dataclass
class _Run:
    """One backup from the snapshot to the commit."""

    request: BackupRequest
    log: Log
    start: datetime
    store: Store
    key: str
    leader: Leader
    clients: Clients
    upload: Upload

    def run(self) -> BackupResult:
        began = time.monotonic()
        request, leader = self.request, self.leader
        self.log.info("started", key=self.key, jobs=request.jobs, server_version=leader.version)
        if leader.pooled:
            self.log.warning("pooled_connection", detail="a pooling proxy stands before the server")
        self.processes = Processes()
        index, stored = commit.written(
            self.upload, self.key, self.log, self.processes, self._write, leader.still_there, self._first_cause
        )
        seconds = time.monotonic() - began
        result = BackupResult(
            changed=True,
            database=request.database,
            key=self.key,
            url=request.storage.url(self.key),
            correlation_id=request.correlation_id,
            version_id=stored.version_id,
            etag=stored.etag,
            stored_bytes=stored.size,
            seconds=round(seconds, 3),
            mb_per_second=round(index.raw_bytes / 1e6 / max(seconds, 0.001), 1),
            started_at=index.started_at,
            finished_at=rfc3339(utc_now()),
            jobs=request.jobs,
            estimated_bytes=self.estimate,
            message="backed up %d rows of %d tables" % (index.rows, len(index.tables)),
            **summary(index),  # type: ignore[arg-type]
        )
        self.log.info("committed", key=self.key, stored_bytes=stored.size, rows=index.rows, seconds=result.seconds)
        return result

    def _first_cause(self, error: BaseException) -> BaseException:
        """Whatever a part of the run says, if the leader's session was lost, and the snapshot with it, it was that."""
        if isinstance(error, BackupError) and not isinstance(error, StorageError) and not self.leader.lost:
            try:
                self.leader.still_there()
            except ServerError as lost:
                error = lost.at(error.stage)
            except BackupError:
                pass  # its transaction failed, the session is there
        if isinstance(error, ServerError) and self.leader.standby:
            error.hint = error.hint or hint_of("conflict with recovery")
        return error

    def _write(self) -> Index:
        """Everything from the schema block to the footer."""
        request, leader, clients = self.request, self.leader, self.clients
        with stage("validation"):
            catalog.sweep(self.store, self.log)
        with stage("snapshot"):
            part = _lock(leader, request)
        with stage("schema dump"):
            pg_dump = schema.start_dump(
                clients,
                self.processes,
                request.database,
                leader.encoding,
                leader.snapshot,
                part.named,
                request.lock_timeout,
            )
            facts = _measure(leader, part)
            info = postgres.database_info(leader)
            dumped, warnings = schema.dumped_by(pg_dump)
            for warning in warnings:
                self.log.warning("pg_dump_warning", message=warning)
            found = schema.contents(schema.entries(clients, self.processes, dumped))
        self.estimate = sum(each.size for each in facts)
        self.upload.expect(self.estimate)
        self.archive = ArchiveWriter(self.upload.write, request.compression, request.compression_level)
        self.block_size = plan.block_size(self.estimate)
        with stage("head"):
            self.archive.text("schema", schema.as_comments(dumped))
            self.archive.text("pre", self._script(dumped, "pre-data"))
        missing = found.relations - {each.oid for each in part.tables}
        if missing:
            raise BackupError("pg_dump took %d tables that are not among the locked ones" % len(missing))
        filled = found.relations - part.bare
        chosen = [each for each in facts if each.oid in filled]
        tables = [Table(number, each.oid, each.schema, each.name) for number, each in enumerate(chosen)]
        with stage("table data"):
            copier = self._copy(chosen)
        with stage("rest of the data"):
            blocks = self._blocks("rest")
            tables += self._rest(found, copier, blocks, len(tables))
            blocks.close()
        copier.rows.update(blocks.rows)
        copier.raw_bytes.update(blocks.raw_bytes)
        with stage("tail"):
            self.archive.text("post", self._script(dumped, "post-data"))
            index = self._index(info, tables, copier)
            self.archive.finish(index)
        return index

    def _script(self, dumped: bytes, section: str) -> bytes:
        text = schema.pg_restore_text(self.clients, self.processes, dumped, ["--section=" + section, "-f", "-"])
        if self.request.filters.tables and section == "pre-data":
            text = schema.with_schemas(text)
        return schema.for_server(text, self.leader.major)

    def _blocks(self, section: str) -> copying.RowBlocks:
        return copying.RowBlocks(self.archive, section, self.leader.encoding, self.leader.codec, self.block_size)

    def _copy(self, chosen: Sequence[TableFacts]) -> copying.DataCopier:
        tasks = plan.plan_copies(list(enumerate(chosen)), self.request.jobs)
        done = [0]

        def on_done(size: int) -> None:
            done[0] += size
            self.log.progress(done[0], self.estimate, "table data")

        copier = copying.DataCopier(
            self.clients, self.processes, self.leader, self.request.database, lambda: self._blocks("data"), on_done
        )
        run_parallel(tasks, copier.copy, min(self.request.jobs, max(1, len(tasks))), self.processes.kill_all)
        blocked = copier.copy_blocked()
        if blocked:
            self.log.info("copied_by_leader", tasks=blocked, detail="another session waits for a lock on their tables")
        return copier

    def _rest(
        self, found: schema.Contents, copier: copying.DataCopier, blocks: copying.RowBlocks, number: int
    ) -> List[Table]:
        """Extension configuration, sequence positions, large objects. The tables whose rows it holds."""
        leader, sequences = self.leader, set(found.sequences)
        tables: List[Table] = []
        for oid, name, table, kind, condition in postgres.extension_tables(leader, sorted(found.extensions)):
            if kind == "S":
                sequences.add(oid)
                continue
            item = plan.CopyItem(number + len(tables), postgres.table_facts(leader, [oid])[0])
            columns = ", ".join(item.facts.columns)
            statement = "COPY (SELECT %s FROM ONLY %s %s) TO STDOUT" % (columns, item.name, condition)
            copier.copy_in_leader(item, statement, blocks)
            tables.append(Table(item.table, oid, name, table))
        for value in postgres.sequence_values(leader, sorted(sequences)):
            where = literal(qualified(value.schema, value.name))
            statement = "SELECT pg_catalog.setval(%s, %d, %s);\n" % (
                where,
                value.last_value,
                str(value.is_called).lower(),
            )
            blocks.sql(statement.encode(leader.codec))
        if not (self.request.filters.schemas or self.request.filters.tables):  # as pg_dump has it
            blocks.close()  # a restore may leave owners and grants out of blocks without rows
            for oid, lines in postgres.large_objects(leader):
                for line in lines:
                    blocks.sql((line + "\n").encode(leader.codec))
                self._large_object(oid, blocks)
        return tables

    def _large_object(self, oid: int, blocks: copying.RowBlocks) -> None:
        offset = 0
        while True:
            data = postgres.large_object_chunk(self.leader, oid, offset, LARGE_OBJECT_PIECE)
            if data:
                text = "SELECT pg_catalog.lo_put('%d'::oid, %d, '\\x%s');\n" % (oid, offset, data.hex())
                blocks.sql(text.encode("ascii"))
            offset += len(data)
            if len(data) < LARGE_OBJECT_PIECE:
                return

    def _index(self, info: DatabaseInfo, tables: Sequence[Table], copier: copying.DataCopier) -> Index:
        counted = tuple(
            replace(each, rows=copier.rows.get(each.number, 0), raw_bytes=copier.raw_bytes.get(each.number, 0))
            for each in tables
        )
        return Index(
            format_version=FORMAT_VERSION,
            engine_version=ENGINE_VERSION,
            correlation_id=self.request.correlation_id,
            compression=self.request.compression,
            database=info,
            server_version=self.leader.version,
            pg_dump_version=self.clients.major,
            snapshot_at=rfc3339(self.leader.snapshot_at),
            started_at=rfc3339(self.start),
            finished_at=rfc3339(utc_now()),
            raw_bytes=self.archive.raw_bytes,
            stored_bytes=self.archive.offset,
            rows=sum(each.rows for each in counted),
            tables=counted,
            blocks=tuple(self.archive.blocks),
            filtered=self.request.filters != Filters(),
        )
