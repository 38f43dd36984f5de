# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restore one database: nothing under the target's name changes until the whole of it is there and counted."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from datetime import datetime
from typing import Iterator, List, Optional, Sequence, Set, Tuple

from . import archive, catalog, codec, globals_restore, limits, loading, post_data, schema
from .analyze import analyze
from .copying import preamble
from .empty import EmptyDatabase
from .errors import BackupError, IntegrityError, UsageError, given
from .events import Log, rfc3339, utc_now
from .existing import ExistingTables
from .loading import Loader
from .model import Index, RestoreRequest, RestoreResult, TableResult
from .process import Processes, memory_file
from .quoting import qualified
from .restore_order import Early, Order, Task, early_entries, large_tables
from .restore_plan import Plan, plan
from .selection import Selection, sequence_values
from .session import Session
from .stages import stage
from .target import Maintenance
from .workers import run_parallel


def restore(request: RestoreRequest, log: Log) -> RestoreResult:
    """Run a restore. When this raises, the target is as it was."""
    if globals_restore.is_meant(request):
        return globals_restore.restore_globals(request, log)
    with limits.time_limit(request.timeout):
        return _restore(request, log)


def _restore(request: RestoreRequest, log: Log) -> RestoreResult:
    start = utc_now()
    planned = plan(request, log)
    run = _Run(planned, log, start)
    if request.content == "data":
        return run.into_tables()
    if planned.how == "in_place":
        return run.in_place()
    maintenance = Maintenance(planned.request.server, planned.target.name, request.mark)
    try:
        return run.beside(maintenance)
    finally:
        maintenance.close()


def predict_restore(request: RestoreRequest, log: Log) -> RestoreResult:
    """Connect, find and check the backup and the target, and say what a run would do. Changes nothing."""
    if globals_restore.is_meant(request):
        return globals_restore.predict_globals_restore(request, log)
    planned = plan(request, log)
    index, choice, content = planned.index, planned.selection, planned.request.content
    result = RestoreResult(
        changed=True,
        database=planned.target.name,
        key=planned.item.key,
        url=planned.store.storage.url(planned.item.key),
        correlation_id=planned.request.correlation_id,
        strategy=planned.how,
        foreign=index is None,
        content=content,
        stored_bytes=planned.item.size,
        bytes_read=planned.store.bytes_read + planned.item.size,
        jobs=planned.request.jobs,
    )
    rows = ""
    if index is not None and choice is not None:
        tables = choice.chosen(index)
        blocks = choice.data + choice.rest
        result = replace(
            result,
            source_database=index.database.name,
            bytes_read=planned.store.bytes_read + sum(block.length for block in blocks),
            rows=sum(table.rows for table in tables),
            tables=len(tables),
            raw_bytes=sum(block.raw_length for block in blocks),
            snapshot_at=index.snapshot_at,
            table_rows=tuple(TableResult(each.schema, each.name, each.rows, each.raw_bytes) for each in tables),
        )
        rows = "definitions only, " if content == "schema" else "%d rows of %d tables, " % (result.rows, len(tables))
    return replace(
        result,
        message="would restore by %s: %sreading at most %d bytes; the target is now: %s%s"
        % (planned.how, rows, result.bytes_read, planned.target.described(), catalog.filtered_note(planned.item.key)),
    )


_TABLESPACE = re.compile(rb"(?m)^SET default_tablespace = '?[^';]")


