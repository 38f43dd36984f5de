# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A part of a backup: rows without definitions, definitions without rows, and no byte read that is not needed."""

from __future__ import annotations

import gzip
import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import psycopg2
import pytest
from _pgstream import catalog
from _pgstream import restore as verb
from _pgstream.errors import BackupError, IntegrityError, TargetError, UsageError
from _pgstream.events import Log
from _pgstream.model import RestoreRequest

from tests.support import compare, fixture
from tests.support.agekeys import KeyPair
from tests.support.fake_s3 import FakeS3
from tests.support.runs import (
    Background,
    Command,
    Proxy,
    back_up,
    command_env,
    local_storage,
    restore,
    s3_storage,
    server_of,
    sessions,
    wait_until,
)

PAIR = KeyPair()
TABLES = """
CREATE SCHEMA sales;
CREATE TABLE sales.customer (id serial PRIMARY KEY, name text, boss int REFERENCES sales.customer);
CREATE TABLE sales.purchase (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, twice int GENERATED ALWAYS AS (amount * 2)
    STORED, customer int NOT NULL REFERENCES sales.customer, amount int,
    place int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE plain (id int, text text);
CREATE TABLE part (id int, customer int REFERENCES sales.customer) PARTITION BY RANGE (id);
CREATE TABLE part_low PARTITION OF part FOR VALUES FROM (0) TO (500);
CREATE TABLE part_high PARTITION OF part FOR VALUES FROM (500) TO (1000);
CREATE TABLE audit (who int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO public.audit VALUES (1); RETURN NULL; END $$;
CREATE TRIGGER noted AFTER INSERT ON plain FOR EACH ROW EXECUTE FUNCTION note();
CREATE INDEX plain_text ON plain (text);
CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM plain;
CREATE UNIQUE INDEX counted_n ON counted (n);
"""
ROWS = """
INSERT INTO sales.customer (name, boss) SELECT 'c' || g, greatest(g - 1, 1) FROM generate_series(1, 50) g;
INSERT INTO sales.purchase (customer, amount, place) SELECT 1 + g % 50, g, 1000 - g FROM generate_series(1, 900) g;
INSERT INTO plain SELECT g, md5(g::text) FROM generate_series(1, 700) g; TRUNCATE audit;
INSERT INTO part SELECT g, 1 + g % 50 FROM generate_series(0, 999) g;
SELECT setval('sales.customer_id_seq', 4000); SELECT lo_from_bytea(4711, 'large');
REFRESH MATERIALIZED VIEW counted;
"""
NAMES = ("sales.customer", "sales.purchase", "plain", "part_low", "part_high")


class Source:
    """One backup of that, for all tests on this server."""

    def __init__(self, postgres: Any, directory: Path) -> None:
        self.postgres, self.server, self.name = postgres, server_of(postgres), postgres.createdb("partial_source")
        postgres.psql(TABLES + ROWS, self.name)
        self.storage = local_storage(directory)
        self.key = back_up(self.server, self.name, self.storage, jobs=2).key

    def restore(self, target: str, **options: Any) -> Any:
        options = {"server": self.server, "storage": self.storage, "key": self.key, **options}
        places = [options.pop(name) for name in ("server", "storage", "key")]
        return restore(*places, database=target, **options)


@pytest.fixture(scope="session")  # as the servers: pytest may leave a module and come back for another major
def _sources() -> Dict[str, Source]:
    return {}


@pytest.fixture
def source(postgres: Any, _sources: Dict[str, Source], tmp_path_factory: pytest.TempPathFactory) -> Source:
    if postgres.bindir not in _sources:
        _sources[postgres.bindir] = Source(postgres, tmp_path_factory.mktemp("partial") / "store")
    return _sources[postgres.bindir]


@pytest.fixture
def bare(source: Source, database: str) -> str:
    """A database with the definitions and no rows."""
    source.restore(database, content="schema")
    return database


