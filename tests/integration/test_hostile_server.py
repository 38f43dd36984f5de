# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a role, a database or a server is set to does not change what is backed up and restored, nor end it early."""

from __future__ import annotations

import os
import socket
from typing import Any, Callable, Dict, Iterator

import pytest
from _pgstream.clients import Clients
from _pgstream.session import Session

from tests.support.compare import differences
from tests.support.runs import Background, back_up, copy_out, local_storage, restore, server_of, wait_until
from tests.support.servers import PostgresServer

SETTINGS: Dict[str, str] = {
    "statement_timeout": "1s",
    "lock_timeout": "1s",
    "idle_in_transaction_session_timeout": "1s",
    "default_transaction_read_only": "on",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "row_security": "on",
    "search_path": "nowhere",
    "client_encoding": "LATIN1",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "TimeZone": "Asia/Kathmandu",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "log_statement": "all",
}
LATER = {14: ("idle_session_timeout", "1s"), 17: ("transaction_timeout", "1s")}
QUERY_AGE = (
    "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgstream.backup'"
    " AND clock_timestamp() - query_start > '1500ms'"
)


@pytest.fixture
def role(postgres: PostgresServer, databases: Callable[[], str]) -> Iterator[str]:
    """A superuser. What it owns goes with the databases, or to postgres."""
    postgres.psql("CREATE ROLE hostile SUPERUSER LOGIN PASSWORD 'hostile'")
    yield "hostile"
    for name in postgres.psql("SELECT datname FROM pg_database WHERE datname LIKE 'test%'").split():
        postgres.psql("REASSIGN OWNED BY hostile TO postgres; DROP OWNED BY hostile", name)
    postgres.psql("DROP OWNED BY hostile; DROP ROLE hostile")


def make_hostile(postgres: PostgresServer, role: str) -> None:
    """Every session of the role begins in a bad way from now on."""
    later = [entry for major, entry in LATER.items() if postgres.version // 10000 >= major]
    for name, value in [*SETTINGS.items(), *later]:
        postgres.psql("ALTER ROLE %s SET %s = '%s'" % (role, name, value))


@pytest.mark.every_major
def test_everything_comes_back_equal(
    postgres: PostgresServer, everything: str, databases: Callable[[], str], role: str, tmp_path: Any
) -> None:
    """Equal to what the same role restores without those settings: some objects belong to who restores them."""
    tame, copy = databases(), databases()
    storage, server = local_storage(tmp_path / "store"), server_of(postgres, user=role, password=role)
    before = back_up(server, everything, storage, key="before.sql.gz")
    restore(server, storage, before.key, database=tame, strategy="swap", keep_old=False)
    make_hostile(postgres, role)
    made = back_up(server, everything, storage, jobs=2, key="made.sql.gz")
    restore(server, storage, made.key, database=copy, strategy="swap", keep_old=False, jobs=2)
    assert made.rows == before.rows and differences(postgres, tame, postgres, copy) == []


@pytest.mark.every_major
def test_no_timeout_of_the_role_ends_a_long_copy(
    postgres: PostgresServer, database: str, databases: Callable[[], str], role: str, pg_proxy: Any, tmp_path: Any
) -> None:
    """The COPY, the leader that only waits, and the load are held for longer than every timeout that the role has."""
    make_hostile(postgres, role)
    copy, storage = databases(), local_storage(tmp_path / "store")
    postgres.psql("CREATE TABLE big AS SELECT g, repeat('x', 1000) FROM generate_series(1, 20000) g", database)
    slow = server_of(postgres, user=role, password=role, port=pg_proxy.port)

    def held(run: Background, gate: Any, sessions: str) -> Any:
        wait_until(lambda: gate.reached.is_set() or not run.running, "the rows")
        wait_until(lambda: postgres.psql(QUERY_AGE) == sessions or not run.running, "more than a second")
        gate.release()
        return run.result()

    gate = pg_proxy.gate(copy_out("big"), after=1 << 20)
    made = held(Background(lambda: back_up(slow, database, storage, jobs=1)), gate, "2\n")
    gate = pg_proxy.gate(b'COPY "public"."big"', after=0)
    run = Background(lambda: restore(slow, storage, made.key, database=copy, strategy="swap", keep_old=False))
    held(run, gate, "2\n")
    assert postgres.psql("SELECT count(*) FROM big", copy) == "20000\n"


def test_a_peer_that_is_gone_without_a_word_is_noticed(postgres: PostgresServer) -> None:
    """Every connection asks the network whether the other side is there; an option of the user's wins."""
    expected = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 120000}
    for own, changed in ((), {}), ((("keepalives_idle", "7"),), {"TCP_KEEPIDLE": 7}):
        server = server_of(postgres, connect_params=own)
        with Session(server, "postgres") as session:
            with socket.socket(fileno=os.dup(session._connection.fileno())) as connection:
                found = {
                    name: connection.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in expected
                }
        assert found == {**expected, **changed}
        conninfo = Clients(postgres.bindir, 15, 0, server).conninfo("postgres")
        assert "keepalives_idle='%d'" % found["TCP_KEEPIDLE"] in conninfo and "tcp_user_timeout='120000'" in conninfo
    assert "tcp_user_timeout" not in Clients(postgres.bindir, 11, 0, server_of(postgres)).conninfo("postgres")
