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
import json
import threading
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, TypeVar

from . import codec, framing
from .errors import BackupError, IntegrityError
from .model import FORMAT_VERSION, Block, DatabaseInfo, Index, Table

MAX_INDEX = 256 << 20  # bytes, stored and raw: a hostile footer may not ask for more
_HEAD = 160 << 10  # bytes; more than a zstd block, so that something comes out of it
_FACTS = b'-- {"index":'
LARGEST = 1 << 62  # bytes or rows: more than any store holds, and within what messages can print
_PLAIN = {"int": int, "str": str, "bool": bool}
_ORDER = {"schema": 0, "pre": 1, "data": 2, "rest": 3, "post": 4}

Made = TypeVar("Made")


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

    def write(self, data: bytes) -> None:
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
            if _ORDER[pending.section] < _ORDER[last]:
                raise BackupError("a %s block cannot follow a %s block" % (pending.section, last))
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
        pieces = framing.encode(self._compression, "index", raw, self._level)
        stored = b"".join(pieces)
        footer = framing.footer(self._compression, self.offset, len(stored), len(raw), hashlib.sha256(stored).digest())
        self._write([stored, footer])
        return self.offset + len(stored) + len(footer)


def index_text(index: Index) -> bytes:
    """The index as SQL comment lines, one JSON object each: the head, then the tables, then the blocks."""
    head = dataclasses.asdict(index)
    del head["tables"], head["blocks"]
    lines: List[dict] = [{"index": head}]
    lines += [{"table": dataclasses.asdict(table)} for table in index.tables]
    lines += [{"block": dataclasses.asdict(block)} for block in index.blocks]
    text = ["-- pgstream index: what this file holds, one JSON object a line"]
    text += ["-- " + json.dumps(line, separators=(",", ":"), ensure_ascii=True) for line in lines]
    return "\n".join(text).encode("ascii") + b"\n"


def parse_index(raw: bytes) -> Index:
    """The reverse of `index_text`. Raises IntegrityError for anything it would not have written."""
    head: Optional[dict] = None
    tables: List[Table] = []
    blocks: List[Block] = []
    try:
        for line in raw.decode("ascii").splitlines()[1:]:
            item = json.loads(line[3:])
            if "block" in item:
                fields = item["block"]
                fields["tables"] = tuple((int(number), int(rows)) for number, rows in fields["tables"])
                blocks.append(_checked(_made(Block, fields)))
            elif "table" in item:
                tables.append(_made(Table, item["table"]))
            else:
                head = item["index"]
        if head is None:
            raise IntegrityError("the index has no head")
        if head["format_version"] != FORMAT_VERSION:
            raise IntegrityError("the index has format version %s" % head["format_version"])
        database = head.pop("database")
        database["acl"] = tuple(tuple(entry) for entry in database["acl"])
        database["settings"] = tuple(tuple(entry) for entry in database["settings"])
        for entries, types in ((database["acl"], [str, str, bool]), (database["settings"], [str, str, str])):
            if any([type(value) for value in entry] != types for entry in entries):
                raise IntegrityError("the index has grants or settings that are not what they should be")
        info = _made(DatabaseInfo, database)
        return _made(Index, {**head, "database": info, "tables": tuple(tables), "blocks": tuple(blocks)})
    except IntegrityError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise IntegrityError("the index cannot be read: %s" % error) from error


def _made(kind: Callable[..., Made], fields: Dict[str, Any]) -> Made:
    """A dataclass from JSON, whose plain fields have the types that they are declared with."""
    made = kind(**fields)
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        wanted = _PLAIN.get(str(field.type))
        if wanted is not None and type(getattr(made, field.name)) is not wanted:
            raise IntegrityError("the index has a field %s that is not what it should be" % field.name)
    return made


def _checked(block: Block) -> Block:
    numbers = [block.offset, block.length, block.raw_length, block.rows]
    numbers += [rows for _table, rows in block.tables]
    if min(numbers) < 0 or max(numbers) > LARGEST or block.section not in _ORDER:
        raise IntegrityError("the index has a block that cannot be")
    return block


def validate(index: Index, footer: framing.Footer) -> Index:
    """Check that the blocks tile the object up to the index and that all numbers agree; IntegrityError otherwise."""
    if index.compression != footer.compression:
        raise IntegrityError("the index and the footer name different codecs")
    offset, raw_bytes, section = 0, 0, "schema"
    rows: Dict[int, int] = {}
    for block in index.blocks:
        if block.offset != offset or _ORDER[block.section] < _ORDER[section]:
            raise IntegrityError("the index has a gap, an overlap or blocks out of order at byte %d" % offset)
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

    `read(offset, length)` gives exactly that range.
    """
    footer = _footer(read, size)
    if footer is None:
        return None
    if footer.index_length > MAX_INDEX or footer.index_raw_length > MAX_INDEX:
        raise IntegrityError("the backup's index is too large to be one (%d bytes)" % footer.index_length)
    stored = read(footer.index_offset, footer.index_length)
    if hashlib.sha256(stored).digest() != footer.index_sha256:
        raise IntegrityError("the backup's index does not have the sha256 that its footer names")
    announcement = framing.read_announcement(footer.compression, stored)
    if announcement.section != "index":
        raise IntegrityError("the backup's footer does not point to an index")
    raw = b"".join(framing.decode(footer.compression, stored, footer.index_raw_length))
    return validate(parse_index(raw), footer)


def read_head(read: Callable[[int, int], bytes], size: int) -> Optional[Dict[str, Any]]:
    """The facts at the start of the index, by two small reads however long it is. None of it is checked, so it is good
    for a list and nothing else. None for a foreign object; empty where the facts are longer than what is read.

    Raises IntegrityError for what is damaged.
    """
    footer = _footer(read, size)
    if footer is None:
        return None
    stored = read(footer.index_offset, min(footer.index_length, _HEAD))
    text = b"".join(codec.StreamDecoder(footer.compression).feed(stored))
    for line in text.splitlines(keepends=True):
        if line.startswith(_FACTS) and line.endswith(b"\n"):
            try:
                return dict(json.loads(line[3:])["index"])
            except (ValueError, TypeError) as error:
                raise IntegrityError("the index cannot be read: %s" % error) from error
    return {}


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
