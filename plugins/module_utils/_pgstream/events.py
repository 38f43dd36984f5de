# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""JSON log lines and progress. INFO goes to stdout, WARNING and ERROR to stderr, each line whole."""

from __future__ import annotations

import json
import sys
import threading
import uuid
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Optional, TextIO


def utc_now() -> datetime:
    return datetime.now(timezone.utc)


def rfc3339(moment: datetime) -> str:
    """`2026-01-31T02:00:00.123Z`; milliseconds only where there are any."""
    moment = moment.astimezone(timezone.utc)
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return text + (".%03dZ" % (moment.microsecond // 1000) if moment.microsecond else "Z")


def new_correlation_id() -> str:
    return uuid.uuid4().hex[:12]


class Log:
    """Where a run says what it does. The base class is silent: modules return results instead of lines."""

    def __init__(self, correlation_id: str = "", operation: str = "", database: str = "") -> None:
        self.correlation_id = correlation_id or new_correlation_id()
        self.operation = operation
        self.database = database
        #: What else a run found out about itself, such as key and level: it is told where it fails, too.
        self.known: Dict[str, str] = {}

    def info(self, event: str, **fields: object) -> None:
        self.write("INFO", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self.write("WARNING", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self.write("ERROR", event, fields)

    def write(self, level: str, event: str, fields: Dict[str, Any]) -> None:
        pass

    def progress(self, done: int, total: int, what: str = "") -> None:
        """`done` of about `total` bytes; called often, from any thread."""


class JsonLog(Log):
    """JSON lines on two streams, with an optional progress callback for a terminal."""

    def __init__(
        self,
        correlation_id: str = "",
        operation: str = "",
        database: str = "",
        out: Optional[TextIO] = None,
        err: Optional[TextIO] = None,
        on_progress: Optional[Callable[[int, int, str], None]] = None,
    ) -> None:
        super().__init__(correlation_id, operation, database)
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def write(self, level: str, event: str, fields: Dict[str, Any]) -> None:
        line = {
            "ts": rfc3339(utc_now()),
            "level": level,
            "event": event,
            "correlation_id": self.correlation_id,
            "operation": self.operation,
            "database": self.database,
        }
        line.update(fields)
        stream = self._out if level == "INFO" else self._err
        with self._lock:
            try:
                stream.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
                stream.flush()
            except OSError:
                pass  # nobody reads the log any more: no reason to fail a good backup

    def progress(self, done: int, total: int, what: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, what)
