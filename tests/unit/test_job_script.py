# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The scheduled job's shell script, with the engine it calls made up here: when it prunes, and what it tells."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Tuple

import pytest

from tests.support.runs import wait_until

LIB = Path(__file__).resolve().parents[2] / "docker" / "lib"
#: Notes its arguments and database; exits with what a file named after verb and database says.
ENGINE = """#!/bin/sh
echo "$POSTGRES_DB $*" >> "$HOME_OF_TEST/calls"
if [ -e "$HOME_OF_TEST/hang" ]; then
    trap 'exit "$(cat "$HOME_OF_TEST/hang")"' TERM
    touch "$HOME_OF_TEST/hangs"
    while :; do sleep 0.05; done
fi
exit "$(cat "$HOME_OF_TEST/$1-$POSTGRES_DB" 2> /dev/null || echo 0)"
"""


class Job:
    """job.sh where the image has it, but below a directory of the test's own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.bin = home / "bin"
        self.bin.mkdir()
        (home / "run" / "private" / "jobs").mkdir(parents=True)
        for name in ("job.sh", "log.sh"):
            text = (LIB / name).read_text()
            assert name == "log.sh" or "/opt/pgbackup/bin/" in text
            (self.bin / name).write_text(text.replace("/opt/pgbackup/bin", str(self.bin)))
        self.program("pgbackup", ENGINE)
        self.program("databases.py", 'import os\nprint("\\n".join(os.environ["BACKUP_DATABASES"].split()))\n')

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
        command = [shutil.which("dash") or "sh", str(self.bin / "job.sh"), *arguments]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def __call__(self, *arguments: str, **variables: str) -> Tuple[int, List[Dict[str, Any]]]:
        """Exit status, and the lines of both streams."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, [json.loads(line) for line in (out + err).splitlines()]

    @property
    def calls(self) -> List[str]:
        path = self.home / "calls"
        return path.read_text().splitlines() if path.exists() else []

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
    everything = {"BACKUP_DATABASES": "shop crm", "BACKUP_GLOBALS": "True"}
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
    process.communicate(timeout=60)
    assert process.returncode == status and job.calls == ["shop backup"]
    assert list((job.home / "run" / "private" / "jobs").iterdir()) == []
