# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Blocks into psql: read in runs, checked before a byte is passed on, the server's row counts compared."""

from __future__ import annotations

import os
import re
import threading
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

from . import archive, framing, schema
from .clients import Clients
from .copying import END_AFTER_ROWS, preamble
from .errors import BackupError, IntegrityError, UsageError
from .model import Block, Index
from .process import Process, Processes
from .quoting import quote
from .session import unhindered
from .store.base import Store
from .workers import check_running

LARGEST_RUN = 16 << 20  # stored bytes of one transaction
SMALLEST_RUN = 1 << 20
_LARGE_OBJECT = re.compile(rb"(?m)^SELECT pg_catalog\.lo_create\('(\d+)'\);$")
_TAIL = 4096  # bytes of a dump in which its last words are looked for
#: pg_dump's closing comment, with nothing after it but comments, empty lines and (since August 2025) \unrestrict.
_COMPLETE = re.compile(rb"\n-- PostgreSQL database dump complete\r?\n(((--|\\unrestrict )[^\n]*|[ \t\r]*)(\n|\Z))*\Z")


def load_options(major: int, triggers: bool = True) -> str:
    """For PGOPTIONS: what only speeds a load, or keeps settings of a database, role or server from hindering it.
    `major`: the server's. `triggers`: whether rows fire them, foreign keys' too."""
    speed = {"synchronous_commit": "off", "maintenance_work_mem": "256MB", "client_min_messages": "warning"}
    # Options of text search dictionaries are stored as they were spelled.
    spelling = {"quote_all_identifiers": "off"}
    silent = {} if triggers else {"session_replication_role": "replica"}
    return " ".join("-c %s=%s" % item for item in {**speed, **spelling, **silent, **unhindered(major)}.items())


_TAG = b"COPY "
_DONE = _TAG + b"done %s"


class Loader:
    """Feeds SQL to the target database. One per restore; `load` and `statements` may run in several threads, over one
    session each, which `close` ends."""

    def __init__(
        self,
        clients: Clients,
        processes: Processes,
        database: str,
        role: str,
        major: int,
        encoding: str = "UTF8",
        triggers: bool = True,
    ) -> None:
        self._clients = clients
        self._processes = processes
        self._database = database
        self._role = role
        self._major = major
        self._options = load_options(major, triggers)
        self._encoding = encoding
        self._preamble = preamble(encoding)
        self._lock = threading.Lock()
        self._idle: List[Process] = []
        self.rows: Dict[int, int] = {}
        self.raw_bytes = 0

    def turn_triggers_on(self) -> None:
        self._options = load_options(self._major)

    def open(self) -> Process:
        process = self._clients.psql(self._processes, self._database, self._encoding, options=self._options, heard=_TAG)
        if self._role:
            process.write(("SET ROLE %s;\n" % quote(self._role)).encode())
        return process

    def close(self) -> None:
        """End the sessions, and wait until they are gone."""
        while self._idle:
            process = self._idle.pop()
            process.close_input()
            process.finish()

    def _session(self) -> Process:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        process = self.open()
        if self._clients.restricts:  # a block is SQL and rows: one that is more was not written by us
            process.write(b"\\restrict %s\n" % os.urandom(16).hex().encode())
        return process

    def _give_back(self, process: Process) -> None:
        process.forget()
        with self._lock:
            self._idle.append(process)

    def statements(self, sql: bytes) -> None:
        """Settings and statements, one after the other, each a transaction of its own."""
        process = self._session()
        process.write(sql)
        _wait(process)
        self._give_back(process)

    def script(self, sql: bytes) -> None:
        """A script held in memory, to its end."""
        process = self.open()
        process.write(sql)
        process.close_input()
        process.finish()

    def load(
        self,
        store: Store,
        key: str,
        index: Index,
        run: Sequence[Block],
        chosen: Optional[Set[int]] = None,
        unwanted: Tuple[bytes, ...] = (),
        large_objects: Optional[Set[int]] = None,
    ) -> None:
        """One run of adjacent blocks, in one transaction: should this process die, psql sees the end of its input and
        nothing of the run stays. `chosen` limits it to the rows of these tables; lines of blocks without rows that
        begin with something `unwanted` are left out. `large_objects` gets the OIDs of those that it makes, before they
        are there for others."""
        made: Set[int] = set()
        process = self._session()
        process.write(schema.in_one_message(b"BEGIN;\n" + self._preamble))
        expected: List[Tuple[int, int]] = []
        reader = Reader(store, key, run)
        for block in run:
            check_running(self._processes.closed)
            stored = reader.next_block(block)
            sql = _to_its_end(block, archive.block_sql(index.compression, block, stored))
            if chosen is not None and any(number not in chosen for number, _rows in block.tables):
                sql = iter([only(b"".join(sql), block, chosen)])
            elif not block.tables:
                text = b"".join(sql)
                made.update(map(int, _LARGE_OBJECT.findall(text)))
                if unwanted:
                    text = b"".join(line for line in text.splitlines(True) if not line.startswith(unwanted))
                sql = iter([text])
            for piece in _without(self._preamble, sql):
                process.write(piece)
            expected += [entry for entry in block.tables if chosen is None or entry[0] in chosen]
            with self._lock:
                self.raw_bytes += block.raw_length
        self._compare(index, expected, _wait(process))
        if large_objects is not None:
            large_objects |= made
        process.write(b"COMMIT\\; ")
        _wait(process)
        with self._lock:
            for number, rows in expected:
                self.rows[number] = self.rows.get(number, 0) + rows
        self._give_back(process)

    def _compare(self, index: Index, expected: Sequence[Tuple[int, int]], counts: Sequence[int]) -> None:
        if len(expected) != len(counts):
            raise IntegrityError("the server ran %d COPY statements, the index names %d" % (len(counts), len(expected)))
        for (number, rows), count in zip(expected, counts):
            if rows != count:
                table = index.tables[number]
                raise IntegrityError(
                    "the server took %d rows of %s.%s, the index says %d" % (count, table.schema, table.name, rows)
                )


