# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The time limit of a run: the first interrupt or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
from _pgstream import limits
from _pgstream.errors import BackupError, Interrupted, UsageError
from _pgstream.interrupts import Signals, still_wanted, whole
from _pgstream.stages import stage


@pytest.mark.parametrize(
    "seconds, text", [(1, "1s"), (60, "1m"), (90, "90s"), (5400, "90m"), (14400, "4h"), (172800, "2d")]
)
def test_a_span_reads_as_it_was_given(seconds: int, text: str) -> None:
    assert limits.span(seconds) == text


def test_it_ends_what_runs_and_says_where() -> None:
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(BackupError) as caught:
        with limits.time_limit(1), stage("table data"):
            threading.Event().wait(60)
    assert caught.value.sentence().startswith("Failed during table data: timeout of 1s reached.")
    assert caught.value.exit_code == 1
    assert signal.getsignal(signal.SIGALRM) == before and signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_no_signal_cuts_its_cleanup_short() -> None:
    cleaned = []
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BackupError):
        with limits.time_limit(1):
            try:
                threading.Event().wait(60)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
                cleaned.append(True)
    assert cleaned and signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize("number, name", [(signal.SIGTERM, "SIGTERM"), (signal.SIGHUP, None)])
def test_a_signal_during_its_cleanup_counts_for_what_comes_next(number: int, name: Any) -> None:
    """Not as the cause of what the timeout ended. One that is ignored (nohup) stays so."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            with pytest.raises(BackupError, match="timeout of 1s reached"):
                with limits.time_limit(1):
                    try:
                        threading.Event().wait(60)
                    finally:
                        os.kill(os.getpid(), number)
            assert signals.received is None
            if name:
                with pytest.raises(Interrupted, match="Interrupted by " + name):
                    still_wanted()
            else:
                still_wanted()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("numbers", [(signal.SIGALRM, signal.SIGTERM), (signal.SIGTERM, signal.SIGALRM)])
def test_what_is_done_as_a_whole_is_not_cut_short(numbers: Any) -> None:
    """Each signal that came meanwhile is met at its end, whichever is the first cause."""
    done = []
    with Signals():
        with pytest.raises((BackupError, Interrupted)):
            with limits.time_limit(60), whole():
                for number in numbers:
                    os.kill(os.getpid(), number)
                with whole():
                    done.append("inner")
                done.append("outer")
        with pytest.raises(Interrupted, match="Interrupted by SIGTERM"):
            still_wanted()
    assert done == ["inner", "outer"]


def test_another_interrupt_goes_through_as_it_is() -> None:
    with pytest.raises(Interrupted):
        with limits.time_limit(60):
            raise Interrupted("Interrupted by SIGTERM")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


@pytest.mark.parametrize("seconds", [0, 60])
def test_what_ends_in_time_is_left_alone(seconds: int) -> None:
    with limits.time_limit(seconds):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_it_needs_the_thread_that_signals_reach() -> None:
    caught: Any = []

    def work() -> None:
        try:
            with limits.time_limit(1):
                pass
        except UsageError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux")
def test_a_batch_and_its_children() -> None:
    asked = [sys.executable, "-c", "import os; print(os.sched_getscheduler(0))"]
    with limits.batch():
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
        assert subprocess.check_output(asked) == b"%d\n" % os.SCHED_BATCH
        with limits.batch():
            pass
        assert os.sched_getscheduler(0) == os.SCHED_BATCH
    assert os.sched_getscheduler(0) == os.SCHED_OTHER


def test_where_the_policy_is_not_ours_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_arguments: Any) -> None:
        raise PermissionError("not here")

    monkeypatch.setattr(os, "sched_setscheduler", refused, raising=False)
    with limits.batch():
        pass
