# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Results as tables for people at a terminal."""

from __future__ import annotations

from typing import Optional, Sequence

from .model import BackupInfo, Finding, PruneResult
from .progress import amount, printable

UNKNOWN = "-"


def backup_table(backups: Sequence[BackupInfo]) -> str:
    """Empty for no backups. The columns VERIFIED and KEPT BY are there where something stands in them."""
    if not backups:
        return ""
    rows = [["AGE", "SIZE", "RATIO", "ROWS", "TOOK", "VERIFIED", "DATABASE", "KEY", "KEPT BY"]]
    for one in backups:
        rows.append(
            [
                age(one.age),
                amount(one.size),
                UNKNOWN if one.ratio is None else "%.1f" % one.ratio,
                UNKNOWN if one.rows is None else "{:,}".format(one.rows),
                UNKNOWN if one.seconds is None else age(int(one.seconds + 0.5)),
                "%s %s" % (one.verified_level, one.verified_at) if one.verified_at else UNKNOWN,
                one.database,
                one.key + _marks(one),
                _kept_by(one),
            ]
        )
    if not any(one.verified_at for one in backups):
        rows = [row[:5] + row[6:] for row in rows]
    if all(one.why is None for one in backups):
        rows = [row[:-1] for row in rows]
    return table(rows)


def _marks(one: BackupInfo) -> str:
    marks = {"globals": one.globals, "filtered": one.filtered, "foreign": one.foreign}
    return "".join("  (%s)" % name for name, holds in marks.items() if holds)


def _kept_by(one: BackupInfo) -> str:
    if one.why is None:
        return "not pruned"
    return ", ".join(one.why) or "nothing: goes"


def prune_table(result: PruneResult, dry_run: bool) -> str:
    """What stays and what goes, newest first, and a sentence."""
    verdict = "would be removed" if dry_run else "removed"
    lines = [(one.time, one.key, one.size, ", ".join(one.why)) for one in result.kept]
    lines += [(one.time, one.key, one.size, verdict) for one in result.removed]
    rows = [[amount(size), key, why] for _time, key, size, why in sorted(lines, reverse=True)]
    text = "%s, %s freed" % (result.message, amount(result.freed_bytes)) if result.removed else result.message
    return "\n".join([table([["SIZE", "KEY", ""], *rows])] * bool(rows) + [text])


def finding_table(findings: Sequence[Finding]) -> str:
    marks = {True: "ok", None: "-"}
    return table([[marks.get(one.ok, "FAULT" if one.needed else "no"), one.name, one.detail] for one in findings])


def table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))] if cells else []
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells]
    return "\n".join(lines)


def age(seconds: Optional[int]) -> str:
    """In its two largest units: `3d 4h`."""
    if seconds is None:
        return "?"
    seconds = max(0, seconds)
    for large, small, unit in ((86400, 3600, "dh"), (3600, 60, "hm"), (60, 1, "ms")):
        if seconds >= large:
            return "%d%s %d%s" % (seconds // large, unit[0], seconds % large // small, unit[1])
    return "%ds" % seconds
