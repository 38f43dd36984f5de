# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How much work a byte costs, counted and not timed: a regression shows on a machine that is busy as well.

Of reads and writes the kernel counts those of pipes and files, of the command and of all its children; of sockets it
does not. Limits are what was counted, and about a half more.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest
from _pgstream.store.s3_upload import SMALLEST_PART

from tests.faults.proxy import FaultyStore
from tests.support.runs import Outcome, command_env

INJECTED = Path(__file__).resolve().parent / "injected"
MB = 1e6
SMALL_TABLES = 300
ROWS = """
CREATE TABLE big AS SELECT g AS id, md5(g::text) AS first, repeat(md5((g * 7)::text), 4) AS text,
    now() + g * interval '1 s' AS at FROM generate_series(1, 400000) g;
CREATE INDEX ON big (id);
SELECT format('CREATE TABLE small_%%s AS SELECT g AS id, md5(g::text) AS value FROM generate_series(1, 20) g', n)
    FROM generate_series(1, %d) n \\gexec
""" % SMALL_TABLES


@pytest.fixture
def store(quick_s3: Any) -> Iterator[FaultyStore]:
    with FaultyStore(int(quick_s3.endpoint_url.rpartition(":")[2])) as between:
        yield between


class Work:
    """One run, and what it took."""

    def __init__(self, outcome: Outcome, counted: Dict[str, Any], store: FaultyStore) -> None:
        assert outcome.code == 0, outcome.err
        self.result = outcome.result
        self.raw = self.result["raw_bytes"] / MB
        self.reads, self.writes = counted["io"]["syscr"], counted["io"]["syscw"]
        self.read, self.written = counted["io"]["rchar"] / MB, counted["io"]["wchar"] / MB
        self.pages, self.started = counted["pages"], counted["started"]
        self.requests = Counter(name for name, _path in store.seen)
        store.seen.clear()

    def __str__(self) -> str:
        return "%.1f MB raw: %d reads of %.1f MB, %d writes of %.1f MB, %d pages; %s; %s" % (
            self.raw, self.reads, self.read, self.writes, self.written, self.pages, self.started, dict(self.requests)
        )  # fmt: skip


@pytest.fixture
def run(
    postgres: Any, databases: Any, quick_s3: Any, quick_bucket: str, store: FaultyStore, engine_env: Any, start: Any,
    tmp_path: Path,
) -> Callable[..., Work]:  # fmt: skip
    """A run of the command with two jobs, on a database with one large table and many small ones."""
    source = databases()
    postgres.psql(ROWS, source)

    def run_one(*arguments: str) -> Work:
        place = tmp_path / "work.json"
        changes = {"RCLONE_S3_ENDPOINT": store.endpoint_url, "PGSTREAM_WORK": str(place)}
        env = command_env(engine_env, postgres, source, quick_s3, quick_bucket, **changes)
        env["PYTHONPATH"] = "%s:%s" % (INJECTED, env["PYTHONPATH"])
        outcome = start(env, *arguments, "--jobs", "2").finish()
        work = Work(outcome, json.loads(place.read_text()), store)
        print(work)
        return work

    return run_one


def test_what_a_backup_and_a_restore_cost(run: Callable[..., Work], databases: Callable[[], str]) -> None:
    made = run("backup")
    assert made.result["tables"] == 1 + SMALL_TABLES and made.raw > 75
    # Each row is written once into a pipe and read once out of it; 16 MB are programs and the store's description.
    assert made.read < made.raw * 1.02 + 16 and made.written < made.raw * 1.02 + 1
    assert made.reads < 1500 + 24 * made.raw and made.writes < 200 + 18 * made.raw
    # The program itself, what is in flight, and no new memory for rows: they pass through the same.
    assert made.pages < 22000 + 100 * made.raw
    # pg_dump says its version and dumps once, pg_restore reads that; small tables share a psql.
    assert made.started["pg_dump"] == 2 and made.started["pg_restore"] == 3 and made.started["psql"] <= 15
    parts = -(-made.result["stored_bytes"] // SMALLEST_PART)
    assert made.requests.pop("UploadPart") == parts and sum(made.requests.values()) <= 6

    got = run("restore", made.result["key"], "--target-db", databases())
    assert got.result["rows"] == made.result["rows"]
    assert got.read < got.raw * 1.02 + 16 and got.written < got.raw * 1.02 + 1
    assert got.reads < 1500 + 36 * got.raw and got.writes < 200 + 28 * got.raw
    assert got.pages < 22000 + 100 * got.raw
    # Definitions before and after, what there is, and the index; a psql for definitions, each worker, and the rest.
    assert got.started["pg_dump"] == 1 and 3 <= got.started["pg_restore"] <= 4 and got.started["psql"] <= 4
    assert got.requests["HeadObject"] == 1 and got.requests["GetObject"] <= 16 and len(got.requests) == 2
