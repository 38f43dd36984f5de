# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The format: written by many threads, read by ours, by standard tools and by a reader that can only go forward;
damaged anywhere, it is refused."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import pytest
import zstandard
from _pgstream import archive, framing
from _pgstream.errors import BackupError, Cancelled, IntegrityError
from _pgstream.index import MAX_INDEX, index_text, parse_index
from _pgstream.model import COMPRESSIONS, FORMAT_VERSION, Block, DatabaseInfo, Index, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import Background

MANY = settings(max_examples=500, deadline=None)
TABLES = 3
DATABASE = DatabaseInfo(
    "odd \"name\"\n\u00e9", "UTF8", "C", "C", "owner", comment="it's",
    acl=(("", "CONNECT", False), ("r\u00f4le", "CREATE", True)), settings=(("", "search_path", '"a b", c'),),
)  # fmt: skip


class Stored:
    """A whole archive in memory, and the SQL that went into each block by offset."""

    def __init__(self, compression: str, blocks_each: int = 4) -> None:
        self.compression = compression
        self.data = bytearray()
        self.writing = self.most_writing = 0
        self.sql: Dict[int, bytes] = {}
        writer = archive.ArchiveWriter(self._write, compression)
        writer.text("schema", b"-- schema\n")
        writer.text("pre", b"CREATE SCHEMA s;\n")
        self._threads(writer, blocks_each)
        writer.text("rest", b"SELECT pg_catalog.setval('s.q', 1, true);\n")
        writer.text("post", b"CREATE INDEX ON s.t0 (a);\n")
        self.index = self._index(writer)
        self.size = writer.finish(self.index)
        self.data = bytes(self.data)  # type: ignore[assignment]

    def _write(self, pieces: Any) -> None:
        """Takes long enough that a second writer would come in, were it let in."""
        self.writing += 1
        self.most_writing = max(self.most_writing, self.writing)
        time.sleep(0.001)
        for piece in pieces:
            self.data += piece
        self.writing -= 1

    def _threads(self, writer: archive.ArchiveWriter, blocks_each: int) -> None:
        def work(table: int) -> None:
            for number in range(blocks_each):
                rows = b"".join(b"%d\t%d\tx\n" % (table, row) for row in range(number * 5))
                encoder = writer.encoder("data")
                encoder.write(b"COPY s.t%d FROM stdin;\n" % table)
                encoder.write(rows)
                encoder.write(b"\\.\n")
                encoder.count(table, number * 5)
                start.wait(10) if number == 0 else None
                writer.append(encoder.finish())

        start = threading.Barrier(TABLES)
        threads = [threading.Thread(target=work, args=(table,)) for table in range(TABLES)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _index(self, writer: archive.ArchiveWriter) -> Index:
        counts: Dict[int, int] = {table: 0 for table in range(TABLES)}
        for block in writer.blocks:
            for table, rows in block.tables:
                counts[table] += rows
        return Index(
            format_version=FORMAT_VERSION, engine_version="0", correlation_id="c", compression=self.compression,
            database=DATABASE, server_version=150004, pg_dump_version=15, snapshot_at="t", started_at="t",
            finished_at="t", raw_bytes=writer.raw_bytes, stored_bytes=writer.offset, rows=sum(counts.values()),
            tables=tuple(Table(n, 16384 + n, "s", "t%d" % n, counts[n]) for n in range(TABLES)),
            blocks=tuple(writer.blocks),
        )  # fmt: skip

    def raw(self) -> bytes:
        """What a reader of the codec makes of the whole object."""
        if self.compression == "gzip":
            return gzip.decompress(self.data)
        if self.compression == "zstd":
            return zstandard.ZstdDecompressor().stream_reader(self.data, read_across_frames=True).read()
        return bytes(self.data)


@pytest.fixture(scope="module", params=COMPRESSIONS)
def stored(request: pytest.FixtureRequest) -> Stored:
    return Stored(request.param)


SAMPLES = {compression: Stored(compression, 2) for compression in COMPRESSIONS}


def reader(data: bytes) -> Callable[[int, int], bytes]:
    """`read(offset, length)` as a store has it: what is not there is an error of the family."""

    def read(offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > len(data):
            raise IntegrityError("the object ended early")
        return bytes(data[offset : offset + length])

    return read


def read_index(data: bytes) -> Optional[Index]:
    return archive.read_index(reader(data), len(data))


def all_sql(data: bytes) -> bytes:
    """Read everything that the index names, checked; IntegrityError or nothing at all."""
    index = read_index(data)
    assert index is not None
    pieces: List[bytes] = []
    for block in index.blocks:
        pieces += archive.block_sql(index.compression, block, reader(data)(block.offset, block.length))
    return b"".join(pieces)


def test_index_comes_back(stored: Stored) -> None:
    assert stored.size == len(stored.data)
    assert read_index(stored.data) == stored.index
    assert archive.has_footer(reader(stored.data), stored.size)


def test_threads_append_one_at_a_time(stored: Stored) -> None:
    assert stored.most_writing == 1


def test_blocks_tile_the_object(stored: Stored) -> None:
    index = read_index(stored.data)
    assert index is not None
    offset = 0
    for block in index.blocks:
        assert block.offset == offset and block.length > 0
        offset += block.length
    assert offset == index.stored_bytes
    assert framing.read_announcement(stored.compression, stored.data[offset:]).section == "index"
    assert [block.section for block in index.blocks] == ["schema", "pre"] + ["data"] * 12 + ["rest", "post"]
    assert sum(block.rows for block in index.blocks) == index.rows == TABLES * 30


def test_each_block_alone_is_its_sql(stored: Stored) -> None:
    for block in stored.index.blocks:
        piece = stored.data[block.offset : block.offset + block.length]
        sql = b"".join(archive.block_sql(stored.compression, block, piece))
        if block.section == "data":
            (table, rows) = block.tables[0]
            assert table == block.table
            assert sql.startswith(b"COPY s.t%d FROM stdin;\n" % table) and sql.endswith(b"\\.\n")
            assert sql.count(b"\n") == rows + 2
        if stored.compression == "gzip":
            assert gzip.decompress(piece) == sql  # alone, by anyone
        elif stored.compression == "none":
            assert piece.endswith(sql) and piece[: -len(sql)].startswith(b"-- pgstream ")


def test_the_whole_is_the_blocks_one_after_the_other(stored: Stored) -> None:
    text = b"\n".join(line for line in stored.raw().split(b"\n") if not line.startswith(b"-- pgstream "))
    index_lines = index_text(stored.index).split(b"\n", 1)[1]
    assert text == all_sql(stored.data) + index_lines


def test_the_script_ends_in_comments(stored: Stored) -> None:
    """What is ours is a comment to psql, the index too."""
    script = stored.raw()[len(all_sql(stored.data)) :] if stored.compression != "none" else b""
    assert all(line.startswith(b"-- ") for line in script.splitlines())


@pytest.mark.parametrize("command", [["gunzip", "-t"], ["gzip", "-dc"], ["zcat"]], ids=lambda command: command[0])
def test_standard_tools_read_the_same(command: List[str], tmp_path: Path) -> None:
    path = tmp_path / "a.sql.gz"
    path.write_bytes(SAMPLES["gzip"].data)
    done = subprocess.run([*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (b"" if "-t" in command else SAMPLES["gzip"].raw())


def test_a_forward_reader_needs_no_index(stored: Stored) -> None:
    """By what each block says of itself the stream is cut into blocks, down to the index."""
    offset, seen = 0, []
    while True:
        said = framing.read_announcement(stored.compression, stored.data[offset:])
        if said.section == "index":
            break
        piece = stored.data[offset : offset + said.length]
        sql = b"".join(framing.decode(stored.compression, piece, said.raw_length))
        seen.append((said.section, offset, said.length, len(sql), said.rows, said.table))
        offset += said.length
    assert seen == [
        (block.section, block.offset, block.length, block.raw_length, block.rows, block.table)
        for block in stored.index.blocks
    ]
    assert said.length + offset + framing.FOOTER_LENGTHS[stored.compression] == stored.size


def test_sections_keep_their_order() -> None:
    writer = archive.ArchiveWriter(lambda pieces: None, "gzip")
    writer.text("post", b"x")
    with pytest.raises(BackupError, match="cannot follow"):
        writer.text("data", b"x")
    assert len(writer.blocks) == 1


def test_a_failed_write_adds_no_block() -> None:
    def fail(pieces: Any) -> None:
        raise BackupError("no room")

    writer = archive.ArchiveWriter(fail, "gzip")
    with pytest.raises(BackupError, match="no room"):
        writer.text("pre", b"x")
    assert writer.blocks == [] and writer.offset == 0


def test_several_tables_in_one_block() -> None:
    encoder = archive.BlockEncoder("gzip", None, "data")
    for table, rows in ((4, 2), (1, 3), (4, 1)):
        encoder.count(table, rows)
    pending = encoder.finish()
    assert (pending.rows, pending.table, pending.tables) == (6, -1, ((4, 3), (1, 3)))


def test_foreign_objects() -> None:
    for data in (b"", b"x", gzip.compress(b"-- PostgreSQL database dump\n" * 100), b"SELECT 1;\n" * 100):
        assert read_index(data) is None
        assert not archive.has_footer(reader(data), len(data))


# --- damage anywhere


@MANY
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_changed_bytes_are_never_read(compression: str, data: st.DataObject) -> None:
    whole = SAMPLES[compression].data
    changed = bytearray(whole)
    kind = data.draw(st.sampled_from(["flip", "drop", "insert", "duplicate", "truncate", "append", "zero"]))
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, min(200, len(whole) - start)))
    if kind == "flip":
        changed[start] ^= data.draw(st.integers(1, 255))
    elif kind == "drop":
        del changed[start : start + length]
    elif kind == "insert":
        changed[start:start] = data.draw(st.binary(min_size=1, max_size=100))
    elif kind == "duplicate":
        changed[start:start] = changed[start : start + length]
    elif kind == "truncate":
        del changed[start:]
    elif kind == "append":
        changed += data.draw(st.binary(min_size=1, max_size=200))
    else:
        changed[start : start + length] = bytes(length)
    if bytes(changed) == whole:
        return
    footer = framing.FOOTER_LENGTHS[compression]
    if bytes(changed[-footer:]) == whole[-footer:]:
        with pytest.raises(IntegrityError):  # the footer is there: then it is ours, and damaged
            all_sql(bytes(changed))
        return
    try:
        assert read_index(bytes(changed)) is None
    except IntegrityError:
        pass


@MANY
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_moved_blocks_are_never_read(compression: str, data: st.DataObject) -> None:
    sample = SAMPLES[compression]
    blocks = [sample.data[block.offset : block.offset + block.length] for block in sample.index.blocks]
    end = sample.data[sample.index.stored_bytes :]
    kind = data.draw(st.sampled_from(["drop", "duplicate", "swap", "replace"]))
    one = data.draw(st.integers(0, len(blocks) - 1))
    other = data.draw(st.integers(0, len(blocks) - 1))
    if kind == "drop":
        del blocks[one]
    elif kind == "duplicate":
        blocks.insert(other, blocks[one])
    elif kind == "swap":
        blocks[one], blocks[other] = blocks[other], blocks[one]
    else:
        blocks[one] = blocks[other]
    changed = b"".join(blocks) + end
    if changed == sample.data:
        return
    with pytest.raises(IntegrityError):
        all_sql(changed)


@MANY
@given(st.sampled_from(COMPRESSIONS), st.data())
def test_a_block_that_is_another_is_refused(compression: str, data: st.DataObject) -> None:
    """check_block alone, as a restore uses it: length, hash and the block's own words."""
    sample = SAMPLES[compression]
    block = data.draw(st.sampled_from(sample.index.blocks))
    piece = sample.data[block.offset : block.offset + block.length]
    archive.check_block(compression, block, piece)
    change = data.draw(st.sampled_from(["length", "raw_length", "rows", "table", "section", "sha256", "bytes"]))
    if change == "bytes":
        place = data.draw(st.integers(0, len(piece) - 1))
        piece = piece[:place] + bytes([piece[place] ^ data.draw(st.integers(1, 255))]) + piece[place + 1 :]
    elif change == "section":
        block = dataclasses.replace(block, section="rest" if block.section != "rest" else "post")
    elif change == "sha256":
        block = dataclasses.replace(block, sha256=hashlib.sha256(b"other").hexdigest())
    else:
        changed: Dict[str, Any] = {change: getattr(block, change) + data.draw(st.integers(1, 1 << 70))}
        block = dataclasses.replace(block, **changed)
    with pytest.raises(IntegrityError):
        archive.check_block(compression, block, piece)


# --- an index by someone who can compute checksums


def with_index(compression: str, text: bytes, claimed: Optional[int] = None) -> bytes:
    """The sample's blocks, with another index under a footer that fits it."""
    sample = SAMPLES[compression]
    blocks = sample.data[: sample.index.stored_bytes]
    index = b"".join(framing.encode(compression, "index", text))
    digest = hashlib.sha256(index).digest()
    raw = len(text) if claimed is None else claimed
    return blocks + index + framing.footer(compression, len(blocks), len(index), raw, digest)


def lines_of(index: Index) -> List[Dict[str, Any]]:
    return [json.loads(line[3:]) for line in index_text(index).decode().splitlines()[1:]]


def text_of(lines: List[Any]) -> bytes:
    return ("-- index\n" + "".join("-- %s\n" % json.dumps(line) for line in lines)).encode()


HOSTILE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 80), 1 << 80),
    st.sampled_from([10**4000, -(10**4000), 1e308, float("inf"), float("-inf"), float("nan"), 1 << 63, -1, 0]),
    st.floats(),
    st.text(max_size=20),
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner, max_size=3), max_leaves=5),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)


