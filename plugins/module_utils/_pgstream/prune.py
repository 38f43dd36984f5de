# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Removes the backups of one database, or of the globals, that a retention policy does not keep, and says of each why
it stays or goes. Backups of one part of a database are a series of their own, to which the policy applies by itself.

Only what this engine wrote goes: under the template's name, right under the prefix, with a footer. Everything is known
before anything is removed: the whole listing, that the clock can be right, that the last backup did not fail (of a
part: then its series stay, whichever they are), and that the newest good backup of each series has a sound index.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Dict, List, Optional, Sequence, Tuple

from . import catalog, retention
from .errors import BackupError, IntegrityError, LockedError, NotFoundError, StorageError, UsageError
from .events import Log, utc_now
from .model import BackupInfo, KeptBackup, PruneRequest, PruneResult, RemovedBackup
from .stages import stage
from .store.base import LOCKED, REMOVED, Store, open_store

FOREIGN = ("foreign",)
FAILED_RUN = ("failed run",)
_READERS = 8  # footers read at once


@dataclass(frozen=True)
class Plan:
    """What stays, newest first, and what goes, oldest first."""

    kept: Tuple[KeptBackup, ...]
    going: Tuple[BackupInfo, ...]


def prune(request: PruneRequest, log: Optional[Log] = None) -> PruneResult:
    """Remove what the policy does not keep. Raises BackupError before anything is removed; StorageError also where the
    store refuses some of it, when the rest is gone (each has its event, `backup_removed`)."""
    log, began = log or Log(request.correlation_id, "prune", request.database), time.monotonic()
    with stage("retention"):
        store = open_store(request.storage)
        plan = decide(store, request)
        with stage("removing backups"):
            removed, locked = _remove(store, plan.going, log)
    kept = sorted(plan.kept + locked, key=lambda one: (one.time, one.key), reverse=True)
    return _result(request, tuple(kept), removed, time.monotonic() - began, "removed")


def predict_prune(request: PruneRequest, log: Optional[Log] = None) -> PruneResult:
    """What `prune` would do, changing nothing. Which ones are under object lock only the store knows, when asked."""
    began = time.monotonic()
    with stage("retention"):
        plan = decide(open_store(request.storage), request)
    removed = tuple(RemovedBackup(one.key, one.size, one.time) for one in plan.going)
    return _result(request, plan.kept, removed, time.monotonic() - began, "would be removed")


def decide(store: Store, request: PruneRequest) -> Plan:
    """Look and judge; removes nothing. Raises BackupError where it would not be safe to remove anything."""
    if not (request.database or request.globals):
        raise UsageError("neither a database nor globals: whose backups to prune is not said")
    found = catalog.candidates(store, request.database, direct=True, only_globals=request.globals)
    found = retention.in_order(found)
    policy, now = request.retention, utc_now()
    if retention.is_empty(policy):
        return Plan(tuple(_kept(one, (retention.NO_POLICY,)) for one in found), ())
    if _last_failed(request, "globals" if request.globals else "backup"):
        raise BackupError(
            "the last backup of %s failed: nothing is removed" % (request.database or "the globals"),
            hint="Prune again after one that succeeds.",
        )
    future = retention.in_the_future(found, now)
    if future:
        raise BackupError(
            "%s would be made after now, %s: a clock is wrong, nothing is removed"
            % (future[0].key, now.strftime("%Y-%m-%dT%H:%M:%SZ")),
            hint="Set the clock, or move that backup away.",
        )
    stays: Dict[str, retention.Reasons] = {one.key: FOREIGN for one in found}
    going: List[BackupInfo] = []
    parts = list(dict.fromkeys(one.part for one in found))
    if any(parts) and _last_failed(request, "backup_part"):  # no news of the whole; which part it was is not known
        stays.update((one.key, FAILED_RUN) for one in found if one.part)
        parts = [""]
    for part in parts:
        good, why = _judged(store, [one for one in found if one.part == part], request, now)
        leaving = [one for one in good if one.key not in why]
        if leaving:
            _require_sound(store, good[0])
        if good and good[0] in leaving:
            raise BackupError("the newest good backup would be removed: a fault of this program, nothing is removed")
        stays.update(why)
        going += leaving
    going = retention.in_order(going)
    gone = {one.key for one in going}
    return Plan(tuple(_kept(one, stays[one.key]) for one in found if one.key not in gone), tuple(going[::-1]))


