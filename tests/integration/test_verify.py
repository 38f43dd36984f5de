# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Verification against real servers: a drill restores all of it and leaves nothing, however it ends; what is damaged
in a bucket is found; the result is told to the ledger, to a monitor and to whoever lists."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any, Dict, Iterator

import pytest
from _pgstream import drill, restore, verify
from _pgstream.errors import BackupError, IntegrityError, Interrupted, ServerError
from _pgstream.ledger import Ledger
from _pgstream.model import VerifyRequest, VerifyResult
from _pgstream.target import DRILL

from tests.support.compare import connect
from tests.support.receiver import Receiver
from tests.support.runs import KeptLog, back_up, command_env, local_storage, s3_storage, server_of, wait_until

DRILL_NAMES = "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') LIKE '%s%%'" % DRILL
DRILLS = "SELECT count(*) FROM pg_database WHERE datname LIKE '%\\_pgstream\\_%'"


def prove(storage: Any, key: str, level: str, server: Any = None, log: Any = None, **more: Any) -> VerifyResult:
    fields = {"server": server} if server is not None else {}
    return verify.verify(VerifyRequest(storage, key, level, **fields, **more), log or KeptLog())


@pytest.fixture
def nothing_left(postgres: Any) -> Iterator[None]:
    """No scratch database before the test, and none after it."""
    assert postgres.psql(DRILLS).strip() == "0"
    yield
    assert postgres.psql(DRILLS).strip() == "0"


@pytest.fixture
def shop(postgres: Any, database: str) -> str:
    postgres.psql(
        "CREATE TABLE customer AS SELECT g AS id, 'row ' || g AS t FROM generate_series(1, 2000) g;"
        "CREATE TABLE empty (id int); CREATE TABLE part (id int, at date) PARTITION BY RANGE (id);"
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (50);"
        "CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (50) TO (100);"
        "INSERT INTO part SELECT g, DATE '2026-01-01' + g FROM generate_series(0, 99) g",
        database,
    )
    return database


# Every level


@pytest.mark.every_major
def test_every_level_of_a_whole_backup(
    postgres: Any, everything: str, quick_s3: Any, quick_bucket: str, nothing_left: None
) -> None:
    server, storage = server_of(postgres), s3_storage(quick_s3, quick_bucket, prefix="nightly")
    made = back_up(server, everything, storage, jobs=4)
    for level in ("index", "content", "restore"):
        log = KeptLog()
        more: Dict[str, Any] = {"server": server, "compare_source": True} if level == "restore" else {}
        result = prove(storage, "latest", level, log=log, source_database=everything, jobs=4, **more)
        assert (result.verified, result.level, result.key, result.rows) == (True, level, made.key, made.rows)
        assert (result.database, log.database, log.operation) == (everything, everything, "verify")
        assert result.tables == made.tables and result.stored_bytes == made.stored_bytes
        # A drill leaves out the tables that extensions bring rows of their own to.
        assert result.compared_tables > 300 if more else result.compared_tables == 0
        assert [event for event in log.events() if event in ("started", "verified")] == ["started", "verified"]
        assert not [fields for _level, _event, fields in log.lines if "level" in fields]  # that is a line's own
        if level != "index":
            assert result.raw_bytes > made.raw_bytes * 0.9 and result.bytes_read > made.stored_bytes * 0.9


