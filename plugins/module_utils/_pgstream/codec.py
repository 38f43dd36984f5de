# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Compression of one block and of a whole stream: gzip (isal where importable, else zlib), zstd, none.

Every decoder is asked at the end whether it really ended: zlib and zstandard accept a truncated stream in silence.
"""

from __future__ import annotations

import zlib
from typing import Any, Generator, Iterator, Optional, Union

from .errors import BackupError, IntegrityError, UsageError

try:
    from isal import isal_zlib  # type: ignore[import-not-found,import-untyped,unused-ignore]
except ImportError:
    isal_zlib = None  # type: ignore[assignment,unused-ignore]

try:
    import zstandard
except ImportError:
    zstandard = None  # type: ignore[assignment]

CHUNK = 1 << 20  # bytes given out at a time by a decoder
_FED = 1 << 16  # bytes of a stream looked at in one go: what follows a member is copied, however short members are
#: Stored bytes given to zstandard in one call, whose answer has no limit: 4 bytes of a frame can say 128 KiB (RFC 8878
#: section 3.1.1.2), so 512 say 16 MiB at the most. Measured, it is as fast as a megabyte at a time.
_ZSTD_STEP = 512

#: Level when none is asked for: each keeps up with COPY. Measured on table data, isal 1 stores 0.3 percent less than
#: isal 2, its own default, in a tenth less time; 3 takes half as long again for as little.
DEFAULT_LEVELS = {"isal": 1, "zlib": 1, "zstd": 1, "none": 0}


def check_level(compression: str, level: Optional[int]) -> None:
    """Raise UsageError for a codec that is not installed or a level it does not have."""
    if compression == "zstd" and zstandard is None:
        raise UsageError("compression zstd needs the Python package zstandard", hint="Install it, or use gzip.")
    if level is None:
        return
    low, high = {"gzip": (1, 9), "zstd": (1, 19), "none": (0, 0)}[compression]
    if not low <= level <= high:
        raise UsageError("compression_level for %s is %d to %d, not %d" % (compression, low, high, level))


class Compressor:
    """One member or frame, compressed as it comes. `flush` ends it, checksum included."""

    def compress(self, data: Union[bytes, memoryview]) -> bytes:
        raise NotImplementedError

    def flush(self) -> bytes:
        raise NotImplementedError


class _Gzip(Compressor):
    """Raw deflate and the gzip trailer; the header, which carries the length, is written by `framing`."""

    def __init__(self, level: Optional[int]) -> None:
        # zlib's levels above isal's 3 are asked for when size matters more than speed: then zlib it is.
        if isal_zlib is not None and (level is None or level <= 3):
            library: Any = isal_zlib
            self._deflate = library.compressobj(DEFAULT_LEVELS["isal"] if level is None else level, wbits=-15)
        else:
            library = zlib
            self._deflate = zlib.compressobj(DEFAULT_LEVELS["zlib"] if level is None else level, wbits=-15)
        self._crc32 = library.crc32
        self._crc = 0
        self._size = 0

    def compress(self, data: Union[bytes, memoryview]) -> bytes:
        self._crc = self._crc32(data, self._crc)
        self._size += len(data)
        compressed: bytes = self._deflate.compress(data)
        return compressed

    def flush(self) -> bytes:
        tail: bytes = self._deflate.flush()
        return tail + self._crc.to_bytes(4, "little") + (self._size & 0xFFFFFFFF).to_bytes(4, "little")


class _Zstd(Compressor):
    def __init__(self, level: Optional[int]) -> None:
        context = zstandard.ZstdCompressor(
            level=DEFAULT_LEVELS["zstd"] if level is None else level, write_checksum=True
        )
        self._frame = context.compressobj()

    def compress(self, data: Union[bytes, memoryview]) -> bytes:
        return self._frame.compress(data)

    def flush(self) -> bytes:
        return self._frame.flush()


class _Plain(Compressor):
    def compress(self, data: Union[bytes, memoryview]) -> bytes:
        return bytes(data)

    def flush(self) -> bytes:
        return b""


def compressor(compression: str, level: Optional[int] = None) -> Compressor:
    if compression == "gzip":
        return _Gzip(level)
    return _Zstd(level) if compression == "zstd" else _Plain()


class StreamDecoder:
    """A compressed stream of any number of members or frames, fed in pieces of any size.

    `feed` gives decompressed pieces of at most CHUNK bytes; `finish` raises IntegrityError unless the stream ended
    where a member ends.
    """

    def __init__(self, compression: str) -> None:
        if compression == "zstd":
            _require_zstandard()
        self._compression = compression
        self._member: Any = None
        self._kept = b""  # the start of a member too short to begin it with
        self.ended = compression == "none"

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self._compression == "none":
            if data:
                yield data
            return
        try:
            for start in range(0, len(data), _FED):
                yield from self._feed(data[start : start + _FED])
        except BackupError:
            raise
        except Exception as error:  # zlib.error, isal's and zstandard's own: one meaning
            raise IntegrityError("the compressed data is damaged: %s" % error) from error

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                data = self._kept + data
                self._kept = b""
                if not self._begin(data):
                    self._kept = data if data.strip(b"\0") else data[:8]  # padding may be long: a little tells as much
                    return
            if self._compression == "zstd":
                data = yield from _zstd_pieces(self._member, data)
            else:
                while True:
                    out = self._member.decompress(data, CHUNK)
                    if out:
                        yield out
                    if self._member.eof or (not out and not self._member.unconsumed_tail):
                        break
                    data = self._member.unconsumed_tail
                    if not data and len(out) < CHUNK:
                        break
                data = self._member.unused_data if self._member.eof else b""
            self.ended = bool(self._member.eof)
            if self._member.eof:
                self._member = None

    def _begin(self, data: bytes) -> bool:
        """Start the next member; false while there are too few bytes to see what it is. Zero padding is accepted
        where gunzip accepts it: after the last member."""
        if self._compression == "gzip":
            if self.ended and not data.strip(b"\0"):
                return False
            library: Any = isal_zlib if isal_zlib is not None else zlib
            self._member = library.decompressobj(wbits=31)
            self.ended = False
            return True
        if len(data) < 8:
            self.ended = False
            return False
        if data[1:4] == b"\x2a\x4d\x18" and 0x50 <= data[0] <= 0x5F:
            self._member = _SkippableFrame(8 + int.from_bytes(data[4:8], "little"))
        else:
            self._member = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        self.ended = False
        return True

    def finish(self) -> None:
        if self._kept and self._compression == "gzip" and not self._kept.strip(b"\0"):
            self._kept = b""
        if not self.ended or self._kept:
            raise IntegrityError("the compressed data ends in the middle: it was cut off")


class _SkippableFrame:
    """A zstd skippable frame, passed over; looks like a decompressor."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes) -> bytes:
        taken = min(self._left, len(data))
        self._left -= taken
        if self._left == 0:
            self.eof = True
            self.unused_data = bytes(data[taken:])
        return b""


