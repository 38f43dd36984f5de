# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Damaged and hostile objects before a real server: exit status 6, and the target is as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
from _pgstream import catalog, framing
from _pgstream.errors import IntegrityError
from _pgstream.model import COMPRESSIONS, EXTENSIONS

from tests.support import compare
from tests.support.archives import Parts
from tests.support.mutations import forged, lines_of, rebuilt
from tests.support.runs import (
    Command,
    back_up,
    command_env,
    databases_like,
    local_storage,
    restore,
    server_of,
    sessions,
)

CONTENT = """
CREATE TABLE t (id int PRIMARY KEY, text text); CREATE TABLE u (id serial, text text);
INSERT INTO t SELECT g, 'row ' || g FROM generate_series(1, 2000) g;
INSERT INTO u (text) SELECT 'other ' || g FROM generate_series(1, 300) g;
SELECT lo_from_bytea(0, 'large');
"""


class Real:
    """Two backups of one database, with a change in between, in memory."""

    def __init__(self, postgres: Any, database: str, directory: Path, compression: str) -> None:
        self.parts: List[Parts] = []
        postgres.psql(CONTENT, database)
        for number in range(2):
            storage = local_storage(directory / str(number))
            key = back_up(server_of(postgres), database, storage, compression=compression, jobs=1).key
            self.parts.append(Parts(Path(storage.directory, key).read_bytes(), catalog.describe(storage, key)))
            postgres.psql("UPDATE t SET text = 'new ' || id", database)


def at(parts: Parts, section: str) -> int:
    """Number of the first block of a section."""
    return [block.section for block in parts.index.blocks].index(section)


def end_of(parts: Parts, section: str) -> int:
    return max(block.offset + block.length for block in parts.index.blocks if block.section == section)


def swapped(one: Parts, _other: Parts) -> bytes:
    blocks = [*one.blocks]
    blocks[2], blocks[3] = blocks[3], blocks[2]
    return b"".join([*blocks, one.index_block, one.footer])


def one_row_more(one: Parts, _other: Parts) -> bytes:
    """Every sum in the object agrees: only the server's own count does not."""
    number = at(one, "data")
    old = one.index.blocks[number]
    payload = one.blocks[number][framing.HEADER_LENGTHS[one.compression] :]
    blocks, lines = rebuilt(one, number, payload, rows=old.rows + 1)
    table, rows = old.tables[0]
    lines[1 + len(one.index.tables) + number]["block"]["tables"][0] = [table, rows + 1]
    lines[1 + table]["table"]["rows"] += 1
    lines[0]["index"]["rows"] += 1
    return forged(one, blocks, lines)


def odd_owner(one: Parts, _other: Parts) -> bytes:
    lines = lines_of(one.index)
    lines[0]["index"]["database"]["owner"] = "\ud800"
    return forged(one, one.blocks, lines)


def byte_of(section: str) -> Callable[[Parts, Parts], bytes]:
    def change(one: Parts, _other: Parts) -> bytes:
        block = one.index.blocks[at(one, section)]
        place = block.offset + block.length // 2
        return one.data[:place] + bytes([one.data[place] ^ 4]) + one.data[place + 1 :]

    return change


DAMAGE: Dict[str, Callable[[Parts, Parts], bytes]] = {
    "definitions alone": lambda one, other: one.data[: end_of(one, "pre")],
    "cut in the first rows": lambda one, other: one.data[: end_of(one, "pre") + 700],
    "cut before the index": lambda one, other: one.data[: end_of(one, "post")],
    "cut before the footer": lambda one, other: one.data[: -len(one.footer)],
    "last byte gone": lambda one, other: one.data[:-1],
    "a newline more": lambda one, other: one.data + b"\n",
    "zeros after it": lambda one, other: one.data + bytes(512),
    "beginning gone": lambda one, other: one.data[100:],
    "blocks swapped": swapped,
    "index of another": lambda one, other: forged(one, one.blocks, lines_of(other.index)),
    "rows of another": lambda one, other: b"".join(
        [*one.blocks[:2], other.blocks[2], *one.blocks[3:], one.index_block, one.footer]
    ),
    "a byte of the schema": byte_of("schema"),
    "a byte of the rows": byte_of("data"),
    "a byte of the rest": byte_of("rest"),
    "one row more": one_row_more,
    "an owner that cannot be": odd_owner,
}


@pytest.fixture(params=COMPRESSIONS)
def real(request: pytest.FixtureRequest, postgres: Any, database: str, tmp_path: Path) -> Real:
    return Real(postgres, database, tmp_path, request.param)


