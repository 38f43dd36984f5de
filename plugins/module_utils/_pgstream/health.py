# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Are the backups in order: did the last one of each database succeed, and in time?

In time means: since the schedule was last due, a grace time for the run itself granted, and within BACKUP_MAX_AGE where
that is set. Where nothing has been due yet the state is `starting`, which is healthy. A run that found another one at
work (exit code 8) is no news of either kind. What is known comes from the run ledger alone: no server is asked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import List, Mapping, Optional, Sequence, Tuple

from . import catalog, config, config_cluster, schedule
from .errors import BackupError, LockedError, UsageError
from .ledger import FAILURE, RUNNING, SUCCESS, Ledger, Run, View
from .patterns import choose

GLOBALS = "(globals)"  # where a database would be named
OK, STARTING, FAILING = "ok", "starting", "failing"
DEFAULT_GRACE = "1h"
_FACT = "schedule"  # since when this schedule is in force: what was due earlier was not ours to run
_DAY = 86400


@dataclass(frozen=True)
class Policy:
    """What is expected. Durations in seconds."""

    schedule: Optional[schedule.Schedule] = None
    max_age: int = 0  # 0: any
    grace: int = 3600
    databases: Tuple[str, ...] = ()  # empty: those seen of late
    globals: bool = False


@dataclass(frozen=True)
class Verdict:
    """On one database. `overdue`: nothing succeeded in time; a failed run alone does not make it so."""

    database: str
    state: str
    message: str
    overdue: bool = False


@dataclass(frozen=True)
class Health:
    """Times in RFC 3339, empty where there is none. `last_due` is the one that had to be done by now.

    `timed`: something is expected by a time, so that a database can be overdue.
    """

    ok: bool
    state: str
    message: str
    last_due: str = ""
    next_due: str = ""
    timed: bool = False
    databases: Tuple[Verdict, ...] = ()


def policy(environ: Mapping[str, str]) -> Policy:
    """What the variables say that also govern the schedule. UsageError names every fault.

    BACKUP_SCHEDULE, BACKUP_MAX_AGE and BACKUP_GRACE, to which the longest BACKUP_START_DELAY is added; and which
    databases: BACKUP_DATABASES, where these are patterns or with BACKUP_ALL_DATABASES those seen of late, else
    POSTGRES_DB.
    """
    faults: List[str] = []
    with_globals = False

    def seconds(name: str, default: str = "0s") -> int:
        try:
            return config.duration(environ.get(name) or default)
        except ValueError as error:
            faults.append("%s: %s" % (name, error))
            return 0

    when = None
    try:
        when = schedule.parse(environ["BACKUP_SCHEDULE"]) if environ.get("BACKUP_SCHEDULE") else None
    except ValueError as error:
        faults.append("BACKUP_SCHEDULE: %s" % error)
    names: Tuple[str, ...] = ()
    try:
        wanted = config_cluster.of_job(environ)
        with_globals = wanted.globals
        if wanted.databases and wanted.fixed:
            names = tuple(choose((), wanted.databases, wanted.exclude)[0])
        elif not wanted.databases and environ.get("POSTGRES_DB"):
            names = (environ["POSTGRES_DB"],)
    except UsageError as error:
        faults.append(error.message)
    grace = seconds("BACKUP_GRACE", DEFAULT_GRACE) + seconds("BACKUP_START_DELAY")
    found = Policy(when, seconds("BACKUP_MAX_AGE"), grace, names, with_globals)
    if faults:
        raise UsageError("; ".join(faults), stage="configuration")
    return found


def look(environ: Mapping[str, str], now: Optional[float] = None) -> Health:
    """The health of the ledger in BACKUP_STATE_DIR. What keeps it from being known is `failing`, never raised."""
    moment = time.time() if now is None else now
    try:
        directory = environ.get("BACKUP_STATE_DIR", "")
        if not directory:
            raise UsageError("BACKUP_STATE_DIR is not set: nothing is known of past runs")
        wanted, ledger = policy(environ), Ledger(directory)
        view = ledger.view()
        expected = _fact(wanted)
        if view.facts.get(_FACT, ("",))[0] != expected:
            ledger.remember(_FACT, expected, moment)
            view = ledger.view()
        return judge(view, wanted, moment)
    except BackupError as error:
        return Health(False, FAILING, error.sentence())


