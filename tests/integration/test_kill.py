# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Something is killed mid-way. A backup leaves nothing in the store, a restore leaves the target as it was.

Mid-way is made certain, not probable: a proxy before the server holds one conversation at a chosen byte.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.support.runs import (
    Command,
    Gate,
    Outcome,
    Proxy,
    back_up,
    command_env,
    databases_like,
    local_storage,
    s3_storage,
    server_of,
    sessions,
    wait_until,
)

MIB = 1 << 20
# 36 MB of text that gzip halves. Where the backup is held, two blocks and with them one part of the upload are on
# their way, and the server has more to send than fits into buffers.
BIG = """
CREATE TABLE big AS SELECT g AS id, sha512((g || 'a')::bytea) a, sha512((g || 'b')::bytea) b,
    sha512((g || 'c')::bytea) c FROM generate_series(1, 90000) g;
CREATE TABLE small AS SELECT g AS id FROM generate_series(1, 10) g;
ALTER TABLE small ADD PRIMARY KEY (id);
"""
PG_DUMP_BEGINS = b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
COPY_OUT = b'COPY "public"."big"'


@pytest.fixture(scope="module")
def _big(request: pytest.FixtureRequest) -> Iterator[Dict[str, Any]]:
    made: Dict[str, Any] = {}
    yield made
    for postgres, name in made.values():
        postgres.start()
        postgres.dropdb(name)


@pytest.fixture
def big(postgres: Any, _big: Dict[str, Any]) -> str:
    if "it" not in _big:
        _big["it"] = (postgres, postgres.createdb("kill_source"))
        postgres.psql(BIG, "kill_source")
    return "kill_source"


class Held:
    """A run of the command that is held, and what must be true when it is over."""

    def __init__(self, postgres: Any, command: Command, gate: Gate) -> None:
        self.postgres, self.command, self.gate = postgres, command, gate
        gate.wait(command)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    def over(self) -> Outcome:
        """How it ended, after the check that nothing of it is left on this machine or on the server."""
        outcome = self.command.finish()
        if outcome.code == -signal.SIGKILL:
            self.gate.release()  # its children end when they next touch a pipe; all others must be dead by now
        wait_until(lambda: not self.command.family(), "the end of its children", timeout=30)
        self.gate.release()
        self.postgres_is_up()
        wait_until(lambda: not sessions(self.postgres), "the end of %s" % sessions(self.postgres))
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert self.postgres.psql(locks).strip() == "0"
        assert os.listdir(str(self.command.temporary)) == []
        return outcome

    def postgres_is_up(self) -> None:
        """After the death of a backend the server starts again by itself."""

        def answers() -> bool:
            try:
                return self.postgres.psql("SELECT 1") == "1\n"
            except RuntimeError:
                return False

        wait_until(answers, "the server")


def backend(postgres: Any, query: str) -> int:
    """The server process of the engine's session that runs this query."""
    sql = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgstream.backup' AND query LIKE '%s%%'" % query
    return int(postgres.psql(sql).split()[0])


# --- backup -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def held_backup(
    postgres: Any, big: str, s3: Any, bucket: str, pg_proxy: Proxy, engine_env: Dict[str, str], start: Any
) -> Callable[..., Held]:
    """Start a backup that is held in the table data with a part of the upload sent, or where `gate` says."""

    def begin(gate: Any = None, **changes: str) -> Held:
        gate = gate or pg_proxy.gate(COPY_OUT, after=20 * MIB)
        env = command_env(engine_env, postgres, big, s3, bucket, POSTGRES_PORT=str(pg_proxy.port), **changes)
        return Held(postgres, start(env, "backup", "--jobs", "1"), gate)

    return begin


def nothing_stored(s3: Any, bucket: str, list_backups: Callable[[], Outcome]) -> bool:
    return s3.keys(bucket) == [] and list_backups().result["backups"] == []


