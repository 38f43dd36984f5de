# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A restore that cannot hurt: what it refuses, what a failure leaves, what a choice of tables brings along."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List

import psycopg2
import pytest
from _pgstream.errors import BackupError, IntegrityError, NotFoundError, TargetError, UsageError
from _pgstream.model import Server, Storage

from tests.support import compare
from tests.support.runs import (
    Background,
    Proxy,
    back_up,
    databases_like,
    local_storage,
    restore,
    s3_storage,
    server_of,
    sessions,
    wait_until,
)

SHOP = """
CREATE SCHEMA shop; CREATE SCHEMA people; CREATE SCHEMA "Odd one";
CREATE TYPE shop.state AS ENUM ('new', 'paid');
CREATE FUNCTION shop.doubled(n int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * n';
CREATE TABLE people.customer (id serial PRIMARY KEY, name text NOT NULL);
CREATE TABLE shop.item (id bigserial PRIMARY KEY, price int,
    twice int GENERATED ALWAYS AS (shop.doubled(price)) STORED);
CREATE TABLE shop.purchase (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, item bigint REFERENCES shop.item,
    customer int REFERENCES people.customer, state shop.state DEFAULT 'new'
);
CREATE INDEX purchase_state ON shop.purchase (state) WHERE state = 'new';
CREATE VIEW shop.open AS SELECT id FROM shop.purchase WHERE state = 'new';
CREATE TABLE "Odd one"."a.table" (id int, "x y" text);
COMMENT ON TABLE shop.item IS 'what there is';
INSERT INTO people.customer (name) SELECT 'c' || g FROM generate_series(1, 20) g;
INSERT INTO shop.item (price) SELECT g FROM generate_series(1, 50) g;
INSERT INTO shop.purchase (item, customer) SELECT 1 + g % 50, 1 + g % 20 FROM generate_series(1, 500) g;
INSERT INTO "Odd one"."a.table" VALUES (1, E'a\\tb'), (2, NULL), (3, '');
SELECT setval('shop.item_id_seq', 1234);
SELECT lo_from_bytea(4711, 'large');
CREATE MATERIALIZED VIEW shop.totals AS SELECT count(*) FROM shop.purchase;
"""


class Shop:
    """A database of that schema, a store, and one backup of it."""

    def __init__(self, postgres: Any, name: str, storage: Storage) -> None:
        self.postgres, self.name, self.storage = postgres, name, storage
        self.server: Server = server_of(postgres)
        postgres.psql(SHOP, name)
        self.key = back_up(self.server, name, storage, jobs=2).key

    def restore(self, target: str, **options: Any) -> Any:
        options = {"key": self.key, "server": self.server, **options}
        return restore(options.pop("server"), self.storage, options.pop("key"), database=target, **options)

    def differences(self, copy: str) -> List[str]:
        return compare.differences(self.postgres, self.name, self.postgres, copy)


@pytest.fixture(scope="module")
def _shops() -> Dict[str, Shop]:
    return {}


@pytest.fixture
def shop(postgres: Any, _shops: Dict[str, Shop], tmp_path_factory: pytest.TempPathFactory) -> Shop:
    if not _shops:
        name = postgres.createdb("shop_source")
        _shops["it"] = Shop(postgres, name, local_storage(tmp_path_factory.mktemp("shop") / "store"))
    return _shops["it"]


@pytest.fixture
def absent(postgres: Any, databases: Callable[[], str]) -> str:
    name = databases()
    postgres.dropdb(name)
    return name


def value(postgres: Any, sql: str, database: str) -> str:
    return postgres.psql(sql, database).strip()


def is_empty(postgres: Any, database: str) -> bool:
    """Nothing but what a new database has, by catalogues that the engine's own check does not share code with."""
    dump = compare.schema_text(postgres, database)
    objects = [line for line in dump.split("\n") if line.startswith("-- Name: ") and "EXTENSION plpgsql" not in line]
    return objects == [] and value(postgres, "SELECT count(*) FROM pg_largeobject_metadata", database) == "0"


# --- which target ----------------------------------------------------------------------------------------------------


def test_absent_target(shop: Shop, absent: str) -> None:
    with pytest.raises(TargetError) as caught:
        shop.restore(absent)
    assert caught.value.exit_code == 7 and "does not exist" in str(caught.value) and "create" in caught.value.hint
    with pytest.raises(TargetError):
        shop.restore(absent, create=True, strategy="in_place")
    assert databases_like(shop.postgres, absent) == []
    done = shop.restore(absent, create=True)
    assert (done.strategy, done.old_database) == ("create", "") and shop.differences(absent) == []