def judge(view: View, wanted: Policy, now: float) -> Health:
    """All databases together: as bad as the worst, and then in its words."""
    since = _since(view, wanted, now)
    due = _at(wanted.schedule.last_due(_utc(now - wanted.grace))) if wanted.schedule else None
    following = _at(wanted.schedule.next_due(_utc(now))) if wanted.schedule else None
    due = due if due is not None and due >= since else None
    names = wanted.databases or _of_late(view, wanted, now)
    groups = view.groups()
    verdicts = tuple(_verdict(name, groups.get(("backup", name), []), wanted, due, since, now) for name in names)
    if wanted.globals:
        verdicts += (_verdict(GLOBALS, groups.get(("globals", ""), []), wanted, due, since, now),)
    failing = [verdict for verdict in verdicts if verdict.state == FAILING]
    good = [verdict for verdict in verdicts if verdict.state == OK]
    if failing:
        state, message = FAILING, " ".join(verdict.message for verdict in failing)
    elif not verdicts and due is not None:
        state, message = FAILING, "The backup due at %s did not run." % clock(due)
    elif not good:
        state, message = STARTING, "No backup has been due yet."
    else:
        state = OK
        count = sum(verdict.database != GLOBALS for verdict in good)
        message = good[0].message if len(names) == 1 else "The backups of %d databases are in order." % count
    timed = bool(wanted.schedule or wanted.max_age)
    return Health(state != FAILING, state, message, _text(due), _text(following), timed, verdicts)


def clock(moment: float) -> str:
    """`2026-01-31 02:00 UTC`."""
    return _utc(moment).strftime("%Y-%m-%d %H:%M UTC")


def _verdict(
    database: str, runs: Sequence[Run], wanted: Policy, due: Optional[float], since: float, now: float
) -> Verdict:
    name = database or "a database without a name"
    horizon = now + catalog.CLOCK_TOLERANCE.total_seconds()  # what began later would count as in time for ever
    ended = [run for run in runs if run.status != RUNNING and run.exit_code != LockedError.exit_code]
    ended = [run for run in ended if run.started <= horizon]
    success = next((run for run in ended if run.status == SUCCESS), None)
    running = next((run for run in runs if run.status == RUNNING), None)
    late = ""
    if due is not None and not any(run.status == SUCCESS and run.started >= due for run in ended):
        late = "The backup of %s due at %s has not succeeded" % (name, clock(due))
        late += ": it has been running since %s." % clock(running.started) if running else "."
    elif wanted.max_age and now - (success.ended if success else since) > wanted.max_age:
        last = "last on %s" % clock(success.ended) if success else "never"
        late = "No backup of %s succeeded within %s: %s." % (name, _span(wanted.max_age), last)
    if ended and ended[0].status == FAILURE:
        why = ended[0].message.strip() or "no reason is known"
        failed = "The last backup of %s failed at %s: %s" % (name, clock(ended[0].ended), why)
        return Verdict(database, FAILING, failed + ("" if failed.endswith((".", "!", "?")) else "."), bool(late))
    if late:
        return Verdict(database, FAILING, late, True)
    if success is None:
        return Verdict(database, STARTING, "No backup of %s has been due yet." % name)
    return Verdict(database, OK, "The last backup of %s succeeded at %s." % (name, clock(success.ended)))


def _of_late(view: View, wanted: Policy, now: float) -> Tuple[str, ...]:
    """Which databases are being backed up, where nobody named them: those not left out twice in a row. So one that
    was dropped stops being missed, and all of them are missed when nothing runs any more."""
    newest = {run.database: run.ended for run in reversed(view.runs) if run.operation == "backup"}
    if newest.get("", 0.0) < max(newest.values(), default=0.0):
        newest.pop("", None)  # a run that was given no name, and later ones were
    period = float(wanted.max_age or _DAY)
    if wanted.schedule:
        dues: List[float] = []
        moment: Optional[float] = now
        while moment is not None and len(dues) < 8:  # more than a week of days, so that a weekend counts
            moment = _at(wanted.schedule.last_due(_utc(moment - 1)))
            dues += [moment] if moment is not None else []
        period = max([earlier - later for earlier, later in zip(dues, dues[1:])] or [period])
    horizon = max(newest.values(), default=0.0) - 2 * period - wanted.grace
    return tuple(sorted(name for name, ended in newest.items() if ended >= horizon))


def _since(view: View, wanted: Policy, now: float) -> float:
    """Since when this policy is in force, as the container's health check noted it; else since the first known run."""
    value, since = view.facts.get(_FACT, ("", 0.0))
    if value == _fact(wanted):
        return since
    return min((run.started for run in view.runs), default=now)


def _fact(wanted: Policy) -> str:
    return wanted.schedule.text if wanted.schedule else "none"


def _utc(moment: float) -> datetime:
    return datetime.fromtimestamp(moment, timezone.utc)


def _at(moment: Optional[datetime]) -> Optional[float]:
    return None if moment is None else moment.timestamp()


def _text(moment: Optional[float]) -> str:
    return "" if moment is None else _utc(moment).strftime("%Y-%m-%dT%H:%M:%SZ")


def _span(seconds: int) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds % size == 0:
            return "%d%s" % (seconds // size, unit)
    return "%ds" % seconds
