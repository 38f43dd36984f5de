# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A part of a backup is what was named, with its partitions, and no more: names that begin alike tell apart."""

from __future__ import annotations

from typing import Any, Callable, Dict, Tuple

import pytest
from _pgstream import schema
from _pgstream.errors import UsageError
from _pgstream.model import Storage

from tests.support.runs import back_up, local_storage, restore, server_of

SQL = """
CREATE TABLE ev (id int, k text) PARTITION BY RANGE (id);
CREATE TABLE ev_low PARTITION OF ev FOR VALUES FROM (0) TO (50);
CREATE SCHEMA old;
CREATE TABLE old.ev_high PARTITION OF ev FOR VALUES FROM (50) TO (100) PARTITION BY LIST (k);
CREATE TABLE old.ev_high_x PARTITION OF old.ev_high FOR VALUES IN ('x');
CREATE TABLE old.ev_rest PARTITION OF old.ev_high DEFAULT;
CREATE INDEX ev_id ON ev (id);
INSERT INTO ev SELECT g, CASE WHEN g % 2 = 0 THEN 'x' END FROM generate_series(0, 99) g;
CREATE TABLE parent (id int); CREATE TABLE child () INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2), (3);
CREATE TABLE a (id serial); CREATE TABLE "a b" (id serial); CREATE VIEW "a v" AS SELECT 1 AS one;
SELECT setval('a_id_seq', 70); SELECT setval('"a b_id_seq"', 80);
CREATE SEQUENCE q; CREATE SEQUENCE "q r"; SELECT setval('q', 5); SELECT setval('"q r"', 6);
CREATE SCHEMA s; CREATE SCHEMA "s one"; CREATE SCHEMA none; CREATE SCHEMA "none at all";
CREATE SCHEMA "d.o t"; CREATE TABLE "d.o t"."x.y" AS SELECT 1 AS a; CREATE TABLE s."t.u" AS SELECT 1 AS a;
CREATE MATERIALIZED VIEW s.mv AS SELECT 1 AS one;
CREATE TABLE s.t AS SELECT 1 AS a; CREATE TABLE "s one".t AS SELECT 2 AS a; CREATE VIEW "s one".v AS SELECT 1 AS one;
"""
THERE = """
SELECT string_agg(format('%s.%s', nspname, relname), ',' ORDER BY nspname, relname)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid > 16383 AND relkind IN ('r', 'p', 'v', 'S') AND nspname !~ '^pg_'
"""
SCHEMAS = "SELECT string_agg(nspname, ',' ORDER BY 1) FROM pg_namespace WHERE oid > 16383 AND nspname !~ '^pg_'"
EV = "old.ev_high,old.ev_high_x,old.ev_rest,public.ev,public.ev_low"
_made: Dict[str, Tuple[Storage, str]] = {}


