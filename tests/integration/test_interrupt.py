# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A run that waits for a lock can be asked to stop: it does not wait for the lock first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

import pytest

from tests.support.compare import connect
from tests.support.runs import APPLICATION, command_env, wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
# A module as AnsiballZ runs it: its arguments are given before it is imported.
MODULE = """
import json, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.argv[1].encode(), "legacy"
from ansible_collections.pgstream.backup.plugins.modules.pg_stream_backup import main
main()
"""

SOON = 10.0  # seconds; the lock would be waited for ten times as long


@contextmanager
def locked(postgres: Any, database: str) -> Iterator[None]:
    postgres.psql("CREATE TABLE t AS SELECT 1 AS a", database)
    with connect(postgres, database) as holder:
        holder.cursor().execute("BEGIN; LOCK TABLE public.t IN ACCESS EXCLUSIVE MODE")
        yield


def wait_for_the_wait(postgres: Any, database: str) -> None:
    waits = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s' AND wait_event_type = 'Lock'"
    wait_until(lambda: postgres.psql(waits % APPLICATION, database).strip() != "0", "the backup to wait for the lock")


def nothing_is_left(postgres: Any, database: str, s3: Any, bucket: str) -> None:
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = '%s'" % APPLICATION
    wait_until(lambda: postgres.psql(sessions, database).strip() == "0", "the backup's session to end")
    assert s3.keys(bucket) == []
    assert s3.uploads(bucket) == []


def test_a_backup_that_waits_for_a_lock_is_asked_to_stop(
    engine_env: Any, postgres: Any, database: str, s3: Any, bucket: str, start: Any
) -> None:
    env = command_env(engine_env, postgres, database, s3, bucket, BACKUP_LOCK_TIMEOUT="100s")
    with locked(postgres, database):
        command = start(env, "backup")
        wait_for_the_wait(postgres, database)
        began = time.monotonic()
        command.signal(signal.SIGTERM)
        outcome = command.finish()
        assert time.monotonic() - began < SOON
    assert outcome.code == 1 and "Interrupted by SIGTERM" in outcome.message
    nothing_is_left(postgres, database, s3, bucket)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda each: each.name)
def test_a_module_is_asked_to_stop(number: signal.Signals, postgres: Any, database: str, s3: Any, bucket: str) -> None:
    """As when the task is given up, or the connection it came by is lost."""
    options = dict(
        login_host=postgres.host, login_port=postgres.port, login_user=postgres.user, login_password=postgres.password,
        login_db=database, pg_bindir=postgres.bindir, lock_timeout="100s", bucket=bucket, endpoint_url=s3.endpoint_url,
        region=s3.region, access_key=s3.access_key, secret_key=s3.secret_key
    )
    env = dict(os.environ, PYTHONPATH=str(REPOSITORY / "playbooks" / "collections"))
    with locked(postgres, database):
        with subprocess.Popen(
            [sys.executable, "-c", MODULE, json.dumps({"ANSIBLE_MODULE_ARGS": options})], env=env,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as module:
            wait_for_the_wait(postgres, database)
            module.send_signal(number)
            answer = json.loads(module.communicate(timeout=SOON * 6)[0])
    assert answer["failed"] and answer["exit_code"] == 1
    assert answer["msg"].startswith("Interrupted by %s during " % number.name)
    nothing_is_left(postgres, database, s3, bucket)
