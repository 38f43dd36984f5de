# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verification without a server: whatever byte is changed, missing or added is found, and it is said where."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import pytest
import zstandard
from _pgstream import archive, verify
from _pgstream.errors import IntegrityError, NotFoundError, UsageError
from _pgstream.model import COMPRESSIONS, DatabaseInfo, Index, Storage, Table, VerifyResult
from _pgstream.model import VerifyRequest as Request
from _pgstream.rowcount import RowCounter
from _pgstream.store.local import LocalStore
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import KeptLog

ROWS = {0: [b"1\\tAnn", b"2\\tBob \\\\N"], 1: [b"", b"\\\\N", b"x"], 2: []}  # by table; an empty row is a row


def copy(table: int, rows: Sequence[bytes]) -> bytes:
    # A name may hold anything, also what looks like SQL.
    head = b'COPY "public"."t%d" ("a", "b\n""\n\nCOPY c FROM stdin;\n\\.\n") FROM stdin;\n' % table
    return head + b"".join(row + b"\n" for row in rows) + b"\\.\n\n"


def stored(compression: str, wrong: str = "") -> bytes:
    """A small backup; `wrong`: written so, with sums that fit."""
    pieces: List[bytes] = []
    writer = archive.ArchiveWriter(pieces.extend, compression)
    writer.text("schema", b"-- schema\n")
    writer.text("pre", b"CREATE FUNCTION f() AS '\nCOPY a FROM stdin;\nno row';\n")
    for tables in ([0], [1], [0, 1]):
        encoder = writer.encoder("data")
        for table in tables:
            rows = ROWS[table]
            encoder.write(copy(table, rows[:-1] if wrong == "a row less" and len(tables) == 2 else rows))
            encoder.count(table, len(rows))
        if wrong == "no end":
            encoder.write(b"COPY public.t0 FROM stdin;\n1\n")
        if wrong == "one COPY more" and len(tables) == 2:
            encoder.write(copy(0, [b"1"]))
        writer.append(encoder.finish())
    writer.text("rest", b"SELECT pg_catalog.setval('s.q', 1, true);\n")
    if wrong != "no post block":
        writer.text("post", b"CREATE INDEX ON s.t0 (a);\n-- PostgreSQL database dump complete\n")
    counts = {number: 2 * len(rows) for number, rows in ROWS.items()}
    index = Index(
        format_version=1, engine_version="0", correlation_id="c", compression=compression,
        database=DatabaseInfo("shop", "UTF8", "C", "C", "owner"), server_version=150004, pg_dump_version=15,
        snapshot_at="t", started_at="t", finished_at="t", raw_bytes=writer.raw_bytes, stored_bytes=writer.offset,
        rows=sum(counts.values()), tables=tuple(Table(n, 16384 + n, "public", "t%d" % n, counts[n]) for n in counts),
        blocks=tuple(writer.blocks),
    )  # fmt: skip
    writer.finish(index)
    return b"".join(pieces)


class Shelf:
    """A directory with one object."""

    def __init__(self, directory: Path) -> None:
        self.storage = Storage(kind="local", directory=str(directory))

    def put(self, data: bytes, key: str = "shop_2026-01-31T02:00:00Z.sql.gz") -> str:
        Path(self.storage.directory, key).write_bytes(data)
        return key

    def verify(self, key: str, level: str = "content", log: Any = None, **more: Any) -> VerifyResult:
        return verify.verify(Request(self.storage, key, level, **more), log or KeptLog())

    def fault(self, data: bytes, level: str = "content") -> str:
        with pytest.raises(IntegrityError) as caught:
            self.verify(self.put(data), level, jobs=1)
        assert caught.value.exit_code == 6 and "file://" in caught.value.message
        return caught.value.sentence()


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_whole_backup(shelf: Shelf, compression: str) -> None:
    data = stored(compression)
    log = KeptLog()
    result = shelf.verify(shelf.put(data), log=log)
    assert (result.verified, result.level, result.database, result.foreign) == (True, "content", "shop", False)
    assert (result.blocks, result.rows, result.tables, result.changed) == (7, 10, 3, False)
    assert result.stored_bytes == len(data) <= result.bytes_read < len(data) + 200
    assert log.known == {"level": "content", "key": result.key} and log.database == "shop"
    assert log.events() == ["started", "verified"]


