# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pruning and listing with real servers: backups of a real database under the keys of many nights, in a real bucket,
by the command, by the scheduled job and by the playbook."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List

import pytest
from _pgstream.ledger import Ledger

from tests.support.made import FOREIGN
from tests.support.runs import Outcome, command_env

REPOSITORY = Path(__file__).resolve().parents[2]
LIB = REPOSITORY / "docker" / "lib"
TIME = "%Y-%m-%dT%H:%M:%SZ"


def key_of(moment: datetime, database: str = "shop") -> str:
    return "%s_%s.sql.gz" % (database, moment.strftime(TIME))


def moment_of(key: str) -> datetime:
    return datetime.strptime(key.rpartition("_")[2][: -len(".sql.gz")], TIME).replace(tzinfo=timezone.utc)


class Site:
    """A small database, a bucket, a ledger, and the command in that environment."""

    def __init__(
        self, postgres: Any, database: str, s3: Any, bucket: str, base: Dict[str, str], start: Any, home: Path
    ):
        postgres.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS a", database)
        self.s3, self.bucket, self.database, self._start = s3, bucket, database, start
        (home / "state").mkdir()
        self.env = command_env(base, postgres, database, s3, bucket, BACKUP_STATE_DIR=str(home / "state"))
        self.ledger = Ledger(str(home / "state"))

    def __call__(self, *arguments: str, **changes: str) -> Outcome:
        return self._start({**self.env, **changes}, *arguments).finish()

    def nights(self, count: int) -> List[str]:
        """One real backup, stored once for each of these nights but the last, and a new one; keys, newest first."""
        first = self("backup").result["key"]
        made, moment = [first], moment_of(first)
        client = self.s3.client()
        for number in range(1, count):
            made.append(key_of(moment - timedelta(days=number), self.database))
            client.copy_object(Bucket=self.bucket, Key=made[-1], CopySource={"Bucket": self.bucket, "Key": first})
        return made

    def put(self, key: str, data: bytes = FOREIGN) -> str:
        self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=data)
        return key

    @property
    def keys(self) -> List[str]:
        return self.s3.keys(self.bucket)


@pytest.fixture
def site(
    postgres: Any, database: str, s3: Any, bucket: str, engine_env: Dict[str, str], start: Any, tmp_path: Path
) -> Site:
    return Site(postgres, database, s3, bucket, engine_env, start, tmp_path)


def test_prune_by_the_command(site: Site, postgres: Any) -> None:
    """Dry, for real, and once more; what others stored stays; the ledger has a run of its own."""
    made = site.nights(6)
    others = [
        site.put("notes.txt"),
        site.put(key_of(moment_of(made[0]) - timedelta(days=400), site.database)),  # by another tool, under our name
        site.put("other_2020-01-01T00:00:00Z.sql.gz"),
        site.put("deep/" + made[5], b"another host's"),
    ]
    policy = ["--keep-last", "2", "--keep-within", "36h"]
    dry = site("prune", *policy, "--dry-run").result
    assert site.keys == sorted(made + others) and dry["dry_run"] is True
    done = site("prune", *policy)
    assert site.keys == sorted(made[:2] + others)
    assert [one["key"] for one in done.result["removed"]] == made[:1:-1]
    assert {one["key"]: one["why"] for one in done.result["kept"]} == {
        made[0]: ["last 1", "within 36h"], made[1]: ["last 2", "within 36h"], others[1]: ["foreign"],
    }  # fmt: skip
    names = ("kept", "removed", "freed_bytes")
    assert [dry[name] for name in names] == [done.result[name] for name in names] and done.result["freed_bytes"] > 2000
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [line["key"] for line in told if line["event"] == "backup_removed"] == made[:1:-1]
    assert not site("prune", *policy).result["changed"] and site.keys == sorted(made[:2] + others)
    totals = site.ledger.view().totals
    assert (totals["prune", site.database].succeeded, totals["backup", site.database].succeeded) == (2, 1)
    restored = site("restore", made[1], "--target-db", site.database + "_copy", "--create")
    postgres.dropdb(site.database + "_copy")
    assert restored.code == 0 and restored.result["rows"] == 1000


def test_nothing_goes_after_a_failed_backup(site: Site) -> None:
    made = site.nights(3)
    assert site("backup", POSTGRES_PORT="1").code == 3
    refused = site("prune", "--keep-last", "1")
    assert refused.code == 1 and "the last backup of %s failed: nothing is removed" % site.database in refused.err
    assert site.keys == sorted(made)
    assert site("backup").code == 0
    assert len(site("prune", "--keep-last", "1").result["removed"]) == 3


def test_without_a_policy_it_says_so(site: Site) -> None:
    made = site.nights(2)
    result = site("prune").result
    assert (result["changed"], result["message"]) == (False, "no retention policy is set, so nothing is removed")
    assert site.keys == sorted(made)