def places(item: Any, path: Tuple[Any, ...] = ()) -> List[Tuple[Any, ...]]:
    """Every place in a JSON value that could hold something else."""
    found = [path] if path else []
    if isinstance(item, dict):
        for key in item:
            found += places(item[key], (*path, key))
    elif isinstance(item, list):
        for number, each in enumerate(item):
            found += places(each, (*path, number))
    return found


def put(item: Any, path: Tuple[Any, ...], value: Any) -> None:
    for step in path[:-1]:
        item = item[step]
    item[path[-1]] = value


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def use(index: Index) -> None:
    """What a restore does with an index's fields; plain values of the right types bear it."""
    for block in index.blocks:
        archive.check_block(index.compression, block, b"") if block.length < 0 else None
        [index.tables[number].name.encode() + b"" for number, _rows in block.tables]
    list(archive.runs(index.blocks, 1000))
    info = index.database
    [part.replace("'", "''") for part in (info.name, info.encoding, info.collate, info.ctype, info.owner, info.locale)]
    assert "%d %s" % (info.connection_limit, info.comment.strip())
    [
        (role + name + value, grantee + privilege)
        for role, name, value in info.settings
        for grantee, privilege, _grantable in info.acl
    ]
    assert "%d %d %s" % (index.server_version // 10000, index.pg_dump_version, index.snapshot_at.strip())


@MANY
@given(st.data())
def test_a_hostile_index_is_refused_or_harmless(data: st.DataObject) -> None:
    lines = lines_of(SAMPLES["gzip"].index)
    for _change in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.integers(0, len(lines) - 1))
        path = data.draw(st.sampled_from(places(lines[number]) or [()]))
        value = data.draw(HOSTILE)
        if path:
            put(lines[number], path, value)
        else:
            lines[number] = value
        if not isinstance(lines[number], (dict, list)):
            break
    try:
        index = read_index(with_index("gzip", text_of(lines)))
    except IntegrityError:
        return
    assert index is not None
    use(index)


