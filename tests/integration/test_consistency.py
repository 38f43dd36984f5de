# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The backup is the snapshot, whatever others do meanwhile, and they wait no longer than ACCESS SHARE explains."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from _pgstream.errors import BackupError

from tests.support.compare import differences
from tests.support.runs import (
    Background,
    KeptLog,
    back_up,
    local_storage,
    restore,
    s3_storage,
    server_of,
    sessions,
    wait_until,
)

TABLES = """
CREATE TABLE written (id int PRIMARY KEY, text text);
INSERT INTO written SELECT g, g || repeat(' before', 200) FROM generate_series(1, 5000) g; -- a task of its own
CREATE TABLE altered AS SELECT g AS id FROM generate_series(1, 300) g;
CREATE TABLE truncated AS SELECT g AS id FROM generate_series(1, 300) g;
CREATE TABLE dropped AS SELECT g AS id FROM generate_series(1, 300) g;
CREATE TABLE zero ();
INSERT INTO zero DEFAULT VALUES;
"""
# Before a worker locks anything: what queues behind the leader's locks now is in every worker's way.
WORKER_BEGINS = b"BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
WRITES = """
SET lock_timeout = '1ms';
INSERT INTO written SELECT g, 'during' FROM generate_series(5001, 6000) g;
UPDATE written SET text = 'changed' WHERE id % 3 = 0;
DELETE FROM written WHERE id % 5 = 0;
INSERT INTO altered VALUES (-1);
DELETE FROM truncated WHERE id < 100;
CREATE TABLE new AS SELECT 1 AS one;
"""
CHANGES = {
    "altered": "ALTER TABLE altered ADD COLUMN more int DEFAULT 7",
    "truncated": "TRUNCATE truncated",
    "dropped": "DROP TABLE dropped",
}
WAITING = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"


@pytest.mark.parametrize("jobs", [1, 4])
def test_others_write_and_alter_during_a_backup(
    postgres: Any, databases: Callable[[], str], pg_proxy: Any, s3: Any, bucket: str, jobs: int
) -> None:
    source, copy, before = databases(), databases(), databases()
    postgres.psql(TABLES, source)
    postgres.dropdb(before)
    postgres.createdb(before, template=source)
    log, storage = KeptLog(), s3_storage(s3, bucket)
    gate = pg_proxy.gate(WORKER_BEGINS)
    server = server_of(postgres, port=pg_proxy.port)
    run = Background(lambda: back_up(server, source, storage, log, jobs=jobs))
    wait_until(lambda: gate.reached.is_set() or not run.running, "a worker")

    # Writers are never blocked: a lock that is not free within a millisecond is an error.
    postgres.psql(WRITES, source)
    # What needs the whole table waits, and with it everybody behind it: but not the backup.
    waiting = [Background(lambda sql=sql: postgres.psql(sql, source)) for sql in CHANGES.values()]
    wait_until(lambda: postgres.psql(WAITING, source).strip() == str(len(CHANGES)), "three waiting sessions")
    assert run.running and all(change.running for change in waiting)

    gate.release()
    made = run.result()
    for change in waiting:
        change.result()
    assert "copied_by_leader" in log.events()
    assert postgres.psql("SELECT count(*), min(more) FROM altered", source) == "301|7\n"
    assert postgres.psql("SELECT count(*) FROM truncated", source) == "0\n"
    assert sessions(postgres) == []

    restore(server_of(postgres), storage, made.key, database=copy, strategy="swap", keep_old=False)
    assert differences(postgres, before, postgres, copy) == []
    assert made.rows == 5000 + 3 * 300 + 1


