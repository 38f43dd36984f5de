# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Objects by someone who means harm and can compute checksums: refused, in little memory and with little read.

Work is counted in bytes, not in seconds; memory is limited by the kernel, in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from _pgstream import archive, codec, framing, index
from _pgstream.archive import ArchiveWriter
from _pgstream.errors import BackupError, IntegrityError
from _pgstream.index import index_text, parse_index
from _pgstream.loading import only
from _pgstream.model import COMPRESSIONS, Block

from tests.support.archives import SETTINGS, MemoryStore, Sample, read_all, restored, sample_of, wrong
from tests.support.mutations import forged, lines_of, rebuilt, text_of, with_text

LIMITED = Path(__file__).resolve().parents[1] / "support" / "limited.py"
MEMORY = 192  # MiB: what a whole restore may take
GIB = 1 << 30
FIRST_DATA = 2  # number of a sample's first block with rows
COMPRESSED = ("gzip", "zstd")


def bomb(compression: str, size: int) -> bytes:
    """A payload of about a thousandth of `size` bytes (or much less) that decompresses to `size` zeros."""
    if compression == "gzip":
        piece = zlib.compressobj(9, wbits=-15)
        mebibyte = piece.compress(bytes(1 << 20)) + piece.flush(zlib.Z_FULL_FLUSH)  # each stands for itself
        return mebibyte * (size >> 20) + b"\x03\0" + b"\0" * 4 + (size & 0xFFFFFFFF).to_bytes(4, "little")
    run = (1 << 1 | 128 << 10 << 3).to_bytes(3, "little") + b"\0"  # 128 KiB of one byte (RFC 8878, 3.1.1.2)
    last = (1 | 1 << 1 | 128 << 10 << 3).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0\x58" + run * (size // (128 << 10) - 1) + last


def with_block(sample: Sample, number: int, payload: bytes, raw_length: int) -> bytes:
    """One block holds something else, and everything agrees on it."""
    return forged(sample, *rebuilt(sample, number, payload, raw_length=raw_length))


def with_index_payload(sample: Sample, payload: bytes, raw_length: int) -> bytes:
    """Any stored bytes as the index block."""
    stored = framing.announce(sample.compression, "index", len(payload), raw_length, 0, -1) + payload
    where = (sample.index.stored_bytes, len(stored), raw_length)
    return b"".join(
        [*sample.blocks, stored, framing.footer(sample.compression, *where, hashlib.sha256(stored).digest())]
    )


def small_bombs(sample: Sample) -> Iterator[Tuple[str, bytes]]:
    """Little that unpacks to much: named by what is said of it."""
    ten = bomb(sample.compression, 10 * GIB)
    yield "rows, 1 MB said", with_block(sample, FIRST_DATA, ten, 10**6)
    yield "rows, all said", with_block(sample, FIRST_DATA, ten, 10 * GIB)
    yield "schema, 1 MB said", with_block(sample, 0, ten, 10**6)
    yield "schema, 2 GiB said", with_block(sample, 0, ten, 2 * GIB)
    yield "index, 1 MB said", with_index_payload(sample, ten, 10**6)
    yield "index, all said", with_index_payload(sample, ten, 10 * GIB)
    yield "index, as much as it may", with_index_payload(sample, ten, index.MAX_INDEX)


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """The lengths of all pieces that come out of the decompressors."""
    lengths: List[int] = []
    pieces: Callable[..., Iterator[bytes]] = framing._pieces

    def counted(*arguments: Any) -> Iterator[bytes]:
        for piece in pieces(*arguments):
            lengths.append(len(piece))
            yield piece

    monkeypatch.setattr(framing, "_pieces", counted)
    return lengths


