# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""All that metrics and status page tell of, gathered at one moment: run ledger, store, and the judgement of both."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Callable, Optional

from . import health
from .bucket_watch import BucketWatch, Listing
from .ledger import Ledger, LedgerError, View
from .model import Storage

LEDGER_PATIENCE = 0.3  # seconds to wait for a writer of the ledger: with the store's, well below a second


@dataclass(frozen=True)
class Facts:
    """`view` is None without a ledger, or where it cannot be read; `health` too then.

    `has_ledger`, `store`: whether there should be one; `store` is its address. `listing`: None before the first.
    """

    now: float  # seconds since 1970
    has_ledger: bool = False
    view: Optional[View] = None
    ledger_error: str = ""
    health: Optional[health.Health] = None
    store: str = ""
    listing: Optional[Listing] = None


class Observer:
    def __init__(
        self,
        directory: str,
        storage: Optional[Storage],
        interval: float,
        policy: health.Policy,
        hide: Callable[[str], str] = str,
    ) -> None:
        """`directory`: of the ledger, empty for none. `interval`: seconds for which a listing is good enough.

        `hide` takes the secrets out of what a store's error says; the ledger's messages have none.
        """
        self._hide = hide
        self._ledger = Ledger(directory, LEDGER_PATIENCE) if directory else None
        self._bucket = BucketWatch(storage, interval) if storage is not None else None
        self._store = storage.url(storage.prefix).rstrip("/") if storage is not None else ""
        self._policy = policy

    def facts(self, patience: Optional[float] = None) -> Facts:
        """`patience`: seconds to wait for a first listing of the store, where the default is too short."""
        now, view, error = time.time(), None, ""
        if self._ledger is not None:
            try:
                view = self._ledger.view()
            except LedgerError as caught:
                error = caught.sentence()
        listing = None if self._bucket is None else self._bucket.look(patience)
        if listing is not None and listing.error:
            listing = replace(listing, error=self._hide(listing.error))
        return Facts(
            now=now,
            has_ledger=self._ledger is not None,
            view=view,
            ledger_error=error,
            health=None if view is None else health.judge(view, self._policy, now),
            store=self._store,
            listing=listing,
        )
