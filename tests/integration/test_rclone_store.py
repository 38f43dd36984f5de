# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A database's whole way over SFTP: backed up, listed, verified, restored, pruned; and a run that is killed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest

from tests.support import compare
from tests.support.remotes import RemoteServer
from tests.support.runs import Command, Outcome, Proxy, command_env, copy_out, databases_like, sessions, wait_until
from tests.support.servers import find_rclone

DAY = 86400
SHOP = """
CREATE TABLE customer AS SELECT g AS id, 'name ' || g AS name, md5(g::text) AS note FROM generate_series(1, 50000) g;
ALTER TABLE customer ADD PRIMARY KEY (id);
CREATE TABLE orders (id serial PRIMARY KEY, customer int REFERENCES customer, placed timestamptz DEFAULT now());
INSERT INTO orders (customer) SELECT g FROM generate_series(1, 20000) g;
SELECT lo_from_bytea(0, 'a large object');
"""
COPY_OUT = copy_out("customer")


@pytest.fixture(scope="module")
def _sftp() -> Iterator[RemoteServer]:
    with RemoteServer("sftp") as server:
        yield server


@pytest.fixture
def sftp(_sftp: RemoteServer) -> RemoteServer:
    return _sftp.start()


@pytest.fixture
def root(sftp: RemoteServer) -> Path:
    path = sftp.root / ("d" + os.urandom(6).hex())
    path.mkdir()
    return path


@pytest.fixture
def env(postgres: Any, database: str, sftp: RemoteServer, root: Path, engine_env: Dict[str, str]) -> Dict[str, str]:
    postgres.psql(SHOP, database)
    return command_env(
        engine_env,
        postgres,
        database,
        **sftp.remote("backups"),
        BACKUP_STORE="rclone:backups:" + root.name,
        BACKUP_RCLONE_PATH=find_rclone(),
        BACKUP_PREFIX="db1",
        RCLONE_CONFIG="/notfound",
    )


@pytest.fixture
def command(start: Callable[..., Command], env: Dict[str, str]) -> Callable[..., Outcome]:
    def run(*arguments: str, **changes: str) -> Outcome:
        return start({**env, **changes}, *arguments).finish()

    return run


def stored(root: Path) -> List[str]:
    return sorted(str(each.relative_to(root)) for each in root.rglob("*") if each.is_file())


def test_the_whole_way(postgres: Any, database: str, command: Callable[..., Outcome], root: Path) -> None:
    checked = command("check")
    assert checked.code == 0, checked.err
    made = command("backup", "--jobs", "2")
    assert made.code == 0, made.err
    key = made.result["key"]
    assert stored(root) == [key] and made.result["url"].endswith(":%s/%s" % (root.name, key))
    (shown,) = command("list").result["backups"]
    assert (shown["key"], shown["rows"], shown["foreign"]) == (key, 70000, False)

    again = command("backup", BACKUP_KEY=key.partition("/")[2])
    assert again.code == 0 and again.result["changed"] is False

    proved = command("verify", key, "--level", "content")
    assert proved.code == 0 and proved.result["rows"] == 70000, proved.err

    copy = database + "_copy"
    try:
        restored = command("restore", "latest", "--target-db", copy, "--create", "--jobs", "2")
        assert restored.code == 0, restored.err
        assert compare.differences(postgres, database, postgres, copy) == []
    finally:
        postgres.dropdb(copy)

    second = command("backup")
    pruned = command("prune", "--keep-last", "1")
    assert pruned.code == 0, pruned.err
    assert [one["key"] for one in pruned.result["removed"]] == [key] and stored(root) == [second.result["key"]]
    missing = command("verify", key)
    assert missing.code == 5 and "Backup not found" in missing.message


def test_damage_is_found(postgres: Any, database: str, command: Callable[..., Outcome], root: Path) -> None:
    key = command("backup").result["key"]
    content = bytearray((root / key).read_bytes())
    content[len(content) // 2] ^= 1
    (root / key).write_bytes(content)
    assert command("verify", key).code == 6
    copy = database + "_copy"
    assert command("restore", key, "--target-db", copy, "--create").code == 6
    assert databases_like(postgres, copy) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_run_that_is_ended(
    postgres: Any,
    env: Dict[str, str],
    start: Callable[..., Command],
    pg_proxy: Proxy,
    root: Path,
    number: signal.Signals,
) -> None:
    """Killed, it leaves a partial object, which is no backup and goes with a later one; asked to stop, nothing."""
    gate = pg_proxy.gate(COPY_OUT, after=1 << 20)
    run = start({**env, "POSTGRES_PORT": str(pg_proxy.port)}, "backup", "--jobs", "1")
    gate.wait(run)
    (left,) = stored(root)
    assert left.endswith(".partial")
    os.kill(run.pid, number)
    outcome = run.finish()
    assert outcome.code == (1 if number == signal.SIGTERM else -signal.SIGKILL)
    gate.release()
    wait_until(lambda: not run.family() and not sessions(postgres), "the end of all it started")
    assert start(env, "list").finish().result["backups"] == []
    assert stored(root) == ([] if number == signal.SIGTERM else [left])
    if number == signal.SIGKILL:
        first = start(env, "backup").finish()
        assert first.code == 0 and stored(root) == sorted([left, first.result["key"]])  # it may be at work elsewhere
        then = time.time() - DAY - 60
        os.utime(root / left, (then, then))
        wait_until(lambda: int(time.time()) > int((root / first.result["key"]).stat().st_mtime), "the next second")
        second = start(env, "backup").finish()
        assert second.code == 0, second.err
        assert stored(root) == sorted([first.result["key"], second.result["key"]])


def test_the_remote_dies_in_a_backup(
    postgres: Any, env: Dict[str, str], start: Callable[..., Command], pg_proxy: Proxy, sftp: RemoteServer, root: Path
) -> None:
    gate = pg_proxy.gate(COPY_OUT, after=1 << 20)
    changes = {"POSTGRES_PORT": str(pg_proxy.port), "BACKUP_STALL_TIMEOUT": "1s"}
    run = start({**env, **changes}, "backup", "--jobs", "1")
    gate.wait(run)
    sftp.kill()
    gate.release()
    outcome = run.finish()
    assert outcome.code == 4 and "rclone, at rclone:backups:" in outcome.message, outcome.err
    assert env["RCLONE_CONFIG_BACKUPS_PASS"] not in outcome.out + outcome.err
    sftp.start()
    assert all(name.endswith(".partial") for name in stored(root))
    assert start(env, "list").finish().result["backups"] == []


def test_a_remote_that_is_not_there(command: Callable[..., Outcome], root: Path) -> None:
    outcome = command("backup", BACKUP_STORE="rclone:backups:no/such/place")
    assert outcome.code == 4 and "rclone mkdir backups:no/such/place" in outcome.message
    outcome = command("list", BACKUP_STORE="rclone:other:x")
    assert outcome.code == 2 and "didn't find section" in outcome.message
    outcome = command("list", BACKUP_STORE="rclone::sftp,host=h,pass=unseen:x")
    assert outcome.code == 2 and "BACKUP_STORE" in outcome.message and "unseen" not in outcome.err
    assert stored(root) == []
