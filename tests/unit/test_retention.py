# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The retention policy over random calendars: what it keeps, that it never keeps too little, and that pruning often
keeps what pruning once would."""

from __future__ import annotations

import os
import random
import time
from dataclasses import fields, replace
from datetime import datetime, timedelta, timezone
from typing import Dict, List, Sequence, Set

import pytest
from _pgstream import retention
from _pgstream.model import BackupInfo, Retention
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=200, deadline=None)
UTC = timezone.utc
RULES = [rule for rule, _form in retention.PERIODS]
#: Years with and without a 29th of February, with 53 ISO weeks (2020, 2026), and a century.
FIRST, LAST = datetime(1999, 12, 1), datetime(2033, 1, 31)


def backup(moment: datetime, suffix: str = "") -> BackupInfo:
    text = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return BackupInfo("shop_%s.sql.gz%s" % (text, suffix), "", 10, text, "shop", text)


def kept(backups: Sequence[BackupInfo], policy: Retention, now: datetime) -> Set[str]:
    return set(retention.reasons(backups, policy, now))


def moment_of(one: BackupInfo) -> datetime:
    return datetime.strptime(one.time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


@st.composite
def calendars(draw: st.DrawFn) -> List[BackupInfo]:
    """Backups of a database's life: bursts, regular stretches and gaps, from seconds to years; none twice."""
    moment = draw(st.datetimes(FIRST, LAST)).replace(microsecond=0, tzinfo=UTC)
    steps = draw(
        st.lists(
            st.one_of(st.integers(1, 7200), st.integers(80000, 90000), st.just(86400), st.integers(86400, 86400 * 500)),
            max_size=40,
        )
    )
    found = [backup(moment)]
    for step in steps:
        moment += timedelta(seconds=step)
        found.append(backup(moment))
    return found


COUNTS = st.one_of(st.just(0), st.integers(0, 6), st.integers(0, 500))
POLICIES = st.builds(
    Retention,
    COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS,
    keep_within=st.one_of(st.just(0), st.integers(1, 86400 * 400)),
    min_keep=st.integers(1, 5),
)  # fmt: skip


def after(backups: Sequence[BackupInfo], seconds: int = 60) -> datetime:
    return max(map(moment_of, backups)) + timedelta(seconds=seconds)


# --- what a rule keeps, said in another way


def period(rule: str, moment: datetime) -> object:
    year, week, _day = moment.isocalendar()
    return {
        "hourly": (moment.date(), moment.hour),
        "daily": moment.date(),
        "weekly": (year, week),
        "monthly": (moment.year, moment.month),
        "yearly": moment.year,
    }[rule]


@MANY
@given(calendars(), POLICIES)
def test_the_union_of_the_rules_is_kept_and_nothing_else(backups: List[BackupInfo], policy: Retention) -> None:
    now = after(backups)
    if retention.is_empty(policy):
        assert kept(backups, policy, now) == {one.key for one in backups}
        return
    newest_first = sorted(backups, key=moment_of, reverse=True)
    wanted = {one.key for one in newest_first[: max(policy.keep_last, policy.min_keep)]}
    wanted |= {one.key for one in backups if now - moment_of(one) < timedelta(seconds=policy.keep_within)}
    for rule in RULES:
        # A backup is kept if it is the newest of its period, and fewer periods with a backup are newer than there is
        # room for.
        for one in backups:
            mine = period(rule, moment_of(one))
            later = [other for other in backups if moment_of(other) > moment_of(one)]
            newer_periods = {period(rule, moment_of(other)) for other in later}
            if mine not in newer_periods and len(newer_periods) < getattr(policy, "keep_" + rule):
                wanted.add(one.key)
    assert kept(backups, policy, now) == wanted


@MANY
@given(calendars(), POLICIES)
def test_every_reason_is_true(backups: List[BackupInfo], policy: Retention) -> None:
    now, why = after(backups), retention.reasons(backups, policy, after(backups))
    order = [one.key for one in sorted(backups, key=moment_of, reverse=True)]
    for one in backups:
        moment = moment_of(one)
        for reason in why.get(one.key, ()):
            rule, _space, of = reason.partition(" ")
            if rule in ("last", "minimum"):
                assert order.index(one.key) == int(of) - 1
                assert int(of) <= (policy.keep_last if rule == "last" else policy.min_keep)
            elif rule == "within":
                assert (now - moment).total_seconds() < policy.keep_within
            elif rule == "weekly":
                assert of == "%d-W%02d" % moment.isocalendar()[:2]
            elif reason != retention.NO_POLICY:
                assert one.time.startswith(of) and getattr(policy, "keep_" + rule)


