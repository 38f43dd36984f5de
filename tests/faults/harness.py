# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs of the command that are held at a stage and hurt there, and what must be true when they are over.

Nothing here waits for time to pass: a run is held by a proxy before PostgreSQL, by one before the store, or by a
pg_restore that waits to become the real one.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import signal
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional

from _pgstream import archive, catalog, listing
from _pgstream.ledger import DIED, FAILURE, SUCCESS, Ledger
from _pgstream.model import Storage
from _pgstream.store.base import open_store

from tests.support.runs import APPLICATION, Command, Outcome, Proxy, databases_like, sessions, wait_until

from .proxy import FaultyStore

INJECTED = Path(__file__).resolve().parent / "injected"
KILLED = -signal.SIGKILL
#: What a client hears of its server's end, by who was quicker to tell.
SERVER_GONE = (
    r"server closed the connection unexpectedly|terminating connection|the database system is shutting down"
    r"|Connection refused|connection to server was lost|Connection reset"
)


class Cell(NamedTuple):
    """One cell of the matrix: who is hurt while the run is held where, and how it must end.

    `actor`: one of ACTORS, or an S3 operation and what the proxy does to it ("UploadPart 503 once").
    `at`: the stage that the message names. `says`: a pattern that the message must match.
    """

    stage: str
    actor: str
    code: int
    at: str = ""
    says: str = ""
    strategy: str = "swap"  # of a restore

    def __str__(self) -> str:
        words = [self.stage, self.actor] + ([self.strategy] if self.strategy != "swap" else [])
        return "-".join(re.sub(r"\W+", "_", word) for word in words)


# --- where a run is held ----------------------------------------------------------------------------------------------


class Hold:
    """A point where the run waits until it is released."""

    def __init__(
        self, reached: Callable[[], bool], release: Callable[[], None], what: str, port: Callable[[], int] = int
    ) -> None:
        self._reached, self.release, self._what = reached, release, what
        self.port = port  # of a held session of PostgreSQL, from the server's side

    def wait(self, command: Command) -> None:
        def held() -> bool:
            if not command.running and not self._reached():
                raise AssertionError("the command ended before it was held: " + command.err())
            return self._reached()

        wait_until(held, self._what)