@pytest.fixture
def list_backups(postgres: Any, s3: Any, bucket: str, engine_env: Dict[str, str], start: Any) -> Callable[[], Outcome]:
    env = command_env(engine_env, postgres, "postgres", s3, bucket)
    return lambda: start(env, "list").finish()


def uploads(s3: Any, bucket: str) -> List[str]:
    return [entry["Key"] for entry in s3.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])]


def sent(s3: Any, bucket: str) -> int:
    """Bytes of uploads that are under way."""
    return sum(path.stat().st_size for path in Path(s3.root, bucket).glob("**/.rclone_temp_multipart_*"))


def test_psql_dies_in_a_backup(held_backup: Any, s3: Any, bucket: str, list_backups: Any) -> None:
    held = held_backup()
    wait_until(lambda: sent(s3, bucket) >= 7 * MIB, "a part of the upload")
    assert uploads(s3, bucket) and nothing_stored(s3, bucket, list_backups)
    (psql,) = held.command.children("psql")
    held.kill(psql)
    outcome = held.over()
    assert outcome.code == 1 and "psql was killed by signal 9" in outcome.message
    assert "Failed during table data" in outcome.message
    assert uploads(s3, bucket) == [] and nothing_stored(s3, bucket, list_backups)


def test_pg_dump_dies(held_backup: Any, pg_proxy: Proxy, s3: Any, bucket: str) -> None:
    held = held_backup(pg_proxy.gate(PG_DUMP_BEGINS))
    (pg_dump,) = held.command.children("pg_dump")
    held.kill(pg_dump)
    outcome = held.over()
    assert outcome.code == 1 and "Failed during schema dump: pg_dump was killed by signal 9" in outcome.message
    assert uploads(s3, bucket) == [] and s3.keys(bucket) == []


def test_the_backend_of_a_copy_dies(held_backup: Any, postgres: Any, s3: Any, bucket: str) -> None:
    held = held_backup()
    held.kill(backend(postgres, 'COPY "public"."big"'))
    held.gate.release()
    outcome = held.over()
    assert outcome.code in (1, 3) and "Failed during table data" in outcome.message
    assert "server closed the connection unexpectedly" in outcome.message or "terminat" in outcome.message
    assert uploads(s3, bucket) == [] and s3.keys(bucket) == []


def test_the_leaders_session_is_ended(
    held_backup: Any, pg_proxy: Proxy, postgres: Any, s3: Any, bucket: str
) -> None:
    """The locks and the snapshot are gone: what the other sessions read so far must not be committed."""
    held = held_backup()
    leader = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgstream.backup'"
    assert postgres.psql(leader + " AND state = 'idle in transaction'") == "t\n"
    held.gate.release()
    outcome = held.over()
    assert outcome.code in (1, 3)
    words = ("terminating connection due to administrator command", "server closed the connection unexpectedly")
    assert any(said in outcome.message for said in words)
    assert uploads(s3, bucket) == [] and s3.keys(bucket) == []


def test_the_store_dies(held_backup: Any, s3: Any, bucket: str, list_backups: Any) -> None:
    held = held_backup(BACKUP_STALL_TIMEOUT="1s")  # which also bounds for how long it is asked again
    s3.kill()
    held.gate.release()
    outcome = held.over()
    assert outcome.code == 4 and "inaccessible at http://127.0.0.1:%d" % s3.port in outcome.message
    s3.start()
    assert nothing_stored(s3, bucket, list_backups)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize("place", ["pg_dump", "psql"])
def test_a_backup_is_asked_to_stop(
    held_backup: Any, pg_proxy: Proxy, s3: Any, bucket: str, place: str, number: signal.Signals
) -> None:
    held = held_backup(pg_proxy.gate(PG_DUMP_BEGINS) if place == "pg_dump" else None)
    assert held.command.children(place)
    held.kill(held.command.pid, number)
    outcome = held.over()
    assert outcome.code == 1 and "Interrupted by %s" % number.name in outcome.message
    assert uploads(s3, bucket) == [] and s3.keys(bucket) == []


