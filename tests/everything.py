# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""All tests: `everything.py [STAGE ...]`, with what the stages need; without a STAGE every one. This is `make test`.

Stages that do not need each other run side by side, LANES of them at a time: images are built while unit tests run, and
one scenario waits for its cron while another works. What each says goes to build/test/STAGE.log, and is shown whole
when it fails. A stage that needs one that failed is not run, and that is a failure, too.

A Docker engine is looked for first. One that had to be started here is stopped at the end; its images stay.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "images"))
import engine  # noqa: E402 (its directory is no package)

LOGS = REPOSITORY / "build" / "test"
HEARTBEAT = 60.0  # seconds between lines that say what is at work
GRACE = 60.0  # seconds that a stage has to clean up after SIGTERM
PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-q")


@dataclass(frozen=True)
class Stage:
    argv: Tuple[str, ...]
    after: Tuple[str, ...] = ()


def molecule(scenario: str) -> Stage:
    return Stage(("make", "-s", "scenario", "SCENARIO=" + scenario), ("images", "collections"))


# In the order in which they are begun; the longest that others wait for come first.
STAGES: Dict[str, Stage] = {
    "images": Stage((PYTHON, "tests/images/ensure.py")),
    "collections": Stage((PYTHON, "tests/images/fetch_collections.py")),
    "lint": Stage(("make", "-s", "lint"), ("collections",)),
    "unit": Stage((*PYTEST, "tests/unit")),
    "sanity": Stage((PYTHON, "tests/sanity.py")),
    "galaxy": Stage((PYTHON, "tests/galaxy.py"), ("collections",)),
    "integration": Stage((*PYTEST, "tests/integration")),
    "faults": Stage((*PYTEST, "tests/faults")),
    "molecule-role": molecule("role"),
    "container": Stage((*PYTEST, "tests/container"), ("images",)),
    "molecule-faults": molecule("faults"),
    "molecule-default": molecule("default"),
}


class Run:
    """The stages at work and those that have ended."""

    def __init__(self, names: Sequence[str], lanes: int) -> None:
        self.waiting = list(names)
        self.lanes = lanes
        self.began: Dict[str, float] = {}
        self.working: Dict[str, "subprocess.Popen[bytes]"] = {}
        self.ended: Dict[str, Tuple[str, float]] = {}  # what became of it, seconds

    def run(self) -> List[str]:
        """The names of those that did not pass."""
        told = time.monotonic()
        while self.waiting or self.working:
            self._begin()
            time.sleep(0.2)
            for name, process in list(self.working.items()):
                status = process.poll()
                if status is not None:
                    del self.working[name]
                    self._end(name, "passed" if status == 0 else "failed (status %d)" % status)
            if time.monotonic() - told > HEARTBEAT:
                told = time.monotonic()
                say("at work: " + ", ".join("%s (%d s)" % (name, told - self.began[name]) for name in self.working))
        return [name for name, (became, _seconds) in self.ended.items() if became != "passed"]

    def _begin(self) -> None:
        for name in list(self.waiting):
            needs = STAGES[name].after
            if any(need in self.ended and self.ended[need][0] != "passed" for need in needs):
                self.waiting.remove(name)
                self.began[name] = time.monotonic()
                self._end(name, "not run: it needs %s" % ", ".join(needs))
            elif len(self.working) < self.lanes and all(need in self.ended for need in needs):
                self.waiting.remove(name)
                self.began[name] = time.monotonic()
                with open(log_of(name), "wb") as log:
                    self.working[name] = subprocess.Popen(
                        STAGES[name].argv, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log,
                        stderr=subprocess.STDOUT, start_new_session=True
                    )

    def _end(self, name: str, became: str) -> None:
        seconds = time.monotonic() - self.began[name]
        self.ended[name] = became, seconds
        lines = log_of(name).read_text("utf-8", "replace").splitlines() if log_of(name).exists() else []
        if became.startswith("failed"):
            print("\n".join(lines), flush=True)
        say("%s: %s in %d s%s" % (name, became, seconds, "; " + lines[-1].strip("= ") if lines else ""))

    def stop(self) -> None:
        """What is still at work, with its children."""
        for process in self.working.values():
            os.killpg(process.pid, signal.SIGTERM)
        for name, process in self.working.items():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                say("%s: killed" % name)


def log_of(name: str) -> Path:
    return LOGS / (name + ".log")


def say(text: str) -> None:
    print("test: " + text, flush=True)


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Run all tests, side by side where they do not need each other.")
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="of: " + " ".join(STAGES))
    parser.add_argument("--lanes", type=int, default=2, help="stages at a time (default: 2)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.stages if name not in STAGES]
    if unknown:
        parser.error("no such stage: %s; there are: %s" % (", ".join(unknown), " ".join(STAGES)))
    began = time.monotonic()
    LOGS.mkdir(parents=True, exist_ok=True)
    for name in STAGES:
        log_of(name).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    dockerd: Optional["subprocess.Popen[bytes]"] = None
    wanted = set(options.stages or STAGES)
    wanted |= {need for name in wanted for need in STAGES[name].after}
    run = Run([name for name in STAGES if name in wanted], options.lanes)
    try:
        dockerd = engine.ensure_engine()
        failed = run.run()
    except engine.Missing as error:
        say(str(error))
        return 1
    finally:
        run.stop()
        if dockerd:
            dockerd.terminate()
            dockerd.wait()
    say("%d of %d stages passed in %d s" % (len(run.ended) - len(failed), len(run.ended), time.monotonic() - began))
    if failed:
        say("not passed: " + ", ".join(failed))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
