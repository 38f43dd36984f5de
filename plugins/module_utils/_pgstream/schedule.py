# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When was a cron schedule last due, and when is it next? Minutes in UTC, so no hour is missed or comes twice.

The five fields of crontab(5): minute, hour, day of month, month, weekday; `*`, lists, ranges, steps, English names, and
`@hourly` to `@yearly`. What cron programs read differently is refused with a sentence instead of guessed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Dict, FrozenSet, Optional, Set, Tuple

_MONTHS = {name: number for number, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_WEEKDAYS = {name: number for number, name in enumerate("sun mon tue wed thu fri sat".split())}
_FIELDS: Tuple[Tuple[str, int, int, Dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("weekday", 0, 7, _WEEKDAYS),  # 0 and 7 are Sunday
)
_SHORTHANDS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_LONGEST_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# A 29 February can be 8 years away (1900 and 2100 have none); one on a given weekday 40 years.
_DAYS_SEARCHED = 41 * 366


@dataclass(frozen=True)
class Schedule:
    """A parsed expression. `either_day`: date or weekday suffices, as with cron when both are given."""

    text: str
    minutes: FrozenSet[int]
    hours: FrozenSet[int]
    days: FrozenSet[int]
    months: FrozenSet[int]
    weekdays: FrozenSet[int]  # 0 is Sunday
    either_day: bool

    def last_due(self, at: datetime) -> Optional[datetime]:
        """The newest due time at or before `at`; None when there is none in 41 years."""
        return self._search(at, -1)

    def next_due(self, after: datetime) -> Optional[datetime]:
        """The first due time later than `after`; None when there is none in 41 years."""
        return self._search(after, 1)

    def _search(self, moment: datetime, step: int) -> Optional[datetime]:
        if moment.tzinfo is None:
            raise ValueError("a time without a zone")
        moment = moment.astimezone(timezone.utc)
        backwards = step < 0
        day = moment.replace(hour=0, minute=0, second=0, microsecond=0)
        for _count in range(_DAYS_SEARCHED):
            if self._on_day(day):
                for hour in sorted(self.hours, reverse=backwards):
                    for minute in sorted(self.minutes, reverse=backwards):
                        found = day.replace(hour=hour, minute=minute)
                        if found <= moment if backwards else found > moment:
                            return found
            try:
                day += timedelta(days=step)
            except OverflowError:  # the calendar's end
                return None
        return None

    def _on_day(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        by_date, by_weekday = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return by_date or by_weekday if self.either_day else by_date and by_weekday


def parse(text: str) -> Schedule:
    """An expression such as `0 2 * * *` or `@daily`. ValueError with a sentence for anything else."""
    words = _SHORTHANDS.get(text.strip().lower(), text).split()
    if len(words) != len(_FIELDS):
        raise ValueError("%r is not a schedule of five fields such as 0 2 * * * or @daily" % text)
    values = [_field(word, *field) for word, field in zip(words, _FIELDS)]
    minutes, hours, days, months, weekdays = values
    weekdays = frozenset(number % 7 for number in weekdays)
    by_date, by_weekday = words[2] != "*", words[4] != "*"
    if by_date and by_weekday and "*" in (words[2][0], words[4][0]):
        # Vixie cron wants both to match then, BusyBox either.
        raise ValueError("%r: a step from * beside another day field means other days to other crons" % text)
    if not by_weekday and not any(min(days) <= _LONGEST_MONTH[month - 1] for month in months):
        raise ValueError("%r never comes: no such month has that day" % text)
    return Schedule(" ".join(words), minutes, hours, days, months, weekdays, by_date and by_weekday)


def _field(word: str, name: str, low: int, high: int, names: Dict[str, int]) -> FrozenSet[int]:
    found: Set[int] = set()
    for part in word.split(","):
        match = re.fullmatch(r"(\*|(\w+)(?:-(\w+))?)(?:/(\d{1,4}))?", part, re.ASCII)
        if match is None or (match[4] and match[1] != "*" and not match[3]):
            raise ValueError("%s: %r is not a number, a range, * or a step of one of these" % (name, part))
        first = _number(match[2], name, low, high, names) if match[2] else low
        last = _number(match[3], name, low, high, names) if match[3] else first if match[2] else high
        step = int(match[4] or 1)
        if first > last:
            raise ValueError("%s: the range %r runs backwards" % (name, part))
        if not step:
            raise ValueError("%s: the step of %r is 0" % (name, part))
        found.update(range(first, last + 1, step))
    return frozenset(found)


def _number(word: str, name: str, low: int, high: int, names: Dict[str, int]) -> int:
    number = names.get(word.lower(), int(word) if re.fullmatch(r"\d{1,4}", word, re.ASCII) else -1)
    if not low <= number <= high:
        raise ValueError("%s: %r is not from %d to %d" % (name, word, low, high))
    return number
