# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A store whose objects are encrypted: ranges, sizes, other programs, and what is known without an identity."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Callable, List, Sequence

import pyrage
import pytest
from _pgstream import age, age_header
from _pgstream.cipher import CipherStore
from _pgstream.errors import IntegrityError, NotFoundError, UsageError
from _pgstream.model import Storage
from _pgstream.store.base import Store, open_store
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.agekeys import KeyPair, bech32
from tests.support.archives import MemoryStore

KEY = "shop_2026-01-31T02:00:00Z.sql.gz.age"
CHUNK = age.CHUNK
PAIR, OTHER, THIRD = KeyPair(), KeyPair(), KeyPair()
SIZES = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 17)
CONTENTS = os.urandom(max(SIZES))


def made(tmp_path: Path, contents: bytes, *pairs: KeyPair, cut: Sequence[int] = ()) -> Storage:
    """A directory with one object, written in pieces of these sizes; its storage without any key."""
    storage = Storage(kind="local", directory=str(tmp_path))
    recipients = tuple(pair.recipient for pair in pairs or (PAIR,))
    upload = open_store(replace(storage, age_recipients=recipients)).begin(KEY, True)
    upload.expect(len(contents))
    at = 0
    for size in (*cut, len(contents)):
        upload.write([contents[at : at + size]])
        at += size
    assert upload.commit().size == (tmp_path / KEY).stat().st_size
    return storage


def read_by_us(storage: Storage, pair: KeyPair) -> bytes:
    store = open_store(pair.reads(storage))
    item = store.stat(KEY)
    assert item is not None
    return store.read(KEY, 0, store.contents_size(KEY, item.size))


def over(data: bytes, pair: KeyPair = PAIR) -> Store:
    """A store with these bytes as its object."""
    memory = MemoryStore(data, KEY)
    memory.storage = pair.reads(memory.storage)
    return CipherStore(memory)


@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(tmp_path: Path, size: int) -> None:
    storage = made(tmp_path, CONTENTS[:size], PAIR, OTHER)
    assert read_by_us(storage, PAIR) == read_by_us(storage, OTHER) == CONTENTS[:size]


@settings(max_examples=60, deadline=None)
@given(cut=st.lists(st.sampled_from([0, 1, 100, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 5]), max_size=6))
def test_however_it_is_cut_while_it_is_written(tmp_path_factory: pytest.TempPathFactory, cut: List[int]) -> None:
    storage = made(tmp_path_factory.mktemp("s"), CONTENTS, cut=cut)
    assert read_by_us(storage, PAIR) == CONTENTS


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("stored")
    made(directory, CONTENTS)
    return (directory / KEY).read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_range(stored: bytes, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(CONTENTS)))
    length = data.draw(st.integers(0, len(CONTENTS) - start))
    assert over(stored).read(KEY, start, length) == CONTENTS[start : start + length]


def test_only_the_chunks_that_are_needed_are_read(stored: bytes) -> None:
    """So that a restore can read blocks in parallel, and of a listing's objects nothing but their ends."""
    store = over(stored)
    store.contents_size(KEY, len(stored))
    inner = store._inner  # type: ignore[attr-defined]
    inner.requests.clear()
    assert store.read(KEY, CHUNK + 10, CHUNK - 10) == CONTENTS[CHUNK + 10 : 2 * CHUNK]
    (request,) = inner.requests
    assert request[1] == CHUNK + age.TAG
    assert store.read(KEY, CHUNK - 1, 2) == CONTENTS[CHUNK - 1 : CHUNK + 1]
    assert inner.requests[1] == (request[0] - CHUNK - age.TAG, 2 * (CHUNK + age.TAG))


def test_a_range_past_the_end(stored: bytes) -> None:
    with pytest.raises(IntegrityError, match="ended 5 bytes early"):
        over(stored).read(KEY, len(CONTENTS) - 5, 10)


def test_each_object_has_keys_of_its_own(tmp_path: Path) -> None:
    made(tmp_path, bytes(1000))
    first = (tmp_path / KEY).read_bytes()
    made(tmp_path, bytes(1000))
    second = (tmp_path / KEY).read_bytes()
    assert len(first) == len(second) and first[-1016:] != second[-1016:] and first[:200] != second[:200]