@pytest.fixture
def backup(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Tuple[Storage, str]:
    if postgres.bindir not in _made:
        source = postgres.createdb("parts_source")
        postgres.psql(SQL, source)
        storage = local_storage(tmp_path_factory.mktemp("parts") / "store")
        _made[postgres.bindir] = storage, back_up(server_of(postgres), source, storage).key
    return _made[postgres.bindir]


def value(postgres: Any, sql: str, database: str) -> str:
    return str(postgres.psql(sql, database)).strip()


@pytest.mark.every_major
def test_partitions_come_with_their_table(postgres: Any, database: str, backup: Tuple[Storage, str]) -> None:
    done = restore(server_of(postgres), *backup, database=database, tables=("ev",))
    assert (done.rows, done.tables) == (100, 3)
    assert value(postgres, THERE, database) == EV and value(postgres, "SELECT count(*) FROM ev", database) == "100"
    assert value(postgres, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'ev'::regclass", database) == "2"
    # Rows alone, into the same tables.
    postgres.psql("TRUNCATE ev", database)
    done = restore(server_of(postgres), *backup, database=database, tables=("public.ev",), content="data")
    assert done.rows == 100 and value(postgres, "SELECT count(*) FROM ev", database) == "100"
    # A branch of it, by name.
    postgres.psql("TRUNCATE ev", database)
    done = restore(server_of(postgres), *backup, database=database, tables=("old.ev_high",), content="data")
    assert done.rows == 50 and value(postgres, "SELECT count(*) FROM ev", database) == "50"


def test_a_swap_has_the_partitions_too(postgres: Any, database: str, backup: Tuple[Storage, str]) -> None:
    restore(server_of(postgres), *backup, database=database, tables=("ev",), strategy="swap", keep_old=False)
    assert value(postgres, "SELECT count(*) FROM ev", database) == "100"


def test_one_partition_comes_alone(postgres: Any, database: str, backup: Tuple[Storage, str]) -> None:
    assert restore(server_of(postgres), *backup, database=database, tables=("ev_low",)).rows == 50
    assert value(postgres, THERE, database) == "public.ev,public.ev_low"  # with the definition of its table
    assert value(postgres, "SELECT count(*) FROM ev", database) == "50"


def test_partitions_come_with_the_schema_of_their_table(
    postgres: Any, database: str, backup: Tuple[Storage, str]
) -> None:
    restore(server_of(postgres), *backup, database=database, schemas=("public",))
    assert value(postgres, "SELECT count(*) FROM ev", database) == "100"


def test_children_that_inherit_do_not_come(postgres: Any, database: str, backup: Tuple[Storage, str]) -> None:
    assert restore(server_of(postgres), *backup, database=database, tables=("parent",)).rows == 1
    assert value(postgres, THERE, database) == "public.parent"


@pytest.mark.every_major
@pytest.mark.parametrize(
    "options, there",
    [
        ({"tables": ("public.a",)}, "public.a,public.a_id_seq"),
        ({"tables": ("a",)}, "public.a,public.a_id_seq"),
        ({"tables": ("a b",)}, "public.a b,public.a b_id_seq"),
        ({"tables": ("a v",)}, "public.a v"),
        ({"tables": ("q",)}, "public.q"),
        ({"tables": ("q r",)}, "public.q r"),
        ({"tables": ("d.o t.x.y", "s.t.u")}, "d.o t.x.y,s.t.u"),
        ({"tables": ("s.t", "s.t.u", "s.mv", "public.q", "public.a v", "public.q")}, "public.a v,public.q,s.t,s.t.u"),
        ({"schemas": ("s",)}, "s.t,s.t.u"),
        ({"schemas": ("s one",)}, "s one.t,s one.v"),
    ],
    ids=str,
)
def test_names_that_begin_alike(
    postgres: Any, database: str, backup: Tuple[Storage, str], options: Dict[str, Any], there: str
) -> None:
    restore(server_of(postgres), *backup, database=database, **options)
    assert value(postgres, THERE, database) == there
    wanted = {"public.a_id_seq": "70", "public.a b_id_seq": "80", "public.q": "5", "public.q r": "6"}
    for name in set(there.split(",")) & set(wanted):
        sql = 'SELECT last_value FROM "%s"."%s"' % tuple(name.split(".", 1))
        assert value(postgres, sql, database) == wanted[name]


def test_several_tables_are_asked_for_at_once(
    postgres: Any, database: str, backup: Tuple[Storage, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, listed = [], schema.listed
    monkeypatch.setattr(schema, "listed", lambda *given: asked.append(given[3:]) or listed(*given))
    with pytest.raises(UsageError, match="matches s.none, s.none.x"):
        restore(server_of(postgres), *backup, database=database, tables=("s.t", "s.none", "s.none.x", "s.mv"))
    asked.clear()
    restore(server_of(postgres), *backup, database=database, tables=("s.t", "s.t.u", "s.mv", "s.t"))
    assert [(space, sorted(names)) for space, *names in asked] == [("s", ["mv", "t", "t.u"])]
    assert value(postgres, THERE, database) == "s.t,s.t.u"


@pytest.mark.parametrize("name", ["none", "none at all"])
def test_a_schema_with_nothing_in_it(postgres: Any, database: str, backup: Tuple[Storage, str], name: str) -> None:
    restore(server_of(postgres), *backup, database=database, schemas=(name,))
    assert value(postgres, SCHEMAS, database) == name and value(postgres, THERE, database) == ""


def test_rows_of_what_has_none(
    postgres: Any, database: str, backup: Tuple[Storage, str], databases: Callable[[], str]
) -> None:
    restore(server_of(postgres), *backup, database=database, content="schema")
    with pytest.raises(UsageError, match="the backup has no rows of a v, nor") as caught:
        restore(server_of(postgres), *backup, database=database, content="data", tables=("a", "a v"))
    assert caught.value.exit_code == 2
    restore(server_of(postgres), *backup, database=database, content="data", tables=("q",))
    assert value(postgres, "SELECT last_value FROM q", database) == "5"
    assert restore(server_of(postgres), *backup, database=databases(), tables=("a v",)).rows == 0
