# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows into blocks: whatever pieces a pipe gives, the same rows arrive, counted, in blocks that stand alone."""

from __future__ import annotations

import gzip
from typing import Any, Callable, Dict, List, Sequence, Tuple

import pytest
from _pgstream import copying, loading
from _pgstream.archive import ArchiveWriter
from _pgstream.copying import RowBlocks, preamble, receive
from _pgstream.errors import BackupError
from _pgstream.model import Block
from _pgstream.plan import CopyItem
from _pgstream.postgres import TableFacts
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=250, deadline=None)
SQL_END = b"\\.\n\n"
PREAMBLE = preamble("UTF8")


def item(number: int, columns: Tuple[str, ...] = ('"a"',), **more: Any) -> CopyItem:
    return CopyItem(number, TableFacts(number, "s", "t%d" % number, columns, 1, 1, True, **more))


class Sink:
    """An archive in memory, with the blocks as they would be found in the object."""

    def __init__(self, block_size: int, codec: str = "utf-8") -> None:
        self.data = b""
        self.writer = ArchiveWriter(self._write, "gzip")
        self.blocks = RowBlocks(self.writer, "data", "UTF8", codec, block_size)

    def _write(self, pieces: Sequence[bytes]) -> None:
        self.data += b"".join(pieces)

    def sql(self) -> List[Tuple[Block, bytes]]:
        return [
            (block, gzip.decompress(self.data[block.offset : block.offset + block.length]))
            for block in self.writer.blocks
        ]

    def rows(self, items: Sequence[CopyItem]) -> Dict[int, bytes]:
        """Per table what a server would read, by a reader of its own; every block is checked on the way."""
        heads = {each.in_statement().encode(): each.table for each in items}
        found: Dict[int, bytes] = {each.table: b"" for each in items}
        for block, sql in self.sql():
            assert sql.startswith(PREAMBLE)
            rest, counted = sql[len(PREAMBLE) :], []
            while rest:
                head, rest = rest[: rest.index(b"\n") + 1], rest[rest.index(b"\n") + 1 :]
                rows, rest = _rows(rest)
                counted.append((heads[head], rows.count(b"\n")))
                found[heads[head]] += rows
            assert tuple(counted) == block.tables and block.rows == sum(count for _table, count in counted)
            assert block.table == (counted[0][0] if len(counted) == 1 else -1)
        return found


def _rows(text: bytes) -> Tuple[bytes, bytes]:
    """The rows up to a line `\\.`, and what follows it and its empty line."""
    rows = b""
    while not text.startswith(b"\\.\n"):
        end = text.index(b"\n") + 1
        rows, text = rows + text[:end], text[end:]
    assert text.startswith(SQL_END)
    return rows, text[len(SQL_END) :]


def pieces(stream: bytes, cuts: Sequence[int]) -> Callable[[memoryview], int]:
    """A pipe that gives the stream in pieces that end at the cuts."""
    bounds = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return pipe([stream[start:end] for start, end in zip(bounds, bounds[1:])])


def pipe(chunks: Sequence[bytes]) -> Callable[[memoryview], int]:
    """A pipe that gives these, one each time it is read, or less where there is no room for it."""
    left = list(chunks)

    def read_into(buffer: memoryview) -> int:
        if not left:
            return 0
        chunk = left.pop(0)
        if len(chunk) > len(buffer):
            left.insert(0, chunk[len(buffer) :])
        size = min(len(chunk), len(buffer))
        buffer[:size] = chunk[:size]
        return size

    return read_into


def said(*tables: Sequence[bytes]) -> bytes:
    """What psql writes for these rows."""
    return b"".join(b"%s\\. %d\n" % (b"".join(rows), len(rows)) for rows in tables)


#: A row as COPY writes it: no bare newline, every backslash doubled or an escape. Often with what looks like an end.
ROW = st.lists(
    st.sampled_from([b"", b"x", b"\\\\.", b"\\\\", b"\\N", b".", b"\t", b"\\n", b"abc" * 20, "\u00e9".encode()]),
    max_size=5,
).map(lambda parts: b"".join(parts) + b"\n")
TABLES = st.lists(st.lists(ROW, max_size=12), min_size=1, max_size=5)
CUTS = st.lists(st.integers(0, 1 << 20), max_size=60)
SIZES = st.one_of(st.integers(1, 2000), st.integers(len(PREAMBLE), len(PREAMBLE) + 200))


