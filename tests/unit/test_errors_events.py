# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tree of errors and the log lines."""

from __future__ import annotations

import io
import json
import threading
from datetime import datetime, timedelta, timezone
from typing import List

import pytest
from _pgstream import errors, events


@pytest.mark.parametrize(
    "kind, code",
    [
        (errors.BackupError, 1),
        (errors.UsageError, 2),
        (errors.ServerError, 3),
        (errors.StorageError, 4),
        (errors.NotFoundError, 5),
        (errors.IntegrityError, 6),
        (errors.TargetError, 7),
        (errors.LockedError, 8),
    ],
)
def test_exit_codes(kind: type, code: int) -> None:
    error = kind("x")
    assert isinstance(error, errors.BackupError)
    assert error.exit_code == code


def test_sentence_has_stage_cause_and_hint_on_one_line() -> None:
    error = errors.StorageError("access\n  denied", stage="S3 upload", hint="Check the key.")
    assert error.sentence() == str(error) == "Failed during S3 upload: access denied. Check the key."
    assert errors.BackupError("Really?", hint="Yes.").sentence() == "Really? Yes."
    assert errors.BackupError("plain").sentence() == "plain"


def test_stage_nearest_to_the_cause_stays() -> None:
    error = errors.BackupError("x").at("inner").at("outer")
    assert error.stage == "inner"


def test_first_cause_wins_unless_it_was_an_echo() -> None:
    echo, cause, later = errors.Cancelled("stopped"), errors.ServerError("died"), errors.StorageError("broken")
    assert errors.first_cause(None, echo) is echo
    assert errors.first_cause(echo, cause) is cause
    assert errors.first_cause(cause, later) is cause
    assert errors.first_cause(cause, echo) is cause
    assert errors.first_cause(echo, errors.Cancelled("too")) is echo


def test_rfc3339_is_utc_with_milliseconds_where_there_are_any() -> None:
    moment = datetime(2026, 1, 31, 3, 0, 0, tzinfo=timezone(timedelta(hours=1)))
    assert events.rfc3339(moment) == "2026-01-31T02:00:00Z"
    assert events.rfc3339(moment.replace(microsecond=5999)) == "2026-01-31T02:00:00.005Z"


def test_lines_carry_the_common_fields_and_go_where_their_level_says() -> None:
    out, err = io.StringIO(), io.StringIO()
    log = events.JsonLog("cid", "backup", "sh\u00f6p", out, err)
    log.info("started", tables=3)
    log.warning("slow")
    log.error("failed", message="two\nlines")
    (info,) = out.getvalue().splitlines()
    warning, error = err.getvalue().splitlines()
    line = json.loads(info)
    assert datetime.strptime(line.pop("ts")[:19], "%Y-%m-%dT%H:%M:%S")
    assert line == {
        "level": "INFO",
        "event": "started",
        "correlation_id": "cid",
        "operation": "backup",
        "database": "sh\u00f6p",
        "tables": 3,
    }
    assert "sh\u00f6p" in info
    assert json.loads(warning)["level"] == "WARNING"
    assert json.loads(error)["message"] == "two\nlines"


def test_values_json_does_not_know_do_not_break_a_run() -> None:
    out = io.StringIO()
    events.JsonLog(out=out).info("x", path=ValueError("y"))
    assert json.loads(out.getvalue())["path"] == "y"


def test_lines_of_many_threads_stay_whole() -> None:
    out = io.StringIO()
    log = events.JsonLog(out=out)

    def write() -> None:
        for n in range(200):
            log.info("x", n=n)

    threads = [threading.Thread(target=write) for _unused in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = out.getvalue().splitlines()
    assert len(lines) == 1600
    assert all(json.loads(line)["event"] == "x" for line in lines)


def test_every_log_has_an_id_of_its_own_and_the_base_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = events.Log(), events.Log()
    assert first.correlation_id and first.correlation_id != second.correlation_id
    first.info("x")
    first.error("x")
    first.progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_progress_reaches_the_callback() -> None:
    seen: List[object] = []
    log = events.JsonLog(out=io.StringIO(), on_progress=lambda *call: seen.append(call))
    log.progress(1, 2, "data")
    assert seen == [(1, 2, "data")]
    events.JsonLog(out=io.StringIO()).progress(1, 2)