@MANY
@given(st.data())
def test_numbers_of_the_index_cannot_change_alone(data: st.DataObject) -> None:
    """Rows, lengths, offsets and totals are all said twice."""
    lines = lines_of(SAMPLES["zstd"].index)
    number = data.draw(st.integers(0, len(lines) - 1))
    (kind,) = lines[number]
    names = {
        "index": ["raw_bytes", "stored_bytes", "rows", "format_version", "compression"],
        "table": ["number", "rows"],
        "block": ["offset", "length", "raw_length", "rows", "section"],
    }[kind]
    name = data.draw(st.sampled_from(names))
    value = data.draw(HOSTILE)
    old = lines[number][kind][name]
    moved = name == "section" and value in framing.SECTIONS
    if same(old, value) or moved:
        return
    lines[number][kind][name] = value
    with pytest.raises(IntegrityError):
        read_index(with_index("zstd", text_of(lines)))


@MANY
@given(st.binary(max_size=300), st.sampled_from(COMPRESSIONS))
def test_any_bytes_as_an_index(text: bytes, compression: str) -> None:
    with pytest.raises(IntegrityError):
        read_index(with_index(compression, text))


@pytest.mark.parametrize("text", [
    b"-- index\n-- " + b"[" * 200000 + b"]" * 200000 + b"\n",
    b"-- index\n-- " + b'{"a":' * 200000 + b"1" + b"}" * 200000 + b"\n",
    b'-- index\n-- {"index": ' + b"9" * 100000 + b"}\n",
    b'-- index\n-- {"block": {"tables": [[1e999, 1]]}}\n',
    b'-- index\n-- {"block": {"tables": [[NaN, Infinity]]}}\n',
    b'-- index\n-- "block"\n',
    b"-- index\n-- 7\n",
    b"-- index\n",
    b"",
    "-- index\n-- {\"index\": \"\u00e9\"}\n".encode(),
], ids=range(10))  # fmt: skip
def test_odd_json(text: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_index(with_index("gzip", text))


def test_sums_too_long_to_print() -> None:
    """Python refuses to print more than 4,300 digits: the message itself must not fail."""
    lines = lines_of(SAMPLES["gzip"].index)
    huge = 10**4300 - 1
    lines[1 + TABLES]["block"]["length"] = huge
    lines[2 + TABLES]["block"].update(offset=huge, length=huge)
    with pytest.raises(IntegrityError):
        read_index(with_index("gzip", text_of(lines)))


def test_an_index_that_unpacks_to_more_than_it_says() -> None:
    for compression in COMPRESSIONS:
        text = index_text(SAMPLES[compression].index)
        for claimed in (0, 1, len(text) - 1, len(text) + 1):
            with pytest.raises(IntegrityError):
                read_index(with_index(compression, text, claimed))
        with pytest.raises(IntegrityError, match="too large"):
            read_index(with_index(compression, text, MAX_INDEX + 1))


def test_a_footer_that_points_to_a_block() -> None:
    for compression in COMPRESSIONS:
        sample = SAMPLES[compression]
        block = sample.index.blocks[-1]
        piece = sample.data[block.offset : block.offset + block.length]
        digest = hashlib.sha256(piece).digest()
        end = framing.footer(compression, block.offset, block.length, block.raw_length, digest)
        with pytest.raises(IntegrityError, match="does not point to an index"):
            read_index(sample.data[: block.offset + block.length] + end)


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=40), st.integers(1, 120))
@settings(max_examples=300, deadline=None)
def test_runs(lengths: List[Tuple[int, bool]], limit: int) -> None:
    """Adjacent blocks together, none lost, none over the limit unless alone."""
    blocks, offset = [], 0
    for length, gap in lengths:
        offset += 7 if gap else 0
        blocks.append(Block("data", offset, length, 1, ""))
        offset += length
    grouped = list(archive.runs(blocks, limit))
    assert [block for run in grouped for block in run] == blocks
    for run in grouped:
        assert len(run) == 1 or sum(block.length for block in run) <= limit
        assert all(one.offset + one.length == two.offset for one, two in zip(run, run[1:]))
    for one, two in zip(grouped, grouped[1:]):
        adjacent = one[-1].offset + one[-1].length == two[0].offset
        assert not adjacent or sum(block.length for block in one) + two[0].length > limit


