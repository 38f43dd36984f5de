# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Restores that meet others at work on the same server: none drops what it did not make."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from _pgstream import cluster, target
from _pgstream import restore as verb
from _pgstream.errors import BackupError, LockedError, TargetError
from _pgstream.events import Log
from _pgstream.model import Storage

from tests.support.runs import (
    Background,
    Command,
    KeptLog,
    Proxy,
    back_up,
    command_env,
    databases_like,
    local_storage,
    restore,
    server_of,
    wait_until,
)

# The unique index fails in any other database: a restore with rows loaded and nothing to show for it.
SPOILT = """
CREATE FUNCTION first(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT n';
CREATE FUNCTION which(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS
    $$ BEGIN RETURN CASE WHEN current_database() = '{source}' THEN n ELSE 0 END; END $$;
CREATE TABLE t AS SELECT g AS a FROM generate_series(1, 3) g;
CREATE UNIQUE INDEX t_which ON t (public.which(a));
"""


@pytest.fixture
def sound(postgres: Any, databases: Callable[[], str], tmp_path: Path) -> Tuple[Storage, str]:
    """A backup that can be restored."""
    source = databases()
    postgres.psql("CREATE TABLE t AS SELECT g AS a FROM generate_series(1, 9) g", source)
    storage = local_storage(tmp_path / "sound")
    return storage, back_up(server_of(postgres), source, storage).key


@pytest.fixture
def spoilt(postgres: Any, databases: Callable[[], str], tmp_path: Path) -> Tuple[Storage, str]:
    """A backup that cannot."""
    source = databases()
    postgres.psql(SPOILT.format(source=source), source)
    storage = local_storage(tmp_path / "spoilt")
    return storage, back_up(server_of(postgres), source, storage).key


def value(postgres: Any, sql: str, database: str) -> str:
    return str(postgres.psql(sql, database)).strip()


def ended(postgres: Any, gate: Any) -> None:
    """End the session that is held."""
    sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE client_port = %d" % gate.client_port
    assert value(postgres, sql, "postgres") == "1"
    wait_until(lambda: value(postgres, sql, "postgres") == "0", "psql's session to end")


def held(proxy: Proxy, pattern: bytes, postgres: Any, backup: Tuple[Storage, str], log: Log, **options: Any) -> Any:
    """A restore that stands before the server hears this."""
    gate = proxy.gate(pattern)
    run = Background(lambda: restore(server_of(postgres, port=proxy.port), *backup, log=log, jobs=1, **options))
    wait_until(lambda: gate.reached.is_set() or not run.running, "the restore")
    assert run.running
    return gate, run


def test_the_second_of_two_in_place_is_refused(
    postgres: Any, database: str, sound: Tuple[Storage, str], pg_proxy: Proxy
) -> None:
    """Both were planned while the database was empty; the second comes before the first has made anything."""
    gate, first = held(pg_proxy, b"CREATE TABLE public.t", postgres, sound, Log(), database=database)
    with pytest.raises(LockedError) as caught:
        restore(server_of(postgres), *sound, database=database)
    assert caught.value.exit_code == 8
    gate.release()
    assert first.result().rows == 9 and value(postgres, "SELECT count(*) FROM t", database) == "9"


def test_a_database_that_was_filled_since_it_was_planned(
    postgres: Any, database: str, sound: Tuple[Storage, str], pg_proxy: Proxy
) -> None:
    """The other one has told its success: what it restored stays."""
    gate, late = held(pg_proxy, b"pg_try_advisory_lock", postgres, sound, Log(), database=database)
    assert restore(server_of(postgres), *sound, database=database).rows == 9
    gate.release()
    with pytest.raises(TargetError, match="is not empty any more") as caught:
        late.result()
    assert caught.value.exit_code == 7 and value(postgres, "SELECT count(*) FROM t", database) == "9"


