# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scheduled job, with the engine it calls made up here: when it prunes, and what it tells."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.support.runs import wait_until

ROOT = Path(__file__).resolve().parents[2]
LIB = ROOT / "docker" / "lib"
#: Notes its arguments and database; exits with what a file named after verb and database says.
ENGINE = """#!/bin/sh
printf '%s\\0' "$POSTGRES_DB $*" >> "$HOME_OF_TEST/calls"
if [ -e "$HOME_OF_TEST/hang" ]; then
    trap 'exit "$(cat "$HOME_OF_TEST/hang")"' TERM
    touch "$HOME_OF_TEST/hangs"
    while :; do sleep 0.05; done
fi
exit "$(cat "$HOME_OF_TEST/$1-$POSTGRES_DB" 2> /dev/null || echo 0)"
"""


class Job:
    """job.py where the image has it, but below a directory of the test's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "bin"
        self.bin.mkdir()
        (home / "run" / "private" / "jobs").mkdir(parents=True)
        (home / "pgstream").symlink_to(ROOT / "plugins" / "module_utils" / "_pgstream")
        text = (LIB / "job.py").read_text()
        assert "/opt/pgbackup" in text
        self.program("job.py", text.replace("/opt/pgbackup", str(home)))
        self.program("pgbackup", ENGINE)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(0o755)

    def start(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        env = {name: value for name, value in os.environ.items() if not name.startswith(("BACKUP_", "POSTGRES_"))}
        env.update(
            PATH="%s:%s" % (self.bin, env["PATH"]),
            PGBACKUP_RUN=str(self.home / "run"),
            HOME_OF_TEST=str(self.home),
            BACKUP_DATABASES="shop",
        )
        env.update(variables)
        command = [sys.executable, str(self.bin / "job.py"), *arguments]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, *arguments: str, **variables: str) -> Tuple[int, List[Dict[str, Any]]]:
        """Exit status, and the lines of both streams."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, [json.loads(line) for line in (out + err).splitlines()]

    @property
    def calls(self) -> List[str]:
        path = self.home / "calls"
        return path.read_text().split("\0")[:-1] if path.exists() else []

    def exits(self, verb: str, database: str, status: int) -> None:
        (self.home / ("%s-%s" % (verb, database))).write_text(str(status))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