# --- other programs ---------------------------------------------------------------------------------------------------


def by_rage(data: bytes, pair: KeyPair) -> bytes:
    return bytes(pyrage.decrypt(data, [pyrage.x25519.Identity.from_str(pair.identity)]))


def by_age(data: bytes, pair: KeyPair) -> bytes:
    read, write = os.pipe()
    os.write(write, pair.identity.encode())
    os.close(write)
    try:
        argv = ["age", "-d", "-i", "/dev/fd/%d" % read]
        return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True, pass_fds=[read]).stdout
    finally:
        os.close(read)


def to_rage(data: bytes, pairs: Sequence[KeyPair]) -> bytes:
    return bytes(pyrage.encrypt(data, [pyrage.x25519.Recipient.from_str(pair.recipient) for pair in pairs]))


def to_age(data: bytes, pairs: Sequence[KeyPair]) -> bytes:
    arguments = [part for pair in pairs for part in ("-r", pair.recipient)]
    return subprocess.run(["age", *arguments], input=data, stdout=subprocess.PIPE, check=True).stdout


# The reference program too where it is installed; rage comes with the requirements.
READERS = [by_rage, *([by_age] if shutil.which("age") else [])]
WRITERS = [to_rage, *([to_age] if shutil.which("age") else [])]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_others_read_what_we_wrote(tmp_path: Path, reader: Callable[[bytes, KeyPair], bytes], size: int) -> None:
    made(tmp_path, CONTENTS[:size], PAIR, OTHER)
    for pair in (PAIR, OTHER):
        assert reader((tmp_path / KEY).read_bytes(), pair) == CONTENTS[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__)
def test_we_read_what_others_wrote(writer: Callable[[bytes, Sequence[KeyPair]], bytes], size: int) -> None:
    data = writer(CONTENTS[:size], [OTHER, PAIR])
    store = over(data)
    assert store.contents_size(KEY, len(data)) == size
    assert store.read(KEY, 0, size) == CONTENTS[:size]
    assert over(data, THIRD).sealed(KEY, len(data)).marked is False  # type: ignore[union-attr]


def test_many_recipients() -> None:
    """A header that takes two reads."""
    pairs = [KeyPair() for _unused in range(60)]
    data = to_rage(CONTENTS, pairs)
    header = age_header.parse(data, False)
    assert header is not None and header.length > age_header.USUAL
    for pair in (pairs[0], pairs[-1]):
        assert over(data, pair).read(KEY, CHUNK, 10) == CONTENTS[CHUNK : CHUNK + 10]


# --- without an identity, and with others -----------------------------------------------------------------------------


def test_without_an_identity(stored: bytes) -> None:
    store = CipherStore(MemoryStore(stored, KEY))
    for ask in (lambda: store.contents_size(KEY, len(stored)), lambda: store.read(KEY, 0, 1)):
        with pytest.raises(UsageError, match="is encrypted, and no identity is given") as caught:
            ask()
        assert caught.value.exit_code == 2 and "BACKUP_AGE_IDENTITY_FILE" in caught.value.hint
    header = store.sealed(KEY, len(stored))
    assert header is not None and header.marked and [each.kind for each in header.stanzas] == ["X25519", "pgstream"]


def test_with_the_identity_of_somebody_else(stored: bytes) -> None:
    store = over(stored, OTHER)
    with pytest.raises(UsageError, match="is encrypted for others than the 1 identities given") as caught:
        store.contents_size(KEY, len(stored))
    assert caught.value.exit_code == 2 and OTHER.identity not in str(caught.value)
    assert store.sealed(KEY, len(stored)) is not None
    assert over(stored).sealed(KEY, len(stored)) is None


def test_one_of_several_identities_is_enough(tmp_path: Path) -> None:
    storage = made(tmp_path, CONTENTS)
    text = "# old\n%s\n# new\n%s\n" % (OTHER.identity, PAIR.identity)
    assert open_store(replace(storage, age_identity=text)).read(KEY, 0, 100) == CONTENTS[:100]


