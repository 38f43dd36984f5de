# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The report: Markdown tables of medians and of ratios within a round."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from tests.bench.measure import Sample
from tests.bench.pipelines import BACKUPS, BASELINE, RESTORES, Pipeline

Samples = Dict[str, List[Sample]]
BEGIN, END = "<!-- what make bench writes begins here -->", "<!-- and ends here -->"


def section(name: str, about: str, size: int, made: Samples, loaded: Samples, stored: Dict[str, int],
            left_out: Dict[str, str]) -> str:
    lines = ["## %s" % name.capitalize(), "", about, "", "%.2f GB on the server's disk." % (size / 1e9), ""]
    lines += _table("backup", BACKUPS, made, BASELINE, stored)
    lines += _table("restore", RESTORES, loaded, RESTORES[0].name, {})
    lines += ["- %s: left out, %s" % (who, why.replace("\n", " ")) for who, why in left_out.items()]
    return "\n".join(lines)


def _table(title: str, pipelines: Sequence[Pipeline], samples: Samples, base: str, stored: Dict[str, int]) -> List[str]:
    if not samples:
        return []
    lines = ["| %s | s | %s / it | CPU s | servers' CPU s | peak MiB | stored MB | |" % (title, base),
             "|---|---:|---:|---:|---:|---:|---:|---|"]
    for one in pipelines:
        if one.name not in samples:
            continue
        mine = samples[one.name]
        ratio = "%.2f" % statistics.median(
            theirs.seconds / ours.seconds for theirs, ours in zip(samples[base], mine)) if base in samples else ""
        key = one.key or ("directory" if one.name == "pg_dump -Fd" else "barman" if one.name == "barman-cloud" else "")
        lines.append("| %s | %.2f | %s | %.1f | %.1f | %.0f | %s | %s |" % (
            one.name, _median(mine, lambda each: each.seconds), ratio, _median(mine, lambda each: each.cpu),
            _median(mine, lambda each: each.server_cpu), max(each.peak for each in mine),
            "%.1f" % (stored[key] / 1e6) if key in stored else "", one.note))
    return [*lines, ""]


def _median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return statistics.median(value(each) for each in samples)


def write(path: Path, text: str) -> None:
    """Between the marks, where the file has them: what people wrote around them stays."""
    before, after = "", ""
    if path.exists() and BEGIN in path.read_text(encoding="utf-8"):
        before, _mark, rest = path.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
    path.write_text("%s%s\n%s\n%s%s" % (before, BEGIN, text.rstrip(), END, after or "\n"), encoding="utf-8")


def whole(parts: Sequence[str], versions: Sequence[str], settings: Sequence[str], options: Dict[str, Any]) -> str:
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = "--scale %(scale)g --rounds %(rounds)d --jobs %(jobs)d --delay %(delay)g" % options
    command = "make bench BENCH_ARGS='%s'" % flags
    lines = [
        "- machine: %d processors (%s), %.0f GiB, for servers and pipelines" % (os.cpu_count() or 0, model, memory),
        "- versions: " + "; ".join(versions),
        "- PostgreSQL: " + ", ".join(settings) + ", fsync off",
        "- `%s`" % command,
        "",
        *parts,
        "## The commands",
        "",
        "```sh",
    ]
    for one in (*BACKUPS, *RESTORES):
        lines += ["# " + one.name, one.script]
    return "\n".join([*lines, "```", ""])