RULES = ["LAST", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY"]


@pytest.mark.parametrize(
    "variables",
    [{"BACKUP_KEEP_" + rule: "10"} for rule in RULES] + [{"BACKUP_KEEP_WITHIN": "30d", "BACKUP_KEEP_DAILY": "0"}],
)
def test_a_good_backup_is_followed_by_pruning(job: Job, variables: Dict[str, str]) -> None:
    status, lines = job("backup", "--fresh-within", "6h", **variables)
    assert status == 0 and job.calls == ["shop backup --fresh-within 6h", "shop prune"]
    told = [(line["event"], line["verb"], line["exit_code"], line["level"]) for line in lines]
    assert told == [("job_finished", "backup", 0, "INFO"), ("job_finished", "prune", 0, "INFO")]


@pytest.mark.parametrize(
    "variables",
    [{}, {"BACKUP_KEEP_LAST": "0", "BACKUP_KEEP_YEARLY": "0", "BACKUP_KEEP_WITHIN": ""}, {"BACKUP_MIN_KEEP": "3"}],
)
def test_without_a_policy_nothing_is_pruned(job: Job, variables: Dict[str, str]) -> None:
    assert job("backup", **variables)[0] == 0
    assert job.calls == ["shop backup"]


@pytest.mark.parametrize("status", [1, 8])
def test_after_a_backup_that_failed_or_was_not_made_nothing_is_pruned(job: Job, status: int) -> None:
    job.exits("backup", "shop", status)
    assert job("backup", BACKUP_DATABASES="shop crm", BACKUP_KEEP_LAST="3")[0] == status
    assert job.calls == ["shop backup", "crm backup", "crm prune"]


def test_globals_follow_the_databases_and_are_pruned_too(job: Job) -> None:
    """Each run is of one of them, whatever variables say of all."""
    job.program("pgbackup", ENGINE.replace('$*"', '$* ${BACKUP_DATABASES:-}${BACKUP_GLOBALS:-}"'))
    everything = {"BACKUP_DATABASES": "shop crm", "BACKUP_GLOBALS": "True "}
    assert job("backup", "--fresh-within", "6h", **everything, BACKUP_KEEP_LAST="3")[0] == 0
    assert [call.rstrip() for call in job.calls] == [
        "shop backup --fresh-within 6h",
        "shop prune",
        "crm backup --fresh-within 6h",
        "crm prune",
        " backup --fresh-within 6h --globals-only",
        " prune --globals",
    ]
    (job.home / "calls").unlink()
    job.exits("backup", "", 3)
    job.exits("backup", "shop", 1)
    assert job("backup", **everything, BACKUP_KEEP_LAST="3")[0] == 1
    assert [call.rstrip() for call in job.calls][-2:] == ["crm prune", " backup --globals-only"]
    (job.home / "calls").unlink()
    job("verify", "latest", **everything)
    assert [call.rstrip() for call in job.calls][-1] == " verify latest --globals --level content"


def test_another_verb_is_not_followed_by_pruning(job: Job) -> None:
    job("verify", BACKUP_KEEP_LAST="3")
    assert job.calls == ["shop verify"]


def test_a_pruning_that_fails_is_told_and_stops_no_other(job: Job) -> None:
    job.exits("prune", "shop", 4)
    status, lines = job("backup", BACKUP_DATABASES="shop crm", BACKUP_KEEP_LAST="3")
    assert status == 4 and job.calls == ["shop backup", "shop prune", "crm backup", "crm prune"]
    told = {(line["verb"], line["database"]): (line["exit_code"], line["level"]) for line in lines}
    assert told == {
        ("backup", "shop"): (0, "INFO"), ("prune", "shop"): (4, "ERROR"), ("backup", "crm"): (0, "INFO"),
        ("prune", "crm"): (0, "INFO"),
    }  # fmt: skip


@pytest.mark.parametrize("status", [143, 0], ids=["ended", "done before it could be ended"])
def test_a_stopped_job_does_not_go_on_to_prune(job: Job, status: int) -> None:
    (job.home / "hang").write_text(str(status))
    process = job.start("backup", BACKUP_KEEP_LAST="3", BACKUP_DATABASES="shop crm")
    wait_until((job.home / "hangs").exists, "the engine at work")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and job.calls == ["shop backup"]
    told = [json.loads(line) for line in (out + err).splitlines()]
    assert [(line["database"], line["exit_code"]) for line in told] == [("shop", status), ("crm", 143)]
    assert list((job.home / "run" / "private" / "jobs").iterdir()) == []


def test_a_stop_that_came_too_late_to_stop_anything_is_none(job: Job) -> None:
    (job.home / "hang").write_text("0")
    process = job.start("backup", BACKUP_KEEP_LAST="3")
    wait_until((job.home / "hangs").exists, "the engine at work")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 0 and job.calls == ["shop backup"]


def test_a_job_is_stopped_while_it_waits(job: Job) -> None:
    process = job.start("backup", BACKUP_START_DELAY="2d")
    assert process.stdout is not None and '"job_delayed"' in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    _out, err = process.communicate(timeout=60)
    assert process.returncode == 143 and json.loads(err)["exit_code"] == 143 and job.calls == []


def test_any_name_is_one_database(job: Job) -> None:
    names = ["two\nlines", " padded ", "caf\u00e9", 'a"b', "$(x)", "-n"]
    given = ", ".join('"%s"' % name.replace('"', '""') for name in names)
    status, lines = job("backup", BACKUP_DATABASES=given)
    assert status == 0 and job.calls == [name + " backup" for name in names]
    assert [line["database"] for line in lines] == names


def test_without_a_name_the_engine_says_what_is_missing(job: Job) -> None:
    job.exits("backup", "", 2)
    assert job("backup", BACKUP_DATABASES="")[0] == 2 and job.calls == [" backup"]


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"BACKUP_GLOBALS": "enabled"}, "BACKUP_GLOBALS must be true or false, not 'enabled'"),
        ({"BACKUP_DATABASES": "", "BACKUP_ALL_DATABASES": "ture"}, "BACKUP_ALL_DATABASES must be true or false"),
        ({"BACKUP_DATABASES": " , "}, "BACKUP_DATABASES names no database"),
        ({"BACKUP_EXCLUDE_DATABASES": "sh*"}, "no database matches shop without sh*"),
    ],
)
def test_what_cannot_be_read_fails_the_job(job: Job, variables: Dict[str, str], said: str) -> None:
    status, lines = job("backup", POSTGRES_DB="shop", **variables)
    assert status == 2 and job.calls == [] and said in lines[0]["message"] + lines[-1].get("message", "")
    assert {line["event"] for line in lines} == {"failed", "job_finished"}


def test_a_policy_that_cannot_be_read_is_for_the_pruning_to_say(job: Job) -> None:
    assert job("backup", BACKUP_KEEP_LAST="three")[0] == 0 and job.calls == ["shop backup", "shop prune"]


@pytest.mark.parametrize(
    "word, status, out", [("True ", 0, r"[1-9]\d*\n"), ("off", 0, ""), ("", 0, ""), ("ture", 2, "")]
)
def test_what_was_missed_is_asked_for_in_words_that_are_known(job: Job, word: str, status: int, out: str) -> None:
    job.program("due.py", (LIB / "due.py").read_text().replace("/opt/pgbackup", str(job.home)))
    command = [sys.executable, str(job.bin / "due.py"), "missed", "0 0 1 1 *"]
    env = dict(os.environ, BACKUP_CATCH_UP=word)
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == status and re.fullmatch(out, done.stdout), done
    assert ("BACKUP_CATCH_UP must be true or false" in done.stderr) == bool(status)
