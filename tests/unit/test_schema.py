# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The schema archive: as comments and back, and what its table of contents tells, odd names included."""

from __future__ import annotations

from typing import Any, List, Sequence, Set

import pytest
from _pgstream import schema
from _pgstream.errors import IntegrityError
from _pgstream.model import Filters
from _pgstream.quoting import literal, qualified
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=300, deadline=None)

#: As `pg_restore -l --verbose` writes it: schemas called ATTACH and DATA, names with spaces, a newline shown as space.
LISTING = b"""\
;
; Archive created at 2026-01-31 02:00:00 UTC
;     dbname: shop
;
; Selected TOC Entries:
;
3400; 0 0 ENCODING - ENCODING
3401; 0 0 STDSTRINGS - STDSTRINGS
3402; 0 0 SEARCHPATH - SEARCHPATH
3403; 1262 16384 DATABASE - shop owner
6; 2615 16385 SCHEMA - ATTACH owner
7; 2615 16386 SCHEMA - DATA owner
8; 2615 16387 SCHEMA - my schema owner
9; 2615 16388 SCHEMA - app owner
2; 3079 16389 EXTENSION - hstore
10; 1247 16390 TYPE app mood owner
;\tdepends on: 9
11; 1255 16391 FUNCTION app f(integer) owner
;\tdepends on: 9
12; 1259 16400 TABLE app t owner
;\tdepends on: 9 10
13; 1259 16401 TABLE ATTACH t owner
;\tdepends on: 6
14; 1259 16402 TABLE DATA t owner
;\tdepends on: 7
15; 1259 16403 TABLE my schema odd table owner
;\tdepends on: 8
16; 1259 16404 TABLE app child owner
;\tdepends on: 9 12
17; 0 0 TABLE ATTACH app child owner
;\tdepends on: 16 12
18; 1259 16405 SEQUENCE app q owner
;\tdepends on: 9
19; 0 0 SEQUENCE OWNED BY app q owner
;\tdepends on: 18 12
20; 1259 16406 MATERIALIZED VIEW DATA mv owner
;\tdepends on: 7 14
21; 1259 16407 VIEW my schema v owner
;\tdepends on: 8 15
22; 1259 16408 VIEW app a view with spaces owner
;\tdepends on: 9 12
23; 2604 16409 DEFAULT app t id owner
;\tdepends on: 18 12 12
24; 1255 16410 FUNCTION my schema g() owner
;\tdepends on: 8
30; 2606 16420 CONSTRAINT app t t_pkey owner
;\tdepends on: 12
31; 2606 16421 FK CONSTRAINT app child child_t_fkey owner
;\tdepends on: 30 16 12
32; 1259 16422 INDEX ATTACH t_idx owner
;\tdepends on: 13
33; 2606 16423 FK CONSTRAINT app t t_to_attach owner
;\tdepends on: 13 12
34; 0 16406 MATERIALIZED VIEW DATA DATA mv owner
;\tdepends on: 20
35; 0 0 ACL app TABLE t owner
;\tdepends on: 12
36; 0 0 COMMENT - DATABASE shop owner
"""


class Clients:
    """pg_restore's answers without pg_restore."""

    bindir = "/bin"

    def __init__(self, listing: bytes = LISTING) -> None:
        self.listing = listing
        self.argv_seen: List[Sequence[str]] = []
        self.encodings: List[str] = []

    def environment(self, encoding: str = "UTF8") -> dict:
        self.encodings.append(encoding)
        return {}

    def argv(self, program: str, arguments: Sequence[str], database: str) -> List[str]:
        return [program, *arguments, database]

    def run(self, argv: Sequence[str], _environment: dict, _name: str, **_named: Any) -> bytes:
        self.argv_seen.append(argv)
        return self.listing

    def spawn(self, argv: Sequence[str], _environment: dict, _name: str) -> Clients:
        self.argv_seen.append(argv)
        return self

    def output(self) -> bytes:
        return b"PGDMP"

    def stderr_text(self) -> str:
        return "pg_dump: warning: left out\npg_dump: detail: more"


def toc(listing: bytes = LISTING) -> List[schema.Entry]:
    fake = Clients(listing)
    return schema.entries(fake, fake, b"archive")  # type: ignore[arg-type]


def picked(*named: int) -> Set[int]:
    chosen, _oids = schema.select(toc(), set(named))
    assert [entry.dump_id for entry in chosen] == [
        entry.dump_id for entry in toc() if entry.dump_id in {each.dump_id for each in chosen}
    ]
    return {entry.dump_id for entry in chosen} - {3400, 3401, 3402}


def test_entries() -> None:
    found = {entry.dump_id: entry for entry in toc()}
    assert len(found) == len([line for line in LISTING.splitlines() if not line.startswith(b";")]) == 31
    assert (found[12].catalogue, found[12].oid, found[12].text) == (1259, 16400, b"TABLE app t owner")
    assert found[12].needs == (9, 10) and found[9].needs == ()
    assert found[23].needs == (18, 12, 12)
    assert found[15].line == b"15; 1259 16403 TABLE my schema odd table owner"


