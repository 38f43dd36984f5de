# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prove a backup: by its index, by every byte of it, or by restoring it. Each level proves what the one before does.

index    footer and index are whole, agree with each other and with the object's size: two or three small reads
content  every block has its sha256, decompresses to what the index says, and holds the rows that it counts
restore  all of it comes back, in a scratch database (see `drill`)

A dump that another tool made has no index: `content` decompresses it and looks for its end, `restore` restores it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import List, Optional, Sequence, Tuple

from . import archive, catalog, codec, loading
from .errors import IntegrityError, UsageError
from .events import Log, new_correlation_id, rfc3339, utc_now
from .model import LEVELS, Block, Index, VerifyRequest, VerifyResult
from .quoting import qualified
from .rowcount import RowCounter
from .stages import stage
from .store.base import Store, StoredObject, open_store
from .workers import check_running, default_jobs, run_parallel

FAULTS_NAMED = 5  # damaged blocks in a message; their number is always told


@dataclass(frozen=True)
class Proof:
    """What one level has read and counted."""

    bytes_read: int = 0
    raw_bytes: int = 0
    rows: int = 0
    compared_tables: int = 0
    message: str = ""


def verify(request: VerifyRequest, log: Log) -> VerifyResult:
    """Verify one backup. Returns only where no fault was found; IntegrityError says what is wrong, and where."""
    start, began = utc_now(), time.monotonic()
    request = replace(
        request,
        jobs=request.jobs or default_jobs(),
        correlation_id=request.correlation_id or new_correlation_id(),
    )
    log.correlation_id, log.operation = request.correlation_id, "verify"
    with stage("validation"):
        _check_request(request)
        log.known["level"] = request.level
        store = open_store(request.storage)
        item = catalog.resolve(
            store, request.key, request.source_database, log, request.latest_before, of_globals=request.globals
        )
    url = store.storage.url(item.key)
    log.known["key"] = item.key
    log.database = catalog.parse_key(item.key)[0] or log.database
    log.info("started", key=item.key, verify_level=request.level, jobs=request.jobs)
    try:
        with stage("reading the index"):
            index, index_bytes = _read_index(store, item)
        if index is not None:
            if request.key == "latest":
                catalog.check_named(item.key, index)
            log.database = index.database.name
            if index.is_globals and request.level == "restore":
                raise UsageError("globals cannot be restored for practice", hint="Use the level content.")
        proof = _prove(request, store, item, index, log)
    except IntegrityError as error:
        if url not in error.message:
            error.message = "%s: %s" % (url, error.message)
        raise
    seconds = time.monotonic() - began
    bytes_read = index_bytes + proof.bytes_read
    result = VerifyResult(
        verified=True,
        level=request.level,
        database=log.database,
        key=item.key,
        url=url,
        correlation_id=request.correlation_id,
        foreign=index is None,
        stored_bytes=item.size,
        raw_bytes=proof.raw_bytes,
        bytes_read=bytes_read,
        blocks=len(index.blocks) if index else 0,
        rows=proof.rows,
        tables=len(index.tables) if index else 0,
        compared_tables=proof.compared_tables,
        seconds=round(seconds, 3),
        mb_per_second=round(bytes_read / 1e6 / max(seconds, 0.001), 1),
        snapshot_at=index.snapshot_at if index else "",
        started_at=rfc3339(start),
        finished_at=rfc3339(utc_now()),
        jobs=request.jobs,
        message=proof.message + catalog.filtered_note(item.key),
    )
    log.info("verified", key=item.key, verify_level=request.level, rows=result.rows, seconds=result.seconds)
    return result


def _check_request(request: VerifyRequest) -> None:
    if request.level not in LEVELS:
        raise UsageError("there is no level %r: %s" % (request.level, ", ".join(LEVELS)))
    if request.compare_source and request.level != "restore":
        raise UsageError("compare_source goes with the level restore")
    if request.latest_before and request.key != "latest":
        raise UsageError("latest_before goes with backup_key latest, not with a key")
    if request.key == "latest" and not (request.source_database or request.globals):
        raise UsageError("backup_key latest needs the name of a database", hint="Set source_db or POSTGRES_DB.")


def _read_index(store: Store, item: StoredObject) -> Tuple[Optional[Index], int]:
    """The index, None for a foreign object, and how many bytes were read."""
    read = [0]

    def ranged(offset: int, length: int) -> bytes:
        read[0] += length
        return store.read(item.key, offset, length)

    return archive.read_index(ranged, store.contents_size(item.key, item.size)), read[0]


def _prove(request: VerifyRequest, store: Store, item: StoredObject, index: Optional[Index], log: Log) -> Proof:
    if request.level == "restore":
        from . import drill  # the other levels need neither psycopg2 nor client programs

        if index is None:
            return drill.drill(request, item, None, log)
        # What a restore does not read, as it has the definitions from the schema block.
        unread = [block for block in index.blocks if block.section in ("pre", "post")]
        with stage("reading the contents"):
            bytes_read = _Contents(store, item, index, request.jobs, log).check(unread).bytes_read
        proof = drill.drill(request, item, index, log)
        return replace(proof, bytes_read=proof.bytes_read + bytes_read)
    if request.level == "content":
        with stage("reading the contents"):
            if index is None:
                return _foreign_contents(store, item, log)
            return _Contents(store, item, index, request.jobs, log).check(index.blocks)
    if index is None:
        raise UsageError(
            "%s has no index: it was made by another tool" % store.storage.url(item.key), hint="Use the level content."
        )
    return Proof(rows=index.rows, message="the index of %d blocks agrees with the object" % len(index.blocks))


