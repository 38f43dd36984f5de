# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How often a request to a store is made again, and how long between. The one place where that is decided.

A store that is gone is noticed within a bound. A quick request, as those before any work and those that clean up, is
given up 8 s after a refused connection at the most, so that a wrong endpoint is told at once; a patient one, as parts,
reads and the completing call, after 48 s, so that the restart of a store costs no backup. A store that takes
connections and says nothing costs `stall_timeout` for each attempt: a quick request is begun twice, a patient one for
5 times that. With the default of 60 s that is 2 and 6 minutes, and about 13 for a store that falls silent at the very
commit, where the completing call, looks at the object and the abort follow each other.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Optional

QUICK = 5  # attempts
PATIENT = 8
QUICK_LIMIT = 2  # times `stall_timeout`: after the first attempt, or after progress, the last moment to begin another
PATIENT_LIMIT = 5
FIRST_WAIT = 0.5  # seconds, doubled each time
LONGEST_WAIT = 16.0


class Retry:
    """The attempts of one request. Waiting ends early, and with it the attempts, when `stopped` is set.

    `stall_timeout` in seconds, as in `Storage`.
    """

    def __init__(self, stall_timeout: int, patient: bool = False, stopped: Optional[threading.Event] = None) -> None:
        self.patient = patient
        self._attempts = PATIENT if patient else QUICK
        self._limit = (PATIENT_LIMIT if patient else QUICK_LIMIT) * stall_timeout
        self._stopped = stopped or threading.Event()
        self.progress()

    def progress(self) -> None:
        """Something was achieved: count and clock start anew."""
        self.failures = 0
        self._began = time.monotonic()

    def again(self) -> bool:
        """An attempt failed: wait, and say whether there is to be another."""
        self.failures += 1
        if self.failures >= self._attempts or time.monotonic() - self._began >= self._limit:
            return False
        # Half of it by chance: many that failed at the same moment do not come back at the same moment.
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self.failures - 1))
        return not self._stopped.wait(random.uniform(wait / 2, wait))
