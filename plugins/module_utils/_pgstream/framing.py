# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How a block and the footer look in the object, for each codec: the bytes around what a compressor gives.

gzip   the announcement is an extra field ("PG", RFC 1952 section 2.3.1.1) of the member's own header
zstd   it is a skippable frame (RFC 8878 section 3.1.2) before the frame
none   it is an SQL comment line before the text

Any reader of the codec passes over them; only ours looks inside.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Iterator, List, Optional

from . import codec
from .errors import IntegrityError

SECTIONS = ("schema", "pre", "data", "rest", "post", "index")

_BLOCK = struct.Struct("<BBHIQQQ")  # version, section, reserved, table + 1, stored length, raw length, rows
_FOOTER = struct.Struct("<8sHHQQQ32sI")  # magic, version, reserved, index offset, length, raw length, sha256, crc32
_MAGIC = b"PGSTREAM"
_VERSION = 1
_GZIP_HEAD = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff"  # deflate, FEXTRA, no time, unknown system
_EMPTY_DEFLATE = b"\x03\0" + b"\0" * 8
_SKIPPABLE = b"\x5b\x2a\x4d\x18"
COMMENT = b"-- pgstream "  # begins every line of a script that is ours

HEADER_LENGTHS = {
    "gzip": len(_GZIP_HEAD) + 6 + _BLOCK.size,
    "zstd": 8 + _BLOCK.size,
    "none": len(COMMENT) + 2 * _BLOCK.size + 1,
}
FOOTER_LENGTHS = {
    "gzip": len(_GZIP_HEAD) + 6 + _FOOTER.size + len(_EMPTY_DEFLATE),
    "zstd": 8 + _FOOTER.size,
    "none": len(COMMENT) + 2 * _FOOTER.size + 1,
}
LONGEST_FOOTER = max(FOOTER_LENGTHS.values())  # bytes to read from the end to find it
LONGEST_MARK = 16  # bytes to read from the start for `begins_block`


@dataclass(frozen=True)
class Announcement:
    """What a block says of itself before it comes: enough to cut a stream into blocks without the index."""

    section: str
    length: int  # stored bytes, this announcement included
    raw_length: int
    rows: int
    table: int  # number in the index, -1: none or several


@dataclass(frozen=True)
class Footer:
    """Where the index is, and what it must hash to."""

    compression: str
    index_offset: int
    index_length: int
    index_raw_length: int
    index_sha256: bytes
    length: int  # of the footer itself


def _mark(compression: str, size: int) -> bytes:
    """What stands before a payload of `size` bytes."""
    if compression == "gzip":
        return _GZIP_HEAD + struct.pack("<H2sH", size + 4, b"PG", size)
    return _SKIPPABLE + struct.pack("<I", size) if compression == "zstd" else COMMENT


def _wrap(compression: str, payload: bytes) -> bytes:
    written = payload if compression != "none" else payload.hex().encode() + b"\n"
    return _mark(compression, len(payload)) + written


def _unwrap(compression: str, data: bytes, size: int) -> Optional[bytes]:
    """The payload of `size` bytes at the start of `data`, or None if it is not one of ours."""
    empty = _wrap(compression, b"\0" * size)
    if len(data) < len(empty):
        return None
    if compression == "none":
        if not data.startswith(COMMENT) or data[len(empty) - 1 : len(empty)] != b"\n":
            return None
        try:
            payload = bytes.fromhex(data[len(COMMENT) : len(empty) - 1].decode("ascii"))
        except ValueError:
            return None
        # fromhex also takes spaces and capitals, which were never written.
        return payload if data.startswith(_wrap(compression, payload)) else None
    head = len(empty) - size
    return data[head : len(empty)] if data[:head] == empty[:head] else None


def begins_block(head: bytes) -> bool:
    """Whether an object that starts with `head` starts as ours do, even if its first announcement is damaged."""
    return any(head.startswith(_mark(compression, _BLOCK.size)) for compression in HEADER_LENGTHS)


def announce(compression: str, section: str, payload_length: int, raw_length: int, rows: int, table: int) -> bytes:
    length = HEADER_LENGTHS[compression] + payload_length
    block = _BLOCK.pack(_VERSION, SECTIONS.index(section), 0, table + 1, length, raw_length, rows)
    return _wrap(compression, block)


