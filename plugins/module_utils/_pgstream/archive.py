# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The format, version 1: blocks one after the other, the index, the footer. Written once, read from its end.

The writer only ever appends. The reader believes nothing: footer by checksum and size, index by sha256, every block by
sha256 and by its own announcement, before a byte of it goes anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import Counter
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

from . import codec, framing
from .errors import BackupError, IntegrityError
from .index import MAX_INDEX, MAX_LINE, ORDER, index_text, most_bytes, parse_head, parse_index
from .model import Block, Index
from .workers import check_running

_HEAD = 160 << 10  # bytes; more than a zstd block, so that something comes out of it
HELD = 48 << 20  # stored bytes: what two processors make in the two seconds that pg_dump asks a distant server
_LOOK = 0.1  # seconds between two looks at whether a run is ending
_ONCE = ("schema", "pre", "post")


@dataclasses.dataclass
class PendingBlock:
    """A block whose bytes are complete but have no place in the object yet."""

    section: str
    pieces: List[bytes]
    length: int
    raw_length: int
    sha256: str
    rows: int
    table: int
    tables: Tuple[Tuple[int, int], ...]


class BlockEncoder:
    """Compresses one block as its SQL comes. Holds the compressed bytes until `finish`."""

    def __init__(self, compression: str, level: Optional[int], section: str) -> None:
        self._compression = compression
        self._section = section
        self._member = codec.compressor(compression, level)
        self._pieces: List[bytes] = []
        self._counts: Dict[int, int] = {}
        self.raw_length = 0

    def write(self, data: Union[bytes, memoryview]) -> None:
        self.raw_length += len(data)
        piece = self._member.compress(data)
        if piece:
            self._pieces.append(piece)

    def count(self, table: int, rows: int) -> None:
        """Say that `rows` rows of a table are in this block."""
        self._counts[table] = self._counts.get(table, 0) + rows

    def finish(self) -> PendingBlock:
        self._pieces.append(self._member.flush())
        payload = sum(map(len, self._pieces))
        tables = tuple(self._counts.items())
        table = tables[0][0] if len(tables) == 1 else -1
        rows = sum(self._counts.values())
        head = framing.announce(self._compression, self._section, payload, self.raw_length, rows, table)
        pieces = [head] + self._pieces
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        return PendingBlock(
            self._section, pieces, len(head) + payload, self.raw_length, digest.hexdigest(), rows, table, tables
        )


class ArchiveWriter:
    """Gives every block its place. Threads may append at once; blocks keep the order in which they come."""

    def __init__(self, write: Callable[[Sequence[bytes]], None], compression: str, level: Optional[int] = None) -> None:
        self._write = write
        self._compression = compression
        self._level = level
        self._lock = threading.Lock()
        self.blocks: List[Block] = []
        self.offset = 0  # bytes stored so far
        self.raw_bytes = 0

    def encoder(self, section: str) -> BlockEncoder:
        return BlockEncoder(self._compression, self._level, section)

    def append(self, pending: PendingBlock) -> None:
        with self._lock:
            last = self.blocks[-1].section if self.blocks else "schema"
            if ORDER[pending.section] < ORDER[last]:
                raise BackupError("a %s block cannot follow a %s block" % (pending.section, last))
            if max(pending.length, pending.raw_length) > most_bytes(pending.section):
                size = max(pending.length, pending.raw_length)
                raise BackupError("a %s block of %d bytes is more than a restore takes" % (pending.section, size))
            self._write(pending.pieces)
            self.blocks.append(
                Block(
                    pending.section,
                    self.offset,
                    pending.length,
                    pending.raw_length,
                    pending.sha256,
                    pending.table,
                    pending.rows,
                    pending.tables,
                )
            )
            self.offset += pending.length
            self.raw_bytes += pending.raw_length

    def text(self, section: str, sql: bytes) -> None:
        """Append SQL held in memory as one block."""
        encoder = self.encoder(section)
        for start in range(0, len(sql), codec.CHUNK):
            encoder.write(sql[start : start + codec.CHUNK])
        self.append(encoder.finish())

    def finish(self, index: Index) -> int:
        """Append index and footer; the object's size in bytes."""
        raw = index_text(index)
        if len(raw) > MAX_INDEX or max(map(len, raw.split(b"\n"))) > MAX_LINE:
            raise BackupError(
                "the index would have %d bytes, more than a restore takes" % len(raw),
                hint="Back up fewer tables at a time, by schemas.",
            )
        pieces = framing.encode(self._compression, "index", raw, self._level)
        stored = b"".join(pieces)
        footer = framing.footer(self._compression, self.offset, len(stored), len(raw), hashlib.sha256(stored).digest())
        self._write([stored, footer])
        return self.offset + len(stored) + len(footer)


class BehindHead:
    """Blocks that are made before the head is written: HELD bytes of them are kept until it is, then whoever makes them
    waits. `closed` says that the run is ending."""

    def __init__(self, archive: ArchiveWriter, closed: Callable[[], bool]) -> None:
        self._archive = archive
        self._closed = closed
        self._changed = threading.Condition()
        self._head = False
        self._held: List[PendingBlock] = []

    def encoder(self, section: str) -> BlockEncoder:
        return self._archive.encoder(section)

    def append(self, pending: PendingBlock) -> None:
        with self._changed:
            while not self._head and sum(each.length for each in self._held) + pending.length > HELD:
                check_running(self._closed())
                self._changed.wait(_LOOK)
            if not self._head:
                self._held.append(pending)
                return
        self._archive.append(pending)

    def head_is_written(self) -> None:
        with self._changed:
            while self._held:
                self._archive.append(self._held.pop(0))
            self._head = True
            self._changed.notify_all()


