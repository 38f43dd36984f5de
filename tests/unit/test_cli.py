# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command's edge: flags to requests, one result line, one error line, exit codes, signals, masking.

The verbs are fakes here; what they really do is tested against real servers.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from datetime import datetime
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import _pgstream
import pytest
from _pgstream import cli, errors, interrupts, listing, tables
from _pgstream.model import (
    BackupInfo,
    BackupResult,
    CheckResult,
    Filters,
    Finding,
    KeptBackup,
    PruneResult,
    RemovedBackup,
    RestoreResult,
    Retention,
    Server,
    Storage,
    TableResult,
    VerifyResult,
)

ENVIRON = {
    "POSTGRES_HOST": "db",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "p'4ss w\u00f6rd",
    "POSTGRES_DB": "shop",
    "RCLONE_S3_BUCKET": "backups",
    "RCLONE_S3_ACCESS_KEY_ID": "AKEY",
    "RCLONE_S3_SECRET_ACCESS_KEY": "SKEY/+x",
}
INFO = BackupInfo(
    key="shop_2026-01-31T02:00:00Z.sql.gz",
    url="s3://backups/shop_2026-01-31T02:00:00Z.sql.gz",
    size=12345678,
    modified_at="2026-01-31T02:00:05Z",
    database="shop",
    time="2026-01-31T02:00:00Z",
    foreign=False,
)
FOREIGN = BackupInfo(key="old\x1b[2J.sql.gz", url="", size=5, modified_at="2026-01-30T02:00:00Z", foreign=True)


class Fake:
    """Stands in for the engine's verbs and remembers how they were called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: List[Tuple[str, Any]] = []
        self.logs: List[Any] = []
        self.act: Callable[[], None] = lambda: None
        self.check_result = CheckResult(True, (Finding("server", True, "PostgreSQL 15"),))
        verbs: Dict[str, Dict[str, Any]] = {
            "backup": {"back_up": self._backup("back_up"), "predict_backup": self._backup("predict_backup")},
            "restore": {"restore": self._restore("restore"), "predict_restore": self._restore("predict_restore")},
            "listing": {"list_backups": self._list, "known_runs": listing.known_runs},
            "prune": {"prune": self._prune("prune"), "predict_prune": self._prune("predict_prune")},
            "check": {"check": self._check},
            "verify": {"verify": self._verify},
        }
        for name, functions in verbs.items():
            module = types.ModuleType("_pgstream." + name)
            module.__dict__.update(functions)
            monkeypatch.setitem(sys.modules, "_pgstream." + name, module)
            monkeypatch.setattr(_pgstream, name, module, raising=False)

    def _backup(self, name: str) -> Callable[..., BackupResult]:
        def verb(request: Any, log: Any) -> BackupResult:
            self.calls.append((name, request))
            log.info("snapshot", tables=2)
            self.act()
            rows = (TableResult("public", "t", 3),)
            return BackupResult(True, request.database, "k", "s3://b/k", request.correlation_id, table_rows=rows)

        return verb

    def _restore(self, name: str) -> Callable[..., RestoreResult]:
        def verb(request: Any, log: Any) -> RestoreResult:
            self.calls.append((name, request))
            self.logs.append(log.database)
            self.act()
            return RestoreResult(True, request.database, request.key, "", request.correlation_id)

        return verb

    def _verify(self, request: Any, log: Any) -> VerifyResult:
        self.calls.append(("verify", request))
        self.logs.append(log.database)
        return VerifyResult(True, request.level, "shop", request.key, "", request.correlation_id)

    def _prune(self, name: str) -> Callable[..., PruneResult]:
        def verb(request: Any, log: Any) -> PruneResult:
            self.calls.append((name, request))
            stays = (KeptBackup(INFO.key, 1000, INFO.time, ("last 1", "daily 2026-01-31")),)
            gone = (RemovedBackup("shop_2026-01-30T02:00:00Z.sql.gz", 2000, "2026-01-30T02:00:00Z"),)
            return PruneResult(True, "shop", log.correlation_id, stays, gone, 2000, message="1 backups removed, 1 kept")

        return verb

    def _list(self, storage: Storage, database: str, details: int, policy: Any, runs: Any) -> List[BackupInfo]:
        self.calls.append(("list", (storage, database, details, policy, len(runs))))
        self.act()
        return [INFO, FOREIGN]

    def _check(self, server: Server, storage: Storage, database: str, log: Any) -> CheckResult:
        self.calls.append(("check", (server, storage, database)))
        return self.check_result


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    return Fake(monkeypatch)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


Run = Callable[..., Tuple[int, List[Dict[str, Any]], List[Dict[str, Any]]]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run(*argv, **environ) -> (exit status, JSON lines of stdout, of stderr)"""

    def call(*argv: str, environ: Optional[Dict[str, str]] = None, **more: str) -> Any:
        status = cli.main(list(argv), {**(ENVIRON if environ is None else environ), **more})
        out, err = capsys.readouterr()
        return status, [json.loads(line) for line in out.splitlines()], [json.loads(line) for line in err.splitlines()]

    return call