@MANY
@given(calendars(), POLICIES)
def test_the_newest_ones_are_never_removed(backups: List[BackupInfo], policy: Retention) -> None:
    stays = kept(backups, policy, after(backups, 86400 * 36500))
    newest = sorted(backups, key=moment_of, reverse=True)[: policy.min_keep]
    assert newest and {one.key for one in newest} <= stays


@MANY
@given(calendars(), POLICIES, st.randoms(use_true_random=False))
def test_the_order_of_the_listing_does_not_matter(
    backups: List[BackupInfo], policy: Retention, shuffle: random.Random
) -> None:
    before = retention.reasons(backups, policy, after(backups))
    mixed = list(backups)
    shuffle.shuffle(mixed)
    assert retention.reasons(mixed, policy, after(backups)) == before


@MANY
@given(calendars(), POLICIES)
def test_pruning_twice_removes_nothing_new(backups: List[BackupInfo], policy: Retention) -> None:
    now = after(backups)
    stays = kept(backups, policy, now)
    assert kept([one for one in backups if one.key in stays], policy, now) == stays


@MANY
@given(calendars(), POLICIES, POLICIES)
def test_a_larger_policy_never_removes_more(backups: List[BackupInfo], policy: Retention, more: Retention) -> None:
    if retention.is_empty(policy):  # no policy is not the smallest one: it keeps everything
        policy = replace(policy, keep_last=1)
    larger = Retention(*(max(getattr(policy, one.name), getattr(more, one.name)) for one in fields(Retention)))
    now = after(backups)
    assert kept(backups, policy, now) <= kept(backups, larger, now)


@MANY
@given(calendars(), POLICIES, st.integers(0, 86400))
def test_pruning_after_each_backup_keeps_what_pruning_once_would(
    backups: List[BackupInfo], policy: Retention, delay: int
) -> None:
    """Whatever the calendar: a backup that is needed at the end is needed at every moment before."""
    held: List[BackupInfo] = []
    for one in backups:  # oldest first, as they are made
        held.append(one)
        stays = kept(held, policy, after(held))
        held = [each for each in held if each.key in stays]
    now = after(backups, delay)
    assert kept(held, policy, now) == kept(backups, policy, now)


# --- no time zone


@pytest.fixture
def zone() -> object:
    before = os.environ.get("TZ")

    def use(name: str) -> None:
        os.environ["TZ"] = name
        time.tzset()

    yield use
    os.environ.pop("TZ") if before is None else os.environ.__setitem__("TZ", before)
    time.tzset()


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Kiritimati"])
def test_no_host_s_daylight_saving_changes_a_decision(zone: object, name: str) -> None:
    """Around both changes of the clock an hour has 23 or 25 of it elsewhere; here each backup of each hour is one."""
    zone("UTC")  # type: ignore[operator]
    for day in (
        datetime(2026, 3, 28, tzinfo=UTC),
        datetime(2026, 10, 24, tzinfo=UTC),
        datetime(2026, 4, 4, tzinfo=UTC),
    ):
        backups = [backup(day + timedelta(minutes=30 * number)) for number in range(3 * 48)]
        policy = Retention(keep_hourly=60, keep_daily=3)
        zone("UTC")  # type: ignore[operator]
        here = retention.reasons(backups, policy, after(backups))
        zone(name)  # type: ignore[operator]
        there = retention.reasons(backups, policy, after(backups))
        assert here == there
        hours = [reason for why in there.values() for reason in why if reason.startswith("hourly")]
        assert len(set(hours)) == 60
        assert sorted({key for key in there if "23:30:00Z" in key}) == [one.key for one in backups[47::48]]


# --- a life of three years, pruned every night


def nightly(days: int, start: datetime) -> List[BackupInfo]:
    return [backup(start + timedelta(days=number)) for number in range(days)]


def lived(backups: Sequence[BackupInfo], policy: Retention) -> List[str]:
    """The keys that are left, newest first, when every backup was followed by a pruning."""
    held: List[BackupInfo] = []
    for one in backups:
        held.append(one)
        stays = retention.reasons(held, policy, moment_of(one) + timedelta(minutes=5))
        held = [each for each in held if each.key in stays]
    return [one.time[:10] for one in held][::-1]


def test_three_years_of_nights() -> None:
    """2024-01-01 to 2026-12-31, over a leap day: 7 days, 5 weeks, 12 months, 3 years, by the calendar on the wall."""
    backups = nightly(366 + 365 + 365, datetime(2024, 1, 1, 2, tzinfo=UTC))
    left = lived(backups, Retention(keep_daily=7, keep_weekly=5, keep_monthly=12, keep_yearly=3))
    days = ["2026-12-%02d" % day for day in range(31, 24, -1)]
    sundays = ["2026-12-27", "2026-12-20", "2026-12-13", "2026-12-06"]  # the fifth week is the last one, up to its 31st
    months = ["2026-%02d-%02d" % (number + 1, last) for number, last in enumerate(
        [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])]  # fmt: skip
    years = ["2026-12-31", "2025-12-31", "2024-12-31"]
    assert left == sorted({*days, *sundays, *months, *years}, reverse=True)
    why = retention.reasons(backups, Retention(keep_weekly=5), after(backups))
    assert list(why.values()) == [
        ("weekly 2026-W53",), ("weekly 2026-W52",), ("weekly 2026-W51",), ("weekly 2026-W50",), ("weekly 2026-W49",),
    ]  # fmt: skip