def test_a_plain_object_passes_as_it_is(tmp_path: Path) -> None:
    storage = Storage(kind="local", directory=str(tmp_path))
    (tmp_path / "a.sql.gz").write_bytes(CONTENTS)
    store = open_store(PAIR.reads(storage))
    assert store.contents_size("a.sql.gz", 77) == 77 and store.sealed("a.sql.gz", 77) is None
    assert store.read("a.sql.gz", 5, 10) == CONTENTS[5:15]


def test_a_name_says_whether_it_is_encrypted(tmp_path: Path) -> None:
    storage = Storage(kind="local", directory=str(tmp_path))
    with pytest.raises(UsageError, match="no recipient is given"):
        open_store(storage).begin(KEY, True)
    with pytest.raises(UsageError, match=r"does not end in \.age"):
        open_store(PAIR.writes(storage)).begin("a.sql.gz", True)
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_store(PAIR.reads(Storage(kind="local", directory=str(tmp_path)))).read(KEY, 0, 1)


def test_keys_that_are_none_are_told_at_once(tmp_path: Path) -> None:
    storage = Storage(kind="local", directory=str(tmp_path))
    with pytest.raises(UsageError, match="not an age recipient"):
        open_store(replace(storage, age_recipients=("age1x",)))
    with pytest.raises(UsageError, match="line 1 of the age identity"):
        open_store(replace(storage, age_identity="secret"))
    low_order = replace(storage, age_recipients=(bech32("age", bytes(32)),))
    with pytest.raises(UsageError, match="point of low order"):
        open_store(low_order).begin(KEY, True)
    assert list(tmp_path.iterdir()) == []


def test_an_object_that_was_replaced_since_its_header_was_read(tmp_path: Path) -> None:
    storage = made(tmp_path, CONTENTS)
    store = open_store(PAIR.reads(storage))
    assert store.read(KEY, 0, 10) == CONTENTS[:10]
    made(tmp_path, CONTENTS)
    with pytest.raises(IntegrityError, match="replaced while it was read"):
        store.read(KEY, 0, 10)
    assert read_by_us(storage, PAIR) == CONTENTS


def test_a_listing_that_is_newer_than_the_header_is_believed(tmp_path: Path) -> None:
    """A store is asked again and again; what it kept of an object goes when the object has another size."""
    storage = made(tmp_path, CONTENTS[:10])
    store = open_store(PAIR.reads(storage))
    assert store.contents_size(KEY, (tmp_path / KEY).stat().st_size) == 10
    made(tmp_path, CONTENTS)
    assert store.contents_size(KEY, (tmp_path / KEY).stat().st_size) == len(CONTENTS)
    assert store.read(KEY, 0, 20) == CONTENTS[:20]


def test_the_writer_reads_its_own_next_object(tmp_path: Path) -> None:
    storage = replace(made(tmp_path, CONTENTS), age_recipients=(PAIR.recipient,), age_identity=PAIR.identity)
    store = open_store(storage)
    for contents in (b"first", b"other"):
        upload = store.begin(KEY, True)
        upload.write([contents])
        upload.commit()
        assert store.read(KEY, 0, 5) == contents


def test_an_upload_that_is_aborted_leaves_nothing(tmp_path: Path) -> None:
    upload = open_store(PAIR.writes(Storage(kind="local", directory=str(tmp_path)))).begin(KEY, True)
    upload.write([CONTENTS])
    upload.abort()
    assert list(tmp_path.iterdir()) == []


def test_the_sizes_announced_suffice() -> None:
    """`expect` is how many bytes may come at the most: parts of one size depend on it."""
    from _pgstream.cipher import _SealedUpload
    from _pgstream.store.base import StoredObject, Upload

    class Counted(Upload):
        announced = size = 0

        def expect(self, estimated: int) -> None:
            self.announced = estimated

        def write(self, pieces: Sequence[bytes]) -> None:
            self.size += sum(map(len, pieces))

        def commit(self) -> StoredObject:
            return StoredObject(KEY, self.size)

    for size in SIZES:
        counted = Counted()
        upload = _SealedUpload(counted, b"h" * 300, age.Payload(bytes(16), bytes(16)))
        upload.expect(size)
        upload.write([CONTENTS[:size]])
        assert upload.commit().size <= counted.announced <= size + 400 + 16 * (size // CHUNK + 1)