def _wait(process: Process) -> List[int]:
    """Until the server did all that the session was told; the rows of its COPYs. psql says at once what it copies out,
    whatever else it says only when there is much of it."""
    last = _DONE % os.urandom(8).hex().encode()
    process.write(b"COPY (SELECT '%s') TO STDOUT;\n" % last)
    return copied_rows(process.lines_until(last))


def _to_its_end(block: Block, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """A session that was left in the middle of a statement would take what comes next for the rest of that."""
    end = b""
    for piece in pieces:
        end = (end + piece[-4:])[-4:]
        yield piece
    if not end.endswith((END_AFTER_ROWS[1:] + b"\n", b";\n")):
        raise IntegrityError("the block at byte %d ends in the middle of a statement" % block.offset)


def _without(beginning: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Settings that were made already are not made again: each would be a round trip."""
    first = next(pieces, b"")
    yield first[len(beginning) :] if first.startswith(beginning) else first
    yield from pieces


class Reader:
    """The bytes of adjacent blocks, from one ranged read of the store; one block in memory at a time."""

    def __init__(self, store: Store, key: str, run: Sequence[Block]) -> None:
        self._pieces: Iterator[bytes] = store.stream(key, run[0].offset, sum(block.length for block in run))
        self._rest = b""

    def next_block(self, block: Block) -> bytes:
        held = [self._rest]
        size = len(self._rest)
        while size < block.length:
            piece = next(self._pieces, b"")
            if not piece:
                raise IntegrityError("the object ended in the middle of the block at byte %d" % block.offset)
            held.append(piece)
            size += len(piece)
        data = b"".join(held)
        self._rest = data[block.length :]
        return data[: block.length]


def copied_rows(said: Sequence[bytes]) -> List[int]:
    """The row counts of the COPY statements, from the command tags among what psql says."""
    tags = (line[len(_TAG) :] for line in said)
    return [int(tag) for tag in tags if tag.isdigit()]


def only(sql: bytes, block: Block, chosen: Set[int]) -> bytes:
    """A block's SQL with the rows of the chosen tables alone: its COPYs come in the order of `block.tables`."""
    start = sql.find(b"\nCOPY ") + 1
    if not start:
        raise IntegrityError("the block at byte %d holds no rows, its index says it does" % block.offset)
    parts, rest = [sql[:start]], sql[start:]
    for number, _rows in block.tables:
        end = rest.find(END_AFTER_ROWS)
        if end < 0:
            raise IntegrityError("the block at byte %d holds fewer tables than its index says" % block.offset)
        end += len(END_AFTER_ROWS)
        if number in chosen:
            parts.append(rest[:end])
        rest = rest[end:].lstrip(b"\n")
    return b"".join(parts)


def run_size(index: Index, jobs: int) -> int:
    """Stored bytes of one transaction: small enough that every worker has several."""
    return min(LARGEST_RUN, max(SMALLEST_RUN, index.stored_bytes // (jobs * 4)))


class PlainDump:
    """What is looked for in a plain dump while it passes.

    A dump that lacks pg_dump's closing line was cut off before it was compressed, which no codec can notice.
    `damaged`, `cut`: hints of the two IntegrityErrors.
    """

    def __init__(self, damaged: str = "", cut: str = "") -> None:
        self._damaged, self._cut = damaged, cut
        self._tail = b"\n"

    def feed(self, sql: bytes) -> bytes:
        """The piece, with the end of what came before it: for what else is looked for across the two."""
        seen = self._tail + sql
        if b"\n" + framing.COMMENT in seen:
            raise IntegrityError(
                "it is a backup of this engine whose beginning and end are damaged", hint=self._damaged
            )
        self._tail = seen[-_TAIL:]
        return seen

    def finish(self) -> None:
        if not _COMPLETE.search(self._tail):
            raise IntegrityError(
                "the dump lacks its last line, 'PostgreSQL database dump complete': pg_dump did not finish it",
                hint=self._cut,
            )


def load_foreign(
    loader: Loader, pieces: Iterator[bytes], decode: Callable[[bytes], Iterator[bytes]], finish: Callable[[], None]
) -> List[int]:
    """A plain dump as one serial stream; row counts of its COPYs in order.

    Where it is cut off the child is killed before its input is closed, so that it does not take the cut for the end.
    """
    process = loader.open()
    hint = "Use another backup; what there is can be looked at with gunzip and psql."
    dump = PlainDump(damaged=hint, cut=hint)
    for piece in pieces:
        for sql in decode(piece):
            if not loader.raw_bytes and sql.startswith(b"PGDMP"):
                raise UsageError("it is a custom-format archive of pg_dump", hint="Restore it with pg_restore.")
            # A line that begins with a backslash and a letter of \connect is never a row: COPY doubles backslashes.
            if b"\n\\connect " in dump.feed(sql):
                raise BackupError(
                    "the dump connects to a database of its own",
                    hint="It was made with pg_dump -C or pg_dumpall: restore it with psql by hand.",
                )
            process.write(sql)
            loader.raw_bytes += len(sql)
    finish()
    dump.finish()
    process.close_input()
    process.finish()
    return copied_rows(process.lines())
