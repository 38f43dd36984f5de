# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""databases.py [VERB]: the databases that a job is for, one a line.

Those of BACKUP_DATABASES; with BACKUP_ALL_DATABASES every one of the server that is no template and takes connections,
as it is now; else POSTGRES_DB.

Where the server does not tell, the failure is logged, noted in the run ledger as that of VERB (backup by default) and
told to whoever is to be told, and its exit status is this program's: else nobody would learn of it in time.
"""

from __future__ import annotations

import os
import re
import sys

sys.path[:0] = ["/opt/pgbackup", "/opt/pgbackup/lib"]
from pgstream import config, notify, postgres  # noqa: E402 (after sys.path)
from pgstream.cli import mask  # noqa: E402
from pgstream.errors import BackupError  # noqa: E402
from pgstream.events import JsonLog  # noqa: E402
from pgstream.recorder import Recorder  # noqa: E402

QUERY = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"


def every_database(verb: str) -> int:
    log = JsonLog(operation=verb)
    recorder = Recorder(os.environ.get("BACKUP_STATE_DIR", ""), verb, log)
    try:
        # Any name: the server is asked for its maintenance database.
        server, _storage, _name = config.check_target(os.environ, {"POSTGRES_DB": "postgres"})
        with postgres.Session(server, server.maintenance_db) as session:
            names = [name for (name,) in session.rows(QUERY)]
    except BackupError as error:
        secrets = config.secret_values(os.environ)
        message = mask(error.sentence(), secrets)
        recorder.begin()
        recorder.fail(error.exit_code, error.stage, message)
        log.error("failed", message=message, exit_code=error.exit_code)
        tell = notify.for_command(os.environ, verb, log, lambda text: mask(text, secrets))
        tell.failed({"message": message, "stage": error.stage, "exit_code": error.exit_code})
        return error.exit_code
    print("\n".join(names))
    return 0


def main() -> int:
    names = [name for name in re.split(r"[\s,]+", os.environ.get("BACKUP_DATABASES", "")) if name]
    if not names and os.environ.get("BACKUP_ALL_DATABASES", "").lower() in ("true", "yes", "1", "on"):
        return every_database(sys.argv[1] if len(sys.argv) > 1 else "backup")
    print("\n".join(names) or os.environ.get("POSTGRES_DB", ""))
    return 0


raise SystemExit(main())