def test_empty_target(shop: Shop, database: str) -> None:
    oid = "SELECT oid FROM pg_database WHERE datname = '%s'" % database
    before = value(shop.postgres, oid, "postgres")
    done = shop.restore(database)
    assert done.strategy == "in_place" and value(shop.postgres, oid, "postgres") == before
    assert shop.differences(database) == [] and databases_like(shop.postgres, database) == [database]


@pytest.mark.parametrize(
    "content",
    [
        "CREATE TABLE t ()",
        "CREATE VIEW v AS SELECT 1",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE e AS ENUM ()",
        "CREATE SEQUENCE s",
        "CREATE SCHEMA empty",
        "SELECT lo_create(0)",
    ],
)
def test_target_with_content(shop: Shop, database: str, content: str) -> None:
    shop.postgres.psql(content, database)
    before = compare.schema_text(shop.postgres, database)
    for strategy in ("auto", "in_place"):
        with pytest.raises(TargetError) as caught:
            shop.restore(database, strategy=strategy, create=True)
        assert "is not empty" in str(caught.value) and "strategy swap" in caught.value.hint
    assert compare.schema_text(shop.postgres, database) == before
    assert databases_like(shop.postgres, database) == [database]


def test_the_manual_check(shop: Shop, database: str, tmp_path: Path) -> None:
    """Create a table, back up, drop it, restore: works with nothing said."""
    shop.postgres.psql("CREATE TABLE backup_test (id SERIAL); INSERT INTO backup_test DEFAULT VALUES", database)
    storage = local_storage(tmp_path / "store")
    made = back_up(shop.server, database, storage)
    shop.postgres.psql("DROP TABLE backup_test", database)
    restore(shop.server, storage, made.key)
    assert value(shop.postgres, "SELECT nextval('backup_test_id_seq'), count(*) FROM backup_test", database) == "2|1"


# --- swap ------------------------------------------------------------------------------------------------------------


def test_swap_keeps_the_old_database(shop: Shop, database: str) -> None:
    shop.postgres.psql("CREATE TABLE old AS SELECT 7 AS seven", database)
    client = psycopg2.connect(shop.postgres.dsn(database))
    try:
        done = shop.restore(database, strategy="swap")
        with pytest.raises(psycopg2.Error):  # its session was ended: it cannot write into the old one unknowingly
            client.cursor().execute("SELECT 1")
    finally:
        client.close()
    assert done.strategy == "swap" and shop.differences(database) == []
    assert databases_like(shop.postgres, database) == sorted([database, done.old_database])
    assert value(shop.postgres, "SELECT seven FROM old", done.old_database) == "7"
    shop.postgres.dropdb(done.old_database)
    done = shop.restore(database, strategy="swap", keep_old=False)
    assert done.old_database == "" and databases_like(shop.postgres, database) == [database]
    assert shop.differences(database) == []


def test_a_swap_that_fails_changes_nothing(shop: Shop, database: str, tmp_path: Path) -> None:
    """A stored byte is wrong: the old database serves its clients all the while, and afterwards."""
    shop.postgres.psql("CREATE TABLE old AS SELECT 7 AS seven", database)
    client = psycopg2.connect(shop.postgres.dsn(database))
    try:
        cursor = client.cursor()
        cursor.execute("SELECT seven FROM old")
        storage = damaged(shop, "data", tmp_path)
        with pytest.raises(IntegrityError) as caught:
            restore(shop.server, storage, shop.key, database=database, strategy="swap")
        assert "sha256" in str(caught.value)
        cursor.execute("SELECT seven FROM old")
        assert cursor.fetchall() == [(7,)]
    finally:
        client.close()
    assert databases_like(shop.postgres, database) == [database] and sessions(shop.postgres) == []


