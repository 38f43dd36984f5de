# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Child processes, with real small children: their words, their status, their end, and nothing left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Iterator, List

import pytest
from _pgstream import process
from _pgstream.errors import BackupError, Cancelled, Interrupted, ServerError
from _pgstream.interrupts import Signals
from _pgstream.process import Processes, first_line_of_cause, memory_file

from tests.support.runs import wait_until

ENV = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
PATIENCE = 60  # seconds until a wait is given up; never a measure of speed


def noted(monkeypatch: pytest.MonkeyPatch, then: Callable[[], None]) -> List[int]:
    """The children that are started from now on, after each of which something happens."""
    started: List[int] = []

    class Popen(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self.pid)
            then()

    monkeypatch.setattr(subprocess, "Popen", Popen)
    return started


@pytest.fixture
def processes() -> Iterator[Processes]:
    made = Processes()
    yield made
    made.kill_all()


def sh(script: str) -> List[str]:
    return ["sh", "-c", script]


def python(script: str) -> List[str]:
    return [sys.executable, "-c", script]


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Running, and not only a zombie that nobody has waited for."""
    try:
        with open("/proc/%d/stat" % pid) as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_output_of_a_child_that_ends_well(processes: Processes) -> None:
    assert processes.run(sh("printf 'a\\nb'; echo note >&2"), ENV, "sh") == b"a\nb"


def test_only_the_given_environment_arrives(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGSTREAM_TEST", "leaked")
    out = processes.run([sys.executable, "-c", "import os; print(sorted(os.environ))"], {"ONLY": "1"}, "python")
    assert b"PGSTREAM_TEST" not in out and b"ONLY" in out


def test_exit_status_without_words(processes: Processes) -> None:
    with pytest.raises(BackupError, match="^pg_dump exited with status 3$"):
        processes.run(sh("echo some output; exit 3"), ENV, "pg_dump")


def test_the_child_s_first_cause(processes: Processes) -> None:
    words = ("psql: warning: x", "ERROR:  no such table", "DETAIL:  none", "later")
    script = "".join("echo '%s' >&2; " % line for line in words) + "exit 1"
    with pytest.raises(BackupError, match="^psql: ERROR: no such table DETAIL: none$"):
        processes.run(sh(script), ENV, "psql")


def test_a_server_out_of_reach_is_another_error(processes: Processes) -> None:
    said = 'connection to server at "db", port 5432 failed: Connection refused'
    with pytest.raises(ServerError, match="Connection refused"):
        processes.run(sh("echo '%s' >&2; exit 2" % said), ENV, "psql")


def test_killed_by_a_signal(processes: Processes) -> None:
    with pytest.raises(BackupError, match=r"^pg_dump was killed by signal 9$"):
        processes.run(sh("kill -9 $$"), ENV, "pg_dump")
    with pytest.raises(BackupError, match=r"killed by signal 15 \(error: disk"):
        processes.run(sh("echo 'error: disk' >&2; kill -15 $$"), ENV, "pg_dump")


def test_a_program_that_is_not_there(processes: Processes) -> None:
    with pytest.raises(BackupError, match="/no/such/psql could not be started: No such file"):
        processes.spawn(["/no/such/psql"], ENV, "psql")


def test_a_broken_pipe_is_told_in_the_child_s_words(processes: Processes) -> None:
    child = processes.spawn(
        sh("head -c 10 >/dev/null; echo 'ERROR: I have had enough' >&2; exit 3"), ENV, "psql", feed=True
    )
    with pytest.raises(BackupError, match="psql: ERROR: I have had enough"):
        for _turn in range(1000):
            child.write(b"x" * 100000)


def test_a_broken_pipe_of_a_child_that_says_nothing(processes: Processes) -> None:
    child = processes.spawn(sh("exec true"), ENV, "psql", feed=True)
    with pytest.raises(BackupError, match="psql stopped reading its input"):
        for _turn in range(1000):
            child.write(b"x" * 100000)


def test_feeding(processes: Processes) -> None:
    child = processes.spawn(sh("cat"), ENV, "cat", feed=True)
    for number in range(3):
        child.write(b"%d\n" % number)
    child.close_input()
    child.finish()
    assert child.said() == b"0\n1\n2\n"


def test_lines_that_are_heard(processes: Processes) -> None:
    """However much else there is."""
    child = processes.spawn(["cat"], ENV, "cat", feed=True, heard=b"COPY ")
    child.write(b"COPY 1\nno COPY 2\n" + b"x\n" * process.KEPT + b"COPY %s\n" % (b"x" * process.KEPT))
    child.write(b"COPY 3\nCOPY a")
    child.write(b" word\nCOPY 4\n")
    assert child.lines_until(b"COPY a word") == [b"COPY 1", b"COPY 3"]
    child.write(b"COPY 5\nCOPY a word\nCOPY 6\nCOPY 7")
    assert child.lines_until(b"COPY a word") == [b"COPY 4", b"COPY 5"]
    child.close_input()
    child.finish()
    assert child.lines() == [b"COPY 6"]  # the last was not said to its end


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo COPY 1; read line; echo 'error: not this' >&2; exit 1", "error: not this"),
        ("echo COPY 1; read line; exit 0", "psql ended before it was told to"),
    ],
)
def test_a_child_that_ends_while_it_is_heard(processes: Processes, script: str, said: str) -> None:
    child = processes.spawn(sh(script), ENV, "psql", feed=True, heard=b"COPY ")
    child.write(b"go\n")
    with pytest.raises(BackupError, match=said):
        child.lines_until(b"COPY 2")


def test_a_child_that_says_too_many_lines(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MOST_LINES", 1000)
    child = processes.spawn(["cat"], ENV, "psql", feed=True, heard=b"COPY ")
    child.write(b"COPY 1\n" * 1001)
    with pytest.raises(BackupError, match="psql was killed by signal 9"):
        child.lines_until(b"COPY 2")


def test_what_was_complained_about_before_is_no_cause(processes: Processes) -> None:
    script = "echo 'WARNING: it could not be' >&2; echo COPY 1; read line; echo 'error: that' >&2; exit 1"
    child = processes.spawn(sh(script), ENV, "psql", feed=True, heard=b"COPY ")
    child.lines_until(b"COPY 1")
    wait_until(child.stderr_text, "the warning")
    child.forget()
    child.write(b"go\n")
    with pytest.raises(BackupError, match="^psql: error: that$"):
        child.lines_until(b"COPY 2")


def test_data_larger_than_a_pipe(processes: Processes) -> None:
    """The child writes while it reads: whoever only wrote first would wait for ever."""
    data = os.urandom(1 << 20) * 8
    assert processes.run(["cat"], ENV, "cat", data=data) == data


def test_data_that_nobody_reads(processes: Processes) -> None:
    assert processes.run(sh("echo done"), ENV, "sh", data=bytes(8 << 20)) == b"done\n"
    with pytest.raises(BackupError, match="error: not this"):
        processes.run(sh("echo 'error: not this' >&2; exit 1"), ENV, "sh", data=bytes(8 << 20))


def test_stderr_larger_than_a_pipe_blocks_nobody(processes: Processes) -> None:
    script = "import sys; sys.stderr.write('first: error\\n' + ('x' * 99 + '\\n') * 80000); print('end')"
    child = processes.spawn(python(script), ENV, "python")
    assert child.output() == b"end\n"
    assert child.stderr_text().startswith("first: error")
    assert len(child.stderr_text()) <= process.KEPT  # the beginning is kept, the rest read and dropped


def test_output_larger_than_a_pipe_while_fed_blocks_nobody(processes: Processes) -> None:
    child = processes.spawn(["cat"], ENV, "cat", feed=True)
    for _turn in range(80):
        child.write(b"x" * 100000)
    child.close_input()
    child.finish()
    assert len(child.said()) == process.KEPT


def test_chunks_come_as_they_are_written(processes: Processes) -> None:
    child = processes.spawn(sh("echo one; read line; echo two"), ENV, "sh", feed=False, data=None)
    assert b"".join(child.chunks()) == b"one\ntwo\n"
    child.cause()
    large = processes.spawn(["head", "-c", "5000000", "/dev/zero"], ENV, "head")
    sizes = [len(chunk) for chunk in large.chunks()]
    large.finish()
    assert sum(sizes) == 5000000 and max(sizes) <= process.READ_SIZE


def test_cause_of_a_child(processes: Processes) -> None:
    assert processes.spawn(sh("exit 0"), ENV, "sh").cause() is None
    failed = processes.spawn(sh("echo 'fatal: no' >&2; exit 1"), ENV, "sh").cause()
    assert failed is not None and failed.message == "sh: fatal: no"


def test_kill_all_kills_the_whole_group(processes: Processes) -> None:
    child = processes.spawn(sh("sleep 1000 & echo $!; wait"), ENV, "sh")
    grandchild = int(next(child.chunks()))
    assert alive(child.pid) and alive(grandchild)
    processes.kill_all()
    assert not child.running()
    wait_for(lambda: not alive(grandchild))


def test_nothing_starts_after_kill_all(processes: Processes) -> None:
    processes.kill_all()
    assert processes.closed
    with pytest.raises(Cancelled):
        processes.spawn(sh("exit 0"), ENV, "sh")


def test_a_signal_while_a_child_is_started_leaves_no_child(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is met when the child is known."""
    started = noted(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with Signals(), pytest.raises(Interrupted, match="SIGTERM"):
        processes.spawn(["sleep", "60"], ENV, "sleep")
    processes.kill_all()
    assert not alive(started[0])


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_child_that_cannot_be_attended_is_not_left(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """No memory for a thread, after so many."""
    before, start, left = descriptors(), threading.Thread.start, [None] * threads

    def start_some(thread: threading.Thread) -> None:
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    started = noted(monkeypatch, lambda: None)
    monkeypatch.setattr(threading.Thread, "start", start_some)
    with pytest.raises(RuntimeError):
        processes.spawn(["sleep", "60"], ENV, "sleep", data=b"")
    monkeypatch.undo()
    assert not alive(started[0])
    wait_for(lambda: descriptors() <= before)  # fewer where what an earlier test left was collected


def test_a_reader_is_woken_by_kill_all(processes: Processes) -> None:
    child = processes.spawn(sh("exec sleep 1000"), ENV, "sleep")
    seen: List[object] = []

    def read() -> None:
        try:
            child.output()
        except BackupError as error:
            seen.append(error.message)

    thread = threading.Thread(target=read)
    thread.start()
    processes.kill_all()
    thread.join(PATIENCE)
    assert seen == ["sleep was killed by signal 9"]


def test_a_fed_child_does_not_take_its_killing_for_the_end(processes: Processes, tmp_path: object) -> None:
    """Input is closed only when the child is dead: psql would commit what it has."""
    marker = os.path.join(str(tmp_path), "ended")
    child = processes.spawn(sh("cat >/dev/null; touch %s; exec sleep 1000" % marker), ENV, "psql", feed=True)
    child.write(b"BEGIN;\n")
    processes.kill_all()
    assert not child.running() and not os.path.exists(marker)


def test_no_descriptor_is_left(processes: Processes) -> None:
    def each(number: int) -> None:
        kind = number % 5
        if kind == 0:
            processes.run(["cat"], ENV, "cat", data=b"x")
        elif kind == 1:
            with pytest.raises(BackupError):
                processes.run(sh("exit 1"), ENV, "sh")
        elif kind == 2:
            fed = processes.spawn(["cat"], ENV, "cat", feed=True)
            fed.write(b"x")
            fed.close_input()
            fed.finish()
        elif kind == 3:
            with pytest.raises(BackupError):
                processes.spawn(["/no/such"], ENV, "none")
        else:
            killed = processes.spawn(sh("exec sleep 1000"), ENV, "sleep")
            killed.kill()
            with pytest.raises(BackupError, match="signal 9"):
                killed.finish()

    for number in range(5):
        each(number)
    before = descriptors()
    for number in range(50):
        each(number)
    wait_for(lambda: descriptors() <= before)


def test_a_child_has_no_other_descriptors(processes: Processes) -> None:
    read, write = os.pipe()
    os.set_inheritable(write, True)
    try:
        out = processes.run(sh("ls /proc/self/fd"), ENV, "sh")
    finally:
        os.close(read)
        os.close(write)
    assert str(write).encode() not in out.split() or write <= 3


def test_a_memory_file_is_read_by_a_child(processes: Processes) -> None:
    data = os.urandom(300000)
    descriptor = memory_file(data)
    try:
        for _turn in range(2):  # opened anew each time, as pg_restore does
            out = processes.run(["cat", "/dev/fd/%d" % descriptor], ENV, "cat", pass_fds=(descriptor,))
            assert out == data
    finally:
        os.close(descriptor)


def test_a_memory_file_where_there_is_no_memfd(processes: Processes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    descriptor = memory_file(b"abc")
    try:
        assert os.read(descriptor, 10) == b"abc"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("fed", [False, True])
def test_a_large_buffer_leaves_the_command_the_same(
    processes: Processes, monkeypatch: pytest.MonkeyPatch, fed: bool
) -> None:
    argv = process.with_large_buffer(["cat"] if fed else ["echo", "a b"], fed)
    assert len(argv) > 2 and processes.run(argv, ENV, "child", data=b"a b\n" if fed else None) == b"a b\n"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert process.with_large_buffer(["psql", "-X"], fed) == ["psql", "-X"]


@pytest.mark.parametrize("text,cause", [
    ("", ""),
    ("just words\nmore", "just words"),
    ("psql: warning: a\npsql: error: b\npsql: error: c", "psql: error: b"),
    ("NOTICE: a\nERROR:  b\nLINE 1: x\nDETAIL:  d\nHINT:  h", "ERROR:  b DETAIL:  d HINT:  h"),
    ("psql:<stdin>:5: WARNING:  it could not be\npsql:<stdin>:7: ERROR:  b", "psql:<stdin>:7: ERROR:  b"),
    ("ERROR:  b\nCONTEXT: x\n\n\n", "ERROR:  b"),
    ("pg_dump: detail: x\nFATAL:  terminating", "FATAL:  terminating"),
])  # fmt: skip
def test_the_line_that_says_why(text: str, cause: str) -> None:
    assert first_line_of_cause(text) == cause


def test_words_that_are_no_utf8(processes: Processes) -> None:
    with pytest.raises(BackupError, match="ERROR: caf"):
        processes.run(sh("printf 'ERROR: caf\\351\\n' >&2; exit 1"), ENV, "psql")


def test_the_child_is_in_a_session_of_its_own(processes: Processes) -> None:
    """An interrupt from the terminal is ours alone to answer."""
    child = processes.spawn(sh("exec sleep 1000"), ENV, "sleep")
    assert os.getsid(child.pid) == child.pid != os.getsid(0)
    os.kill(child.pid, signal.SIGTERM)
    with pytest.raises(BackupError, match="signal 15"):
        child.finish()
