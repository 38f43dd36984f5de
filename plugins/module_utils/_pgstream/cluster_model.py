# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The values of a run of several backups: frozen, as those in `model`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from .model import BackupRequest, BackupResult

OK, FAILED = "ok", "failed"


@dataclass(frozen=True)
class ClusterRequest:
    """`backup`: what is alike for each, and where `databases` is empty the one database, if any."""

    backup: BackupRequest
    databases: Tuple[str, ...] = ()  # names, patterns, or ALL
    exclude: Tuple[str, ...] = ()
    globals: bool = False
    globals_passwords: bool = False


@dataclass(frozen=True)
class Part:
    """What became of one database, or of the globals, whose `database` is empty."""

    database: str
    globals: bool
    status: str  # ok, failed
    changed: bool = False
    key: str = ""
    url: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    rows: int = 0
    tables: int = 0
    seconds: float = 0.0
    message: str = ""
    error: str = ""  # why it failed
    exit_code: int = 0


@dataclass(frozen=True)
class ClusterResult(BackupResult):
    """Sums of all; `database`, `key` and what else is of one object alone are empty."""

    backups: Tuple[Part, ...] = ()


def part(result: BackupResult) -> Part:
    """Of a run that did not fail."""
    return Part(
        database=result.database,
        globals=not result.database,
        status=OK,
        changed=result.changed,
        key=result.key,
        url=result.url,
        raw_bytes=result.raw_bytes,
        stored_bytes=result.stored_bytes,
        rows=result.rows,
        tables=result.tables,
        seconds=result.seconds,
        message=result.message,
    )
