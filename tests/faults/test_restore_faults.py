# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Somebody or something dies, stalls or lies at each stage of a restore: it fails, says why, and the target is as it
was."""

from __future__ import annotations

from typing import Any, Callable, Dict

import pytest

from tests.support.runs import Command, command_env, databases_like

from .conftest import ROWS
from .harness import KILLED, SERVER_GONE, Cell, Precious, Scene, held_at, held_program, held_store, limits

STAGES = {
    "index": held_store("GetObject"),
    "head script": held_program("--section=pre-data"),
    "head": held_at(b"CREATE TABLE public.big"),
    "data": held_at(b'COPY "public"."big"', after=0),
    "rest": held_at(b"pg_catalog.setval"),
    "indexes": held_at(b"ADD CONSTRAINT small_pkey"),
    "analyze": held_at(b"ANALYZE "),
    "rename": held_at(b"RENAME TO"),
    "renamed": held_at(b"COMMIT\0", after=0),  # of the swap: psql ends its own with a semicolon
}
DATA, INDEXES, INDEX = "table data", "indexes and constraints", "reading the index"
CELLS = [
    # who dies on our side
    Cell("head script", "held pg_restore", 1, "head", "pg_restore was killed by signal 9"),
    Cell("head", "psql", 1, "head", "psql was killed by signal 9"),
    Cell("data", "psql", 1, DATA, "psql was killed by signal 9"),
    Cell("data", "second psql", 1, DATA, "psql was killed by signal 9"),
    Cell("data", "psql", 1, DATA, "psql was killed by signal 9", "in_place"),
    Cell("rest", "psql", 1, "rest of the data", "psql was killed by signal 9"),
    Cell("indexes", "pg_restore", 1, INDEXES, "pg_restore was killed by signal 9"),
    Cell("indexes", "pg_restore", 1, INDEXES, "pg_restore was killed by signal 9", "in_place"),
    # the server's side
    Cell("head", "backend", 3, "head", SERVER_GONE),
    Cell("data", "backend", 3, DATA, SERVER_GONE),
    Cell("data", "backend", 3, DATA, SERVER_GONE, "in_place"),
    Cell("rest", "backend", 3, "rest of the data", SERVER_GONE),
    Cell("indexes", "backend", 3, INDEXES, SERVER_GONE),
    Cell("analyze", "backend", 3, "analyze", SERVER_GONE),
    Cell("data", "leader", 3, "rename", SERVER_GONE),
    Cell("rename", "leader", 3, "rename", SERVER_GONE),
    Cell("head", "restart", 3, "head", SERVER_GONE),
    Cell("data", "restart", 3, DATA, SERVER_GONE),
    Cell("data", "restart", 3, DATA, SERVER_GONE, "in_place"),
    Cell("indexes", "restart", 3, INDEXES, SERVER_GONE),
    Cell("rename", "restart", 3, "rename", SERVER_GONE),
    # the store's side
    Cell("index", "HeadObject 403", 4, "validation", "AccessDenied, HTTP 403"),
    Cell("index", "HeadObject 500", 4, "validation", "HTTP 500"),
    Cell("index", "GetObject 403", 4, INDEX, "AccessDenied, HTTP 403"),
    Cell("index", "GetObject 500", 4, INDEX, "InternalError, HTTP 500"),
    Cell("index", "GetObject reset", 4, INDEX, "inaccessible"),
    Cell("index", "GetObject stall", 4, INDEX, "timeout|timed out"),
    Cell("index", "GetObject corrupt", 6, DATA, "damaged"),  # without its footer it is a foreign stream
    Cell("data", "GetObject 403 later", 4, DATA, "AccessDenied, HTTP 403"),
    Cell("data", "GetObject 503 later", 4, DATA, "SlowDown, HTTP 503"),
    Cell("data", "GetObject reset later", 4, DATA, "inaccessible"),
    Cell("data", "GetObject corrupt later", 6, DATA, ""),
    Cell("data", "GetObject corrupt later", 6, DATA, "", "in_place"),
    # the run itself
    Cell("index", "SIGTERM", 1, INDEX, "Interrupted by SIGTERM"),
    Cell("head", "SIGTERM", 1, "head", "Interrupted by SIGTERM"),
    Cell("data", "SIGTERM", 1, DATA, "Interrupted by SIGTERM"),
    Cell("data", "SIGTERM", 1, DATA, "Interrupted by SIGTERM", "in_place"),
    Cell("data", "SIGINT", 1, DATA, "Interrupted by SIGINT"),
    Cell("rest", "SIGTERM", 1, "rest of the data", "Interrupted by SIGTERM"),
    Cell("indexes", "SIGTERM", 1, INDEXES, "Interrupted by SIGTERM"),
    Cell("analyze", "SIGTERM", 1, "analyze", "Interrupted by SIGTERM"),
    Cell("rename", "SIGTERM", 1, "rename", "Interrupted by SIGTERM"),
    Cell("index", "timeout", 1, INDEX, "timeout of 2s reached.*Raise timeout"),
    Cell("index", "SIGKILL", KILLED),
    Cell("head", "SIGKILL", KILLED),
    Cell("data", "SIGKILL", KILLED),
    Cell("indexes", "SIGKILL", KILLED),
    Cell("rename", "SIGKILL", KILLED),
]
#: What a restore gets over.
HARMLESS = [
    Cell("index", "GetObject 500 once", 0),
    Cell("index", "GetObject reset once", 0),
    Cell("index", "GetObject truncate once", 0),
    Cell("index", "GetObject stall once", 0),
    Cell("index", "GetObject delay", 0),
    Cell("data", "store restart", 0),
    Cell("data", "GetObject reset later once", 0),
    Cell("data", "GetObject truncate later once", 0),
    Cell("data", "GetObject 503 later once", 0),
    Cell("renamed", "SIGTERM", 0),
    Cell("renamed", "leader", 0),
]


@pytest.fixture
def restores(
    scene: Scene, stored: Dict[str, str], database: str, fault_env: Dict[str, str], start: Any
) -> Callable[[Cell], Callable[[], Command]]:
    """What starts the restore of a cell."""

    def of_cell(cell: Cell) -> Callable[[], Command]:
        changes = {**scene.changes(), **limits(cell)}
        env = command_env(fault_env, scene.postgres, database, scene.s3, stored["bucket"], **changes)
        strategy = "auto" if cell.strategy == "in_place" else cell.strategy
        return lambda: start(env, "restore", stored["key"], "--strategy", strategy, "--jobs", "2")

    return of_cell


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_restore_that_fails(cell: Cell, scene: Scene, database: str, restores: Any) -> None:
    target = Precious(scene.postgres, database, cell.strategy)
    scene.play(cell, STAGES, restores(cell))
    scene.check_end(cell, "restore")
    target.is_untouched(leftovers=cell.code == KILLED)


@pytest.mark.parametrize("cell", HARMLESS, ids=str)
def test_a_restore_that_gets_over_it(cell: Cell, scene: Scene, database: str, restores: Any) -> None:
    Precious(scene.postgres, database, "swap")
    scene.play(cell, STAGES, restores(cell))
    scene.check_end(cell, "restore")
    result = scene.outcome.result
    assert result["rows"] == ROWS and result["database"] == database
    assert scene.postgres.psql("SELECT count(*) FROM big", database) == "60000\n"
    assert databases_like(scene.postgres, database) == [database, result["old_database"]]
    assert scene.postgres.psql("SELECT answer FROM precious", result["old_database"]) == "42\n"
    scene.postgres.dropdb(result["old_database"])


def test_what_a_killed_restore_left_is_swept_by_the_next(
    scene: Scene, database: str, databases: Callable[[], str], restores: Any, tmp_path: Any
) -> None:
    """Only what was made for the same target, and nothing that only looks like it."""
    Precious(scene.postgres, database, "swap")
    lookalike = scene.postgres.createdb(database + "_pgstream_0123456789ab")
    killed = Cell("indexes", "SIGKILL", KILLED)
    scene.play(killed, STAGES, restores(killed))
    (left,) = set(databases_like(scene.postgres, database)) - {database, lookalike}
    again = Cell("index", "nothing", 0)
    scene.play(again, STAGES, restores(again))
    assert scene.outcome.code == 0, scene.outcome.err
    kept = scene.outcome.result["old_database"]
    assert set(databases_like(scene.postgres, database)) == {database, lookalike, kept}
    assert [line["object"] for line in scene.outcome.lines if line["event"] == "swept"] == [left]
    for name in (lookalike, kept):
        scene.postgres.dropdb(name)