def test_a_swap_that_cannot_rename_changes_nothing(shop: Shop, database: str, pg_proxy: Proxy) -> None:
    """Somebody made a database of the name that the old one was to get, at the last moment."""
    shop.postgres.psql("CREATE TABLE old AS SELECT 7 AS seven", database)
    gate = pg_proxy.gate(b"RENAME TO")
    server = server_of(shop.postgres, port=pg_proxy.port)
    run = Background(lambda: shop.restore(database, strategy="swap", server=server))
    wait_until(lambda: gate.reached.is_set() or not run.running, "the rename")
    # The first rename has not happened yet, nobody can enter: the name to come is told by the time of the run alone.
    (beside,) = [name for name in databases_like(shop.postgres, database) if name != database]
    assert beside.startswith(database + "_pgstream_")
    shop.postgres._execute('ALTER DATABASE "%s" RENAME TO "%s"' % (beside, database + "_stolen"))
    gate.release()
    with pytest.raises(BackupError):
        run.result()
    assert value(shop.postgres, "SELECT seven FROM old", database) == "7"
    assert databases_like(shop.postgres, database) == [database, database + "_stolen"]
    shop.postgres.dropdb(database + "_stolen")


def test_two_restores_into_one_target(shop: Shop, absent: str, pg_proxy: Proxy) -> None:
    gate = pg_proxy.gate(b"CREATE DATABASE")
    server = server_of(shop.postgres, port=pg_proxy.port)
    first = Background(lambda: shop.restore(absent, create=True, server=server))
    wait_until(lambda: gate.reached.is_set() or not first.running, "the first restore")
    with pytest.raises(BackupError) as caught:
        shop.restore(absent, create=True)
    assert caught.value.exit_code == 8 and "another restore into database" in str(caught.value)
    gate.release()
    assert first.result().rows == 573 and shop.differences(absent) == []


# --- failures --------------------------------------------------------------------------------------------------------


def damaged(shop: Shop, section: str, tmp_path: Path) -> Storage:
    """A copy of the backup with one byte of the first block of a section changed."""
    from _pgstream import catalog

    storage = local_storage(tmp_path / "damaged")
    content = bytearray(Path(shop.storage.directory, shop.key).read_bytes())
    block = next(block for block in catalog.describe(shop.storage, shop.key).blocks if block.section == section)
    content[block.offset + block.length // 2] ^= 1
    Path(storage.directory, shop.key).write_bytes(content)
    return storage


# Each holds when it is dumped and not when it is loaded, as real ones do: a role that the target's server lacks, a
# check that looks at another table, a unique index over a function that was changed, a view that divides.
FAILURES = {
    "head": ("CREATE ROLE {role}; CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO {role}", "DROP ROLE {role}"),
    "table data": (
        "CREATE TABLE other AS SELECT 1 AS a;"
        "CREATE FUNCTION seen(n int) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN current_database() = '{source}'; END $$;"
        "CREATE TABLE t (a int CHECK (public.seen(a))); INSERT INTO t VALUES (1)",
        "",
    ),
    "indexes and constraints": (
        "CREATE FUNCTION which(n int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS"
        " $$ BEGIN RETURN CASE WHEN current_database() = '{source}' THEN n ELSE 0 END; END $$;"
        "CREATE TABLE t AS SELECT g AS a FROM generate_series(1, 3) g;"
        "CREATE UNIQUE INDEX t_which ON t (public.which(a))",
        "",
    ),
}


@pytest.mark.parametrize("place", sorted(FAILURES))
@pytest.mark.parametrize("strategy", ["in_place", "swap", "create"])
def test_a_failure_leaves_the_target_as_it_was(
    postgres: Any, databases: Callable[[], str], tmp_path: Path, place: str, strategy: str
) -> None:
    source, target = databases(), databases()
    names = {"source": source, "role": "role_of_" + source}
    prepare, spoil = (sql.format(**names) for sql in FAILURES[place])
    extra = "CREATE SCHEMA more; CREATE TABLE more.t AS SELECT 1 AS a; SELECT lo_create(1);"
    postgres.psql(extra + prepare, source)
    server, storage = server_of(postgres), local_storage(tmp_path / "store")
    made = back_up(server, source, storage)
    if spoil:
        postgres.psql("DROP TABLE t", source)
        postgres.psql(spoil)
    if strategy == "create":
        postgres.dropdb(target)
    elif strategy == "swap":
        postgres.psql("CREATE TABLE old AS SELECT 7 AS seven", target)
    option = "auto" if strategy == "create" else strategy
    with pytest.raises(BackupError) as caught:
        restore(server, storage, made.key, database=target, strategy=option, create=strategy == "create")
    assert "Failed during %s: " % place in str(caught.value) and caught.value.exit_code == 1
    assert databases_like(postgres, target) == ([] if strategy == "create" else [target])
    if strategy == "in_place":
        assert is_empty(postgres, target)
    elif strategy == "swap":
        assert value(postgres, "SELECT seven FROM old", target) == "7"
    assert sessions(postgres) == []


@pytest.mark.parametrize("section", ["schema", "data", "rest"])
def test_a_damaged_block_leaves_the_target_empty(shop: Shop, database: str, tmp_path: Path, section: str) -> None:
    storage = damaged(shop, section, tmp_path)
    with pytest.raises(IntegrityError) as caught:
        restore(shop.server, storage, shop.key, database=database)
    assert caught.value.exit_code == 6 and is_empty(shop.postgres, database)


def test_an_extension_that_the_server_lacks(postgres: Any, databases: Callable[[], str], tmp_path: Path) -> None:
    """Its files are gone from the disk between backup and restore."""
    from tests.support import fixture

    sharedir = Path(fixture._server_sharedir(postgres))
    fixture.install_extension(postgres.bindir, str(sharedir))
    source, target = databases(), databases()
    postgres.psql("CREATE EXTENSION pgstream_fixture; CREATE TABLE t AS SELECT 1 AS a", source)
    storage = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), source, storage)
    control = sharedir / "extension" / "pgstream_fixture.control"
    hidden = control.with_suffix(".hidden")
    control.rename(hidden)
    try:
        with pytest.raises(BackupError) as caught:
            restore(server_of(postgres), storage, made.key, database=target)
    finally:
        hidden.rename(control)
    assert "Failed during head" in str(caught.value) and "pgstream_fixture" in str(caught.value)
    assert is_empty(postgres, target)