def test_a_backup_is_asked_to_stop_at_its_commit(
    postgres: Any, database: str, s3: Any, bucket: str, s3_proxy: Proxy, engine_env: Dict[str, str], start: Any
) -> None:
    """Every byte is there, and the call that makes an object of them has not reached the store."""
    gate = s3_proxy.gate(b"<CompleteMultipartUpload")
    endpoint = "http://127.0.0.1:%d" % s3_proxy.port
    env = command_env(engine_env, postgres, database, s3, bucket, RCLONE_S3_ENDPOINT=endpoint)
    held = Held(postgres, start(env, "backup"), gate)
    held.kill(held.command.pid, signal.SIGTERM)
    outcome = held.over()
    assert outcome.code == 1 and "Interrupted by SIGTERM" in outcome.message
    assert uploads(s3, bucket) == [] and s3.keys(bucket) == []


def test_a_backup_is_killed(held_backup: Any, s3: Any, bucket: str, list_backups: Any) -> None:
    held = held_backup()
    held.kill(held.command.pid)
    assert held.over().code == -signal.SIGKILL
    assert nothing_stored(s3, bucket, list_backups)


def test_a_backup_to_a_directory_is_killed(
    postgres: Any, big: str, pg_proxy: Proxy, engine_env: Dict[str, str], start: Any, tmp_path: Path
) -> None:
    """What a killed writer leaves is hidden, and gone with the next backup."""
    gate = pg_proxy.gate(COPY_OUT, after=20 * MIB)
    store = tmp_path / "store"
    store.mkdir()
    env = command_env(engine_env, postgres, big, BACKUP_STORE="file://%s" % store, POSTGRES_PORT=str(pg_proxy.port))
    held = Held(postgres, start(env, "backup", "--jobs", "1"), gate)
    assert start(env, "list").finish().result["backups"] == []
    held.kill(held.command.pid)
    assert held.over().code == -signal.SIGKILL
    assert all(name.startswith(".") for name in os.listdir(str(store)))
    assert start(env, "list").finish().result["backups"] == []
    made = back_up(server_of(postgres), "postgres", local_storage(store))
    assert os.listdir(str(store)) == [made.key]


def test_a_backup_to_a_directory_is_asked_to_stop(
    postgres: Any, big: str, pg_proxy: Proxy, engine_env: Dict[str, str], start: Any, tmp_path: Path
) -> None:
    gate = pg_proxy.gate(COPY_OUT, after=MIB)
    store = tmp_path / "store"
    store.mkdir()
    env = command_env(engine_env, postgres, big, BACKUP_STORE="file://%s" % store, POSTGRES_PORT=str(pg_proxy.port))
    held = Held(postgres, start(env, "backup", "--jobs", "1"), gate)
    assert os.listdir(str(store))
    held.kill(held.command.pid, signal.SIGTERM)
    assert held.over().code == 1
    assert os.listdir(str(store)) == []


# --- restore ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def _stored() -> Dict[str, str]:
    return {}


@pytest.fixture
def stored(postgres: Any, big: str, s3: Any, _stored: Dict[str, str]) -> Dict[str, str]:
    """A backup of the big database, in a bucket that the module shares."""
    if not _stored:
        bucket = s3.make_bucket("test-killed-restores")
        made = back_up(server_of(postgres), big, s3_storage(s3, bucket), jobs=1)
        _stored.update(bucket=bucket, key=made.key)
    return _stored


class Target:
    """An existing database with something in it, which a failed restore must not touch."""

    def __init__(self, postgres: Any, name: str) -> None:
        self.postgres, self.name = postgres, name
        postgres.psql("CREATE TABLE precious AS SELECT 42 AS answer", name)
        self.oid = self._oid()

    def _oid(self) -> str:
        return self.postgres.psql("SELECT oid FROM pg_database WHERE datname = '%s'" % self.name)

    def is_untouched(self) -> bool:
        tables = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        content = self.postgres.psql("SELECT answer FROM precious; " + tables, self.name)
        return self._oid() == self.oid and content == "42\nprecious\n"


