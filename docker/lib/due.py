# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""due.py fields SCHEDULE   the five fields that crond takes, or why there are none (exit 2)
due.py missed SCHEDULE   with BACKUP_CATCH_UP, whole seconds since the schedule was last due, at least 1; else nothing

The engine's own reading of schedules and flags, for the shell scripts beside this file.
"""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone

sys.path.insert(0, "/opt/pgbackup")
from pgstream import config, schedule  # noqa: E402 (after sys.path)
from pgstream.errors import UsageError  # noqa: E402

NEVER = 100 * 365 * 86400  # seconds: a schedule that was never due asks for no run that has no backup


def main() -> int:
    what, text = sys.argv[1:]
    try:
        if what == "fields":
            print(schedule.parse(text).text)
            return 0
        reader = config.Reader(os.environ, {})
        wanted = reader.flag("BACKUP_CATCH_UP")
        reader.finish()
        if wanted:
            now = datetime.now(timezone.utc)
            due = schedule.parse(text).last_due(now)
            print(max(1, int((now - due).total_seconds())) if due else NEVER)
    except (ValueError, UsageError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


raise SystemExit(main())