# --- a choice --------------------------------------------------------------------------------------------------------

CONSTRAINTS = "SELECT conname FROM pg_constraint WHERE connamespace > 16383 AND contype IN ('f', 'p') ORDER BY 1"


def test_one_schema(shop: Shop, database: str) -> None:
    done = shop.restore(database, schemas=("shop",))
    assert {(table.schema, table.name) for table in done.table_rows} == {("shop", "item"), ("shop", "purchase")}
    there = "SELECT string_agg(nspname, ' ' ORDER BY 1) FROM pg_namespace WHERE oid > 16383"
    assert value(shop.postgres, there, database) == "shop"
    # The foreign key into the other schema stays away, that within this one comes along.
    names = value(shop.postgres, CONSTRAINTS, database).split()
    assert names == ["item_pkey", "purchase_item_fkey", "purchase_pkey"]
    assert value(shop.postgres, "SELECT count(*) FROM shop.open; SELECT * FROM shop.totals", database) == "500\n500"
    assert value(shop.postgres, "SELECT nextval('shop.item_id_seq')", database) == "1235"
    assert value(shop.postgres, "SELECT to_regclass('shop.purchase_state')", database) == "shop.purchase_state"


def test_one_table(shop: Shop, database: str) -> None:
    done = shop.restore(database, tables=("shop.purchase",))
    assert [(table.schema, table.name, table.rows) for table in done.table_rows] == [("shop", "purchase", 500)]
    names = value(shop.postgres, CONSTRAINTS, database).split()
    assert names == ["purchase_pkey"]  # neither foreign key: neither table is there
    assert value(shop.postgres, "SELECT DISTINCT state FROM shop.purchase", database) == "new"  # with its type
    shop.postgres.psql("INSERT INTO shop.purchase (item) VALUES (-1)", database)  # with its sequence, where it was
    assert value(shop.postgres, "SELECT max(id) FROM shop.purchase", database) == "501"
    assert value(shop.postgres, "SELECT to_regclass('people.customer') IS NULL", database) == "t"


def test_an_oddly_named_table(shop: Shop, database: str) -> None:
    done = shop.restore(database, schemas=("Odd one",))
    assert done.rows == 3
    assert value(shop.postgres, 'SELECT count("x y") FROM "Odd one"."a.table"', database) == "2"


def test_a_choice_of_nothing(shop: Shop, database: str) -> None:
    with pytest.raises(UsageError) as caught:
        shop.restore(database, schemas=("no_such_schema",))
    assert "nothing in the backup matches" in str(caught.value) and "people" in caught.value.hint
    assert is_empty(shop.postgres, database)


