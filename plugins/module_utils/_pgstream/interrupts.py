# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Signals that ask a run to stop, as one exception in the main thread."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional

from .errors import Interrupted

_current: Optional[Signals] = None
_put_off: Optional[List[int]] = None


def still_wanted() -> None:
    """Between two pieces of work: raise the Interrupted that was received, and got over since by the piece that it met
    at its very end or at its cleanup."""
    met = _current and (_current.received or _current.late)
    if met:
        raise met


def note(number: int, _frame: object) -> None:
    """Handles a signal while a cleanup must not be cut short: it counts at `still_wanted`, and is no cause of what
    failed before it. Not SIG_IGN, which children would inherit."""
    if _current is not None:
        _current.note(number)


def stop_alarm() -> None:
    """End the time limit of the run (`limits`)."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def whole() -> Iterator[None]:
    """What is done inside is done as a whole: a signal that comes meanwhile is met at its end. For steps that must not
    be torn, as a child that is started and not yet known would outlive the run. Not the process's signal mask, which
    children would inherit."""
    global _put_off
    if threading.current_thread() is not threading.main_thread() or _put_off is not None:
        yield  # signals are met in the main thread only
        return
    _put_off = []
    try:
        yield
    finally:
        numbers, _put_off = _put_off, None
        _again(numbers)


def _again(numbers: List[int]) -> None:
    if numbers:
        try:
            os.kill(os.getpid(), numbers[0])
        finally:
            _again(numbers[1:])  # what the first one raises is not the end of them


def put_off(number: int) -> bool:
    """Whether the signal came inside of `whole`; it comes again at the end of that."""
    if _put_off is None:
        return False
    _put_off.append(number)
    return True


class Signals:
    """While open, the first signal that asks to stop raises Interrupted in the main thread; further ones, which would
    cut the cleanup short, do nothing. Python functions all of them, not SIG_IGN: children would inherit that."""

    def __init__(self) -> None:
        self.received: Optional[Interrupted] = None
        self.late: Optional[Interrupted] = None  # see `note`
        self._armed = True
        self._before: Dict[int, Any] = {}

    def ignore(self) -> None:
        self._armed = False

    def __enter__(self) -> Signals:
        global _current
        if threading.current_thread() is threading.main_thread():  # elsewhere signals are not ours to take
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                # nohup and background shells have them ignored on purpose
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        _current = self
        return self

    def __exit__(self, *_exception: object) -> None:
        global _current
        _current = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def note(self, number: int) -> None:
        if self._armed and number in self._before:
            self.late = _interrupted(number)

    def _stop(self, number: int, _frame: object) -> None:
        if self._armed and not put_off(number):
            self._armed = False
            stop_alarm()
            self.received = _interrupted(number)
            raise self.received


def _interrupted(number: int) -> Interrupted:
    return Interrupted("Interrupted by %s" % signal.Signals(number).name)