def test_the_index_alone_takes_two_small_reads(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: List[Tuple[int, int]] = []
    read = LocalStore.read

    def counted(self: LocalStore, key: str, offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return read(self, key, offset, length)

    monkeypatch.setattr(LocalStore, "read", counted)
    data = stored("gzip")
    result = shelf.verify(shelf.put(data), "index")
    assert len(reads) == 2 and result.bytes_read == sum(length for _offset, length in reads) < len(data)
    assert (result.verified, result.level, result.rows, result.raw_bytes) == (True, "index", 10, 0)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_changed_byte_is_found(shelf: Shelf, compression: str) -> None:
    """Each byte in turn, with a bit that its place chooses."""
    data = stored(compression)
    for place in range(len(data)):
        damaged = bytearray(data)
        damaged[place] ^= 1 << (place % 8)
        shelf.fault(bytes(damaged))


@settings(max_examples=150, deadline=None)
@given(data=st.data(), compression=st.sampled_from(COMPRESSIONS))
def test_what_is_changed_missing_or_added_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compression: str
) -> None:
    shelf, whole = Shelf(tmp_path_factory.mktemp("shelf")), stored(compression)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, min(len(whole), start + 100)))
    instead = data.draw(st.binary(max_size=100))
    other = whole[:start] + instead + whole[end:]
    if other != whole and other:
        # What does not begin as ours, and ends without a footer, is a dump of another tool, and then a damaged one.
        shelf.fault(other)


@pytest.mark.parametrize("level", ["index", "content"])
def test_a_backup_without_its_end_is_not_taken_for_a_plain_dump(shelf: Shelf, level: str) -> None:
    data = stored("gzip")
    index = archive.read_index(lambda offset, length: data[offset : offset + length], len(data))
    assert index is not None
    # All blocks are whole, gunzip is content, and the last line is pg_dump's own.
    assert gzip.decompress(data[: index.stored_bytes]).endswith(b"dump complete\n")
    assert "end is missing or damaged" in shelf.fault(data[: index.stored_bytes], level)


def test_a_backup_without_beginning_and_end_is_none_either(shelf: Shelf) -> None:
    data = stored("none")
    index = archive.read_index(lambda offset, length: data[offset : offset + length], len(data))
    assert index is not None
    assert "beginning and end are damaged" in shelf.fault(b"x" + data[1 : index.stored_bytes])


def test_the_place_is_told(shelf: Shelf) -> None:
    data = stored("gzip")
    index = archive.read_index(lambda offset, length: data[offset : offset + length], len(data))
    assert index is not None
    both, damaged = index.blocks[4], bytearray(data)
    damaged[both.offset + 60] ^= 1
    text = shelf.fault(bytes(damaged))
    where = 'block 5 (data at byte %d, rows of "public"."t0", "public"."t1")' % both.offset
    assert "1 of 7 blocks is damaged: " + where in text
    assert "does not have the sha256" in text and text.startswith("Failed during reading the contents: file://")
    for block in index.blocks:
        damaged[block.offset + 60] ^= 2
    text = shelf.fault(bytes(damaged))
    assert "7 of 7 blocks are damaged: block 1 (schema at byte 0)" in text and "; and 2 more." in text


@pytest.mark.parametrize(
    "wrong, said",
    [
        ("a row less", 'it has 1 rows of "public"."t0", the index says 2'),
        ("no end", "its rows have no end"),
        ("one COPY more", "it has 3 COPY statements, the index names 2"),
        ("no post block", "the index does not name one schema, one pre and one post block"),
    ],
)
def test_what_was_written_wrongly_is_found_though_the_sums_fit(shelf: Shelf, wrong: str, said: str) -> None:
    assert said in shelf.fault(stored("gzip", wrong))