def test_a_changed_byte_in_a_bucket(postgres: Any, shop: str, s3: Any, bucket: str, nothing_left: None) -> None:
    server, storage = server_of(postgres), s3_storage(s3, bucket)
    made = back_up(server, shop, storage)
    data = bytearray(s3.client().get_object(Bucket=bucket, Key=made.key)["Body"].read())
    index = restore.catalog.describe(storage, made.key)
    block = next(one for one in index.blocks if one.section == "data")
    data[block.offset + block.length // 2] ^= 4
    s3.client().put_object(Bucket=bucket, Key=made.key, Body=bytes(data))
    assert prove(storage, made.key, "index").verified  # what that level does not read, it says nothing of
    for level in ("content", "restore"):
        with pytest.raises(IntegrityError) as caught:
            prove(storage, made.key, level, server)
        assert "byte %d" % block.offset in caught.value.message and made.url in caught.value.message


def test_the_definitions_that_a_restore_does_not_read_are_read(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None
) -> None:
    """A restore takes definitions from the schema block; the ones for `gunzip | psql` are part of the backup too."""
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, shop, storage)
    path = Path(storage.directory, made.key)
    data = bytearray(path.read_bytes())
    block = next(one for one in restore.catalog.describe(storage, made.key).blocks if one.section == "post")
    data[block.offset + block.length // 2] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=r"1 of 2 blocks is damaged: block \d+ \(post at byte"):
        prove(storage, made.key, "restore", server)


def test_a_dump_of_another_tool(postgres: Any, shop: str, tmp_path: Path, nothing_left: None) -> None:
    storage = local_storage(tmp_path / "store")
    dump = subprocess.run(
        [str(Path(postgres.bindir, "pg_dump")), shop], env=postgres.env(), stdout=subprocess.PIPE, check=True
    ).stdout
    packed = subprocess.run(["gzip", "-c"], input=dump, stdout=subprocess.PIPE, check=True).stdout
    Path(storage.directory, "old.sql.gz").write_bytes(packed)
    content = prove(storage, "old.sql.gz", "content")
    assert (content.verified, content.foreign, content.raw_bytes) == (True, True, len(dump))
    drilled = prove(storage, "old.sql.gz", "restore", server_of(postgres))
    assert (drilled.foreign, drilled.rows) == (True, 2100)


# The source


@pytest.mark.parametrize(
    "change, said",
    [
        ("INSERT INTO customer VALUES (0, 'new')", '"public"."customer" (restored 2000 rows, the source has 2001)'),
        ("UPDATE customer SET t = 'other' WHERE id = 7", '"public"."customer" (as many rows, other contents)'),
        ("UPDATE part SET at = at + 1 WHERE id = 70", '"public"."part_1" with 1 other partitions (as many rows'),
    ],
)
def test_a_source_that_differs(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None, change: str, said: str
) -> None:
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, shop, storage)
    # Rewritten, the same rows stand in another order.
    postgres.psql("CREATE INDEX i ON customer (t); CLUSTER customer USING i; DROP INDEX i", shop)
    same = prove(storage, made.key, "restore", server, compare_source=True)
    assert same.compared_tables == 4
    postgres.psql(change, shop)
    assert prove(storage, made.key, "restore", server).verified
    with pytest.raises(IntegrityError) as caught:
        prove(storage, made.key, "restore", server, compare_source=True)
    assert "1 of 3 tables differ from the source: " + said in caught.value.message
    assert made.snapshot_at in caught.value.hint


def test_a_source_that_is_not_there_is_said_before_anything_is_done(
    postgres: Any, databases: Any, tmp_path: Path, nothing_left: None
) -> None:
    storage, server, name = local_storage(tmp_path / "store"), server_of(postgres), databases()
    made = back_up(server, name, storage)
    postgres.dropdb(name)
    log = KeptLog()
    with pytest.raises(ServerError, match="does not exist"):
        prove(storage, made.key, "restore", server, log, compare_source=True)
    assert "drill" not in log.events()


# What a drill leaves: nothing


def test_a_restore_that_fails_midway(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that a constraint needs does what it cannot do there: the rows are in, the indexes fail."""
    postgres.psql(
        "CREATE FUNCTION only_here(t text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN"
        " IF current_database() <> '%s' THEN RAISE 'not here'; END IF; RETURN t; END $$;"
        "CREATE INDEX ON customer (only_here(t))" % shop,
        shop,
    )
    storage, server, seen = local_storage(tmp_path / "store"), server_of(postgres), []
    made = back_up(server, shop, storage)
    drop = drill._drop

    def watched(*arguments: Any) -> Any:
        seen.extend(postgres.psql(DRILL_NAMES).split())
        return drop(*arguments)

    monkeypatch.setattr(drill, "_drop", watched)
    with pytest.raises(BackupError, match="not here") as caught:
        prove(storage, made.key, "restore", server)
    assert caught.value.exit_code == 1 and caught.value.stage == "indexes and constraints"
    assert seen == []  # the restore has dropped its own already


def test_a_drill_that_is_asked_to_stop_while_it_cleans_up(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first signal raises in the middle of the drop; later ones do nothing."""
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, shop, storage)
    statement, asked = drill._drop_statement, []

    def interrupted(name: str) -> str:
        if not asked:
            asked.append(name)
            raise Interrupted("Interrupted by SIGTERM")
        return statement(name)

    monkeypatch.setattr(drill, "_drop_statement", interrupted)
    with pytest.raises(Interrupted):
        prove(storage, made.key, "restore", server)
    assert len(asked) == 1


