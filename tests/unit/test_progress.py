# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The bar: on a terminal (a real one, made with pty), and nowhere else."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
import time
from typing import Dict, Tuple

import pytest
from _pgstream import progress

RUN = """
import sys, time
from _pgstream.progress import TerminalLog
with TerminalLog("cid", "backup", "shop", sys.stdout, sys.stderr) as log:
    for step in range(30):
        log.progress(step * 1000000, 30000000, "data")
        if step == 15:
            log.info("halfway", tables=3)
            log.warning("careful", table="a\\x1b[35;7m")
        time.sleep(0.02)
sys.stdout.write("after\\n")
"""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(environ: Dict[str, str], stdout_too: bool, code: str = RUN) -> Tuple[str, str]:
    """Run `code` with stderr (and stdout) on a terminal; what the terminal saw, and what a piped stdout got."""
    leader, follower = pty.openpty()
    environ = {**environ, "TERM": "xterm", "COLUMNS": "120"}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=follower if stdout_too else subprocess.PIPE,
        stderr=follower,
    )
    os.close(follower)
    seen = []

    def drain() -> None:
        while True:
            try:
                data = os.read(leader, 65536)
            except OSError:  # EIO: the other side is closed
                return
            if not data:
                return
            seen.append(data)

    reader = threading.Thread(target=drain)
    reader.start()
    piped = child.stdout.read().decode() if child.stdout else ""
    assert child.wait(30) == 0
    reader.join(30)
    os.close(leader)
    return b"".join(seen).decode(), piped


def test_bar_with_rate_and_time_left_on_a_terminal(engine_env: Dict[str, str]) -> None:
    pytest.importorskip("rich")
    seen, _piped = run(engine_env, stdout_too=True)
    assert "data" in seen and "\u2501" in seen
    assert re.search(r"[0-9.]+ MB/s", seen)
    assert re.search(r"[0-9.]+/30\.0 MB", seen)
    assert re.search(r"[0-9]:[0-9]{2}:[0-9]{2}", seen)
    assert seen.endswith("after\r\n")


def test_lines_and_bar_do_not_garble_each_other(engine_env: Dict[str, str]) -> None:
    seen, _piped = run(engine_env, stdout_too=True)
    for line in (r"[0-9:]{8} halfway tables=3", r"[0-9:]{8} WARNING careful table=a\\x1b\[35;7m"):
        # whole, on a row of its own: after a line end or the code that erases the bar's row
        assert re.search(r"(^|\n|\r|\x1b\[2K)" + line + r"\r?\n", seen), seen
    assert "\x1b[35;7m" not in seen  # a name cannot colour the terminal


def test_a_piped_stdout_gets_json_while_the_bar_shows(engine_env: Dict[str, str]) -> None:
    raw = 'log.info("halfway", tables=3)'
    seen, piped = run(engine_env, False, RUN.replace(raw, raw + '; sys.stdout.write("raw\\n")'))
    first, second, last = piped.splitlines()
    assert second == "raw"
    assert json.loads(first)["event"] == "halfway"
    assert last == "after"
    assert "halfway" not in seen and "careful" in seen


def test_no_bar_without_rich(engine_env: Dict[str, str]) -> None:
    seen, _piped = run(engine_env, True, "import sys; sys.modules['rich'] = None\n" + RUN)
    assert "\u2501" not in seen and "MB" not in seen
    assert "halfway tables=3\r\n" in seen


def test_no_bar_in_a_pipe(engine_env: Dict[str, str]) -> None:
    environ = {**engine_env, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1"}  # which make rich think of a terminal
    done = subprocess.run([sys.executable, "-c", RUN], env=environ, capture_output=True, text=True, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["careful"]
    assert "\x1b" not in done.stdout + done.stderr


def test_update_is_cheap_and_safe_from_many_threads() -> None:
    pytest.importorskip("rich")
    shown = progress.Bar(Terminal())
    shown.update(0, 100, "data")

    def call() -> None:
        for step in range(20000):
            shown.update(step, 20000, "data")

    began = time.monotonic()
    threads = [threading.Thread(target=call) for _unused in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began < 2  # 80,000 calls; each passed on to rich would take longer than this
    shown.close()


def test_calls_within_the_interval_are_not_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = progress.Bar(Terminal())
    shown.update(1, 100, "data")
    shown.update(50, 100, "data")
    assert shown._done == 1
    clock[0] += progress.INTERVAL * 2
    shown.update(50, 100, "data")
    shown.update(10, 100, "index")  # a new phase shows at once
    assert shown._done == 10
    clock[0] += progress.INTERVAL * 2
    shown.update(5, 100, "index")  # late news of another thread: never backwards
    assert shown._done == 10
    clock[0] += progress.INTERVAL * 2
    shown.update(150, 100, "index")  # the total was only an estimate
    assert shown._progress.tasks[0].total == 150
    shown.close()


def test_closed_bar_stays_closed() -> None:
    stream = Terminal()
    shown = progress.Bar(stream)
    shown.update(1, 2, "data")
    shown.close()
    shown.close()
    size = len(stream.getvalue())
    shown.update(2, 2, "more")
    assert len(stream.getvalue()) == size
    shown.line(stream, "text")
    assert stream.getvalue().endswith("text\n")


def test_is_terminal_of_a_closed_stream() -> None:
    stream = io.StringIO()
    stream.close()
    assert not progress.is_terminal(stream)


@pytest.mark.parametrize(
    "count, text",
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (12345678, "12.3 MB"), (999999, "1 MB"), (5e12, "5.000 TB")],
)
def test_amount(count: float, text: str) -> None:
    assert progress.amount(count) == text


def test_printable() -> None:
    assert progress.printable("\u00fc\x1b[2J\n\x07") == "\u00fc\\x1b[2J\\n\\x07"