@MANY
@given(TABLES, CUTS, SIZES)
def test_any_chunking_gives_the_same_rows(tables: List[List[bytes]], cuts: List[int], size: int) -> None:
    items = [item(number) for number in range(len(tables))]
    stream = said(*tables)
    sink = Sink(size)
    receive(items, pieces(stream, cuts), sink.blocks)
    sink.blocks.close()
    assert sink.rows(items) == {number: b"".join(rows) for number, rows in enumerate(tables)}
    assert sink.blocks.rows == {number: len(rows) for number, rows in enumerate(tables)}
    assert sink.blocks.raw_bytes == {number: sum(map(len, rows)) for number, rows in enumerate(tables)}


@MANY
@given(st.lists(ROW, min_size=1, max_size=60), CUTS, SIZES)
def test_blocks_end_when_they_are_full(rows: List[bytes], cuts: List[int], size: int) -> None:
    """A block is over its size by no more than the row that filled it and its end, or by a first row."""
    only = item(0)
    sink = Sink(size)
    receive([only], pieces(said(rows), cuts), sink.blocks)
    sink.blocks.close()
    head = len(PREAMBLE) + len(only.in_statement())
    for block, _sql in sink.sql():
        longest = max(map(len, rows))
        within = max(size, head + longest) + len(SQL_END)
        assert block.raw_length <= within + longest  # a row that began in an earlier piece is ended


@MANY
@given(TABLES, st.sets(st.integers(0, 4)))
def test_what_is_written_can_be_read_back(tables: List[List[bytes]], chosen: set) -> None:
    """`loading.only` finds the chosen tables' rows by the index's list of a block's COPYs."""
    items = [item(number) for number in range(len(tables))]
    sink = Sink(600)
    receive(items, pipe([said(*tables)]), sink.blocks)
    sink.blocks.close()
    kept = b"".join(
        loading.only(sql, block, chosen)
        for block, sql in sink.sql()
        if {number for number, _rows in block.tables} & chosen
    )
    for number, rows in enumerate(tables):
        named = items[number].in_statement().encode() in kept
        assert named == (number in chosen and bool(rows))


@pytest.mark.parametrize("size", range(1, 12))
def test_an_end_at_every_border(size: int) -> None:
    """The bytes of the end fall into every place of a chunk."""
    items = [item(0), item(1), item(2)]
    stream = b"a\nbb\n\\. 2\n\\. 0\nc\\\\.\n\\\\. 7\n\\. 2\n"
    for shift in range(size):
        chunks = [stream[:shift]] if shift else []
        chunks += [stream[start : start + size] for start in range(shift, len(stream), size)]
        sink = Sink(10000)
        receive(items, pipe(chunks), sink.blocks)
        sink.blocks.close()
        assert sink.rows(items) == {0: b"a\nbb\n", 1: b"", 2: b"c\\\\.\n\\\\. 7\n"}
        assert [block.tables for block, _sql in sink.sql()] == [((0, 2), (2, 2))]


def test_a_row_larger_than_a_block() -> None:
    long = b"x" * 100000 + b"\n"
    for step in (1000, 7777, 200000):
        sink = Sink(2000)
        receive([item(0)], pieces(said([b"a\n", long, b"b\n"]), range(0, 100010, step)), sink.blocks)
        sink.blocks.close()
        assert sink.rows([item(0)]) == {0: b"a\n" + long + b"b\n"}
        assert len(sink.writer.blocks) <= 3
        assert [len(sql) > 2000 for _block, sql in sink.sql()].count(True) == 1


@pytest.mark.parametrize("step", [7919, 1 << 16, 1 << 22])
def test_more_than_a_buffer_holds(step: int) -> None:
    tables = [[b"%d\t%s\n" % (row, b"y" * (row % 997)) for row in range(3000 + number)] for number in range(3)]
    sink, items = Sink(1 << 18), [item(number) for number in range(3)]
    receive(items, pieces(said(*tables), range(0, 1 << 23, step)), sink.blocks)
    sink.blocks.close()
    assert sink.rows(items) == {number: b"".join(rows) for number, rows in enumerate(tables)}


def test_no_rows_make_no_block() -> None:
    sink = Sink(2000)
    receive([item(0), item(1)], pipe([said([], [])]), sink.blocks)
    sink.blocks.close()
    assert sink.writer.blocks == [] and sink.data == b""
    assert sink.blocks.rows == {0: 0, 1: 0}


