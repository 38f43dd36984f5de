# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Filtered backups of a real database: a series of their own, never taken for the whole; patterns that must match."""

from __future__ import annotations

import gzip
import re
import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _pgstream import catalog, part
from _pgstream.errors import UsageError
from _pgstream.events import utc_now
from _pgstream.ledger import Ledger
from _pgstream.model import Filters
from _pgstream.postgres import Leader
from _pgstream.store.base import open_store

from tests.support.agekeys import KeyPair
from tests.support.runs import Outcome, command_env, local_storage, server_of, sessions

PART = re.compile(r"_\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\.part-[0-9a-f]{8}\.sql\.gz(\.age)?$")


class Site:
    """A database of a few relations, a directory as store, a ledger, and the command in that environment."""

    def __init__(self, postgres: Any, database: str, base: Dict[str, str], start: Any, home: Path) -> None:
        postgres.psql(
            """
            CREATE TABLE a AS SELECT generate_series(1, 10) AS a;
            CREATE TABLE b AS SELECT generate_series(1, 20) AS a;
            CREATE VIEW seen AS SELECT * FROM a;
            CREATE SCHEMA "Odd";
            CREATE TABLE "Odd"."T" AS SELECT generate_series(1, 5) AS a;
            """,
            database,
        )
        self.postgres, self.database, self.store, self._start = postgres, database, home / "store", start
        for name in ("store", "state"):
            (home / name).mkdir()
        settings = {"BACKUP_STORE": "file://%s" % self.store, "BACKUP_STATE_DIR": str(home / "state")}
        self.env = command_env(base, postgres, database, **settings)
        self.ledger = Ledger(str(home / "state"))

    def __call__(self, *arguments: str, **changes: str) -> Outcome:
        outcome: Outcome = self._start({**self.env, **changes}, *arguments).finish()
        return outcome

    def made(self, *arguments: str, **changes: str) -> str:
        done = self("backup", *arguments, **changes)
        assert done.code == 0, done.err
        assert done.result["changed"], done.result
        return str(done.result["key"])

    def refused(self, *arguments: str, said: str) -> None:
        """A usage error, which leaves nothing behind."""
        before = self.keys
        done = self(*arguments)
        assert done.code == 2 and said in done.message, done.err
        assert self.keys == before and sessions(self.postgres) == []

    @property
    def keys(self) -> List[str]:
        return sorted(path.name for path in self.store.iterdir() if not path.name.startswith("."))


@pytest.fixture
def site(postgres: Any, database: str, engine_env: Dict[str, str], start: Callable[..., Any], tmp_path: Path) -> Site:
    return Site(postgres, database, engine_env, start, tmp_path)


def test_a_filtered_backup_stands_for_no_whole_one(site: Site) -> None:
    whole = site.made()
    part = site.made("--table", "a")
    assert PART.search(part) and not PART.search(whole)
    assert site("restore", "latest", "--strategy", "swap", "--dry-run").result["key"] == whole
    assert site("verify", "latest").result["key"] == whole
    assert site("prune", "--keep-last", "1").result["removed"] == []
    again = site.made("--table", "a")
    assert [one["key"] for one in site("prune", "--keep-last", "1").result["removed"]] == [part]
    assert site.keys == sorted([whole, again])
    listed = {one["key"]: one["filtered"] for one in site("list", "--details", "0").result["backups"]}
    assert listed == {whole: False, again: True}
    groups = site.ledger.view().groups()
    assert len(groups["backup_part", site.database]) == 2
    assert [run.key for run in groups["backup", site.database]] == [whole]


def test_fresh_is_what_has_the_same_filters(site: Site) -> None:
    part = site.made("--table", "a")
    fresh = ("--fresh-within", "6h")
    other = site.made("--table", "b", *fresh)
    whole = site.made(*fresh)
    again = site("backup", "--table", "a", *fresh).result
    assert (again["changed"], again["key"]) == (False, part)
    again = site("backup", *fresh).result
    assert (again["changed"], again["key"]) == (False, whole) and site.keys == sorted([part, other, whole])