@pytest.mark.parametrize(
    "moment, table, end",
    [
        (b"CREATE UNIQUE INDEX t_which", "mine", False),  # a table of another name
        (b"CREATE TABLE public.t", "t", False),  # of a name that comes next
        (b"CREATE FUNCTION public.first", "t", True),  # of one that the run never comes to
    ],
    ids=["other name", "same name", "same name, killed before"],
)
def test_what_others_make_meanwhile_is_not_dropped(
    postgres: Any,
    database: str,
    spoilt: Tuple[Storage, str],
    pg_proxy: Proxy,
    moment: bytes,
    table: str,
    end: bool,
) -> None:
    log = KeptLog()
    gate, run = held(pg_proxy, moment, postgres, spoilt, log, database=database)
    postgres.psql("CREATE TABLE %s AS SELECT 7 AS a" % table, database)
    if end:
        ended(postgres, gate)
    gate.release()
    with pytest.raises(BackupError):
        run.result()
    assert value(postgres, "SELECT a FROM %s" % table, database) == "7"
    (told,) = [fields for _level, event, fields in log.lines if event == "not_emptied"]
    assert "nothing was dropped" in told["message"]


EVERY_KIND = """
CREATE TYPE mood AS ENUM ('ok'); CREATE TYPE "pair x" AS (a int, b mood); CREATE DOMAIN short AS text;
CREATE TYPE floats AS RANGE (subtype = float8); CREATE FUNCTION f(a mood, VARIADIC b text[]) RETURNS mood
    LANGUAGE sql IMMUTABLE AS 'SELECT a'; CREATE FUNCTION "f g"(OUT a int, b "pair x") LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE p(a numeric(5, 2), b timestamptz) LANGUAGE sql AS '';
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
CREATE FUNCTION up(bigint) RETURNS bigint LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE ups(*) (SFUNC = up, STYPE = bigint);
CREATE FUNCTION same(mood, mood) RETURNS boolean LANGUAGE sql AS 'SELECT true';
CREATE OPERATOR === (LEFTARG = mood, RIGHTARG = mood, FUNCTION = same); CREATE OPERATOR FAMILY "fam y" USING btree;
CREATE FUNCTION to_mood(int) RETURNS mood LANGUAGE sql AS 'SELECT ''ok''::mood';
CREATE CAST (int AS mood) WITH FUNCTION to_mood(int);
CREATE COLLATION coll (locale = 'C'); CREATE TEXT SEARCH CONFIGURATION conf (COPY = simple);
CREATE TEXT SEARCH DICTIONARY dict (TEMPLATE = simple); CREATE PUBLICATION pub; CREATE FOREIGN DATA WRAPPER wrap;
CREATE SERVER far FOREIGN DATA WRAPPER wrap; CREATE FOREIGN TABLE ft (a int) SERVER far;
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER et ON ddl_command_end
    EXECUTE FUNCTION on_ddl(); CREATE CONVERSION conv FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8;
CREATE MATERIALIZED VIEW empty AS SELECT 1 AS one WITH NO DATA; CREATE TABLE ident (a int GENERATED ALWAYS AS IDENTITY);
CREATE STATISTICS stat ON a, b FROM two; SELECT lo_from_bytea(4242, 'ours');
"""


@pytest.mark.every_major
@pytest.mark.parametrize(
    "moment, theirs",
    [
        (b"CREATE UNIQUE INDEX t_which", ""),
        (b"CREATE TABLE public.two", ""),  # behind a materialized view that nobody can read
        (b"CREATE UNIQUE INDEX t_which", "SELECT lo_from_bytea(777, 'precious')"),
        (b"CREATE UNIQUE INDEX t_which", "CREATE FUNCTION f(a text) RETURNS int LANGUAGE sql AS 'SELECT 1'"),
        (b"CREATE UNIQUE INDEX t_which", "CREATE TYPE theirs AS ENUM ('a')"),
        (b"CREATE FUNCTION public.which", "SELECT lo_from_bytea(777, 'precious')"),
    ],
    ids=["none", "none, killed before", "large object", "function", "type", "large object before"],
)
def test_objects_of_every_kind_are_told_from_others(
    postgres: Any,
    database: str,
    databases: Callable[[], str],
    tmp_path: Path,
    pg_proxy: Proxy,
    moment: bytes,
    theirs: str,
) -> None:
    source, log = databases(), KeptLog()
    postgres.psql("CREATE TABLE two (a int, b int);" + EVERY_KIND + SPOILT.format(source=source), source)
    storage = local_storage(tmp_path / "store")
    backup = storage, back_up(server_of(postgres), source, storage).key
    gate, run = held(pg_proxy, moment, postgres, backup, log, database=database)
    if theirs:
        postgres.psql(theirs, database)
    if moment != b"CREATE UNIQUE INDEX t_which":
        ended(postgres, gate)
    gate.release()
    with pytest.raises(BackupError):
        run.result()
    with target.Session(server_of(postgres), database) as session:
        left = [each.identity for each in target.objects(session) if each.kind != "extension"]
    if not theirs:
        assert left == [] and "not_emptied" not in log.events()
        return
    (told,) = [fields for _level, event, fields in log.lines if event == "not_emptied"]
    assert "nothing was dropped" in told["message"]
    named = {"SELECT lo": "777", "CREATE FU": "public.f(", "CREATE TY": "public.theirs"}[theirs[:9]]
    assert named in told["message"] and any(each.startswith(named) for each in left), left


