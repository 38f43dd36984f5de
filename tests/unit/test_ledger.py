# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The run ledger: what is kept, counted, and who died; and that the command notes every run and survives any ledger."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import types
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import _pgstream
import pytest
from _pgstream import cli, errors, health, ledger
from _pgstream.ledger import DIED, FAILURE, RUNNING, SUCCESS, Ledger, LedgerError, Totals
from _pgstream.listing import known_runs, verified
from _pgstream.model import BackupResult, PruneResult, RestoreResult

from tests.support.ledger_runs import NOW, run, view
from tests.support.runs import KeptLog


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path), patience=30)


def finish_all(book: Ledger, *runs: Any) -> None:
    for each in runs:
        book.finish(each)


def locks(directory: Path) -> List[str]:
    return sorted(path.name for path in directory.glob("*.lock"))


# The file


def test_a_run_is_seen_while_it_runs_and_after(book: Ledger, tmp_path: Path) -> None:
    done = run(database="sh\u00f6p")
    begun = replace(done, status=RUNNING, finished=None)
    lock = book.begin(begun)
    assert book.view().runs == (begun,)
    assert book.view().totals == {}
    book.finish(done)
    lock.release()
    lock.release()
    assert book.view().runs == (done,)
    assert book.view().totals == {("backup", "sh\u00f6p"): Totals(1, 0, 60.0, {60.0: 1})}
    assert os.listdir(tmp_path) == ["ledger.sqlite"]


def test_an_end_without_a_beginning_counts(book: Ledger) -> None:
    book.finish(run(FAILURE))
    assert book.view().totals == {("backup", "shop"): Totals(0, 1)}


def test_nothing_there_yet_is_an_empty_ledger(book: Ledger, tmp_path: Path) -> None:
    assert book.view() == ledger.View()
    (tmp_path / ledger.FILE).touch()  # its making was cut short
    assert book.view() == ledger.View()
    book.finish(run())
    assert len(book.view().runs) == 1


def test_durations_are_of_work_done(book: Ledger) -> None:
    idle = run(changed=False, seconds=0.5)
    finish_all(book, run(seconds=1.0), run(seconds=1.1), run(seconds=1e6), run(FAILURE, seconds=3), idle)
    finish_all(book, run(operation="verify", changed=False, seconds=9))
    totals = book.view().totals
    assert totals["backup", "shop"] == Totals(4, 1, 1000002.1, {1.0: 1, 5.0: 1, float("inf"): 1})
    assert totals["verify", "shop"].durations == {15.0: 1}


