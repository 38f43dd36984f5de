# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Back up one database into one object: many COPY streams, one snapshot, one commit."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Callable, List, Sequence

from . import catalog, commit, copying, limits, plan, postgres, schema
from .archive import ArchiveWriter, BehindHead
from .errors import BackupError, ServerError, StorageError, given, hint_of
from .events import Log, rfc3339, utc_now
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
from .outset import Source, Target, looked_up, open_both, prepare, summary
from .postgres import TableFacts
from .quoting import literal, qualified
from .stages import stage
from .workers import run_parallel

LARGE_OBJECT_PIECE = 1 << 20  # bytes of one lo_put


def back_up(request: BackupRequest, log: Log) -> BackupResult:
    """Run a backup. It is whole in the store when this returns, and not there at all when this raises."""
    with limits.time_limit(request.timeout), limits.batch():
        return _back_up(request, log)


def _back_up(request: BackupRequest, log: Log) -> BackupResult:
    request, start = prepare(request, log)
    found, existing = looked_up(request, start)
    if existing is not None:
        log.info("unchanged", key=existing.key, reason=existing.message)
        return existing
    source, target = open_both(request, start, log, found)
    with source:
        try:
            return _Run(request, log, start, source, target, ahead=request.jobs > 1).run()
        except _LeftOut as error:
            log.info("again", detail=error.message)
            source.leader.commit()  # closing it alone does not wait for its locks to be gone
    source, target = open_both(request, start, log, None)
    with source:
        return _Run(request, log, start, source, target, ahead=False).run()


def predict_backup(request: BackupRequest, log: Log) -> BackupResult:
    """Connect, check everything that a run would, and say what it would do. Changes nothing."""
    request, start = prepare(request, log)
    found, existing = looked_up(request, start)
    if existing is not None:
        return existing
    source, (_store, key, upload) = open_both(request, start, log, found, dump=False)
    with source:
        commit.abort(upload, log)
    return BackupResult(
        changed=True,
        database=request.database,
        key=key,
        url=request.storage.url(key),
        correlation_id=request.correlation_id,
        compression=request.compression,
        tables=len(source.facts),
        jobs=request.jobs,
        server_version=source.leader.version,
        started_at=rfc3339(start),
        estimated_bytes=sum(each.size for each in source.facts),
        table_rows=tuple(TableResult(each.schema, each.name, -1, each.size) for each in source.facts),
        message="would back up %d tables with pg_dump %d" % (len(source.facts), source.clients.major),
    )


class _LeftOut(BackupError):
    """pg_dump left out tables whose rows were to be copied ahead of it: they must wait for it."""


@dataclass
class _Run:
    """One backup from the snapshot to the commit."""

    request: BackupRequest
    log: Log
    start: datetime
    source: Source
    target: Target
    ahead: bool  # rows are copied before pg_dump is done

    def __post_init__(self) -> None:
        self.leader, self.clients, self.processes = self.source.leader, self.source.clients, self.source.processes
        self.store, self.key, self.upload = self.target

    def run(self) -> BackupResult:
        began = time.monotonic()
        request, leader = self.request, self.leader
        self.log.info("started", key=self.key, jobs=request.jobs, server_version=leader.version)
        if leader.pooled:
            self.log.warning("pooled_connection", detail="a pooling proxy stands before the server")
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
        with stage("validation"):
            catalog.sweep(self.store, self.log)
        source, part = self.source, self.source.part
        self.estimate = sum(each.size for each in source.facts)
        self.upload.expect(self.estimate)
        self.archive = ArchiveWriter(self.upload.write, self.request.compression, self.request.compression_level)
        self.behind = BehindHead(self.archive, lambda: self.processes.closed)
        self.block_size = plan.block_size(self.estimate)
        filled = [each for each in source.facts if each.oid not in part.bare]
        if not self.ahead:
            self._head()
            filled = [each for each in filled if each.oid in self.found.relations]
        tables = [Table(number, each.oid, each.schema, each.name) for number, each in enumerate(filled)]
        with stage("table data"):
            copier = self._copy(filled)
        with stage("rest of the data"):
            blocks = self._blocks("rest")
            tables += self._rest(self.found, copier, blocks, len(tables))
            blocks.close()
        copier.rows.update(blocks.rows)
        copier.raw_bytes.update(blocks.raw_bytes)
        with stage("tail"):
            self.archive.text("post", self._script(self.dumped, "post-data"))
            index = self._index(source.info, tables, copier)
            self.archive.finish(index)
        return index

    def _head(self) -> None:
        """Wait for pg_dump, and write what comes before the rows."""
        with stage("schema dump"):
            self.dumped, warnings = schema.dumped_by(given(self.source.pg_dump))
            for warning in warnings:
                self.log.warning("pg_dump_warning", message=warning)
            self.found = schema.contents(schema.entries(self.clients, self.processes, self.dumped))
            locked = {each.oid for each in self.source.part.tables}
            missing = self.found.relations - locked
            if missing:
                raise BackupError("pg_dump took %d tables that are not among the locked ones" % len(missing))
            more = {each.oid for each in self.source.facts} - self.found.relations
            if more and self.ahead:
                raise _LeftOut("pg_dump left out %d tables that were thought to be of the backup" % len(more))
        with stage("head"):
            self.archive.text("schema", schema.as_comments(self.dumped))
            self.archive.text("pre", self._script(self.dumped, "pre-data"))
            self.behind.head_is_written()

    def _script(self, dumped: bytes, section: str) -> bytes:
        text = schema.pg_restore_text(self.clients, self.processes, dumped, ["--section=" + section, "-f", "-"])
        if self.request.filters.tables and section == "pre-data":
            text = schema.with_schemas(text)
        return schema.for_server(text, self.leader.major)

    def _blocks(self, section: str) -> copying.RowBlocks:
        return copying.RowBlocks(self.behind, section, self.leader.encoding, self.leader.codec, self.block_size)

    def _copy(self, chosen: Sequence[TableFacts]) -> copying.DataCopier:
        tasks = plan.plan_copies(list(enumerate(chosen)), self.request.jobs)
        done = [0]

        def on_done(size: int) -> None:
            done[0] += size
            self.log.progress(done[0], self.estimate, "table data")

        copier = copying.DataCopier(
            self.clients, self.processes, self.leader, self.request.database, lambda: self._blocks("data"), on_done
        )
        work: List[Callable[[], None]] = [lambda task=task: copier.copy(task) for task in tasks]  # type: ignore[misc]
        if self.ahead:  # one worker waits for pg_dump, the others begin
            work.insert(0, self._head)
        run_parallel(work, lambda one: one(), min(self.request.jobs, max(1, len(work))), self.processes.kill_all)
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