@pytest.fixture
def user(postgres: Any, databases: Callable[[], str]) -> str:
    """A role that may log in and nothing else, dropped with the server."""
    name = "user_" + os.urandom(4).hex()
    postgres.psql("CREATE ROLE %s LOGIN PASSWORD 'pass'" % name)
    return name


def value(source: Source, sql: str, database: str) -> str:
    return str(source.postgres.psql(sql, database)).strip()


def counts(source: Source, database: str) -> List[int]:
    return [int(value(source, "SELECT count(*) FROM ONLY %s" % name, database)) for name in NAMES]


def dumped(source: Source, database: str, *options: str) -> bytes:
    """Without what newer pg_dumps make up anew each time."""
    argv = [os.path.join(source.postgres.bindir, "pg_dump"), *options, database]
    text = subprocess.run(argv, env=source.postgres.env(), stdout=subprocess.PIPE, check=True).stdout
    return b"\n".join(line for line in text.split(b"\n") if not line.startswith((b"\\restrict", b"\\unrestrict")))


WITHOUT_ROWS = ("--schema-only", "--no-blobs")
FULL = [50, 900, 700, 500, 500]


# --- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.every_major
@pytest.mark.parametrize("strategy", ["in_place", "create", "swap"])
def test_definitions_without_rows(source: Source, database: str, strategy: str) -> None:
    """As pg_dump --schema-only has it, whatever the way; a materialized view stays unfilled."""
    postgres = source.postgres
    if strategy == "create":
        postgres.dropdb(database)
    elif strategy == "swap":
        postgres.psql("CREATE TABLE old ()", database)
    option = "auto" if strategy == "create" else strategy
    done = source.restore(database, content="schema", strategy=option, create=True, keep_old=False)
    assert (done.strategy, done.content, done.rows, done.tables, done.table_rows) == (strategy, "schema", 0, 0, ())
    assert "no rows" in done.message
    assert dumped(source, database, *WITHOUT_ROWS) == dumped(source, source.name, *WITHOUT_ROWS)
    assert counts(source, database) == [0] * 5
    assert value(source, "SELECT ispopulated FROM pg_matviews", database) == "f"
    assert value(source, "SELECT count(*) FROM pg_largeobject_metadata", database) == "0"
    assert value(source, "SELECT nextval('sales.customer_id_seq')", database) == "1"


def test_definitions_of_one_table(source: Source, database: str) -> None:
    source.restore(database, content="schema", tables=("plain",))
    there = "SELECT string_agg(relname, ' ' ORDER BY relname) FROM pg_class WHERE relnamespace = 'public'::regnamespace"
    assert value(source, there, database) == "plain plain_text"
    assert value(source, "SELECT count(*) FROM plain", database) == "0"
    assert value(source, "SELECT tgname FROM pg_trigger", database) == "noted"  # with the function that it calls


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.every_major
def test_all_rows_into_definitions(source: Source, bare: str) -> None:
    """Out of order, past foreign keys and triggers; and the whole is what it was."""
    done = source.restore(bare, content="data", jobs=4)
    assert (done.strategy, done.content, done.rows, done.tables) == ("in_place", "data", 2650, 6)
    assert counts(source, bare) == FULL and value(source, "SELECT count(*) FROM audit", bare) == "0"
    assert value(source, "SELECT nextval('sales.customer_id_seq')", bare) == "4001"
    source.postgres.psql("REFRESH MATERIALIZED VIEW counted; SELECT setval('sales.customer_id_seq', 4000)", bare)
    assert compare.differences(source.postgres, source.name, source.postgres, bare, properties=False) == []
    # All is on again: a trigger fires, a foreign key and what was deferred refuse.
    source.postgres.psql("INSERT INTO plain VALUES (0, '')", bare)
    assert value(source, "SELECT count(*) FROM audit", bare) == "1"
    for wrong in ("INSERT INTO part VALUES (1, 51)", "UPDATE sales.purchase SET place = 1 WHERE id < 3"):
        with psycopg2.connect(source.postgres.dsn(bare)) as client, pytest.raises(psycopg2.IntegrityError):
            client.cursor().execute(wrong + "; SET CONSTRAINTS ALL IMMEDIATE")
    assert sessions(source.postgres) == []


