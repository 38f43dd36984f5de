# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only door to child processes: argument lists, stderr drained, every exit status checked, groups killed.

End-of-file from a child is a question; its exit status is the answer (`Process.finish`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from typing import IO, Callable, Dict, Iterator, List, Optional, Sequence, Union

from .errors import BackupError, Cancelled, ServerError, given, hint_of
from .interrupts import whole

PIPE_SIZE = 1 << 20  # bytes; Linux's default limit for an unprivileged user (pipe-max-size)
READ_SIZE = 1 << 20  # bytes
KEPT = 1 << 20  # bytes of what a child says on stderr, or on stdout while it is fed
HEARD = 64  # bytes of a line that is listened for
MOST_LINES = 1 << 20  # of these at a time; a child that says more is ended
F_SETPIPE_SZ = 1031  # fcntl(2), Linux; named in Python's fcntl only since 3.10

_UNREACHABLE = re.compile(
    r"connection to server .* failed|could not connect|the database system is (starting|shutting)"
    r"|server closed the connection unexpectedly|terminating connection|connection to server was lost"
)
_LINE_OF_CAUSE = re.compile(r"\b(FATAL|ERROR|error|PANIC|fatal|could not|invalid|unrecognized|closed the connection)\b")
_HARMLESS = re.compile(r"(psql:\S+ )?(WARNING|NOTICE):")


class Process:
    """One child in a session of its own. Use through `Processes.spawn`."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Dict[str, str],
        name: str,
        data: Optional[bytes],
        feed: bool,
        pass_fds: Sequence[int] = (),
        heard: bytes = b"",
    ) -> None:
        self.name = name
        self.argv = list(argv)
        # The engine needs the pipe itself: two directions, a child killed by its group, output read in bulk.
        # AnsibleModule.run_command collects whole outputs, and is not known below the edge.
        self._popen = subprocess.Popen(  # pylint: disable=ansible-bad-function
            self.argv,
            env=env,
            stdin=subprocess.PIPE if (feed or data is not None) else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            close_fds=True,
            pass_fds=pass_fds,
        )
        self.pid = self._popen.pid
        self._stderr = bytearray()
        self._stdout = bytearray()
        self._heard = heard
        self._lines: List[bytes] = []
        self._silent = False  # its output is at its end
        self._changed = threading.Condition()
        self._out = given(self._popen.stdout).fileno()
        _widen(self._out)
        self._helpers: List[threading.Thread] = []
        try:
            self._attend(data, feed)
        except BaseException:  # no memory for another thread
            self.kill()
            self.status()
            raise

    def _attend(self, data: Optional[bytes], feed: bool) -> None:
        """Start who reads the child's words, feeds it, and waits for its end."""
        self._helpers.append(self._start(self._collect, given(self._popen.stderr), self._stderr))
        if hasattr(os, "waitid"):
            self._start(self._end_group)
        if feed:
            _widen(given(self._popen.stdin).fileno())
            # Whoever feeds a child does not read it: what it says is kept until it is asked for.
            out = given(self._popen.stdout)
            self._helpers.append(
                self._start(self._hear, out) if self._heard else self._start(self._collect, out, self._stdout)
            )
        elif data is not None:
            self._helpers.append(self._start(self._feed, data))

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, name=self.name, daemon=True)
        thread.start()
        return thread

    def chunks(self) -> Iterator[bytes]:
        """What the child writes, as it comes, at most READ_SIZE bytes at a time."""
        while True:
            chunk = os.read(self._out, READ_SIZE)
            if not chunk:
                return
            yield chunk

    def read_into(self, buffer: memoryview) -> int:
        """Read what the child writes into `buffer`; the number of bytes, 0 at the end."""
        return os.readv(self._out, [buffer])

    def output(self) -> bytes:
        """The whole standard output of a child that ended well."""
        collected = b"".join(self.chunks())
        self.finish()
        return collected

    def write(self, data: Union[bytes, memoryview]) -> None:
        """Feed the child. A broken pipe is reported as what the child said when it died."""
        stdin = given(self._popen.stdin)
        try:
            _write_all(stdin.fileno(), data)
        except BrokenPipeError:
            self.finish()
            raise BackupError("%s stopped reading its input" % self.name) from None

    def close_input(self) -> None:
        if self._popen.stdin is not None and not self._popen.stdin.closed:
            self._popen.stdin.close()

    def finish(self) -> None:
        """Wait for the end; raise what the child said if it did not exit 0."""
        status = self.status()
        if status != 0:
            raise self._failure(status)

    def status(self) -> int:
        """Wait for the end; the exit status, or the number of the signal that killed it, negative."""
        status = self._popen.wait()
        self._join()
        self._close()
        return status

    def cause(self) -> Optional[BackupError]:
        """Wait for the end; the child's failure, None if it ended well."""
        status = self._popen.wait()
        self._join()
        return self._failure(status) if status else None

    def lines_until(self, last: bytes) -> List[bytes]:
        """Wait until the child says the line `last`; what was heard before it. Raises as `finish` if its output ends
        without."""
        with self._changed:
            self._changed.wait_for(lambda: last in self._lines or self._silent)
            if last in self._lines:
                place = self._lines.index(last)
                said, self._lines = self._lines[:place], self._lines[place + 1 :]
                return said
        self.finish()
        raise BackupError("%s ended before it was told to" % self.name)

    def forget(self) -> None:
        """What it complained about so far is no cause of what may come."""
        del self._stderr[:]

    def lines(self) -> List[bytes]:
        """What was heard of a child that ended, and not asked for before."""
        return self._lines

    def said(self) -> bytes:
        """The standard output of a child that was fed, after its end."""
        return bytes(self._stdout)

    def stderr_text(self) -> str:
        return bytes(self._stderr).decode("utf-8", "replace").strip()

    def running(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """Kill the child and what it started. Its input is closed only after it is dead: an early end of input would
        look to psql like a normal one."""
        if self._popen.poll() is None:
            try:
                os.killpg(self.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                self._popen.kill()
        self._popen.wait()

    def terminate(self, seconds: float) -> None:
        """Ask the child to stop, its input still open, so that it can clean up after itself; killed after that time."""
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def _close(self) -> None:
        self.close_input()
        given(self._popen.stdout).close()
        given(self._popen.stderr).close()

    def _failure(self, status: int) -> BackupError:
        text = self.stderr_text()
        cause = first_line_of_cause(text)
        if status < 0:
            died = "%s was killed by signal %d" % (self.name, -status)
            cause = "%s (%s)" % (died, cause) if cause else died
        elif not cause:
            cause = "%s exited with status %d" % (self.name, status)
        else:
            cause = cause if cause.startswith(self.name) else "%s: %s" % (self.name, cause)
        kind = ServerError if _UNREACHABLE.search(text) else BackupError
        return kind(cause, hint=hint_of(cause))

    def _end_group(self) -> None:
        """When the child ended badly, end what it started too: the workers of a pg_restore that was killed go on, and
        hold its pipes open. Looked at without reaping, so that the group's number is still its own."""
        try:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            if ended is not None and ended.si_status != 0:
                os.killpg(self.pid, signal.SIGKILL)
        except OSError:
            pass  # reaped already: its pipes were at their end

    def _join(self) -> None:
        for thread in self._helpers:
            thread.join()

    @staticmethod
    def _collect(pipe: IO[bytes], kept: bytearray) -> None:
        """Read until the end, keep the beginning: the first cause comes first.

        Holds the pipe itself: its number alone could be another file's once the process was forgotten.
        """
        while True:
            chunk = os.read(pipe.fileno(), 65536)
            if not chunk:
                return
            kept += chunk[: KEPT - len(kept)]

    def _hear(self, pipe: IO[bytes]) -> None:
        """Keep the lines that begin as they should, however much else there is."""
        part = b""
        while not self._silent:
            chunk = os.read(pipe.fileno(), 65536)
            lines = (part + chunk).split(b"\n")
            part = lines.pop()[: HEARD + 1]
            with self._changed:
                self._lines += [line for line in lines if line.startswith(self._heard) and len(line) <= HEARD]
                self._silent = not chunk
                self._changed.notify_all()
            if len(self._lines) > MOST_LINES:
                self.kill()

    def _feed(self, data: bytes) -> None:
        stdin = given(self._popen.stdin)
        try:
            _write_all(stdin.fileno(), data)
        except BrokenPipeError:
            pass  # its exit status tells
        finally:
            try:
                stdin.close()
            except BrokenPipeError:
                pass


class Processes:
    """Every child of one run: `kill_all` leaves none behind and refuses new ones."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._alive: List[Process] = []
        self._closed = False

    def spawn(
        self,
        argv: Sequence[str],
        env: Dict[str, str],
        name: str,
        data: Optional[bytes] = None,
        feed: bool = False,
        pass_fds: Sequence[int] = (),
        heard: bytes = b"",
    ) -> Process:
        """Start a child. `data` is its whole input; `feed` leaves its input open for `Process.write`; `heard` is
        how those lines of it begin that are kept for `Process.lines`."""
        with whole(), self._lock:
            if self._closed:
                raise Cancelled("%s was not started: the run is ending" % name)
            try:
                process = Process(argv, env, name, data, feed, pass_fds, heard)
            except OSError as error:
                raise BackupError("%s could not be started: %s" % (argv[0], error.strerror)) from error
            self._alive = [each for each in self._alive if each.running()]
            self._alive.append(process)
            return process

    def run(
        self,
        argv: Sequence[str],
        env: Dict[str, str],
        name: str,
        data: Optional[bytes] = None,
        pass_fds: Sequence[int] = (),
    ) -> bytes:
        """Run a child to its end and return its output."""
        return self.spawn(argv, env, name, data, pass_fds=pass_fds).output()

    @property
    def closed(self) -> bool:
        return self._closed

    def kill_all(self) -> None:
        with self._lock:
            self._closed = True
            for process in self._alive:
                process.kill()
            self._alive = []


def first_line_of_cause(text: str) -> str:
    """The line of a client program's stderr that says what went wrong first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if _LINE_OF_CAUSE.search(line) and not _HARMLESS.match(line):
            detail = [each for each in lines[number + 1 : number + 4] if each.startswith(("DETAIL:", "HINT:"))]
            return " ".join([line] + detail)
    return lines[0] if lines else ""


def with_large_buffer(argv: Sequence[str], fed: bool) -> List[str]:
    """The command with a 256 KiB buffer for its output, or its input if it is fed, where coreutils' stdbuf is there to
    give it one.

    psql reads and writes pipes 4 KiB at a time. Measured on 313 MB of COPY, the larger buffer took reads of its output
    from 29,000 to 1,100 and halved the processor time of psql and reader together; its input gained as much.
    """
    stdbuf = shutil.which("stdbuf")
    return [stdbuf, "-i256K" if fed else "-o256K"] + list(argv) if stdbuf else list(argv)


def _write_all(descriptor: int, data: Union[bytes, memoryview]) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def memory_file(data: bytes) -> int:
    """A descriptor of an unnamed file in memory, for programs that must seek or reopen what they read (`/dev/fd/N`)."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("pgstream")
    else:
        with tempfile.TemporaryFile() as file:  # not Linux: unnamed, gone with the process
            descriptor = os.dup(file.fileno())
    _write_all(descriptor, data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _widen(descriptor: int) -> None:
    try:
        fcntl.fcntl(descriptor, F_SETPIPE_SZ, PIPE_SIZE)
    except OSError:
        pass  # not Linux, or over the user's limit: the default size works, only slower
