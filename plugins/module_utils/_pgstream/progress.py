# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a person at a terminal sees of a run: a bar with rate and time left, and lines that read as sentences.

Whatever is not a terminal gets JSON lines and never a bar. The bar needs the library rich; without it there is none.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Dict, Optional, TextIO, Type

from .events import JsonLog

INTERVAL = 0.1  # seconds between two updates that are passed on


def is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # a closed stream
        return False


def printable(value: object) -> str:
    """One line of `value` that cannot steer a terminal: a database may be named with an escape sequence."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in str(value))


def amount(count: float) -> str:
    """Bytes for people, in powers of 1000 as rates are: `12.3 MB`."""
    if count < 1000:
        return "%d bytes" % count
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return "%.3g %s" % (count, unit)
    return "%.3f TB" % (count / 1000)


class Bar:
    """A progress bar on `stream`, from the first `update` to `close`; on a stream that is no terminal, nothing.

    `update` is cheap and may be called from any thread: most calls only compare a clock.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()
        self._wanted = is_terminal(stream)
        self._due = 0.0
        self._what = ""
        self._done = 0
        self._progress: Any = None  # rich.progress.Progress, once it shows
        self._task: Any = None

    def update(self, done: int, total: int, what: str = "") -> None:
        """`done` of about `total` bytes; a total of 0 is unknown. A new `what` begins again."""
        now = time.monotonic()
        # Read without the lock: a stale value costs one update, a lock here would cost every caller.
        if not self._wanted or (now < self._due and what == self._what):
            return
        with self._lock:
            if not self._wanted:
                return
            if self._progress is None and not self._show():
                return
            if what != self._what or self._task is None:
                if self._task is not None:
                    self._progress.remove_task(self._task)
                self._task = self._progress.add_task(printable(what) or "working", total=None)
                self._what, self._done = what, 0
            self._due = now + INTERVAL
            self._done = max(self._done, done)  # threads may report out of order
            # The total is an estimate: a bar that stands at its end is better than one past it.
            self._progress.update(self._task, completed=self._done, total=max(total, self._done) if total else None)

    def line(self, stream: TextIO, text: str) -> None:
        """Write a line to a terminal, above the bar where one shows."""
        with self._lock:
            if self._progress is None:
                stream.write(text + "\n")
                stream.flush()
            else:
                self._progress.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away. Safe to call more than once; later updates show nothing."""
        with self._lock:
            self._wanted = False
            if self._progress is not None:
                self._progress.stop()
                self._progress = None

    def _show(self) -> bool:
        try:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                DownloadColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
                TransferSpeedColumn,
            )
        except ImportError:
            self._wanted = False
            return False
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
            redirect_stdout=False,  # it may be a pipe, whose reader wants every line
        )
        self._progress.start()
        return True


class TerminalLog(JsonLog):
    """JSON lines, except on a terminal: there, lines for people, which the bar makes room for.

    A context manager: the bar is gone at its end.
    """

    def __init__(self, correlation_id: str, operation: str, database: str, out: TextIO, err: TextIO) -> None:
        self.progress_bar = Bar(err)
        super().__init__(correlation_id, operation, database, out, err, on_progress=self.progress_bar.update)

    def __enter__(self) -> TerminalLog:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.progress_bar.close()

    def write(self, level: str, event: str, fields: Dict[str, Any]) -> None:
        stream = self._out if level == "INFO" else self._err
        if is_terminal(stream):
            self.progress_bar.line(stream, self._human(level, event, fields))
        else:
            super().write(level, event, fields)

    def _human(self, level: str, event: str, fields: Dict[str, Any]) -> str:
        head = time.strftime("%H:%M:%S ") + ("" if level == "INFO" else level + " ")
        if "message" in fields:  # a sentence says it all, but for a traceback that was asked for
            trace = "".join(printable(line) + "\n" for line in str(fields.get("traceback", "")).splitlines())
            return trace + head + printable(fields["message"])
        return head + " ".join([printable(event)] + ["%s=%s" % (name, printable(fields[name])) for name in fields])