# Flags


def test_backup_flags_reach_the_request(fake: Fake, run: Run) -> None:
    argv = "--key k.sql.zst --compression gzip --compression-level 5 --jobs 3 --schema a --schema b --exclude-schema c"
    argv += " --table d --exclude-table e --exclude-table-data f --overwrite --fresh-within 6h"
    argv += " --host h --port 5433 --user u --store s3://other/p"
    status, _out, _err = run("backup", *argv.split(), BACKUP_JOBS="1", BACKUP_KEY="env")
    assert status == 0
    ((verb, request),) = fake.calls
    assert verb == "back_up"
    assert request.filters == Filters(("a", "b"), ("c",), ("d",), ("e",), ("f",))
    assert (request.key, request.compression, request.compression_level, request.jobs) == ("k.sql.zst", "gzip", 5, 3)
    assert (request.overwrite, request.fresh_within, request.database) == ("always", 6 * 3600, "shop")
    assert (request.server.host, request.server.port, request.server.user) == ("h", 5433, "u")
    assert (request.storage.bucket, request.storage.prefix) == ("other", "p")
    assert request.server.password == ENVIRON["POSTGRES_PASSWORD"]


def test_backup_without_flags_is_the_environment(fake: Fake, run: Run) -> None:
    run("backup", BACKUP_PREFIX="env")
    ((_verb, request),) = fake.calls
    assert (request.overwrite, request.filters, request.jobs, request.key) == ("never", Filters(), 0, "")
    assert request.storage.prefix == "env"
    run("backup", "--prefix", "flag", BACKUP_PREFIX="env")
    assert fake.calls[1][1].storage.prefix == "flag"


def test_restore_flags_reach_the_request(fake: Fake, run: Run) -> None:
    argv = "latest --target-db copy --create --strategy swap --drop-old --jobs 3 --schema s --table t --table s.u"
    argv += " --no-owner --no-privileges --role r --latest-before 2026-01-31T02:00:00Z --source-db src --no-analyze"
    assert run("restore", *argv.split())[0] == 0
    ((verb, request),) = fake.calls
    assert verb == "restore"
    assert (request.key, request.database, request.source_database) == ("latest", "copy", "src")
    assert (request.create, request.strategy, request.keep_old, request.jobs) == (True, "swap", False, 3)
    assert (request.schemas, request.tables) == (("s",), ("t", "s.u"))
    assert (request.no_owner, request.no_privileges, request.role, request.analyze) == (True, True, "r", False)
    assert request.latest_before == "2026-01-31T02:00:00Z"
    assert (request.server.host, request.storage.bucket) == ("db", "backups")
    assert fake.logs == ["copy"]


def test_restore_defaults(fake: Fake, run: Run) -> None:
    run("restore", "a.key")
    ((_verb, request),) = fake.calls
    assert (request.key, request.database, request.source_database) == ("a.key", "shop", "")
    assert (request.create, request.strategy, request.keep_old, request.analyze) == (False, "auto", True, True)
    assert (request.no_owner, request.no_privileges, request.role) == (False, False, "")
    run("restore", "a.key", "--keep-old")
    assert fake.calls[1][1].keep_old is True
    assert request.content == "all"
    for number, content in enumerate(("data", "schema"), 2):
        run("restore", "a.key", "--%s-only" % content)
        assert fake.calls[number][1].content == content


