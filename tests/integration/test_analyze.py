# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""After a restore the planner knows of every table what ANALYZE would tell it."""

from __future__ import annotations

from typing import Any, Dict

import pytest
from _pgstream.analyze import OVERHEAD, SAMPLE, batches

from tests.support.runs import command_env

KNOWN = """
SELECT DISTINCT schemaname, tablename, inherited FROM pg_stats
WHERE schemaname NOT IN ('information_schema', 'pg_catalog') ORDER BY 1, 2, 3
"""


def test_every_table_has_its_statistics(
    postgres: Any, everything: str, database: str, engine_env: Dict[str, str], start: Any, tmp_path: Any
) -> None:
    """Partitions and what they are partitions of, parents and children, materialized views, strange names."""
    env = command_env(engine_env, postgres, everything, BACKUP_STORE="file://%s" % tmp_path)
    made = start(env, "backup").finish()
    assert made.code == 0, made.err
    got = start(env, "restore", made.result["key"], "--target-db", database, "--jobs", "3").finish()
    assert got.code == 0, got.err
    known = postgres.psql(KNOWN, database)
    postgres.psql("ANALYZE", everything)
    assert known == postgres.psql(KNOWN, everything)
    assert known.count("|t") > 0 and known.count("|f") > 20
    assert postgres.psql("SELECT count(*) > 0 FROM pg_stats WHERE schemaname = 'pg_catalog'", database) == "t\n"


@pytest.mark.parametrize("jobs", [1, 2, 4])
def test_work_is_shared_evenly(jobs: int) -> None:
    sizes = [SAMPLE * 40, SAMPLE * 30, SAMPLE, SAMPLE // 2] + [8192] * 5000
    tables = [("t%d" % number, size) for number, size in enumerate(sizes)]
    found = batches(tables, jobs)
    assert ", ".join(found).split(", ") == [name for name, _size in tables]
    costs = [sum(min(sizes[int(name[1:])], SAMPLE) + OVERHEAD for name in batch.split(", ")) for batch in found]
    assert max(costs) <= max(SAMPLE + OVERHEAD, sum(costs) // (4 * jobs))
    assert jobs <= len(found) <= 8 * jobs + 4
    assert batches([], jobs) == []