def validate(index: Index, footer: framing.Footer) -> Index:
    """Check that the blocks tile the object up to the index and that all numbers agree; IntegrityError otherwise."""
    if index.compression != footer.compression:
        raise IntegrityError("the index and the footer name different codecs")
    times = Counter(block.section for block in index.blocks)
    if any(times[section] != 1 for section in _ONCE):
        raise IntegrityError("the index does not name one schema, one pre and one post block")
    offset, raw_bytes, section = 0, 0, "schema"
    rows: Dict[int, int] = {}
    for block in index.blocks:
        if block.offset != offset or ORDER[block.section] < ORDER[section]:
            raise IntegrityError("the index has a gap, an overlap or blocks out of order at byte %d" % offset)
        if block.length < framing.HEADER_LENGTHS[index.compression]:
            raise IntegrityError("the index has a block at byte %d that is too short to be one" % offset)
        offset, section = offset + block.length, block.section
        raw_bytes += block.raw_length
        for number, count in block.tables:
            rows[number] = rows.get(number, 0) + count
        if sum(count for _table, count in block.tables) != block.rows:
            raise IntegrityError("the index counts the rows of the block at byte %d in two ways" % block.offset)
    if offset != footer.index_offset or offset != index.stored_bytes or raw_bytes != index.raw_bytes:
        raise IntegrityError("the index's totals do not agree with its blocks")
    if [table.number for table in index.tables] != list(range(len(index.tables))):
        raise IntegrityError("the index numbers its tables wrongly")
    for table in index.tables:
        if rows.pop(table.number, 0) != table.rows:
            raise IntegrityError("the index disagrees on the rows of table %s.%s" % (table.schema, table.name))
    if rows or sum(table.rows for table in index.tables) != index.rows:
        raise IntegrityError("the index counts rows of tables it does not name")
    return index


def has_footer(read: Callable[[int, int], bytes], size: int) -> bool:
    """Whether an object of `size` bytes ends with a footer that fits it. IntegrityError for a damaged one."""
    return _footer(read, size) is not None


def _footer(read: Callable[[int, int], bytes], size: int) -> Optional[framing.Footer]:
    length = min(size, framing.LONGEST_FOOTER)
    return framing.find_footer(read(size - length, length), size) if length else None


def read_index(read: Callable[[int, int], bytes], size: int) -> Optional[Index]:
    """Read footer and index of an object of `size` bytes with two ranged reads; None for a foreign object.

    `read(offset, length)` gives exactly that range. What starts as a backup of ours and has no footer is cut off or
    damaged, not foreign: taken for a plain dump, the definitions alone would look like a whole one.
    """
    footer = _footer(read, size)
    if footer is None:
        if framing.begins_block(read(0, min(size, framing.LONGEST_MARK)) if size else b""):
            raise IntegrityError(
                "the backup's end is missing or damaged: it was cut off, or changed after it was written",
                hint="Use another backup; what there is can be looked at with gunzip and psql.",
            )
        return None
    if footer.index_length > MAX_INDEX or footer.index_raw_length > MAX_INDEX:
        raise IntegrityError("the backup's index is too large to be one (%d bytes)" % footer.index_length)
    stored = read(footer.index_offset, footer.index_length)
    if hashlib.sha256(stored).digest() != footer.index_sha256:
        raise IntegrityError("the backup's index does not have the sha256 that its footer names")
    said = framing.read_announcement(footer.compression, stored)
    if (said.section, said.length, said.raw_length) != ("index", footer.index_length, footer.index_raw_length):
        raise IntegrityError("the backup's footer does not point to an index")
    return validate(parse_index(framing.decode(footer.compression, stored, footer.index_raw_length)), footer)


def read_head(read: Callable[[int, int], bytes], size: int) -> Optional[Dict[str, Any]]:
    """The facts at the start of the index, by two small reads however long it is. None of it is checked, so it is good
    for a list and nothing else. None for a foreign object; empty where the facts are longer than what is read.

    Raises IntegrityError for what is damaged.
    """
    footer = _footer(read, size)
    if footer is None:
        return None
    stored = read(footer.index_offset, min(footer.index_length, _HEAD))
    return parse_head(framing.decode_start(footer.compression, stored))


def check_block(compression: str, block: Block, stored: bytes) -> None:
    """Raise IntegrityError unless `stored` is exactly the block that the index describes."""
    where = "the %s block at byte %d" % (block.section, block.offset)
    if len(stored) != block.length:
        raise IntegrityError("%s has %d bytes, its index says %d" % (where, len(stored), block.length))
    if hashlib.sha256(stored).hexdigest() != block.sha256:
        raise IntegrityError("%s does not have the sha256 that its index names" % where)
    said = framing.read_announcement(compression, stored)
    if (said.section, said.length, said.raw_length, said.rows, said.table) != (
        block.section,
        block.length,
        block.raw_length,
        block.rows,
        block.table,
    ):
        raise IntegrityError("%s announces itself differently than the index does" % where)


def block_sql(compression: str, block: Block, stored: bytes) -> Iterator[bytes]:
    """Check a block, then give its SQL in pieces."""
    check_block(compression, block, stored)
    return framing.decode(compression, stored, block.raw_length)


def runs(blocks: Iterable[Block], limit: int) -> Iterator[List[Block]]:
    """Group adjacent blocks into runs of at most `limit` stored bytes (a single larger block is its own run)."""
    run: List[Block] = []
    size = 0
    for block in blocks:
        adjacent = run and run[-1].offset + run[-1].length == block.offset
        if run and (not adjacent or size + block.length > limit):
            yield run
            run, size = [], 0
        run.append(block)
        size += block.length
    if run:
        yield run