def test_latest_without_a_whole_one_is_a_filtered_one_and_says_so(site: Site) -> None:
    part = site.made("--table", "a")
    (site.store / part.replace(".part-", "_lost.")).write_bytes(b"")  # no backup's name
    copy = site.database + "_copy"
    done = site("restore", "latest", "--source-db", site.database, "--target-db", copy, "--create")
    site.postgres.dropdb(copy)
    assert done.code == 0 and done.result["key"] == part and done.result["rows"] == 10
    assert "filtered" in done.result["message"] and "filtered_backup" in [line["event"] for line in done.errors]
    assert "filtered" in site("verify", "latest", "--level", "index").result["message"]
    for more in ([], ["--dry-run"], ["--drop-old"]):
        site.refused("restore", "latest", "--strategy", "swap", *more, said="the only backup is a filtered one")
    done = site("restore", part, "--strategy", "swap", "--dry-run")
    assert done.code == 0 and done.result["key"] == part
    into = ("--target-db", copy, "--source-db", site.database, "--create", "--dry-run")
    done = site("restore", "latest", "--latest-before", "2999-01-31T02:00:00Z", *into)
    (said,) = [line["message"] for line in done.errors if line["event"] == "filtered_backup"]
    assert done.code == 0 and said.startswith("There is no backup of the whole database before 2999-")
    site.made()
    assert "filtered" not in site("verify", "latest", "--level", "index").result["message"]


REFERRING = """
CREATE TABLE customer (id int PRIMARY KEY); CREATE TABLE kind (id int); CREATE UNIQUE INDEX ON kind (id);
CREATE TABLE orders (id int PRIMARY KEY, c int REFERENCES customer, k int REFERENCES kind (id),
    before int REFERENCES orders);
COMMENT ON CONSTRAINT orders_c_fkey ON orders IS 'whose';
INSERT INTO customer VALUES (1); INSERT INTO kind VALUES (1); INSERT INTO orders VALUES (1, 1, 1, 1);
CREATE SCHEMA arch; CREATE TABLE m (id int PRIMARY KEY, x int) PARTITION BY RANGE (id); CREATE INDEX ON m (x);
CREATE TABLE arch.m1 PARTITION OF m FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE arch.m2 PARTITION OF arch.m1 FOR VALUES FROM (0) TO (10); INSERT INTO m VALUES (1, 2);
SELECT lo_from_bytea(7, 'large');
"""
KEYS = "SELECT string_agg(conname, ',' ORDER BY conname) FROM pg_constraint WHERE contype = 'f'"
PARTITIONS = "SELECT string_agg(name, ',' ORDER BY name COLLATE \"C\")"
PARTITIONS += " FROM (SELECT inhrelid::regclass::text AS name FROM pg_inherits) AS attached"


