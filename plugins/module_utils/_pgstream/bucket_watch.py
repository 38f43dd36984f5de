# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the store holds, counted in the background: a scrape must not wait for a slow bucket.

A listing is taken when somebody asks and the last one is old, by one thread, never two. Who asks waits for it a moment,
then makes do with the last one; its time says how old it is.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Dict, Mapping, Optional, Tuple

from . import catalog
from .errors import BackupError
from .events import utc_now
from .model import Storage
from .store.base import open_store

PATIENCE = 0.5  # seconds that one who asks waits for a listing
STUCK = 60.0  # seconds after which an unanswered listing counts as a store that does not answer


@dataclass
class Usage:
    """Of one database; `newest`: when the backup that is its `latest` was begun, by its key, in seconds since 1970."""

    objects: int = 0
    bytes: int = 0
    newest: float = 0.0


@dataclass(frozen=True)
class Listing:
    """`error`: empty after a good listing. `databases`: "" for objects whose key is not that of a database's backup."""

    taken: float  # seconds since 1970; of the last good listing, 0 for none
    seconds: float = 0.0  # it took
    databases: Mapping[str, Usage] = field(default_factory=dict)
    error: str = ""


class BucketWatch:
    """`interval`: seconds for which a listing is good enough."""

    def __init__(self, storage: Storage, interval: float) -> None:
        self._storage = storage
        self._interval = interval
        self._lock = threading.Lock()
        self._last: Optional[Listing] = None
        self._finished = 0.0  # monotonic, of the last try
        self._begun = 0.0  # monotonic, of the try underway
        self._underway: Optional[threading.Event] = None

    def look(self, patience: Optional[float] = None) -> Optional[Listing]:
        """The newest listing there is; None before the first. Waits `patience` at most, by default PATIENCE."""
        with self._lock:
            now = time.monotonic()
            if self._underway is None and (self._last is None or now - self._finished >= self._interval):
                self._underway, self._begun = threading.Event(), now
                threading.Thread(target=self._take, args=(self._underway,), name="bucket", daemon=True).start()
            underway = self._underway
        if underway is not None:
            underway.wait(PATIENCE if patience is None else patience)
        with self._lock:
            if self._underway is not None and time.monotonic() - self._begun > STUCK:
                return self._failed("no answer for %d seconds" % STUCK)
            return self._last

    def _take(self, done: threading.Event) -> None:
        began = time.monotonic()
        try:
            listing = Listing(time.time(), 0.0, count(self._storage))
            listing = Listing(listing.taken, time.monotonic() - began, listing.databases)
        except BackupError as error:
            listing = self._failed(error.sentence())
        except Exception as error:  # a thread has nobody to raise to
            listing = self._failed("unexpected %s: %s" % (type(error).__name__, error))
        with self._lock:
            self._last, self._finished, self._underway = listing, time.monotonic(), None
        done.set()

    def _failed(self, error: str) -> Listing:
        """What was known stays known."""
        last = self._last
        return Listing(last.taken, last.seconds, last.databases, error) if last else Listing(0.0, error=error)


def count(storage: Storage) -> Dict[str, Usage]:
    """List everything below the prefix. Raises StorageError."""
    found: Dict[str, Usage] = {}
    newest: Dict[str, Tuple[bool, bool, datetime]] = {}  # standings, of what is not right here too
    now = utc_now()
    prefix = storage.prefix.strip("/")
    for item in open_store(storage).list(prefix + "/" if prefix else ""):
        named = catalog.parse_key(item.key)
        usage = found.setdefault(named.database, Usage())
        usage.objects += 1
        usage.bytes += item.size
        if named.database:
            standing = catalog.standing(named, now)
            newest[named.database] = max(newest.get(named.database, standing), standing)
            usage.newest = newest[named.database][-1].timestamp()
    return found
