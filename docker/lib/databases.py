#!/usr/bin/env python3
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The databases that a job is for, one a line: those of BACKUP_DATABASES; with BACKUP_ALL_DATABASES every one of the
server that is no template and takes connections, as it is now; else POSTGRES_DB.

Where the server does not tell, the failure is logged and noted in the run ledger as that of a backup, and its exit
status is this program's: else nobody would learn of it before the backups are overdue.
"""

from __future__ import annotations

import os
import re
import sys

sys.path[:0] = ["/opt/pgbackup", "/opt/pgbackup/lib"]
from pgstream import config, postgres  # noqa: E402 (after sys.path)
from pgstream.cli import mask  # noqa: E402
from pgstream.errors import BackupError  # noqa: E402
from pgstream.events import JsonLog  # noqa: E402
from pgstream.recorder import Recorder  # noqa: E402

QUERY = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"


def every_database() -> int:
    log = JsonLog(operation="backup")
    recorder = Recorder(os.environ.get("BACKUP_STATE_DIR", ""), "backup", log)
    try:
        # Any name: the server is asked for its maintenance database.
        server, _storage, _name = config.check_target(os.environ, {"POSTGRES_DB": "postgres"})
        with postgres.Session(server, server.maintenance_db) as session:
            names = [name for (name,) in session.rows(QUERY)]
    except BackupError as error:
        message = mask(error.sentence(), config.secret_values(os.environ))
        recorder.begin()
        recorder.fail(error.exit_code, error.stage, message)
        log.error("failed", message=message, exit_code=error.exit_code)
        return error.exit_code
    print("\n".join(names))
    return 0


def main() -> int:
    names = [name for name in re.split(r"[\s,]+", os.environ.get("BACKUP_DATABASES", "")) if name]
    if not names and os.environ.get("BACKUP_ALL_DATABASES", "").lower() in ("true", "yes", "1", "on"):
        return every_database()
    print("\n".join(names) or os.environ.get("POSTGRES_DB", ""))
    return 0


raise SystemExit(main())
