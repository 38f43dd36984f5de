# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When a schedule was last due and is next: examples, what is refused, and an oracle that tries every minute."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from _pgstream import schedule
from hypothesis import given, settings
from hypothesis import strategies as st

UTC = timezone.utc


def at(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text, moment, last, following",
    [
        ("0 2 * * *", "2026-01-31 01:59", "2026-01-30 02:00", "2026-01-31 02:00"),
        ("0 2 * * *", "2026-01-31 02:00", "2026-01-31 02:00", "2026-02-01 02:00"),
        ("@daily", "2026-01-31 02:00", "2026-01-31 00:00", "2026-02-01 00:00"),
        ("@hourly", "2026-01-31 02:59", "2026-01-31 02:00", "2026-01-31 03:00"),
        ("@weekly", "2026-01-31 02:00", "2026-01-25 00:00", "2026-02-01 00:00"),  # Sundays
        ("@Monthly", "2026-01-31 02:00", "2026-01-01 00:00", "2026-02-01 00:00"),
        ("@yearly", "2026-01-31 02:00", "2026-01-01 00:00", "2027-01-01 00:00"),
        ("*/15 * * * *", "2026-01-31 02:44", "2026-01-31 02:30", "2026-01-31 02:45"),
        ("5,35 1-3/2 * * *", "2026-01-31 02:00", "2026-01-31 01:35", "2026-01-31 03:05"),
        ("0 0 * * mon-fri", "2026-02-01 12:00", "2026-01-30 00:00", "2026-02-02 00:00"),
        ("0 0 * * 7", "2026-01-31 12:00", "2026-01-25 00:00", "2026-02-01 00:00"),
        ("0 0 * * 5-7", "2026-02-02 12:00", "2026-02-01 00:00", "2026-02-06 00:00"),
        ("0 0 31 * *", "2026-03-30 00:00", "2026-01-31 00:00", "2026-03-31 00:00"),
        ("0 0 29 FEB *", "2026-01-31 00:00", "2024-02-29 00:00", "2028-02-29 00:00"),
        ("0 0 29 2 *", "1903-01-01 00:00", "1896-02-29 00:00", "1904-02-29 00:00"),
        ("0 0 13 * fri", "2026-02-12 00:00", "2026-02-06 00:00", "2026-02-13 00:00"),  # either
        ("0 0 13 * fri", "2026-01-14 00:00", "2026-01-13 00:00", "2026-01-16 00:00"),
        ("30 1 * * *", "2026-03-29 01:30", "2026-03-29 01:30", "2026-03-30 01:30"),  # a night of DST elsewhere
    ],
)
def test_examples(text: str, moment: str, last: str, following: str) -> None:
    found = schedule.parse(text)
    assert (found.last_due(at(moment)), found.next_due(at(moment))) == (at(last), at(following))