def test_verify_flags_reach_the_request(fake: Fake, run: Run) -> None:
    argv = "latest --level restore --compare-source --no-owner --no-privileges --role r --jobs 3 --source-db crm"
    argv += " --latest-before 2026-01-31T02:00:00Z"
    status, out, _err = run("verify", *argv.split(), BACKUP_VERIFY_LEVEL="index")
    assert status == 0 and (out[-1]["verified"], out[-1]["level"], out[-1]["changed"]) == (True, "restore", False)
    ((_verb, request),) = fake.calls
    assert (request.key, request.level, request.compare_source, request.source_database) == (
        "latest", "restore", True, "crm",
    )  # fmt: skip
    assert (request.no_owner, request.no_privileges, request.role, request.jobs) == (True, True, "r", 3)
    assert (request.latest_before, request.server.host) == ("2026-01-31T02:00:00Z", "db")
    assert fake.logs == ["crm"]


def test_verify_defaults(fake: Fake, run: Run) -> None:
    run("verify", "a.key")
    run("verify", "latest", BACKUP_VERIFY_LEVEL="index", BACKUP_JOBS="2")
    (_verb, request), (_verb, scheduled) = fake.calls
    assert (request.level, request.compare_source, request.server, request.source_database) == (
        "content", False, Server(), "",
    )  # fmt: skip
    assert (scheduled.level, scheduled.source_database, scheduled.jobs) == ("index", "shop", 2)


def test_faults_of_a_verification_come_all_at_once(fake: Fake, run: Run) -> None:
    environ = {"BACKUP_VERIFY_LEVEL": "deep", "BACKUP_STORE": "ftp://x"}
    status, _out, err = run("verify", "k", "--compare-source", "--source-db", "x", environ=environ)
    assert status == 2 and fake.calls == []
    for word in ("BACKUP_VERIFY_LEVEL", "--compare-source", "--source-db", "BACKUP_STORE"):
        assert word in err[-1]["message"]
    assert "POSTGRES_HOST" not in err[-1]["message"]  # no server is asked
    status, _out, err = run("verify", "k", "--level", "restore", environ={"BACKUP_STORE": "file:///b"})
    assert status == 2 and "missing: POSTGRES_HOST, POSTGRES_USER" in err[-1]["message"]


def test_globals_flags_reach_the_requests(fake: Fake, run: Run) -> None:
    assert run("restore", "latest", "--globals")[0] == run("verify", "latest", "--globals")[0] == 0
    assert run("prune", "--globals", "--keep-last", "1")[0] == 0
    asked = [request for _name, request in fake.calls]
    assert all(request.globals for request in asked)
    assert [asked[0].database, asked[1].source_database, asked[2].database] == ["", "", ""]
    code, _out, err = run("restore", "latest", "--globals", "--target-db", "x", "--schema", "s", "--source-db", "y")
    assert code == 2
    for flag in ("--target-db", "--schema", "--source-db"):
        assert flag + " goes with a database, not with globals" in err[-1]["message"]


def test_a_password_cannot_be_given_to_the_flag_that_sounds_like_one(run: Run) -> None:
    code, out, err = run("backup", "--globals-passwords=hunter2")
    assert code == 2 and "no flag takes a secret" in err[-1]["message"] and "hunter2" not in str(out) + str(err)


@pytest.mark.parametrize(
    "argv, verb", [(["backup"], "predict_backup"), (["restore", "k"], "predict_restore")], ids=["backup", "restore"]
)
def test_dry_run_predicts(fake: Fake, run: Run, argv: List[str], verb: str) -> None:
    _status, out, _err = run(*argv, "--dry-run")
    assert [name for name, _request in fake.calls] == [verb]
    assert out[-1]["dry_run"] is True


def test_list_and_check_arguments(fake: Fake, run: Run) -> None:
    assert run("list", "--store", "file:///b", environ={})[0] == 0
    run("check")
    assert fake.calls[0] == ("list", (Storage(kind="local", directory="/b"), "", 100, Retention(), 0))
    name, (server, storage, database) = fake.calls[1]
    assert (name, server.host, storage.bucket, database) == ("check", "db", "backups", "shop")


# The result


