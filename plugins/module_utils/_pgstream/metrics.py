# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The facts as Prometheus metrics. Names follow https://prometheus.io/docs/practices/naming/ and never change meaning.

Counters and the histogram come out of the ledger, so a restart of the exporter does not set them back.
"""

from __future__ import annotations

import platform
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from .bucket_watch import Listing
from .errors import LockedError
from .health import FAILING, Health
from .ledger import BOUNDS, FAILURE, RUNNING, SUCCESS, Group, Run, Totals, View, proves
from .model import ENGINE_VERSION, FORMAT_VERSION, LEVELS
from .observer import Facts

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
    from prometheus_client.metrics_core import Metric
    from prometheus_client.utils import floatToGoString
except ImportError:
    pass  # `exporter`, the only way here, says so

Sample = Tuple[Sequence[str], Optional[float]]  # label values; None: no sample
GROUP = ("operation", "database")
DATABASE = ("database",)


def families(facts: Facts) -> Iterator[Metric]:
    """Everything `/metrics` shows."""
    info = {"version": ENGINE_VERSION, "format": str(FORMAT_VERSION), "python": platform.python_version()}
    yield _gauge("build_info", "Always 1; the labels tell the versions.", info, [(tuple(info.values()), 1)])
    yield _one("collected_timestamp_seconds", "When these metrics were computed.", facts.now)
    if facts.has_ledger:
        yield _one("ledger_up", "1 if the run ledger could be read.", facts.view is not None)
    if facts.view is not None:
        yield from _counters(facts.view)
        yield from _last_runs(facts.view.groups())
    if facts.health is not None:
        yield from _judgement(facts.health)
    if facts.store:
        yield from _store(facts.listing, facts.now)


def _counters(view: View) -> Iterator[Metric]:
    runs = CounterMetricFamily("pgbackup_runs", "Runs that ended, by how they ended.", labels=[*GROUP, "status"])
    durations = HistogramMetricFamily(
        "pgbackup_run_duration_seconds", "Duration of the runs that succeeded.", labels=GROUP
    )
    # A database's counters begin at 0, not with its first run: else the first failure would be no increase.
    for group in view.groups():
        totals = view.totals.get(group, Totals())
        runs.add_metric([*group, SUCCESS], totals.succeeded)
        runs.add_metric([*group, FAILURE], totals.failed)
        buckets, count = [], 0
        for bound in BOUNDS:
            count += totals.durations.get(bound, 0)
            buckets.append((floatToGoString(bound), count))  # type: ignore[no-untyped-call]
        durations.add_metric(group, buckets, totals.seconds)
    yield runs
    yield durations


def _last_runs(groups: Dict[Group, List[Run]]) -> Iterator[Metric]:
    ended = {
        # A run that found another one at work says nothing of the backups.
        group: [run for run in runs if run.status != RUNNING and run.exit_code != LockedError.exit_code]
        for group, runs in groups.items()
    }

    def first(runs: Iterable[Run], fits: Callable[[Run], bool], value: Callable[[Run], float]) -> Optional[float]:
        return next((float(value(run)) for run in runs if fits(run)), None)

    def each(
        name: str,
        text: str,
        fits: Callable[[Run], bool],
        value: Callable[[Run], float],
        among: Dict[Group, List[Run]] = ended,
    ) -> Metric:
        return _gauge(name, text, GROUP, [(group, first(runs, fits, value)) for group, runs in among.items()])

    def any_run(_run: Run) -> bool:
        return True

    def good(run: Run) -> bool:
        return run.status == SUCCESS

    def worked(run: Run) -> bool:
        return run.worked

    def running(run: Run) -> bool:
        return run.status == RUNNING

    yield each("last_run_timestamp_seconds", "When the last run ended.", any_run, lambda run: run.ended)
    yield each("last_run_success", "1 if the last run that ended succeeded.", any_run, good)
    yield each("last_success_timestamp_seconds", "When the last successful run ended.", good, lambda run: run.ended)
    text = "Duration of the last run that succeeded and had something to do."
    yield each("last_success_duration_seconds", text, worked, lambda run: run.seconds)
    text = "When the run that is underway began, the oldest of several; absent while none is."
    oldest_first = {group: runs[::-1] for group, runs in groups.items()}
    yield each("running_since_timestamp_seconds", text, running, lambda run: run.started, oldest_first)

    def by_database(
        name: str, text: str, operation: str, fits: Callable[[Run], bool], value: Callable[[Run], float]
    ) -> Metric:
        found = [((group[1],), first(runs, fits, value)) for group, runs in ended.items() if group[0] == operation]
        return _gauge(name, text, DATABASE, found)

    last = "last successful backup"
    yield by_database(
        "last_backup_stored_bytes", "Size of the %s as stored." % last, "backup", worked, lambda run: run.stored_bytes
    )
    yield by_database(
        "last_backup_raw_bytes", "Size of the %s uncompressed." % last, "backup", worked, lambda run: run.raw_bytes
    )
    yield by_database("last_backup_rows", "Rows in the %s." % last, "backup", worked, lambda run: run.rows)
    yield by_database("last_backup_tables", "Tables in the %s." % last, "backup", worked, lambda run: run.tables)

    def by_level(name: str, text: str, value: Callable[[Run], float]) -> Metric:
        found = [
            ((database, level), first(runs, lambda run, level=level: proves(run, level), value))  # type: ignore[misc]
            for (operation, database), runs in ended.items()
            for level in LEVELS
            if operation == "verify" and database  # without a name it was none of a backup, and no success ends it
        ]
        return _gauge(name, text, (*DATABASE, "level"), found)

    text = "When the last verification of a backup ended, of this level or one that proves more."
    yield by_level("last_verification_timestamp_seconds", text, lambda run: run.ended)
    yield by_level("last_verification_success", "1 if that verification found no fault.", good)


def _judgement(found: Health) -> Iterator[Metric]:
    yield _one("healthy", "1 if the last backups succeeded in time, or none was due yet.", found.ok)
    names = [((one.database,), float(one.overdue)) for one in found.databases]
    if found.timed:
        yield _gauge("backup_overdue", "1 if no backup succeeded since it was due.", DATABASE, names)
    failing = [((one.database,), float(one.state != FAILING)) for one in found.databases]
    yield _gauge("database_healthy", "1 if the database's last backup succeeded in time.", DATABASE, failing)


def _store(listing: Optional[Listing], now: float) -> Iterator[Metric]:
    if listing is None:
        return  # nothing is known yet, not even that it cannot be reached
    yield _one("bucket_up", "1 if the store could be listed.", not listing.error)
    if not listing.taken:
        return
    yield _one("bucket_listing_timestamp_seconds", "When the store was last listed.", listing.taken)
    yield _one("bucket_listing_duration_seconds", "Duration of the last listing of the store.", listing.seconds)
    text = " by database; empty for globals and for objects that are no backups."
    each = listing.databases.items()
    yield _gauge("bucket_objects", "Objects in the store," + text, DATABASE, [((n,), one.objects) for n, one in each])
    yield _gauge("bucket_bytes", "Bytes in the store," + text, DATABASE, [((n,), one.bytes) for n, one in each])
    newest = [((name,), one.newest) for name, one in each if name and one.newest]
    text = "When the newest backup in the store was begun."
    yield _gauge("newest_backup_timestamp_seconds", text, DATABASE, newest)
    ages = [(name, now - (begun or 0)) for name, begun in newest]
    yield _gauge("newest_backup_age_seconds", "Age of the newest backup in the store.", DATABASE, ages)


def _gauge(name: str, text: str, labels: Iterable[str], samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily("pgbackup_" + name, text, labels=list(labels))
    for values, value in samples:
        if value is not None:
            family.add_metric(list(values), float(value))
    return family


def _one(name: str, text: str, value: float) -> Metric:
    return _gauge(name, text, (), [((), value)])
