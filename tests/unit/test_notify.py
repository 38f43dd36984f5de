# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pings and webhooks at a real HTTP server: what is sent, how often, and that a run waits no longer than it may."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _pgstream import notify
from _pgstream.errors import UsageError
from _pgstream.notify import BUDGET, HURRIED_BUDGET, TRIES, Notifier, Receivers

from tests.support.receiver import Receiver
from tests.support.runs import KeptLog, wait_until
from tests.support.servers import free_port

RESULT = {"operation": "backup", "database": "shop", "key": "k.sql.gz", "stored_bytes": 10, "seconds": 1.5,
          "message": "backed up 3 rows", "table_rows": ({"rows": 3},)}  # fmt: skip
ERROR = {"stage": "commit", "message": "Failed during commit: no such bucket", "exit_code": 4}


class Clock:
    """A clock that only pauses move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: List[float] = []

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


class Told:
    """A notifier, what it warned of, and the clock that it goes by."""

    def __init__(self, **wanted: Any) -> None:
        self.log = KeptLog()
        self.log.operation, self.log.database = "backup", "shop"
        self.clock = Clock()
        wanted.setdefault("events", notify.EVENTS)
        self.notifier = Notifier(
            Receivers(**wanted), self.log, lambda text: text.replace("hunter2", "***"), self.clock, self.clock.pause
        )

    @property
    def warnings(self) -> List[str]:
        assert set(self.log.events()) <= {"not_notified"}
        return [str(fields["message"]) for level, _event, fields in self.log.lines if level == "WARNING"]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as one:
        yield one


# What is sent


def test_a_good_run(receiver: Receiver) -> None:
    told = Told(ping_url=receiver.url + "/check/", webhook_url=receiver.url + "/hook?token=x")
    told.log.known["key"] = "k.sql.gz"
    told.notifier.started()
    told.notifier.succeeded(RESULT)
    assert sorted(receiver.paths()) == ["/check", "/check/start", "/hook?token=x", "/hook?token=x"]
    assert receiver.paths().index("/check/start") < receiver.paths().index("/check")
    ping = next(each for each in receiver.got if each.path == "/check")
    assert (ping.method, ping.body, ping.content_type[:10]) == (
        "POST", b"backup of shop: success. backed up 3 rows", "text/plain",
    )  # fmt: skip
    start, end = [each.json for each in receiver.got if each.path.startswith("/hook")]
    assert (start["event"], end["event"]) == ("start", "success")
    assert {name: end[name] for name in RESULT if name != "table_rows"} == {
        name: value for name, value in RESULT.items() if name != "table_rows"
    }
    assert "table_rows" not in end and (end["host"], end["exit_code"]) == (socket.gethostname(), 0)
    assert end["text"] == "backup of shop: success. backed up 3 rows"
    assert told.warnings == [] and told.clock.pauses == []


def test_a_failed_run(receiver: Receiver) -> None:
    told = Told(ping_url=receiver.url + "/check", webhook_url=receiver.url + "/hook")
    told.notifier.failed({**ERROR, "message": "the password hunter2 is wrong"})
    assert sorted(receiver.paths()) == ["/check/fail", "/hook"]
    (hook,) = [each.json for each in receiver.got if each.path == "/hook"]
    assert (hook["event"], hook["stage"], hook["exit_code"]) == ("failure", "commit", 4)
    assert hook["message"] == "the password *** is wrong"
    assert not [each for each in receiver.got if b"hunter2" in each.body]


def test_only_the_first_end_counts(receiver: Receiver) -> None:
    told = Told(ping_url=receiver.url)
    told.notifier.succeeded(RESULT)
    told.notifier.failed(ERROR)  # such as a reader of stdout that went away
    assert receiver.paths() == ["/"]


@pytest.mark.parametrize(
    "url, paths",
    [
        ("/x?a=1", ["/x/start?a=1", "/x?a=1", "/x/fail?a=1"]),
        ("/x/{exit_code}", ["/x/0", "/x/4"]),
        ("/{operation}-{database}", ["/backup-a%20b%2Fc/start", "/backup-a%20b%2Fc", "/backup-a%20b%2Fc/fail"]),
    ],
)
def test_addresses(receiver: Receiver, url: str, paths: List[str]) -> None:
    for number in (0, 1):
        told = Told(ping_url=receiver.url + url)
        told.log.database = "a b/c"
        if number == 0:
            told.notifier.started()
            told.notifier.succeeded(RESULT)
        else:
            told.notifier.failed(ERROR)
    assert receiver.paths() == paths


def test_what_nobody_asked_for_is_not_sent(receiver: Receiver) -> None:
    told = Told(ping_url=receiver.url, webhook_url=receiver.url, events=("failure",))
    told.notifier.started()
    told.notifier.succeeded(RESULT)
    assert receiver.got == []
    told = Told()
    told.notifier.started()
    told.notifier.failed(ERROR)
    assert receiver.got == [] and told.warnings == []


def test_a_lock_held_elsewhere_is_no_news_for_a_monitor(receiver: Receiver) -> None:
    told = Told(ping_url=receiver.url + "/ping", webhook_url=receiver.url + "/hook")
    told.notifier.failed({**ERROR, "exit_code": 8})
    assert receiver.paths() == ["/hook"]


# Receivers that are not well


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_what_may_pass_is_tried_again(receiver: Receiver, status: int) -> None:
    receiver.answers = [status, status]
    told = Told(webhook_url=receiver.url)
    told.notifier.succeeded(RESULT)
    assert len(receiver.got) == 3 and told.warnings == [] and told.clock.pauses == [1.0, 2.0]
    assert len({each.body for each in receiver.got}) == 1


def test_tries_are_counted(receiver: Receiver) -> None:
    receiver.answers = [500] * 10
    told = Told(webhook_url=receiver.url)
    told.notifier.succeeded(RESULT)
    assert len(receiver.got) == TRIES and told.warnings == ["The webhook answered 500"]


@pytest.mark.parametrize("status", [400, 401, 404, 410])
def test_a_refusal_is_taken_for_one(receiver: Receiver, status: int) -> None:
    receiver.answers = [status]
    told = Told(webhook_url=receiver.url)
    told.notifier.succeeded(RESULT)
    assert len(receiver.got) == 1 and told.warnings == ["The webhook answered %d" % status]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_told_and_not_followed(receiver: Receiver, status: int) -> None:
    """urllib would make a GET of it, without the result, and all would seem well."""
    receiver.answers = [status]
    told = Told(webhook_url=receiver.url + "/hook")
    told.notifier.succeeded(RESULT)
    assert receiver.paths() == ["/hook"]
    assert "answered %d" % status in told.warnings[0] and "redirects are not followed" in told.warnings[0]


def test_a_monitor_that_knows_get_only(receiver: Receiver) -> None:
    receiver.answers = [405]
    told = Told(ping_url=receiver.url + "/check")
    told.notifier.succeeded(RESULT)
    assert [(each.method, each.path) for each in receiver.got] == [("POST", "/check"), ("GET", "/check")]
    assert told.warnings == []


def test_nobody_listens() -> None:
    told = Told(ping_url="http://127.0.0.1:%d/secret-path" % free_port())
    told.notifier.succeeded(RESULT)
    assert told.clock.pauses == [1.0, 2.0]
    assert told.warnings == ["The ping cannot be reached: Connection refused"]


def test_a_name_that_does_not_exist_and_a_file_that_is_none(tmp_path: Path) -> None:
    told = Told(webhook_url="https://127.0.0.1:1/", ca_bundle=str(tmp_path / "none.pem"))
    told.notifier.succeeded(RESULT)
    assert told.warnings == ["The webhook cannot be reached: No such file or directory"]
    assert "secret" not in str(told.log.lines)


# A receiver that hangs


def held(monkeypatch: pytest.MonkeyPatch, told: Told, wait: Callable[[float], None]) -> List[float]:
    """Have joins of the sending threads call `wait`; the seconds that each may take."""
    joins: List[float] = []
    join = threading.Thread.join

    def counted(self: threading.Thread, timeout: Any = None) -> None:
        if self.name in ("ping", "webhook"):
            joins.append(timeout)
            wait(timeout)
        else:
            join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", counted)
    return joins


@pytest.mark.parametrize("interrupted, budget", [(False, BUDGET), (True, HURRIED_BUDGET)])
def test_a_run_waits_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver, interrupted: bool, budget: float
) -> None:
    """Nobody answers, ever: the clock goes only while the run waits, so what it shows is what the run waited."""
    receiver.answers = [0] * 20
    told = Told(ping_url=receiver.url, webhook_url=receiver.url)

    def wait(timeout: float) -> None:
        told.clock.now += timeout  # the whole of it passes, and the thread still lives

    joins = held(monkeypatch, told, wait)
    order: List[int] = []  # how often was waited before each message
    begin = told.notifier._begin

    def counted(*arguments: Any) -> None:
        order.append(len(joins))
        begin(*arguments)

    monkeypatch.setattr(told.notifier, "_begin", counted)
    told.notifier.started()
    assert told.clock.now == 1000.0 and joins == []  # a start is not waited for
    told.notifier.failed(ERROR, interrupted)
    assert told.clock.now - 1000.0 <= budget and all(0 <= seconds <= budget for seconds in joins)
    assert told.clock.now - 1000.0 > budget * 0.9  # and it did wait
    assert order == [0, 0, 2, 2]  # first for the start: one that came after the end would be another run
    assert told.warnings.count("The ping did not answer in time") == 2
    assert told.warnings.count("The webhook did not answer in time") == 2


def test_a_try_ends_by_itself_and_is_counted(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    receiver.answers = [0] * 20
    monkeypatch.setattr(notify, "TIMEOUT", 0.05)
    told = Told(webhook_url=receiver.url)
    told.notifier.succeeded(RESULT)
    wait_until(lambda: len(receiver.got) == TRIES, "the tries to be counted")
    assert len(told.warnings) == 1 and "cannot be reached" in told.warnings[0]


def test_no_try_begins_after_the_time_is_up(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    receiver.answers = [500] * 20
    monkeypatch.setattr(notify, "BUDGET", 2.5)  # the first pause is 1 s, the second would be 2
    told = Told(webhook_url=receiver.url)
    told.notifier.succeeded(RESULT)
    assert len(receiver.got) == 2 and told.clock.pauses == [1.0]


# Settings


def test_variables(tmp_path: Path) -> None:
    path = tmp_path / "hook"
    path.write_text("https://hooks.example.com/T0\n")
    environ = {"BACKUP_PING_URL": "https://hc.example.com/u", "BACKUP_WEBHOOK_URL_FILE": str(path),
               "BACKUP_NOTIFY": "Start, failure", "AWS_CA_BUNDLE": "/ca.pem"}  # fmt: skip
    found = notify.receivers(environ)
    assert found == Receivers(
        "https://hc.example.com/u", "https://hooks.example.com/T0", ("start", "failure"), "/ca.pem"
    )
    assert "example" not in repr(found)
    assert notify.receivers({}) == Receivers(events=("success", "failure"))


def test_every_fault_of_the_settings_is_named_and_no_url_shown(tmp_path: Path) -> None:
    environ = {"BACKUP_PING_URL": "hc.example.com/u", "BACKUP_WEBHOOK_URL": "ftp://x", "BACKUP_NOTIFY": "end"}
    with pytest.raises(UsageError) as caught:
        notify.receivers(environ)
    text = str(caught.value)
    assert all(name in text for name in environ) and "example" not in text and "ftp" not in text


def warned(environ: Dict[str, str], operation: str = "backup") -> Any:
    log = KeptLog()
    log.operation = operation
    return notify.for_command(environ, operation, log, str), log


def test_wrong_settings_are_a_warning() -> None:
    _notifier, log = warned({"BACKUP_WEBHOOK_URL": "nonsense"})
    assert [(level, event) for level, event, _fields in log.lines] == [("WARNING", "not_notified")]


@pytest.mark.parametrize(
    "operation, environ, paths",
    [
        ("backup", {}, ["/hook", "/ping"]),
        ("restore", {}, ["/hook"]),
        ("verify", {}, ["/hook"]),
        ("", {}, []),
        ("backup", {"BACKUP_JOB_FAILED": "1"}, ["/hook"]),
        ("backup", {"BACKUP_JOB_FAILED": "1", "path": "/ping/{database}-"}, ["/hook", "/ping/-"]),
    ],
)
def test_which_operations_are_told_to_whom(
    receiver: Receiver, operation: str, environ: Dict[str, str], paths: List[str]
) -> None:
    """A monitor waits for backups; a verification that is well must not pass for one. Neither must the backup of one
    database hide that another one's failed."""
    ping, hook = receiver.url + environ.get("path", "/ping"), receiver.url + "/hook"
    notifier, _log = warned({**environ, "BACKUP_PING_URL": ping, "BACKUP_WEBHOOK_URL": hook}, operation)
    notifier.succeeded(RESULT)
    assert sorted(receiver.paths()) == paths
