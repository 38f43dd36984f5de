# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the fault tests: one source database for all cells, one backup of it, and a scene for each cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from tests.support.runs import Proxy, back_up, s3_storage, server_of

from .harness import INJECTED, Scene
from .proxy import FaultyStore

# 24 MB and 10 MB of text that gzip halves: two parts of an upload, several blocks, several runs of a restore, and more
# than fits into the buffers of pipes and sockets.
SOURCE = """
CREATE TABLE big AS SELECT g AS id, sha512((g || 'a')::bytea) a, sha512((g || 'b')::bytea) b,
    sha512((g || 'c')::bytea) c FROM generate_series(1, {big}) g;
CREATE TABLE medium AS SELECT g AS id, sha512((g || 'd')::bytea) a, sha512((g || 'e')::bytea) b
    FROM generate_series(1, {medium}) g;
CREATE TABLE small (id serial PRIMARY KEY, big_id int, note text CHECK (note <> ''));
INSERT INTO small (big_id, note) SELECT g, 'note ' || g FROM generate_series(1, 10) g;
ALTER TABLE big ADD PRIMARY KEY (id);
CREATE INDEX medium_a ON medium (a);
ALTER TABLE small ADD CONSTRAINT small_big FOREIGN KEY (big_id) REFERENCES big;
CREATE MATERIALIZED VIEW counted AS SELECT count(*) FROM medium;
SELECT lo_from_bytea(4711, sha512('large')), lo_from_bytea(4712, decode(repeat('ab', 3000000), 'hex'));
"""
ROWS = 100010
LITTLE_ROWS = 510


@pytest.fixture(scope="session")
def source(postgres: Any) -> str:
    postgres.start()
    name = postgres.createdb("fault_source")
    postgres.psql(SOURCE.format(big=60000, medium=40000), name)
    return name


@pytest.fixture(scope="session")
def little(postgres: Any) -> str:
    """The same with few rows, for what goes wrong elsewhere than with them."""
    postgres.start()
    name = postgres.createdb("fault_little")
    postgres.psql(SOURCE.format(big=300, medium=200), name)
    return name


@pytest.fixture(scope="session")
def stored(postgres: Any, source: str, _s3: Any) -> Dict[str, str]:
    """A backup of the source, in a bucket that the restores share."""
    _s3.start()
    bucket = _s3.make_bucket("test-fault-restores")
    made = back_up(server_of(postgres), source, s3_storage(_s3, bucket), jobs=2)
    assert made.rows == ROWS
    return {"bucket": bucket, "key": made.key}


@pytest.fixture
def fault_env(engine_env: Dict[str, str]) -> Dict[str, str]:
    return dict(engine_env, PYTHONPATH="%s:%s" % (INJECTED, engine_env["PYTHONPATH"]))


@pytest.fixture
def scene(postgres: Any, source: str, s3: Any, bucket: str, pg_proxy: Proxy, tmp_path: Path) -> Iterator[Scene]:
    with FaultyStore(s3.port) as store:
        made = Scene(postgres, s3, bucket, pg_proxy, store, tmp_path)
        yield made
        made.release()
    postgres.start()
    s3.start()