class _Contents:
    """Reads blocks in parallel and checks each; memory holds one block a job."""

    def __init__(self, store: Store, item: StoredObject, index: Index, jobs: int, log: Log) -> None:
        self._store, self._item, self._index, self._jobs, self._log = store, item, index, jobs, log
        self._numbers = {block.offset: number for number, block in enumerate(index.blocks, 1)}
        self._lock = threading.Lock()
        self._stopped = False
        self._faults: List[Tuple[int, str]] = []
        self._read = 0
        self._raw = 0
        self._rows = 0

    def check(self, blocks: Sequence[Block]) -> Proof:
        """IntegrityError names the damaged blocks; all of `blocks` are read before."""
        total = sum(block.length for block in blocks)
        size = loading.run_size(self._index, self._jobs)
        run_parallel(archive.runs(blocks, size), lambda run: self._run(run, total), self._jobs, self._stop)
        if self._faults:
            named = "; ".join(text for _number, text in sorted(self._faults)[:FAULTS_NAMED])
            more = len(self._faults) - FAULTS_NAMED
            raise IntegrityError(
                "%d of %d blocks %s damaged: %s%s"
                % (
                    len(self._faults),
                    len(blocks),
                    "is" if len(self._faults) == 1 else "are",
                    named,
                    "; and %d more" % more if more > 0 else "",
                ),
                hint="Verify an older backup, and back up again.",
            )
        text = "every byte was read: %d blocks with %d rows of %d tables are as the index says"
        return Proof(
            self._read, self._raw, self._rows, message=text % (len(blocks), self._rows, len(self._index.tables))
        )

    def _stop(self) -> None:
        self._stopped = True

    def _run(self, run: Sequence[Block], total: int) -> None:
        reader = loading.Reader(self._store, self._item.key, run)
        for block in run:
            check_running(self._stopped)
            try:
                stored = reader.next_block(block)
            except IntegrityError as error:  # the rest of this run cannot be read either
                self._fault(block, error)
                return
            try:
                rows = self._check(block, stored)
            except IntegrityError as error:
                self._fault(block, error)
                continue
            with self._lock:
                self._read += block.length
                self._raw += block.raw_length
                self._rows += rows
            self._log.progress(self._read, total, "contents")

    def _check(self, block: Block, stored: bytes) -> int:
        counter = RowCounter()
        for piece in archive.block_sql(self._index.compression, block, stored):
            if block.section in ("data", "rest"):  # elsewhere a function's body may look like rows
                counter.feed(piece)
        counts = counter.finish()
        if len(counts) != len(block.tables):
            raise IntegrityError("it has %d COPY statements, the index names %d" % (len(counts), len(block.tables)))
        for (number, rows), count in zip(block.tables, counts):
            if rows != count:
                raise IntegrityError("it has %d rows of %s, the index says %d" % (count, self._name(number), rows))
        return sum(counts)

    def _fault(self, block: Block, error: IntegrityError) -> None:
        number = self._numbers[block.offset]
        where = "block %d (%s at byte %d" % (number, block.section, block.offset)
        names = ", ".join(self._name(table) for table, _rows in block.tables[:3])
        if names:
            where += ", rows of %s%s" % (names, " and others" if len(block.tables) > 3 else "")
        with self._lock:
            self._faults.append((number, "%s): %s" % (where, error.message)))

    def _name(self, number: int) -> str:
        table = self._index.tables[number]
        return qualified(table.schema, table.name)


def _foreign_contents(store: Store, item: StoredObject, log: Log) -> Proof:
    """A plain dump read and decompressed whole; IntegrityError where it is cut off or damaged."""
    size = store.contents_size(item.key, item.size)
    head = store.read(item.key, 0, min(size, 8))
    if head.startswith(b"PGDMP"):
        raise UsageError("it is a custom-format archive of pg_dump", hint="Look at it with pg_restore --list.")
    compression = codec.detect(head)
    codec.check_level(compression, None)
    decoder = codec.StreamDecoder(compression)
    dump = loading.PlainDump(cut="Verify another backup, and back up again.")
    read, raw = 0, 0
    for piece in store.stream(item.key, 0, size):
        read += len(piece)
        for sql in decoder.feed(piece):
            dump.feed(sql)
            raw += len(sql)
        log.progress(read, size, "dump")
    decoder.finish()
    if read != size:
        raise IntegrityError("%d of its %d bytes could be read" % (read, size))
    dump.finish()
    text = "it decompresses to %d bytes and ends as pg_dump ends a dump; without an index no more can be said"
    return Proof(read, raw, message=text % raw)