def test_rows_of_no_columns() -> None:
    """Each is an empty line, and counts."""
    without = item(0, ())
    sink = Sink(100000)
    receive([without], pipe([b"\n", b"\n\n", b"\\", b". 3\n"]), sink.blocks)
    sink.blocks.close()
    assert sink.blocks.rows == {0: 3}
    ((_block, sql),) = sink.sql()
    assert sql == PREAMBLE + b'COPY "s"."t0" FROM stdin;\n\n\n\n' + SQL_END


def test_two_ranges_of_one_table_count_together() -> None:
    sink = Sink(100000)
    receive([item(3), item(3)], pipe([said([b"a\n"], [b"b\n", b"c\n"])]), sink.blocks)
    assert sink.blocks.rows == {3: 3} and sink.blocks.raw_bytes == {3: 6}


@pytest.mark.parametrize(
    "stream",
    [b"", b"a\n", b"a", b"a\n\\", b"a\n\\. 1", b"a\n\\. 1\n", b"a\n\\. 1\nb\n", b"a\n\\. 1\n\\. 0",
     b"a\n\\. 1\nb\\. 1\n", b"a\n\\. 1\nb\n\\. \n", b"a\n\\. 1\nb\n\\. 1", b"a\n\\. 1\n\\. 0\nx",
     b"a\n\\. 1\n\\. 0\n\n"],
)  # fmt: skip
def test_output_that_ends_early(stream: bytes) -> None:
    sink = Sink(2000)
    with pytest.raises(copying._CutShort, match=r"in the middle of"):
        receive([item(0), item(1)], pipe([stream]), sink.blocks)


@pytest.mark.parametrize(
    "stream",
    [b"\\. 1\n", b"a\n\\. 0\n", b"a\n\\. 2\n", b"a\n\\. 1\n\\. 1\n", b"\\. 0\na\n\\. 1\n", b"a\n\\.\nb\n\\. 2\n"],
)
def test_the_server_s_count_and_ours(stream: bytes) -> None:
    """An end of rows in the middle would be one to whoever restores: it is a row too many."""
    with pytest.raises(BackupError, match="the server sent [0-9] rows of"):
        receive([item(0)], pipe([stream]), Sink(2000).blocks)


def test_a_wrong_count_before_the_last() -> None:
    with pytest.raises(BackupError, match='the server sent 2 rows of "s"."t0", 1 arrived'):
        receive([item(0), item(1)], pipe([b"a\n\\. 2\nb\n\\. 1\n"]), Sink(2000).blocks)


def test_names_are_written_in_the_database_s_encoding() -> None:
    named = CopyItem(0, TableFacts(1, "s", "caf\u00e9", ('"\u00fc"',), 1, 1, True))
    sink = Sink(2000, "latin-1")
    receive([named], pipe([said([b"\xe9\n"])]), sink.blocks)
    sink.blocks.close()
    ((_block, sql),) = sink.sql()
    assert b'COPY "s"."caf\xe9" ("\xfc") FROM stdin;\n\xe9\n' + SQL_END in sql


def test_statements_that_are_no_copy() -> None:
    sink = Sink(len(PREAMBLE) + 40)
    for number in range(10):
        sink.blocks.sql(b"SELECT pg_catalog.setval('q', %d);\n" % number)
    sink.blocks.close()
    texts = [sql for _block, sql in sink.sql()]
    assert len(texts) == 5 and all(text.startswith(PREAMBLE) for text in texts)
    assert b"".join(text[len(PREAMBLE) :] for text in texts).count(b"setval") == 10
    sink.blocks.close()
    assert len(sink.writer.blocks) == 5  # closing again adds nothing


def test_the_preamble_names_the_encoding_and_no_schema() -> None:
    text = preamble("LATIN1").decode()
    assert "SET client_encoding = 'LATIN1';" in text and "SET search_path = '';" in text
    assert "SET standard_conforming_strings = on;" in text and "SET row_security = off;" in text
    assert all(line.startswith("SET ") and line.endswith(";") for line in text.strip().splitlines())


