# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A hot standby can be backed up; a conflict with what it replays is named."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any, Iterator

import pytest
from _pgstream.errors import BackupError

from tests.support.compare import differences
from tests.support.runs import Background, Proxy, back_up, copy_out, local_storage, restore, server_of, wait_until
from tests.support.servers import PostgresServer, _launch_argv

TABLES = """
CREATE TABLE big AS SELECT g AS id, repeat('x', 1000) AS text FROM generate_series(1, 20000) g;
CREATE TABLE small (id serial PRIMARY KEY, note text);
INSERT INTO small (note) SELECT 'note ' || g FROM generate_series(1, 10) g;
SELECT lo_from_bytea(4711, 'large');
"""


class Primary(PostgresServer):
    def _prepare(self) -> None:
        super()._prepare()
        hosts = ["host %s all 127.0.0.1/32 scram-sha-256" % what for what in ("replication", "all")]
        self._write("pg_hba.conf", ["local all all peer map=tests", *hosts])


class Standby(PostgresServer):
    """A copy of a running primary that replays what that does. It gives in to it at once, not to the backup."""

    def __init__(self, primary: PostgresServer) -> None:
        super().__init__(primary.bindir, settings=["max_standby_streaming_delay=0", "hot_standby=on"])
        self.password = primary.password
        self._primary = primary

    def _prepare(self) -> None:
        data, sockets = self.base / "data", self.base / "s"
        for path, mode in ((data, 0o700), (sockets, 0o755)):
            path.mkdir(mode)
            os.chown(str(path), self._user.uid, self._user.gid)
        self.socket_dir = str(sockets)
        arguments = ["-D", str(data), "-R", "-X", "stream", "-c", "fast", "-d", self._primary.dsn("postgres")]
        argv = [os.path.join(self.bindir, "pg_basebackup"), *arguments]
        subprocess.run(_launch_argv(argv, self._user, signal.SIGKILL), cwd=str(self.base), check=True)


@pytest.fixture(scope="module")
def primary() -> Iterator[PostgresServer]:
    with Primary(settings=["wal_level=replica", "max_wal_senders=4"]) as server:
        server.createdb("shop")
        server.psql(TABLES, "shop")
        yield server


@pytest.fixture(scope="module")
def standby(primary: PostgresServer) -> Iterator[PostgresServer]:
    with Standby(primary) as server:
        assert server.psql("SELECT pg_is_in_recovery()") == "t\n"
        yield server


def test_a_standby_is_backed_up(primary: PostgresServer, standby: PostgresServer, tmp_path: Any) -> None:
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(standby), "shop", storage, jobs=2)
    assert made.rows == 20010
    restore(server_of(primary), storage, made.key, database="shop_copy", create=True)
    assert differences(primary, "shop", primary, "shop_copy") == []
    primary.dropdb("shop_copy")


def test_two_backups_of_a_standby_are_never_at_work_at_once(
    primary: PostgresServer, standby: PostgresServer, tmp_path: Any
) -> None:
    storage = local_storage(tmp_path / "store")
    with Proxy(standby.port) as proxy:
        gate = proxy.gate(copy_out("big"), after=1 << 20)
        run = Background(lambda: back_up(server_of(standby, port=proxy.port), "shop", storage, jobs=1))
        wait_until(lambda: gate.reached.is_set() or not run.running, "the rows")
        with pytest.raises(BackupError) as caught:
            back_up(server_of(standby), "shop", storage)
        assert caught.value.exit_code == 8
        gate.release()
        run.result()


def test_a_conflict_with_recovery_is_named(primary: PostgresServer, standby: PostgresServer, tmp_path: Any) -> None:
    """The primary drops a table that the backup has locked: the standby ends the backup's sessions to follow it."""
    storage = local_storage(tmp_path / "store")
    primary.psql("CREATE TABLE doomed AS SELECT 1 AS one", "shop")
    there = "SELECT count(*) FROM pg_class WHERE relname = 'doomed'"
    wait_until(lambda: standby.psql(there, "shop") == "1\n", "the table on the standby")
    with Proxy(standby.port) as proxy:
        gate = proxy.gate(copy_out("big"), after=1 << 20)
        run = Background(lambda: back_up(server_of(standby, port=proxy.port), "shop", storage, jobs=1))
        wait_until(lambda: gate.reached.is_set() or not run.running, "the rows")
        primary.psql("DROP TABLE doomed", "shop")
        wait_until(lambda: standby.psql(there, "shop") == "0\n", "the standby to follow")
        gate.release()
        with pytest.raises(BackupError) as caught:
            run.result()
    said = caught.value.sentence()
    assert "conflict with recovery" in said and "max_standby_streaming_delay" in said
    assert caught.value.exit_code == 3
    assert os.listdir(str(tmp_path / "store")) == []


def test_a_restore_into_a_standby_is_refused(standby: PostgresServer, primary: PostgresServer, tmp_path: Any) -> None:
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(primary), "shop", storage)
    with pytest.raises(BackupError) as caught:
        restore(server_of(standby), storage, made.key, database="copy", create=True)
    assert "read-only" in caught.value.message or "recovery" in caught.value.message
