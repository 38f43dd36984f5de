# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Indexes and constraints that are made while other tables are loaded: what comes back is the same, none of them is
made twice, and one that fails leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from _pgstream import loading, plan, post_data, restore_order, schema
from _pgstream.errors import BackupError
from _pgstream.model import Storage

from tests.support import compare
from tests.support.runs import KeptLog, back_up, databases_like, local_storage, restore, server_of

TABLES = """
CREATE SCHEMA "INDEX";
CREATE TABLE customer (id int PRIMARY KEY, name text UNIQUE DEFERRABLE INITIALLY DEFERRED, code int NOT NULL);
CREATE INDEX customer_name ON customer (lower(name)) INCLUDE (id);
CREATE UNIQUE INDEX customer_code ON customer (code); ALTER TABLE customer REPLICA IDENTITY USING INDEX customer_code;
COMMENT ON INDEX customer_name IS 'an index'; COMMENT ON CONSTRAINT customer_pkey ON customer IS 'a key';
CREATE TABLE "INDEX"."CONSTRAINT x" (id int PRIMARY KEY, customer int REFERENCES customer, code int
    REFERENCES customer (code), span int4range, EXCLUDE USING gist (span WITH &&));
CREATE INDEX by_customer ON "INDEX"."CONSTRAINT x" (customer);
ALTER TABLE "INDEX"."CONSTRAINT x" CLUSTER ON by_customer;
CREATE INDEX by_code ON "INDEX"."CONSTRAINT x" (code);
CREATE TABLE tree (id int PRIMARY KEY, parent int REFERENCES tree);
CREATE TABLE a (id int PRIMARY KEY, b int); CREATE TABLE b (id int PRIMARY KEY, a int REFERENCES a);
ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;
CREATE TABLE part (id int, day int, customer int REFERENCES customer, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10);
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM (10) TO (20);
CREATE INDEX ON part (customer); CREATE INDEX ON part_1 (day);
CREATE TABLE of_part (id int PRIMARY KEY, day int, FOREIGN KEY (id, day) REFERENCES part);
CREATE TABLE nothing (id int PRIMARY KEY, tree int REFERENCES tree);
CREATE FUNCTION customers(int) RETURNS bigint IMMUTABLE LANGUAGE sql AS 'SELECT $1 + count(*) FROM public.customer';
CREATE INDEX ON tree (customers(id));
CREATE VIEW grouped AS SELECT id, name FROM customer GROUP BY id;
CREATE MATERIALIZED VIEW seen AS SELECT id FROM customer; CREATE UNIQUE INDEX ON seen (id);
INSERT INTO customer SELECT g, 'name ' || g, g * 2 FROM generate_series(1, 3000) g;
INSERT INTO "INDEX"."CONSTRAINT x" SELECT g, g, g * 2, int4range(g, g + 1) FROM generate_series(1, 3000) g;
INSERT INTO tree SELECT g, g / 2 + 1 FROM generate_series(1, 3000) g;
INSERT INTO a SELECT g FROM generate_series(1, 3000) g; INSERT INTO b SELECT g, g FROM generate_series(1, 3000) g;
UPDATE a SET b = id; INSERT INTO part SELECT g, g % 20, g FROM generate_series(1, 3000) g;
INSERT INTO of_part SELECT g, g % 20 FROM generate_series(1, 3000) g; REFRESH MATERIALIZED VIEW seen;
"""
#: What is made early at most: nothing of partitions, and no index that calls a function.
EARLY = {
    b"CONSTRAINT public customer customer_pkey", b"CONSTRAINT public customer customer_name_key",
    b"INDEX public customer_name", b"INDEX public customer_code", b"CONSTRAINT INDEX CONSTRAINT x CONSTRAINT x_pkey",
    b"CONSTRAINT INDEX CONSTRAINT x CONSTRAINT x_span_excl", b"INDEX INDEX by_customer", b"INDEX INDEX by_code",
    b"FK CONSTRAINT INDEX CONSTRAINT x CONSTRAINT x_customer_fkey",
    b"FK CONSTRAINT INDEX CONSTRAINT x CONSTRAINT x_code_fkey", b"CONSTRAINT public tree tree_pkey",
    b"FK CONSTRAINT public tree tree_parent_fkey", b"CONSTRAINT public a a_pkey", b"CONSTRAINT public b b_pkey",
    b"FK CONSTRAINT public a a_b_fkey", b"FK CONSTRAINT public b b_a_fkey", b"CONSTRAINT public of_part of_part_pkey",
    b"FK CONSTRAINT public nothing nothing_tree_fkey", b"COMMENT public INDEX customer_name",
    b"COMMENT public CONSTRAINT customer_pkey ON customer",
}  # fmt: skip


