# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keys and which backup is meant: odd database names, prefixes, the latest one, the nearest ones."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import List

import pytest
from _pgstream import catalog
from _pgstream.errors import IntegrityError, NotFoundError, StorageError, UsageError
from _pgstream.model import COMPRESSIONS, EXTENSIONS, Filters, Storage
from _pgstream.store.base import Store, open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.runs import KeptLog

MANY = settings(max_examples=400, deadline=None)
MOMENT = datetime(2026, 1, 31, 2, 0, 0, tzinfo=timezone.utc)
#: What a database may be called: anything but NUL, and often what is special in a key, a path or a URL.
NAMES = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.sampled_from("/._%~-:?#\\ \n\"'Z0")
    ),
    min_size=1,
    max_size=20,
)


def at(hours: int, database: str = "shop", compression: str = "gzip", prefix: str = "") -> str:
    return catalog.new_key(Storage(prefix=prefix), database, MOMENT + timedelta(hours=hours), compression)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Storage(kind="local", directory=str(tmp_path), prefix="nightly"))


def put(store: Store, *keys: str) -> None:
    for key in keys:
        upload = store.begin(key, False)
        upload.write([b"-- PostgreSQL database dump\n"])
        upload.commit()


@MANY
@given(NAMES, st.sampled_from(COMPRESSIONS), st.sampled_from(["", "p", "a/b", "/a/"]))
def test_any_database_name_comes_back_from_its_key(database: str, compression: str, prefix: str) -> None:
    key = catalog.new_key(Storage(prefix=prefix), database, MOMENT, compression)
    assert catalog.parse_key(key) == (database, "2026-01-31T02:00:00Z", "")
    assert catalog.compression_of(key) == compression
    name = key[len(prefix.strip("/")) + 1 :] if prefix else key
    assert "/" not in name and not name.startswith(".") and name.isascii() and name.isprintable()
    assert prefix == "" or key.startswith(prefix.strip("/") + "/")


@MANY
@given(NAMES, NAMES)
def test_two_databases_never_share_a_key(one: str, other: str) -> None:
    same = at(0, one) == at(0, other)
    assert same == (one == other)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(NAMES)
def test_any_database_s_backup_is_found_again(store: Store, database: str) -> None:
    key = at(0, database, prefix="nightly")
    upload = store.begin(key, True)
    upload.write([b"x"])
    upload.commit()
    assert catalog.latest(store, database).key == key == catalog.find(store, key).key
    assert [info.key for info in catalog.candidates(store, database)] == [key]


@MANY
@given(NAMES, st.lists(st.text(max_size=5), min_size=1, max_size=3), st.sampled_from(["gzip", "none"]))
def test_a_part_s_key_says_so_whatever_its_patterns(database: str, patterns: List[str], compression: str) -> None:
    part = catalog.part_of(Filters(tables=tuple(patterns)))
    key = catalog.new_key(Storage(prefix="p"), database, MOMENT, compression, part)
    assert catalog.parse_key(key) == (database, "2026-01-31T02:00:00Z", part) and len(part) == 8
    assert catalog.is_templated(Storage(prefix="p"), key) and not catalog.is_globals(key)
    assert catalog.compression_of(key) == compression
    whole = catalog.new_key(Storage(prefix="p"), database, MOMENT, compression)
    assert whole != key and catalog.parse_key(whole).part == ""


def test_filters_that_mean_the_same_are_one_part() -> None:
    assert catalog.part_of(Filters()) == ""
    one = catalog.part_of(Filters(tables=("a", "b"), exclude_schemas=("c",)))
    assert one == catalog.part_of(Filters(exclude_schemas=("c",), tables=("b", "a", "b"))) == "9768ec40"
    others = [Filters(tables=("a",)), Filters(exclude_tables=("a",)), Filters(schemas=("a",)), Filters(tables=("a,b",))]
    assert len({one, *map(catalog.part_of, others), catalog.part_of(Filters(tables=("a", "b")))}) == 6
    assert at(0, "shop").replace("Z.sql", "Z.part-%s.sql" % one) == catalog.new_key(
        Storage(), "shop", MOMENT, "gzip", one
    )


