# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Codecs: what is compressed comes back whatever the feed, and a stream that does not end well is refused."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import Any, Iterable, List, Optional

import pytest
import zstandard
from _pgstream import codec
from _pgstream.errors import IntegrityError, UsageError
from hypothesis import given, settings
from hypothesis import strategies as st

SOME = settings(max_examples=200, deadline=None)
TEXT = b"".join(b"%d\tname %d\t\\N\n" % (number, number * 7919 % 1009) for number in range(300))
COMPRESSED = ("gzip", "zstd")
RLE_BLOCK = bytes([0x02, 0x00, 0x10, 0x41])  # zstd: 128 KiB of "A" (RFC 8878 section 3.1.1.2)


def member(compression: str, raw: bytes, level: Optional[int] = None) -> bytes:
    """One whole member or frame; for gzip with the plain header that `framing` would write."""
    made = codec.compressor(compression, level)
    head = b"\x1f\x8b\x08\0\0\0\0\0\0\xff" if compression == "gzip" else b""
    return head + made.compress(raw) + made.flush()


def decoded(compression: str, feeds: Iterable[bytes]) -> bytes:
    decoder = codec.StreamDecoder(compression)
    pieces: List[bytes] = []
    for feed in feeds:
        pieces += decoder.feed(feed)
    decoder.finish()
    assert all(0 < len(piece) <= codec.CHUNK for piece in pieces)
    return b"".join(pieces)