@pytest.mark.parametrize(
    "taken, chosen, keys, partitions, left_out",
    [
        (["--table", "orders"], [], "orders_before_fkey", "", 2),
        (["--table", "orders"], ["--table", "orders"], "orders_before_fkey", "", 2),
        (["--table", "orders"], ["--schema-only"], "orders_before_fkey", "", 2),
        (["--table", "orders", "--table", "kind"], [], "orders_before_fkey,orders_k_fkey", "", 1),
        (["--table", "orders", "--table", "kind"], ["--table", "kind"], "", "", 0),
        (["--schema", "arch"], [], "", "arch.m2,arch.m2_pkey,arch.m2_x_idx", 3),
        (["--exclude-table", "a"], [], "orders_before_fkey,orders_c_fkey,orders_k_fkey",
         "arch.m1,arch.m1_pkey,arch.m1_x_idx,arch.m2,arch.m2_pkey,arch.m2_x_idx", 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_refers_to_what_is_not_in_it_is_left_out(
    site: Site,
    databases: Callable[[], str],
    taken: List[str],
    chosen: List[str],
    keys: str,
    partitions: str,
    left_out: int,
) -> None:
    """A foreign key, or the attachment of a partition or of its index; pg_dump has them in the archive all the same."""
    site.postgres.psql("DROP VIEW seen;" + REFERRING, site.database)
    copy = databases()
    done = site("restore", site.made(*taken), "--target-db", copy, *chosen)
    assert done.code == 0, done.err
    assert site.postgres.psql(KEYS, copy).strip() == keys
    assert site.postgres.psql(PARTITIONS, copy).strip() == partitions
    assert sum(line["count"] for line in done.errors if line["event"] == "left_out") == left_out
    there = site.postgres.psql("SELECT count(*) FROM pg_largeobject_metadata", copy).strip()
    assert there == ("1" if taken[0].startswith("--exclude") else "0")


def test_tables_come_with_the_schemas_that_they_lie_in(site: Site, databases: Callable[[], str]) -> None:
    """By the engine, by gunzip and psql, and where a schema is there already; a failure leaves none behind."""
    site.postgres.psql(
        'CREATE SCHEMA "a b"; CREATE SCHEMA "q"";"; CREATE SCHEMA other;'
        ' CREATE TABLE "a b".t (id int PRIMARY KEY) PARTITION BY RANGE (id);'
        ' CREATE TABLE "q"";".t1 PARTITION OF "a b".t FOR VALUES FROM (0) TO (9); INSERT INTO "a b".t VALUES (1), (2);',
        site.database,
    )
    key = site.made("--table", '"a b".t')
    schemas = "SELECT string_agg(nspname, ',' ORDER BY nspname) FROM pg_namespace"
    schemas += " WHERE nspname IN ('a b', 'q\";', 'other')"
    for prepared in (False, True):
        copy, plain = databases(), databases()
        if prepared:
            for name in (copy, plain):
                site.postgres.psql('CREATE SCHEMA "a b"', name)
        done = site("restore", key, "--target-db", copy, *(["--strategy", "swap", "--drop-old"] if prepared else []))
        assert done.code == 0, done.err
        site.postgres.psql(gzip.decompress((site.store / key).read_bytes()).decode(), plain)
        for name in (copy, plain):
            assert site.postgres.psql('SELECT count(*) FROM "a b".t', name).strip() == "2"
            assert site.postgres.psql(schemas, name).strip() == 'a b,q";'
    store = open_store(local_storage(site.store))
    item = store.stat(key)
    assert item is not None
    index = catalog.read_index(store, item)
    assert index is not None
    (block,) = [each for each in index.blocks if each.section == "data"]
    data = bytearray((site.store / key).read_bytes())
    data[block.offset + block.length // 2] ^= 1
    (site.store / key).write_bytes(data)
    copy = databases()
    done = site("restore", key, "--target-db", copy)
    assert done.code == 6 and "not_emptied" not in [line["event"] for line in done.errors], done.err
    assert site.postgres.psql(schemas, copy).strip() == ""


def test_encrypted_ones_are_told_apart_without_an_identity(site: Site) -> None:
    recipients = {"BACKUP_AGE_RECIPIENTS": KeyPair().recipient}
    site.made(**recipients)
    part = site.made("--exclude-table-data", "a", **recipients)
    assert PART.search(part)
    listed = site("list", BACKUP_STATE_DIR="").result["backups"]
    assert sorted(one["filtered"] for one in listed) == [False, True]
    assert site("prune", "--keep-last", "1", BACKUP_STATE_DIR="").result["removed"] == []


def test_a_key_is_not_another_s(site: Site) -> None:
    whole, part = site.made(), site.made("--table", "a")
    later = whole.replace(whole[-27:-7], "2026-01-31T02:00:00Z")
    for key in ("other_2026-01-31T02:00:00Z.sql.gz", "globals_2026-01-31T02:00:00Z.cluster.sql.gz"):
        site.refused("backup", "--key", key, said="is that of a backup of")
    site.refused("backup", "--key", later, "--table", "a", said="is that of a backup of")
    site.refused("backup", "--key", part, "--overwrite", said="is that of a backup of")
    site.refused("backup", "--key", part, "--overwrite", "--table", "b", said="is that of a backup of")
    assert site.made("--key", part, "--overwrite", "--table", "a") == part
    assert site.made("--key", later) == later
    assert site.made("--key", "mine.sql.gz", "--table", "a") == "mine.sql.gz"


def test_an_object_under_another_s_key_is_not_restored_as_its_latest(site: Site) -> None:
    whole = site.made()
    alien = "alien_%s" % whole.rpartition("_")[2]
    (site.store / whole).rename(site.store / alien)
    for verb in (("restore", "latest", "--dry-run"), ("verify", "latest", "--level", "index")):
        done = site(*verb, POSTGRES_DB="alien")
        assert done.code == 6 and "is not what its key says" in done.message
    assert site("verify", alien).code == 0  # whoever names it knows what it is


@pytest.mark.parametrize("future", [timedelta(minutes=10), timedelta(days=365)])
def test_a_backup_of_the_future_is_not_fresh(site: Site, future: timedelta) -> None:
    first = site.made()
    later = "%s_%s.sql.gz" % (site.database, (utc_now() + future).strftime("%Y-%m-%dT%H:%M:%SZ"))
    (site.store / first).rename(site.store / later)
    again = site.made("--fresh-within", "6h")
    assert again != later and site("restore", "latest", "--strategy", "swap", "--dry-run").result["key"] == again


@pytest.mark.parametrize(
    "given, said",
    [
        (["--table", "public.a", "--table", "public.typo"], "public.typo"),
        (["--table", "a", "--table", "typo"], "typo"),
        (["--table", "A", "--table", '"A"'], '"A"'),
        (["--table", "a", "--table", "z*"], "z*"),
        (["--table", "Odd.T"], "Odd.T"),
        (["--schema", "public", "--schema", "o*"], "o*"),
        (["--table", "information_schema.tables"], "information_schema.tables"),
        (["--table", "pg_catalog.pg_class"], "pg_catalog.pg_class"),
        (["--schema", "pg_catalog"], "pg_catalog"),
        (["--schema", "information_*"], "information_*"),
    ],
)
def test_what_is_to_be_taken_must_be_there(site: Site, given: List[str], said: str) -> None:
    for more in ([], ["--dry-run"]):
        site.refused("backup", *given, *more, said="nothing in database %s matches %s" % (site.database, said))


@pytest.mark.parametrize("other", ["--schema", "--exclude-schema"])
def test_schemas_beside_tables_would_be_dropped(site: Site, other: str) -> None:
    site.refused("backup", other, '"Odd"', "--table", "a", said="schemas have no effect beside tables")


def test_patterns_that_match(site: Site) -> None:
    for given in (["--table", "A"], ["--table", '"Odd"."?"'], ["--table", "pub*.(a|b)"], ["--schema", '"O"*']):
        assert "pattern_matches_nothing" not in site("backup", *given).err
    done = site("backup", "--table", "a", "--table", "seen")
    assert done.code == 0 and done.errors == []
    done = site("backup", "--exclude-table", "a", "--exclude-table-data", "typ*", "--exclude-schema", "Odd")
    assert done.code == 0 and done.result["rows"] == 25
    idle = [line["pattern"] for line in done.errors if line["event"] == "pattern_matches_nothing"]
    assert sorted(idle) == ["Odd", "typ*"]


PARTITIONED = """
CREATE TABLE ev (d int, t text) PARTITION BY RANGE (d);
CREATE TABLE ev1 PARTITION OF ev FOR VALUES FROM (0) TO (10);
CREATE TABLE "E""v.2" PARTITION OF ev FOR VALUES FROM (10) TO (100) PARTITION BY LIST (d);
CREATE TABLE "ő$" PARTITION OF "E""v.2" DEFAULT;
INSERT INTO ev SELECT i, 'x' FROM generate_series(5, 14) i;
CREATE TABLE evening (a int) INHERITS (a);
"""


@pytest.mark.every_major
@pytest.mark.parametrize("encoding", ["UTF8", "SQL_ASCII"])
def test_a_partitioned_table_means_its_partitions(site: Site, bytes_site: Site, encoding: str) -> None:
    site = bytes_site if encoding == "SQL_ASCII" else site
    site.postgres.psql(PARTITIONED, site.database)

    def rows(*given: str) -> Dict[str, int]:
        done = site("backup", *given)
        assert done.code == 0 and done.errors == [], done.err
        seen = {one["name"]: one["rows"] for one in done.result["table_rows"]}
        return {name.encode("latin-1").decode() if site is bytes_site else name: n for name, n in seen.items()}

    copy = site.database + "_copy"
    key = site.made("--table", "ev")
    done = site("restore", "latest", "--source-db", site.database, "--target-db", copy, "--create")
    assert done.code == 0 and done.result["rows"] == 10, done.err
    assert done.result["key"] == key and site.postgres.psql("SELECT count(*) FROM ev", copy).strip() == "10"
    site.postgres.dropdb(copy)
    site.postgres.psql('ALTER TABLE "E""v.2" SET SCHEMA "Odd"; ALTER TABLE "ő$" SET SCHEMA "Odd"', site.database)
    assert rows("--table", "ev") == {"ev1": 5, "ő$": 5}
    assert rows("--table", '"Odd"."E""v.2"') == {"ő$": 5}
    assert rows("--table", "ev", "--exclude-table", "ev1") == {"ő$": 5}
    assert rows("--table", "ev*", "--exclude-table-data", '"Odd".*v*') == {"ev1": 5, "evening": 0}
    left = {"a": 10, "b": 20, "T": 5, "evening": 0, **({"ő": 1, "öő": 1} if site is bytes_site else {})}
    assert rows("--exclude-table", "ev") == rows("--exclude-table-data", "ev") == left
    assert rows("--table", "a") == {"a": 10}  # what inherits is a table of its own
    again = site("backup", "--table", "ev", "--fresh-within", "6h").result
    assert not again["changed"] and again["key"].endswith(key[-20:])  # the filters are what was given


def test_more_partitions_than_pg_dump_can_be_told_of(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.postgres.psql(
        """
        CREATE TABLE ev (d int) PARTITION BY LIST (d);
        DO $$ BEGIN FOR i IN 1..100 LOOP
        EXECUTE format('CREATE TABLE %I PARTITION OF ev FOR VALUES IN (%s)', 'ev' || repeat('"', 58) || i, i);
        END LOOP; END $$;
        """,
        site.database,
    )
    assert site("backup", "--table", "ev").result["tables"] == 100
    monkeypatch.setattr(part, "_MOST", 15_000)
    with Leader(server_of(site.postgres), site.database) as leader:
        with pytest.raises(UsageError, match="too many partitions"):
            part.chosen(leader, Filters(tables=("ev",)))
        for filters in Filters(tables=("ev*",)), Filters(exclude_table_data=("ev",)):
            assert part.chosen(leader, filters).named == filters


@pytest.mark.every_major
def test_patterns_that_match_system_tables_too(site: Site) -> None:
    cases = (("--table", "*"), 30), (("--table", "*.*"), 35), (("--schema", "*"), 35), (("--schema", "p*"), 30)
    for given, rows in cases:
        done = site("backup", *given)
        assert done.code == 0 and done.result["rows"] == rows, done.err


def test_globals_without_hashes_are_not_fresh_where_they_are_wanted(site: Site) -> None:
    recipients = {"BACKUP_AGE_RECIPIENTS": KeyPair().recipient}

    def made(*more: str, **changes: str) -> bool:
        done = site("backup", "--globals-only", "--fresh-within", "6h", *more, **changes)
        assert done.code == 0, done.err
        return bool(done.result["changed"])

    assert [made(), made(), made("--globals-passwords"), made("--globals-passwords"), made()] == [
        True, False, True, False, False,
    ]  # fmt: skip
    for key in site.keys:
        (site.store / key).unlink()
    assert made("--globals-passwords", **recipients) and not made(**recipients)
    assert made("--globals-passwords", **recipients)  # what cannot be told is not taken for so


@pytest.fixture
def bytes_site(postgres: Any, engine_env: Dict[str, str], start: Callable[..., Any], tmp_path: Path) -> Iterator[Site]:
    """In a database whose names are bytes of no known encoding."""
    database = postgres.createdb("bytes_" + secrets.token_hex(4), encoding="SQL_ASCII")
    (tmp_path / "bytes").mkdir()
    site = Site(postgres, database, engine_env, start, tmp_path / "bytes")
    postgres.psql("CREATE TABLE ő AS SELECT 1 AS a; CREATE TABLE öő AS SELECT 2 AS a", database)
    yield site
    postgres.dropdb(database)


@pytest.mark.parametrize(
    "given, rows",
    [
        (["--table", "ő"], {"ő": 1}),
        (["--table", "ö*"], {"öő": 1}),
        (["--exclude-table", '"ő"', "--table", "*"], {"a": 10, "b": 20, "öő": 1}),
        (["--exclude-table-data", "ő", "--table", "(ő|öő)"], {"öő": 1}),
    ],
)
def test_names_of_no_known_encoding(bytes_site: Site, given: List[str], rows: Dict[str, int]) -> None:
    done = bytes_site("backup", *given)
    assert done.code == 0 and done.errors == [], done.err
    seen = {one["name"].encode("latin-1").decode(): one["rows"] for one in done.result["table_rows"]}
    assert seen == rows


def test_a_pattern_of_no_known_encoding_matches_nothing(bytes_site: Site, site: Site) -> None:
    for database in (bytes_site.database, site.database):
        site.env["POSTGRES_DB"] = database
        site.refused("backup", "--table", "t\udce9", said="nothing in database %s matches t" % database)
        assert site.ledger.view().runs[0].status == "failure"
        done = site("backup", "--exclude-table-data", "t\udce9")
        assert done.code == 0 and "pattern_matches_nothing" in done.err