def test_the_result_is_the_last_line_of_stdout(fake: Fake, run: Run) -> None:
    status, out, err = run("backup")
    assert (status, err) == (0, [])
    first, last = out
    assert first["event"] == "snapshot"
    assert last["event"] == "result" and last["operation"] == "backup" and last["dry_run"] is False
    assert last["table_rows"] == [{"schema": "public", "name": "t", "rows": 3, "raw_bytes": 0}]
    assert first["correlation_id"] == last["correlation_id"] == fake.calls[0][1].correlation_id != ""
    assert (first["operation"], first["database"]) == ("backup", "shop")
    assert run("backup")[1][-1]["correlation_id"] != last["correlation_id"]


def test_list_result(fake: Fake, run: Run) -> None:
    _status, out, _err = run("list")
    (line,) = out
    assert line["event"] == "result" and line["operation"] == "list" and line["correlation_id"]
    assert [one["key"] for one in line["backups"]] == [INFO.key, FOREIGN.key]
    assert [one["foreign"] for one in line["backups"]] == [False, True]


def test_list_table_on_a_terminal(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["list"], ENVIRON) == 0
    assert out.getvalue() == tables.backup_table([INFO, FOREIGN]) + "\n" and INFO.key in out.getvalue()
    out.seek(0)
    out.truncate()
    assert cli.main(["list", "--json", "--table"], ENVIRON) == 0
    shown = out.getvalue().splitlines()
    assert json.loads(shown[-1])["operation"] == "list" and shown[0].startswith("AGE")


def test_a_table_without_a_terminal_comes_before_the_result(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "--table"], ENVIRON) == 0
    *shown, last = capsys.readouterr().out.splitlines()
    assert shown == tables.backup_table([INFO, FOREIGN]).splitlines()
    assert json.loads(last)["event"] == "result"


def test_empty_list_on_a_terminal_says_where_it_looked(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys.modules["_pgstream.listing"], "list_backups", lambda *_arguments: [])
    assert cli.main(["list", "--prefix", "p"], ENVIRON) == 0
    assert out.getvalue() == "No backups in s3://backups/p\n"


def test_list_takes_the_policy_and_what_the_ledger_knows(fake: Fake, run: Run, tmp_path: Path) -> None:
    run("list", "--details", "7", "--keep-daily", "3", BACKUP_KEEP_LAST="2")
    run("list", BACKUP_STATE_DIR=str(tmp_path))
    _status, out, err = run("list", BACKUP_STATE_DIR=str(tmp_path / "absent"))
    assert [call[1][2:] for call in fake.calls] == [
        (7, Retention(keep_last=2, keep_daily=3), 0),
        (100, Retention(), 0),
        (100, Retention(), 0),
    ]
    assert [line["event"] for line in err] == ["ledger_unavailable"] and out[-1]["backups"]  # a list all the same


# Pruning


def test_prune_flags_and_variables(fake: Fake, run: Run) -> None:
    argv = "--keep-last 1 --keep-hourly 2 --keep-daily 3 --keep-weekly 4 --keep-monthly 5 --keep-yearly 6"
    argv += " --keep-within 7d --min-keep 8 --prefix p"
    variables = {"BACKUP_KEEP_" + name: "9" for name in ("LAST", "HOURLY", "DAILY", "WEEKLY", "MONTHLY", "YEARLY")}
    assert run("prune", *argv.split(), BACKUP_STATE_DIR="/nowhere", **variables)[0] == 0
    assert run("prune", "--dry-run", BACKUP_KEEP_WITHIN="36h", BACKUP_MIN_KEEP="2", **variables)[0] == 0
    (first, request), (second, other) = fake.calls
    assert (first, second) == ("prune", "predict_prune")
    assert request.retention == Retention(1, 2, 3, 4, 5, 6, 7 * 86400, 8)
    assert (request.database, request.storage.prefix, request.state_dir) == ("shop", "p", "/nowhere")
    assert other.retention == Retention(9, 9, 9, 9, 9, 9, 36 * 3600, 2) and other.state_dir == ""


def test_prune_needs_no_server_and_names_every_fault(fake: Fake, run: Run) -> None:
    environ = {"RCLONE_S3_BUCKET": "backups", "POSTGRES_DB": "shop"}
    assert run("prune", "--keep-last", "1", environ=environ)[0] == 0
    faulty = {"BACKUP_KEEP_DAILY": "-1", "BACKUP_MIN_KEEP": "0", "BACKUP_KEEP_WITHIN": "7"}
    status, _out, (line,) = run("prune", "--keep-last", "many", environ=faulty)
    assert status == 2
    for name in ("POSTGRES_DB", "RCLONE_S3_BUCKET", "--keep-last", *faulty):
        assert name in line["message"], name