def test_entries_ask_for_the_dependencies() -> None:
    fake = Clients()
    schema.entries(fake, fake, b"archive")  # type: ignore[arg-type]
    assert fake.argv_seen == [["/bin/pg_restore", "-l", "--verbose"]]


def test_contents_know_a_schema_called_data_from_data() -> None:
    found = schema.contents(toc())
    assert found.relations == {16400, 16401, 16402, 16403, 16404}
    assert found.sequences == {16405} and found.extensions == {16389}


def test_select_a_table_with_what_it_needs_and_what_hangs_on_it() -> None:
    chosen = picked(12)
    assert chosen >= {12, 9, 10, 30, 35}  # the schema, the type, the key, the grants
    assert {23, 18} <= chosen or not {23, 18} & chosen  # a default and its sequence, both or neither
    assert not chosen & {13, 14, 15, 20, 21, 24, 32, 33}  # nothing of other tables, no key that points to them


def test_select_a_table_with_its_partitions() -> None:
    """`TABLE ATTACH app child` attaches one; `TABLE ATTACH t`, a table in the schema ATTACH, does not."""
    assert schema.with_partitions(toc(), {12}) == {12, 16} and {16, 17, 31} <= picked(12)
    assert schema.with_partitions(toc(), {16, 13}) == {16, 13} and 17 not in picked(13)
    assert schema.select(toc(), {12})[1] == {16400, 16404}


def test_select_a_foreign_key_only_with_both_its_tables() -> None:
    assert 33 in picked(12, 13)
    assert 33 not in picked(12) and 33 not in picked(12, 33)
    assert 31 in picked(12, 16)


def test_select_gives_the_oids_of_the_chosen_tables() -> None:
    """A parent that only comes along has its definition restored and no rows."""
    entries, oids = schema.select(toc(), {16})
    assert oids == {16404} and {16, 12} <= {entry.dump_id for entry in entries}


def test_select_keeps_the_script_s_own_settings() -> None:
    chosen, _oids = schema.select(toc(), {12})
    assert {3400, 3401, 3402} <= {entry.dump_id for entry in chosen}


def test_select_nothing() -> None:
    chosen, oids = schema.select(toc(), set())
    assert not oids and not [entry for entry in chosen if entry.oid]


def test_the_names_of_entries() -> None:
    script = (
        b"--\n-- Name: a b; Type: TABLE; Schema: s x; Owner: my owner; Tablespace: big\n--\n\n"
        b"--\n-- Name: f(integer, s.t); Type: FUNCTION; Schema: s; Owner: -\n--\n\nCREATE ...\n"
        b"--\n-- Name: hstore; Type: EXTENSION; Schema: -; Owner: \n--\n"
    )
    fake = Clients(script)
    for entries in (None, toc()):
        found = schema.names(fake, fake, b"archive", entries)  # type: ignore[arg-type]
        assert found == {b"s x a b", b"s f(integer, s.t)", b"- hstore", b"- s x", b"- s"}  # the last made for tables


def test_what_a_name_means_is_asked_of_pg_restore() -> None:
    fake = Clients(b"; a comment\n12; 1259 16400 TABLE app t owner\n")
    assert schema.listed(fake, fake, b"archive", "app", "t") == {12}  # type: ignore[arg-type]
    schema.listed(fake, fake, b"archive", "app")  # type: ignore[arg-type]
    schema.listed(fake, fake, b"archive", "", "t")  # type: ignore[arg-type]
    assert [argv[2:] for argv in fake.argv_seen] == [["--schema=app", "--table=t"], ["--schema=app"], ["--table=t"]]


def test_select_ends_where_entries_need_each_other() -> None:
    loop = b"1; 1259 1 TABLE s a owner\n;\tdepends on: 2\n2; 1259 2 TABLE s b owner\n;\tdepends on: 1\n"
    chosen, oids = schema.select(toc(loop), {1})
    assert [entry.dump_id for entry in chosen] == [1, 2] and oids == {1}


@MANY
@given(st.binary(min_size=1, max_size=2000))
def test_comments_come_back(archive: bytes) -> None:
    text = schema.as_comments(archive)
    assert schema.from_comments(text) == archive
    assert all(line.startswith(b"-- ") and len(line) <= 79 for line in text.splitlines())


@MANY
@given(st.binary(min_size=1, max_size=500), st.data())
def test_damaged_comments(archive: bytes, data: st.DataObject) -> None:
    text = bytearray(schema.as_comments(archive))
    text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert isinstance(schema.from_comments(bytes(text)), bytes)
    except IntegrityError:
        pass
    with pytest.raises(IntegrityError):
        schema.from_comments(b"-- something else\n" + bytes(text))


IDENTIFIERS = st.text(
    st.one_of(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), st.sampled_from("'\"\\ .,a\n\r")),
    min_size=1,
    max_size=12,
)