def _judged(
    store: Store, found: Sequence[BackupInfo], request: PruneRequest, now: datetime
) -> Tuple[List[BackupInfo], Dict[str, retention.Reasons]]:
    """The good backups of a series, newest first, and what keeps them.

    A foreign object takes no place in the policy, counts for no minimum and is not removed: so the footer is read of
    each that would do one of these, until no new one comes in. Where nothing would go even if all were good, nothing
    is read.
    """
    is_good: Dict[str, bool] = {}
    while True:
        good = [one for one in found if is_good.get(one.key, True)]
        why = retention.reasons(good, request.retention, now)
        matter = [one for one in good if one.key not in why or retention.takes_a_place(why[one.key])]
        matter += good[: max(1, request.retention.min_keep)]
        unread = [one for one in dict.fromkeys(matter) if one.key not in is_good]
        if not unread or len(why) == len(good):
            return good, why
        with ThreadPoolExecutor(_READERS) as pool:
            is_good.update(zip([one.key for one in unread], pool.map(lambda one: catalog.is_ours(store, one), unread)))


def _last_failed(request: PruneRequest, operation: str) -> bool:
    """Whether the newest run that ended of this operation failed. Raises LedgerError where nobody can tell."""
    if not request.state_dir:
        return False
    from .ledger import FAILURE, RUNNING, Ledger  # not every target host's Python has SQLite

    for run in Ledger(request.state_dir).view().runs:
        if (run.operation, run.database) != (operation, request.database):
            continue
        # One that runs, or that found another one at work, is no news of either kind.
        if run.status == RUNNING or run.exit_code == LockedError.exit_code:
            continue
        return run.status == FAILURE
    return False


def _require_sound(store: Store, newest: BackupInfo) -> None:
    """The others go because there is this one: its index must be whole, down to the last sum, and of what its
    key says. (Of an encrypted one, as far as this host can look.)"""
    item = store.stat(newest.key)
    if item is None or item.size != newest.size:
        raise NotFoundError("%s changed while it was looked at: nothing is removed" % newest.key)
    if not catalog.is_sound(store, item):
        raise IntegrityError("%s has no index any more: nothing is removed" % newest.key)


def _remove(
    store: Store, going: Sequence[BackupInfo], log: Log
) -> Tuple[Tuple[RemovedBackup, ...], Tuple[KeptBackup, ...]]:
    """What was removed, and what the store keeps under lock. The oldest go first: so whatever ends this early, no
    newer backup is gone while an older one of no use is there."""
    by_key = {one.key: one for one in going}
    removed: List[RemovedBackup] = []
    locked: List[KeptBackup] = []
    failed: List[str] = []
    try:
        for done in store.delete_many(list(by_key)):
            one = by_key[done.key]
            if done.outcome == REMOVED:
                removed.append(RemovedBackup(one.key, one.size, one.time))
                log.info("backup_removed", key=one.key, bytes=one.size)
            elif done.outcome == LOCKED:
                locked.append(_kept(one, ("locked",)))
                log.info("backup_locked", key=one.key, detail=done.detail)
            else:
                failed.append("%s: %s" % (one.key, done.detail))
                log.warning("backup_not_removed", key=one.key, detail=done.detail)
    except StorageError as error:
        error.message += " (%d of %d backups were removed before)" % (len(removed), len(going))
        raise
    if failed:
        raise StorageError(
            "%d of %d backups could not be removed, first %s" % (len(failed), len(going), failed[0]),
            hint="%d were removed. See what the key may do with this bucket." % len(removed),
        )
    return tuple(removed), tuple(locked)


def _kept(one: BackupInfo, why: retention.Reasons) -> KeptBackup:
    return KeptBackup(one.key, one.size, one.time, why)


def _result(
    request: PruneRequest,
    kept: Tuple[KeptBackup, ...],
    removed: Tuple[RemovedBackup, ...],
    seconds: float,
    verb: str,
) -> PruneResult:
    if retention.is_empty(request.retention):
        message = "no retention policy is set, so nothing is removed"
    else:
        message = "%d backups %s, %d kept" % (len(removed), verb, len(kept))
    return PruneResult(
        changed=bool(removed),
        database=request.database,
        correlation_id=request.correlation_id,
        kept=kept,
        removed=removed,
        freed_bytes=sum(one.size for one in removed),
        seconds=round(seconds, 3),
        message=message,
    )
