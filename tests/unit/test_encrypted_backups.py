# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host that only encrypts: what its backups are to listings, retention, `fresh_within` and those who want to read."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import List

import pytest
from _pgstream import archive, backup, catalog, listing, outset, prune, verify
from _pgstream.errors import BackupError, IntegrityError, UsageError
from _pgstream.events import Log
from _pgstream.model import BackupRequest, PruneRequest, Retention, Server, Storage, VerifyRequest
from _pgstream.store.base import open_store

from tests.support.agekeys import KeyPair
from tests.support.ledger_runs import run
from tests.support.made import FOREIGN, put_backup

NOW = datetime(2026, 1, 31, 2, 30, tzinfo=timezone.utc)
NIGHT = NOW.replace(minute=0)
DAY = timedelta(days=1)
PAIR, OTHER = KeyPair(), KeyPair()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (prune, listing, outset):
        monkeypatch.setattr(module, "utc_now", lambda: NOW)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Of a host that only encrypts."""
    return PAIR.writes(Storage(kind="local", directory=str(tmp_path), prefix="host1"))


def path_of(storage: Storage, key: str) -> Path:
    return Path(storage.directory, key)


def nights(storage: Storage, count: int) -> List[str]:
    return [put_backup(open_store(storage), NIGHT - number * DAY) for number in range(count)]


def by_another_tool(storage: Storage, moment: datetime) -> str:
    """Encrypted by age, under a name of ours."""
    import pyrage

    key = catalog.new_key(storage, "shop", moment, "gzip")
    recipient = pyrage.x25519.Recipient.from_str(PAIR.recipient)
    path_of(storage, key).parent.mkdir(exist_ok=True)
    path_of(storage, key).write_bytes(pyrage.encrypt(FOREIGN, [recipient]))
    return key


def keys(storage: Storage) -> List[str]:
    return sorted((item.key for item in open_store(storage).list("")), reverse=True)


def pruned(storage: Storage, policy: Retention) -> List[str]:
    prune.prune(PruneRequest(storage, "shop", policy))
    return keys(storage)


# --- names


@pytest.mark.parametrize("compression, extension", [("gzip", ".sql.gz"), ("zstd", ".sql.zst"), ("none", ".sql")])
def test_names(storage: Storage, compression: str, extension: str) -> None:
    key = catalog.new_key(storage, "sh/op", NIGHT, compression)
    assert key == "host1/sh%2Fop_2026-01-31T02:00:00Z" + extension + ".age"
    assert catalog.parse_key(key) == ("sh/op", "2026-01-31T02:00:00Z", "")
    assert catalog.compression_of(key) == compression and catalog.is_templated(storage, key)
    assert catalog.compression_of("a.age") == catalog.compression_of("a.sql.gz.age.age") == ""


# --- retention


@pytest.mark.parametrize("reader", [False, True], ids=["without identity", "with identity"])
def test_retention_of_encrypted_backups(storage: Storage, reader: bool) -> None:
    made = nights(storage, 5)
    seen = replace(storage, age_identity=PAIR.identity if reader else "")
    assert pruned(seen, Retention(keep_last=2)) == made[:2]


def test_retention_where_the_identity_has_changed(storage: Storage) -> None:
    """Old backups are for an old key, which the host that prunes has no more."""
    old = nights(OTHER.writes(storage), 3)
    new = [put_backup(open_store(storage), NIGHT + timedelta(minutes=number)) for number in (20, 10)]
    assert pruned(PAIR.reads(storage), Retention(keep_last=3)) == [*new, old[0]]


@pytest.mark.parametrize("policy", [Retention(keep_last=1), Retention(keep_last=2, min_keep=2)])
def test_what_another_tool_encrypted_is_foreign(storage: Storage, policy: Retention) -> None:
    """It is not removed, and takes no place of one of ours."""
    newest = by_another_tool(storage, NIGHT + timedelta(minutes=5))
    made = nights(storage, 4)
    old = by_another_tool(storage, NIGHT - 30 * DAY)
    assert pruned(storage, policy) == [newest, *made[: policy.keep_last], old]


@pytest.mark.parametrize("damage", ["header", "empty", "plain"])
def test_a_header_that_is_damaged_is_nothing_we_vouch_for(storage: Storage, damage: str) -> None:
    """Not good enough to let the others go, and not ours to remove."""
    made = nights(storage, 3)
    for key in (made[0], made[2]):
        data = bytearray(path_of(storage, key).read_bytes())
        data[60] ^= 1
        path_of(storage, key).write_bytes({"header": bytes(data), "empty": b"", "plain": FOREIGN}[damage])
    assert pruned(storage, Retention(keep_last=1)) == made


def test_plain_backups_before_encrypted_ones(storage: Storage) -> None:
    """A host that begins to encrypt still prunes what it wrote before."""
    plain = [put_backup(open_store(replace(storage, age_recipients=())), NIGHT - day * DAY) for day in (3, 4, 5)]
    made = nights(storage, 2)
    assert pruned(storage, Retention(keep_last=3)) == [*made, plain[0]]


# --- listings


def test_a_listing_without_identity(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    foreign = by_another_tool(storage, NIGHT - DAY)
    one, two = listing.list_backups(storage)
    assert (one.key, one.encrypted, one.foreign, one.rows) == (key, True, False, None)
    assert one.size == path_of(storage, key).stat().st_size and one.compression == "gzip" and one.time
    assert (two.key, two.encrypted, two.foreign) == (foreign, True, True)


def test_a_listing_with_identity(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    plain = put_backup(open_store(replace(storage, age_recipients=())), NIGHT - DAY)
    foreign = by_another_tool(storage, NIGHT - 2 * DAY)
    one, two, three = listing.list_backups(PAIR.reads(storage))
    assert (one.key, one.encrypted, one.foreign, one.rows, one.seconds) == (key, True, False, 3, 90.0)
    assert (two.key, two.encrypted, two.foreign, two.rows) == (plain, False, False, 3)
    assert (three.key, three.encrypted, three.foreign, three.rows) == (foreign, True, True, None)


def test_the_ledger_knows_what_the_listing_cannot(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    size = path_of(storage, key).stat().st_size
    (one,) = listing.list_backups(storage, runs=[run(key=key, stored_bytes=size, rows=3, raw_bytes=2 * size)])
    assert (one.rows, one.ratio, one.foreign, one.encrypted) == (3, 2.0, False, True)


def test_details_need_the_identity(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    with pytest.raises(UsageError, match="no identity is given"):
        catalog.describe(storage, key)
    assert catalog.describe(PAIR.reads(storage), key).rows == 3


# --- backups that exist


def test_an_existing_backup_is_not_made_again(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    request = BackupRequest(Server(), "shop", storage, key=key)
    result = backup.back_up(request, Log())
    assert not result.changed and result.message == "%s exists already, and is encrypted" % key
    fresh = backup.back_up(replace(request, key="", fresh_within=7200), Log())
    assert not fresh.changed and fresh.key == key
    seen = replace(storage, age_identity=PAIR.identity)
    assert backup.back_up(BackupRequest(Server(), "shop", seen, key=key), Log()).rows == 3


def test_one_with_a_damaged_header_is_no_reason_to_go_without_another(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    data = path_of(storage, key).read_bytes()
    path_of(storage, key).write_bytes(data.replace(b"\n-> pgstream", b"\n-> pgstreaM", 1))
    request = BackupRequest(Server(host="/nowhere"), "shop", storage, fresh_within=7200)
    with pytest.raises(BackupError) as caught:  # it goes on to the server, and finds none
        backup.back_up(request, Log())
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "key, message", [("mine.sql.gz", r"does not end in \.age"), ("mine.sql.zst.age", "compression")]
)
def test_a_key_that_says_something_else(storage: Storage, key: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        backup.back_up(BackupRequest(Server(), "shop", storage, key=key), Log())
    with pytest.raises(UsageError, match="no recipient is given"):
        plain = replace(storage, age_recipients=())
        backup.back_up(BackupRequest(Server(), "shop", plain, key="mine.sql.gz.age"), Log())


# --- verification


@pytest.mark.parametrize("level", ["index", "content"])
def test_a_verification_reads_everything(storage: Storage, level: str) -> None:
    (key,) = nights(storage, 1)
    result = verify.verify(VerifyRequest(PAIR.reads(storage), key, level, jobs=1), Log())
    assert result.verified and result.rows == 3 and not result.foreign
    size = path_of(storage, key).stat().st_size
    assert result.stored_bytes == size and (level == "index" or result.bytes_read > size * 0.8)


@pytest.mark.parametrize("level", ["index", "content", "restore"])
def test_a_verification_without_the_identity_is_a_fault_of_the_call(storage: Storage, level: str) -> None:
    (key,) = nights(storage, 1)
    with pytest.raises(UsageError, match="no identity is given"):
        verify.verify(VerifyRequest(storage, key, level), Log())
    with pytest.raises(UsageError, match="for others than the 1 identities"):
        verify.verify(VerifyRequest(OTHER.reads(storage), key, level), Log())


def test_a_verification_finds_a_damaged_byte_anywhere(storage: Storage) -> None:
    (key,) = nights(storage, 1)
    data = path_of(storage, key).read_bytes()
    for place in range(0, len(data), 7):
        changed = bytearray(data)
        changed[place] ^= 1
        path_of(storage, key).write_bytes(changed)
        with pytest.raises(IntegrityError):
            verify.verify(VerifyRequest(PAIR.reads(storage), key, jobs=1), Log())


def test_a_dump_that_another_tool_encrypted(storage: Storage) -> None:
    import pyrage

    dump = b"--\n-- PostgreSQL database dump\n--\nSELECT 1;\n--\n-- PostgreSQL database dump complete\n--\n"
    recipient = pyrage.x25519.Recipient.from_str(PAIR.recipient)
    path = path_of(storage, "host1/mine.sql.age")
    path.parent.mkdir()
    path.write_bytes(pyrage.encrypt(dump, [recipient]))
    result = verify.verify(VerifyRequest(PAIR.reads(storage), "mine.sql.age"), Log())
    assert result.foreign and result.raw_bytes == len(dump)
    path.write_bytes(pyrage.encrypt(dump[:-60], [recipient]))
    with pytest.raises(IntegrityError, match="lacks its last line"):
        verify.verify(VerifyRequest(PAIR.reads(storage), "mine.sql.age"), Log())


def test_an_encrypted_backup_of_ours_without_its_footer_is_damaged(storage: Storage) -> None:
    """Cut off before it was encrypted: nothing of age tells, the format does."""
    (key,) = nights(storage, 1)
    store = open_store(replace(storage, age_identity=PAIR.identity))
    item = store.stat(key)
    assert item is not None
    plain = store.read(key, 0, store.contents_size(key, item.size))
    assert archive.has_footer(lambda offset, length: plain[offset : offset + length], len(plain))
    upload = store.begin(key, True)
    upload.write([plain[:-1]])
    upload.commit()
    with pytest.raises(IntegrityError):
        verify.verify(VerifyRequest(PAIR.reads(storage), key), Log())