def test_the_index_holds_only_ascii_comments() -> None:
    text = index_text(SAMPLES["gzip"].index)
    assert text.isascii() and all(line.startswith(b"-- ") for line in text.splitlines())
    assert parse_index([text]) == SAMPLES["gzip"].index


def test_blocks_wait_for_the_head() -> None:
    """Some are kept until it is written, in their order; whoever makes more waits, until then or until the run ends."""
    written: List[bytes] = []
    writer = archive.ArchiveWriter(written.extend, "none")
    closed = threading.Event()
    behind = archive.BehindHead(writer, closed.is_set)

    def append(size: int) -> None:
        encoder = behind.encoder("data")
        encoder.write(b"-" * size + b"\n")
        behind.append(encoder.finish())

    append(1 << 10)
    append(2 << 10)
    assert written == []
    late = Background(lambda: append(archive.HELD))
    time.sleep(0.2)
    assert late.running
    writer.text("schema", b"-- schema\n")
    writer.text("pre", b"-- pre\n")
    time.sleep(0.2)
    assert late.running
    behind.head_is_written()
    late.result()
    assert [block.section for block in writer.blocks] == ["schema", "pre", "data", "data", "data"]
    assert [block.raw_length >> 10 for block in writer.blocks[2:4]] == [1, 2]
    append(1)
    assert len(writer.blocks) == 6


def test_whoever_waits_for_the_head_ends_with_the_run() -> None:
    closed = threading.Event()
    behind = archive.BehindHead(archive.ArchiveWriter(lambda pieces: None, "none"), closed.is_set)
    encoder = behind.encoder("data")
    encoder.write(b"-" * (archive.HELD + 1))
    waiting = Background(lambda: behind.append(encoder.finish()))
    time.sleep(0.2)
    assert waiting.running
    closed.set()
    with pytest.raises(Cancelled):
        waiting.result()