def read_announcement(compression: str, data: bytes) -> Announcement:
    """Raises IntegrityError when `data` does not start with a block."""
    payload = _unwrap(compression, data, _BLOCK.size)
    if payload is None:
        raise IntegrityError("no block begins where the index says one does")
    version, section, _reserved, table, length, raw_length, rows = _BLOCK.unpack(payload)
    if version != _VERSION or section >= len(SECTIONS) or length < HEADER_LENGTHS[compression]:
        raise IntegrityError("a block's announcement is damaged or of an unknown version (%d)" % version)
    return Announcement(SECTIONS[section], length, raw_length, rows, table - 1)


def footer(compression: str, index_offset: int, index_length: int, index_raw_length: int, index_sha256: bytes) -> bytes:
    body = _FOOTER.pack(_MAGIC, _VERSION, 0, index_offset, index_length, index_raw_length, index_sha256, 0)
    body = body[:-4] + struct.pack("<I", zlib.crc32(body[:-4]))
    return _wrap(compression, body) + (_EMPTY_DEFLATE if compression == "gzip" else b"")


def find_footer(tail: bytes, size: int) -> Optional[Footer]:
    """The footer at the end of an object of `size` bytes, whose last bytes are `tail`.

    None for an object without one; IntegrityError for one that is damaged or does not fit the object.
    """
    for compression, length in FOOTER_LENGTHS.items():
        if len(tail) < length:
            continue
        body = _unwrap(compression, tail[-length:], _FOOTER.size)
        if body is None or body[:8] != _MAGIC:
            continue
        _magic, version, _reserved, offset, index_length, raw_length, sha256, crc = _FOOTER.unpack(body)
        if crc != zlib.crc32(body[:-4]) or (compression == "gzip" and not tail.endswith(_EMPTY_DEFLATE)):
            raise IntegrityError("the backup's footer is damaged")
        if version != _VERSION:
            raise IntegrityError(
                "the backup has format version %d, this engine reads %d" % (version, _VERSION),
                hint="Restore it with gunzip and psql, or with a newer engine.",
            )
        if offset + index_length + length != size:
            raise IntegrityError("the backup's footer does not fit its size: bytes are missing or were added")
        return Footer(compression, offset, index_length, raw_length, sha256, length)
    return None


def decode(compression: str, block: bytes, raw_length: int) -> Iterator[bytes]:
    """The SQL of one whole block in pieces; IntegrityError unless it is exactly `raw_length` bytes and ends well."""
    produced = 0
    for piece in _pieces(compression, _payload(compression, block)):
        produced += len(piece)
        if produced > raw_length:
            raise IntegrityError("a block holds more than its index says")
        yield piece
    if produced != raw_length:
        raise IntegrityError("a block holds %d bytes, its index says %d" % (produced, raw_length))


def decode_start(compression: str, start: bytes) -> Iterator[bytes]:
    """What the first bytes of a block have of its SQL, in pieces."""
    return codec.StreamDecoder(compression).feed(_payload(compression, start))


def _payload(compression: str, block: bytes) -> bytes:
    """gzip reads past its own header; for the others the announcement is a piece of its own."""
    return block if compression == "gzip" else block[HEADER_LENGTHS[compression] :]


def _pieces(compression: str, payload: bytes) -> Iterator[bytes]:
    if compression == "none":
        for start in range(0, len(payload), codec.CHUNK):
            yield payload[start : start + codec.CHUNK]
        return
    if compression == "zstd":
        yield from codec.zstd_frame(payload)
        return
    decoder = codec.StreamDecoder(compression)
    yield from decoder.feed(payload)
    decoder.finish()


def encode(compression: str, section: str, raw: bytes, level: Optional[int] = None, rows: int = 0) -> List[bytes]:
    """A whole block of text held in memory, as pieces ready to be stored."""
    member = codec.compressor(compression, level)
    pieces = [member.compress(raw), member.flush()]
    return [announce(compression, section, sum(map(len, pieces)), len(raw), rows, -1)] + pieces