def test_prune_result_and_table(fake: Fake, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    _status, out, _err = run("prune", "--keep-last", "1")
    assert (out[-1]["operation"], out[-1]["dry_run"], out[-1]["freed_bytes"]) == ("prune", False, 2000)
    assert out[-1]["kept"] == [
        {"key": INFO.key, "size": 1000, "time": INFO.time, "why": ["last 1", "daily 2026-01-31"]}
    ]
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    assert cli.main(["prune", "--keep-last", "1", "--dry-run"], ENVIRON) == 0
    _head, first, second, sentence = terminal.getvalue().splitlines()
    assert first.split("  ") == ["1 kB", INFO.key, "last 1, daily 2026-01-31"]
    assert second.endswith("2026-01-30T02:00:00Z.sql.gz  would be removed")
    assert sentence == "1 backups removed, 1 kept, 2 kB freed"


def test_check_failure_prints_findings_and_exits_1(fake: Fake, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("check")[0] == 0
    findings = (
        Finding("server", True, "15"), Finding("bucket", False, "no such bucket"),
        Finding("listing", False, "denied", needed=False, follows="latest"), Finding("reading", None, "not tried"),
    )  # fmt: skip
    fake.check_result = CheckResult(False, findings, ("a backup would fail: bucket",), exit_code=1)
    status, out, err = run("check")
    assert status == 1
    assert out[-1]["operation"] == "check" and out[-1]["ok"] is False and out[-1]["correlation_id"]
    assert err[-1]["message"] == "Failed during check: bucket: no such bucket"  # what a backup needs, and no more
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    cli.main(["check"], ENVIRON)
    assert terminal.getvalue().splitlines() == [
        "ok     server   15",
        "FAULT  bucket   no such bucket",
        "no     listing  denied",
        "-      reading  not tried",
        "a backup would fail: bucket",
    ]
    fake.check_result = CheckResult(False, findings[1:], exit_code=4)
    assert run("check")[0] == 4


# Errors


@pytest.mark.parametrize(
    "kind, code",
    [
        (errors.BackupError, 1),
        (errors.ServerError, 3),
        (errors.StorageError, 4),
        (errors.NotFoundError, 5),
        (errors.IntegrityError, 6),
        (errors.TargetError, 7),
        (errors.LockedError, 8),
    ],
)
def test_errors_become_one_line_and_their_exit_code(fake: Fake, run: Run, kind: type, code: int) -> None:
    def act() -> None:
        raise kind("Backup not found: x", stage="restore", hint="Try y.")

    fake.act = act
    status, out, err = run("restore", "x")
    assert (status, out) == (code, [])
    (line,) = err
    assert line["message"] == "Failed during restore: Backup not found: x. Try y."
    assert (line["level"], line["event"], line["stage"], line["exit_code"]) == ("ERROR", "failed", "restore", code)
    assert line["operation"] == "restore" and line["correlation_id"] == fake.calls[0][1].correlation_id
    assert "traceback" not in line


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["fly"],
        ["backup", "--no-such-flag"],
        ["backup", "extra"],
        ["backup", "--overw"],  # no abbreviations: a new flag must not change an old script
        ["restore"],
        ["restore", "k", "--strategy", "hope"],
        ["restore", "k", "--keep-old", "--drop-old"],
        ["restore", "k", "--data-only", "--schema-only"],
        ["backup", "--jobs"],
        ["backup", "--jobs", "x"],
        ["backup", "--port", "x"],
        ["backup", "--compression", "lzma"],
        ["list", "--store", "nowhere"],
    ],
    ids=" ".join,
)
def test_usage_faults_exit_2_as_a_json_line(fake: Fake, run: Run, argv: List[str]) -> None:
    status, out, err = run(*argv)
    assert (status, out, fake.calls) == (2, [], [])
    (line,) = err
    assert (line["event"], line["exit_code"]) == ("failed", 2) and line["message"]