# --- owners, rights, roles, times ------------------------------------------------------------------------------------


@pytest.fixture
def roles(postgres: Any, databases: Callable[[], str]) -> List[str]:
    """Two roles, dropped after the databases that know them."""
    names = ["role_a_" + os.urandom(4).hex(), "role_b_" + os.urandom(4).hex()]
    for name in names:
        postgres.psql("CREATE ROLE %s; GRANT CREATE ON DATABASE postgres TO %s" % (name, name))
    return names


def test_owner_privileges_and_role(
    postgres: Any, databases: Callable[[], str], roles: List[str], tmp_path: Path
) -> None:
    source, copy, other = databases(), databases(), roles[1]
    postgres.psql(
        "CREATE TABLE t AS SELECT 1 AS a; ALTER TABLE t OWNER TO {0}; GRANT SELECT ON t TO {1};"
        'GRANT CONNECT ON DATABASE "{2}" TO {1}; ALTER DATABASE "{2}" OWNER TO {0}'.format(roles[0], other, source),
        source,
    )
    server, storage = server_of(postgres), local_storage(tmp_path / "store")
    key = back_up(server, source, storage).key
    facts = "SELECT tableowner, has_table_privilege('%s', 't', 'SELECT') FROM pg_tables WHERE tablename = 't'" % other
    owner = "SELECT pg_get_userbyid(datdba), coalesce(datacl::text, '') LIKE '%%%s%%' FROM pg_database" % other
    owner += " WHERE datname = current_database()"
    cases: List[Any] = [
        ({}, roles[0] + "|t", roles[0] + "|t"),
        ({"no_owner": True}, "postgres|t", "postgres|t"),
        ({"no_privileges": True}, roles[0] + "|f", roles[0] + "|f"),
        ({"no_owner": True, "role": other}, other + "|t", other + "|t"),
    ]
    for options, table, database in cases:
        postgres.psql("ALTER ROLE %s CREATEDB" % other)
        restore(server, storage, key, database=copy, strategy="swap", keep_old=False, **options)
        assert value(postgres, facts, copy) == table, options
        assert value(postgres, owner, copy) == database, options


def test_latest_and_latest_before(postgres: Any, databases: Callable[[], str], s3: Any, bucket: str) -> None:
    source, copy = databases(), databases()
    server, storage = server_of(postgres), s3_storage(s3, bucket, prefix="a/b")
    for number, day in enumerate(("2026-01-01", "2026-01-03", "2026-01-02")):
        postgres.psql("DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT %d AS n" % number, source)
        back_up(server, source, storage, key="a/b/%s_%sT02:00:00Z.sql.gz" % (source, day))
    place = {"Bucket": bucket, "Key": "a/b/%s_2026-01-01T02:00:00Z.sql.gz" % source}
    s3.client().copy_object(Bucket=bucket, Key="a/b/%s_x_2026-02-01T02:00:00Z.sql.gz" % source, CopySource=place)
    for before, number in (("", "1"), ("2026-01-03T02:00:00Z", "2"), ("2026-01-02T03:30:00+02:00", "0")):
        restore(
            server, storage, "latest", source_database=source, database=copy, latest_before=before,
            strategy="swap", keep_old=False,
        )  # fmt: skip
        assert value(postgres, "SELECT n FROM t", copy) == number
    with pytest.raises(NotFoundError):
        restore(server, storage, "latest", source_database=source, database=copy, latest_before="2026-01-01T00:00:00Z")


# --- plain dumps that we did not make --------------------------------------------------------------------------------


def dump(shop: Shop, *options: str) -> bytes:
    argv = [os.path.join(shop.postgres.bindir, "pg_dump"), *options, shop.name]
    return subprocess.run(argv, env=shop.postgres.env(), stdout=subprocess.PIPE, check=True).stdout


def squeezed(data: bytes, extension: str) -> bytes:
    argv = {".sql.gz": ["gzip", "-c"], ".sql.zst": ["zstd", "-cq"], ".sql": ["cat"]}[extension]
    return subprocess.run(argv, input=data, stdout=subprocess.PIPE, check=True).stdout


def foreign(tmp_path: Path, name: str, data: bytes) -> Storage:
    storage = local_storage(tmp_path / "foreign")
    Path(storage.directory, name).write_bytes(data)
    return storage


