# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows into blocks: COPY output cut at newlines into self-contained SQL, counted, compressed."""

from __future__ import annotations

import re
import threading
from typing import Callable, Dict, List, Optional, Sequence, Union

from .archive import ArchiveWriter, BehindHead, BlockEncoder
from .clients import Clients
from .errors import BackupError, given
from .plan import CopyItem, CopyTask
from .postgres import Leader
from .process import READ_SIZE, Processes
from .quoting import literal
from .session import session_settings
from .workers import check_running

_END = b"\\.\n"  # the end of rows in a script; never a row, because COPY doubles every backslash
END_AFTER_ROWS = b"\n" + _END
# The end of rows in psql's output, with the number of rows that the server says it sent.
_COUNTED = b"\n\\. "
_LAST = re.compile(rb"\n\\\. ([0-9]+)\n\Z")
_LONGEST_END = 32  # bytes
_LOCKED = "55P03"  # SQLSTATE lock_not_available


def preamble(encoding: str) -> bytes:
    """What makes a block valid SQL alone, whatever session it runs in."""
    return (
        "SET client_encoding = '%s';\n"
        "SET standard_conforming_strings = on;\n"
        "SET search_path = '';\n"
        "SET statement_timeout = 0;\n"
        "SET lock_timeout = 0;\n"
        "SET idle_in_transaction_session_timeout = 0;\n"
        "SET row_security = off;\n"
        "SET check_function_bodies = false;\n"
        "SET xmloption = content;\n"
        "SET client_min_messages = warning;\n\n" % encoding
    ).encode("ascii")


class RowBlocks:
    """The blocks of one COPY task or of one section: begins a new block whenever one is full."""

    def __init__(
        self,
        archive: Union[ArchiveWriter, BehindHead],
        section: str,
        encoding: str,
        codec: str,
        block_size: int,
    ) -> None:
        self._archive = archive
        self._section = section
        self._preamble = preamble(encoding)
        self._codec = codec
        self._block_size = block_size
        self._encoder: Optional[BlockEncoder] = None
        self._item: Optional[CopyItem] = None
        self._head = b""
        self._open = False  # the COPY statement of the current item is in the current block
        self.rows: Dict[int, int] = {}
        self.raw_bytes: Dict[int, int] = {}

    def begin(self, item: CopyItem) -> None:
        self._item = item
        self._head = item.in_statement().encode(self._codec)
        self._open = False
        self.rows.setdefault(item.table, 0)
        self.raw_bytes.setdefault(item.table, 0)

    def write(self, data: Union[bytes, bytearray], start: int = 0, end: Optional[int] = None) -> None:
        """Rows of the current item as COPY gave them, in pieces of any size."""
        end = len(data) if end is None else end
        while start < end:
            if not self._open:
                self._start_copy()
            full = start + max(self._block_size - given(self._encoder).raw_length, 0)
            if end < full:
                self._rows(data, start, end)
                return
            cut = data.rfind(b"\n", start, full) + 1 or data.find(b"\n", full, end) + 1
            if not cut:
                self._rows(data, start, end)  # a row longer than a block: the block grows with it
                return
            self._rows(data, start, cut)
            self.end()
            self.close()
            start = cut

    def end(self) -> None:
        """The current item's rows are complete."""
        if self._open:
            self._text(_END + b"\n")
            self._open = False

    def sql(self, text: bytes) -> None:
        """A whole statement that is no COPY."""
        self._text(text)
        if self._encoder is not None and self._encoder.raw_length >= self._block_size:
            self.close()

    def close(self) -> None:
        """Append the block that is open, if there is one."""
        if self._encoder is not None:
            self._archive.append(self._encoder.finish())
            self._encoder = None

    def _start_copy(self) -> None:
        self._text(self._head)
        self._open = True

    def _rows(self, data: Union[bytes, bytearray], start: int, end: int) -> None:
        encoder, table = given(self._encoder), given(self._item).table
        rows = data.count(b"\n", start, end)
        with memoryview(data) as view:
            encoder.write(view[start:end])
        encoder.count(table, rows)
        self.rows[table] += rows
        self.raw_bytes[table] += end - start

    def _text(self, text: bytes) -> None:
        if self._encoder is None:
            self._encoder = self._archive.encoder(self._section)
            self._encoder.write(self._preamble)
        self._encoder.write(text)


class _CutShort(BackupError):
    """psql's output ended early: psql itself knows why."""


