# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backups a retention policy keeps, and why. Pure: no clock, no store.

The newest backup of a period stands for it, and a rule keeps those of the newest periods that have one. While a period
lasts, its newest backup is the newest of all, which every rule keeps; so pruning after each backup keeps exactly what
pruning once, later, would have kept. (If the oldest stood for its period, weekly ones would vanish before their time.)
Periods are of UTC, where no hour is missed or comes twice; weeks are those of ISO 8601.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Dict, List, Sequence, Tuple

from .catalog import is_future, parse_time
from .model import BackupInfo, Retention

Reasons = Tuple[str, ...]

NO_POLICY = "no policy"
#: Rule and how its periods are called, which is also what tells them apart.
PERIODS = (
    ("hourly", "%Y-%m-%dT%H"),
    ("daily", "%Y-%m-%d"),
    ("weekly", "%G-W%V"),
    ("monthly", "%Y-%m"),
    ("yearly", "%Y"),
)
_WITHIN = "within "


def is_empty(policy: Retention) -> bool:
    """Whether no rule is set. A floor alone is no policy, and no policy is no deletion."""
    return replace(policy, min_keep=Retention.min_keep) == Retention()


def in_order(backups: Sequence[BackupInfo]) -> List[BackupInfo]:
    """Newest first by the time in the key, whatever order they came in."""
    return sorted(backups, key=lambda one: (one.time, one.key), reverse=True)


def reasons(backups: Sequence[BackupInfo], policy: Retention, now: datetime) -> Dict[str, Reasons]:
    """What keeps each backup, by key. A key that is not in the answer may go; the newest `min_keep` never do.

    `backups`: good ones of one series (a database, or one part of it), each with a time in its key.
    """
    ordered = in_order(backups)
    if is_empty(policy):
        return {one.key: (NO_POLICY,) for one in ordered}
    found: Dict[str, List[str]] = {one.key: [] for one in ordered}
    for number, one in enumerate(ordered[: policy.keep_last], 1):
        found[one.key].append("last %d" % number)
    times = {one.key: parse_time(one.time) for one in ordered}
    for rule, form in PERIODS:
        newest: Dict[str, BackupInfo] = {}  # in the order of the periods, newest first
        for one in ordered:
            newest.setdefault(times[one.key].strftime(form), one)
        for period, one in list(newest.items())[: getattr(policy, "keep_" + rule)]:
            found[one.key].append("%s %s" % (rule, period))
    for one in ordered if policy.keep_within else ():
        if (now - times[one.key]).total_seconds() < policy.keep_within:
            found[one.key].append(_WITHIN + span(policy.keep_within))
    for number, one in enumerate(ordered[: max(1, policy.min_keep)], 1):
        if not found[one.key]:
            found[one.key].append("minimum %d" % number)
    return {key: tuple(why) for key, why in found.items() if why}


def takes_a_place(why: Reasons) -> bool:
    """Whether one of these reasons is a place that another backup would have if this one were not there."""
    return any(not reason.startswith(_WITHIN) for reason in why)


def in_the_future(backups: Sequence[BackupInfo], now: datetime) -> List[BackupInfo]:
    """Those that claim to have been made later than now: their clock was wrong, or this one is."""
    return [one for one in backups if is_future(one.time, now)]


def span(seconds: int) -> str:
    """As it is written in options: `36h`, `7d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds % length == 0:
            return "%d%s" % (seconds // length, unit)
    return "%ds" % seconds