def test_old_runs_go_and_counters_stay(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", 3)
    work, idle = run(started=NOW - 9000), run(started=NOW - 8000, changed=False)
    lock = book.begin(run(RUNNING, started=NOW - 9999))
    finish_all(book, work, idle, *[run(FAILURE, started=NOW - 5000 + number) for number in range(20)])
    kept = book.view()
    lock.release()
    assert [each.started - NOW for each in kept.runs if each.status == FAILURE] == [-4981, -4982, -4983]
    # The last success, the last that did work, and what still runs, are what the metrics are about.
    assert [each.status for each in kept.runs][3:] == [SUCCESS, SUCCESS, RUNNING]
    assert kept.totals["backup", "shop"] == Totals(2, 20, 60.0, {60.0: 1})


def test_names_do_not_add_up_for_ever(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT_GROUPS", 3)
    finish_all(book, *[run(operation="restore", database="copy%d" % n, started=NOW + n) for n in range(9)])
    kept = book.view()
    assert sorted(kept.totals) == [("restore", "copy%d" % n) for n in (6, 7, 8)]
    assert len(kept.runs) == 3


def test_the_file_stays_small(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", 10)
    finish_all(book, *[run(FAILURE, message="x" * 5000, started=NOW + n) for n in range(10)])
    size = os.path.getsize(book.path)
    finish_all(book, *[run(FAILURE, message="x" * 5000, started=NOW + 10 + n) for n in range(40)])
    assert os.path.getsize(book.path) <= size * 1.2
    assert {len(each.message) for each in book.view().runs} == {ledger.MESSAGE}


def test_an_end_is_whole_or_not_there(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    book.finish(run())
    before = book.view()

    def broken(*_arguments: Any) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(ledger, "_forget", broken)  # the last step of the transaction
    with pytest.raises(LedgerError, match="disk I/O error"):
        book.finish(run())
    assert book.view() == before


def test_bytes_that_are_no_text_can_be_kept(book: Ledger) -> None:
    book.finish(run(FAILURE, database="a\udcff", message="no \udc80"))
    (kept,) = book.view().runs
    assert (kept.database, kept.message) == ("a\\udcff", "no \\udc80")


def test_facts_have_a_since(book: Ledger) -> None:
    book.remember("schedule", "a", 5.0)
    book.remember("schedule", "a", 6.0)
    assert book.view().facts == {"schedule": ("a", 5.0)}
    book.remember("schedule", "b", 7.0)
    assert book.view().facts == {"schedule": ("b", 7.0)}


@pytest.mark.parametrize("what", ["missing", "a file", "a directory", "no database", "cut off", "newer"])
def test_what_cannot_be_used_is_a_sentence(tmp_path: Path, what: str) -> None:
    directory = str(tmp_path)
    if what == "missing":
        directory += "/none"
    elif what == "a file":
        directory += "/file"
        Path(directory).touch()
    elif what == "a directory":
        (tmp_path / ledger.FILE).mkdir()
    elif what == "no database":
        (tmp_path / ledger.FILE).write_bytes(b"x" * 5000)
    else:
        finish_all(Ledger(directory), *[run(FAILURE, message="m" * 900) for _number in range(40)])
        if what == "cut off":
            os.truncate(tmp_path / ledger.FILE, 8192)
        else:
            with sqlite3.connect(tmp_path / ledger.FILE) as connection:
                connection.execute("PRAGMA user_version = 3")
    book = Ledger(directory, patience=0.1)
    calls: List[Callable[[], object]] = [book.view, lambda: book.finish(run()), lambda: book.begin(run(RUNNING))]
    for call in calls:
        with pytest.raises(LedgerError, match="the run ledger .*ledger.sqlite"):
            call()
    assert what in ("missing", "a file") or locks(tmp_path) == []


def test_a_ledger_of_the_first_version_is_read_and_then_kept_on(book: Ledger, tmp_path: Path) -> None:
    book.finish(run())
    with sqlite3.connect(book.path, isolation_level=None) as old:
        old.execute("ALTER TABLE runs DROP COLUMN level")
        old.execute("PRAGMA user_version = 1")
    before = os.stat(book.path).st_mtime_ns
    (seen,) = book.view().runs
    assert (seen.key, seen.level) == ("a.sql.gz", "") and os.stat(book.path).st_mtime_ns == before
    book.finish(run(operation="verify", level="restore"))
    assert sorted(each.level for each in book.view().runs) == ["", "restore"]


def test_the_last_verification_of_each_level_is_kept(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "KEPT", 3)
    kinds = [("restore", SUCCESS), ("restore", FAILURE)] + [("index", SUCCESS)] * 9
    for day, (level, status) in enumerate(kinds):
        book.finish(run(status, operation="verify", level=level, started=NOW + day))
    kept = [(each.level, each.status) for each in book.view().runs]
    assert kept == [("index", SUCCESS)] * 3 + [("restore", FAILURE), ("restore", SUCCESS)]


def test_what_is_known_of_a_backups_verifications() -> None:
    def level(*runs: Any) -> str:
        found = verified(view(*[run(status, operation=operation, level=level, started=NOW + number, **more)
                                for number, (operation, status, level, more) in enumerate(runs)]).runs)  # fmt: skip
        return found["a.sql.gz"].level if "a.sql.gz" in found else ""

    good = ("verify", SUCCESS, "restore", {})
    assert level(good) == "restore"
    assert level(good, ("verify", SUCCESS, "index", {})) == "index"
    assert level(good, ("verify", FAILURE, "content", {"key": "a.sql.gz", "exit_code": 6})) == ""
    assert level(good, ("verify", FAILURE, "content", {"key": "a.sql.gz", "exit_code": 4})) == "restore"
    assert level(good, ("verify", FAILURE, "content", {"key": "b.sql.gz", "exit_code": 6})) == "restore"
    assert level(("restore", SUCCESS, "", {})) == ""


def test_a_listing_without_a_ledger_is_a_warning(tmp_path: Path) -> None:
    log = KeptLog()
    Ledger(str(tmp_path)).finish(run(operation="verify", level="content"))
    (known,) = known_runs(str(tmp_path), log)
    assert verified([known]) == {known.key: known}
    assert known_runs("", log) == () and log.lines == []
    assert known_runs(str(tmp_path / "none"), log) == ()
    assert log.events() == ["ledger_unavailable"]


def test_a_ledger_that_is_busy_for_too_long_gives_up(book: Ledger, tmp_path: Path) -> None:
    book.finish(run())
    with sqlite3.connect(book.path, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(LedgerError, match="locked"):
            Ledger(str(tmp_path), patience=0.05).finish(run())
        other.execute("ROLLBACK")
    other.close()
    assert len(book.view().runs) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_on_a_read_only_directory_it_can_be_read() -> None:
    with tempfile.TemporaryDirectory() as directory:  # not tmp_path, where another user may not pass
        book = Ledger(directory, patience=0.1)
        lock = book.begin(run(RUNNING))
        book.finish(run())
        os.chmod(book.path, 0o444)
        os.chmod(directory, 0o555)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                if os.getuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                statuses = [each.status for each in book.view().runs]
                try:
                    book.finish(run())
                except LedgerError:
                    status = 0 if sorted(statuses) == [RUNNING, SUCCESS] else 2
            finally:
                os._exit(status)
        try:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        finally:
            os.chmod(directory, 0o755)
            lock.release()


# Several processes


def python(environ: Dict[str, str], code: str, *argv: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env=dict(environ, PYTHONPATH=os.pathsep.join([environ["PYTHONPATH"], str(Path(__file__).parents[2])])),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


BEGIN = """
import sys, time
from _pgstream.ledger import Ledger
from tests.support.ledger_runs import run
lock = Ledger(sys.argv[1]).begin(run("running", database="killed", token="f00d"))
print("begun", flush=True)
sys.stdin.read()
"""


def test_a_run_that_was_killed_failed(book: Ledger, tmp_path: Path, engine_env: Dict[str, str]) -> None:
    child = python(engine_env, BEGIN, str(tmp_path))
    assert child.stdout is not None and child.stdout.readline() == "begun\n"
    group = "backup", "killed"
    assert [each.status for each in book.view().runs] == [RUNNING]  # as seen from another process
    book.begin(run(RUNNING, token="beef")).release()
    assert book.view().totals.get(group) is None  # a writer does not bury the living
    child.kill()
    child.communicate()
    seen = book.view()
    assert seen.totals[group] == Totals(0, 1)
    (dead,) = [each for each in seen.runs if each.database == "killed"]
    assert (dead.status, dead.message, dead.exit_code, dead.finished) == (FAILURE, DIED, None, None)
    assert seen == book.view()  # looking changes nothing
    book.begin(run(RUNNING)).release()  # the next writer counts it, once
    book.begin(run(RUNNING)).release()
    after = book.view()
    assert after.totals[group] == Totals(0, 1)
    assert [each for each in after.runs if each.database == "killed"] == [dead]
    with sqlite3.connect(book.path) as connection:
        assert connection.execute("SELECT failed FROM totals WHERE database = 'killed'").fetchall() == [(1,)]
    connection.close()
    assert locks(tmp_path) == []


WRITE = """
import sys
from dataclasses import replace
from _pgstream.ledger import Ledger
from tests.support.ledger_runs import run
book = Ledger(sys.argv[1], patience=120)
print("ready", flush=True)
sys.stdin.read()
for number in range(int(sys.argv[2])):
    token = "%s%04x" % (sys.argv[3], number)
    lock = book.begin(run("running", token=token))
    assert not any(each.status == "failure" for each in book.view().runs), "a living run looked dead"
    book.finish(run(token=token))
    lock.release()
"""


def test_concurrent_writers_lose_nothing(book: Ledger, tmp_path: Path, engine_env: Dict[str, str]) -> None:
    writers = [python(engine_env, WRITE, str(tmp_path), "15", "%x" % (10 + number)) for number in range(4)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()  # all at once
    assert [writer.wait(timeout=300) for writer in writers] == [0, 0, 0, 0]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    seen = book.view()
    assert seen.totals["backup", "shop"] == Totals(60, 0, 3600.0, {60.0: 60})
    assert len(seen.runs) == 60 and {each.status for each in seen.runs} == {SUCCESS}


# The command

ENVIRON = {
    "POSTGRES_HOST": "db",
    "POSTGRES_USER": "postgres",
    "POSTGRES_PASSWORD": "hunter2 hunter2",
    "POSTGRES_DB": "shop",
    "BACKUP_STORE": "file:///nowhere",
}


class Command:
    """cli.main with the engine's verbs replaced by `act`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.book = Ledger(str(directory))
        self.environ = {**ENVIRON, "BACKUP_STATE_DIR": str(directory)}
        self.act: Callable[[], None] = lambda: None
        for name, functions in {
            "backup": {"back_up": self._backup, "predict_backup": self._backup},
            "restore": {"restore": self._restore, "predict_restore": self._restore},
            "listing": {"list_backups": lambda *_arguments: []},
            "prune": {"prune": self._prune, "predict_prune": self._prune},
        }.items():
            module = types.ModuleType("_pgstream." + name)
            module.__dict__.update(functions)
            monkeypatch.setitem(sys.modules, "_pgstream." + name, module)
            monkeypatch.setattr(_pgstream, name, module, raising=False)

    def _backup(self, request: Any, log: Any) -> BackupResult:
        self.act()
        sizes = {"raw_bytes": 5000, "stored_bytes": 900, "rows": 70, "tables": 3, "message": "backed up"}
        return BackupResult(True, request.database, "k.sql.gz", "file:///k", request.correlation_id, **sizes)

    def _restore(self, request: Any, log: Any) -> RestoreResult:
        log.database = "learnt"
        self.act()
        return RestoreResult(True, "learnt", request.key, "", request.correlation_id, rows=7)

    def _prune(self, request: Any, log: Any) -> PruneResult:
        self.act()
        return PruneResult(True, request.database, request.correlation_id, message="2 backups removed, 3 kept")

    def __call__(self, *argv: str, **more: str) -> int:
        return cli.main(list(argv), {**self.environ, **more})

    @property
    def runs(self) -> Any:
        return self.book.view().runs


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Command]:
    (tmp_path / "state").mkdir()
    yield Command(monkeypatch, tmp_path / "state")
    assert locks(tmp_path / "state") == []


def test_a_success_is_noted_with_its_figures(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    seen: List[Any] = []
    command.act = lambda: seen.extend(command.runs)
    assert command("backup") == 0
    assert [(each.operation, each.database, each.status) for each in seen] == [("backup", "shop", RUNNING)]
    (done,) = command.runs
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done.correlation_id == line["correlation_id"] != ""
    assert (done.status, done.exit_code, done.changed, done.key) == (SUCCESS, 0, True, "k.sql.gz")
    assert (done.raw_bytes, done.stored_bytes, done.rows, done.tables) == (5000, 900, 70, 3)
    assert done.message == "backed up" and done.engine_version
    assert done.seconds >= 0 and done.finished == pytest.approx(done.started + done.seconds, abs=0.01)


def test_the_database_a_restore_learns_is_the_one_that_counts(command: Command) -> None:
    command("restore", "k.sql.gz")
    ((done,), totals) = command.runs, command.book.view().totals
    assert (done.operation, done.database, done.rows) == ("restore", "learnt", 7)
    assert list(totals) == [("restore", "learnt")]


def test_a_pruning_is_a_run_of_its_own(command: Command) -> None:
    """One that fails leaves the backup before it a good one."""
    assert command("backup") == 0 and command("prune", "--keep-last", "3") == 0

    def act() -> None:
        raise errors.StorageError("the store is away")

    command.act = act
    assert command("prune", "--keep-last", "3") == 4
    totals = command.book.view().totals
    assert (totals["backup", "shop"].succeeded, totals["backup", "shop"].failed) == (1, 0)
    assert (totals["prune", "shop"].succeeded, totals["prune", "shop"].failed) == (1, 1)
    backups = [each for each in command.runs if each.operation == "backup"]
    assert [each.status for each in backups] == [SUCCESS]
    assert [each.message for each in command.runs if each.operation == "prune" and each.status == SUCCESS] == [
        "2 backups removed, 3 kept"
    ]
    environ = {"BACKUP_STATE_DIR": command.book.directory, "POSTGRES_DB": "shop"}
    assert health.look(environ).ok


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.ServerError("psql said hunter2 hunter2", stage="validation"), 3),
        (errors.LockedError("another run", stage="lock"), 8),
        (RuntimeError("boom hunter2 hunter2"), 1),
        (KeyboardInterrupt(), 1),
    ],
    ids=["server", "locked", "bug", "keyboard"],
)
def test_a_failure_is_noted_without_secrets(command: Command, error: BaseException, code: int) -> None:
    def act() -> None:
        raise error

    command.act = act
    assert command("backup") == code
    (done,) = command.runs
    assert (done.status, done.exit_code, done.stage) == (FAILURE, code, getattr(error, "stage", ""))
    assert done.message and command.book.view().totals == {("backup", "shop"): Totals(0, 1)}
    assert b"hunter2" not in Path(command.book.path).read_bytes()


@pytest.mark.parametrize(
    "argv", [["backup", "--jobs", "x"], ["backup", "--no-such-flag"], ["restore"], ["backup", "x"]]
)
def test_what_is_wrong_before_it_starts_is_a_failed_run(command: Command, argv: List[str]) -> None:
    assert command(*argv) == 2
    (done,) = command.runs
    assert (done.operation, done.database, done.status, done.exit_code) == (argv[0], "shop", FAILURE, 2)
    assert done.message


@pytest.mark.parametrize("argv", [["--table", "t"], ["--exclude-table-data=t"], ["--schema", "s", "--no-such"]])
def test_a_filtered_backup_is_noted_as_one(command: Command, argv: List[str]) -> None:
    command("backup", *argv)
    assert [run.operation for run in command.runs] == ["backup_part"]


@pytest.mark.parametrize(
    "argv", [["backup", "--dry-run"], ["restore", "k", "--dry-run"], ["prune", "--dry-run"], ["list"], ["fly"], []]
)
def test_what_changes_nothing_is_no_run(command: Command, argv: List[str]) -> None:
    command(*argv)
    assert command.runs == ()


def test_help_is_no_run(command: Command) -> None:
    with pytest.raises(SystemExit):
        command("backup", "--help")
    assert command.runs == ()


def test_without_a_state_directory_there_is_no_ledger(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("backup", BACKUP_STATE_DIR="") == 0
    assert capsys.readouterr().err == "" and command.runs == ()


@pytest.mark.parametrize("broken", ["missing", "garbage"])
def test_a_backup_never_fails_because_of_the_ledger(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    directory = tmp_path / broken
    if broken == "garbage":
        directory.mkdir()
        (directory / ledger.FILE).write_bytes(b"garbage" * 999)
    assert command("backup", BACKUP_STATE_DIR=str(directory)) == 0
    out, err = capsys.readouterr()
    assert json.loads(out.splitlines()[-1])["event"] == "result"
    (line,) = [json.loads(text) for text in err.splitlines()]  # once a run, not at each end of it
    assert (line["level"], line["event"]) == ("WARNING", "ledger_unavailable")
    assert str(directory) in line["message"]


def test_a_reader_that_went_away_does_not_undo_a_backup(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sys.stdout

    class Gone:
        def write(self, text: str) -> int:
            raise BrokenPipeError("gone")

        def flush(self) -> None:
            pass

        def isatty(self) -> bool:
            return False

        def fileno(self) -> int:
            raise ValueError("none")

    monkeypatch.setattr(sys, "stdout", Gone())
    assert command("backup") == 1
    monkeypatch.setattr(sys, "stdout", real)
    assert [each.status for each in command.runs] == [SUCCESS]


ENGINE = """
import sys, time, types
import _pgstream
from _pgstream import cli

def back_up(request, log):
    log.info("ready")
    time.sleep(300)

_pgstream.backup = sys.modules["_pgstream.backup"] = types.ModuleType("backup")
_pgstream.backup.back_up = back_up
raise SystemExit(cli.main(["backup"], {environ!r}))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_run_that_is_stopped_is_a_failure(
    command: Command, engine_env: Dict[str, str], number: signal.Signals
) -> None:
    child = python(engine_env, ENGINE.format(environ=command.environ))
    assert child.stdout is not None and json.loads(child.stdout.readline())["event"] == "ready"
    assert [each.status for each in command.runs] == [RUNNING]
    child.send_signal(number)
    child.communicate(timeout=60)
    (done,) = command.runs
    assert (done.status, command.book.view().totals) == (FAILURE, {("backup", "shop"): Totals(0, 1)})
    assert done.message == (DIED if number == signal.SIGKILL else "Interrupted by SIGTERM")
    assert done.exit_code == (None if number == signal.SIGKILL else 1)
    command.book.begin(run(RUNNING)).release()  # takes away what the killed one left


def test_the_file_is_not_for_everyone_to_write(command: Command) -> None:
    command("backup")
    assert not stat.S_IMODE(os.stat(command.book.path).st_mode) & 0o022