class Programs:
    """A directory of PostgreSQL's programs whose pg_restore waits before it becomes the real one, if it is told to."""

    def __init__(self, bindir: str, place: Path) -> None:
        self.bindir = str(place)
        place.mkdir(parents=True)
        self._gate, self._reached, self._wanted = (place / name for name in ("gate", "reached", "wanted"))
        os.mkfifo(str(self._gate))
        for name in ("pg_dump", "psql"):
            (place / name).symlink_to(os.path.join(bindir, name))
        script = place / "pg_restore"
        script.write_text(
            "#!/bin/sh\n"
            'case "$*" in *"$(cat %s 2>/dev/null || echo none)"*) : > %s; read -r _ < %s;; esac\n'
            'exec %s "$@"\n' % (self._wanted, self._reached, self._gate, os.path.join(bindir, "pg_restore"))
        )
        script.chmod(0o755)

    def hold(self, argument: str) -> Hold:
        """Hold the pg_restore that is given this argument."""
        self._wanted.write_text(argument)
        return Hold(self._reached.exists, self._release, "pg_restore " + argument)

    def _release(self) -> None:
        self._wanted.write_text("none")
        try:
            os.close(os.open(str(self._gate), os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody waits any more
                raise


def held_at(pattern: bytes, after: Optional[int] = None) -> Callable[[Scene], Hold]:
    """Hold the sessions of PostgreSQL that say this, or the server's answer to them after so many bytes."""

    def hold(scene: Scene) -> Hold:
        gate = scene.pg_proxy.gate(pattern, after)
        return Hold(gate.reached.is_set, gate.release, "a session that says %r" % pattern, lambda: gate.client_port)

    return hold


def held_program(argument: str) -> Callable[[Scene], Hold]:
    return lambda scene: scene.programs.hold(argument)


def held_store(operation: str, kind: str = "hold", skip: int = 0) -> Callable[[Scene], Hold]:
    def hold(scene: Scene) -> Hold:
        fault = scene.store.fault(operation, kind, skip=skip)
        return Hold(fault.reached.is_set, fault.release, operation)

    return hold


# --- what is done to it -----------------------------------------------------------------------------------------------


def _kill(program: str, number: int = 0) -> Callable[[Scene], None]:
    """SIGKILL for a child; for pg_restore the one that the engine started, others are its own."""

    def act(scene: Scene) -> None:
        wait_until(lambda: len(scene.command.children(program)) > number, "number %d of %s" % (number, program))
        os.kill(sorted(scene.command.children(program))[number], signal.SIGKILL)

    return act


def _terminate(which: Callable[[Scene], str]) -> Callable[[Scene], None]:
    """End a session of the run from within the server."""
    sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '%s' %s"

    def act(scene: Scene) -> None:
        assert scene.postgres.psql(sql % (APPLICATION, which(scene))) == "t\n"

    return act


def _oldest(_scene: Scene) -> str:
    return "ORDER BY backend_start LIMIT 1"


def _held(scene: Scene) -> str:
    """A neighbour may have done its work already, and its end would be noticed by nobody."""
    return "AND client_port = %d" % scene.held_port()


def _signal(number: int) -> Callable[[Scene], None]:
    return lambda scene: scene.command.signal(number)


def _limit(kind: int, size: Callable[[Scene], int]) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        limit = size(scene)
        resource.prlimit(scene.command.pid, kind, (limit, limit))

    return act


def _address_space(scene: Scene) -> int:
    """What the run has, and half a part of the upload."""
    pages = int(Path("/proc/%d/statm" % scene.command.pid).read_text().split()[0])
    return pages * resource.getpagesize() + (4 << 20)


#: name -> (what it does, whether the run is let go after it: a run whose own part died must not need that)
ACTORS: Dict[str, tuple] = {
    "psql": (_kill("psql"), False),
    "second psql": (_kill("psql", 1), False),
    "pg_dump": (_kill("pg_dump"), False),
    "pg_restore": (_kill("pg_restore"), False),
    "held pg_restore": (_kill("sh"), False),
    "leader": (_terminate(_oldest), True),
    "backend": (_terminate(_held), True),
    "server": (lambda scene: scene.postgres.stop(), True),
    "restart": (lambda scene: (scene.postgres.stop(), scene.postgres.start()), True),
    "store": (lambda scene: scene.s3.kill(), True),
    "store restart": (lambda scene: (scene.s3.kill(), scene.s3.start()), True),
    "SIGTERM": (_signal(signal.SIGTERM), False),
    "SIGINT": (_signal(signal.SIGINT), False),
    "SIGHUP": (_signal(signal.SIGHUP), False),
    "SIGKILL": (_signal(signal.SIGKILL), False),
    "no memory": (_limit(resource.RLIMIT_AS, _address_space), True),
    "file size limit": (_limit(resource.RLIMIT_FSIZE, lambda scene: 1 << 20), True),
    "timeout": (lambda scene: None, False),  # of the run, which is set low
    "nothing": (lambda scene: None, True),
}


# --- a run and its end ------------------------------------------------------------------------------------------------


class Scene:
    """The servers, what stands before them, one run of the command, and its end."""

    def __init__(self, postgres: Any, s3: Any, bucket: str, pg_proxy: Proxy, store: FaultyStore, home: Path) -> None:
        self.postgres, self.s3, self.bucket = postgres, s3, bucket
        self.pg_proxy, self.store = pg_proxy, store
        self.programs = Programs(postgres.bindir, home / "bin")
        self.state = home / "state"
        self.state.mkdir()
        self.command: Command
        self.outcome: Outcome
        self._hold: Optional[Hold] = None

    def changes(self) -> Dict[str, Optional[str]]:
        """What the run's environment has beside that of any other."""
        return {
            "POSTGRES_PORT": str(self.pg_proxy.port),
            "POSTGRES_BINDIR": self.programs.bindir,
            "RCLONE_S3_ENDPOINT": self.store.endpoint_url,
            "BACKUP_STATE_DIR": str(self.state),
            "BACKUP_COMPRESSION_LEVEL": "1",
        }

    def play(self, cell: Cell, stages: Dict[str, Callable[[Scene], Hold]], start: Callable[[], Command]) -> None:
        """Start the run, hurt it where the cell says, and wait for its end."""
        act: Callable[[Scene], None]
        if cell.actor in ACTORS:
            act, let_go = ACTORS[cell.actor]
            self._hold = stages[cell.stage](self)
        else:
            operation, kind, *often = cell.actor.split()
            # Later: when footer, index and definitions were read.
            # After the commit it is the second HEAD: the first asks whether the key is free.
            skip = 3 if "later" in often else int(cell.stage == "after commit")
            self.store.fault(operation, kind, times="once" in often, skip=skip)
            act, let_go = ACTORS["nothing"]
        self.command = start()
        if self._hold is not None:
            self._hold.wait(self.command)
        act(self)
        if let_go:
            self.release()
        self.outcome = self.command.finish()
        if self.outcome.code == KILLED:
            self.release()  # its children end when they next touch a pipe; all others must be dead by now
        wait_until(lambda: not self.command.family(), "the end of its children", timeout=30)
        self.release()
        self.postgres.start()
        self.s3.start()

    def release(self) -> None:
        if self._hold is not None:
            self._hold.release()

    def held_port(self) -> int:
        assert self._hold is not None
        return self._hold.port()

    def check_end(self, cell: Cell, operation: str) -> None:
        """Exit status, message, log and ledger agree, and nothing of the run is left but what it was to make."""
        outcome = self.outcome
        assert outcome.code == cell.code, outcome.err + outcome.out
        run = self._noted(operation)
        if cell.code == KILLED:
            assert (run.status, run.message) == (FAILURE, DIED)
        elif cell.code == 0:
            assert outcome.result["event"] == "result" and run.status == SUCCESS
        else:
            (failed,) = [line for line in outcome.errors if line["event"] == "failed"]
            assert failed["level"] == "ERROR" and failed["exit_code"] == cell.code
            assert re.search(cell.says, outcome.message), outcome.message
            assert failed["stage"] == cell.at and cell.at in outcome.message, outcome.message
            assert not {"result", "committed", "restored"} & {line["event"] for line in outcome.lines}
            assert (run.status, run.exit_code, run.stage) == (FAILURE, cell.code, cell.at)
            assert run.message == outcome.message
        self._nothing_left()

    def _noted(self, operation: str) -> Any:
        runs = Ledger(str(self.state)).view().runs
        assert [run.operation for run in runs] == [operation]
        return runs[0]

    def _nothing_left(self) -> None:
        wait_until(lambda: not sessions(self.postgres), "the end of %s" % sessions(self.postgres))
        assert self.postgres.psql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == "0\n"
        open_ones = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert self.postgres.psql(open_ones) == "0\n"
        assert os.listdir(str(self.command.temporary)) == []


def limits(cell: Cell) -> Dict[str, str]:
    """The environment's part that makes a cell's waiting short."""
    found = {"BACKUP_STALL_TIMEOUT": "1s"} if " stall" in cell.actor else {}
    return {**found, "BACKUP_TIMEOUT": "2s"} if cell.actor == "timeout" else found


def storage_of(s3: Any, bucket: str) -> Storage:
    """The store itself, past the proxy."""
    return Storage(
        bucket=bucket,
        endpoint_url=s3.endpoint_url,
        region=s3.region,
        access_key=s3.access_key,
        secret_key=s3.secret_key,
    )


def stored_is_whole(storage: Storage, key: str, rows: int) -> None:
    """Every block of the object is what its index says, and it has so many rows."""
    store = open_store(storage)
    item = store.stat(key)
    assert item is not None
    index = catalog.read_index(store, item)
    assert index is not None and index.rows == rows
    for block in index.blocks:
        archive.check_block(index.compression, block, store.read(key, block.offset, block.length))


def listed(storage: Storage) -> List[str]:
    return [each.key for each in listing.list_backups(storage)]


class Precious:
    """A database that is there before a restore, and must be as it was after one that failed."""

    def __init__(self, postgres: Any, name: str, strategy: str) -> None:
        self.postgres, self.name = postgres, name
        self._content = "" if strategy == "in_place" else "precious\n"
        if self._content:
            postgres.psql("CREATE TABLE precious AS SELECT 42 AS answer", name)
        self._oid = self._facts()

    def _facts(self) -> str:
        return self.postgres.psql(
            "SELECT oid, datallowconn, datconnlimit FROM pg_database WHERE datname = '%s'" % self.name
        )

    def is_untouched(self, leftovers: bool = False) -> None:
        """`leftovers`: a database beside it may be there, as its maker was killed."""
        tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"
        objects = "SELECT count(*) FROM pg_largeobject_metadata"
        assert self._facts() == self._oid
        assert self.postgres.psql(tables, self.name) == self._content
        assert self.postgres.psql(objects, self.name) == "0\n"
        beside = [name for name in databases_like(self.postgres, self.name) if name != self.name]
        for name in beside:
            assert leftovers and name.startswith(self.name + "_pgstream_")
            self.postgres.dropdb(name)