class Child:
    """A psql that wrote and ended like this."""

    def __init__(self, chunks: Sequence[bytes], failure: str = "", stderr: str = "") -> None:
        self.read_into = pipe(chunks)
        self._failure = failure
        self._stderr = stderr

    def finish(self) -> None:
        if self._failure:
            raise BackupError(self._failure)

    def cause(self) -> Any:
        return BackupError(self._failure) if self._failure else None

    def stderr_text(self) -> str:
        return self._stderr


class Fake:
    """Clients, processes and leader of a copier whose children are `Child`s; the leader counts what it is asked."""

    encoding, codec, snapshot, closed, major = "UTF8", "utf-8", "0003-1", False, 17

    def __init__(self, child: Child, leader_says: int = 2) -> None:
        self.child = child
        self.leader_says = leader_says
        self.scripts: List[bytes] = []
        self.asked: List[str] = []

    def psql(self, *_arguments: Any, **named: Any) -> Child:
        self.scripts.append(named["script"])
        return self.child

    def copy_to(self, statement: str, blocks: RowBlocks) -> int:
        self.asked.append(statement)
        blocks.write(b"a\nb\n")
        return self.leader_says


def copier(fake: Fake, sink: Sink) -> copying.DataCopier:
    return copying.DataCopier(fake, fake, fake, "db", lambda: sink.blocks, lambda size: None)  # type: ignore[arg-type]


TASK = copying.CopyTask((item(0),), 100)


def test_copier_counts_what_came() -> None:
    sink = Sink(2000)
    data = copier(Fake(Child([b"a\nb\n\\. 2\n"])), sink)
    data.copy(TASK)
    assert data.rows == {0: 2} and len(sink.writer.blocks) == 1


def test_names_of_several_lines_are_the_leader_s_to_copy() -> None:
    odd = CopyItem(1, TableFacts(1, "s", "a\nb", ('"a"',), 1, 1, True))
    sink, fake = Sink(2000), Fake(Child([b"a\n\\. 1\n"]))
    data = copier(fake, sink)
    data.copy(copying.CopyTask((item(0), odd), 1))
    assert data.rows == {0: 1} and data.copy_blocked() == 0
    assert data.rows[1] == 2 and fake.asked == ['COPY "s"."a\nb" ("a") TO STDOUT']
    assert b"a\nb" not in fake.scripts[0]


def test_a_good_end_of_output_is_not_believed_without_the_exit_status() -> None:
    sink = Sink(2000)
    with pytest.raises(BackupError, match="psql: ERROR: gone"):
        copier(Fake(Child([b"a\n\\. 1\n"], failure="psql: ERROR: gone")), sink).copy(TASK)
    assert sink.writer.blocks == []


def test_psql_s_own_words_before_the_short_output() -> None:
    with pytest.raises(BackupError, match="psql: FATAL: terminated"):
        copier(Fake(Child([b"a\n"], failure="psql: FATAL: terminated")), Sink(2000)).copy(TASK)
    with pytest.raises(BackupError, match="in the middle of"):
        copier(Fake(Child([b"a\n"])), Sink(2000)).copy(TASK)


def test_a_blocked_table_is_copied_by_the_leader() -> None:
    sink = Sink(2000)
    fake = Fake(Child([], failure="55P03", stderr="ERROR:  55P03"))
    data = copier(fake, sink)
    data.copy(TASK)
    assert data.rows == {}
    assert data.copy_blocked() == 1
    assert data.rows == {0: 2} and fake.asked == [TASK.items[0].out_statement()]


def test_the_leader_s_count_is_compared() -> None:
    fake = Fake(Child([], failure="55P03", stderr="55P03"), leader_says=3)
    data = copier(fake, Sink(2000))
    data.copy(TASK)
    with pytest.raises(BackupError, match="sent 3 rows.*2 arrived"):
        data.copy_blocked()


def test_the_script_takes_the_snapshot_and_asks_for_every_item() -> None:
    fake = Fake(Child([said([], [])]))
    copier(fake, Sink(2000)).copy(copying.CopyTask((item(0), item(1)), 1))
    (script,) = fake.scripts
    text = script.decode()
    assert "SET TRANSACTION SNAPSHOT '0003-1'" in text and "REPEATABLE READ, READ ONLY" in text
    assert 'LOCK TABLE ONLY "s"."t0", ONLY "s"."t1" IN ACCESS SHARE MODE NOWAIT;' in text
    for each in (item(0), item(1)):
        assert each.out_command() + "\n\\echo '\\\\.' :ROW_COUNT\n" in text