@pytest.mark.parametrize("rule", RULES[1:])
def test_long_rules_alone_survive_daily_pruning(rule: str) -> None:
    """The classical fault: a weekly or monthly rule that, run every day, lets its only candidate go."""
    backups = nightly(3 * 366, datetime(2023, 6, 15, 2, tzinfo=UTC))
    policy = Retention(**{"keep_" + rule: 3})
    assert len(lived(backups, policy)) == 3
    assert set(lived(backups, policy)) == {key[5:15] for key in kept(backups, policy, after(backups))}
    for days in range(1, len(backups), 97):  # and at any moment on the way
        seen = lived(backups[:days], policy)
        periods = {period(rule, moment_of(one)) for one in backups[:days]}
        assert len(seen) == min(3, len(periods))


def test_a_leap_day_is_a_day_of_its_own() -> None:
    backups = [backup(datetime(2024, 2, 28, 2, tzinfo=UTC) + timedelta(days=number)) for number in range(3)]
    why = retention.reasons(backups, Retention(keep_daily=2), after(backups))
    assert list(why.values()) == [("daily 2024-03-01",), ("daily 2024-02-29",)]
    assert retention.reasons(backups, Retention(keep_monthly=2), after(backups)) == {
        backups[2].key: ("monthly 2024-03",),
        backups[1].key: ("monthly 2024-02",),
    }


def test_a_gap_takes_no_place() -> None:
    """Nothing for two years: the three months kept are those that have a backup."""
    moments = [datetime(2023, 1, 9, tzinfo=UTC), datetime(2023, 2, 9, tzinfo=UTC), datetime(2025, 6, 1, tzinfo=UTC)]
    backups = [backup(moment) for moment in moments]
    assert kept(backups, Retention(keep_monthly=3), after(backups)) == {one.key for one in backups}


def test_younger_is_by_the_second() -> None:
    """And a clock that is a little behind keeps nothing that no rule keeps."""
    backups = nightly(3, datetime(2026, 1, 1, tzinfo=UTC))
    now = moment_of(backups[2]) + timedelta(hours=1)
    assert kept(backups, Retention(keep_within=90000), now) == {backups[2].key}
    assert kept(backups, Retention(keep_within=90001), now) == {backups[1].key, backups[2].key}
    behind = moment_of(backups[1]) - timedelta(minutes=1)
    assert retention.reasons(backups, Retention(keep_last=1), behind) == {backups[2].key: ("last 1",)}


def test_the_floor_counts_and_says_so() -> None:
    backups = nightly(5, datetime(2026, 1, 1, tzinfo=UTC))
    why = retention.reasons(backups, Retention(keep_within=60, min_keep=3), after(backups, 86400 * 30))
    assert list(why.items()) == [
        (backups[4].key, ("minimum 1",)), (backups[3].key, ("minimum 2",)), (backups[2].key, ("minimum 3",)),
    ]  # fmt: skip


def test_no_policy_keeps_everything_and_says_so() -> None:
    backups = nightly(5, datetime(2026, 1, 1, tzinfo=UTC))
    for policy in (Retention(), Retention(min_keep=4)):
        why: Dict[str, retention.Reasons] = retention.reasons(backups, policy, after(backups))
        assert retention.is_empty(policy) and why == {one.key: ("no policy",) for one in backups}
    assert not any(
        retention.is_empty(Retention(**{one.name: 1})) for one in fields(Retention) if one.name != "min_keep"
    )


def test_a_backup_of_tomorrow_is_seen() -> None:
    backups = nightly(3, datetime(2026, 1, 1, tzinfo=UTC))
    newest = moment_of(backups[-1])
    assert retention.in_the_future(backups, newest - timedelta(minutes=6)) == [backups[2]]
    assert retention.in_the_future(backups, newest - timedelta(minutes=4)) == []


@pytest.mark.parametrize("seconds, text", [(1, "1s"), (90, "90s"), (5400, "90m"), (129600, "36h"), (604800, "7d")])
def test_span(seconds: int, text: str) -> None:
    assert retention.span(seconds) == text
    assert retention.takes_a_place(("within " + text,)) is False
    assert retention.takes_a_place(("within " + text, "last 1")) is True
