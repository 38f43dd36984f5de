# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore one database: nothing under the target's name changes until the whole of it is there and counted."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from . import archive, catalog, codec, limits, loading, schema, target
from .backup import default_jobs
from .clients import Clients, find_clients
from .copying import preamble
from .errors import BackupError, IntegrityError, TargetError, UsageError
from .events import Log, new_correlation_id, rfc3339, utc_now
from .loading import Loader, Reader
from .model import Block, Index, RestoreRequest, RestoreResult, TableResult
from .postgres import AT_START, Session, qualified
from .process import Processes, memory_file
from .stages import all_faults, stage
from .store import Store, StoredObject, open_store
from .target import Maintenance, Target
from .workers import run_parallel


@dataclass(frozen=True)
class _Plan:
    """What a restore is about to do, all of it checked."""

    request: RestoreRequest
    store: Store
    item: StoredObject
    index: Optional[Index]  # None: a foreign object
    target: Target
    how: str  # create, swap, in_place
    clients: Clients


def restore(request: RestoreRequest, log: Log) -> RestoreResult:
    """Run a restore. When this raises, the target is as it was."""
    with limits.time_limit(request.timeout):
        return _restore(request, log)


def _restore(request: RestoreRequest, log: Log) -> RestoreResult:
    start = utc_now()
    planned = _plan(request, log)
    run = _Run(planned, log, start)
    if planned.how == "in_place":
        return run.in_place()
    maintenance = Maintenance(planned.request.server, planned.target.name)
    try:
        return run.beside(maintenance)
    finally:
        maintenance.close()


def predict_restore(request: RestoreRequest, log: Log) -> RestoreResult:
    """Connect, find and check the backup and the target, and say what a run would do. Changes nothing."""
    planned = _plan(request, log)
    index = planned.index
    result = RestoreResult(
        changed=True,
        database=planned.target.name,
        key=planned.item.key,
        url=planned.store.storage.url(planned.item.key),
        correlation_id=planned.request.correlation_id,
        strategy=planned.how,
        foreign=index is None,
        jobs=planned.request.jobs,
        message="would restore by %s; the target is now: %s" % (planned.how, planned.target.described()),
    )
    if index is None:
        return result
    return replace(
        result,
        source_database=index.database.name,
        rows=index.rows,
        tables=len(index.tables),
        raw_bytes=index.raw_bytes,
        snapshot_at=index.snapshot_at,
        table_rows=tuple(TableResult(each.schema, each.name, each.rows, each.raw_bytes) for each in index.tables),
    )


def _plan(request: RestoreRequest, log: Log) -> _Plan:
    request = replace(
        request,
        jobs=request.jobs or default_jobs(),
        correlation_id=request.correlation_id or new_correlation_id(),
    )
    log.correlation_id, log.operation, log.database = request.correlation_id, "restore", request.database
    if request.latest_before and request.key != "latest":
        raise UsageError("latest_before goes with backup_key latest, not with a key")
    with stage("validation"):
        store = open_store(request.storage)
        (item, index), _reachable = all_faults(lambda: _resolve(store, request), lambda: _reach(request))
        name = request.database or (index.database.name if index else catalog.parse_key(item.key)[0])
        if not name:
            raise UsageError("the target database is not named, and the backup does not name one", hint="Set login_db.")
        log.database = name
        found = target.inspect(request.server, name)
        how = _strategy(request, found)
        if index is None and (request.schemas or request.tables):
            raise UsageError("a dump without an index is restored whole: schemas and tables cannot be chosen from it")
        major = _reach(request)
        clients = find_clients(request.server, max(major, index.pg_dump_version if index else 0), "server and backup")
    return _Plan(replace(request, database=name), store, item, index, found, how, clients)


def _reach(request: RestoreRequest) -> int:
    """The server's major version; raises when it cannot be reached at all."""
    server = request.server
    try:
        with Session(server, server.maintenance_db, patience=AT_START) as session:
            major: int = session.major
            return major
    except BackupError:
        if not request.database or request.database == server.maintenance_db:
            raise
        with Session(server, request.database) as session:
            major = session.major
            return major


def _resolve(store: Store, request: RestoreRequest) -> Tuple[StoredObject, Optional[Index]]:
    name = request.source_database or request.database
    if request.key == "latest" and not name:
        raise UsageError("backup_key latest needs the name of a database", hint="Set login_db or source_db.")
    item = catalog.resolve(store, request.key, name, request.latest_before)
    with stage("reading the index"):
        return item, catalog.read_index(store, item)