@MANY
@given(IDENTIFIERS, IDENTIFIERS)
def test_the_sequence_of_a_setval_line(space: str, name: str) -> None:
    """The line as backup writes it."""
    line = "SELECT pg_catalog.setval(%s, 1, true);" % literal(qualified(space, name))
    assert schema.sequence_of(line.encode()) == (space.encode(), name.encode())


@pytest.mark.parametrize(
    "line", [b"", b"SELECT 1;", b"SELECT pg_catalog.setval(", b"SELECT pg_catalog.setval('q', 1, true);"]
)
def test_lines_that_set_no_sequence(line: bytes) -> None:
    assert schema.sequence_of(line) is None


@MANY
@given(IDENTIFIERS, IDENTIFIERS)
def test_the_sequences_that_are_made(space: str, name: str) -> None:
    """As pg_dump writes them; a name in its comment may say anything on its line."""
    script = "\n--\n-- Name: x; Type: SEQUENCE\n--\n\n%s %s\n    START WITH 1\n"
    for words in ("CREATE SEQUENCE", "CREATE UNLOGGED SEQUENCE", "    SEQUENCE NAME"):
        fake = Clients((script % (words, qualified(space, name))).encode())
        entries = [entry for entry in toc() if entry.dump_id == 18]
        found = schema.sequences(fake, fake, b"archive", entries)  # type: ignore[arg-type]
        assert found == {(space.encode(), name.encode())}
    assert schema.sequences(fake, fake, b"archive", toc()[:1]) == set()  # type: ignore[arg-type]


def test_for_older_servers() -> None:
    script = b"SET lock_timeout = 0;\nSET transaction_timeout = 0;\nSELECT 'SET transaction_timeout = 0;\n';\n"
    assert schema.for_server(script, 17) == script
    assert schema.for_server(script, 16) == b"SET lock_timeout = 0;\nSELECT 'SET transaction_timeout = 0;\n';\n"


def test_the_dump_is_of_the_snapshot_and_holds_no_data() -> None:
    fake = Clients()
    filters = Filters(("a*",), ('"B"',), ("t",), ("u",), ("v",))
    started = schema.start_dump(
        fake,
        fake,
        database="db",
        encoding="LATIN1",
        snapshot="0003-1",
        filters=filters,
        lock_timeout=7,  # type: ignore[arg-type]
    )
    assert schema.dumped_by(started) == (b"PGDMP", ["pg_dump: warning: left out"])
    (argv,) = fake.argv_seen
    assert fake.encodings == ["UTF8"]
    assert argv == [
        "pg_dump", "-Fc", "--section=pre-data", "--section=post-data", "--no-blobs", "--snapshot=0003-1",
        "--lock-wait-timeout=7s",
        "--schema=a*", '--exclude-schema="B"', "--table=t", "--exclude-table=u",
        "--exclude-schema=pg_*", "--exclude-schema=information_schema",
        "--exclude-table=pg_*.*", "--exclude-table=information_schema.*", "db",
    ]  # fmt: skip


def test_indexes_are_counted() -> None:
    """As pg_dump spells what makes one; a primary key without a name of its own has one in the archive."""
    dumped = (
        b"\0CREATE INDEX a ON s.t USING btree (a);\n\0CREATE UNIQUE INDEX b ON s.t USING btree (b);\n"
        b"ALTER TABLE ONLY s.t\n    ADD CONSTRAINT t_pkey PRIMARY KEY (id);\n"
        b"ALTER TABLE ONLY s.t\n    ADD CONSTRAINT u UNIQUE (b);\n"
        b"ALTER TABLE ONLY s.t\n    ADD CONSTRAINT x EXCLUDE USING gist (r WITH &&);\n"
        b"ALTER TABLE ONLY s.t\n    ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES s.t(id);\n"
        b"ALTER INDEX s.parent ATTACH PARTITION s.child;\n"
    )
    assert schema.count_indexes(dumped) == 5


FAILURES = """pg_restore: error: could not execute query: ERROR:  %s
DETAIL:  Process 1 waits.
Command was: ALTER INDEX a ATTACH PARTITION b;


pg_restore: error: could not execute query: ERROR:  there is a second one
Command was: ALTER TABLE ONLY c
    ADD CONSTRAINT d FOREIGN KEY (e) REFERENCES f(e);


pg_restore: warning: errors ignored on restore: 2"""
MADE_AGAIN = [
    "ALTER INDEX a ATTACH PARTITION b;",
    "ALTER TABLE ONLY c\n    ADD CONSTRAINT d FOREIGN KEY (e) REFERENCES f(e);",
]


@pytest.mark.parametrize(
    "reason, found",
    [
        ("deadlock detected", MADE_AGAIN),
        ('there is no unique constraint matching given keys for referenced table "f"', MADE_AGAIN),
        ('could not create unique index "b"', []),
    ],
)
def test_what_pg_restore_s_jobs_kept_from_each_other(reason: str, found: List[str]) -> None:
    said = FAILURES % reason
    assert schema.failed_beside_others(said) == found
    assert schema.failed_beside_others(said[:-1]) == []  # it was not all
    assert schema.failed_beside_others("pg_restore: error: another\n" + said) == []