def test_odd_names_are_known_as_the_run_s_own(
    postgres: Any, database: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    """Names, and an owner who is gone, with spaces and letters of no ASCII: the database is empty again."""
    source, role = databases(), "own \u00e9r " + os.urandom(4).hex()
    sql = (
        SPOILT
        + """
        CREATE ROLE "{role}"; CREATE SCHEMA "s \u00e9 x"; CREATE TABLE "s \u00e9 x"."a "" b\nc" (id serial);
        ALTER TABLE "s \u00e9 x"."a "" b\nc" OWNER TO "{role}"; CREATE VIEW "v w" AS SELECT 1 AS one;
        CREATE MATERIALIZED VIEW "m w" AS SELECT 1 AS one; ALTER VIEW "v w" OWNER TO "{role}"; SELECT lo_create(1);
    """
    )
    postgres.psql(sql.format(source=source, role=role), source)
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), source, storage)
    postgres.psql('DROP OWNED BY "{role}" CASCADE; DROP ROLE "{role}"'.format(role=role), source)
    with pytest.raises(BackupError, match="t_which"):
        restore(server_of(postgres), storage, made.key, database=database, no_owner=True)
    left = "SELECT (SELECT count(*) FROM pg_class WHERE oid > 16383 AND relkind IN ('r', 'v', 'm', 'S')),"
    left += " (SELECT count(*) FROM pg_largeobject_metadata), (SELECT count(*) FROM pg_namespace WHERE oid > 16383"
    assert value(postgres, left + " AND nspname !~ '^pg_')", database) == "0|0|0"


