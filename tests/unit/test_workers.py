# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Workers: order of start, the first cause, and nothing that begins after it."""

from __future__ import annotations

import os
import signal
import threading
from typing import Iterator, List

import pytest
from _pgstream.errors import BackupError, Cancelled, IntegrityError
from _pgstream.workers import check_running, run_parallel

PATIENCE = 60  # seconds until a wait is given up; never a measure of speed


def test_every_task_once_and_in_order_of_start() -> None:
    started: List[int] = []
    run_parallel(range(100), started.append, 1, pytest.fail)
    assert started == list(range(100))
    started = []
    run_parallel(range(500), started.append, 7, pytest.fail)
    assert sorted(started) == list(range(500))


def test_as_many_at_a_time_as_asked() -> None:
    """Three must be running at once for the barrier to open; a fourth never is."""
    barrier = threading.Barrier(3)
    lock = threading.Lock()
    running: List[int] = []
    most: List[int] = []

    def work(task: int) -> None:
        with lock:
            running.append(task)
            most.append(len(running))
        barrier.wait(PATIENCE)
        with lock:
            running.remove(task)

    run_parallel(range(9), work, 3, pytest.fail)
    assert max(most) == 3


def test_nothing_to_do() -> None:
    run_parallel([], pytest.fail, 4, pytest.fail)
    run_parallel([], pytest.fail, 0, pytest.fail)


def test_no_jobs_are_one() -> None:
    done: List[int] = []
    run_parallel([1, 2], done.append, 0, pytest.fail)
    assert done == [1, 2]


@pytest.mark.parametrize("turn", range(20))
def test_the_first_cause_wins_over_its_echoes(turn: int) -> None:
    """The others are stopped because one failed; that they were stopped is not what is reported."""
    stopped = threading.Event()
    all_four = threading.Barrier(4)
    stops: List[int] = []

    def stop() -> None:
        stops.append(1)
        stopped.set()

    def work(task: int) -> None:
        all_four.wait(PATIENCE)
        if task == 2:
            raise IntegrityError("the cause")
        assert stopped.wait(PATIENCE)
        raise Cancelled("an echo")

    with pytest.raises(IntegrityError, match="the cause"):
        run_parallel(range(4), work, 4, stop)
    assert stops == [1]


def test_an_echo_that_came_first_is_still_an_echo() -> None:
    """A worker may see that the run is ending before the failure that ends it is noted."""
    first = threading.Event()
    both = threading.Barrier(2)

    def work(task: int) -> None:
        both.wait(PATIENCE)
        if task == 0:
            raise Cancelled("an echo")
        assert first.wait(PATIENCE)
        raise BackupError("the cause")

    stops: List[int] = []

    def stop() -> None:
        stops.append(1)
        first.set()

    with pytest.raises(BackupError, match="the cause"):
        run_parallel(range(2), work, 2, stop)
    assert stops == [1]


def test_the_first_of_two_causes_wins() -> None:
    stopped = threading.Event()
    both = threading.Barrier(2)

    def work(task: int) -> None:
        both.wait(PATIENCE)
        if task == 1:
            raise BackupError("the first")
        assert stopped.wait(PATIENCE)
        raise BackupError("the second")

    with pytest.raises(BackupError, match="the first"):
        run_parallel(range(2), work, 2, stopped.set)


def test_no_task_starts_after_a_failure() -> None:
    started: List[int] = []
    stopped = threading.Event()
    both = threading.Barrier(2)

    def work(task: int) -> None:
        started.append(task)
        both.wait(PATIENCE)
        if task == 0:
            raise BackupError("no")
        assert stopped.wait(PATIENCE)

    with pytest.raises(BackupError):
        run_parallel(range(1000), work, 2, stopped.set)
    assert sorted(started) == [0, 1]


def test_a_source_of_tasks_that_fails() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise BackupError("no more tasks")

    stops: List[int] = []
    done: List[int] = []
    with pytest.raises(BackupError, match="no more tasks"):
        run_parallel(source(), done.append, 3, lambda: stops.append(1))
    assert done == [1] and stops == [1]


def test_other_errors_come_up_too() -> None:
    def work(task: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_parallel([1], work, 2, lambda: None)


def test_an_interrupt_of_the_main_thread_stops_the_workers() -> None:
    """As Ctrl-C: the workers end before it is raised, and begin nothing more."""
    stopped = threading.Event()
    started: List[int] = []
    ended: List[int] = []
    stops: List[int] = []
    both = threading.Barrier(2, action=lambda: os.kill(os.getpid(), signal.SIGINT))

    def stop() -> None:
        stops.append(1)
        stopped.set()

    def work(task: int) -> None:
        started.append(task)
        both.wait(PATIENCE)
        assert stopped.wait(PATIENCE)
        ended.append(task)

    with pytest.raises(KeyboardInterrupt):
        run_parallel(range(1000), work, 2, stop)
        signal.pause()  # pragma: no cover
    assert stops == [1] and sorted(started) == sorted(ended) == [0, 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]


def test_check_running() -> None:
    check_running(False)
    with pytest.raises(Cancelled):
        check_running(True)
