# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that waits for a lock can be asked to stop: it does not wait for the lock first."""

from __future__ import annotations

import signal
import time
from typing import Any

from tests.support.compare import connect
from tests.support.runs import APPLICATION, command_env, wait_until

SOON = 10.0  # seconds; the lock would be waited for ten times as long


def test_a_backup_that_waits_for_a_lock_is_asked_to_stop(
    engine_env: Any, postgres: Any, database: str, s3: Any, bucket: str, start: Any
) -> None:
    postgres.psql("CREATE TABLE t AS SELECT 1 AS a", database)
    env = command_env(engine_env, postgres, database, s3, bucket, BACKUP_LOCK_TIMEOUT="100s")
    with connect(postgres, database) as holder:
        cursor = holder.cursor()
        cursor.execute("BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")
        command = start(env, "backup")
        waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s' AND wait_event_type = 'Lock'"
        wait_until(
            lambda: postgres.psql(waits % APPLICATION, database).strip() != "0", "the backup to wait for the lock"
        )
        began = time.monotonic()
        command.signal(signal.SIGTERM)
        outcome = command.finish()
        assert time.monotonic() - began < SOON
    assert outcome.code == 1 and "Interrupted by SIGTERM" in outcome.message
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s'" % APPLICATION
    wait_until(lambda: postgres.psql(sessions, database).strip() == "0", "the backup's session to end")
    assert s3.keys(bucket) == []
    assert "Uploads" not in s3.client().list_multipart_uploads(Bucket=bucket)
