# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Statistics for the planner, gathered for several tables at a time."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from .model import Server
from .session import Session, share_out

SAMPLE = 256 << 20  # bytes; of a larger table no more is read: 30,000 pages with the server's default target
OVERHEAD = 32 << 10  # bytes that an empty table counts for

# Partitions are gathered with the table that they are partitions of.
_TABLES = """
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
       CASE c.relkind WHEN 'p' THEN (SELECT COALESCE(sum(pg_catalog.pg_relation_size(p.relid)), 0)::bigint
                                     FROM pg_catalog.pg_partition_tree(c.oid) p WHERE p.isleaf)
       ELSE pg_catalog.pg_relation_size(c.oid) END
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm', 'p') AND NOT c.relispartition AND c.relpersistence <> 't' AND NOT c.relisshared
ORDER BY 2 DESC
"""


def analyze(server: Server, database: str, jobs: int) -> None:
    """What ANALYZE alone does for a database, the largest tables first, `jobs` at a time."""

    def connect() -> Session:
        return Session(server, database)

    with connect() as session:
        tables = [(str(name), int(size)) for name, size in session.rows(_TABLES)]
    share_out(batches(tables, jobs), jobs, connect, lambda session, names: session.execute("ANALYZE " + names))


def batches(tables: Sequence[Tuple[str, int]], jobs: int) -> List[str]:
    """Lists of names for one statement each: of about equal work, several for every job."""
    costs = [min(size, SAMPLE) + OVERHEAD for _name, size in tables]
    most = sum(costs) // (4 * jobs)
    found: List[str] = []
    batch: List[str] = []
    work = 0
    for (name, _size), cost in zip(tables, costs):
        if batch and work + cost > most:
            found.append(", ".join(batch))
            batch, work = [], 0
        batch.append(name)
        work += cost
    if batch:
        found.append(", ".join(batch))
    return found