def test_an_object_that_ends_in_the_middle_of_a_run(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was whole when its index was read."""
    data = stored("gzip")
    key = shelf.put(data)
    stream = LocalStore.stream

    index = archive.read_index(lambda offset, length: data[offset : offset + length], len(data))
    assert index is not None and index.stored_bytes > 700

    def cut(self: LocalStore, key: str, offset: int, length: int) -> Any:
        return stream(self, key, offset, 600 if (offset, length) == (0, index.stored_bytes) else length)

    monkeypatch.setattr(LocalStore, "stream", cut)
    with pytest.raises(IntegrityError, match="the object ended in the middle of the block at byte"):
        shelf.verify(key, jobs=1)


# What other tools made


DUMP = b"--\n-- PostgreSQL database dump\n--\nSELECT 1;\n" + b"-- x\n" * 3000
END = b"--\n-- PostgreSQL database dump complete\n--\n\n\\unrestrict abc\n"


@pytest.mark.parametrize(
    "extension, pack",
    [(".sql.gz", gzip.compress), (".sql.zst", zstandard.ZstdCompressor().compress), (".sql", bytes)],
)
def test_a_plain_dump(shelf: Shelf, extension: str, pack: Callable[[bytes], bytes]) -> None:
    whole = pack(DUMP + END)
    result = shelf.verify(shelf.put(whole, "old" + extension))
    assert (result.verified, result.foreign, result.rows) == (True, True, 0)
    assert (result.bytes_read > len(whole), result.raw_bytes) == (True, len(DUMP + END))
    assert "without an index no more can be said" in result.message
    for cut in (whole[:-1] if extension != ".sql" else DUMP[:-1], pack(DUMP)):
        with pytest.raises(IntegrityError, match="cut off|lacks its last line"):
            shelf.verify(shelf.put(cut, "old" + extension))
    with pytest.raises(UsageError, match="has no index: .* Use the level content"):
        shelf.verify(shelf.put(whole, "old" + extension), "index")


def test_an_archive_of_pg_dump_is_none_of_ours(shelf: Shelf) -> None:
    with pytest.raises(UsageError, match="custom-format archive"):
        shelf.verify(shelf.put(b"PGDMP" + b"\0" * 500))


# Which one


def test_the_latest_and_the_unknown(shelf: Shelf) -> None:
    newer = shelf.put(stored("gzip"), "shop_2026-02-01T02:00:00Z.sql.gz")
    older = shelf.put(stored("gzip"))
    assert shelf.verify("latest", "index", source_database="shop").key == newer
    before = shelf.verify("latest", "index", source_database="shop", latest_before="2026-02-01T00:00:00Z")
    assert before.key == older
    for request in ({"key": "latest", "source_database": "crm"}, {"key": "nothing.sql.gz"}):
        with pytest.raises(NotFoundError):
            shelf.verify(**request)


@pytest.mark.parametrize(
    "fields",
    [
        {"level": "whole"},
        {"compare_source": True},
        {"latest_before": "2026-02-01T00:00:00Z"},
        {"key": "latest"},
    ],
)
def test_requests_that_make_no_sense(shelf: Shelf, fields: Dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        shelf.verify(**{"key": shelf.put(stored("gzip")), **fields})


# Rows


@settings(max_examples=300, deadline=None)
@given(
    tables=st.lists(
        st.lists(st.sampled_from([b"", b"a", b"\\\\.", b"COPY x FROM stdin;", b"1\tb"]), max_size=5), max_size=4
    ),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
def test_rows_are_counted_wherever_the_pieces_are_cut(tables: List[List[bytes]], cuts: List[int]) -> None:
    sql = b"SET a = 'COPY ';\n" + b"".join(copy(number, rows) for number, rows in enumerate(tables)) + b"SELECT 1;\n"
    counter = RowCounter()
    places = [0, *sorted(min(cut, len(sql)) for cut in cuts), len(sql)]
    for start, end in zip(places, places[1:]):
        counter.feed(sql[start:end])
    assert counter.finish() == [len(rows) for rows in tables]


def test_memory_does_not_grow_with_the_backup(shelf: Shelf) -> None:
    """A few blocks of a megabyte are held, of 4 and of 40 alike."""
    for blocks in (4, 40):
        pieces: List[bytes] = []
        writer = archive.ArchiveWriter(pieces.extend, "none")
        for section in ["schema", "pre", *["data"] * blocks, "post"]:
            writer.text(section, b"-- a comment of a megabyte\n" * 38000)
        index = Index(
            format_version=1, engine_version="0", correlation_id="c", compression="none",
            database=DatabaseInfo("shop", "UTF8", "C", "C", "owner"), server_version=150004, pg_dump_version=15,
            snapshot_at="t", started_at="t", finished_at="t", raw_bytes=writer.raw_bytes, stored_bytes=writer.offset,
            rows=0, tables=(), blocks=tuple(writer.blocks),
        )  # fmt: skip
        writer.finish(index)
        key = shelf.put(b"".join(pieces))
        del pieces[:]
        tracemalloc.start()
        try:
            assert shelf.verify(key, jobs=2).blocks == blocks + 3
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