def test_missing_variables_are_all_named(fake: Fake, run: Run) -> None:
    status, _out, err = run("backup", environ={})
    assert status == 2
    for name in ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "RCLONE_S3_BUCKET"):
        assert name in err[-1]["message"]


@pytest.mark.parametrize("flag", ["--password=hunter2", "--secret-access-key=hunter2", "-password=hunter2"])
@pytest.mark.parametrize("where", ["before", "after"])
def test_a_secret_as_a_flag_is_refused_unshown(run: Run, flag: str, where: str) -> None:
    for flags in ([flag], flag.split("=")):
        status, out, err = run(*([*flags, "list"] if where == "before" else ["list", *flags]))
        assert (status, out) == (2, [])
        assert "hunter2" not in json.dumps(err)
        assert "environment" in err[-1]["message"]


def test_error_on_a_terminal_is_a_sentence(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    assert cli.main(["restore"], ENVIRON) == 2
    (line,) = err.getvalue().splitlines()
    assert "ERROR the following arguments are required: KEY" in line and "{" not in line


def test_unexpected_errors_are_masked_and_exit_1(fake: Fake, run: Run) -> None:
    password = ENVIRON["POSTGRES_PASSWORD"]
    text = "boom %s %r AKEY SKEY/+x SKEY%%2F%%2Bx p%%274ss%%20w%%C3%%B6rd" % (password, password)

    def act() -> None:
        raise RuntimeError(text)  # a traceback shows this line

    fake.act = act
    status, _out, err = run("backup")
    assert status == 1
    (line,) = err
    assert line["message"].startswith("unexpected RuntimeError: boom *** ")
    assert "traceback" not in line
    _status, _out, err = run("backup", "--debug")
    assert "Traceback" in err[-1]["traceback"] and "RuntimeError" in err[-1]["traceback"]
    for form in (password, repr(password)[1:-1], "AKEY", "SKEY", "p%274ss"):
        assert form not in json.dumps(line, ensure_ascii=False) + err[-1]["traceback"]


def test_secrets_from_files_are_masked(fake: Fake, run: Run, tmp_path: Path) -> None:
    def act() -> None:
        raise errors.ServerError("server said: hunter2 is wrong for postgres")

    (tmp_path / "s").write_text("hunter2\n")
    fake.act = act
    environ = {**ENVIRON, "POSTGRES_PASSWORD": "", "POSTGRES_PASSWORD_FILE": str(tmp_path / "s")}
    assert run("backup", environ=environ)[2][-1]["message"] == "server said: *** is wrong for postgres"


def test_a_password_that_is_a_public_word_does_not_make_errors_unreadable(fake: Fake, run: Run) -> None:
    def act() -> None:
        raise errors.ServerError('role "postgres" may not')

    fake.act = act
    assert run("backup", POSTGRES_PASSWORD="postgres")[2][-1]["message"] == 'role "postgres" may not'


@pytest.mark.parametrize("package", ["boto3", "psycopg2"])
def test_a_missing_package_is_named(fake: Fake, run: Run, package: str) -> None:
    def act() -> None:
        raise ModuleNotFoundError("No module named %r" % package, name=package + ".extensions")

    fake.act = act
    status, _out, err = run("backup")
    assert status == 2
    assert package in err[-1]["message"] and "pip install" in err[-1]["message"]


def test_another_import_error_is_not_blamed_on_the_user(fake: Fake, run: Run) -> None:
    def act() -> None:
        raise ModuleNotFoundError("No module named 'own'", name="own")

    fake.act = act
    assert run("backup")[0] == 1


# Processes


def command(environ: Dict[str, str], *argv: str, **more: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *argv], env=environ, capture_output=True, encoding="utf-8", timeout=60, check=False, **more
    )


def test_python_m(engine_env: Dict[str, str]) -> None:
    done = command(engine_env, "-m", "_pgstream.main", "restore")
    assert (done.returncode, done.stdout) == (2, "")
    assert json.loads(done.stderr.splitlines()[-1])["event"] == "failed"