def test_rows_of_some_tables(source: Source, bare: str) -> None:
    """A table that is left out may hold what it likes."""
    source.postgres.psql("INSERT INTO plain VALUES (-1, 'mine')", bare)
    done = source.restore(bare, content="data", tables=("sales.purchase", "customer"))
    assert {(table.name, table.rows) for table in done.table_rows} == {("purchase", 900), ("customer", 50)}
    assert counts(source, bare) == [50, 900, 1, 0, 0]
    source.postgres.psql("INSERT INTO sales.purchase (customer) VALUES (50)", bare)
    assert value(source, "SELECT max(id) FROM sales.purchase", bare) == "901"
    assert value(source, "SELECT count(*) FROM pg_largeobject_metadata", bare) == "0"


@pytest.mark.every_major
def test_rows_that_refer_to_nothing(source: Source, bare: str) -> None:
    """The tables that they refer to are there, and empty: the server's own check finds it, and the rows go again."""
    for names, key in ((("sales.purchase",), "purchase_customer_fkey"), (("part_low",), "part_customer_fkey")):
        with pytest.raises(TargetError) as caught:
            source.restore(bare, content="data", tables=names)
        said = str(caught.value)
        assert "Failed during foreign keys: " in said and key in said and "is not present in table" in said
        assert counts(source, bare) == [0] * 5
    source.restore(bare, content="data", tables=("sales.customer",))
    assert source.restore(bare, content="data", tables=("sales.purchase", "part_low")).rows == 1400
    assert counts(source, bare) == [50, 900, 0, 500, 0]


@pytest.mark.every_major
def test_a_deferred_constraint_is_checked(source: Source, bare: str) -> None:
    """It is not asked in replica mode; here the target has one that the rows break."""
    key = "ALTER TABLE sales.customer ADD CONSTRAINT one UNIQUE (boss) DEFERRABLE INITIALLY DEFERRED"
    source.postgres.psql(key, bare)
    with pytest.raises(TargetError, match="did not confirm constraint one of"):
        source.restore(bare, content="data", tables=("sales.customer",))
    assert counts(source, bare) == [0] * 5
    assert value(source, "SELECT count(*) FROM pg_constraint WHERE conname = 'one'", bare) == "1"


REFUSALS: List[Tuple[str, str, str]] = [
    ("INSERT INTO audit VALUES (1)", 'that have some: the tables "public"."audit"', "TRUNCATE"),
    ("DROP TABLE plain CASCADE", 'lacks the tables "public"."plain"', "content schema"),
    ("ALTER TABLE plain ENABLE ALWAYS TRIGGER noted", "rows would fire the triggers and constraints noted", "Disable"),
]


@pytest.mark.parametrize("change, said, hint", REFUSALS, ids=["rows", "no table", "trigger"])
def test_tables_that_are_not_as_they_must_be(source: Source, bare: str, change: str, said: str, hint: str) -> None:
    """The run and its prediction say so, and nothing is changed."""
    source.postgres.psql(change, bare)
    before = compare.schema_text(source.postgres, bare)
    request = RestoreRequest(source.server, source.storage, source.key, bare, content="data")
    for attempt in (verb.restore, verb.predict_restore):
        with pytest.raises(TargetError) as caught:
            attempt(request, Log())
        assert said in str(caught.value) and hint in caught.value.hint and caught.value.exit_code == 7
    assert compare.schema_text(source.postgres, bare) == before
    assert value(source, "SELECT count(*) FROM sales.customer", bare) == "0"


def test_what_does_not_go_together(source: Source, bare: str, databases: Callable[[], str], tmp_path: Path) -> None:
    for wrong in ({"create": True}, {"strategy": "swap"}, {"content": "everything"}):
        with pytest.raises(UsageError):
            source.restore(bare, **{"content": "data", **wrong})
    storage, empty = local_storage(tmp_path / "foreign"), databases()
    Path(storage.directory, "dump.sql.gz").write_bytes(gzip.compress(dumped(source, source.name)))
    for content in ("data", "schema"):
        with pytest.raises(UsageError, match="is restored whole"):
            source.restore(empty, storage=storage, key="dump.sql.gz", content=content)
    with pytest.raises(TargetError, match="does not exist"):
        source.restore(bare + "_absent", content="data")


