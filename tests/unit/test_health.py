# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Health: did the last backups succeed in time? Each rule, its edges, and the verb's one line and exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import pytest
from _pgstream import cli, health, schedule
from _pgstream.errors import UsageError
from _pgstream.health import FAILING, OK, STARTING, Health, Policy, judge
from _pgstream.ledger import FAILURE, RUNNING, SUCCESS, Ledger, View

from tests.support.ledger_runs import DAY, NOW, run, view

HOUR = 3600.0
DAILY = schedule.parse("0 2 * * *")  # due at NOW
SINCE = {"schedule": ("0 2 * * *", NOW - 30 * DAY)}


def daily(*databases: str, **more: Any) -> Policy:
    return Policy(schedule=DAILY, databases=databases or ("shop",), **more)


def look(*runs: Any, at: float = NOW + 2 * HOUR, wanted: Optional[Policy] = None, facts: Any = None) -> Health:
    return judge(view(*runs, **(SINCE if facts is None else facts)), wanted or daily(), at)


def test_a_success_since_it_was_due_is_healthy() -> None:
    found = look(run(started=NOW + 5))
    assert (found.ok, found.state) == (True, OK)
    assert found.message == "The last backup of shop succeeded at 2026-01-31 02:01 UTC."
    assert (found.last_due, found.next_due) == ("2026-01-31T02:00:00Z", "2026-02-01T02:00:00Z")
    assert look(run(started=NOW)).ok


def test_a_success_before_it_was_due_is_not_enough() -> None:
    found = look(run(started=NOW - 1, seconds=500))
    assert (found.ok, found.state, found.databases[0].overdue) == (False, FAILING, True)
    assert found.message == "The backup of shop due at 2026-01-31 02:00 UTC has not succeeded."


@pytest.mark.parametrize("grace, ok", [(3600, False), (2 * 3600, False), (2 * 3600 + 1, True)])
def test_the_grace_time_is_for_the_run_to_end(grace: int, ok: bool) -> None:
    found = look(run(started=NOW - DAY), wanted=daily(grace=grace))
    assert found.ok is ok
    assert found.last_due == ("2026-01-30T02:00:00Z" if ok else "2026-01-31T02:00:00Z")


def test_a_failure_shows_at_once_though_there_is_time_left() -> None:
    found = look(run(started=NOW - DAY), run(FAILURE, started=NOW + 5), at=NOW + 120)
    assert (found.ok, found.databases[0].overdue) == (False, False)
    said = "The last backup of shop failed at 2026-01-31 02:01 UTC: Failed during S3 upload: no such bucket."
    assert found.message == said


def test_a_success_after_a_failure_heals_and_the_other_way_round() -> None:
    assert look(run(FAILURE, started=NOW + 5), run(started=NOW + 900)).ok
    assert not look(run(started=NOW + 5), run(FAILURE, started=NOW + 900)).ok


def test_one_that_found_another_at_work_is_no_news() -> None:
    busy = run(FAILURE, started=NOW + 900, exit_code=8)
    assert look(run(started=NOW + 5), busy).ok
    assert not look(run(FAILURE, started=NOW + 5), busy).ok
    assert not look(run(started=NOW - DAY), busy).ok


def test_a_filtered_backup_is_no_backup_of_the_database() -> None:
    assert not look(run(started=NOW + 5, operation="backup_part")).ok
    assert look(run(started=NOW + 5), run(FAILURE, started=NOW + 900, operation="backup_part")).ok


def test_a_run_of_the_future_is_not_in_time() -> None:
    assert look(run(started=NOW + 2 * HOUR + 200)).ok  # clocks differ a little
    assert not look(run(started=NOW + 365 * DAY)).ok
    wanted, facts = Policy(max_age=86400, databases=("shop",)), {"schedule": ("none", NOW - 30 * DAY)}
    assert not look(run(started=NOW + 365 * DAY), wanted=wanted, facts=facts).ok


def test_a_run_of_another_kind_is_no_news() -> None:
    assert look(run(started=NOW + 5), run(FAILURE, started=NOW + 900, operation="restore")).ok
    assert not look(run(started=NOW + 5, operation="restore")).ok
    assert not look(run(started=NOW + 5, database="other")).ok


def test_one_still_running_is_late_and_said_to_run() -> None:
    found = look(run(started=NOW - DAY), run(RUNNING, started=NOW + 60))
    assert not found.ok
    assert found.message.endswith("has not succeeded: it has been running since 2026-01-31 02:01 UTC.")
    assert look(run(started=NOW - DAY), run(RUNNING, started=NOW + 60), at=NOW + 1800).ok


