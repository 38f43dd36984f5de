# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prove the harness: it must find a faithful copy equal, and each small change to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from tests.support.compare import differences
from tests.support.fixture import create_database, load_everything, load_latin1, load_sql_ascii, run_file

SOURCE = "compare_source"
COPY = "compare_copy"

# Each statement makes one change that a careless comparison would miss, each
# to another object, and comes with the starts of all lines that report it.
MUTATIONS = {
    "one float bit": (
        "UPDATE types.floats SET double = '0.30000000000000010' WHERE id = 10",
        ["table 'types.floats'"],
    ),
    "sign of zero": (
        "UPDATE types.arrays SET cube = '{{{1,2},{3,NaN}},{{0,Infinity},{0.30000000000000004,NULL}}}' WHERE id = 2",
        ["table 'types.arrays'"],
    ),
    "deleted row": ("DELETE FROM gaps.churned WHERE id = 50001", ["table 'gaps.churned'"]),
    "deleted duplicate": (
        "DELETE FROM gaps.duplicates WHERE ctid = '(0,1)'",
        ["table 'gaps.duplicates'"],
    ),
    "another row without columns": ("INSERT INTO shapes.no_columns DEFAULT VALUES", ["table 'shapes.no_columns'"]),
    "swapped values": (
        "UPDATE views.product p SET name = o.name FROM views.product o WHERE p.id + o.id = 3 AND p.id <> o.id",
        ["table 'views.product'"],
    ),
    "empty string for NULL": ("UPDATE types.strings SET free = '' WHERE id = 1", ["table 'types.strings'"]),
    "row in another table": (
        "WITH moved AS (DELETE FROM ONLY shapes.grandchild WHERE id = 1 RETURNING *)"
        " INSERT INTO shapes.child SELECT * FROM moved",
        ["table 'shapes.child'", "table 'shapes.grandchild'"],
    ),
    "configuration row": (
        "UPDATE \"extension's schema\".fixture_entry SET name = 'other' WHERE id = 1000",
        ['table "extension\'s schema.fixture_entry"'],
    ),
    "not refreshed": ("REFRESH MATERIALIZED VIEW views.empty_summary WITH NO DATA", ["table 'views.empty_summary'"]),
    "called sequence": ("SELECT nextval('sequences.down')", ["sequence 'sequences.down'"]),
    "sequence called for the first time": (
        "SELECT setval('sequences.never_called', 1, true)",
        ["sequence 'sequences.never_called'"],
    ),
    "large object byte": ("SELECT lo_put(900004, 1234567, '\\x00')", ["large object 900004"]),
    "large object comment": ("COMMENT ON LARGE OBJECT 900001 IS NULL", ["large object 900001"]),
    "large object grant": ("GRANT SELECT ON LARGE OBJECT 910001 TO pgstream_reader", ["large object 910001"]),
    "large object removed": ("SELECT lo_unlink(910002)", ["large object 910002"]),
    "dropped comment": (
        "COMMENT ON COLUMN types.floats.double IS NULL",
        ["schema: -COMMENT ON COLUMN types.floats.double IS"],
    ),
    "column grant": (
        'REVOKE SELECT ("select") ON odd_tables."select" FROM pgstream_reader',
        ['schema: -GRANT SELECT("select") ON TABLE odd_tables."select" TO pgstream_reader'],
    ),
    "grant": (
        "GRANT TRUNCATE ON types.bits TO pgstream_reader",
        ["schema: +GRANT TRUNCATE ON TABLE types.bits TO pgstream_reader"],
    ),
    "trigger mode": (
        "ALTER TABLE triggers.watched ENABLE TRIGGER always",
        ["schema: -ALTER TABLE triggers.watched ENABLE ALWAYS TRIGGER always"],
    ),
}


def _run(postgres: Any, program: str, *arguments: str) -> None:
    command = [os.path.join(postgres.bindir, program), *arguments]
    subprocess.run(command, env=postgres.env(), check=True, stdout=subprocess.DEVNULL)


def _drop(postgres: Any, *databases: str) -> None:
    for database in databases:
        postgres.psql(f'DROP DATABASE IF EXISTS "{database}"')


@pytest.fixture(scope="module", name="source")
def fixture_source(postgres: Any) -> Iterator[str]:
    """The database with everything, made once for all tests here."""
    _drop(postgres, SOURCE)
    load_everything(postgres, SOURCE)
    yield SOURCE
    _drop(postgres, SOURCE)


@pytest.fixture(name="copy")
def fixture_copy(postgres: Any) -> Iterator[str]:
    """A name for a database that is gone after the test."""
    _drop(postgres, COPY)
    yield COPY
    _drop(postgres, COPY)


def _clone(postgres: Any, source: str, copy: str) -> None:
    postgres.psql(f'CREATE DATABASE "{copy}" TEMPLATE "{source}"')


