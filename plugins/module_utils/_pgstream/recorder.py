# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Notes one run of the command in the ledger, from its beginning to its end, whatever happens in between.

Nothing here makes a run fail: where the ledger cannot be written, a warning says so and the run goes on.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import replace
from typing import Any, Dict, Mapping, Optional, Sequence

from .events import Log
from .ledger import FAILURE, OPERATIONS, SUCCESS, Ledger, LedgerError, Run, RunLock

#: Flags of `backup` with which it is one of a part: their names are those of pg_dump.
FILTERS = ("schema", "exclude-schema", "table", "exclude-table", "exclude-table-data")
PART = "backup_part"  # the operation of these
_FROM_RESULT = ("key", "raw_bytes", "stored_bytes", "rows", "tables")


def operation_of(arguments: Sequence[str]) -> str:
    """The operation that these arguments ask for, even where the rest of them is wrong; empty for one not noted.

    Asking for help, or for what would happen, is no run.
    """
    verb = next((word for word in arguments if not word.startswith("-")), "")
    idle = {"-h", "--help", "--version", "--dry-run"}.intersection(arguments)
    if verb == "backup" and {"--" + name for name in FILTERS}.intersection(
        word.partition("=")[0] for word in arguments
    ):
        verb = PART
    return verb if verb in OPERATIONS and verb != "globals" and not idle else ""


class Recorder:
    """One run. `directory` is BACKUP_STATE_DIR, empty for no ledger; an empty `operation` is not noted."""

    def __init__(self, directory: str, operation: str, log: Log) -> None:
        self._ledger = Ledger(directory) if directory and operation else None
        self._log = log
        self._lock: Optional[RunLock] = None
        self._warned = False
        self._ticks = time.monotonic()
        self._run = Run(uuid.uuid4().hex, operation, "", log.correlation_id, time.time())

    def begin(self) -> None:
        if self._ledger is not None:
            try:
                self._lock = self._ledger.begin(replace(self._run, database=self._log.database))
            except LedgerError as error:
                self._warn(error)

    def succeed(self, result: Mapping[str, Any]) -> None:
        """`result`: the fields of the result line."""
        facts: Dict[str, Any] = {name: result[name] for name in _FROM_RESULT if result.get(name)}
        message, changed = str(result.get("message") or ""), bool(result.get("changed"))
        self._end(replace(self._run, status=SUCCESS, exit_code=0, message=message, changed=changed, **facts))

    def fail(self, exit_code: int, stage: str, message: str) -> None:
        """`message` is masked already."""
        self._end(replace(self._run, status=FAILURE, exit_code=exit_code, stage=stage, message=message))

    def _end(self, run: Run) -> None:
        """The first end counts: what fails after a commit, such as a reader that went away, does not undo it."""
        ledger, self._ledger = self._ledger, None
        if ledger is None:
            return
        # The engine may have learnt the database, or its own id, only while it ran. The clock may have been set.
        seconds = time.monotonic() - self._ticks
        run = replace(
            run,
            database=self._log.database,
            correlation_id=self._log.correlation_id,
            key=run.key or self._log.known.get("key", ""),
            level=self._log.known.get("level", ""),
            finished=run.started + seconds,
            seconds=round(seconds, 3),
        )
        try:
            ledger.finish(run)
        except LedgerError as error:
            self._warn(error)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _warn(self, error: LedgerError) -> None:
        if self._warned:
            return
        self._warned = True
        try:
            self._log.warning("ledger_unavailable", message=error.sentence() + ". The metrics may lack this run.")
        except OSError:
            pass  # nobody reads stderr