def test_a_run_with_nothing_to_do_is_a_success() -> None:
    assert look(run(started=NOW + 5, changed=False)).ok


def test_before_anything_was_due_it_starts() -> None:
    fresh: Dict[str, Tuple[str, float]] = {"schedule": ("0 2 * * *", NOW + 60)}
    found = look(facts=fresh)
    assert (found.ok, found.state, found.last_due) == (True, STARTING, "")
    assert look(facts=fresh, at=NOW + DAY + 1800).state == STARTING  # due, but there is time
    assert look(facts=fresh, at=NOW + DAY + 2 * HOUR).state == FAILING
    assert look(run(FAILURE, started=NOW + 90), facts=fresh).state == FAILING
    assert look(run(started=NOW + 90), facts=fresh).state == OK


def test_a_changed_schedule_does_not_make_up_missed_runs() -> None:
    success = run(started=NOW - 5 * HOUR)
    assert not look(success).ok
    assert look(success, facts={"schedule": ("0 2 * * *", NOW + HOUR)}).ok


def test_without_the_health_checks_note_the_first_run_tells_since_when() -> None:
    assert not look(run(started=NOW - 5), facts={}).ok
    assert look(run(started=NOW + 5), facts={}).ok
    assert look(facts={}).state == STARTING


def test_max_age() -> None:
    wanted = Policy(max_age=3600, databases=("shop",))
    assert look(run(started=NOW), at=NOW + 60 + 3600, wanted=wanted).ok
    found = look(run(started=NOW), at=NOW + 61 + 3600, wanted=wanted)
    said = "No backup of shop succeeded within 1h: last on 2026-01-31 02:01 UTC."
    assert (found.ok, found.databases[0].overdue, found.message) == (False, True, said)
    since = {"schedule": ("none", NOW)}
    assert look(at=NOW + 3600, wanted=wanted, facts=since).state == STARTING
    assert look(at=NOW + 3601, wanted=wanted, facts=since).message == "No backup of shop succeeded within 1h: never."
    both = daily(max_age=3600)
    assert look(run(started=NOW + 5), at=NOW + 1.5 * HOUR, wanted=both).state == FAILING


def test_without_a_schedule_the_last_run_decides() -> None:
    wanted = Policy(databases=("shop",))
    assert look(run(started=NOW - 300 * DAY), wanted=wanted).ok
    assert not look(run(started=NOW - 300 * DAY), run(FAILURE), wanted=wanted).ok
    assert look(wanted=wanted).state == STARTING


def test_several_databases_are_as_bad_as_the_worst() -> None:
    good = [run(database=name, started=NOW + 5) for name in ("a", "b", "c")]
    wanted = daily("a", "b", "c")
    assert look(*good, wanted=wanted).message == "The backups of 3 databases are in order."
    found = look(*good[1:], wanted=wanted)
    assert not found.ok and [one.state for one in found.databases] == [FAILING, OK, OK]
    assert "backup of a due" in found.message and "b" not in found.message.split("backup of ")[1].split(" ")[0]


def test_unnamed_databases_are_those_backed_up_of_late() -> None:
    wanted = Policy(schedule=DAILY)
    dropped, kept = run(database="dropped", started=NOW - 9 * DAY), run(database="kept", started=NOW + 5)
    assert [one.database for one in look(dropped, kept, wanted=wanted).databases] == ["kept"]
    late = run(database="late", started=NOW - DAY + 5)
    found = look(late, kept, wanted=wanted)
    assert [(one.database, one.state) for one in found.databases] == [("kept", OK), ("late", FAILING)]
    # When nothing runs any more, nothing is forgotten.
    assert [one.database for one in look(kept, wanted=wanted, at=NOW + 90 * DAY).databases] == ["kept"]
    assert look(wanted=wanted).message == "The backup due at 2026-01-31 02:00 UTC did not run."


def test_a_weekend_is_no_reason_to_forget() -> None:
    weekdays = schedule.parse("0 2 * * mon-fri")
    friday, monday = NOW - DAY, NOW + 2 * DAY  # NOW is a Saturday
    runs = [run(database="a", started=monday + 5), run(database="b", started=friday + 5)]
    found = judge(view(*runs, schedule=(weekdays.text, NOW - 30 * DAY)), Policy(weekdays), monday + 2 * HOUR)
    assert [(one.database, one.state) for one in found.databases] == [("a", OK), ("b", FAILING)]