def cut(data: bytes, size: int) -> List[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test that wants it runs with isal and, as where that is not installed, with zlib."""
    if request.param == "zlib":
        monkeypatch.setattr(codec, "isal_zlib", None)
    return str(request.param)


def test_with_isal_and_without(library: str) -> None:
    assert gzip.decompress(member("gzip", TEXT)) == TEXT
    assert decoded("gzip", [gzip.compress(TEXT)]) == TEXT


def test_any_feed_size_gives_the_same_bytes(library: str) -> None:
    for compression in codec_names():
        data = member(compression, TEXT) + member(compression, b"") + member(compression, TEXT[:100])
        for size in (1, 2, 7, 4096, len(data)):
            assert decoded(compression, cut(data, size)) == TEXT + TEXT[:100]


def codec_names() -> Iterable[str]:
    return (*COMPRESSED, "none")


def test_truncation_at_every_byte_is_seen(library: str) -> None:
    """At every byte but where a member ends: there a stream of members may end, which is why blocks are counted too."""
    for compression in COMPRESSED:
        first = member(compression, TEXT[:200])
        data = first + member(compression, TEXT[200:400])
        for length in range(len(data)):
            if length == len(first):
                continue
            with pytest.raises(IntegrityError):
                decoded(compression, [data[:length]])
            with pytest.raises(IntegrityError):
                decoded(compression, cut(data[:length], 3))


@SOME
@given(
    compression=st.sampled_from(COMPRESSED),
    raws=st.lists(st.binary(max_size=2000), min_size=1, max_size=4),
    size=st.integers(1, 500),
    level=st.sampled_from([None, 1, 6, 9]),
)
def test_members_one_after_the_other(compression: str, raws: List[bytes], size: int, level: Optional[int]) -> None:
    data = b"".join(member(compression, raw, level) for raw in raws)
    assert decoded(compression, cut(data, size)) == b"".join(raws)


@SOME
@given(compression=st.sampled_from(COMPRESSED), junk=st.binary(min_size=1, max_size=60), size=st.integers(1, 100))
def test_garbage_after_the_end_is_refused(compression: str, junk: bytes, size: int) -> None:
    if compression == "gzip" and not junk.strip(b"\0"):
        junk += b"x"
    for feeds in ([member(compression, TEXT) + junk], cut(member(compression, TEXT) + junk, size)):
        with pytest.raises(IntegrityError):
            decoded(compression, feeds)


@SOME
@given(st.sampled_from(COMPRESSED), st.data())
def test_a_damaged_byte_never_gives_other_bytes(compression: str, data: st.DataObject) -> None:
    stored = bytearray(member(compression, TEXT))
    place = data.draw(st.integers(0, len(stored) - 1))
    stored[place] ^= data.draw(st.integers(1, 255))
    try:
        assert decoded(compression, [bytes(stored)]) == TEXT  # a bit of a header that says nothing of the content
    except IntegrityError:
        pass


@SOME
@given(st.sampled_from(COMPRESSED), st.binary(max_size=3000), st.integers(1, 1000))
def test_any_bytes_are_decoded_or_refused(compression: str, data: bytes, size: int) -> None:
    try:
        decoded(compression, cut(data, size))
    except IntegrityError:
        pass


def test_zero_padding_after_the_last_gzip_member(library: str) -> None:
    """As from a tape or a block device: gunzip ignores it too."""
    data = gzip.compress(TEXT) + b"\0" * 3000
    for size in (1, 512, len(data)):
        assert decoded("gzip", cut(data, size)) == TEXT
    with pytest.raises(IntegrityError):
        decoded("gzip", [b"\0" * 100])
    with pytest.raises(IntegrityError):
        decoded("gzip", [gzip.compress(TEXT), b"\0" * 100, b"x"])


def test_an_empty_stream_was_cut_off() -> None:
    for compression in COMPRESSED:
        with pytest.raises(IntegrityError):
            decoded(compression, [])
    assert decoded("none", []) == b""


def test_zstd_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = member("zstd", TEXT)
    monkeypatch.setattr(codec, "zstandard", None)
    for use in (
        lambda: codec.check_level("zstd", None),
        lambda: codec.StreamDecoder("zstd"),
        lambda: list(codec.zstd_frame(stored)),
    ):
        with pytest.raises(UsageError, match="zstandard"):
            use()
    codec.check_level("gzip", None)


def test_levels() -> None:
    for compression, levels in (("gzip", (1, 9)), ("zstd", (1, 19)), ("none", (0,))):
        for level in levels:
            codec.check_level(compression, level)
    for compression, level in (("gzip", 0), ("gzip", 10), ("zstd", 0), ("zstd", 20), ("none", 1)):
        with pytest.raises(UsageError, match=compression):
            codec.check_level(compression, level)


@pytest.mark.parametrize("level", [1, 3, 4, 9])
def test_every_gzip_level_is_plain_gzip(library: str, level: int) -> None:
    assert gzip.decompress(member("gzip", TEXT, level)) == TEXT


def test_a_higher_gzip_level_is_smaller(library: str) -> None:
    """isal stops at 3: what is asked for above it comes from zlib."""
    assert len(member("gzip", TEXT, 9)) < len(member("gzip", TEXT, 1))


def test_a_gzip_bomb_comes_in_small_pieces(library: str) -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    assert len(bomb) < 80 << 10
    assert peak(lambda: drain("gzip", bomb, 64 << 20)) < 8 << 20


def test_a_zstd_bomb_comes_in_small_pieces() -> None:
    """A megabyte that says 32 GB: what is given out before the reader stops stays small."""
    bomb = b"\x28\xb5\x2f\xfd\0\x58" + RLE_BLOCK * ((1 << 20) // len(RLE_BLOCK))
    assert peak(lambda: drain("zstd", bomb, 64 << 20)) < 48 << 20
    assert peak(lambda: pull(codec.zstd_frame(bomb), 64 << 20)) < 48 << 20


def drain(compression: str, data: bytes, enough: int) -> None:
    pull(codec.StreamDecoder(compression).feed(data), enough)


def pull(pieces: Iterable[bytes], enough: int) -> None:
    got = 0
    for piece in pieces:
        assert len(piece) <= codec.CHUNK
        got += len(piece)
        if got >= enough:
            return
    raise AssertionError("only %d bytes came" % got)


def peak(work: object) -> int:
    """The most bytes that were allocated meanwhile."""
    tracemalloc.start()
    try:
        work()  # type: ignore[operator]
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_very_many_tiny_members_take_no_quadratic_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each member copies what follows it: that must be a piece of the stream, not thousands of members."""
    given_in: List[int] = []

    class Library:
        @staticmethod
        def decompressobj(wbits: int) -> "Library":
            made = Library()
            made.real = zlib.decompressobj(wbits)
            return made

        real: Any = None

        def decompress(self, data: bytes, limit: int) -> bytes:
            given_in.append(len(data))
            return self.real.decompress(data, limit)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    one = member("gzip", b"x")
    monkeypatch.setattr(codec, "isal_zlib", Library)
    assert decoded("gzip", [one * 6000]) == b"x" * 6000
    assert max(given_in) <= 1 << 16


def test_zstd_frame_is_exactly_one_frame() -> None:
    stored = member("zstd", TEXT)
    assert b"".join(codec.zstd_frame(stored)) == TEXT
    for wrong in (stored + b"\0", stored + stored, b"\0" + stored):
        with pytest.raises(IntegrityError):
            list(codec.zstd_frame(wrong))
    for length in range(0, len(stored)):
        with pytest.raises(IntegrityError):
            list(codec.zstd_frame(stored[:length]))


def test_zstd_window_beyond_memory_is_refused() -> None:
    """A frame that wants a window of 3.75 TB must not be given one."""
    with pytest.raises(IntegrityError):
        decoded("zstd", [b"\x28\xb5\x2f\xfd\0\xff" + RLE_BLOCK])


def test_skippable_frames_are_passed_over() -> None:
    skipped = b"\x5b\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    data = skipped + member("zstd", TEXT) + skipped + skipped
    for size in (1, 3, len(data)):
        assert decoded("zstd", cut(data, size)) == TEXT
    with pytest.raises(IntegrityError):
        decoded("zstd", [data[:-1]])


def test_detect() -> None:
    assert codec.detect(member("gzip", TEXT)[:8]) == "gzip"
    assert codec.detect(member("zstd", TEXT)[:8]) == "zstd"
    assert codec.detect(b"\x5b\x2a\x4d\x18\0\0\0\0") == "zstd"
    for plain in (b"", b"\x1f", b"-- PostgreSQL database dump", b"\x5b\x2a\x4d\x19"):
        assert codec.detect(plain) == "none"


def test_others_read_what_is_written() -> None:
    assert zstandard.ZstdDecompressor().decompress(member("zstd", TEXT), max_output_size=1 << 20) == TEXT
    assert zlib.decompress(member("gzip", TEXT), wbits=31) == TEXT
    assert member("none", TEXT) == TEXT
