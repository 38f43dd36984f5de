# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""databases.py [VERB]: the databases that a job is for, one a line.

Those that BACKUP_DATABASES, BACKUP_ALL_DATABASES and BACKUP_EXCLUDE_DATABASES mean, as the server has them now; else
POSTGRES_DB.

Where that cannot be known, the failure is logged, noted in the run ledger as that of VERB (backup by default) and told
to whoever is to be told, and its exit status is this program's: else nobody would learn of it in time.
"""

from __future__ import annotations

import os
import sys

sys.path[:0] = ["/opt/pgbackup", "/opt/pgbackup/lib"]
from pgstream import cluster, config, config_cluster, notify, patterns  # noqa: E402 (after sys.path)
from pgstream.cli import mask  # noqa: E402
from pgstream.errors import BackupError  # noqa: E402
from pgstream.events import JsonLog  # noqa: E402
from pgstream.recorder import Recorder  # noqa: E402


def named(log: JsonLog) -> list[str]:
    wanted = config_cluster.of_job(os.environ)
    if not wanted.databases:
        return [os.environ.get("POSTGRES_DB", "")]
    if wanted.fixed:
        return patterns.choose((), wanted.databases, wanted.exclude)[0]
    # Any name: the server is asked for its maintenance database.
    server, _storage, _name = config.check_target(os.environ, {"POSTGRES_DB": "postgres"})
    return cluster.select(server, wanted.databases, wanted.exclude, log)


def main() -> int:
    verb = sys.argv[1] if len(sys.argv) > 1 else "backup"
    log = JsonLog(operation=verb, out=sys.stderr)
    recorder = Recorder(os.environ.get("BACKUP_STATE_DIR", ""), verb, log)
    try:
        names = named(log)
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


raise SystemExit(main())
