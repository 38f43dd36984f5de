# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Peak memory with the defaults: below 192 MiB, and no larger for a database ten times the size."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any, Dict, List, Tuple

from tests.support.runs import Command, Outcome, command_env

LIMIT = 192  # MiB
JOBS = "4"  # the most that the default can be, so that the result is not that of this machine's cores
# Rows as they often are: numbers, times, words, JSON and something that does not compress. About 195 bytes of text.
ROWS = """
CREATE TABLE rows_of_all_kinds AS
SELECT g AS id, now() + g * interval '1 s' AS at, g * 1.25 AS amount, 'customer number ' || g AS name,
       jsonb_build_object('n', g, 'tag', md5(g::text)) AS document, sha256(g::text::bytea) AS hash
FROM generate_series(1, %d) g;
CREATE INDEX ON rows_of_all_kinds (id);
"""
SMALL, LARGE = 155000, 1550000  # rows: 30 MB and 300 MB of text
_PSS = re.compile(r"(?m)^Pss:\s+(\d+) kB")


class Meter(threading.Thread):
    """Adds up the memory of a command and all its children while it runs: PSS, where a shared page counts once."""

    def __init__(self, command: Command) -> None:
        super().__init__(daemon=True)
        self._command = command
        self.peak = 0.0  # MiB
        self.parts: List[Tuple[float, str]] = []  # at the peak
        self.samples = 0
        self.programs: Dict[str, int] = {}

    def run(self) -> None:
        while self._command.running:
            parts = []
            family = self._command.family()
            own = family.get(self._command.pid)
            for pid, argv in family.items():
                if argv == own and pid != self._command.pid:
                    continue  # between vfork and exec a child is its parent's memory, and not more of it
                try:
                    found = _PSS.search(Path("/proc", str(pid), "smaps_rollup").read_text())
                except OSError:
                    continue
                if found:
                    parts.append((int(found.group(1)) / 1024, Path(argv[0]).name))
                    self.programs[parts[-1][1]] = self.programs.get(parts[-1][1], 0) + 1
            self.samples += 1
            total = sum(size for size, _name in parts)
            if total > self.peak:
                self.peak, self.parts = total, parts


def measured(command: Command) -> Tuple[Outcome, Meter]:
    meter = Meter(command)
    meter.start()
    outcome = command.finish(600)
    meter.join()
    assert outcome.code == 0, outcome.err
    return outcome, meter


def test_peak_memory(
    postgres: Any, databases: Any, quick_s3: Any, quick_bucket: str, engine_env: Dict[str, str], start: Any
) -> None:
    peaks: Dict[Tuple[str, int], float] = {}
    raw: Dict[int, int] = {}
    for rows in (SMALL, LARGE):
        source, target = databases(), databases()
        postgres.psql(ROWS % rows, source)
        env = command_env(engine_env, postgres, source, quick_s3, quick_bucket, BACKUP_JOBS=JOBS)
        made, meter = measured(start(env, "backup"))
        assert made.result["rows"] == rows and meter.programs["psql"] and meter.samples > 10
        peaks["backup", rows] = meter.peak
        raw[rows] = made.result["raw_bytes"]
        done, meter = measured(start(env, "restore", made.result["key"], "--target-db", target))
        assert done.result["rows"] == rows and meter.programs["psql"] and meter.samples > 10
        peaks["restore", rows] = meter.peak
        postgres.dropdb(source)
    assert raw[LARGE] > 9.5 * raw[SMALL] and raw[LARGE] > 290e6
    assert max(peaks.values()) < LIMIT, peaks
    for verb in ("backup", "restore"):
        # 30 MB does not fill every worker's buffers at once; what grows with the data would be 270 MB more, or 110
        # compressed.
        assert peaks[verb, LARGE] < peaks[verb, SMALL] + 80, peaks
    print("peak MiB:", {"%s %d" % key: round(value) for key, value in peaks.items()})