def test_a_run_that_was_given_no_name_is_forgotten_with_the_next() -> None:
    wanted = Policy(schedule=DAILY)
    nameless = run(FAILURE, database="", started=NOW + 5)
    assert "a database without a name failed" in look(nameless, wanted=wanted).message
    assert look(nameless, run(started=NOW + 900), wanted=wanted).ok


# Policy


def test_the_policy_comes_from_the_environment() -> None:
    environ = {"BACKUP_SCHEDULE": "@daily", "BACKUP_MAX_AGE": "26h", "BACKUP_GRACE": "90s", "POSTGRES_DB": "shop"}
    assert health.policy(environ) == Policy(schedule.parse("@daily"), 26 * 3600, 90, ("shop",))
    assert health.policy({**environ, "BACKUP_DATABASES": " a, b c"}).databases == ("a", "b", "c")
    assert health.policy({**environ, "BACKUP_ALL_DATABASES": "True"}).databases == ()
    assert health.policy({**environ, "BACKUP_ALL_DATABASES": "true", "BACKUP_DATABASES": "a"}).databases == ("a",)
    assert health.policy({**environ, "BACKUP_START_DELAY": "10m"}).grace == 690
    assert health.policy({}) == Policy(None, 0, 3600, ())
    with pytest.raises(UsageError) as caught:
        health.policy(
            {"BACKUP_SCHEDULE": "at two", "BACKUP_MAX_AGE": "26", "BACKUP_GRACE": "x", "BACKUP_START_DELAY": "y"}
        )
    for name in ("BACKUP_SCHEDULE", "BACKUP_MAX_AGE", "BACKUP_GRACE", "BACKUP_START_DELAY"):
        assert name in caught.value.sentence()


# The verb


def call(capsys: pytest.CaptureFixture[str], **environ: str) -> Tuple[int, Dict[str, Any]]:
    status = cli.main(["health"], environ)
    out, err = capsys.readouterr()
    assert err == ""
    (line,) = out.splitlines()
    return status, json.loads(line)


def test_the_verb_says_it_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    environ = {"BACKUP_STATE_DIR": str(tmp_path), "BACKUP_SCHEDULE": "@yearly", "POSTGRES_DB": "shop"}
    status, line = call(capsys, **environ)
    assert (status, line["event"], line["operation"], line["ok"]) == (0, "result", "health", True)
    assert (line["state"], line["message"]) == (STARTING, "No backup has been due yet.")
    assert Ledger(str(tmp_path)).view().facts["schedule"][0] == "0 0 1 1 *"
    Ledger(str(tmp_path)).finish(run(FAILURE))
    status, line = call(capsys, **environ)
    assert (status, line["ok"], line["databases"][0]["state"]) == (1, False, FAILING)
    Ledger(str(tmp_path)).finish(run(SUCCESS, started=NOW))
    status, line = call(capsys, **environ)
    assert (status, line["ok"], line["databases"][0]["database"]) == (0, True, "shop")


def test_since_when_is_noted_once_for_a_schedule(tmp_path: Path) -> None:
    environ = {"BACKUP_STATE_DIR": str(tmp_path), "BACKUP_SCHEDULE": "0 2 * * *", "POSTGRES_DB": "shop"}
    assert health.look(environ, NOW + 60).state == STARTING
    assert health.look(environ, NOW + 2 * HOUR).state == STARTING
    assert health.look(environ, NOW + DAY + 2 * HOUR).state == FAILING
    assert health.look({**environ, "BACKUP_SCHEDULE": "0 3 * * *"}, NOW + DAY + 2.5 * HOUR).state == STARTING


@pytest.mark.parametrize(
    "environ, word",
    [
        ({}, "BACKUP_STATE_DIR"),
        ({"BACKUP_STATE_DIR": "/no/such/directory"}, "/no/such/directory"),
        ({"BACKUP_STATE_DIR": "/no/such/directory", "BACKUP_SCHEDULE": "at two"}, "BACKUP_SCHEDULE"),
    ],
)
def test_what_cannot_be_known_is_not_healthy(
    capsys: pytest.CaptureFixture[str], environ: Dict[str, str], word: str
) -> None:
    status, line = call(capsys, **environ)
    assert (status, line["ok"], line["state"]) == (1, False, FAILING)
    assert word in line["message"]


def test_an_empty_ledger_is_judged_too() -> None:
    assert judge(View(), Policy(), NOW).state == STARTING