@pytest.fixture
def target(postgres: Any, database: str) -> Target:
    return Target(postgres, database)


@pytest.fixture
def held_restore(
    postgres: Any, target: Target, s3: Any, stored: Dict[str, str], pg_proxy: Proxy, engine_env: Any, start: Any
) -> Callable[..., Held]:
    def begin(gate: Any = None, *arguments: str) -> Held:
        gate = gate or pg_proxy.gate(b'COPY "public"."big"', after=0)
        env = command_env(engine_env, postgres, target.name, s3, stored["bucket"], POSTGRES_PORT=str(pg_proxy.port))
        options = ["--strategy", "swap", "--jobs", "2", *arguments]
        return Held(postgres, start(env, "restore", stored["key"], *options), gate)

    return begin


def test_psql_dies_in_a_restore(held_restore: Any, postgres: Any, target: Target) -> None:
    held = held_restore()
    held.kill(held.command.children("psql")[0])
    outcome = held.over()
    assert outcome.code == 1 and "Failed during table data: psql was killed by signal 9" in outcome.message
    assert target.is_untouched() and databases_like(postgres, target.name) == [target.name]


def test_pg_restore_dies(held_restore: Any, pg_proxy: Proxy, postgres: Any, target: Target) -> None:
    held = held_restore(pg_proxy.gate(b"ADD CONSTRAINT small_pkey"))
    held.kill(min(held.command.children("pg_restore")))  # the one that the engine started; others are its own
    outcome = held.over()
    assert outcome.code == 1
    assert "Failed during indexes and constraints: pg_restore was killed by signal 9" in outcome.message
    assert target.is_untouched() and databases_like(postgres, target.name) == [target.name]


def test_the_backend_of_a_load_dies(held_restore: Any, postgres: Any, target: Target) -> None:
    held = held_restore()
    held.kill(backend(postgres, 'COPY "public"."big"'))
    held.gate.release()
    outcome = held.over()
    assert outcome.code in (1, 3) and "Failed during table data" in outcome.message
    # The server was starting again when the run cleaned up: it says so where that failed.
    left = [name for name in databases_like(postgres, target.name) if name != target.name]
    assert target.is_untouched() and (not left or "not_dropped" in outcome.err)
    for name in left:
        postgres.dropdb(name)


def test_the_store_comes_back_during_a_restore(held_restore: Any, s3: Any, postgres: Any, target: Target) -> None:
    """A broken connection to the store is resumed where it broke."""
    held = held_restore()
    s3.kill()
    s3.start()
    held.gate.release()
    outcome = held.over()
    assert outcome.code == 0 and outcome.result["rows"] == 90010
    assert postgres.psql("SELECT count(*) FROM big", target.name) == "90000\n"
    postgres.dropdb(outcome.result["old_database"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_restore_is_asked_to_stop(held_restore: Any, postgres: Any, target: Target, number: signal.Signals) -> None:
    held = held_restore()
    held.kill(held.command.pid, number)
    outcome = held.over()
    assert outcome.code == 1 and "Interrupted by %s" % number.name in outcome.message
    assert target.is_untouched() and databases_like(postgres, target.name) == [target.name]


def test_a_restore_is_killed(held_restore: Any, postgres: Any, target: Target) -> None:
    """Nobody is there to drop the half-made database, but it does not bear the target's name."""
    held = held_restore()
    held.kill(held.command.pid)
    assert held.over().code == -signal.SIGKILL
    assert target.is_untouched()
    (left,) = [name for name in databases_like(postgres, target.name) if name != target.name]
    assert left.startswith(target.name + "_pgstream_")
    postgres.dropdb(left)
