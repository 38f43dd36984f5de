# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whatever happened to an encrypted object: it is read as it was, or refused before anything of it is used.

The chunks are made small here, so that a small sample has many. That other programs agree on the real size is in
`test_cipher`.
"""

from __future__ import annotations

import copy
from typing import Any, Callable, Iterator, List

import pytest
from _pgstream import age, age_header
from _pgstream.errors import IntegrityError, UsageError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.agekeys import KeyPair
from tests.support.archives import PAIR, Sample, encrypted, read_all, restored, sample_of, store_of, wrong
from tests.support.mutations import BYTES, Choose

CHUNK = 256
SEALED = CHUNK + age.TAG
MANY = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(age, "CHUNK", CHUNK)


class Stored:
    """An encrypted sample, taken apart."""

    def __init__(self, sample: Sample) -> None:
        self.sample = copy.copy(sample)
        self.sample.key += ".age"
        self.data = encrypted(sample)
        header = age_header.parse(self.data, True)
        assert header is not None
        self.header = header
        self.start = header.length + age.NONCE
        self.head, body = self.data[: self.start], self.data[self.start :]
        self.chunks = [body[at : at + SEALED] for at in range(0, len(body), SEALED)]


@pytest.fixture
def stored(small_chunks: None) -> Stored:
    return Stored(sample_of("gzip"))


@pytest.fixture
def other(small_chunks: None) -> Stored:
    return Stored(sample_of("gzip", 1))


def refused(stored: Stored, data: bytes) -> None:
    """Exit status 6, and nothing was fed to any program."""
    with pytest.raises(IntegrityError):
        read_all(data, stored.sample.key)
    outcome = restored(data, stored.sample.key)
    assert isinstance(outcome.error, IntegrityError) and not outcome.fed, outcome.error


def fault(stored: Stored, data: bytes) -> str:
    """As `wrong`, but what no identity opens is refused too: of a header whose own sum is lost, no more can be said."""
    try:
        read_all(data, stored.sample.key)
    except UsageError as error:
        assert "encrypted for others" in error.message
        outcome = restored(data, stored.sample.key)
        return "" if isinstance(outcome.error, UsageError) and not outcome.fed else "a restore was not refused"
    except IntegrityError:
        pass
    return wrong(stored.sample, data)


def test_an_object_nobody_touched(stored: Stored) -> None:
    assert len(stored.chunks) > 10 and stored.header.marked
    assert read_all(stored.data, stored.sample.key) == stored.sample.sql
    assert wrong(stored.sample, stored.data) == ""


@pytest.mark.parametrize("mutator", BYTES, ids=lambda mutator: mutator.__name__)
@MANY
@given(data=st.data())
def test_whole_or_refused(stored: Stored, mutator: Callable[[Choose, bytes], bytes], data: st.DataObject) -> None:
    changed = mutator(lambda low, high: data.draw(st.integers(low, high)), stored.data)
    assert fault(stored, changed) == ""


def test_a_bit_of_any_byte(stored: Stored) -> None:
    """Of the header too: the sum in it tells damage from the identity of somebody else."""
    for place in range(len(stored.data)):
        changed = bytearray(stored.data)
        changed[place] ^= 1 << place % 8
        with pytest.raises(IntegrityError):
            read_all(bytes(changed), stored.sample.key)
        if place % 8 == 0:
            assert wrong(stored.sample, bytes(changed)) == "", place


def test_cut_off_anywhere(stored: Stored) -> None:
    for length in range(0, len(stored.data), 3):
        refused(stored, stored.data[:length])


def test_cut_off_after_a_chunk(stored: Stored) -> None:
    """What is left is whole chunks, each of them untouched: only that none is the last one gives it away."""
    for count in range(len(stored.chunks)):
        refused(stored, stored.head + b"".join(stored.chunks[:count]))


def arrangements(stored: Stored, other: Stored) -> Iterator[List[bytes]]:
    chunks = stored.chunks
    for first in range(len(chunks)):
        for second in range(first + 1, len(chunks)):
            swapped = list(chunks)
            swapped[first], swapped[second] = chunks[second], chunks[first]
            yield swapped
        yield chunks[:first] + chunks[first + 1 :]
        yield chunks[: first + 1] + chunks[first:]
        yield chunks[:first] + other.chunks[first : first + 1] + chunks[first + 1 :]
    yield chunks[::-1]
    yield [*chunks, chunks[-1]]
    yield [*chunks, b""]


def test_chunks_in_another_order_missing_twice_or_of_another_backup(stored: Stored, other: Stored) -> None:
    seen = 0
    for chunks in arrangements(stored, other):
        data = stored.head + b"".join(chunks)
        if data != stored.data:
            seen += 1
            with pytest.raises(IntegrityError):
                read_all(data, stored.sample.key)
            assert wrong(stored.sample, data) == ""
    assert seen > 100


def test_anything_after_the_end(stored: Stored) -> None:
    for more in (b"\n", bytes(16), bytes(SEALED), stored.data, stored.chunks[-1]):
        refused(stored, stored.data + more)


def test_the_head_of_one_and_the_body_of_another(stored: Stored, other: Stored) -> None:
    refused(stored, stored.head + b"".join(other.chunks))
    refused(stored, stored.data[: stored.header.length] + other.data[other.header.length :])


def test_a_chunk_that_says_it_is_the_last(stored: Stored) -> None:
    """Made by someone who has the file key, as every recipient does: nothing may follow it."""
    payload = _payload(stored)
    plain = [payload.open(n, n == len(stored.chunks) - 1, chunk) for n, chunk in enumerate(stored.chunks)]
    for place in (0, 3):
        chunks = list(stored.chunks)
        chunks[place] = payload.seal(place, True, plain[place])
        refused_or_whole(stored, stored.head + b"".join(chunks))
    last = len(plain) - 1
    refused(stored, stored.head + b"".join(stored.chunks[:-1]) + payload.seal(last, False, plain[last]))


def test_an_empty_chunk_after_full_ones(stored: Stored) -> None:
    payload = _payload(stored)
    body = payload.seal(0, False, bytes(CHUNK)) + payload.seal(1, True, b"")
    with pytest.raises(IntegrityError, match="last encrypted chunk is not whole"):
        store_of(stored.head + body, stored.sample.key).contents_size(stored.sample.key, len(stored.head + body))


def refused_or_whole(stored: Stored, data: bytes) -> None:
    with pytest.raises(IntegrityError):
        read_all(data, stored.sample.key)
    assert wrong(stored.sample, data) == ""


def _payload(stored: Stored) -> Any:
    file_key = age.open_header(stored.header, [PAIR.secret])
    assert file_key is not None
    return age.Payload(file_key, stored.head[stored.header.length :])


# --- headers ----------------------------------------------------------------------------------------------------------


def _with(stored: Stored, old: bytes, new: bytes) -> bytes:
    assert old in stored.head
    return stored.data.replace(old, new, 1)


HEADERS = [
    (b"org/v1\n", b"org/v2\n"), (b"org/v1\n", b"org/v1\r\n"),
    (b"-> X25519 ", b"-> X25519  "), (b"-> X25519 ", b"->  X25519 "), (b"-> X25519 ", b"-> \x7f "),
    (b"-> pgstream 1", b"-> pgstream 2"), (b"-> pgstream 1", b"-> pgstreaM 1"), (b"\n\n--- ", b"\n--- "),
    (b"\n--- ", b"\n---"), (b"\n--- ", b"\n---  "), (b"\n--- ", b"\n-> x\n\n--- "), (b"\n\n---", b"\nAA\n---"),
]  # fmt: skip


@pytest.mark.parametrize("old, new", HEADERS, ids=range(len(HEADERS)))
def test_a_header_that_is_not_as_it_was(stored: Stored, old: bytes, new: bytes) -> None:
    refused(stored, _with(stored, old, new))


def test_a_header_without_our_mark_or_any_stanza(stored: Stored) -> None:
    start = stored.data.index(b"-> pgstream")
    refused(stored, stored.data[:start] + stored.data[stored.data.index(b"---") :])
    refused(stored, b"age-encryption.org/v1\n" + stored.data[stored.data.index(b"---") :])


def test_a_header_without_end_costs_bounded_reading(stored: Stored) -> None:
    endless = b"age-encryption.org/v1\n" + b"-> grease x\n\n" * 100000
    store = store_of(endless, stored.sample.key)
    with pytest.raises(IntegrityError, match="has no end"):
        store.contents_size(stored.sample.key, len(endless))
    assert sum(length for _offset, length in store._inner.requests) <= 80 << 10  # type: ignore[attr-defined]


def test_recipients_of_other_kinds_are_passed_over(stored: Stored) -> None:
    """As other programs pass over our mark."""
    stanzas = [age_header.Stanza("grease", ("a", "b"), bytes(48)), age_header.Stanza("ssh-ed25519", ("AA",), bytes(32))]
    file_key = bytes(range(16))
    ours = age_header.parse(age.seal_header(file_key, [PAIR.public]), True)
    assert ours is not None
    signed = age_header.unsigned([*stanzas, ours.stanzas[0]])
    head = signed + b" " + age_header.encode(age._mac(file_key, signed)).encode() + b"\n"
    parsed = age_header.parse(head, True)
    assert parsed is not None and parsed.length == len(head) and len(parsed.stanzas) == 4 and parsed.marked
    assert age.open_header(parsed, [PAIR.secret]) == file_key
    assert age.open_header(parsed, [KeyPair().secret]) is None


@pytest.mark.parametrize("stanza", [
    age_header.Stanza("X25519", ()), age_header.Stanza("X25519", ("AA",), bytes(32)),
    age_header.Stanza("X25519", (age_header.encode(bytes(31)),), bytes(32)),
    age_header.Stanza("X25519", (age_header.encode(b"\1" * 32),), bytes(31)),
    age_header.Stanza("X25519", (age_header.encode(b"\1" * 32), "more"), bytes(32)),
    age_header.Stanza("X25519", (age_header.encode(bytes(32)),), bytes(32)),  # a point of low order
], ids=range(6))  # fmt: skip
def test_a_malformed_recipient_beside_a_good_one(stanza: age_header.Stanza) -> None:
    file_key = bytes(range(16))
    good = age_header.parse(age.seal_header(file_key, [PAIR.public]), True)
    assert good is not None
    signed = age_header.unsigned([good.stanzas[0], stanza])
    head = age_header.parse(signed + b" " + age_header.encode(age._mac(file_key, signed)).encode() + b"\n", True)
    assert head is not None
    with pytest.raises(IntegrityError, match="recipient's s"):
        age.open_header(head, [PAIR.secret])


def test_a_passphrase_beside_recipients() -> None:
    signed = age_header.unsigned([age_header.Stanza("scrypt", ("AA", "18"), bytes(32))])
    with pytest.raises(IntegrityError, match="passphrase beside"):
        age_header.parse(signed + b" " + age_header.encode(bytes(32)).encode() + b"\n", True)


def test_lines_of_another_shape(stored: Stored) -> None:
    """What one reader of age takes and another does not would be two truths about one object."""
    for old, new in ((b"\n--- ", b"\n---x "), (b"\n--- ", b"\n----- ")):
        with pytest.raises(IntegrityError, match="last line is no MAC"):
            age_header.parse(_with(stored, old, new), True)
    long = age_header.encode(bytes(60)).encode()  # 80 letters, which belong on two lines
    with pytest.raises(IntegrityError, match="too long"):
        age_header.parse(b"age-encryption.org/v1\n-> x\n" + long + b"\n--- " + b"A" * 43 + b"\n", True)


def test_an_armored_file_is_told_as_such() -> None:
    with pytest.raises(IntegrityError, match="ASCII armor"):
        age_header.parse(b"-----BEGIN AGE ENCRYPTED FILE-----\nYWdl", True)


@given(body=st.binary(max_size=200), arguments=st.lists(st.text("abc+/=~!", min_size=1), max_size=3))
def test_stanzas_of_any_length_come_back(body: bytes, arguments: List[str]) -> None:
    stanza = age_header.Stanza("x", tuple(arguments), body)
    assert age_header._stanzas(stanza.text()[:-1].split(b"\n")) == [stanza]


@pytest.mark.parametrize("text", ["A", "AB", "AAB", "AA=", "AA==", "A A", "AA\n", "A-_A"])
def test_base64_is_canonical(text: str) -> None:
    with pytest.raises(ValueError):
        age_header.decode(text)
