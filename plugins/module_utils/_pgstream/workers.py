# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run work on a few threads; the first cause wins, and the rest is stopped before it is raised."""

from __future__ import annotations

import os
import threading
from typing import Callable, Iterable, List, Optional, TypeVar

from .errors import Cancelled, first_cause

Task = TypeVar("Task")


def processors() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs() -> int:
    """The smaller of 4 and the processors this process may use."""
    return min(4, processors())


def run_parallel(tasks: Iterable[Task], work: Callable[[Task], None], jobs: int, stop: Callable[[], None]) -> None:
    """Call `work` on every task, `jobs` at a time, in order of start.

    On the first failure no further task begins, `stop` is called once (it must make running work end, and `tasks` too
    where they wait for it), and after all threads ended the first cause is raised. The calling thread only waits, so
    a signal handler that raises there (an interrupt) is a cause like any other.
    """
    source = iter(tasks)
    turn = threading.Lock()  # to take a task, which may wait: so not the lock that a failure needs
    lock = threading.Lock()
    failures: List[BaseException] = []
    failed = threading.Event()
    ended = threading.Semaphore(0)  # not join: a signal that interrupts it makes CPython take the thread for ended

    def fail(error: BaseException) -> None:
        with lock:
            first = not failures
            failures.append(error)
            failed.set()
        if first:
            stop()

    def next_task() -> Optional[List[Task]]:
        with turn:
            if failed.is_set():
                return None
            for task in source:
                return [task]
            return None

    def loop() -> None:
        try:
            while True:
                item = next_task()
                if item is None:
                    return
                work(item[0])
        except BaseException as error:  # noqa: B902 - carried to the caller's thread and raised there
            fail(error)
        finally:
            ended.release()

    threads = [threading.Thread(target=loop, name="worker-%d" % number, daemon=True) for number in range(max(1, jobs))]
    try:
        for thread in threads:
            thread.start()
        for _thread in threads:
            ended.acquire()
    except BaseException as error:
        fail(error)
        for thread in threads:
            if thread.ident is not None:  # an interrupt may come before it is started
                thread.join(30)
        raise
    cause: Optional[BaseException] = None
    for failure in failures:
        cause = first_cause(cause, failure)
    if cause is not None:
        raise cause


def check_running(closed: bool) -> None:
    """Raise `Cancelled` once the run is ending, so that a loop does not go on for nothing."""
    if closed:
        raise Cancelled("stopped: another part of the run failed first")
