# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Run the engine in a test: as functions, as the command, and held at a chosen point by a proxy."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from _pgstream.events import Log
from _pgstream.model import BackupRequest, BackupResult, RestoreRequest, RestoreResult, Server, Storage

TIMEOUT = 120.0  # seconds until a condition that does not come is a failure; nothing waits that long otherwise
POLL = 0.02
APPLICATION = "pgstream.backup"  # what the engine's sessions call themselves
_FOREIGN = ("PG", "POSTGRES_", "AWS_", "RCLONE_", "BACKUP_")


def wait_until(condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
    """The first true value of `condition`; AssertionError that names `what` if there is none in time."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, "waited in vain for " + what
        time.sleep(POLL)


# --- requests ---------------------------------------------------------------------------------------------------------


def server_of(postgres: Any, **changes: Any) -> Server:
    """The engine's view of a test server."""
    fields: Dict[str, Any] = {
        "host": postgres.host,
        "port": postgres.port,
        "user": postgres.user,
        "password": postgres.password,
        "bindir": postgres.bindir,
    }
    fields.update(changes)
    return Server(**fields)


def s3_storage(s3: Any, bucket: str, **changes: Any) -> Storage:
    fields: Dict[str, Any] = {
        "bucket": bucket,
        "endpoint_url": s3.endpoint_url,
        "region": s3.region,
        "access_key": s3.access_key,
        "secret_key": s3.secret_key,
    }
    fields.update(changes)
    return Storage(**fields)


def local_storage(directory: Path) -> Storage:
    directory.mkdir(parents=True, exist_ok=True)
    return Storage(kind="local", directory=str(directory))


def back_up(server: Server, database: str, storage: Storage, log: Optional[Log] = None, **options: Any) -> BackupResult:
    from _pgstream import backup

    return backup.back_up(BackupRequest(server, database, storage, **options), log or Log())


def restore(server: Server, storage: Storage, key: str, log: Optional[Log] = None, **options: Any) -> RestoreResult:
    from _pgstream import restore as verb

    return verb.restore(RestoreRequest(server, storage, key, **options), log or Log())


class KeptLog(Log):
    """Keeps what it is told, for tests of events."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: List[Tuple[str, str, Dict[str, Any]]] = []

    def write(self, level: str, event: str, fields: Dict[str, Any]) -> None:
        self.lines.append((level, event, fields))

    def events(self) -> List[str]:
        return [event for _level, event, _fields in self.lines]


# --- the command ------------------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How a run of the command ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> List[Dict[str, Any]]:
        """Every line of stdout as JSON."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def errors(self) -> List[Dict[str, Any]]:
        """Every line of stderr as JSON."""
        return [json.loads(line) for line in self.err.splitlines()]

    @property
    def result(self) -> Dict[str, Any]:
        """The last line of stdout."""
        return self.lines[-1]

    @property
    def message(self) -> str:
        """What the one line of the failure says."""
        failed = [line for line in self.errors if line["event"] == "failed"]
        assert len(failed) == 1, self.err
        return str(failed[0]["message"])


class Command:
    """`python -m _pgstream.main ...`, running. TMPDIR, which its children inherit, marks all that belongs to it."""

    def __init__(self, home: Path, env: Dict[str, str], *arguments: str) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.temporary = home / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._out, self._err = home / "out", home / "err"
        argv = [sys.executable, "-m", "_pgstream.main", *arguments]
        with open(str(self._out), "wb") as out, open(str(self._err), "wb") as err:
            self._process = subprocess.Popen(
                argv,
                env=dict(env, TMPDIR=str(self.temporary)),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.pid = self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def err(self) -> str:
        return self._err.read_text(encoding="utf-8")

    def events(self) -> List[str]:
        """The events that stdout holds so far."""
        return re.findall(r'"event": "([^"]+)"', self._out.read_text(encoding="utf-8"))

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def finish(self, timeout: float = TIMEOUT) -> Outcome:
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise AssertionError("the command did not end; it said: " + self.err()) from None
        return Outcome(code, self._out.read_text(encoding="utf-8"), self.err())

    def family(self) -> Dict[int, List[str]]:
        """Every process that belongs to this run, the command itself too, with its arguments."""
        return marked(str(self.temporary))

    def children(self, program: str) -> List[int]:
        """The processes of this run that are `program`, whatever its directory."""
        return [pid for pid, argv in self.family().items() if os.path.basename(argv[0]) == program]

    def close(self) -> None:
        """End whatever is left, after a test that failed."""
        for pid in self.family():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()


def marked(directory: str) -> Dict[int, List[str]]:
    """Processes whose TMPDIR is `directory`, by pid, with their arguments. Zombies have neither."""
    found: Dict[int, List[str]] = {}
    mark = b"TMPDIR=" + os.fsencode(directory)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if mark in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    argv = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")[:-1]
                    if argv:
                        found[int(entry)] = [os.fsdecode(part) for part in argv]
            except OSError:
                continue  # it ended meanwhile
    return found


def command_env(
    base: Dict[str, str], postgres: Any, database: str, s3: Any = None, bucket: str = "", **changes: Optional[str]
) -> Dict[str, str]:
    """The documented variables over `base`; a change to None removes one."""
    env = {name: value for name, value in base.items() if not name.startswith(_FOREIGN)}
    env.update(
        POSTGRES_HOST=postgres.host,
        POSTGRES_PORT=str(postgres.port),
        POSTGRES_USER=postgres.user,
        POSTGRES_PASSWORD=postgres.password,
        POSTGRES_DB=database,
        POSTGRES_BINDIR=postgres.bindir,
    )
    if s3 is not None:
        env.update(
            RCLONE_S3_BUCKET=bucket,
            RCLONE_S3_ENDPOINT=s3.endpoint_url,
            RCLONE_S3_REGION=s3.region,
            RCLONE_S3_ACCESS_KEY_ID=s3.access_key,
            RCLONE_S3_SECRET_ACCESS_KEY=s3.secret_key,
        )
    for name, value in changes.items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    return env


def sessions(postgres: Any) -> List[str]:
    """The engine's sessions on the server: none may be left after a run."""
    rows = postgres.psql(
        "SELECT pid, datname, state, left(query, 60) FROM pg_stat_activity WHERE application_name = '%s'" % APPLICATION
    )
    return [row for row in rows.splitlines() if row]


def databases_like(postgres: Any, name: str) -> List[str]:
    """The databases whose names begin with `name`."""
    rows: str = postgres.psql("SELECT datname FROM pg_database WHERE starts_with(datname, '%s') ORDER BY 1" % name)
    return rows.split()


# --- a proxy that holds a conversation --------------------------------------------------------------------------------


class Gate:
    """A point of a conversation where the proxy stops it. Every connection that gets there waits for `release`."""

    def __init__(self, pattern: bytes, after: Optional[int]) -> None:
        self.pattern = pattern
        self.after = after
        self.client_port = 0  # of the held connection, as the server names it (the last, of several)
        self.reached = threading.Event()
        self.released = threading.Event()

    def wait(self, command: Optional[Command] = None) -> None:
        """Return when a connection is held; AssertionError if it never is."""

        def held() -> bool:
            if command is not None and not command.running and not self.reached.is_set():
                raise AssertionError("the command ended before it was held: " + command.err())
            return self.reached.is_set()

        wait_until(held, "a connection that says %r" % self.pattern)

    def release(self) -> None:
        self.released.set()


def copy_out(table: str = "") -> bytes:
    """What psql's \\copy sends for public.`table`, or for a range of any table."""
    return b'COPY  "public"."%s"' % table.encode() if table else b"COPY  ( SELECT"


class Proxy:
    """A TCP proxy on loopback before a server of the tests, in clear text, so that it can see what is asked.

    gate(pattern)           holds the first bytes of a client that contain `pattern`: the server does not see them
    gate(pattern, after=N)  passes them on, and holds the server's answer after N bytes
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._gates: List[Gate] = []
        self._closed = False
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        self.host = "127.0.0.1"
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def gate(self, pattern: bytes, after: Optional[int] = None) -> Gate:
        gate = Gate(pattern, after)
        self._gates.append(gate)
        return gate

    def close(self) -> None:
        """Let everything go and listen no more."""
        self._closed = True
        for gate in self._gates:
            gate.release()
        self._listener.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _address = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.socket()
        # Small, so that what is held stays with the server: large buffers would swallow megabytes of it.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        try:
            server.connect(("127.0.0.1", self._target))
        except OSError:
            server.close()
            client.close()
            return
        _Conversation(self._gates, client, server).run()


class _Conversation:
    """One connection: a single thread moves both directions, so that a gate sees request and answer in order."""

    def __init__(self, gates: List[Gate], client: socket.socket, server: socket.socket) -> None:
        self._gates = gates
        self._client = client
        self._server = server
        self._armed: List[Tuple[Gate, int]] = []  # with the bytes of the answer that may still pass
        self._tail = b""
        self._requests = b""  # held
        self._answers = b""  # held

    def run(self) -> None:
        try:
            while self._step():
                pass
        except OSError:
            pass
        finally:
            self._client.close()
            self._server.close()

    def _step(self) -> bool:
        held = self._waiting()
        if not held:
            if self._requests:
                self._requests = self._send(self._server, self._requests)
            if self._answers:
                self._answers = self._send(self._client, self._answers)
        # The end of either side ends a held conversation too; a held side is not read any further.
        sides = [side for side in (self._client, self._server) if not (held and side is self._holding)]
        readable, _writable, _exceptional = select.select(sides, [], [], POLL if held else None)
        if held and self._ended(self._client):
            return False
        for side in readable:
            data = side.recv(1 << 18)
            if not data:
                return False
            if side is self._client:
                self._request(data)
            else:
                self._answer(data)
        return True

    def _waiting(self) -> bool:
        gate = getattr(self, "_gate", None)
        return gate is not None and not gate.released.is_set()

    def _hold(self, gate: Gate, side: socket.socket) -> None:
        self._gate, self._holding = gate, side
        gate.client_port = self._server.getsockname()[1]
        gate.reached.set()

    @staticmethod
    def _send(side: socket.socket, data: bytes) -> bytes:
        side.sendall(data)
        return b""

    @staticmethod
    def _ended(side: socket.socket) -> bool:
        try:
            return side.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False

    def _request(self, data: bytes) -> None:
        seen = self._tail + data
        self._tail = seen[-256:]
        for gate in self._gates:
            if gate.pattern in seen and not gate.released.is_set() and gate not in [one for one, _left in self._armed]:
                if gate.after is None:
                    self._requests += data
                    self._hold(gate, self._client)
                    return
                self._armed.append((gate, gate.after))
        self._server.sendall(data)

    def _answer(self, data: bytes) -> None:
        for number, (gate, left) in enumerate(self._armed):
            if gate.released.is_set():
                continue
            if len(data) > left:
                self._client.sendall(data[:left])
                self._answers += data[left:]
                self._armed[number] = (gate, 0)
                self._hold(gate, self._server)
                return
            self._armed[number] = (gate, left - len(data))
        self._client.sendall(data)


class Background:
    """Work in a thread; `result` waits for it and raises what it raised."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self._value: Any = None
        self._error: Optional[BaseException] = None
        self._work = work
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # raised again by result()
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, timeout: float = TIMEOUT) -> Any:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the work in the background did not end"
        if self._error is not None:
            raise self._error
        return self._value