@pytest.mark.parametrize(
    "text, why",
    [
        ("", "five fields"),
        ("* * * *", "five fields"),
        ("0 2 * * * root", "five fields"),
        ("@reboot", "five fields"),
        ("60 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "weekday"),
        ("* * * * mo", "weekday"),
        ("jan * * * *", "minute"),
        ("5-1 * * * *", "backwards"),
        ("fri * * * *", "minute"),
        ("* * * * fri-mon", "backwards"),
        ("*/0 * * * *", "step"),
        ("5/10 * * * *", "not a number"),
        ("1,,2 * * * *", "not a number"),
        ("-1 * * * *", "not a number"),
        ("\u0665 * * * *", "not a number"),
        ("0 0 30 2 *", "never comes"),
        ("0 0 31 4,6,9,11 *", "never comes"),
        ("0 0 */2 * mon", "other days"),
        ("0 0 1 * */2", "other days"),
    ],
)
def test_refused_with_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        schedule.parse(text)


def test_a_time_needs_a_zone_and_any_zone_is_the_same_moment() -> None:
    found = schedule.parse("30 2 * * *")
    with pytest.raises(ValueError, match="zone"):
        found.last_due(datetime(2026, 1, 1))
    moment = at("2026-03-29 02:15")
    elsewhere = moment.astimezone(timezone(timedelta(hours=-9, minutes=-30)))
    assert found.last_due(elsewhere) == found.last_due(moment) == at("2026-03-28 02:30")


def test_the_calendar_has_ends() -> None:
    found = schedule.parse("@yearly")
    assert found.last_due(datetime(1, 1, 1, tzinfo=UTC)) == datetime(1, 1, 1, tzinfo=UTC)
    assert found.next_due(datetime(9999, 12, 31, tzinfo=UTC)) is None


def _field(low: int, high: int) -> "st.SearchStrategy[str]":
    number = st.integers(low, high)
    span = st.tuples(number, number, st.integers(1, 9)).map(lambda t: "%d-%d/%d" % (min(t[:2]), max(t[:2]), t[2]))
    item = st.one_of(number.map(str), span)
    return st.one_of(
        st.just("*"), st.integers(1, 30).map("*/%d".__mod__), st.lists(item, min_size=1, max_size=3).map(",".join)
    )


DAYS = st.one_of(
    st.tuples(_field(1, 31), st.just("*")),
    st.tuples(st.just("*"), _field(0, 7)),
    st.tuples(st.integers(1, 28).map(str), st.integers(0, 7).map(str)),
)


def _matches(field: str, value: int, low: int, high: int) -> bool:
    """Written apart from the code under test: is the number one of the field's?"""
    for part in field.split(","):
        body, _slash, step = part.partition("/")
        first, _dash, last = ("%d-%d" % (low, high) if body == "*" else body).partition("-")
        if int(first) <= value <= int(last or first) and (value - int(first)) % int(step or 1) == 0:
            return True
    return False


def _due(text: str, moment: datetime) -> bool:
    minute, hour, day, month, weekday = text.split()
    today = (moment.weekday() + 1) % 7
    by_date = _matches(day, moment.day, 1, 31)
    by_weekday = _matches(weekday, today, 0, 6) or (today == 0 and weekday[0] != "*" and _matches(weekday, 7, 0, 7))
    days = by_date or by_weekday if "*" not in (day, weekday) else by_date and by_weekday
    return days and _matches(minute, moment.minute, 0, 59) and _matches(hour, moment.hour, 0, 23) and (
        _matches(month, moment.month, 1, 12)
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(_field(0, 59), _field(0, 23), DAYS, st.datetimes(datetime(2023, 1, 1), datetime(2031, 1, 1)))
def test_no_minute_is_missed_or_added(minute: str, hour: str, days: tuple, moment: datetime) -> None:
    text = "%s %s %s * %s" % (minute, hour, *days)
    moment = moment.replace(tzinfo=UTC)
    found = schedule.parse(text)
    last = found.last_due(moment)
    step = moment.replace(second=0, microsecond=0)
    for _minute in range(3 * 1440):
        if _due(text, step):
            assert last == step
            break
        step -= timedelta(minutes=1)
    else:
        assert last is not None and last <= step


@settings(max_examples=150, deadline=None)
@given(_field(0, 59), _field(0, 23), DAYS, _field(1, 12), st.datetimes(datetime(2023, 1, 1), datetime(2031, 1, 1)))
def test_last_and_next_agree(minute: str, hour: str, days: tuple, month: str, moment: datetime) -> None:
    text = "%s %s %s %s %s" % (minute, hour, days[0], month, days[1])
    moment = moment.replace(tzinfo=UTC)
    try:
        found = schedule.parse(text)
    except ValueError as error:
        assert "never comes" in str(error)
        return
    last, following = found.last_due(moment), found.next_due(moment)
    assert last is not None and following is not None
    assert last <= moment < following
    assert _due(text, last) and _due(text, following)
    assert found.last_due(following) == following and found.next_due(last) == following
    assert found.last_due(following - timedelta(seconds=1)) == last