def test_rows_that_do_not_arrive(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restore is content, the table is not: only a count in the restored database tells."""
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, shop, storage)
    whole = restore.restore

    def loses(request: Any, log: Any) -> Any:
        done = whole(request, log)
        postgres.psql("DELETE FROM part WHERE id = 3", request.database)
        return done

    monkeypatch.setattr(restore, "restore", loses)
    with pytest.raises(IntegrityError, match='"part_1" with 1 other partitions has 99 rows, .* index says 100'):
        prove(storage, made.key, "restore", server)


def test_a_role_that_may_not_make_databases(postgres: Any, shop: str, tmp_path: Path, nothing_left: None) -> None:
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), shop, storage)
    role = "r_" + shop
    postgres.psql("CREATE ROLE %s LOGIN PASSWORD 'secret-of-a-role'" % role)
    try:
        server = server_of(postgres, user=role, password="secret-of-a-role")
        with pytest.raises(BackupError, match="permission denied to create database.*CREATEDB"):
            prove(storage, made.key, "restore", server, no_owner=True)
    finally:
        postgres.psql("DROP ROLE " + role)


def test_a_long_name_and_one_that_wants_quotes(
    postgres: Any, databases: Any, tmp_path: Path, nothing_left: None
) -> None:
    name = 'Sh"\u00f6p ' * 9
    postgres.psql('ALTER DATABASE %s RENAME TO "%s"' % (databases(), name.replace('"', '""')))
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    try:
        made = back_up(server, name, storage)
        assert prove(storage, made.key, "restore", server).verified
    finally:
        postgres.dropdb(name)


def test_what_a_killed_drill_left_is_dropped_by_the_next(
    postgres: Any, shop: str, tmp_path: Path, nothing_left: None
) -> None:
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, shop, storage)
    left = ["x_pgstream_drill_0123abcd", "x_pgstream_drill_f123_pgstream_0123456789ab"]
    others = ["x_pgstream_drill_89abcdef", "x_pgstream_drill_notes", "x_pgstream_drill_01234567"]
    ids = {left[0]: "0123abcd", left[1]: "f123abcd", others[0]: "89abcdef", others[1]: "of my own"}
    for name in left + others:  # the last is called as one, and is none
        postgres.createdb(name)
        if name in ids:
            postgres.psql("COMMENT ON DATABASE %s IS '%s%s'" % (name, DRILL, ids[name]))
    try:
        # Of a drill at work, in another database than ours: it holds its lock.
        with connect(postgres, shop) as holder:
            holder.cursor().execute("SELECT pg_advisory_lock(%s, %s)", (drill._LOCK_CLASS, 0x89ABCDEF - (1 << 32)))
            prove(storage, made.key, "restore", server)
            found = postgres.psql("SELECT datname FROM pg_database WHERE datname LIKE 'x\\_pg%' ORDER BY 1").split()
        assert found == sorted(others)
    finally:
        for name in left + others:
            postgres.dropdb(name)


# The command


def test_a_drill_that_is_asked_to_stop(
    engine_env: Any, postgres: Any, pg_proxy: Any, shop: str, s3: Any, bucket: str, start: Any, tmp_path: Path,
    nothing_left: None,
) -> None:  # fmt: skip
    """SIGTERM while rows are loaded: no database is left, the ledger has it, and the webhook is told."""
    back_up(server_of(postgres), shop, s3_storage(s3, bucket))
    with Receiver() as receiver:
        env = command_env(engine_env, postgres, shop, s3, bucket, BACKUP_STATE_DIR=str(tmp_path),
                          BACKUP_WEBHOOK_URL=receiver.url, POSTGRES_PORT=str(pg_proxy.port))  # fmt: skip
        gate = pg_proxy.gate(b'COPY "public"."customer"')
        command = start(env, "verify", "latest", "--level", "restore", "--jobs", "1")
        gate.wait(command)
        assert postgres.psql(DRILLS).strip() == "1"
        command.signal(signal.SIGTERM)
        gate.release()
        outcome = command.finish()
        (hook,) = [each.json for each in receiver.got]
    assert outcome.code == 1 and "Interrupted by SIGTERM" in outcome.message
    (run,) = Ledger(str(tmp_path)).view().runs
    assert (run.operation, run.level, run.database, run.status) == ("verify", "restore", shop, "failure")
    assert (hook["event"], hook["operation"], hook["database"]) == ("failure", "verify", shop)
    assert hook["key"] == run.key != "" and "Interrupted by SIGTERM" in hook["message"]


def test_the_command_notes_what_it_verified(
    engine_env: Any, postgres: Any, shop: str, s3: Any, bucket: str, start: Any, tmp_path: Path, nothing_left: None
) -> None:
    env = command_env(engine_env, postgres, shop, s3, bucket, BACKUP_STATE_DIR=str(tmp_path))
    made = start(env, "backup").finish().result
    without = {name: value for name, value in env.items() if name not in ("POSTGRES_HOST", "POSTGRES_USER")}
    outcome = start(without, "verify", "latest").finish()  # no server is asked
    assert outcome.code == 0, outcome.err
    result = outcome.result
    assert (result["verified"], result["level"], result["rows"], result["key"]) == (True, "content", 2100, made["key"])
    drilled = start({**env, "BACKUP_VERIFY_LEVEL": "restore"}, "verify", made["key"], "--compare-source").finish()
    assert drilled.code == 0 and drilled.result["compared_tables"] == 4, drilled.err

    (listed,) = start(env, "list", "--json").finish().result["backups"]
    assert listed["verified_level"] == "restore" and listed["verified_at"] >= drilled.result["started_at"][:19]
    metrics = start(env, "metrics", "--textfile", str(tmp_path / "m.prom")).finish()
    assert metrics.code == 0, metrics.err
    text = (tmp_path / "m.prom").read_text()
    for level in ("index", "content", "restore"):
        assert 'pgbackup_last_verification_success{database="%s",level="%s"} 1.0' % (shop, level) in text

    s3.client().put_object(Bucket=bucket, Key=made["key"], Body=b"nothing of the kind")
    failed = start(env, "verify", made["key"]).finish()
    assert failed.code == 6 and made["key"] in failed.message
    (listed,) = start(env, "list", "--json").finish().result["backups"]
    assert (listed["verified_at"], listed["verified_level"]) == ("", "")  # a fault takes it back
    for arguments, code in ((["verify", "no.sql.gz"], 5), (["verify", "latest", "--level", "all"], 2)):
        assert start(env, *arguments).finish().code == code
    assert start({**without, "BACKUP_VERIFY_LEVEL": "restore"}, "verify", made["key"]).finish().code == 2


def test_pings_of_a_backup(
    engine_env: Any, postgres: Any, shop: str, s3: Any, bucket: str, start: Any, tmp_path: Path
) -> None:
    """Good, failed, stopped while it works, and with a monitor that is down: the backup is what it would be."""
    secret = tmp_path / "ping"

    def run(*arguments: str, **more: Any) -> Any:
        env = command_env(engine_env, postgres, shop, s3, bucket, BACKUP_PING_URL_FILE=str(secret),
                          BACKUP_NOTIFY="start,success,failure", **more)  # fmt: skip
        return start(env, *arguments)

    with Receiver() as receiver:
        secret.write_text(receiver.url + "/hidden-uuid\n")
        assert run("backup").finish().code == 0
        assert receiver.paths() == ["/hidden-uuid/start", "/hidden-uuid"]
        receiver.got.clear()
        assert run("backup", "--dry-run").finish().code == 0 and run("list").finish().code == 0
        assert receiver.got == []
        failed = run("backup", POSTGRES_PASSWORD="not-the-password").finish()
        assert failed.code == 3 and receiver.paths() == ["/hidden-uuid/start", "/hidden-uuid/fail"]
        assert b"password authentication failed" in receiver.got[1].body
        assert b"not-the-password" not in receiver.got[1].body and "hidden-uuid" not in failed.err
        receiver.got.clear()
        assert run("backup", POSTGRES_HOST=None).finish().code == 2
        assert receiver.paths() == ["/hidden-uuid/start", "/hidden-uuid/fail"]
        receiver.got.clear()
        with connect(postgres, shop) as holder:
            holder.cursor().execute("BEGIN; LOCK TABLE public.customer IN ACCESS EXCLUSIVE MODE")
            command = run("backup", BACKUP_LOCK_TIMEOUT="100s")
            waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = '%s' AND wait_event_type = 'Lock'" % shop
            wait_until(lambda: postgres.psql(waits).strip() != "0", "the backup to wait for the lock")
            command.signal(signal.SIGTERM)
            assert command.finish().code == 1
        assert receiver.paths() == ["/hidden-uuid/start", "/hidden-uuid/fail"]
        assert b"Interrupted by SIGTERM" in receiver.got[1].body
    keys = s3.keys(bucket)
    down = run("backup", "--key", "down.sql.gz").finish()  # nobody listens there any more
    assert down.code == 0 and down.result["key"] == "down.sql.gz" and s3.keys(bucket) == sorted([*keys, "down.sql.gz"])
    assert [line["event"] for line in down.errors] == ["not_notified", "not_notified"]
    assert "hidden-uuid" not in down.err + down.out
