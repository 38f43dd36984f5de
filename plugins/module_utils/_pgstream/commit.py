# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What every backup does alike: find a free key or a fresh backup, and write an object that is whole or not there."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Callable, Iterable, Optional, Tuple

from . import catalog
from .errors import BackupError, IntegrityError, Interrupted, StorageError
from .events import Log, utc_now
from .model import BackupInfo, Index
from .process import Processes
from .stages import stage
from .store.base import Store, StoredObject, Upload

CLOCK = 0.1  # seconds between two looks at it


def written(
    upload: Upload,
    key: str,
    log: Log,
    processes: Processes,
    write: Callable[[], Index],
    last_look: Callable[[], None],
    first_cause: Callable[[BaseException], BaseException],
) -> Tuple[Index, StoredObject]:
    """`write` all of the object, take a `last_look` at its source, and commit. Whatever is raised instead of that,
    children are killed, the upload is aborted, and what `first_cause` makes of the error is raised; unless the object
    turns out to be there and whole all the same, and nothing was found to be wrong with it."""
    index: Optional[Index] = None
    try:
        index = write()
        with stage("commit"):
            last_look()
            stored = upload.commit()
    except BaseException as error:
        processes.kill_all()
        found = abort(upload, log)
        if found is None or index is None or not isinstance(error, (Interrupted, StorageError)):
            raise first_cause(error) from None
        stored = found  # the commit was quicker: what is in the store, and what is told of it, agree
        what = "interrupted" if isinstance(error, Interrupted) else "failed"
        log.warning(what + "_after_commit", key=key, message=error.sentence())
    return index, stored


def abort(upload: Upload, log: Log) -> Optional[StoredObject]:
    """Leave nothing in the store, or learn what is there already. A store that cannot even do that must not hide the
    first cause."""
    try:
        return upload.abort()
    except BackupError as error:
        log.warning("abort_failed", message=error.sentence())
        return None


def free_key(store: Store, start: datetime, named: Callable[[datetime], str]) -> str:
    """The key that `named` makes of the start, or of the first second after it that has none yet."""
    key = named(start)
    while store.probe(key) is not None:  # made in this very second; not every store would keep it
        time.sleep(CLOCK)
        key = named(utc_now())
    return key


def fresh(
    store: Store, found: Iterable[BackupInfo], start: datetime, within: int, passwords: bool = False
) -> Optional[StoredObject]:
    """The newest sound backup that is at most `within` seconds old, and not of the future; `found`: candidates of one
    series, newest first. `passwords`: one that says that hashes of passwords are in it."""
    for info in found:
        if not info.time or (start - catalog.parse_time(info.time)).total_seconds() > within:
            break
        if catalog.is_future(info.time, start):
            continue  # it would be fresh for as long as the clock was wrong
        item = store.stat(info.key)
        if item is not None and _is_sound(store, item, passwords):
            return item
    return None


def _is_sound(store: Store, item: StoredObject, passwords: bool) -> bool:
    """Whether it has an index that agrees with it: one that was damaged is no reason to go without another."""
    try:
        return catalog.is_sound(store, item, passwords)
    except IntegrityError:
        return False