def test_a_damaged_object_changes_no_target(
    real: Real, postgres: Any, databases: Callable[[], str], tmp_path: Path
) -> None:
    """A database in use that would be replaced, an empty one, and one that is not there yet."""
    one, other = real.parts
    used, empty, absent = databases(), databases(), databases()
    postgres.psql("CREATE TABLE kept AS SELECT 7 AS seven", used)
    postgres.dropdb(absent)
    before = {name: compare.schema_text(postgres, name) for name in (used, empty)}
    storage, server = local_storage(tmp_path / "damaged"), server_of(postgres)
    key = "x" + EXTENSIONS[one.compression]
    for name, damage in DAMAGE.items():
        data = damage(one, other)
        assert data != one.data, name
        Path(storage.directory, key).write_bytes(data)
        for target, options in ((used, {"strategy": "swap"}), (empty, {}), (absent, {"create": True})):
            with pytest.raises(IntegrityError) as caught:
                restore(server, storage, key, database=target, **options)
            assert caught.value.exit_code == 6 and "Failed during" in str(caught.value), (name, target)
        assert databases_like(postgres, absent) == [], name
        assert databases_like(postgres, used) == [used] and databases_like(postgres, empty) == [empty], name
        assert before == {each: compare.schema_text(postgres, each) for each in (used, empty)}, name
        assert postgres.psql("SELECT count(*) FROM pg_largeobject_metadata", empty).strip() == "0", name
    assert postgres.psql("SELECT seven FROM kept", used).strip() == "7"
    assert sessions(postgres) == []
    # And the one that nobody touched restores.
    Path(storage.directory, key).write_bytes(one.data)
    assert restore(server, storage, key, database=absent, create=True).rows == one.index.rows == 2300


def test_the_command_exits_with_6(
    postgres: Any, database: str, databases: Callable[[], str], tmp_path: Path,
    start: Callable[..., Command], engine_env: Dict[str, str],
) -> None:  # fmt: skip
    """The definitions alone, and a byte in the rows, as a person would see it."""
    real, target = Real(postgres, database, tmp_path, "gzip"), databases()
    storage = local_storage(tmp_path / "damaged")
    env = command_env(engine_env, postgres, target, BACKUP_STORE="file://" + storage.directory)
    for name, stage in (("definitions alone", "reading the index"), ("a byte of the rows", "table data")):
        Path(storage.directory, "x.sql.gz").write_bytes(DAMAGE[name](*real.parts))
        outcome = start(env, "restore", "x.sql.gz").finish()
        assert outcome.code == 6, outcome.err
        assert outcome.message.startswith("Failed during %s: " % stage)
        failed = outcome.errors[-1]
        assert (failed["event"], failed["exit_code"]) == ("failed", 6)
        assert compare.schema_text(postgres, target).count("CREATE TABLE") == 0


def test_a_damaged_backup_is_not_fresh(postgres: Any, database: str, tmp_path: Path) -> None:
    """It must not keep the next one from being made, nor the next from failing."""
    postgres.psql(CONTENT, database)
    server, storage = server_of(postgres), local_storage(tmp_path / "store")
    first = back_up(server, database, storage)
    assert back_up(server, database, storage, fresh_within=3600).changed is False
    path = Path(storage.directory, first.key)
    whole = path.read_bytes()
    newer = Path(storage.directory, first.key.replace(first.key[-27:-7], "2099-01-01T00:00:00Z"))
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-40] + b"\0" + whole[-39:]):
        path.unlink(missing_ok=True)
        newer.write_bytes(damaged)
        done = back_up(server, database, storage, fresh_within=3600)
        assert done.changed is True and catalog.describe(storage, done.key).rows == 2300
        Path(storage.directory, done.key).unlink()


def test_one_table_of_a_backup_with_many_large_objects(
    postgres: Any, database: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    """Sequence values are looked for block by block, in order, past large objects that are not wanted."""
    large = "SELECT lo_from_bytea(0, decode(string_agg(md5(g::text), ''), 'hex')) FROM generate_series(1, 700000) g"
    postgres.psql(CONTENT + "SELECT nextval('u_id_seq');" + large, database)
    server, storage, target = server_of(postgres), local_storage(tmp_path / "store"), databases()
    made = back_up(server, database, storage)
    assert sum(block.section == "rest" for block in catalog.describe(storage, made.key).blocks) > 2
    assert restore(server, storage, made.key, database=target, tables=("u",)).rows == 300
    assert postgres.psql("SELECT nextval('u_id_seq'), count(*) FROM pg_largeobject_metadata", target).strip() == "302|0"
