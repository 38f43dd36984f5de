# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows that are copied while pg_dump still reads the definitions, behind which they come in the object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from _pgstream.errors import BackupError

from tests.support.compare import differences
from tests.support.runs import KeptLog, back_up, local_storage, restore, server_of, sessions

TABLES = """
CREATE TABLE kept AS SELECT g AS id, md5(g::text) AS text FROM generate_series(1, 60000) g;
CREATE TABLE other AS SELECT g AS id, repeat(md5(g::text), 9) AS text FROM generate_series(1, 60000) g;
CREATE INDEX ON kept (id);
"""


def clients(bindir: str, place: Path, pg_dump: str) -> str:
    """A directory of PostgreSQL's programs whose pg_dump is this script, when it is to dump."""
    place.mkdir()
    for name in ("psql", "pg_restore"):
        (place / name).symlink_to(os.path.join(bindir, name))
    real = os.path.join(bindir, "pg_dump")
    (place / "pg_dump").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec %s "$@"\n%s\n' % (real, pg_dump.replace("PG_DUMP", real))
    )
    (place / "pg_dump").chmod(0o755)
    return str(place)


def test_rows_do_not_wait_for_the_definitions(postgres: Any, databases: Any, tmp_path: Path) -> None:
    """This pg_dump begins only when rows were asked for."""
    database, copy = databases(), databases()
    postgres.psql(TABLES, database)
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgstream.backup' AND query LIKE 'COPY%%'"
        " AND datname = '%s'" % database
    )
    script = 'until [ "$(PGDATABASE=%s %s/psql -XAtc "%s")" -ge 1 ]; do :; done; exec PG_DUMP "$@"' % (
        database, postgres.bindir, asked
    )  # fmt: skip
    server = server_of(postgres, bindir=clients(postgres.bindir, tmp_path / "bin", script))
    storage = local_storage(tmp_path / "store")
    made = back_up(server, database, storage, jobs=2)
    assert made.rows == 120000
    restore(server_of(postgres), storage, made.key, database=copy, strategy="swap", keep_old=False)
    assert differences(postgres, database, postgres, copy) == []


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_table_that_pg_dump_leaves_out(postgres: Any, databases: Any, tmp_path: Path, jobs: int) -> None:
    """Its rows may be among those that wait already: they are made again without it."""
    database, copy = databases(), databases()
    postgres.psql(TABLES, database)
    script = 'exec PG_DUMP --exclude-table=other "$@"'
    server = server_of(postgres, bindir=clients(postgres.bindir, tmp_path / "bin", script))
    storage, log = local_storage(tmp_path / "store"), KeptLog()
    made = back_up(server, database, storage, log, jobs=jobs)
    assert log.events().count("again") == jobs - 1
    assert [each.name for each in made.table_rows] == ["kept"] and made.rows == 60000
    assert [path.name for path in (tmp_path / "store").iterdir() if path.is_file()] == [made.key]
    restore(server_of(postgres), storage, made.key, database=copy, strategy="swap", keep_old=False)
    assert postgres.psql("SELECT count(*) FROM kept", copy) == "60000\n"


def test_a_pg_dump_that_fails_behind_the_rows(postgres: Any, databases: Any, tmp_path: Path) -> None:
    database = databases()
    postgres.psql(TABLES, database)
    script = 'sleep 1; echo "pg_dump: error: it is broken" >&2; exit 1'
    server = server_of(postgres, bindir=clients(postgres.bindir, tmp_path / "bin", script))
    with pytest.raises(BackupError, match="pg_dump: error: it is broken") as caught:
        back_up(server, database, local_storage(tmp_path / "store"), jobs=2)
    assert caught.value.stage == "schema dump"
    assert not any(path.is_file() for path in (tmp_path / "store").rglob("*"))
    assert sessions(postgres) == []