def test_help_is_quick_and_needs_no_library(engine_env: Dict[str, str]) -> None:
    code = "import sys; from _pgstream import cli\ntry: cli.main(['backup', '--help'], {})\n"
    code += "except SystemExit as end: assert not end.code\n"
    code += "assert not {'boto3', 'psycopg2', 'rich'} & set(sys.modules)"
    done = command(engine_env, "-c", code)
    assert done.returncode == 0, done.stderr
    for flag in ("--exclude-table-data", "--fresh-within", "--dry-run", "--store"):
        assert flag in done.stdout
    assert {flag for flag in re.findall(r"--[\w-]+", done.stdout) if "pass" in flag} == {"--globals-passwords"}
    assert not re.search(r"--globals-passwords\s+[A-Z]", done.stdout)  # it takes no value


def test_json_is_utf8_in_any_locale(engine_env: Dict[str, str]) -> None:
    environ = {**engine_env, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "POSTGRES_DB": "sh\u00f6p"}
    done = command(environ, "-m", "_pgstream.main", "backup")
    assert json.loads(done.stderr.splitlines()[-1])["database"] == "sh\u00f6p"
    odd = os.fsencode("k").decode() + "\udcff"  # a byte that is not UTF-8, as argv carries it
    done = command(engine_env, "-m", "_pgstream.main", "restore", "k", "--strategy", odd)
    assert json.loads(done.stderr.splitlines()[-1])["exit_code"] == 2


def test_a_reader_that_went_away_is_no_traceback(engine_env: Dict[str, str], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environ = {**engine_env, "BACKUP_STORE": "file://%s" % tmp_path}
    environ.pop("PYTHONUNBUFFERED", None)  # the interpreter shall have something left to flush at its end
    with os.fdopen(writer, "w") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "_pgstream.main", "list"],
            env=environ, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "BrokenPipeError" in json.loads(line)["message"]


SLOW = """
import signal, sys, time, types
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.{disposition})
import _pgstream
from _pgstream import cli
from _pgstream.errors import ServerError

def back_up(request, log):
    try:
        log.info("ready")
        time.sleep(30)
    finally:
        log.info("cleaning")
        time.sleep(1)
        log.info("cleaned")
        {after}

_pgstream.backup = sys.modules["_pgstream.backup"] = types.ModuleType("backup")
_pgstream.backup.back_up = back_up
raise SystemExit(cli.main(["backup"], {environ!r}))
"""


def interrupt(environ: Dict[str, str], number: int, disposition: str = "default_int_handler", after: str = "") -> Any:
    """Send the signal once the run is ready, and again while it cleans up."""
    code = SLOW.format(environ=ENVIRON, disposition=disposition, after=after)
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    lines = []
    for event in ("ready", "cleaning"):
        lines.append(json.loads(child.stdout.readline()))
        assert lines[-1]["event"] == event
        child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return child.returncode, [json.loads(line)["event"] for line in out.splitlines()], err.splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_lets_the_engine_clean_up_and_a_second_does_not_disturb(
    engine_env: Dict[str, str], number: signal.Signals
) -> None:
    status, out, err = interrupt(engine_env, number)
    assert (status, out) == (1, ["cleaned"])
    (line,) = err
    assert "Interrupted by " + number.name in json.loads(line)["message"]
    assert json.loads(line)["exit_code"] == 1


def test_what_fails_because_of_the_interrupt_does_not_hide_it(engine_env: Dict[str, str]) -> None:
    status, _out, err = interrupt(engine_env, signal.SIGTERM, after="raise ServerError('psql died')")
    assert status == 1
    assert "Interrupted by SIGTERM" in json.loads(err[-1])["message"]


def test_sigint_ignored_by_the_parent_stays_ignored(engine_env: Dict[str, str]) -> None:
    code = SLOW.format(environ=ENVIRON, disposition="SIG_IGN", after="").replace("time.sleep(30)", "time.sleep(1)")
    child = subprocess.Popen([sys.executable, "-c", code], env=engine_env, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and json.loads(child.stdout.readline())["event"] == "ready"
    began = datetime.now()
    child.send_signal(signal.SIGINT)
    assert json.loads(child.stdout.readline())["event"] == "cleaning"
    assert (datetime.now() - began).total_seconds() > 0.5
    child.communicate(timeout=30)


def test_handlers_are_given_back(fake: Fake, run: Run) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    run("backup")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_interrupted_after_the_work_is_done_still_tells_the_result(fake: Fake, run: Run) -> None:
    signals = interrupts.Signals()
    with signals:
        signals.ignore()
        os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received is None
    with interrupts.Signals(), pytest.raises(cli.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