def test_a_name_that_the_backup_does_not_have(source: Source, database: str) -> None:
    """Not even beside one that it has: what was asked for would be missing without a word."""
    with pytest.raises(UsageError, match="nothing in the backup matches nowhere, plane, sales.plain"):
        source.restore(database, schemas=("sales", "nowhere"), tables=("plane", "plain", "sales.plain"))
    assert value(source, "SELECT count(*) FROM pg_namespace WHERE nspname = 'sales'", database) == "0"


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_failure_leaves_the_tables_empty(source: Source, bare: str, tmp_path: Path) -> None:
    """A byte of the rows, or of what comes last, is wrong. A table that refers to one of them keeps its own rows."""
    source.postgres.psql(
        "CREATE TABLE mine (id int REFERENCES sales.customer); INSERT INTO audit VALUES (1);"
        "ALTER TABLE mine DISABLE TRIGGER ALL; INSERT INTO mine VALUES (1)",
        bare,
    )
    index = catalog.describe(source.storage, source.key)
    names = ("sales.customer", "sales.purchase", "plain")
    for section, choice in (("data", names), ("rest", names[:2])):
        storage = local_storage(tmp_path / section)
        content = bytearray(Path(source.storage.directory, source.key).read_bytes())
        block = [block for block in index.blocks if block.section == section][0 if section == "rest" else -1]
        content[block.offset + block.length // 2] ^= 1
        Path(storage.directory, source.key).write_bytes(content)
        with pytest.raises(IntegrityError):
            source.restore(bare, storage=storage, content="data", tables=NAMES if section == "data" else choice)
        assert counts(source, bare) == [0] * 5, section
        assert value(source, "SELECT (SELECT count(*) FROM mine), (SELECT count(*) FROM audit)", bare) == "1|1"
    assert sessions(source.postgres) == []
    source.restore(bare, content="data", tables=NAMES)
    assert counts(source, bare) == FULL


def test_large_objects_come_all_or_not_at_all(source: Source, bare: str) -> None:
    source.postgres.psql("SELECT lo_create(4711)", bare)
    source.postgres.psql("TRUNCATE audit", bare)
    with pytest.raises(BackupError, match="4711"):
        source.restore(bare, content="data")
    assert counts(source, bare) == [0] * 5
    assert value(source, "SELECT count(*) FROM pg_largeobject", bare) == "0"


def test_one_at_a_time(source: Source, bare: str, pg_proxy: Proxy) -> None:
    """Two would find the tables empty and fill them twice."""
    gate = pg_proxy.gate(b"COPY ")
    server = server_of(source.postgres, port=pg_proxy.port)
    first = Background(lambda: source.restore(bare, server=server, content="data"))
    wait_until(lambda: gate.reached.is_set() or not first.running, "the first restore")
    with pytest.raises(BackupError) as caught:
        source.restore(bare, content="data")
    assert caught.value.exit_code == 8
    gate.release()
    assert first.result().rows == 2650 and counts(source, bare) == FULL


# --- who may ---------------------------------------------------------------------------------------------------------


@pytest.mark.every_major
def test_a_role_that_may_not_turn_triggers_off(source: Source, bare: str, user: str) -> None:
    """It owns the tables. One without triggers and foreign keys it may fill, any other is refused before a row."""
    owner = "".join("ALTER TABLE %s OWNER TO %s;" % (name, user) for name in (*NAMES, "audit", "part"))
    source.postgres.psql("CREATE TABLE free AS SELECT g AS id FROM generate_series(1, 9) g", source.name)
    made = back_up(source.server, source.name, source.storage, key="free.sql.gz")
    source.postgres.psql("DROP TABLE free", source.name)
    source.postgres.psql(owner + "CREATE TABLE free (id int); ALTER TABLE free OWNER TO %s;" % user, bare)
    source.postgres.psql("GRANT USAGE ON SCHEMA sales TO %s" % user, bare)
    server = server_of(source.postgres, user=user, password="pass")
    for table, what in (("plain", "noted"), ("part_low", "part_customer_fkey"), ("sales.purchase", "place_key")):
        with pytest.raises(TargetError) as caught:
            source.restore(bare, server=server, key=made.key, content="data", tables=(table,))
        assert what in str(caught.value) and "session_replication_role" in caught.value.hint
    assert source.restore(bare, server=server, key=made.key, content="data", tables=("free",)).rows == 9
    if int(value(source, "SHOW server_version_num", "postgres")) >= 150000:
        source.postgres.psql("GRANT SET ON PARAMETER session_replication_role TO %s" % user)
        try:
            source.postgres.psql("DELETE FROM plain", bare)
            assert source.restore(bare, server=server, key=made.key, content="data", tables=("plain",)).rows == 700
            assert value(source, "SELECT count(*) FROM audit", bare) == "0"
            names = ("sales.customer", "sales.purchase")
            with pytest.raises(TargetError, match="purchase_place_key .* permission denied .* must own"):
                source.restore(bare, server=server, key=made.key, content="data", tables=names)
            source.postgres.psql("GRANT CREATE ON SCHEMA sales TO %s" % user, bare)
            assert source.restore(bare, server=server, key=made.key, content="data", tables=names).rows == 950
        finally:
            source.postgres.psql("REVOKE SET ON PARAMETER session_replication_role FROM %s" % user)


ADDED = """
INSERT INTO fixture_section VALUES (1, 'one'), (2, 'two');
INSERT INTO fixture_entry VALUES (2000, 2, 'mine', false), (2001, 1, 'mine too', false);
"""


def test_rows_of_an_extensions_configuration(postgres: Any, databases: Callable[[], str], tmp_path: Path) -> None:
    """Those that it brings along are no obstacle, and outlive a failure; those that were added are an obstacle."""
    fixture.install_extension(postgres.bindir, str(fixture._server_sharedir(postgres)))
    origin, target = databases(), databases()
    for name in (origin, target):
        postgres.psql("CREATE EXTENSION pgstream_fixture", name)
    postgres.psql(ADDED, origin)
    storage, server = local_storage(tmp_path / "store"), server_of(postgres)
    made = back_up(server, origin, storage)
    postgres.psql("SELECT lo_create(1)", origin)
    other = back_up(server, origin, storage, key="other.sql.gz")
    postgres.psql("SELECT lo_create(1)", target)
    rows = "SELECT * FROM fixture_entry ORDER BY id; SELECT * FROM fixture_section ORDER BY id"
    before = postgres.psql(rows, target)
    with pytest.raises(BackupError):  # the large object is there already
        restore(server, storage, other.key, database=target, content="data")
    assert postgres.psql(rows, target) == before != ""
    assert restore(server, storage, made.key, database=target, content="data").rows == made.rows > 0
    assert postgres.psql(rows, target) == postgres.psql(rows, origin) != before
    with pytest.raises(TargetError, match="that have some: the tables .*fixture_entry"):
        restore(server, storage, made.key, database=target, content="data")


# --- what is read ----------------------------------------------------------------------------------------------------


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3() as server:
        server.make_bucket("backups")
        yield server


WIDE = """
CREATE TABLE large AS SELECT g AS id, sha256(g::text::bytea) AS x FROM generate_series(1, 150000) g;
CREATE TABLE small AS SELECT g AS id FROM generate_series(1, 10) g; CREATE TABLE counted (id serial);
SELECT nextval('counted_id_seq');
SELECT lo_from_bytea(0, decode(string_agg(md5(g::text), ''), 'hex')) FROM generate_series(1, 300000) g;
"""


def spans(fake: FakeS3) -> List[Tuple[int, int]]:
    """The ranges that were asked for: first byte, byte after the last."""
    pairs = [text.partition("=")[2].split("-") for text in fake.ranges]
    return [(int(first), int(last) + 1) for first, last in pairs]


@pytest.mark.parametrize("pair", [None, PAIR], ids=["plain", "encrypted"])
def test_only_what_is_needed_is_read(
    postgres: Any, database: str, databases: Callable[[], str], fake: FakeS3, pair: Any
) -> None:
    """By the ranges that the store was asked for: their sum is what the result reports, and each lies where it may."""
    postgres.psql(WIDE, database)
    place = s3_storage(fake, "backups")
    writes, reads = (pair.writes(place), pair.reads(place)) if pair else (place, place)
    server = server_of(postgres)
    made = back_up(server, database, writes, jobs=2)
    index = catalog.describe(reads, made.key)
    large = next(table.number for table in index.tables if table.name == "large")
    sizes = {section: [b for b in index.blocks if b.section == section] for section in ("schema", "data", "rest")}
    fixed = made.stored_bytes - index.stored_bytes + sizes["schema"][0].length
    others = sum(block.length for block in sizes["data"] if (large, block.rows) not in block.tables)
    slack = 9 * (64 << 10) if pair else 0  # chunks are decrypted whole

    def run(**options: Any) -> Any:
        target = databases()
        if options.get("content") == "data":
            restore(server, reads, made.key, database=target, content="schema")
        predicted = verb.predict_restore(RestoreRequest(server, reads, made.key, target, **options), Log())
        fake.ranges.clear()
        done = restore(server, reads, made.key, database=target, jobs=4, **options)
        assert done.bytes_read == sum(end - start for start, end in spans(fake))
        assert done.stored_bytes == made.stored_bytes
        assert predicted.bytes_read >= done.bytes_read - 2 * slack
        assert (predicted.rows, predicted.tables, predicted.table_rows) == (done.rows, done.tables, done.table_rows)
        return done

    rest = sizes["rest"]
    for options, rows, most in (
        ({"content": "schema"}, 0, fixed),
        ({"tables": ("small",)}, 10, fixed + others),
        ({"tables": ("small",), "content": "data"}, 10, fixed + others),
        ({"tables": ("counted",)}, 0, fixed + others + rest[0].length + rest[1].length),  # to the first large object
    ):
        done = run(**options)
        assert done.rows == rows and done.bytes_read <= most + slack + 100, options
        assert done.bytes_read < made.stored_bytes // 2
    if pair is None:  # where the large table's blocks are, nothing is read
        owned = [block for block in sizes["data"] if any(number == large for number, _rows in block.tables)]
        run(tables=("small",))
        for start, end in spans(fake):
            assert not [b for b in owned if len(b.tables) == 1 and start < b.offset + b.length and b.offset < end]
    done = run()
    assert done.rows == 150010 and done.bytes_read >= made.stored_bytes * 0.95
    assert run(content="data").bytes_read > sum(block.length for block in sizes["data"])


def test_the_command(source: Source, bare: str, start: Callable[..., Command], engine_env: Dict[str, str]) -> None:
    env = command_env(engine_env, source.postgres, bare, BACKUP_STORE="file://" + source.storage.directory)
    outcome = start(env, "restore", source.key, "--data-only", "--table", "plain", "--dry-run").finish()
    assert outcome.code == 0, outcome.err
    said = outcome.result["message"]
    assert "700 rows of 1 tables, reading at most %d bytes" % outcome.result["bytes_read"] in said
    assert counts(source, bare) == [0] * 5
    outcome = start(env, "restore", source.key, "--data-only", "--table", "plain").finish()
    assert (outcome.code, outcome.result["content"], outcome.result["rows"]) == (0, "data", 700)
    assert [line["bytes_read"] for line in outcome.lines if line["event"] == "restored"] == [
        outcome.result["bytes_read"]
    ]
    outcome = start(env, "restore", source.key, "--data-only", "--table", "plain").finish()
    assert outcome.code == 7 and '"public"."plain"' in outcome.message