@pytest.mark.parametrize("part", ["", "0123456", "012345678", "0123456G", "ABCDEF01"])
def test_what_is_no_part(part: str) -> None:
    assert catalog.parse_key("shop_2026-01-31T02:00:00Z.part-%s.sql.gz" % part) == ("", "", "")


def test_a_key_that_is_another_backup_s_is_refused() -> None:
    part, other = catalog.part_of(Filters(tables=("t",))), catalog.part_of(Filters(tables=("u",)))
    free = ["mine.sql.gz", "before-upgrade.sql.gz", "deep/shop.sql.gz"]
    whole, filtered = at(0, prefix="p"), catalog.new_key(Storage(), "shop", MOMENT, "gzip", part)
    for key in [*free, whole]:
        catalog.check_key(key, "shop", "")
    for key in [*free, filtered]:
        catalog.check_key(key, "shop", part)
    taken = catalog.new_globals_key(Storage(), MOMENT, "gzip")
    for key, mine in ((at(0, "crm"), ""), (taken, ""), (whole, part), (filtered, ""), (filtered, other)):
        with pytest.raises(UsageError, match="is that of a backup of"):
            catalog.check_key(key, "shop", mine)


def test_the_template() -> None:
    assert at(0, prefix="p") == "p/shop_2026-01-31T02:00:00Z.sql.gz"
    assert at(0, "a b", "zstd") == "a b_2026-01-31T02:00:00Z.sql.zst"
    assert at(0, "a/b%", "none") == "a%2Fb%25_2026-01-31T02:00:00Z.sql"
    assert at(0, ".x") == "%2Ex_2026-01-31T02:00:00Z.sql.gz"


@pytest.mark.parametrize("key", [
    "", "shop.sql.gz", "shop_2026-01-31T02:00:00Z", "shop_2026-01-31T02:00:00Z.tar", "_2026-01-31T02:00:00Z.sql.gz",
    "shop_2026-01-31T02:00:00Z.sql.gz\n", "shop_\uff12026-01-31T02:00:00Z.sql.gz",
    "sh%00op_2026-01-31T02:00:00Z.sql.gz",
    "shop_2026-02-31T02:00:00Z.sql.gz", "shop_9999-99-99T99:99:99Z.sql.gz", "shop_2026-01-31T02:00:00Z.sql.gz.gpg",
])  # fmt: skip
def test_keys_that_say_nothing(key: str) -> None:
    assert catalog.parse_key(key) == ("", "", "")


@pytest.mark.parametrize("prefix,key,whole", [
    ("", "a", "a"),
    ("p", "a", "p/a"),
    ("p", "p/a", "p/a"),
    ("p/", "a", "p/a"),
    ("/p/q/", "a", "p/q/a"),
    ("p", "pa", "p/pa"),
    ("p", "q/a", "p/q/a"),
])  # fmt: skip
def test_the_prefix_comes_before_once(prefix: str, key: str, whole: str) -> None:
    assert catalog.whole_key(Storage(prefix=prefix), key) == whole
    assert catalog.whole_key(Storage(prefix=prefix), whole) == whole


def test_extensions() -> None:
    for compression, extension in EXTENSIONS.items():
        assert catalog.compression_of("x" + extension) == compression
    for other in ("x", "x.gz", "x.sql.gz.gpg", "x.age", "x.tar.gz", "sql"):
        assert catalog.compression_of(other) == ""


def test_find_with_and_without_the_prefix(store: Store) -> None:
    put(store, "nightly/a.sql.gz", "elsewhere/b.sql.gz")
    assert catalog.find(store, "a.sql.gz").key == catalog.find(store, "nightly/a.sql.gz").key == "nightly/a.sql.gz"
    assert catalog.find(store, "elsewhere/b.sql.gz").key == "elsewhere/b.sql.gz"  # whole keys are taken as they are


