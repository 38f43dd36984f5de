# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pruning of a directory: what never goes, when nothing goes, and what is said of each."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Iterator, List, Tuple

import pytest
from _pgstream import catalog, prune, retention
from _pgstream.errors import BackupError, IntegrityError, LockedError, StorageError
from _pgstream.ledger import FAILURE, RUNNING, SUCCESS, Ledger, LedgerError
from _pgstream.model import Filters, PruneRequest, PruneResult, Retention, Storage
from _pgstream.store import local
from _pgstream.store.base import FAILED, LOCKED, Deletion, Store, StoredObject, open_store

from tests.support.ledger_runs import run
from tests.support.made import FOREIGN, backup_bytes, put, put_backup
from tests.support.runs import KeptLog

NOW = datetime(2026, 1, 31, 2, 30, tzinfo=timezone.utc)
NIGHT = NOW.replace(minute=0)  # the newest backup of `nights`
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "utc_now", lambda: NOW)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    (tmp_path / "store").mkdir()
    return open_store(Storage(kind="local", directory=str(tmp_path / "store"), prefix="host1"))


def nights(store: Store, count: int, database: str = "shop", newest: datetime = NIGHT) -> List[str]:
    """One backup a night; keys, newest first."""
    return [put_backup(store, newest - number * DAY, database) for number in range(count)]


def request(store: Store, policy: Retention, **more: Any) -> PruneRequest:
    return PruneRequest(store.storage, "shop", policy, **more)


def pruned(store: Store, policy: Retention, **more: Any) -> PruneResult:
    return prune.prune(request(store, policy, **more))


def keys(store: Store) -> List[str]:
    return sorted((item.key for item in store.list("")), reverse=True)


def told_of(log: KeptLog, event: str) -> List[str]:
    return [fields["key"] for _level, name, fields in log.lines if name == event]


