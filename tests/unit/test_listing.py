# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The list of backups: what is known of each without reading it, what is read of some, and how people see it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest
from _pgstream import archive, catalog, listing, tables
from _pgstream.errors import IntegrityError
from _pgstream.ledger import FAILURE
from _pgstream.model import (
    COMPRESSIONS,
    BackupInfo,
    Filters,
    KeptBackup,
    PruneResult,
    RemovedBackup,
    Retention,
    Storage,
)
from _pgstream.store import local
from _pgstream.store.base import Store, open_store

from tests.support.ledger_runs import run
from tests.support.made import FOREIGN, backup_bytes, put, put_backup

NOW = datetime(2026, 1, 31, 2, 30, tzinfo=timezone.utc)
NIGHT = NOW.replace(minute=0)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "utc_now", lambda: NOW)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Storage(kind="local", directory=str(tmp_path), prefix="host1"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Dict[str, int]:
    """How many ranges were read of each key."""
    counted: Dict[str, int] = Counter()
    original = local.LocalStore.stream

    def stream(self: Any, key: str, offset: int, length: int) -> Iterator[bytes]:
        counted[key] += 1
        return original(self, key, offset, length)

    monkeypatch.setattr(local.LocalStore, "stream", stream)
    return counted


def nights(store: Store, count: int, **how: Any) -> List[str]:
    return [put_backup(store, NIGHT - number * DAY, **how) for number in range(count)]


def found(store: Store, *arguments: Any, **more: Any) -> Dict[str, BackupInfo]:
    return {one.key: one for one in listing.list_backups(store.storage, *arguments, **more)}


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_two_small_reads_tell_rows_ratio_and_duration(store: Store, reads: Dict[str, int], compression: str) -> None:
    key = put_backup(store, NIGHT, compression=compression, rows=5000, seconds=75, tables=2)
    (one,) = listing.list_backups(store.storage)
    size = one.size
    index = catalog.describe(store.storage, key)
    assert (one.key, one.database, one.foreign, one.compression) == (key, "shop", False, compression)
    assert (one.rows, one.seconds, one.age, one.raw_bytes) == (10000, 75.0, 1800, index.raw_bytes)
    assert one.ratio == pytest.approx(index.raw_bytes / size, abs=0.006) and (compression == "none") == (one.ratio < 1)
    assert (one.verified_at, one.why) == ("", None)
    reads.clear()
    listing.list_backups(store.storage)
    assert reads == {key: 2}


def test_newest_first_of_every_database_and_foreign_ones_marked(store: Store) -> None:
    made = nights(store, 2)
    other = put_backup(store, NIGHT - DAY / 2, "crm")
    foreign = put(store, catalog.new_key(store.storage, "shop", NIGHT - 3 * DAY, "gzip"), FOREIGN)
    put(store, "host1/readme.txt", FOREIGN)
    everything = listing.list_backups(store.storage)
    assert [one.key for one in everything] == [made[0], other, made[1], foreign]
    assert [one.foreign for one in everything] == [False, False, False, True]
    assert everything[3].rows is None and everything[3].ratio is None
    assert list(found(store, "shop")) == [made[0], made[1], foreign]


@pytest.mark.parametrize("damage", ["cut off", "another index", "no index line"])
def test_a_damaged_one_is_nothing_we_vouch_for(store: Store, damage: str) -> None:
    data = backup_bytes(NIGHT, compression="none")
    if damage == "cut off":
        data = data[:-1]
    elif damage == "another index":
        data = data.replace(b'"index":{"format_version"', b'"index":["format_version"', 1)
    else:
        data = data.replace(b'"rows":3,"filtered"', b'"rowz":3,"filtered"', 1)
    key = put(store, catalog.new_key(store.storage, "shop", NIGHT, "none"), data)
    assert found(store)[key].foreign is True


def test_only_the_newest_are_looked_into(store: Store, reads: Dict[str, int]) -> None:
    made = nights(store, 8)
    everything = found(store, "", 3)
    assert reads == dict.fromkeys(made[:3], 2)
    assert [everything[key].foreign for key in made] == [False] * 3 + [None] * 5
    assert [everything[key].rows for key in made] == [3] * 3 + [None] * 5
    assert [everything[key].age for key in made] == [1800 + 86400 * number for number in range(8)]
    reads.clear()
    assert len(found(store, "", 0)) == 8 and reads == {}


def test_thousands_cost_no_more_requests_than_a_few(store: Store, reads: Dict[str, int]) -> None:
    """A thousand objects with nothing in them that anyone would have to read."""
    for number in range(1000):
        moment = NIGHT - timedelta(hours=number)
        (Path(store.storage.directory) / "host1").mkdir(exist_ok=True)
        (Path(store.storage.directory) / catalog.new_key(store.storage, "shop", moment, "gzip")).write_bytes(FOREIGN)
    assert len(found(store)) == 1000
    assert len(reads) == 100 and set(reads.values()) == {1}


def test_a_filtered_one_is_told_by_its_key_or_its_index(store: Store) -> None:
    filters = Filters(tables=("t",))
    part, whole = put_backup(store, NIGHT, filters=filters), put_backup(store, NIGHT - DAY)
    named = put(store, "host1/mine.sql.gz", backup_bytes(NIGHT, filters=filters))
    seen = found(store, "", 3)
    assert [seen[key].filtered for key in (part, whole, named)] == [True, False, True]
    assert [seen[key].part for key in (part, whole, named)] == [catalog.part_of(filters), "", ""]
    assert [found(store, "", 0)[key].filtered for key in (part, whole, named)] == [True, False, False]
    shown = tables.backup_table(list(seen.values()))
    assert shown.count("(filtered)") == 2 and part + "  (filtered)" in shown
    judged = {one.key: one.why for one in listing.list_backups(store.storage, policy=Retention(keep_last=1))}
    assert judged == {part: ("last 1",), whole: ("last 1",), named: None}


# --- the ledger


def test_what_the_ledger_knows_is_not_read(store: Store, reads: Dict[str, int]) -> None:
    made = nights(store, 3)
    sizes = {item.key: item.size for item in store.list("")}
    runs = [
        run(key=made[0], stored_bytes=sizes[made[0]], raw_bytes=sizes[made[0]] * 4, rows=77, seconds=61.5),
        run(key=made[1], stored_bytes=sizes[made[1]] + 1, rows=99),  # was replaced meanwhile
        run(FAILURE, key=made[2], stored_bytes=sizes[made[2]], rows=99),
        run(key=made[2], stored_bytes=sizes[made[2]], rows=99, changed=False),
        run(key=made[2], stored_bytes=sizes[made[2]], rows=99, operation="restore"),
    ]
    everything = found(store, runs=runs)
    first = everything[made[0]]
    assert (first.rows, first.ratio, first.seconds, first.foreign) == (77, 4.0, 61.5, False)
    assert [everything[key].rows for key in made[1:]] == [3, 3]
    assert reads == dict.fromkeys(made[1:], 2)


def test_verified_when(store: Store) -> None:
    made = nights(store, 3)
    runs = [  # the newest first, as the ledger has them
        run(operation="verify", key=made[0], started=NOW.timestamp() - 100, seconds=40),
        run(operation="verify", key=made[0], started=NOW.timestamp() - 90000),
        run(FAILURE, operation="verify", key=made[1], started=NOW.timestamp() - 100),
    ]
    everything = found(store, runs=runs)
    assert [everything[key].verified_at for key in made] == ["2026-01-31T02:29:00Z", "", ""]


# --- the policy


def test_why_is_what_pruning_would_say(store: Store) -> None:
    """Each database by itself; what pruning leaves alone is not judged."""
    made = nights(store, 3)
    other = put_backup(store, NIGHT - 40 * DAY, "crm")
    deep = put_backup(open_store(replace(store.storage, prefix="host1/deep")), NIGHT)
    named = put(store, "host1/before-upgrade.sql.gz", backup_bytes(NIGHT))
    foreign = put(store, catalog.new_key(store.storage, "shop", NIGHT + timedelta(minutes=1), "gzip"), FOREIGN)
    everything = found(store, policy=Retention(keep_last=1, keep_daily=2))
    assert {key: one.why for key, one in everything.items()} == {
        made[0]: ("last 1", "daily 2026-01-31"), made[1]: ("daily 2026-01-30",), made[2]: (),
        other: ("last 1", "daily 2025-12-22"), deep: None, named: None, foreign: None,
    }  # fmt: skip
    for policy in (None, Retention(), Retention(min_keep=3)):
        assert {one.why for one in found(store, policy=policy).values()} == {None}


# --- the first facts of an index


def reader(data: bytes) -> Any:
    return lambda offset, length: data[offset : offset + length]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_the_head_of_a_long_index(compression: str) -> None:
    """The index is longer than what is read of it, and still gives its facts."""
    data = backup_bytes(NIGHT, compression=compression, tables=6000, rows=1)
    asked: List[int] = []

    def read(offset: int, length: int) -> bytes:
        asked.append(length)
        return data[offset : offset + length]

    head = archive.read_head(read, len(data))
    index = archive.read_index(reader(data), len(data))
    assert head is not None and index is not None
    assert (head["rows"], head["raw_bytes"], head["finished_at"]) == (6000, index.raw_bytes, index.finished_at)
    assert len(asked) == 2 and asked[1] == 160 << 10  # the index has more


def test_a_head_too_long_for_the_read_is_unknown(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    data = backup_bytes(NIGHT, compression="none")
    monkeypatch.setattr(archive, "_HEAD", 200)
    assert archive.read_head(reader(data), len(data)) == {}
    key = put(store, catalog.new_key(store.storage, "shop", NIGHT, "none"), data)
    assert (found(store)[key].foreign, found(store)[key].rows) == (False, None)


def test_no_head_without_a_footer() -> None:
    assert archive.read_head(reader(FOREIGN), len(FOREIGN)) is None
    with pytest.raises(IntegrityError):
        data = backup_bytes(NIGHT) + b"x"
        archive.read_head(reader(data[:-1]), len(data))


# --- as a table

KNOWN = BackupInfo(
    key="shop_2026-01-31T02:00:00Z.sql.gz", url="", size=12345678, modified_at="", database="shop", foreign=False,
    age=273600, raw_bytes=49382712, ratio=4.0, rows=1234567, seconds=75.2,
)  # fmt: skip
OLD = BackupInfo(key="old\x1b[2J.sql.gz", url="", size=5, modified_at="", foreign=True, age=9)


def cells(text: str) -> List[List[str]]:
    return [[cell for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_table_of_backups() -> None:
    head, first, second = tables.backup_table([KNOWN, OLD]).splitlines()
    assert head.split() == ["AGE", "SIZE", "RATIO", "ROWS", "TOOK", "DATABASE", "KEY"]
    assert first.split("  ")[0] == "3d 4h" and first.split()[2:] == [
        "12.3", "MB", "4.0", "1,234,567", "1m", "15s", "shop", KNOWN.key,
    ]  # fmt: skip
    assert second.split() == ["9s", "5", "bytes", "-", "-", "-", "old\\x1b[2J.sql.gz", "(foreign)"]
    assert [head.index(name) for name in ("SIZE", "KEY")] == [first.index("12.3 MB"), first.index(KNOWN.key)]
    assert tables.backup_table([]) == ""


def test_table_with_a_policy_and_verifications() -> None:
    kept = replace(KNOWN, why=("last 1", "daily 2026-01-31"), verified_at="2026-01-31T03:00:00Z")
    text = tables.backup_table([kept, replace(KNOWN, why=()), OLD])
    head, first, second, third = text.splitlines()
    assert head.split()[-2:] == ["KEPT", "BY"] and "VERIFIED" in head
    assert first.endswith("last 1, daily 2026-01-31") and "2026-01-31T03:00:00Z  shop" in first
    assert second.endswith("nothing: goes") and third.endswith("not pruned")


def test_table_of_a_pruning() -> None:
    stays = (KeptBackup("b3", 3000, "2026-01-03", ("last 1",)), KeptBackup("b1", 1000, "2026-01-01", ("locked",)))
    gone = (RemovedBackup("b2", 2000, "2026-01-02"),)
    result = PruneResult(True, "shop", "c", stays, gone, 2000, message="1 backups removed, 2 kept")
    shown = tables.prune_table(result, dry_run=False).splitlines()
    assert [line.split() for line in shown] == [
        ["SIZE", "KEY"], ["3", "kB", "b3", "last", "1"], ["2", "kB", "b2", "removed"], ["1", "kB", "b1", "locked"],
        ["1", "backups", "removed,", "2", "kept,", "2", "kB", "freed"],
    ]  # fmt: skip
    assert "would be removed" in tables.prune_table(result, dry_run=True)
    nothing = PruneResult(False, "shop", "c", message="no retention policy is set, so nothing is removed")
    assert tables.prune_table(nothing, dry_run=False) == nothing.message


@pytest.mark.parametrize(
    "seconds, text",
    [(5, "5s"), (65, "1m 5s"), (3 * 3600 + 120, "3h 2m"), (90000, "1d 1h"), (-9, "0s"), (None, "?")],
)
def test_age(seconds: Any, text: str) -> None:
    assert tables.age(seconds) == text