def test_a_lock_that_is_held_ends_the_backup_in_time(
    postgres: Any, database: str, s3: Any, bucket: str
) -> None:
    """Somebody holds ACCESS EXCLUSIVE and does not let go: one clear error, nothing stored, no lock left."""
    postgres.psql(TABLES, database)
    import psycopg2

    holder = psycopg2.connect(postgres.dsn(database))
    try:
        holder.cursor().execute("LOCK TABLE altered IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(BackupError) as caught:
            back_up(server_of(postgres), database, s3_storage(s3, bucket), lock_timeout=1)
        assert "canceling statement due to lock timeout" in str(caught.value)
        assert "locking tables" in str(caught.value) and "lock_timeout" in caught.value.hint
        assert s3.keys(bucket) == []
        assert s3.uploads(bucket) == []
    finally:
        holder.close()
    assert back_up(server_of(postgres), database, s3_storage(s3, bucket)).rows == 5901


def test_a_change_that_waits_before_pg_dump_has_its_locks(
    postgres: Any, database: str, pg_proxy: Any, s3: Any, bucket: str
) -> None:
    """pg_dump takes its locks after the leader's: who queues in between is in its way. It gives up after lock_timeout,
    says so, and the other session gets what it waits for."""
    postgres.psql(TABLES, database)
    gate = pg_proxy.gate(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    server = server_of(postgres, port=pg_proxy.port)
    run = Background(lambda: back_up(server, database, s3_storage(s3, bucket), lock_timeout=2))
    wait_until(lambda: gate.reached.is_set() or not run.running, "pg_dump")
    change = Background(lambda: postgres.psql(CHANGES["altered"], database))
    wait_until(lambda: postgres.psql(WAITING, database).strip() == "1", "a waiting session")
    gate.release()
    try:
        made = run.result()
    except BackupError as error:
        assert "schema dump" in str(error) and "Another session waits for a lock" in error.hint
        assert s3.keys(bucket) == []
    else:
        assert made.rows == 5901
    change.result()
    assert postgres.psql("SELECT count(more) FROM altered", database) == "300\n"
    assert sessions(postgres) == []


# As pgbench's own, for fewer accounts.
TRANSFER = """
\\set aid random(1, 3000)
\\set tid random(1, 10)
\\set delta random(-5000, 5000)
BEGIN;
UPDATE pgbench_accounts SET abalance = abalance + :delta WHERE aid = :aid;
UPDATE pgbench_tellers SET tbalance = tbalance + :delta WHERE tid = :tid;
UPDATE pgbench_branches SET bbalance = bbalance + :delta WHERE bid = 1;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (:tid, 1, :aid, :delta, CURRENT_TIMESTAMP);
END;
"""
BALANCES = """
SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
       (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),
       (SELECT count(*) FROM pgbench_history)
"""
BACKUPS = 20


@pytest.fixture
def bench(postgres: Any, database: str, tmp_path: Path) -> Iterator[str]:
    """A database in which money moves between accounts all the time."""
    program, script = os.path.join(postgres.bindir, "pgbench"), tmp_path / "transfer.sql"
    if not os.path.exists(program):
        pytest.skip("no pgbench beside this server's programs")
    script.write_text(TRANSFER)
    env = postgres.env(database)
    subprocess.run([program, "-i", "-q", "-s", "1"], env=env, stderr=subprocess.DEVNULL, check=True)
    postgres.psql("DELETE FROM pgbench_accounts WHERE aid > 3000", database)
    postgres.psql("VACUUM FULL pgbench_accounts", database)
    command = [program, "-n", "-c", "2", "-T", "3600", "-R", "300", "-f", str(script)]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    yield database
    assert process.poll() is None, "pgbench ended by itself"
    process.kill()
    process.wait()


def test_the_balances_agree_in_every_backup_under_load(
    postgres: Any, bench: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    server, storage, copy = server_of(postgres), local_storage(tmp_path / "store"), databases()
    transfers = [0]
    for number in range(BACKUPS):
        moved = "SELECT count(*) > %d FROM pgbench_history" % transfers[-1]
        wait_until(lambda sql=moved: postgres.psql(sql, bench) == "t\n", "another transfer")
        made = back_up(server, bench, storage, key="bench%d.sql.gz" % number, jobs=2)
        restore(server, storage, made.key, database=copy, strategy="swap", keep_old=False, analyze=False)
        *sums, count = postgres.psql(BALANCES, copy).strip().split("|")
        assert len(set(sums)) == 1 and sums[0], sums
        transfers.append(int(count))
    assert transfers == sorted(set(transfers))  # each of another moment