def _require_zstandard() -> None:
    if zstandard is None:
        raise UsageError("this backup is compressed with zstd", hint="Install the Python package zstandard.")


def _zstd_pieces(frame: Any, data: bytes) -> Generator[bytes, None, bytes]:
    """What one frame makes of `data`, in pieces of at most CHUNK bytes; returns what follows the frame's end."""
    view = memoryview(data)
    for start in range(0, len(view), _ZSTD_STEP):
        out = frame.decompress(view[start : start + _ZSTD_STEP])
        for cut in range(0, len(out), CHUNK):
            yield out[cut : cut + CHUNK]
        if frame.eof:
            return bytes(frame.unused_data) + data[start + _ZSTD_STEP :]
    return b""


def detect(head: bytes) -> str:
    """The codec of a stream by its first bytes (RFC 1952, RFC 8878); `none` when it looks like neither."""
    if head[:2] == b"\x1f\x8b":
        return "gzip"
    if head[:4] == b"\x28\xb5\x2f\xfd" or (head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F):
        return "zstd"
    return "none"


def zstd_frame(data: bytes) -> Iterator[bytes]:
    """One whole zstd frame in pieces of at most CHUNK bytes; IntegrityError if it does not end
    well or more follows."""
    _require_zstandard()
    try:
        frame = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
        if (yield from _zstd_pieces(frame, data)):
            raise IntegrityError("a block has bytes after its end")
    except zstandard.ZstdError as error:
        raise IntegrityError("the compressed data is damaged: %s" % error) from error
    if not frame.eof:
        raise IntegrityError("the compressed data ends in the middle: it was cut off")