def test_list_knows_without_reading(site: Site, tmp_path: Path) -> None:
    """Of the backup that the ledger knows nothing is read; of the others so many as are asked for."""
    made = site.nights(4)
    foreign = site.put(key_of(moment_of(made[0]) - timedelta(days=30), site.database))
    listed = {one["key"]: one for one in site("list", "--details", "1", "--keep-daily", "2").result["backups"]}
    assert [listed[key]["rows"] for key in [*made, foreign]] == [1000, None, None, None, None]
    everything = site("list", BACKUP_STATE_DIR="").result["backups"]
    assert [one["rows"] for one in everything] == [1000] * 4 + [None]
    assert [one["foreign"] for one in everything] == [False] * 4 + [True]
    assert {one["ratio"] for one in everything[:4]} == {listed[made[0]]["ratio"]} and everything[0]["ratio"] > 1
    assert everything[1]["age"] == 86400 + everything[0]["age"]
    assert [listed[key]["why"] for key in made[1:]] == [["daily " + made[1].rpartition("_")[2][:10]], [], []]
    out = site("list", "--table", "--keep-last", "1").out.splitlines()
    assert json.loads(out[-1])["operation"] == "list"
    assert re.match(r"AGE +SIZE +RATIO +ROWS +TOOK +DATABASE +KEY +KEPT BY$", out[0])
    assert out[1].endswith("last 1") and "1,000" in out[1] and "(foreign)" in out[5] and out[5].endswith("not pruned")


def test_the_scheduled_job_prunes_after_a_good_backup(site: Site, tmp_path: Path) -> None:
    """The image's own script, with the engine of the checkout; then with a store whose deletions fail."""
    made = site.nights(4)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (tmp_path / "run" / "private" / "jobs").mkdir(parents=True)
    (tmp_path / "pgstream").symlink_to(LIB.parents[1] / "plugins" / "module_utils" / "_pgstream")
    program = (LIB / "job.py").read_text().replace("/opt/pgbackup", str(tmp_path))
    engine = '#!/bin/sh\nexec "%s" -m _pgstream.main "$@"\n' % sys.executable
    for name, text in (("pgbackup", engine), ("job.py", program)):
        (binaries / name).write_text(text)
        (binaries / name).chmod(0o755)
    env = dict(site.env, PATH="%s:%s" % (binaries, os.environ["PATH"]), PGBACKUP_RUN=str(tmp_path / "run"))
    env["BACKUP_KEEP_LAST"] = "2"

    def job() -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, str(binaries / "job.py"), "backup"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)

    done = job()
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    finished = [(line["verb"], line["exit_code"]) for line in told if line["event"] == "job_finished"]
    assert finished == [("backup", 0), ("prune", 0)]
    newest = next(line["key"] for line in told if line.get("operation") == "backup" and line["event"] == "result")
    assert site.keys == sorted([newest, made[0]])

    env["BACKUP_MIN_KEEP"] = "none"  # the pruning fails, the backup does not read that
    failed = job()
    assert failed.returncode == 2 and '"verb": "prune"' in failed.stderr
    runs = site.ledger.view().runs
    assert [(run.operation, run.status) for run in runs[:2]] == [("prune", "failure"), ("backup", "success")]
    assert site("health").code == 0 and len(site.keys) == 3


@pytest.mark.parametrize("check", [True, False])
def test_prune_by_the_playbook(site: Site, tmp_path: Path, check: bool) -> None:
    made = site.nights(4)
    (tmp_path / "ansible.cfg").touch()
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pgbackup_databases": [site.database],
        "pgbackup_bucket": site.bucket,
        "pgbackup_endpoint_url": site.s3.endpoint_url,
        "pgbackup_access_key": site.s3.access_key,
        "pgbackup_secret_key": site.s3.secret_key,
        "pgbackup_keep_daily": 2,
    }
    (tmp_path / "inventory.json").write_text(json.dumps({"all": {"hosts": {"db1": {}}, "vars": variables}}))

    def play(name: str, *arguments: str) -> str:
        env: Dict[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "AWS_"))},
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
            "ANSIBLE_HOME": str(tmp_path / "home"),
            "ANSIBLE_REMOTE_TMP": str(tmp_path / "remote"),
            "ANSIBLE_NOCOLOR": "true",
            "LC_ALL": "C.UTF-8",
        }
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command: List[str] = [program, "-i", str(tmp_path / "inventory.json"), "playbooks/%s.yml" % name, *arguments]
        done = subprocess.run(command, cwd=str(REPOSITORY), env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    output = play("prune", "--diff", *(["--check"] if check else []))
    assert site.keys == sorted(made if check else made[:2])
    for key in made[2:]:
        assert re.search(r"^- +\"%s\"" % re.escape(key), output, re.MULTILINE), output
    says = "2 backups %sremoved, 2 kept" % ("would be " if check else "")
    assert "%s: %s, " % (site.database, says) in output and "changed=1" in output
    if not check:
        assert "changed=0" in play("prune")
        assert re.search(r"%s  .* 1000 rows  kept by daily \d{4}-\d\d-\d\d" % re.escape(made[0]), play("list"))
