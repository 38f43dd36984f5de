# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often a request to a store is made again, and how long between. The one place where that is decided.

A store that is gone is noticed within a bound. Requests before any work has been done give up about 8 s after a refused
connection, so that a wrong endpoint is told at once; those in the middle of a run about 48 s after, so that the restart
of a store costs no backup. A store that takes connections and says nothing costs `stall_timeout` for each attempt, but
none is begun later than 5 minutes after the first: with the default of 60 s at most 6 minutes in all.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Optional

QUICK = 5  # attempts, before there is work to lose
PATIENT = 8
LIMIT = 300.0  # seconds after the first attempt (or after progress) from which on none is begun
FIRST_WAIT = 0.5  # seconds, doubled each time
LONGEST_WAIT = 16.0


class Retry:
    """The attempts of one request. Waiting ends early, and with it the attempts, when `stopped` is set."""

    def __init__(self, attempts: int = QUICK, stopped: Optional[threading.Event] = None) -> None:
        self.patient = attempts > QUICK
        self._attempts = attempts
        self._stopped = stopped or threading.Event()
        self.progress()

    def progress(self) -> None:
        """Something was achieved: count and clock start anew."""
        self.failures = 0
        self._began = time.monotonic()

    def again(self) -> bool:
        """An attempt failed: wait, and say whether there is to be another."""
        self.failures += 1
        if self.failures >= self._attempts or time.monotonic() - self._began >= LIMIT:
            return False
        # Half of it by chance: many that failed at the same moment do not come back at the same moment.
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.failures - 1))
        return not self._stopped.wait(random.uniform(wait / 2, wait))