class _Run:
    """One restore that was planned."""

    def __init__(self, planned: Plan, log: Log, start: datetime) -> None:
        self.planned = planned
        self.request = planned.request
        self.log = log
        self.start = start
        self.began = time.monotonic()
        self.processes = Processes()
        self.done = 0
        self.defined = False  # whether the head is there
        self.large_objects: Set[int] = set()  # OIDs of those that were loaded

    def in_place(self) -> RestoreResult:
        """Into an existing empty database, which a failure leaves empty again."""
        name = self.planned.target.name
        self._started()
        with stage("validation"):
            place = EmptyDatabase(self.request.server, name)
        with place:
            try:
                loader, rows = self._load(name)
            except BaseException as failure:
                self.processes.kill_all()
                try:
                    place.empty_again(self._names(), self.large_objects, self.defined, str(failure), self.log)
                except BackupError as error:  # told after the first cause, not instead of it
                    self.log.warning("not_emptied", object=name, message=error.sentence())
                raise
        return self._result(loader, rows, "")

    def _names(self) -> Optional[Set[bytes]]:
        """What the definitions of the backup make. None: it does not tell."""
        choice = self.planned.selection
        if choice is None:
            return None
        return schema.names(self.planned.clients, Processes(), choice.archive, choice.entries)

    def into_tables(self) -> RestoreResult:
        """Rows into tables that exist, which a failure leaves empty again."""
        request, name = self.request, self.planned.target.name
        index, choice = given(self.planned.index), given(self.planned.selection)  # `plan` refuses other dumps
        self._started()
        with stage("validation"):
            tables = ExistingTables(request.server, name, choice.chosen(index))
        with tables:
            with stage("validation"):
                tables.check_constraints(loaded=False)
            try:
                loader, rows = self._load_rows(name, index, choice, tables)
            except BaseException:
                self.processes.kill_all()
                try:
                    tables.empty_again(self.log)
                except BackupError as error:
                    self.log.warning("not_emptied", object=name, message=error.sentence())
                raise
        return self._result(loader, rows, "")

    def beside(self, maintenance: Maintenance) -> RestoreResult:
        """Into a new database, renamed at the end; the replaced one is kept or dropped as asked."""
        request, index, name = self.request, self.planned.index, self.planned.target.name
        self._started()
        maintenance.sweep(self.log)
        kept, renaming = "", False
        try:
            with stage("creating the database"):
                if index is None:
                    temporary = maintenance.create_like(request.role)
                else:
                    temporary = maintenance.create(index.database, request.no_owner, request.role)
            loader, rows = self._load(temporary)
            with stage("rename"):
                if index is not None:
                    maintenance.apply_properties(temporary, index.database, request.no_owner, request.no_privileges)
                renaming = True
                kept = maintenance.kept_name(self.start) if self.planned.how == "swap" else ""
                maintenance.rename(temporary, index.database.comment if index is not None else "", kept)
        except BaseException as error:
            self.processes.kill_all()
            if not (renaming and self._renamed(maintenance, error)):
                self._drop_made(maintenance, name)
                raise
        if kept and not request.keep_old and self._dropped(maintenance, kept):
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

    def _dropped(self, maintenance: Maintenance, kept: str) -> bool:
        """The restore is done, whatever becomes of the replaced database: it is told, and no failure."""
        try:
            maintenance.drop(kept)
        except BaseException as failure:
            try:
                if not maintenance.has(kept):
                    return True
            except BackupError:
                pass  # it may be there, so it is told as if it were
            said = failure.sentence() if isinstance(failure, BackupError) else str(failure)
            self.log.warning("not_dropped", object=kept, message=said)
            return False
        return True

    def _drop_made(self, maintenance: Maintenance, name: str) -> None:
        try:
            maintenance.drop_made()
        except BackupError as error:
            self.log.warning("not_dropped", object="what was restored beside " + name, message=error.sentence())

    def _started(self) -> None:
        self.log.info("started", key=self.planned.item.key, strategy=self.planned.how, jobs=self.request.jobs)

    def _load(self, database: str) -> Tuple[Loader, Tuple[TableResult, ...]]:
        if self.planned.index is None or self.planned.selection is None:
            return self._load_foreign(database)
        return self._load_blocks(database, self.planned.index, self.planned.selection)

    def _loader(self, database: str, encoding: str = "UTF8", triggers: bool = True) -> Loader:
        planned = self.planned
        return Loader(planned.clients, self.processes, database, self.request.role, planned.major, encoding, triggers)

    # A backup of ours: head, data in parallel, rest, tail.

    def _load_blocks(self, database: str, index: Index, choice: Selection) -> Tuple[Loader, Tuple[TableResult, ...]]:
        loader = self._loader(database, index.database.encoding)
        options = self._schema_options(choice.entries)
        with stage("head"):
            loader.script(self._script(choice.archive, "pre-data", options))
        self.defined = True
        with stage("table data"):
            toc, early = self._early(index, choice)
            made = self._table_data(loader, index, choice, early)
        with stage("rest of the data"):
            self._rest(loader, index, choice, loading.LARGEST_RUN)
        with stage("row counts"):
            rows = self._count(loader, index, choice)
        with stage("indexes and constraints"):
            if made:
                self.log.info("made_early", entries=len(made), detail="indexes and constraints of large tables")
                options = self._schema_options([entry for entry in toc if entry.dump_id not in made])
            self._tail(database, choice.archive, options, loader)
        if self.request.content == "all":
            self._analyze(database)
        return loader, rows

    def _load_rows(
        self, database: str, index: Index, choice: Selection, tables: ExistingTables
    ) -> Tuple[Loader, Tuple[TableResult, ...]]:
        """Last what cannot be taken back: the rest, in one transaction, of which sequence values are no part. Rows of
        extensions in it come in the order of their foreign keys."""
        loader = self._loader(database, index.database.encoding, not tables.triggers_off)
        with stage("table data"):
            self._table_data(loader, index, choice)
        with stage("foreign keys"):
            tables.check_constraints(loaded=True)
        if self.request.analyze and tables.names:
            with stage("analyze"), Session(self.request.server, database) as session:
                session.execute("ANALYZE " + ", ".join(tables.names))
        with stage("rest of the data"):
            loader.turn_triggers_on()
            self._rest(loader, index, choice, index.stored_bytes)
        with stage("row counts"):
            return loader, self._count(loader, index, choice)

    def _early(self, index: Index, choice: Selection) -> Tuple[List[schema.Entry], List[Early]]:
        """The table of contents, and what of it may be made while rows are loaded: nothing of a part, nor for one
        worker, who cannot do it beside anything."""
        large = large_tables(index, len(choice.archive))
        if choice.entries is not None or self.request.jobs < 2 or not large:
            return [], []
        toc = schema.entries(self.planned.clients, self.processes, choice.archive)
        return toc, early_entries(toc, index, large)

    def _table_data(self, loader: Loader, index: Index, choice: Selection, early: Sequence[Early] = ()) -> Set[int]:
        """Rows, and what is made early; the dump ids of what was."""
        total = sum(block.length for block in choice.data)
        runs = archive.runs(choice.data, loading.run_size(index, self.request.jobs))
        order, planned = Order(runs, early, index), self.planned

        def work(task: Task) -> None:
            if isinstance(task, Early):
                with stage("indexes and constraints"):
                    sql = post_data.statements(planned, self.processes, choice.archive, task.entries)
                    if sql:
                        loader.statements(sql)
                    order.done(task, bool(sql))
            else:
                loader.load(planned.store, planned.item.key, index, task, choice.tables)
                self.done += sum(block.length for block in task)
                self.log.progress(self.done, total, "table data")
                order.done(task)

        def stop() -> None:
            order.close()
            self.processes.kill_all()

        run_parallel(order, work, self.request.jobs, stop)
        loader.close()
        return order.made

    def _rest(self, loader: Loader, index: Index, choice: Selection, limit: int) -> None:
        """`limit`: stored bytes of a transaction."""
        store, key = self.planned.store, self.planned.item.key
        if choice.tables is None:
            unwanted: Tuple[bytes, ...] = (b"ALTER LARGE OBJECT ",) if self.request.no_owner else ()
            if self.request.no_privileges:
                unwanted += (b"GRANT ", b"REVOKE ")
            for run in archive.runs(choice.rest, limit):
                loader.load(store, key, index, run, unwanted=unwanted, large_objects=self.large_objects)
        elif choice.rest:
            loader.script(b"".join(sequence_values(store, key, index, choice)))
        loader.close()

    def _schema_options(self, entries: Optional[Sequence[schema.Entry]]) -> List[str]:
        options = post_data.owner_options(self.request)
        self.use_list = -1
        if entries is not None:
            self.use_list = memory_file(b"\n".join(entry.line for entry in entries) + b"\n")
            options.append("--use-list=/dev/fd/%d" % self.use_list)
        return options

    def _script(self, dumped: bytes, section: str, options: Sequence[str]) -> bytes:
        arguments = ["--section=" + section, "-f", "-", *options]
        text = schema.pg_restore_text(
            self.planned.clients, self.processes, dumped, arguments, [self.use_list] if self.use_list >= 0 else []
        )
        if section == "pre-data" and given(self.planned.index).filtered:
            text = schema.with_schemas(text)
        return schema.for_server(text, self.planned.major)

    def _tail(self, database: str, dumped: bytes, options: Sequence[str], loader: Loader) -> None:
        """Indexes, constraints, triggers, materialized views: by pg_restore in parallel, where its own settings suit
        the server, else as one script.

        pg_restore's jobs may lock each other out (one attaches an index to a partitioned one while another adds a
        constraint), and the server ends one of them. What failed then is made again, one after the other.
        """
        if post_data.as_script(self.planned):
            loader.script(self._script(dumped, "post-data", options))
            return
        arguments = ["--jobs=%d" % self.request.jobs, *options]
        lists = [self.use_list] if self.use_list >= 0 else []
        process = post_data.start(self.planned, self.processes, database, dumped, arguments, lists)
        try:
            process.output()
        except BackupError:
            statements = schema.failed_beside_others(process.stderr_text())
            # In which tablespace an index goes was told to the session that is gone.
            if not statements or _TABLESPACE.search(self._script(dumped, "post-data", options)):
                raise
            self.log.info("made_again", statements=len(statements), detail="pg_restore's jobs were in each other's way")
            loader.script(preamble("UTF8") + "\n".join(statements).encode() + b"\n")

    def _count(self, loader: Loader, index: Index, choice: Selection) -> Tuple[TableResult, ...]:
        """Compare what the server took with the index, table by table."""
        results = []
        for table in choice.chosen(index):
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
        loader = self._loader(database)
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
        self._analyze(database)
        return loader, ()

    def _analyze(self, database: str) -> None:
        if self.request.analyze:
            with stage("analyze"):
                analyze(self.request.server, database, self.request.jobs)

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
            content=self.request.content,
            stored_bytes=item.size,
            bytes_read=self.planned.store.bytes_read,
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
            message=(
                "restored %d rows%s" % (total, " of %d tables" % len(rows) if index else "")
                if self.request.content != "schema"
                else "restored definitions, no rows"
            )
            + catalog.filtered_note(item.key),
        )
        facts = {"rows": total, "seconds": result.seconds, "bytes_read": result.bytes_read}
        self.log.info("restored", key=item.key, old_database=kept, **facts)
        return result