def test_not_found_names_the_nearest(store: Store) -> None:
    put(store, *(at(hours, prefix="nightly") for hours in range(5)), at(0, "other", prefix="nightly"))
    with pytest.raises(NotFoundError) as caught:
        catalog.find(store, "nightly/shop_2026-01-31T03:00:01Z.sql.gz")
    message = str(caught.value)
    assert message.startswith("Backup not found: file://") and "shop_2026-01-31T03:00:01Z.sql.gz" in message
    assert "There are 6 others, such as nightly/shop_2026-01-31T0" in message
    assert "nightly/shop_2026-01-31T03:00:00Z.sql.gz" in message and caught.value.exit_code == 5


def test_not_found_where_there_is_nothing(store: Store) -> None:
    with pytest.raises(NotFoundError, match="Backup not found: .*invalid_filename.sql.gz. There are no backups under"):
        catalog.find(store, "invalid_filename.sql.gz")


def test_a_directory_that_is_not_there_is_no_missing_backup(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="none does not exist"):
        catalog.find(open_store(Storage(kind="local", directory=str(tmp_path / "none"))), "a.sql.gz")


def test_latest(store: Store) -> None:
    keys = [at(hours, prefix="nightly") for hours in range(4)]
    # Written in another order than their times; another database's, a nameless one and an odd time are not meant.
    put(store, keys[2], keys[0], keys[3], keys[1], at(9, "other", prefix="nightly"), "nightly/shop.sql.gz")
    put(store, "nightly/shop_2026-99-31T02:00:00Z.sql.gz", at(9, "shop_2", prefix="nightly"), at(99, "shop"))
    assert catalog.latest(store, "shop").key == keys[3]
    assert catalog.latest(store, "shop", "2026-01-31T04:00:00Z").key == keys[1]  # before, not at
    assert catalog.latest(store, "shop", "2026-01-31T04:00:01").key == keys[2]  # no zone is UTC
    assert catalog.latest(store, "shop", "2026-01-31T05:00:00+02:00").key == keys[0]
    with pytest.raises(NotFoundError, match="no backup of database shop before 2026-01-31T02:00:00Z"):
        catalog.latest(store, "shop", "2026-01-31T02:00:00Z")
    with pytest.raises(NotFoundError, match="no backup of database none in file://"):
        catalog.latest(store, "none")


def test_latest_is_of_the_whole_and_not_of_the_future(store: Store) -> None:
    def part(hours: int) -> str:
        return catalog.new_key(store.storage, "shop", MOMENT + timedelta(hours=hours), "gzip", "01234567")

    log = KeptLog()

    def found() -> str:
        return catalog.resolve(store, "latest", "shop", log).key

    whole, future = at(0, prefix="nightly"), at(24 * 365 * 1000, prefix="nightly")
    put(store, part(-1), part(1))
    assert found() == part(1) and log.events() == ["filtered_backup"]
    assert catalog.latest(store, "shop", "2026-01-31T03:00:00Z").key == part(-1)
    put(store, future)
    assert found() == future
    put(store, whole)
    assert found() == whole and log.events() == ["filtered_backup"]
    assert catalog.resolve(store, part(1), "shop", log).key == part(1) and log.events() == ["filtered_backup"]


def test_latest_across_codecs(store: Store) -> None:
    put(store, at(0, compression="gzip", prefix="nightly"), at(1, compression="zstd", prefix="nightly"))
    put(store, at(2, compression="none", prefix="nightly"))
    assert catalog.latest(store, "shop").key.endswith(".sql")


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "12:00"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="not a time"):
        catalog.parse_time(text)


def test_times() -> None:
    for text in ("2026-01-31T02:00:00Z", "2026-01-31 02:00:00", "2026-01-31T03:00:00+01:00", " 2026-01-31T02:00:00z "):
        assert catalog.parse_time(text) == MOMENT


def test_listing_without_a_prefix_has_everything(tmp_path: Path) -> None:
    store = open_store(Storage(kind="local", directory=str(tmp_path)))
    put(store, at(0), at(0, prefix="deep"))
    found: List[str] = [info.key for info in catalog.candidates(store)]
    assert sorted(found) == sorted([at(0), at(0, prefix="deep")])


def test_describe_what_has_no_index(store: Store) -> None:
    put(store, "nightly/a.sql.gz")
    with pytest.raises(IntegrityError, match="has no index.*serial stream"):
        catalog.describe(store.storage, "a.sql.gz")
