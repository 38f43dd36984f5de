# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One run of a command: seconds, processor seconds of it and of the servers, peak memory of its processes."""

from __future__ import annotations

import os
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Sequence

_PSS = re.compile(r"(?m)^Pss:\s+(\d+) kB")
_TICK = os.sysconf("SC_CLK_TCK")
SAMPLE = 0.1  # seconds between two looks at the memory
SETTLED = 0.3  # seconds after which a server has waited for the children that ended with their clients


@dataclass(frozen=True)
class Sample:
    seconds: float
    cpu: float  # processor seconds of the command and all its children
    server_cpu: float  # of PostgreSQL and the S3 server meanwhile
    peak: float  # MiB of the command's process tree: PSS, where a shared page counts once


class Failed(RuntimeError):
    """The command did not exit with 0; the text is the end of what it said."""


def measure(script: str, env: Dict[str, str], servers: Sequence[int]) -> Sample:
    """A bash script, as a user would type it: with pipefail. The servers are given by process id."""
    before = [_cpu_of_tree(pid) for pid in servers]
    began = time.monotonic()
    with subprocess.Popen(["bash", "-euo", "pipefail", "-c", script], env=env, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        meter = _Meter(process.pid)
        meter.start()
        assert process.stdout is not None
        said = process.stdout.read()
        _pid, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        meter.stop()
    if process.returncode:
        raise Failed("status %d: %s" % (process.returncode, said.decode(errors="replace")[-2000:]))
    time.sleep(SETTLED)
    after = [_cpu_of_tree(pid) for pid in servers]
    return Sample(seconds, usage.ru_utime + usage.ru_stime, sum(after) - sum(before), meter.peak)


class _Meter(threading.Thread):
    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.peak = 0.0

    def run(self) -> None:
        while not self._ended.wait(SAMPLE):
            self.peak = max(self.peak, sum(_pss(pid) for pid in _tree(self._pid)))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _tree(root: int) -> List[int]:
    """A process and all its descendants, in whatever group or session they are."""
    children: Dict[int, List[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _pss(pid: int) -> float:
    try:
        found = _PSS.search(Path("/proc", str(pid), "smaps_rollup").read_text())
    except OSError:
        return 0.0
    return int(found.group(1)) / 1024 if found else 0.0


def _cpu_of_tree(root: int) -> float:
    """Of the living, and of the children that they have waited for."""
    ticks = 0
    for pid in _tree(root):
        try:
            fields = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(map(int, fields[11:15]))
    return ticks / _TICK