@pytest.mark.every_major
def test_order_of_a_tables_publications_is_no_difference(postgres: Any) -> None:
    """Some pg_dump write them in the order in which they were made."""
    databases = ["compared_forth", "compared_back"]
    names = ["one", "other"]
    try:
        for database, order in zip(databases, (names, names[::-1])):
            _drop(postgres, database)
            create_database(postgres, database, "UTF8")
            postgres.psql("CREATE TABLE published (n int)", database)
            for publication in order:
                postgres.psql(f"CREATE PUBLICATION {publication} FOR TABLE published", database)
        assert differences(postgres, databases[0], postgres, databases[1]) == []
        postgres.psql("ALTER PUBLICATION one DROP TABLE published", databases[1])
        assert "schema: -ALTER PUBLICATION one ADD TABLE ONLY public.published;" in differences(
            postgres, databases[0], postgres, databases[1]
        )
    finally:
        _drop(postgres, *databases)


def test_copy_through_archive_is_the_same(postgres: Any, source: str, copy: str, tmp_path: Path) -> None:
    archive = str(tmp_path / "archive")
    create_database(postgres, copy, "UTF8")
    _run(postgres, "pg_dump", "-Fc", "-Z1", "-f", archive, "-d", source)
    _run(postgres, "pg_restore", "--exit-on-error", "-d", copy, archive)
    assert differences(postgres, source, postgres, copy) == []


def test_copy_through_script_is_the_same(postgres: Any, source: str, copy: str, tmp_path: Path) -> None:
    script = str(tmp_path / "script")
    create_database(postgres, copy, "UTF8")
    _run(postgres, "pg_dump", "-f", script, "-d", source)
    _run(postgres, "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", copy, "-f", script)
    assert differences(postgres, source, postgres, copy) == []


@pytest.mark.parametrize("load, encoding", [(load_latin1, "LATIN1"), (load_sql_ascii, "SQL_ASCII")])
def test_other_encodings(postgres: Any, copy: str, tmp_path: Path, load: Any, encoding: str) -> None:
    archive, source = str(tmp_path / "archive"), "compare_encoding"
    _drop(postgres, source)
    try:
        load(postgres, source)
        create_database(postgres, copy, encoding)
        _run(postgres, "pg_dump", "-Fc", "-f", archive, "-d", source)
        _run(postgres, "pg_restore", "--exit-on-error", "-d", copy, archive)
        assert differences(postgres, source, postgres, copy, properties=True) == []
    finally:
        _drop(postgres, source)


@pytest.fixture(scope="module", name="reported")
def fixture_reported(postgres: Any, source: str) -> Iterator[List[str]]:
    """What the harness says of a copy with all the mutations, which takes too long to ask for each."""
    mutated = "compare_mutated"
    _drop(postgres, mutated)
    try:
        _clone(postgres, source, mutated)
        for statement, _starts in MUTATIONS.values():
            postgres.psql(statement, mutated)
        yield differences(postgres, source, postgres, mutated)
    finally:
        _drop(postgres, mutated)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutation_is_reported(reported: List[str], mutation: str) -> None:
    for expected in MUTATIONS[mutation][1]:
        assert any(line.startswith(expected) for line in reported), reported


def test_nothing_but_the_mutations_is_reported(reported: List[str]) -> None:
    expected = tuple(start for _statement, starts in MUTATIONS.values() for start in starts)
    unexpected = [line for line in reported if not line.startswith(expected + ("schema: ",))]
    assert unexpected == []


def test_rewritten_table_is_the_same(postgres: Any, source: str, copy: str) -> None:
    """Neither the place of the rows nor dead ones count."""
    _clone(postgres, source, copy)
    postgres.psql("CLUSTER types.floats USING floats_pkey", copy)
    postgres.psql("UPDATE gaps.churned SET n = n WHERE id % 3 = 0", copy)
    postgres.psql("VACUUM FULL gaps.churned", copy)
    # CLUSTER marks the index it used, which is a change of the schema.
    postgres.psql("ALTER TABLE types.floats SET WITHOUT CLUSTER", copy)
    assert differences(postgres, source, postgres, copy) == []


@pytest.mark.parametrize(
    "statement, expected",
    [
        ("ALTER DATABASE {} CONNECTION LIMIT 5", "connection_limit"),
        ("ALTER DATABASE {} SET myapp.key = 'changed'", "settings"),
        ("COMMENT ON DATABASE {} IS 'changed'", "comment"),
        ("GRANT CONNECT ON DATABASE {} TO pgstream_group", "acl"),
        ("ALTER DATABASE {} OWNER TO pgstream_reader", "owner"),
    ],
)
def test_changed_property_is_reported(postgres: Any, copy: str, statement: str, expected: str) -> None:
    other = "compare_properties"
    run_file(postgres, "postgres", "roles.sql")
    _drop(postgres, other)
    postgres.psql(f'CREATE DATABASE "{other}" TEMPLATE template0')
    postgres.psql(f'CREATE DATABASE "{copy}" TEMPLATE template0')
    try:
        assert differences(postgres, other, postgres, copy, properties=True) == []
        postgres.psql(statement.format(copy))
        found = differences(postgres, other, postgres, copy, properties=True)
        assert any(line.startswith(f"database property '{expected}'") for line in found), found
        assert differences(postgres, other, postgres, copy) == []
    finally:
        _drop(postgres, other)