class DataCopier:
    """Runs COPY tasks over psql under the leader's snapshot, and in the leader itself where a lock is in the way."""

    def __init__(
        self,
        clients: Clients,
        processes: Processes,
        leader: Leader,
        database: str,
        new_blocks: Callable[[], RowBlocks],
        on_done: Callable[[int], None],
    ) -> None:
        self._clients = clients
        self._processes = processes
        self._leader = leader
        self._database = database
        self._new_blocks = new_blocks
        self._on_done = on_done
        self._lock = threading.Lock()
        self._blocked: List[CopyTask] = []
        self._odd: List[CopyTask] = []  # psql's \\copy cannot name them
        self.rows: Dict[int, int] = {}
        self.raw_bytes: Dict[int, int] = {}

    def copy(self, task: CopyTask) -> None:
        """One task through a psql of its own. Its exit status, not the end of its output, says that it is whole."""
        odd = tuple(item for item in task.items if not item.out_command())
        if odd:
            with self._lock:
                self._odd.append(CopyTask(odd, 0))
            task = CopyTask(tuple(item for item in task.items if item not in odd), task.size)
            if not task.items:
                self._on_done(task.size)
                return
        script = self._script(task)
        process = self._clients.psql(self._processes, self._database, self._leader.encoding, script=script)
        blocks = self._new_blocks()
        try:
            receive(task.items, process.read_into, blocks)
            process.finish()
        except BackupError as error:
            check_running(self._processes.closed)
            cause = process.cause() if isinstance(error, _CutShort) else error
            if _LOCKED in process.stderr_text() and not any(blocks.raw_bytes.values()):
                # Someone waits for a stronger lock, behind the leader's: a new session would queue behind them, and
                # they behind us, for ever. The leader has its lock already.
                with self._lock:
                    self._blocked.append(task)
                return
            raise (cause or error) from None
        blocks.close()
        self._add(task, blocks)

    def copy_blocked(self) -> int:
        """Copy what was put aside, through the leader's own session; the number of tasks that were for a lock."""
        for task in self._odd + self._blocked:
            blocks = self._new_blocks()
            for item in task.items:
                check_running(self._processes.closed)
                self.copy_in_leader(item, item.out_statement(), blocks)
            blocks.close()
            self._add(task, blocks)
        return len(self._blocked)

    def copy_in_leader(self, item: CopyItem, statement: str, blocks: RowBlocks) -> None:
        blocks.begin(item)
        before = blocks.rows[item.table]
        said = self._leader.copy_to(statement, blocks)
        blocks.end()
        counted = blocks.rows[item.table] - before
        if said != counted:
            raise BackupError("the server sent %d rows of %s, %d arrived" % (said, item.name, counted))

    def _add(self, task: CopyTask, blocks: RowBlocks) -> None:
        with self._lock:
            for table, rows in blocks.rows.items():
                self.rows[table] = self.rows.get(table, 0) + rows
                self.raw_bytes[table] = self.raw_bytes.get(table, 0) + blocks.raw_bytes[table]
        self._on_done(task.size)

    def _script(self, task: CopyTask) -> bytes:
        names = dict.fromkeys(item.name for item in task.items)
        # "\;" sends statements in one message: one round trip.
        # psql knows the server's count only of a \copy whose rows go elsewhere than what it says (`\o`).
        lines = [
            "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY\\; SET TRANSACTION SNAPSHOT %s\\; "
            % literal(self._leader.snapshot)
            + "\\; ".join([*session_settings(self._leader.major), "SET LOCAL standard_conforming_strings = on"])
            + ";",
            "\\set VERBOSITY sqlstate",
            "LOCK TABLE ONLY %s IN ACCESS SHARE MODE NOWAIT;" % ", ONLY ".join(names),
            "\\set VERBOSITY default",
            "\\o /dev/null",
        ]
        for item in task.items:
            lines += [item.out_command(), "\\echo '\\\\.' :ROW_COUNT"]
        return ("\n".join(lines) + "\n").encode(self._leader.codec)


def receive(items: Sequence[CopyItem], read_into: Callable[[memoryview], int], blocks: RowBlocks) -> None:
    """Cut psql's output into the rows of each item, up to the line `\\. N` that ends it, N being the server's count.

    The output ends with the last: there nothing is searched for, and an end in the middle is a row too many.
    """
    output = _Output(read_into)
    for item in items:
        blocks.begin(item)
        before = blocks.rows[item.table]
        said = output.rows(item, blocks, last=item is items[-1])
        blocks.end()
        counted = blocks.rows[item.table] - before
        if said != counted:
            raise BackupError("the server sent %d rows of %s, %d arrived" % (said, item.name, counted))


class _Output:
    """What a psql writes, passed on from the buffer that it is read into: a copy costs as much as the pipe does."""

    def __init__(self, read_into: Callable[[memoryview], int]) -> None:
        self._read_into = read_into
        self._data = bytearray(READ_SIZE)
        self._data[:1] = b"\n"  # before the first line
        self._start, self._end = 0, 1  # what is there, from the last byte that was passed on

    def rows(self, item: CopyItem, blocks: RowBlocks, last: bool) -> int:
        """Pass the rows of an item on; how many the server says they are."""
        while True:
            end = -1 if last else self._data.find(_COUNTED, self._start, self._end)
            stop = self._data.find(b"\n", end + 1, self._end) if end >= 0 else -1
            # Without an end, what comes last may be the beginning of it.
            self._pass(end if end >= 0 else self._end - _LONGEST_END, blocks)
            if stop >= 0:
                break
            if not self._more():
                found = _LAST.search(self._data[self._start : self._end])
                if not found or not last:
                    raise _CutShort("psql ended its output in the middle of %s" % item.name)
                end, stop = self._start + found.start(), self._end - 1
                self._pass(end, blocks)
                break
        said = int(self._data[end + len(_COUNTED) : stop])
        self._start = stop
        return said

    def _more(self) -> bool:
        """Read on, behind what is left; false at the end."""
        left = self._end - self._start
        self._data[:left] = self._data[self._start : self._end]
        with memoryview(self._data) as view:
            count = self._read_into(view[left:])
        self._start, self._end = 0, left + count
        return count > 0

    def _pass(self, last: int, blocks: RowBlocks) -> None:
        if last > self._start:
            blocks.write(self._data, self._start + 1, last + 1)
            self._start = last