class Reads:
    """How often each key was read or looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: List[str] = []
        original = local.LocalStore.stream

        def stream(store: Any, key: str, offset: int, length: int) -> Iterator[bytes]:
            self.keys.append(key)
            return original(store, key, offset, length)

        monkeypatch.setattr(local.LocalStore, "stream", stream)


# --- what goes and what stays


def test_what_the_policy_does_not_keep_goes_oldest_first(store: Store) -> None:
    made = nights(store, 5)
    sizes = {item.key: item.size for item in store.list("")}
    log = KeptLog()
    result = prune.prune(request(store, Retention(keep_last=2), correlation_id="c"), log)
    assert keys(store) == made[:2]
    assert [one.key for one in result.removed] == made[:1:-1]
    assert [(one.key, one.why) for one in result.kept] == [(made[0], ("last 1",)), (made[1], ("last 2",))]
    assert (result.changed, result.database, result.correlation_id, result.operation) == (True, "shop", "c", "prune")
    assert result.freed_bytes == sum(sizes[key] for key in made[2:]) == sum(one.size for one in result.removed)
    assert result.message == "3 backups removed, 2 kept"
    assert told_of(log, "backup_removed") == made[:1:-1]
    again = pruned(store, Retention(keep_last=2))
    assert (again.changed, again.removed, again.freed_bytes) == (False, (), 0) and keys(store) == made[:2]


def test_prediction_changes_nothing_and_is_what_happens(store: Store) -> None:
    made = nights(store, 8)
    wanted = request(store, Retention(keep_daily=2, keep_weekly=2))
    predicted = prune.predict_prune(wanted)
    assert keys(store) == made
    done = prune.prune(wanted)
    assert predicted.changed and predicted.message == "5 backups would be removed, 3 kept"
    assert replace(predicted, message="", seconds=0.0) == replace(done, message="", seconds=0.0)


def test_others_are_not_touched(store: Store) -> None:
    """Other databases, other prefixes above and below, other names: none is ours to remove, whatever its age."""
    other = open_store(replace(store.storage, prefix="host2"))
    above = open_store(replace(store.storage, prefix=""))
    below = open_store(replace(store.storage, prefix="host1/deep"))
    old = NIGHT - 900 * DAY
    stay = [put_backup(each, old) for each in (other, above, below)]
    stay += [put_backup(store, old, "shop_copy"), put_backup(store, old, "Shop")]
    data = backup_bytes(old)
    for name in ("shop.sql.gz", "before-upgrade.sql.gz", "shop_2023-02-30T02:00:00Z.sql.gz", "shop_2023-02-01.sql.gz",
                 "shop_2023-02-01T02:00:00Z.dump", "notes.txt"):  # fmt: skip
        stay.append(put(store, "host1/" + name, data))
    made = nights(store, 3)
    assert len(pruned(store, Retention(keep_last=1)).removed) == 2
    assert keys(store) == sorted(stay + made[:1], reverse=True)


def test_a_database_with_an_odd_name_is_pruned_too(store: Store) -> None:
    name = "a/b %é_2026-01-01T00:00:00Z"
    made = nights(store, 3, name)
    other = nights(store, 2)
    result = prune.prune(PruneRequest(store.storage, name, Retention(keep_last=1)))
    assert len(result.removed) == 2 and keys(store) == sorted(other + made[:1], reverse=True)


def test_all_codecs_are_one_database_s(store: Store) -> None:
    made = [put_backup(store, NIGHT - n * DAY, compression=codec) for n, codec in enumerate(["none", "zstd", "gzip"])]
    assert [one.key for one in pruned(store, Retention(keep_last=1)).removed] == [made[2], made[1]]


def test_each_part_is_a_series_of_its_own(store: Store) -> None:
    """A filtered backup takes no whole one's place, nor another part's; and goes by the same policy."""
    one, other = Filters(tables=("a",)), Filters(exclude_tables=("a",))
    whole = nights(store, 3, newest=NIGHT - 10 * DAY)
    parts = [put_backup(store, NIGHT - n * DAY, filters=one) for n in range(3)]
    alone = put_backup(store, NIGHT - 20 * DAY, filters=other)
    result = pruned(store, Retention(keep_last=1, min_keep=2))
    assert {item.key for item in result.removed} == {whole[2], parts[2]}
    assert keys(store) == sorted([*whole[:2], *parts[:2], alone], reverse=True)
    why = {item.key: item.why for item in result.kept}
    assert why[whole[0]] == why[parts[0]] == why[alone] == ("last 1",)
    assert [item.key for item in result.kept] == [*parts[:2], *whole[:2], alone]  # newest first


# --- foreign objects


@pytest.mark.parametrize("data", [FOREIGN, b"", backup_bytes(NIGHT)[:-1], backup_bytes(NIGHT)[1:]],
                         ids=["foreign", "empty", "cut off", "headless"])  # fmt: skip
def test_what_has_no_sound_footer_stays_and_takes_no_place(store: Store, data: bytes) -> None:
    """As the newest of all, of its month, and as the oldest: a good one is never removed in its favour."""
    made = nights(store, 4, newest=NIGHT - DAY)
    bad = [
        put(store, catalog.new_key(store.storage, "shop", moment, "gzip"), data)
        for moment in (NIGHT, NIGHT - DAY * 1.5, NIGHT - 500 * DAY)
    ]
    result = pruned(store, Retention(keep_last=1, keep_monthly=1))
    assert keys(store) == sorted(bad + made[:1], reverse=True)
    assert {one.key: one.why for one in result.kept} == {
        made[0]: ("last 1", "monthly 2026-01"), **{key: ("foreign",) for key in bad},
    }  # fmt: skip


def test_young_foreign_objects_count_for_no_minimum(store: Store) -> None:
    """Only what is young is kept, and the young ones are foreign: the newest good ones stay all the same."""
    made = nights(store, 5, newest=NIGHT - 30 * DAY)
    foreign = [put(store, catalog.new_key(store.storage, "shop", NIGHT - n * DAY, "gzip"), FOREIGN) for n in range(3)]
    result = pruned(store, Retention(keep_within=7 * 86400, min_keep=2))
    assert keys(store) == sorted(foreign + made[:2], reverse=True)
    assert {one.key: one.why for one in result.kept if one.key in made} == {
        made[0]: ("minimum 1",), made[1]: ("minimum 2",),
    }  # fmt: skip


def test_only_foreign_objects(store: Store) -> None:
    foreign = [put(store, catalog.new_key(store.storage, "shop", NIGHT - n * DAY, "gzip"), FOREIGN) for n in range(3)]
    assert not pruned(store, Retention(keep_last=1)).changed and keys(store) == foreign


def test_no_backups_at_all(store: Store) -> None:
    result = pruned(store, Retention(keep_last=1))
    assert (result.changed, result.kept, result.message) == (False, (), "0 backups removed, 0 kept")


def test_footers_are_read_only_where_something_hangs_on_them(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 12)
    reads = Reads(monkeypatch)
    pruned(store, Retention(keep_within=20 * 86400))
    assert reads.keys == []  # nothing goes
    pruned(store, Retention(keep_within=10 * 86400))
    # One goes, and the newest is what stands for the others; those in between are young whatever they are.
    assert set(reads.keys) == {made[0], made[10], made[11]}


# --- when nothing goes


def test_no_policy_is_no_deletion(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 3)
    reads = Reads(monkeypatch)
    for policy in (Retention(), Retention(min_keep=2)):
        result = pruned(store, policy, state_dir="/nowhere")
        assert (result.changed, result.message) == (False, "no retention policy is set, so nothing is removed")
        assert [one.why for one in result.kept] == [("no policy",)] * 3
    assert keys(store) == made and reads.keys == []


def test_a_clock_that_is_wrong_removes_nothing(store: Store) -> None:
    made = [put_backup(store, NOW + timedelta(minutes=6)), *nights(store, 3)]
    for verb in (prune.prune, prune.predict_prune):
        with pytest.raises(BackupError, match="after now, 2026-01-31T02:30:00Z: a clock is wrong") as caught:
            verb(request(store, Retention(keep_last=1)))
        assert (caught.value.exit_code, caught.value.stage) == (1, "retention")
    assert keys(store) == made
    store.delete(made[0])
    put_backup(store, NOW + timedelta(minutes=4))  # hosts need not agree to the second
    assert len(pruned(store, Retention(keep_last=1)).removed) == 3


def damaged(data: bytes) -> bytes:
    """With a sound footer, and an index that is not what it says."""
    place = len(data) - 98 - 20
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "what", [{"database": "crm"}, {"database": ""}, {"filters": Filters(tables=("t",))}], ids=["crm", "globals", "part"]
)
def test_the_newest_must_be_what_its_key_says(store: Store, what: Any) -> None:
    made = nights(store, 3, newest=NIGHT - DAY)
    alien = put(store, catalog.new_key(store.storage, "shop", NIGHT, "gzip"), backup_bytes(NIGHT, **what))
    with pytest.raises(IntegrityError, match="is not what its key says"):
        pruned(store, Retention(keep_last=1))
    assert keys(store) == sorted([*made, alien], reverse=True)


def test_the_newest_must_have_a_sound_index(store: Store) -> None:
    made = nights(store, 3)
    put(store, made[0], damaged(backup_bytes(NIGHT)))
    with pytest.raises(IntegrityError, match="sha256") as caught:
        pruned(store, Retention(keep_last=1))
    assert caught.value.exit_code == 6 and keys(store) == made
    with pytest.raises(IntegrityError):
        prune.predict_prune(request(store, Retention(keep_last=1)))


def test_a_newest_one_that_changes_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 3)
    for found in (None, StoredObject(made[0], 7)):
        monkeypatch.setattr(local.LocalStore, "stat", lambda _store, _key, found=found: found)
        with pytest.raises(BackupError, match="changed while it was looked at: nothing is removed"):
            pruned(store, Retention(keep_last=1))
    assert keys(store) == made


def test_a_policy_that_goes_wrong_cannot_take_the_newest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 3)
    for wrong in ({}, {made[1]: ("last 1",)}):
        monkeypatch.setattr(retention, "reasons", lambda *_arguments, wrong=wrong: wrong)
        with pytest.raises(BackupError, match="newest good backup would be removed.*nothing is removed"):
            pruned(store, Retention(keep_last=1))
    assert keys(store) == made


def test_a_listing_that_breaks_off_removes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 4)
    original = local.LocalStore.list

    def breaks(self: Any, prefix: str) -> Iterator[StoredObject]:
        for number, item in enumerate(original(self, prefix)):
            if number == 2:
                raise StorageError("the network is away")
            yield item

    monkeypatch.setattr(local.LocalStore, "list", breaks)
    with pytest.raises(StorageError, match="Failed during retention: the network is away"):
        pruned(store, Retention(keep_last=1))
    monkeypatch.undo()
    assert keys(store) == made


def test_a_footer_that_cannot_be_read_removes_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 4)
    original = local.LocalStore.stream

    def stream(self: Any, key: str, offset: int, length: int) -> Iterator[bytes]:
        if key == made[2]:
            raise StorageError("the network is away")
        return original(self, key, offset, length)

    monkeypatch.setattr(local.LocalStore, "stream", stream)
    with pytest.raises(StorageError, match="the network is away"):
        pruned(store, Retention(keep_last=1))
    assert keys(store) == made


# --- the last backup


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    (tmp_path / "state").mkdir()
    return Ledger(str(tmp_path / "state"))


LAST = NOW.timestamp()


@pytest.mark.parametrize(
    "runs, refused",
    [
        ([], False),
        ([run(started=LAST - 900)], False),
        ([run(started=LAST - 9000), run(FAILURE, started=LAST - 900)], True),
        ([run(FAILURE, started=LAST - 9000), run(started=LAST - 900)], False),
        ([run(FAILURE, started=LAST - 900, database="crm"), run(started=LAST - 9000)], False),
        ([run(FAILURE, started=LAST - 900, operation="restore"), run(started=LAST - 9000)], False),
        # found another run at work: no news
        ([run(FAILURE, started=LAST - 900, exit_code=LockedError.exit_code), run(started=LAST - 9000)], False),
        ([run(FAILURE, started=LAST - 900, exit_code=8), run(FAILURE, started=LAST - 9000)], True),
        # killed: its lock is free
        ([run(RUNNING, started=LAST - 900), run(started=LAST - 9000)], True),
    ],
    ids=["none", "good", "failed", "good again", "another's", "a restore", "locked", "locked after failed", "killed"],
)
def test_after_a_failed_backup_nothing_goes(store: Store, book: Ledger, runs: List[Any], refused: bool) -> None:
    made = nights(store, 3)
    for each in runs:
        if each.status == RUNNING:
            book.begin(each).release()
        else:
            book.finish(each)
    wanted = request(store, Retention(keep_last=1), state_dir=book.directory)
    if not refused:
        assert len(prune.prune(wanted).removed) == 2
        return
    for verb in (prune.prune, prune.predict_prune):
        with pytest.raises(BackupError, match="the last backup of shop failed: nothing is removed"):
            verb(wanted)
    assert keys(store) == made


@pytest.mark.parametrize("ended, spared", [(FAILURE, True), (SUCCESS, False)])
def test_after_a_failed_backup_of_a_part_no_part_goes(store: Store, book: Ledger, ended: str, spared: bool) -> None:
    """The whole, of which it is no news, is pruned as ever."""
    one, other = Filters(tables=("a",)), Filters(tables=("b",))
    parts = [put_backup(store, NIGHT - n * DAY, filters=each) for each in (one, other) for n in range(3)]
    made = nights(store, 3)
    book.finish(run(FAILURE, started=LAST - 9000, operation="backup_part"))
    book.finish(run(ended, started=LAST - 900, operation="backup_part"))
    book.finish(run(FAILURE, started=LAST - 90, operation="backup_part", database="crm"))
    result = pruned(store, Retention(keep_last=1), state_dir=book.directory)
    stay = parts if spared else parts[::3]
    assert keys(store) == sorted([made[0], *stay], reverse=True)
    why = {one.why for one in result.kept if one.key in stay}
    assert why == ({("failed run",)} if spared else {("last 1",)})


def test_a_backup_at_work_is_no_failure(store: Store, book: Ledger) -> None:
    nights(store, 3)
    book.finish(run(started=LAST - 9000))
    lock = book.begin(run(RUNNING, started=LAST - 900))
    assert len(pruned(store, Retention(keep_last=1), state_dir=book.directory).removed) == 2
    lock.release()


def test_a_ledger_that_cannot_be_read_removes_nothing(store: Store, book: Ledger) -> None:
    made = nights(store, 3)
    Path(book.path).write_bytes(b"garbage" * 999)
    for directory in (book.directory, book.directory + "/absent"):
        with pytest.raises(LedgerError):
            pruned(store, Retention(keep_last=1), state_dir=directory)
    assert keys(store) == made


# --- what the store says


def test_locked_ones_are_kept_and_refused_ones_a_failure(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 5)
    told = {made[4]: Deletion(made[4], LOCKED, "WORM"), made[2]: Deletion(made[2], FAILED, "Access Denied")}
    original = Store.delete_many

    def delete_many(self: Any, wanted: List[str]) -> Iterator[Deletion]:
        for key in wanted:
            if key in told:
                yield told[key]
            else:
                yield from original(self, [key])

    monkeypatch.setattr(local.LocalStore, "delete_many", delete_many)
    log = KeptLog()
    with pytest.raises(StorageError, match="1 of 4 backups could not be removed, first %s: Access Denied" % made[2]):
        prune.prune(request(store, Retention(keep_last=1)), log)
    assert keys(store) == [made[0], made[2], made[4]]
    names = ("backup_removed", "backup_locked", "backup_not_removed")
    assert [told_of(log, name) for name in names] == [
        [made[3], made[1]], [made[4]], [made[2]],
    ]  # fmt: skip
    del told[made[2]]
    result = pruned(store, Retention(keep_last=1))
    assert [(one.key, one.why) for one in result.kept] == [(made[0], ("last 1",)), (made[4], ("locked",))]
    assert [one.key for one in result.removed] == [made[2]]
    assert not pruned(store, Retention(keep_last=1)).changed  # a locked one is no change, however often it is tried


def test_a_store_that_goes_away_says_how_far_it_came(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 5)

    def delete_many(self: Any, wanted: List[str]) -> Iterator[Deletion]:
        yield from Store.delete_many(self, wanted[:2])
        raise StorageError("the network is away")

    monkeypatch.setattr(local.LocalStore, "delete_many", delete_many)
    with pytest.raises(StorageError, match=r"removing backups: the network is away \(2 of 4 backups were removed"):
        pruned(store, Retention(keep_last=1))
    assert keys(store) == made[:3]


def test_a_file_that_cannot_be_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made = nights(store, 3)
    original = os.unlink

    def unlink(path: str) -> None:
        if path.endswith(made[2]):
            raise PermissionError(1, "Operation not permitted", path)
        original(path)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(StorageError, match="Operation not permitted"):
        pruned(store, Retention(keep_last=1))
    assert keys(store) == [made[0], made[2]]


def test_the_result_is_plain_data(store: Store) -> None:
    nights(store, 2)
    fields: Tuple[Any, ...] = pruned(store, Retention(keep_last=1)).kept
    assert json.loads(json.dumps([vars(one) for one in fields]))[0]["why"] == ["last 1"]