@pytest.mark.parametrize("extension", [".sql.gz", ".sql.zst", ".sql"])
def test_a_plain_dump(shop: Shop, databases: Callable[[], str], tmp_path: Path, extension: str) -> None:
    storage = foreign(tmp_path, "dump" + extension, squeezed(dump(shop), extension))
    new, empty = databases(), databases()
    shop.postgres.dropdb(new)
    for target in (new, empty):
        done = restore(shop.server, storage, "dump" + extension, database=target, create=True)
        assert done.foreign and done.rows == 573
        assert shop.differences(target) == []


def test_a_choice_from_a_plain_dump(shop: Shop, database: str, tmp_path: Path) -> None:
    storage = foreign(tmp_path, "dump.sql.gz", squeezed(dump(shop), ".sql.gz"))
    with pytest.raises(UsageError):
        restore(shop.server, storage, "dump.sql.gz", database=database, schemas=("shop",))
    assert is_empty(shop.postgres, database)


def _cut_stored(shop: Shop) -> bytes:
    whole = squeezed(dump(shop), ".sql.gz")
    return whole[: len(whole) * 2 // 3]


def _cut_before_gzip(shop: Shop) -> bytes:
    """What `pg_dump | gzip` stores when pg_dump dies: a whole gzip file of half a dump, cut after a whole statement."""
    text = dump(shop)
    return squeezed(text[: text.index(b"\\.\n", len(text) // 2) + 3], ".sql.gz")


def _cut_in_rows(shop: Shop) -> bytes:
    text = dump(shop)
    middle = text.index(b"COPY shop.purchase") + 500
    return squeezed(text[: text.index(b"\n", middle) + 1], ".sql.gz")


@pytest.mark.parametrize("cut", [_cut_stored, _cut_before_gzip, _cut_in_rows])
@pytest.mark.parametrize("existing", [True, False], ids=["in_place", "create"])
def test_a_truncated_plain_dump(
    shop: Shop, databases: Callable[[], str], tmp_path: Path, cut: Callable[[Shop], bytes], existing: bool
) -> None:
    target = databases()
    if not existing:
        shop.postgres.dropdb(target)
    storage = foreign(tmp_path, "dump.sql.gz", cut(shop))
    with pytest.raises(IntegrityError) as caught:
        restore(shop.server, storage, "dump.sql.gz", database=target, create=True)
    assert caught.value.exit_code == 6
    assert databases_like(shop.postgres, target) == ([target] if existing else [])
    assert not existing or is_empty(shop.postgres, target)


def test_a_real_pg_dump_that_was_killed(shop: Shop, database: str, pg_proxy: Proxy, tmp_path: Path) -> None:
    """pg_dump | gzip with pg_dump killed in the rows: gzip ends well, and the object looks whole."""
    gate = pg_proxy.gate(b"COPY shop.purchase", after=3000)
    env = dict(shop.postgres.env(), PGPORT=str(pg_proxy.port))
    argv = [os.path.join(shop.postgres.bindir, "pg_dump"), shop.name]
    pg_dump = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE)
    packer = subprocess.Popen(["gzip", "-c"], stdin=pg_dump.stdout, stdout=subprocess.PIPE)
    assert pg_dump.stdout is not None
    pg_dump.stdout.close()
    gate.wait()
    pg_dump.send_signal(signal.SIGKILL)
    data = packer.communicate()[0]
    assert (pg_dump.wait(), packer.returncode) == (-signal.SIGKILL, 0)
    gate.release()
    gzip.decompress(data)  # whole, as far as gzip can tell
    storage = foreign(tmp_path, "dump.sql.gz", data)
    with pytest.raises(IntegrityError):
        restore(shop.server, storage, "dump.sql.gz", database=database)
    assert is_empty(shop.postgres, database)


@pytest.mark.parametrize("options, words", [(["-Fc"], "pg_restore"), (["-C"], "pg_dump -C")], ids=["custom", "create"])
def test_other_dumps_are_refused(
    shop: Shop, database: str, tmp_path: Path, options: List[str], words: str
) -> None:
    for extension in (".sql.gz", ".sql"):
        storage = foreign(tmp_path, "dump" + extension, squeezed(dump(shop, *options), extension))
        with pytest.raises(BackupError) as caught:
            restore(shop.server, storage, "dump" + extension, database=database)
        assert words in str(caught.value)
        assert is_empty(shop.postgres, database)