def test_a_database_that_took_the_place_meanwhile(
    postgres: Any, database: str, sound: Tuple[Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A swap ends the sessions of the restore in place, which then finds another database under the name."""
    reached, released = threading.Event(), threading.Event()
    tail = verb._Run._tail

    def fails(run: Any, name: str, *arguments: Any) -> None:
        if name != database:
            return tail(run, name, *arguments)
        reached.set()
        released.wait()
        raise BackupError("no tail")

    monkeypatch.setattr(verb._Run, "_tail", fails)
    log = KeptLog()
    run = Background(lambda: restore(server_of(postgres), *sound, log=log, database=database))
    wait_until(lambda: reached.is_set() or not run.running, "the restore in place")
    old = restore(server_of(postgres), *sound, database=database, strategy="swap").old_database
    released.set()
    with pytest.raises(BackupError, match="no tail"):
        run.result()
    (told,) = [fields for _level, event, fields in log.lines if event == "not_emptied"]
    assert "another database is called" in told["message"]
    assert value(postgres, "SELECT count(*) FROM t", database) == "9"
    postgres.dropdb(old)


def test_a_database_of_the_temporary_name(
    postgres: Any, databases: Callable[[], str], sound: Tuple[Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is none of ours, and stays; the name is no matter of the correlation id."""
    name = databases()
    postgres.dropdb(name)
    for number, options in enumerate(({}, {"correlation_id": "mine"})):
        other = name + "_pgstream_" + ("0" * 12 if not number else "mine")
        postgres.createdb(other)
        try:
            with monkeypatch.context() as patch:
                if not number:
                    patch.setattr(target.secrets, "token_hex", lambda count: "0" * 2 * count)
                    with pytest.raises(BackupError, match="already exists"):
                        restore(server_of(postgres), *sound, database=name, create=True, **options)
                else:
                    assert restore(server_of(postgres), *sound, database=name, create=True, **options).rows == 9
            assert other in databases_like(postgres, name)
        finally:
            postgres.dropdb(other)


def test_a_replaced_database_that_cannot_be_dropped(postgres: Any, database: str, sound: Tuple[Storage, str]) -> None:
    """The restored one is in its place: that is a success, and the old one is named."""
    postgres.psql(
        "CREATE SUBSCRIPTION pgstream_s CONNECTION 'dbname=none' PUBLICATION p"
        " WITH (connect = false, slot_name = NONE, enabled = false)",
        database,
    )
    log = KeptLog()
    done = restore(server_of(postgres), *sound, log=log, database=database, strategy="swap", keep_old=False)
    try:
        assert done.rows == 9 and done.old_database in databases_like(postgres, database)
        (told,) = [fields for _level, event, fields in log.lines if event == "not_dropped"]
        assert told["object"] == done.old_database and "subscription" in told["message"]
    finally:
        postgres.psql("DROP SUBSCRIPTION pgstream_s", done.old_database or database)
        postgres.dropdb(done.old_database)


@pytest.fixture
def command(
    postgres: Any, database: str, sound: Tuple[Storage, str], pg_proxy: Proxy, engine_env: Dict[str, str], start: Any
) -> Callable[..., Command]:
    env = command_env(engine_env, postgres, database, BACKUP_STORE="file://" + sound[0].directory)
    env["POSTGRES_PORT"] = str(pg_proxy.port)
    return lambda *options: start(env, "restore", sound[1], "--strategy", "swap", *options)


def test_stopped_while_the_replaced_database_is_dropped(
    postgres: Any, database: str, pg_proxy: Proxy, command: Callable[..., Command]
) -> None:
    gate = pg_proxy.gate(b"DROP DATABASE")
    run = command("--drop-old")
    gate.wait(run)
    run.signal(signal.SIGTERM)
    outcome = run.finish()
    assert outcome.code == 0, outcome.err
    kept = outcome.result["old_database"]
    assert databases_like(postgres, database) == sorted([database, kept])
    assert [line["object"] for line in outcome.errors + outcome.lines[:-1] if line["event"] == "not_dropped"] == [kept]
    assert value(postgres, "SELECT count(*) FROM t", database) == "9"
    postgres.dropdb(kept)


def test_killed_at_the_rename(postgres: Any, database: str, pg_proxy: Proxy, command: Callable[..., Command]) -> None:
    """What is left says what it is: `all` does not mean it, and the next restore drops it."""
    gate = pg_proxy.gate(b"RENAME TO")
    run = command()
    gate.wait(run)
    run.signal(signal.SIGKILL)
    run.finish()
    pg_proxy.close()
    (left,) = [name for name in databases_like(postgres, database) if name != database]
    names: List[str] = cluster.select(server_of(postgres), ["all"], [], Log())
    postgres.psql('COMMENT ON DATABASE "%s" IS NULL' % database)
    assert database in names and left not in names
    postgres.dropdb(left)


def test_a_comment_alone_drops_no_database(
    postgres: Any, databases: Callable[[], str], sound: Tuple[Storage, str], tmp_path: Path
) -> None:
    """One that was left by a killed restore and put to use, and one that came with the backup of such."""
    name, copy, server = databases(), databases(), server_of(postgres)
    mark = target.UNFINISHED + name
    postgres.psql("COMMENT ON DATABASE \"%s\" IS '%s'" % (name, mark))
    postgres.createdb("other")
    storage = local_storage(tmp_path / "store")
    made = back_up(server, name, storage)
    restore(server, storage, made.key, database=copy, strategy="swap", keep_old=False)
    said = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '%s'"
    assert value(postgres, said % copy, "postgres") == ""
    postgres.psql("COMMENT ON DATABASE other IS '%s'; COMMENT ON DATABASE \"%s\" IS '%s'" % (mark, copy, mark))
    names: List[str] = cluster.select(server, ["all"], [], Log())
    log = KeptLog()
    restore(server, *sound, log=log, database=name, strategy="swap", keep_old=False)
    assert "swept" not in log.events() and {name, copy, "other"} <= set(names)
    assert postgres.psql("SELECT count(*) FROM pg_database WHERE datname IN ('%s', 'other')" % copy).strip() == "2"
    postgres.dropdb("other")


def test_the_comment_of_the_backup_comes_with_the_rename(
    postgres: Any, databases: Callable[[], str], tmp_path: Path
) -> None:
    source, copy = databases(), databases()
    postgres.psql("COMMENT ON DATABASE \"%s\" IS 'it''s ours'" % source)
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), source, storage)
    restore(server_of(postgres), storage, made.key, database=copy, strategy="swap", keep_old=False)
    said = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '%s'" % copy
    assert value(postgres, said, "postgres") == "it's ours"
