# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The schedule inside the container: runs that come by themselves, are told, missed, held up and stopped."""

from __future__ import annotations

import json
import re
import time
from typing import Any, Dict, List

from .stack import Stack, wait_for

YEARLY = "0 0 1 1 *"


def hold_up(stack: Stack) -> None:
    """Lock a table, and wait for the backup that waits for it: the lock of its run is held, no upload begun."""
    stack.psql("CREATE TABLE held (id int)")
    stack.sh("docker compose exec -T -d postgres psql -U postgres -c "
             "\"BEGIN; LOCK TABLE held IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(3600)\"")
    wait_for("the table's lock", lambda: stack.psql("SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' "
                                                    "AND relation = 'held'::regclass AND granted"))
    stack.sh("docker compose up -d backup")
    wait_for("a run that waits", lambda: stack.psql("SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                                                    "AND application_name = 'pgstream.backup'"))


def test_a_backup_appears_by_itself(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE="* * * * *").sh("docker compose up -d backup")
    line = stack.wait_for_line("job_finished")
    assert (line["level"], line["verb"], line["database"], line["exit_code"]) == ("INFO", "backup", "postgres", 0)
    assert stack.lines("committed")[0]["key"] in stack.keys()
    out, err = stack.streams()  # every line is JSON
    assert not err and {one.get("level", "INFO") for one in out} == {"INFO"}
    assert stack.sh("docker compose exec -T backup /opt/pgbackup/bin/healthcheck.sh").returncode == 0
    # The ledger is the jobs': it was written by their user.
    owner = stack.sh("docker compose exec -T backup stat -c %U /var/lib/pgbackup/ledger.sqlite").stdout.strip()
    assert owner == "pgbackup"


def test_a_failed_run_is_told_and_makes_it_unhealthy(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE="* * * * *").sh("docker compose up -d backup")
    stack.sh("docker compose stop postgres")
    line = wait_for("a failed job", lambda: [one for one in stack.lines("job_finished") if one["exit_code"]])[0]
    assert (line["level"], line["exit_code"]) == ("ERROR", 3)
    assert line in stack.streams()[1]
    assert stack.sh("docker compose exec -T backup /opt/pgbackup/bin/healthcheck.sh", check=False).returncode == 1


def test_without_crond_it_is_unhealthy_and_ends(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY).sh("docker compose up -d backup")
    pid = stack.wait_for_line("crond_started")["pid"]
    stack.sh("docker compose exec -T backup sh -c 'kill -9 %d'" % pid)
    wait_for("the restart", lambda: stack.inspect("backup")["RestartCount"])
    assert stack.lines("failed")[0]["message"] == "crond ended by itself"
    stack.wait_for_line("crond_started", 2)  # and runs again


def test_two_runs_of_one_database_never_at_once(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY, BACKUP_CATCH_UP="true").sh("docker compose up -d postgres minio")
    hold_up(stack)
    done = stack.sh("docker compose run --rm -T backup sh -c 'mkdir -p /run/pgbackup/private/jobs; "
                    "python3 /opt/pgbackup/bin/job.py backup'", check=False)
    assert done.returncode == 8
    assert '"level": "WARNING", "event": "job_finished"' in done.stderr and '"exit_code": 8' in done.stderr
    assert stack.keys() == []


def stop_and_look(stack: Stack) -> None:
    """Stop the service in the middle of a run; nothing of the run may be left anywhere."""
    began = time.monotonic()
    stack.sh("docker compose stop --timeout 60 backup")
    assert time.monotonic() - began < 10, stack.streams()  # what the issue promises
    assert stack.inspect("backup")["State"]["ExitCode"] == 0
    assert stack.lines("failed")[0]["message"].startswith("Interrupted by SIGTERM")
    assert stack.lines("job_finished")[0]["exit_code"] == 1 and not stack.lines("killed")
    assert stack.keys() == []
    wait_for("the end of its sessions", lambda: stack.psql(
        "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = 'pgstream.backup'") == "t")


def test_sigterm_while_rows_are_copied_leaves_nothing_behind(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY, BACKUP_CATCH_UP="true").sh("docker compose up -d postgres minio")
    # Small in the table, where it is compressed, and 640 MB as rows: quick to make, long to copy.
    stack.psql("CREATE TABLE large AS SELECT repeat(md5(random()::text), 100) FROM generate_series(1, 200000)")
    stack.sh("docker compose up -d backup")
    key = stack.wait_for_line("started")["key"]
    wait_for("a COPY", lambda: stack.psql("SELECT 1 FROM pg_stat_progress_copy LIMIT 1"))
    assert stack.uploads(key) == 1  # else nothing would have been in the middle
    stop_and_look(stack)
    assert stack.uploads(key) == 0


def test_sigterm_while_a_lock_is_awaited_leaves_nothing_behind(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY, BACKUP_CATCH_UP="true").sh("docker compose up -d postgres minio")
    hold_up(stack)
    stop_and_look(stack)


def test_a_missed_run_is_caught_up_once(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY, BACKUP_CATCH_UP="true").sh("docker compose up -d backup")
    assert stack.wait_for_line("job_finished")["exit_code"] == 0
    (key,) = stack.keys()
    stack.sh("docker compose restart backup")
    assert stack.wait_for_line("job_finished", 2)["exit_code"] == 0
    assert stack.lines("unchanged")[0]["key"] == key
    assert stack.keys() == [key]


def test_no_catching_up_unless_asked(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE=YEARLY).sh("docker compose up -d backup")
    stack.wait_for_line("crond_started")
    assert stack.lines("catch_up") == []


def test_a_start_delay_can_be_stopped(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE="* * * * *", BACKUP_START_DELAY="2d").sh("docker compose up -d backup")
    assert 0 <= stack.wait_for_line("job_delayed")["seconds"] <= 2 * 86400
    stack.sh("docker compose stop --timeout 60 backup")
    assert stack.inspect("backup")["State"]["ExitCode"] == 0
    assert stack.lines("job_finished")[0]["exit_code"] == 143
    assert stack.lines("started") == [] and stack.keys() == []


def test_the_newest_backup_is_verified_by_itself(stack: Stack) -> None:
    """A drill on the server of the databases, on a schedule of its own; list and metrics know of it."""
    stack.set(BACKUP_SCHEDULE=YEARLY, BACKUP_CATCH_UP="true", BACKUP_VERIFY_SCHEDULE="* * * * *",
              BACKUP_VERIFY_LEVEL="restore").sh("docker compose up -d backup")
    began = stack.wait_for_line("crond_started")
    assert (began["schedule"], began["verify_schedule"]) == (YEARLY, "* * * * *")

    def verified() -> List[Dict[str, Any]]:
        return [one for one in stack.lines("job_finished") if (one["verb"], one["exit_code"]) == ("verify", 0)]

    wait_for("a verification", verified, lambda: str(stack.streams()))
    assert stack.lines("verified")[0]["verify_level"] == "restore"
    shown = stack.sh("docker compose exec -T backup pgbackup list --json").stdout.splitlines()[-1]
    (backup,) = json.loads(shown)["backups"]
    assert backup["verified_level"] == "restore" and backup["verified_at"]


def test_one_monitor_hears_of_no_success_after_a_failure_of_the_same_job(stack: Stack) -> None:
    stack.sh("docker compose up -d postgres minio minio-init")
    # Python's own server knows no POST, which is 501, and notes what it was asked for.
    script = ("mkdir -p /run/pgbackup/private/jobs; python3 -m http.server 8000 --bind 127.0.0.1 2> /tmp/asked & "
              "until python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", 8000))' 2> /dev/null; "
              "do sleep 0.1; done; python3 /opt/pgbackup/bin/job.py backup; cat /tmp/asked")
    asked = {}
    for names in ("postgres", "absent postgres"):
        done = stack.sh("docker compose run --rm -T -e BACKUP_PING_URL=http://127.0.0.1:8000/check "
                        "-e BACKUP_DATABASES='%s' backup sh -c '%s'" % (names, script.replace("'", "'\\''")))
        asked[names] = re.findall(r'"POST (\S+) HTTP', done.stdout)
    assert asked == {"postgres": ["/check"], "absent postgres": ["/check/fail"]}
    assert len(stack.keys()) == 2
