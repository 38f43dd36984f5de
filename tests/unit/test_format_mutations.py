# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever happened to a stored object: it is read as it was, or refused before anything of it is used."""

from __future__ import annotations

import gzip
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest
from _pgstream import archive, framing, schema
from _pgstream.errors import IntegrityError
from _pgstream.model import COMPRESSIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import format as fuzz
from tests.support.archives import CLOSING, SETTINGS, expected, read_all, restored, sample_of, wrong
from tests.support.mutations import MUTATORS, Mutator

MANY = settings(max_examples=250, deadline=None)
REPOSITORY = Path(__file__).resolve().parents[2]


def refused(compression: str, data: bytes, fed_nothing: bool = False) -> None:
    """Neither the reader nor a restore takes it, not even as a plain dump of somebody else's."""
    key = sample_of(compression).key
    with pytest.raises(IntegrityError):
        read_all(data, key)
    outcome = restored(data, key)
    assert isinstance(outcome.error, IntegrityError), outcome.error
    assert not (fed_nothing and outcome.fed)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_archive_nobody_touched(compression: str) -> None:
    sample = sample_of(compression)
    assert read_all(sample.data, sample.key) == sample.sql and wrong(sample, sample.data) == ""
    programs = [name for name, _fed in expected(compression)]
    assert programs == ["pg_restore", "psql", "psql", "psql", "pg_restore"]
    rows = b"".join(fed for _name, fed in expected(compression)).count(b"\tsome text ")
    assert rows == sample.index.rows == 36


