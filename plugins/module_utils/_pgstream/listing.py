# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backups there are, with what is known of each: from the listing, from the run ledger, and of the newest ones from
the objects themselves.

A listing gives key, size and time. Whether an object is foreign, and its rows, only the object knows, by two small
requests: so that is asked of so many of the newest, and of none that the ledger knows.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Dict, List, Optional, Sequence, Tuple

from . import archive, catalog, retention
from .errors import IntegrityError, NotFoundError
from .events import Log, rfc3339, utc_now
from .model import LIST_DETAILS, BackupInfo, Retention, Storage
from .store.base import Store, open_store

if TYPE_CHECKING:
    from .ledger import Run  # else not: it wants SQLite, which not every target host's Python has

_READERS = 8  # objects looked into at once
_MADE = ("backup", "backup_part")  # runs of the ledger that made an object


def list_backups(
    storage: Storage,
    database: str = "",
    details: int = LIST_DETAILS,
    policy: Optional[Retention] = None,
    runs: Sequence[Run] = (),
) -> List[BackupInfo]:
    """Every object that could be a backup, newest first.

    `details`: how many of the newest are looked into; of the others `foreign` and what follows from the index are None,
    unless one of `runs`, those of the ledger, tells.
    """
    store, now = open_store(storage), utc_now()
    found = [_aged(one, now) for one in catalog.candidates(store, database)]
    made = {(run.key, run.stored_bytes): run for run in reversed(runs) if run.operation in _MADE and run.worked}
    found = [_from_run(one, made.get((one.key, one.size))) for one in found]
    with ThreadPoolExecutor(_READERS) as pool:
        looked = pool.map(lambda one: one if one.rows is not None else _looked_into(store, one), found[:details])
        found[:details] = list(looked)
    good = verified(runs)
    found = [_with(one, good[one.key]) if one.key in good else one for one in found]
    return _judged(storage, found, policy, now)


def known_runs(directory: str, log: Log) -> Sequence[Run]:
    """The runs that the ledger in `directory` (empty: none) has; where it cannot be read, none and a warning."""
    if not directory:
        return ()
    from .ledger import Ledger, LedgerError

    try:
        return Ledger(directory).view().runs
    except LedgerError as error:
        log.warning("ledger_unavailable", message=error.sentence() + ". Less may be known of each backup.")
        return ()


def verified(runs: Sequence[Run]) -> Dict[str, Run]:
    """The last success by key. A fault found after it takes it back; a server that could not be reached does not."""
    found: Dict[str, Run] = {}
    for run in reversed(runs):
        if run.operation != "verify" or not run.key:
            continue
        if run.worked:
            found[run.key] = run
        elif run.exit_code == IntegrityError.exit_code:
            found.pop(run.key, None)
    return found


def _with(one: BackupInfo, run: Run) -> BackupInfo:
    moment = datetime.fromtimestamp(int(run.ended), timezone.utc)
    return replace(one, verified_at=rfc3339(moment), verified_level=run.level)


def _aged(one: BackupInfo, now: datetime) -> BackupInfo:
    begun = catalog.parse_time(one.time or one.modified_at)
    return replace(one, age=max(0, int((now - begun).total_seconds())))


def _from_run(one: BackupInfo, run: Optional[Run]) -> BackupInfo:
    return one if run is None else _known(one, run.rows, run.raw_bytes, run.seconds)


def _looked_into(store: Store, one: BackupInfo) -> BackupInfo:
    try:
        header = store.sealed(one.key, one.size)
        if header is not None:
            return replace(one, foreign=not header.marked)
        size = store.contents_size(one.key, one.size)
        facts = archive.read_head(lambda offset, length: store.read(one.key, offset, length), size)
        if not facts:
            return replace(one, foreign=facts is None)
        one = replace(one, filtered=one.filtered or facts.get("filtered") is True)
        took = catalog.parse_time(facts["finished_at"]) - catalog.parse_time(facts["started_at"])
        return _known(one, int(facts["rows"]), int(facts["raw_bytes"]), took.total_seconds())
    except (IntegrityError, NotFoundError, KeyError, TypeError, ValueError):
        return replace(one, foreign=True)  # damaged, or removed meanwhile: nothing that we would vouch for


def _known(one: BackupInfo, rows: int, raw_bytes: int, seconds: float) -> BackupInfo:
    ratio = round(raw_bytes / one.size, 2) if one.size else None
    return replace(one, foreign=False, rows=rows, raw_bytes=raw_bytes, ratio=ratio, seconds=round(seconds, 3))


def _judged(storage: Storage, found: List[BackupInfo], policy: Optional[Retention], now: datetime) -> List[BackupInfo]:
    """With what keeps each one, as pruning would see it. What was not looked into is taken for good here."""
    if policy is None or retention.is_empty(policy):
        return found
    judged: Dict[Tuple[str, str], List[BackupInfo]] = {}
    for one in found:
        if one.time and not one.foreign and catalog.is_direct(storage, one):
            judged.setdefault((one.database, one.part), []).append(one)
    why: Dict[str, Tuple[str, ...]] = {}
    for backups in judged.values():
        why.update({one.key: () for one in backups})
        why.update(retention.reasons(backups, policy, now))
    return [replace(one, why=why.get(one.key)) for one in found]
