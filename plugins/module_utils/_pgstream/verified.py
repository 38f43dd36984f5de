# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""When each backup was last found good, and at which level, as the run ledger has it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timezone
from typing import Dict, List, Sequence

from .errors import IntegrityError
from .events import Log, rfc3339
from .ledger import SUCCESS, Ledger, LedgerError, Run, View
from .model import BackupInfo


def with_verifications(backups: Sequence[BackupInfo], directory: str, log: Log) -> List[BackupInfo]:
    """The same backups with what the ledger in `directory` (empty: none) knows; where it cannot be read, a warning."""
    if not directory:
        return list(backups)
    try:
        good = verified(Ledger(directory).view())
    except LedgerError as error:
        log.warning("ledger_unavailable", message=error.sentence() + ". It is not known what was verified.")
        return list(backups)
    return [_with(info, good[info.key]) if info.key in good else info for info in backups]


def verified(view: View) -> Dict[str, Run]:
    """The last success by key. A fault found after it takes it back; a server that could not be reached does not."""
    found: Dict[str, Run] = {}
    for run in reversed(view.runs):
        if run.operation != "verify" or not run.key:
            continue
        if run.status == SUCCESS:
            found[run.key] = run
        elif run.exit_code == IntegrityError.exit_code:
            found.pop(run.key, None)
    return found


def _with(info: BackupInfo, run: Run) -> BackupInfo:
    moment = datetime.fromtimestamp(int(run.ended), timezone.utc)
    return replace(info, verified_at=rfc3339(moment), verified_level=run.level)