def _strategy(request: RestoreRequest, found: Target) -> str:
    """create, swap or in_place; TargetError says which option would allow what is asked."""
    if not found.exists:
        if request.strategy == "in_place" or not request.create:
            hint = "" if request.strategy == "in_place" else "Use create to have it made."
            raise TargetError("database %s does not exist" % found.name, hint=hint)
        return "create"
    if request.strategy == "swap":
        return "swap"
    if found.content:
        raise TargetError(
            "database %s is not empty: it %s" % (found.name, found.described()),
            hint="Restore into another database, or use strategy swap to put the restored one in its place.",
        )
    return "in_place"


_TABLESPACE = re.compile(rb"(?m)^SET default_tablespace = '?[^';]")


class _Run:
    """One restore that was planned."""

    def __init__(self, planned: _Plan, log: Log, start: datetime) -> None:
        self.planned = planned
        self.request = planned.request
        self.log = log
        self.start = start
        self.began = time.monotonic()
        self.processes = Processes()
        self.done = 0

    def in_place(self) -> RestoreResult:
        """Into an existing empty database, which a failure leaves empty again."""
        self._started()
        try:
            loader, rows = self._load(self.planned.target.name)
        except BaseException:
            self.processes.kill_all()
            try:
                target.empty_again(self.request.server, self.planned.target, self.log)
            except BackupError as error:  # told after the first cause, not instead of it
                self.log.warning("not_emptied", object=self.planned.target.name, message=error.sentence())
            raise
        return self._result(loader, rows, "")

    def beside(self, maintenance: Maintenance) -> RestoreResult:
        """Into a new database, renamed at the end; the replaced one is kept or dropped as asked."""
        request, index, name = self.request, self.planned.index, self.planned.target.name
        temporary = target.beside(name, request.correlation_id)
        self._started()
        maintenance.sweep(self.log)
        kept, renaming = "", False
        try:
            with stage("creating the database"):
                if index is None:
                    maintenance.create_like(temporary, request.role)
                else:
                    maintenance.create(temporary, index.database, request.no_owner, request.role)
            loader, rows = self._load(temporary)
            with stage("rename"):
                maintenance.unmark(temporary)
                if index is not None:
                    maintenance.apply_properties(temporary, index.database, request.no_owner, request.no_privileges)
                renaming = True
                if self.planned.how == "swap":
                    kept = target.kept_name(name, self.start)
                    maintenance.swap(temporary, name, kept)
                else:
                    maintenance.rename(temporary, name)
        except BaseException as error:
            self.processes.kill_all()
            if not (renaming and self._renamed(maintenance, error)):
                self._drop(maintenance, temporary)
                raise
        if kept and not request.keep_old:
            with stage("dropping the replaced database"):
                maintenance.drop(kept)
            kept = ""
        return self._result(loader, rows, kept)

    def _renamed(self, maintenance: Maintenance, error: BaseException) -> bool:
        """A rename that was interrupted, or whose answer was lost, may be done all the same: then so it is told."""
        try:
            done = maintenance.made_is(self.planned.target.name)
        except BackupError:
            return False
        if done:
            self.log.warning("interrupted_after_rename", message=str(error))
        return done

    def _drop(self, maintenance: Maintenance, temporary: str) -> None:
        try:
            maintenance.drop(temporary)
        except BackupError as error:
            self.log.warning("not_dropped", object=temporary, message=error.sentence())

    def _started(self) -> None:
        self.log.info("started", key=self.planned.item.key, strategy=self.planned.how, jobs=self.request.jobs)

    def _load(self, database: str) -> Tuple[Loader, Tuple[TableResult, ...]]:
        if self.planned.index is None:
            return self._load_foreign(database)
        return self._load_blocks(database, self.planned.index)

    # A backup of ours: head, data in parallel, rest, tail.

    def _load_blocks(self, database: str, index: Index) -> Tuple[Loader, Tuple[TableResult, ...]]:
        request, store, key, clients = self.request, self.planned.store, self.planned.item.key, self.planned.clients
        loader = Loader(clients, self.processes, database, request.role, self._server_major(), index.database.encoding)
        sections: Dict[str, List[Block]] = {}
        for block in index.blocks:
            sections.setdefault(block.section, []).append(block)
        with stage("reading the schema archive"):
            dumped = schema.from_comments(self._sql(index, sections.get("schema", [])))
            picked, chosen = self._chosen(dumped, index)
            options = self._schema_options(picked)
        with stage("head"):
            head = self._script(dumped, "pre-data", options)
            loader.script(head)
        with stage("table data"):
            data = [block for block in sections.get("data", []) if _holds(block, chosen)]
            total = sum(block.length for block in data)

            def work(run: Sequence[Block]) -> None:
                loader.load(store, key, index, run, chosen)
                self.done += sum(block.length for block in run)
                self.log.progress(self.done, total, "table data")

            size = loading.run_size(index, request.jobs)
            run_parallel(archive.runs(data, size), work, request.jobs, self.processes.kill_all)
        with stage("rest of the data"):
            rest = sections.get("rest", [])
            if picked is None:
                unwanted: Tuple[bytes, ...] = (b"ALTER LARGE OBJECT ",) if request.no_owner else ()
                if request.no_privileges:
                    unwanted += (b"GRANT ", b"REVOKE ")
                for run in archive.runs(rest, loading.LARGEST_RUN):
                    loader.load(store, key, index, run, unwanted=unwanted)
            elif rest:
                # Block by block: large objects are in them too, and may be more than memory.
                loader.script(b"".join(_sequence_values(self._sql(index, [block]), picked) for block in rest))
        with stage("row counts"):
            rows = self._count(loader, index, chosen)
        with stage("indexes and constraints"):
            self._tail(database, dumped, options, loader)
        if request.analyze:
            with stage("analyze"), Session(request.server, database) as session:
                session.execute("ANALYZE")
        return loader, rows

    def _sql(self, index: Index, blocks: Sequence[Block]) -> bytes:
        """The SQL of blocks that are needed in memory."""
        if not blocks:
            return b""
        reader = Reader(self.planned.store, self.planned.item.key, blocks)
        return b"".join(
            piece for block in blocks for piece in archive.block_sql(index.compression, block, reader.next_block(block))
        )

    def _chosen(self, dumped: bytes, index: Index) -> Tuple[Optional[List[schema.Entry]], Optional[Set[int]]]:
        """The archive's entries and the numbers of the tables to restore; None, None for everything."""
        request = self.request
        if not (request.schemas or request.tables):
            return None, None
        wanted = [tuple(name.split(".", 1)) if "." in name else ("", name) for name in request.tables]
        toc = schema.entries(self.planned.clients, self.processes, dumped)
        oids = {
            table.oid
            for table in index.tables
            if table.schema in request.schemas
            or any(name == table.name and space in ("", table.schema) for space, name in wanted)
        }
        picked, oids = schema.select(toc, request.schemas, wanted, oids)  # type: ignore[arg-type]
        if not oids and not any(entry.oid for entry in picked):
            raise UsageError(
                "nothing in the backup matches the schemas and tables asked for",
                hint="It has the schemas %s." % ", ".join(sorted({table.schema for table in index.tables})[:10]),
            )
        return picked, {table.number for table in index.tables if table.oid in oids}

    def _schema_options(self, picked: Optional[List[schema.Entry]]) -> List[str]:
        request = self.request
        options = ["--no-owner"] if request.no_owner else []
        options += ["--no-privileges"] if request.no_privileges else []
        if picked is not None:
            self.use_list = memory_file(b"\n".join(entry.line for entry in picked) + b"\n")
            options.append("--use-list=/dev/fd/%d" % self.use_list)
        else:
            self.use_list = -1
        return options

    def _script(self, dumped: bytes, section: str, options: Sequence[str]) -> bytes:
        arguments = ["--section=" + section, "-f", "-", *options]
        text = schema.pg_restore_text(
            self.planned.clients, self.processes, dumped, arguments, [self.use_list] if self.use_list >= 0 else []
        )
        return schema.for_server(text, self._server_major())

    def _server_major(self) -> int:
        if not hasattr(self, "_major"):
            self._major = _reach(self.request)
        return self._major

    def _tail(self, database: str, dumped: bytes, options: Sequence[str], loader: Loader) -> None:
        """Indexes, constraints, triggers, materialized views: by pg_restore in parallel, where its own settings suit
        the server, else as one script.

        pg_restore's jobs may lock each other out (one attaches an index to a partitioned one while another adds a
        constraint), and the server ends one of them. What fell to that is made again, one after the other.
        """
        clients, request = self.planned.clients, self.request
        if clients.major >= 17 > self._server_major():
            loader.script(self._script(dumped, "post-data", options))
            return
        file = memory_file(dumped)
        try:
            arguments = ["--section=post-data", "--jobs=%d" % request.jobs, *options]
            arguments += ["--role=" + request.role] if request.role else []
            argv = clients.argv("pg_restore", arguments, database) + ["/dev/fd/%d" % file]
            env = clients.environment()
            env["PGOPTIONS"] = loading.load_options(self._server_major())
            fds = [file] + ([self.use_list] if self.use_list >= 0 else [])
            process = self.processes.spawn(argv, env, "pg_restore", pass_fds=fds)
            try:
                process.output()
            except BackupError:
                statements = schema.ended_by_deadlocks(process.stderr_text())
                # In which tablespace an index goes was told to the session that is gone.
                if not statements or _TABLESPACE.search(self._script(dumped, "post-data", options)):
                    raise
                self.log.info("deadlock", again=len(statements), detail="jobs of pg_restore locked each other out")
                loader.script(preamble("UTF8") + "\n".join(statements).encode() + b"\n")
        finally:
            os.close(file)

    def _count(self, loader: Loader, index: Index, chosen: Optional[Set[int]]) -> Tuple[TableResult, ...]:
        """Compare what the server took with the index, table by table."""
        results = []
        for table in index.tables:
            if chosen is not None and table.number not in chosen:
                continue
            rows = loader.rows.get(table.number, 0)
            if rows != table.rows:
                raise IntegrityError(
                    "table %s has %d rows, the backup's index says %d"
                    % (qualified(table.schema, table.name), rows, table.rows)
                )
            results.append(TableResult(table.schema, table.name, rows, table.raw_bytes))
        return tuple(results)

    # A plain dump that pg_dump and a compressor made.

    def _load_foreign(self, database: str) -> Tuple[Loader, Tuple[TableResult, ...]]:
        store, item = self.planned.store, self.planned.item
        loader = Loader(self.planned.clients, self.processes, database, self.request.role, self._server_major())
        with stage("table data"):
            size = store.contents_size(item.key, item.size)
            head = store.read(item.key, 0, min(size, 8))
            if head.startswith(b"PGDMP"):
                raise UsageError(
                    "%s is a custom-format archive of pg_dump" % item.key, hint="Restore it with pg_restore."
                )
            compression = codec.detect(head)
            named = catalog.compression_of(item.key)
            if compression == "none" and named not in ("", "none"):
                raise IntegrityError(
                    "%s does not begin as %s, which its name says" % (item.key, named),
                    hint="It is damaged, or has the wrong name.",
                )
            codec.check_level(compression, None)
            decoder = codec.StreamDecoder(compression)
            pieces = self._counted(store.stream(item.key, 0, size), size)
            counts = loading.load_foreign(loader, pieces, decoder.feed, decoder.finish)
        self.foreign_rows = sum(counts)
        if self.request.analyze:
            with stage("analyze"), Session(self.request.server, database) as session:
                session.execute("ANALYZE")
        return loader, ()

    def _counted(self, pieces: Iterator[bytes], total: int) -> Iterator[bytes]:
        for piece in pieces:
            self.done += len(piece)
            self.log.progress(self.done, total, "dump")
            yield piece

    def _result(self, loader: Loader, rows: Tuple[TableResult, ...], kept: str) -> RestoreResult:
        seconds = time.monotonic() - self.began
        index, item = self.planned.index, self.planned.item
        total = sum(each.rows for each in rows) if index else self.foreign_rows
        result = RestoreResult(
            changed=True,
            database=self.planned.target.name,
            key=item.key,
            url=self.planned.store.storage.url(item.key),
            correlation_id=self.request.correlation_id,
            source_database=index.database.name if index else catalog.parse_key(item.key)[0],
            strategy=self.planned.how,
            old_database=kept,
            foreign=index is None,
            stored_bytes=loader.stored_bytes,
            raw_bytes=loader.raw_bytes,
            rows=total,
            tables=len(rows),
            seconds=round(seconds, 3),
            mb_per_second=round(loader.raw_bytes / 1e6 / max(seconds, 0.001), 1),
            snapshot_at=index.snapshot_at if index else "",
            started_at=rfc3339(self.start),
            finished_at=rfc3339(utc_now()),
            jobs=self.request.jobs if index else 1,
            table_rows=rows,
            message="restored %d rows%s" % (total, " of %d tables" % len(rows) if index else ""),
        )
        self.log.info("restored", key=item.key, rows=total, seconds=result.seconds, old_database=kept)
        return result


def _holds(block: Block, chosen: Optional[Set[int]]) -> bool:
    return chosen is None or any(number in chosen for number, _rows in block.tables)


def _sequence_values(sql: bytes, picked: Sequence[schema.Entry]) -> bytes:
    """The setval lines of the chosen sequences."""
    names = [entry.text for entry in picked if entry.text.startswith(b"SEQUENCE ")]
    lines = []
    for line in sql.splitlines():
        name = schema.sequence_of(line)
        if name and any(text.startswith(b"SEQUENCE " + name + b" ") for text in names):
            lines.append(line + b"\n")
    return b"".join(lines)