class Watched:
    """What the workers did, in order: b"" for a run of rows, else the entry that was made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.did: List[bytes] = []
        self.before: Callable[[str, bytes], None] = lambda database, entry: None
        load, tell, statements = loading.Loader.load, loading.Loader.statements, post_data.statements
        told: Dict[bytes, List[bytes]] = {}

        def watched_load(loader: Any, *arguments: Any) -> Any:
            made = load(loader, *arguments)
            self.did.append(b"")
            return made

        def watched_statements(planned: Any, processes: Any, dumped: bytes, entries: Any) -> bytes:
            sql = statements(planned, processes, dumped, entries)
            if sql:
                told[sql] = [entry.text.rpartition(b" ")[0] for entry in entries]  # without the owner
            return sql

        def watched_tell(loader: Any, sql: bytes) -> None:
            self.before(loader._database, told[sql][0])
            tell(loader, sql)
            self.did += told[sql]

        monkeypatch.setattr(loading.Loader, "load", watched_load)
        monkeypatch.setattr(loading.Loader, "statements", watched_tell)
        monkeypatch.setattr(post_data, "statements", watched_statements)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Tables of some kilobytes are large enough, and a block and a run is no more."""
    for module, name, value in (
        (restore_order, "WORTH", 1), (restore_order, "WORTH_OF_ARCHIVE", 0), (loading, "SMALLEST_RUN", 1),
        (plan, "SMALLEST_TASK", 1 << 16), (plan, "BLOCK_SIZE", 1 << 15),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return Watched(monkeypatch)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return local_storage(tmp_path / "store")


@pytest.fixture
def key(postgres: Any, database: str, storage: Storage, watched: Watched) -> str:
    postgres.psql(TABLES, database)
    return back_up(server_of(postgres), database, storage, jobs=2).key


@pytest.mark.parametrize("options", [{"jobs": 2}, {"jobs": 4, "no_owner": True}, {"jobs": 2, "role": "postgres"}])
def test_the_same_comes_back(
    postgres: Any, database: str, databases: Callable[[], str], storage: Storage, key: str, watched: Watched,
    options: Any,
) -> None:  # fmt: skip
    copy, log = databases(), KeptLog()
    restore(server_of(postgres), storage, key, log, database=copy, strategy="swap", **options)
    assert compare.differences(postgres, database, postgres, copy) == []
    made = [entry for entry in watched.did if entry]
    assert len(made) > 5 and len(set(made)) == len(made) and set(made) <= EARLY
    assert b"" in watched.did[watched.did.index(made[0]) :], "all rows were loaded before"
    assert [fields["entries"] for _level, event, fields in log.lines if event == "made_early"] == [len(made)]


def test_into_an_empty_database(
    postgres: Any, database: str, databases: Callable[[], str], storage: Storage, key: str, watched: Watched
) -> None:
    copy = databases()
    restore(server_of(postgres), storage, key, database=copy, jobs=2)
    assert compare.differences(postgres, database, postgres, copy) == [] and any(watched.did)


def test_what_psql_could_take_for_a_variable_is_left_to_the_end(
    postgres: Any, database: str, databases: Callable[[], str], storage: Storage, watched: Watched
) -> None:
    postgres.psql(
        """CREATE TABLE t (a int[], "PORT" int, PRIMARY KEY ("PORT")); CREATE INDEX x ON t ((a[1 : "PORT"]));
        CREATE INDEX y ON t (a); INSERT INTO t SELECT array[g, g], g FROM generate_series(1, 9000) g""",
        database,
    )
    copy = databases()
    made = back_up(server_of(postgres), database, storage, jobs=2)
    restore(server_of(postgres), storage, made.key, database=copy, jobs=2)
    assert compare.differences(postgres, database, postgres, copy) == []
    made_early = {entry for entry in watched.did if entry}
    assert made_early and made_early <= {b"CONSTRAINT public t t_pkey", b"INDEX public y"}


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_other_encodings(
    postgres: Any, databases: Callable[[], str], storage: Storage, watched: Watched, encoding: str
) -> None:
    """Definitions are kept in UTF-8 and rows as they are, and both go through the same sessions."""
    source, copy = databases(), databases()
    for name in (source, copy):
        postgres.dropdb(name)
        locale = "ENCODING %s LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0" % encoding
        postgres.psql("CREATE DATABASE %s %s" % (name, locale))
    letters = "\u65e5\u672c" if encoding == "EUC_JP" else "gr\u00f6\u00dfe"
    postgres.psql(
        """SET client_encoding = %s; CREATE TABLE "%s" (id int PRIMARY KEY, name text);
        CREATE INDEX "i %s" ON "%s" (name); COMMENT ON INDEX "i %s" IS '%s';
        INSERT INTO "%s" SELECT g, '%s ' || g FROM generate_series(1, 9000) g"""
        % ("'SQL_ASCII'" if encoding == "SQL_ASCII" else "'UTF8'", *[letters] * 7),
        source,
    )
    key = back_up(server_of(postgres), source, storage, jobs=2).key
    restore(server_of(postgres), storage, key, database=copy, jobs=2)
    assert compare.differences(postgres, source, postgres, copy) == [] and any(watched.did)


@pytest.mark.parametrize("options", [{"jobs": 1}, {"tables": ("customer",)}, {"content": "schema"}])
def test_one_worker_and_parts_make_nothing_early(
    postgres: Any, databases: Callable[[], str], storage: Storage, key: str, watched: Watched, options: Any
) -> None:
    restore(server_of(postgres), storage, key, database=databases(), **{"jobs": 2, **options})
    assert not any(watched.did)


def test_nor_does_a_small_database(
    postgres: Any, databases: Callable[[], str], storage: Storage, key: str, watched: Watched,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor is the table of contents read."""
    monkeypatch.setattr(restore_order, "WORTH", 16 << 20)
    monkeypatch.setattr(schema, "entries", pytest.fail)
    restore(server_of(postgres), storage, key, database=databases(), jobs=2)
    assert watched.did and not any(watched.did)


@pytest.mark.parametrize("how", ["create", "in_place"])
@pytest.mark.parametrize("jobs", [2, 4])
def test_one_that_fails_leaves_nothing(
    postgres: Any, databases: Callable[[], str], storage: Storage, key: str, watched: Watched, how: str, jobs: int
) -> None:
    def twice(database: str, entry: bytes) -> None:
        if entry == b"CONSTRAINT public customer customer_pkey":
            postgres.psql("INSERT INTO customer SELECT id, 'again', 0 FROM customer LIMIT 1", database)

    watched.before = twice
    copy = databases()
    if how == "create":
        postgres.dropdb(copy)
    with pytest.raises(BackupError, match="could not create unique index .customer_pkey") as caught:
        restore(server_of(postgres), storage, key, database=copy, create=how == "create", jobs=jobs)
    assert caught.value.stage == "indexes and constraints"
    assert databases_like(postgres, copy) == ([] if how == "create" else [copy])
    if how == "in_place":
        assert postgres.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace", copy) == "0\n"