@pytest.mark.parametrize("mutator", MUTATORS, ids=lambda mutator: mutator.__name__)
@MANY
@given(compression=st.sampled_from(COMPRESSIONS), data=st.data())
def test_whole_or_refused(mutator: Mutator, compression: str, data: st.DataObject) -> None:
    def choose(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    sample = sample_of(compression)
    assert wrong(sample, mutator(choose, sample, sample_of(compression, 1))) == ""


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_bit_of_any_byte(compression: str) -> None:
    sample = sample_of(compression)
    for place in range(len(sample.data)):
        changed = bytearray(sample.data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(IntegrityError):
            read_all(bytes(changed), sample.key)
        if place % 4 == 0:
            assert wrong(sample, bytes(changed)) == "", place


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_cut_off_anywhere(compression: str) -> None:
    """Where a block ends too: pg_dump ends the definitions with the words by which a whole plain dump is known."""
    sample = sample_of(compression)
    for length in range(framing.LONGEST_MARK, len(sample.data)):
        refused(compression, sample.data[:length], fed_nothing=True)
    for length in range(framing.LONGEST_MARK):
        assert isinstance(restored(sample.data[:length], sample.key).error, IntegrityError)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_anything_after_the_end(compression: str) -> None:
    sample = sample_of(compression)
    for more in (b"\n", b"\0", bytes(1000), sample.footer, sample.data, sample_of(compression, 1).data):
        refused(compression, sample.data + more, fed_nothing=True)


def test_the_definitions_alone_are_no_dump() -> None:
    """Without their beginning too: what says whose it was is in the text."""
    sample = sample_of("none")
    end = sample.index.blocks[1].offset + sample.index.blocks[1].length
    assert sample.data[:end].endswith(CLOSING)
    for start in (0, 5, sample.index.blocks[1].offset - 10, sample.index.blocks[1].offset):
        assert isinstance(restored(sample.data[start:end], sample.key).error, IntegrityError)


# --- plain dumps, which say nothing of themselves ---------------------------------------------------------------------

PLAIN = b"--\n-- PostgreSQL database dump\n--\n\nCOPY t (a) FROM stdin;\n1\n2\n\\.\n\n"
WHOLE = (CLOSING, CLOSING + b"\\unrestrict a1B2\n\n", CLOSING.replace(b"\n", b"\r\n"),
         b"\n-- PostgreSQL database dump complete\n--\n\n-- Completed on 2026-01-31\n\n--")  # fmt: skip


@pytest.mark.parametrize("closing", WHOLE, ids=range(len(WHOLE)))
def test_a_whole_plain_dump(closing: bytes) -> None:
    outcome = restored(PLAIN + closing, "shop.sql")
    assert outcome.error is None and outcome.fed == [("psql", PLAIN + closing)]


CUT: List[bytes] = [
    b"", CLOSING[:-20], b"COPY mails (text) FROM stdin;\nPostgreSQL database dump complete\n",
    b"COPY mails (text) FROM stdin;\n-- PostgreSQL database dump complete\n--\nanother ma",
    CLOSING + b"COPY more (a) FROM stdin;\n", CLOSING + b"-- \n" * 3000 + b"SELECT 1;",
]  # fmt: skip


@pytest.mark.parametrize("closing", CUT, ids=range(len(CUT)))
def test_a_plain_dump_that_was_cut_off(closing: bytes) -> None:
    """A row may hold the closing words; nothing but comments may follow the line that is meant."""
    outcome = restored(PLAIN + closing, "shop.sql")
    assert isinstance(outcome.error, IntegrityError) and "lacks its last line" in str(outcome.error)


@pytest.mark.parametrize("key", ["shop.sql.gz", "shop.sql.zst"])
def test_a_dump_that_is_not_what_its_name_says(key: str) -> None:
    outcome = restored(PLAIN + CLOSING, key)
    assert isinstance(outcome.error, IntegrityError) and "does not begin as" in str(outcome.error)
    assert outcome.fed == []


def test_a_compressed_dump_of_any_name() -> None:
    """What the bytes say counts for more than the name."""
    for key in ("shop.sql", "shop.sql.gz", "shop.dump", "shop.sql.zst"):
        outcome = restored(gzip.compress(PLAIN + CLOSING), key)
        assert outcome.error is None and outcome.fed == [("psql", PLAIN + CLOSING)]


# --- the fuzzer -------------------------------------------------------------------------------------------------------


def test_a_run_of_the_fuzzer() -> None:
    done = fuzz.run(seed=20260131, count=2000)
    assert sum(done.values()) == 2000 and set(done) == {mutator.__name__ for mutator in MUTATORS}
    assert fuzz.case(3, 14) == fuzz.case(3, 14) != fuzz.case(3, 15)


def test_the_fuzzer_finds_a_reader_that_does_not_look(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """And says how to see it again."""
    kept = tmp_path / "case"
    arguments = ["--seed", "5", "--count", "5000", "--keep", str(kept)]
    with monkeypatch.context() as patch:
        patch.setattr(archive, "check_block", lambda *_block: None)
        assert fuzz.main(arguments) == 1
        said = capsys.readouterr().err
        again = re.search(r"format\.py (--seed 5 --first \d+ --count 1)\n", said)
        assert again is not None
        assert fuzz.main([*again.group(1).split(), "--keep", str(kept)]) == 1
    number = int(again.group(1).split()[3])
    assert kept.read_bytes() == fuzz.case(5, number)[2]
    assert fuzz.main(again.group(1).split()) == 0


def test_the_fuzzer_is_a_script() -> None:
    argv: List[Any] = [sys.executable, str(REPOSITORY / "tests" / "fuzz" / "format.py"), "--seed", "1", "--count", "20"]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd="/", check=False)
    assert done.returncode == 0 and b"seed 1: 20 cases, none wrong" in done.stdout, done.stdout


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_settings_are_made_once_a_run(compression: str) -> None:
    """Each is a round trip, and a run has many blocks; all of them go through one session, and the rest through one."""
    sessions = [fed for name, fed in expected(compression) if name == "psql" and b"COMMIT" in fed]
    settings = schema.in_one_message(b"BEGIN;\n" + SETTINGS)
    runs = sum(fed.count(b"COMMIT\\; ") for fed in sessions)
    assert len(sessions) == 2 and sum(fed.count(settings) for fed in sessions) == runs
    assert not any(SETTINGS in fed for fed in sessions)
    blocks = [block for block in sample_of(compression).index.blocks if block.section == "data"]
    assert len(blocks) > 2 * sessions[0].count(b"COMMIT\\; ")
