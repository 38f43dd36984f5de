# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bytes around a block: any reader of the codec passes over them, ours believes only what it would have written."""

from __future__ import annotations

import gzip
import hashlib
from typing import List

import pytest
import zstandard
from _pgstream import codec, framing
from _pgstream.errors import BackupError, IntegrityError
from _pgstream.model import COMPRESSIONS
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=400, deadline=None)
SQL = b"-- some SQL\nSELECT 1;\n" * 50
BIG = (1 << 64) - 1


def block(compression: str, raw: bytes = SQL) -> bytes:
    return b"".join(framing.encode(compression, "data", raw, None, 3))


def plain(compression: str, stored: bytes) -> bytes:
    """As a reader sees it that knows nothing of us."""
    if compression == "gzip":
        return gzip.decompress(stored)
    if compression == "zstd":
        reader = zstandard.ZstdDecompressor().stream_reader(stored, read_across_frames=True)
        return reader.read()
    return stored


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_block_says_what_comes(compression: str) -> None:
    stored = block(compression)
    said = framing.read_announcement(compression, stored[: framing.HEADER_LENGTHS[compression]])
    assert said == framing.Announcement("data", len(stored), len(SQL), 3, -1)
    assert b"".join(framing.decode(compression, stored, len(SQL))) == SQL


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_other_readers_see_only_sql_and_comments(compression: str) -> None:
    footer = framing.footer(compression, 1, 2, 3, b"\xff" * 32)
    assert len(footer) == framing.FOOTER_LENGTHS[compression]
    text = plain(compression, block(compression) + footer + block(compression))
    lines = [line for line in text.splitlines() if not line.startswith(b"-- pgstream ")]
    assert lines == (SQL + SQL).splitlines()


@MANY
@given(
    compression=st.sampled_from(COMPRESSIONS),
    section=st.sampled_from(framing.SECTIONS),
    payload=st.integers(0, 1 << 60),
    raw=st.integers(0, BIG),
    rows=st.integers(0, BIG),
    table=st.integers(-1, (1 << 32) - 2),
)
def test_announcements_come_back(compression: str, section: str, payload: int, raw: int, rows: int, table: int) -> None:
    stored = framing.announce(compression, section, payload, raw, rows, table)
    length = len(stored) + payload
    assert framing.read_announcement(compression, stored) == framing.Announcement(section, length, raw, rows, table)


@MANY
@given(
    compression=st.sampled_from(COMPRESSIONS),
    offset=st.integers(0, 1 << 62),
    length=st.integers(0, 1 << 62),
    raw=st.integers(0, BIG),
    before=st.binary(max_size=200),
)
def test_footers_come_back(compression: str, offset: int, length: int, raw: int, before: bytes) -> None:
    digest = hashlib.sha256(before).digest()
    stored = framing.footer(compression, offset, length, raw, digest)
    size = offset + length + len(stored)
    found = framing.find_footer((before + stored)[-framing.LONGEST_FOOTER :], size)
    assert found == framing.Footer(compression, offset, length, raw, digest, len(stored))
    for wrong in (size - 1, size + 1):
        with pytest.raises(IntegrityError, match="size"):
            framing.find_footer(before + stored, wrong)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_byte_of_a_footer_can_change_unseen(compression: str) -> None:
    stored = framing.footer(compression, 100, 20, 30, b"\x5a" * 32)
    size = 120 + len(stored)
    assert framing.find_footer(stored, size) is not None
    for place in range(len(stored)):
        for other in range(256):
            if other == stored[place]:
                continue
            damaged = stored[:place] + bytes([other]) + stored[place + 1 :]
            try:
                assert framing.find_footer(damaged, size) is None, (place, other)
            except IntegrityError:
                pass


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_footer_cut_short_is_none(compression: str) -> None:
    stored = framing.footer(compression, 100, 20, 30, b"\x5a" * 32)
    for length in range(len(stored)):
        assert framing.find_footer(stored[:length], 120 + length) is None
        assert framing.find_footer(stored[length + 1 :], 120 + length) is None


def test_hexadecimal_with_spaces_is_none_of_ours() -> None:
    """bytes.fromhex skips blanks: a payload too short must not reach struct."""
    stored = framing.announce("none", "data", 10, 10, 0, -1)
    with pytest.raises(IntegrityError):
        framing.read_announcement("none", stored[:14] + b"  " + stored[16:])
    footer = framing.footer("none", 100, 20, 30, b"\x5a" * 32)
    assert framing.find_footer(footer[:-11] + b"  " * 5 + b"\n", 120 + len(footer)) is None
    assert framing.find_footer(footer.upper(), 120 + len(footer)) is None


def test_a_newer_format_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for compression in COMPRESSIONS:
        with monkeypatch.context() as patch:
            patch.setattr(framing, "_VERSION", 2)
            footer = framing.footer(compression, 100, 20, 30, b"\x5a" * 32)
            announced = framing.announce(compression, "data", 10, 10, 0, -1)
        with pytest.raises(IntegrityError, match="format version 2.*newer engine"):
            framing.find_footer(footer, 120 + len(footer))
        with pytest.raises(IntegrityError, match="unknown version"):
            framing.read_announcement(compression, announced)


@MANY
@given(st.sampled_from(COMPRESSIONS), st.binary(max_size=300), st.integers(0, 1000))
def test_any_bytes_are_read_or_refused(compression: str, data: bytes, raw: int) -> None:
    assert framing.find_footer(data, len(data)) is None
    with pytest.raises(IntegrityError):
        framing.read_announcement(compression, data)
    if compression != "none":
        with pytest.raises(BackupError):
            list(framing.decode(compression, data, raw))


@MANY
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_a_damaged_announcement_is_read_or_refused(compression: str, data: st.DataObject) -> None:
    stored = bytearray(framing.announce(compression, "data", 10, 10, 0, -1))
    for _change in range(data.draw(st.integers(1, 4))):
        stored[data.draw(st.integers(0, len(stored) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert framing.read_announcement(compression, bytes(stored)).section in framing.SECTIONS
    except IntegrityError:
        pass


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_block_of_another_length_than_it_says(compression: str) -> None:
    stored = block(compression)
    for claimed in (0, 1, len(SQL) - 1, len(SQL) + 1, 1 << 62):
        with pytest.raises(IntegrityError):
            list(framing.decode(compression, stored, claimed))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_block_that_claims_little_stops_early(compression: str) -> None:
    """A bomb of 200 MB that says it holds ten bytes gives out nothing."""
    raw = bytes(200 << 20) if compression != "none" else bytes(8 << 20)
    stored = b"".join(framing.encode(compression, "data", raw))
    given_out: List[int] = []
    with pytest.raises(IntegrityError, match="more than its index says"):
        for piece in framing.decode(compression, stored, 10):
            given_out.append(len(piece))
    assert not given_out
    with pytest.raises(IntegrityError, match="more than its index says"):
        for piece in framing.decode(compression, stored, 3 * codec.CHUNK):
            given_out.append(len(piece))
    assert sum(given_out) <= 3 * codec.CHUNK and max(given_out) <= codec.CHUNK
