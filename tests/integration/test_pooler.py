# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""pgbouncer before the server: a pool of sessions is as good as the server itself, one of transactions is refused.

Wants the program pgbouncer (Debian's package of that name).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from _pgstream.errors import BackupError, ServerError

from tests.support.runs import back_up, local_storage, server_of, wait_until
from tests.support.servers import PostgresServer, _launch_argv, _unprivileged_user, free_port

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = pytest.mark.skipif(not PROGRAM, reason="no pgbouncer here: install your system's package")


@pytest.fixture
def pooler(postgres: PostgresServer, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """pooler(mode) -> port of a pgbouncer before `postgres`."""
    started = []

    def start(mode: str, size: int = 10) -> int:
        user, port = _unprivileged_user(), free_port()
        place = Path(postgres.base, "pooler-%d" % port)
        place.mkdir()
        (place / "users.txt").write_text('"%s" "%s"\n' % (postgres.user, postgres.password))
        (place / "ini").write_text(
            "[databases]\n* = host=127.0.0.1 port=%d\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = %d\n"
            "auth_type = plain\nauth_file = %s\npool_mode = %s\ndefault_pool_size = %d\nunix_socket_dir =\n"
            "ignore_startup_parameters = extra_float_digits\n" % (postgres.port, port, place / "users.txt", mode, size)
        )
        for path in (place, *place.iterdir()):
            os.chown(str(path), user.uid, user.gid)
        argv = _launch_argv([str(PROGRAM), "-q", str(place / "ini")], user, signal.SIGKILL)
        process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        started.append((process, place))

        def answers() -> bool:
            import psycopg2

            assert process.poll() is None
            try:
                psycopg2.connect(postgres.dsn() + " port='%d'" % port).close()
            except psycopg2.OperationalError:
                return False
            return True

        wait_until(answers, "pgbouncer")
        return port

    yield start
    for process, place in started:
        process.kill()
        process.wait()
        shutil.rmtree(str(place))


@pytest.mark.parametrize("mode, size", [("transaction", 10), ("transaction", 1), ("statement", 10)])
def test_a_pool_of_transactions_is_refused(
    postgres: PostgresServer, database: str, pooler: Any, tmp_path: Path, mode: str, size: int
) -> None:
    with pytest.raises(BackupError) as caught:
        back_up(server_of(postgres, port=pooler(mode, size)), database, local_storage(tmp_path / "store"))
    assert isinstance(caught.value, ServerError) and caught.value.exit_code == 3
    assert "a pooler in transaction mode" in caught.value.message and "session mode" in caught.value.hint
    # No setting of ours went astray to somebody else's session.
    assert os.listdir(str(tmp_path / "store")) == []


def test_a_pool_of_sessions_is_as_good_as_the_server(
    postgres: PostgresServer, database: str, pooler: Any, tmp_path: Path
) -> None:
    postgres.psql("CREATE TABLE t AS SELECT g FROM generate_series(1, 1000) g", database)
    made = back_up(server_of(postgres, port=pooler("session")), database, local_storage(tmp_path / "store"), jobs=2)
    assert made.rows == 1000