def in_little_memory(data: bytes, key: str, directory: Path, mebibytes: int = MEMORY) -> str:
    """How a restore ended in a process that may not take more."""
    path = directory / "object"
    path.write_bytes(data)
    argv = [sys.executable, str(LIMITED), str(path), key, str(mebibytes)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    return done.stdout.decode()


@pytest.mark.parametrize("compression", COMPRESSED)
def test_bombs(compression: str, unpacked: List[int], tmp_path: Path) -> None:
    """Refused when more has come out than was said, or unopened because too much was said."""
    sample = sample_of(compression)
    for name, data in small_bombs(sample):
        said = in_little_memory(data, sample.key, tmp_path)  # first: a reader that is not bounded must not get ours
        assert said.startswith("IntegrityError: "), (name, said)
        del unpacked[:]
        outcome = restored(data, sample.key)
        assert isinstance(outcome.error, IntegrityError), (name, outcome.error)
        assert sum(unpacked) <= index.MAX_LINE + 2 * codec.CHUNK, name
        assert not any(b"\0" in fed for program, fed in outcome.fed if program == "psql"), name


def test_the_limit_of_memory_is_felt(tmp_path: Path) -> None:
    """The limit means something: a whole index of 20 MB is refused for want of memory where there is none."""
    sample = sample_of("gzip")
    lines = lines_of(sample.index)
    more = [{"table": dict(lines[1]["table"], number=number)} for number in range(200000)]
    data = forged(sample, sample.blocks, [lines[0], *more, *lines[4:]])
    assert "out of memory" in in_little_memory(data, sample.key, tmp_path, 4)
    assert in_little_memory(data, sample.key, tmp_path, 512).startswith("IntegrityError: ")


ODD: Dict[str, Callable[[List[Any]], bytes]] = {
    "deep arrays": lambda lines: b"[" * 10**6 + b"]" * 10**6,
    "deep objects": lambda lines: b'{"a":' * 10**6 + b"1" + b"}" * 10**6,
    "a wide array": lambda lines: b'{"table":[' + b"[]," * 10**6 + b"[]]}",
    "a number of a million digits": lambda lines: b'{"index":' + b"9" * 10**6 + b"}",
    "a negative number of a million digits": lambda lines: b'{"index":-' + b"9" * 10**6 + b"}",
    "a fraction of a million digits": lambda lines: b'{"index":0.' + b"9" * 10**6 + b"}",
    "an exponent": lambda lines: b'{"index":1e999999999}',
    "a long line": lambda lines: b'{"index":"' + b"a" * (index.MAX_LINE + 1) + b'"}',
    "a long name of a field": lambda lines: b'{"table":{"' + b"a" * (3 << 20) + b'":1}}',
    "a long version": lambda lines: b'{"index":{"format_version":"' + b"9" * (3 << 20) + b'"}}',
    "many pieces of tables": lambda lines: json.dumps(
        {"block": dict(lines[-1]["block"], tables=[[0, 0]] * 300000)}
    ).encode(),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_lines(name: str, tmp_path: Path) -> None:
    sample = sample_of("gzip")
    lines = lines_of(sample.index)
    line = ODD[name](lines)
    head = b"" if line.startswith(b'{"index"') else text_of(lines[:4])
    data = with_text(sample, sample.blocks, (head or b"-- \n") + b"-- " + line + b"\n")
    said = in_little_memory(data, sample.key, tmp_path)
    assert said.startswith("IntegrityError: ") and len(said) < 1000, said[:2000]


def with_fields(sample: Sample, number: int, **fields: Any) -> bytes:
    """The index's text with other fields in one line."""
    lines = lines_of(sample.index)
    ((_kind, held),) = lines[number].items()
    held.update(fields)
    return text_of(lines)


def test_what_is_too_long_or_too_many_is_refused_for_that() -> None:
    """Each is well-formed, and agrees with all the rest."""
    sample = sample_of("gzip")
    for said, text in (
        ("line of more than", with_fields(sample, 0, correlation_id="a" * index.MAX_LINE)),
        ("a number of 21 digits", with_fields(sample, 1, oid=10**20)),
        ("a number of 21 digits", with_fields(sample, 1, oid=-(10**19))),
        ("more pieces of tables", with_fields(sample, 4, tables=[[0, 0]] * 100)),
    ):
        with pytest.raises(IntegrityError, match=said):
            parse_index([text])
    parse_index([with_fields(sample, 1, oid=10**20 - 1)])
    parse_index([with_fields(sample, 0, correlation_id="a" * (3 << 20))])
    parse_index([with_fields(sample, 4, tables=[[0, 0], [1, 0], [2, 0]])])


@pytest.mark.parametrize("value", [1.0, True, "1", None, [1], 1e3])
def test_numbers_are_whole_numbers(value: Any) -> None:
    sample = sample_of("gzip")
    fields: List[Dict[str, Any]] = [{"tables": [[value, 1]]}, {"tables": [[1, value]]}, {"rows": value}]
    for changed in [*fields, {"table": value}, {"offset": value}, {"length": value}, {"raw_length": value}]:
        with pytest.raises(IntegrityError):
            parse_index([with_fields(sample, 4 + FIRST_DATA, **changed)])


TEXTS = ["\0", "a\0b", "\ud800", "\udfff", "a\udc80b"]
FIELDS: List[Tuple[int, Tuple[Any, ...]]] = [
    (0, ("index", "database", "name")), (0, ("index", "database", "owner")), (0, ("index", "database", "encoding")),
    (0, ("index", "database", "comment")), (0, ("index", "database", "acl", 1, 0)),
    (0, ("index", "database", "settings", 0, 2)), (0, ("index", "correlation_id")), (1, ("table", "schema")),
    (1, ("table", "name")), (4, ("block", "sha256")),
]  # fmt: skip


@pytest.mark.parametrize("number,path", FIELDS, ids=str)
def test_text_that_no_server_has(number: int, path: Tuple[Any, ...]) -> None:
    """What libraries and programs refuse in ways of their own must not reach them."""
    sample = sample_of("none")
    for text in TEXTS:
        lines = lines_of(sample.index)
        holder = lines[number]
        for step in path[:-1]:
            holder = holder[step]
        holder[path[-1]] = text
        with pytest.raises(IntegrityError):
            read_all(forged(sample, sample.blocks, lines), sample.key)


def test_odd_names_are_only_names() -> None:
    """What a server does have comes back letter by letter, and is in a comment line whatever it is."""
    sample = sample_of("gzip")
    odd = "a\n\\! rm\r\u2028\u202e\U0001f600 '; --\x7f\x1b"
    lines = lines_of(sample.index)
    lines[1]["table"]["name"] = lines[0]["index"]["database"]["owner"] = odd
    text = text_of(lines)
    assert all(line.startswith(b"-- ") for line in text.split(b"\n")[:-1]) and text.isascii()
    found = parse_index([text])
    assert (found.tables[0].name, found.database.owner) == (odd, odd)
    assert parse_index([index_text(found)]) == found


@pytest.mark.parametrize("privilege", ["ALL", "connect", "CONNECT ON DATABASE x TO eve; --", "", "SELECT"])
def test_a_privilege_is_one_of_a_database(privilege: str) -> None:
    """It is the one part of a GRANT that cannot be quoted."""
    sample = sample_of("gzip")
    lines = lines_of(sample.index)
    lines[0]["index"]["database"]["acl"][0][1] = privilege
    with pytest.raises(IntegrityError, match="grants what no database has"):
        read_all(forged(sample, sample.blocks, lines), sample.key)


@pytest.mark.parametrize("encoding", ["UTF8'; SELECT 1; --", "UTF8\n", "\u00dcTF8", "utf8", ""])
def test_an_encoding_is_a_name(encoding: str) -> None:
    """It is written into the settings of every run."""
    sample = sample_of("gzip")
    lines = lines_of(sample.index)
    lines[0]["index"]["database"]["encoding"] = encoding
    with pytest.raises(IntegrityError, match="an encoding that is none"):
        read_all(forged(sample, sample.blocks, lines), sample.key)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_rows_are_in_the_encoding_of_their_block(compression: str) -> None:
    """Whatever the index says, what a block sets comes after it: a server reads its rows as they were written."""
    sample = sample_of(compression)
    lines = lines_of(sample.index)
    lines[0]["index"]["database"]["encoding"] = "LATIN1"
    data = forged(sample, sample.blocks, lines)
    assert wrong(sample, data) == ""
    fed = next(fed for _name, fed in restored(data, sample.key).fed if b"\nCOPY " in fed)
    assert fed.index(b"SET client_encoding = 'LATIN1'") < fed.index(SETTINGS) < fed.index(b"\nCOPY ")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_footers_that_point_anywhere(compression: str) -> None:
    """However long the index is said to be, no more than there can be is asked for."""
    sample = sample_of(compression)
    size = len(sample.data)
    numbers = (0, 1, 47, 1000, size - 1, size, size + 1, 1 << 31, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
    for offset in numbers:
        for length in (*numbers, max(0, size - len(sample.footer) - offset)):
            for raw in (0, len(index_text(sample.index)), (1 << 64) - 1):
                where = (offset, length, raw)
                data = sample.data[: -len(sample.footer)] + framing.footer(compression, *where, bytes(32))
                store = MemoryStore(data, sample.key)
                with pytest.raises(IntegrityError):
                    read_index(store, size)
                assert sum(length for _offset, length in store.requests) <= size + framing.LONGEST_FOOTER
                assert len(store.requests) <= 2


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_index_that_announces_itself_otherwise(compression: str) -> None:
    sample = sample_of(compression)
    text = index_text(sample.index)
    payload = sample.index_block[framing.HEADER_LENGTHS[compression] :]
    for section, longer, more in (("post", 0, 0), ("index", 1, 0), ("index", 0, 1)):
        stored = framing.announce(compression, section, len(payload) + longer, len(text) + more, 0, -1) + payload
        where = (sample.index.stored_bytes, len(stored), len(text))
        end = framing.footer(compression, *where, hashlib.sha256(stored).digest())
        data = b"".join([*sample.blocks, stored, end])
        with pytest.raises(IntegrityError, match="does not point to an index"):
            read_index(MemoryStore(data, sample.key), len(data))


def read_index(store: MemoryStore, size: int) -> Any:
    return archive.read_index(lambda offset, length: store.read(store.key, offset, length), size)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_no_more_is_read_than_is_needed(compression: str) -> None:
    """Footer and index; of an object without a footer, also its first bytes."""
    sample = sample_of(compression)
    store = MemoryStore(sample.data, sample.key)
    assert read_index(store, len(sample.data)) == sample.index
    assert [length for _offset, length in store.requests] == [framing.LONGEST_FOOTER, len(sample.index_block)]
    foreign = MemoryStore(b"-- PostgreSQL database dump\n" * 100, sample.key)
    assert read_index(foreign, 2800) is None
    assert [length for _offset, length in foreign.requests] == [framing.LONGEST_FOOTER, framing.LONGEST_MARK]


@pytest.mark.parametrize("change", [
    lambda block: block.update(length=(4 << 30) + 1),
    lambda block: block.update(length=1 << 62),
    lambda block: block.update(length=0),
    lambda block: block.update(length=47),
    lambda block: block.update(length=-5),
    lambda block: block.update(offset=-1),
    lambda block: block.update(offset=block["offset"] - 1),
    lambda block: block.update(raw_length=(4 << 30) + 1),
    lambda block: block.update(raw_length=-1),
    lambda block: block.update(tables=[["0", "1"]]),
    lambda block: block.update(tables=[[True, False]]),
    lambda block: block.update(tables=["01"]),
], ids=range(12))  # fmt: skip
def test_blocks_that_cannot_be(change: Callable[[Dict[str, Any]], None]) -> None:
    """Also where the next block and all sums agree with it."""
    sample = sample_of("gzip")
    lines = lines_of(sample.index)
    entry, following = lines[4 + FIRST_DATA]["block"], lines[5 + FIRST_DATA]["block"]
    length, raw_length, end = entry["length"], entry["raw_length"], entry["offset"] + entry["length"]
    change(entry)
    following["offset"] = entry["offset"] + entry["length"]
    following["length"] += end - following["offset"]
    lines[0]["index"]["raw_bytes"] += entry["raw_length"] - raw_length
    assert (length, raw_length) != (entry["length"], entry["raw_length"]) or entry["offset"] or entry["tables"]
    data = forged(sample, sample.blocks, lines)
    with pytest.raises(IntegrityError):
        read_index(MemoryStore(data, sample.key), len(data))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_rows_that_only_the_server_can_count(compression: str) -> None:
    """A block, its table and all sums say one row more than there is."""
    sample = sample_of(compression)
    old = sample.index.blocks[FIRST_DATA]
    payload = sample.blocks[FIRST_DATA][framing.HEADER_LENGTHS[compression] :]
    blocks, lines = rebuilt(sample, FIRST_DATA, payload, rows=old.rows + 1)
    (number, rows) = old.tables[0]
    lines[4 + FIRST_DATA]["block"]["tables"][0] = [number, rows + 1]
    lines[1 + number]["table"]["rows"] += 1
    lines[0]["index"]["rows"] += 1
    data = forged(sample, blocks, lines)
    assert read_all(data, sample.key) == sample.sql
    error = restored(data, sample.key).error
    assert isinstance(error, IntegrityError) and "the server took %d rows" % rows in str(error)


def test_a_backup_that_no_restore_would_take_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits of the reader are the writer's too."""
    sample = sample_of("gzip")
    written: List[bytes] = []
    writer = ArchiveWriter(written.extend, "gzip")
    with monkeypatch.context() as patch:
        patch.setattr(index, "MAX_SCHEMA", 1000)
        patch.setattr(index, "MAX_BLOCK", 2000)
        writer.text("schema", b"a" * 1000)
        writer.text("pre", b"a" * 2000)
        for section, size in (("schema", 1001), ("data", 2001)):
            with pytest.raises(BackupError, match="more than a restore takes"):
                ArchiveWriter(written.extend, "gzip").text(section, b"a" * size)
        assert len(written) == 4  # announcement and content of the two that were good
    text = index_text(sample.index)
    longest = max(map(len, text.split(b"\n")))
    for name, limit in (("MAX_INDEX", len(text)), ("MAX_LINE", longest)):
        with monkeypatch.context() as patch:
            patch.setattr(archive, name, limit)
            before = len(written)
            ArchiveWriter(written.extend, "gzip").finish(sample.index)
            assert len(written) == before + 2
            patch.setattr(archive, name, limit - 1)
            with pytest.raises(BackupError, match="more than a restore takes"):
                writer.finish(sample.index)
            assert len(written) == before + 2


def test_a_choice_from_a_block_without_rows() -> None:
    with pytest.raises(IntegrityError, match="holds no rows"):
        only(b"SELECT 1;\n", Block("data", 0, 1, 1, "", tables=((0, 1),)), {0})


def test_only_a_megabyte_at_a_time() -> None:
    """A block that is as large as it says comes in small pieces, so that it needs no memory of its size."""
    for compression in COMPRESSED:
        sample = sample_of(compression)
        blocks, _lines = rebuilt(sample, FIRST_DATA, bomb(compression, 64 << 20), raw_length=64 << 20)
        lengths = []
        with pytest.raises(IntegrityError):
            for piece in framing.decode(compression, blocks[FIRST_DATA] + b"x", 64 << 20):
                lengths.append(len(piece))
        assert max(lengths) <= codec.CHUNK
