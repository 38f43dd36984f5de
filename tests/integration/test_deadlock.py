# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A statement of the tail that the server ends for a deadlock is made again; any other fault fails the restore."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Iterator

import psycopg2
import pytest
from _pgstream import restore as verb
from _pgstream.errors import BackupError

from tests.support import compare
from tests.support.runs import KeptLog, back_up, local_storage, restore, server_of, wait_until
from tests.support.servers import PostgresServer

TABLES = """
CREATE TABLE parent (id int); CREATE UNIQUE INDEX parent_id ON parent (id);
CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent (id));
INSERT INTO parent SELECT generate_series(1, 100); INSERT INTO child SELECT g, g FROM generate_series(1, 100) g;
CREATE INDEX ON child (parent);
"""


@pytest.fixture(scope="module")
def patient() -> Iterator[PostgresServer]:
    """A server that looks for deadlocks late enough for one to be made."""
    with PostgresServer(settings=["deadlock_timeout=3s"]) as server:
        server.createdb("source")
        server.psql(TABLES, "source")
        yield server


class Rival:
    """Has a lock that the foreign key needs next, and asks for the one that its statement has. Never the victim."""

    def __init__(self, server: Any, database: str) -> None:
        self._connection = psycopg2.connect(server.dsn(database))
        self._cursor = self._connection.cursor()
        self._cursor.execute("SET deadlock_timeout = '1h'; LOCK TABLE parent IN SHARE MODE")
        self._server = server
        self._thread = threading.Thread(target=self._cross)
        self._thread.start()

    def _cross(self) -> None:
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%FOREIGN KEY%'"
        wait_until(lambda: self._server.psql(waits).strip() != "0", "the foreign key")
        self._cursor.execute("LOCK TABLE child IN ACCESS EXCLUSIVE MODE")
        self._connection.rollback()

    def end(self) -> None:
        self._thread.join()
        self._connection.close()


@pytest.fixture
def rivals(monkeypatch: pytest.MonkeyPatch, patient: PostgresServer) -> None:
    tail = verb._Run._tail

    def contested(self: Any, database: str, *rest: Any) -> None:
        rival = Rival(patient, database)
        try:
            tail(self, database, *rest)
        finally:
            rival.end()

    monkeypatch.setattr(verb._Run, "_tail", contested)


def test_what_fell_to_a_deadlock_is_made_again(patient: PostgresServer, tmp_path: Path, rivals: None) -> None:
    storage, log = local_storage(tmp_path / "store"), KeptLog()
    key = back_up(server_of(patient), "source", storage).key
    patient.createdb("copy")
    restore(server_of(patient), storage, key, log, database="copy", jobs=2)
    assert [fields["statements"] for _level, event, fields in log.lines if event == "made_again"] == [1]
    assert compare.differences(patient, "source", patient, "copy") == []


def test_another_fault_fails_the_restore(
    patient: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = local_storage(tmp_path / "store")
    key = back_up(server_of(patient), "source", storage).key
    patient.createdb("refused")
    tail = verb._Run._tail

    def spoilt(self: Any, database: str, *rest: Any) -> None:
        patient.psql("INSERT INTO parent VALUES (1)", database)
        tail(self, database, *rest)

    monkeypatch.setattr(verb._Run, "_tail", spoilt)
    with pytest.raises(BackupError, match="could not create unique index"):
        restore(server_of(patient), storage, key, database="refused", jobs=2)
    assert patient.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace", "refused") == "0\n"
