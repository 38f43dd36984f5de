# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the filters of a backup mean in one database. pg_dump decides in the end: a table that it takes and we did not
is an error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Set

from . import postgres
from .errors import UsageError
from .events import Log
from .model import Filters
from .patterns import matches
from .postgres import Leader, TableName


@dataclass(frozen=True)
class Part:
    """`tables`: those that the filters do not rule out. `bare`: OIDs of those whose rows are left out."""

    tables: List[TableName]
    bare: Set[int]


def check_patterns(leader: Leader, database: str, filters: Filters, log: Log) -> None:
    """UsageError for what is to be taken and is not there, which pg_dump would leave out without a word; a warning for
    what is to be left out and is not there."""
    missing = postgres.unmatched(leader, filters.schemas, schemas=True) + postgres.unmatched(leader, filters.tables)
    if missing:
        raise UsageError(
            "nothing in database %s matches %s" % (database, ", ".join(missing)),
            hint="Each pattern of what to take must match. Letters fold to lower case outside of double quotes.",
        )
    idle = postgres.unmatched(leader, filters.exclude_schemas, schemas=True)
    for pattern in idle + postgres.unmatched(leader, filters.exclude_tables + filters.exclude_table_data):
        log.warning("pattern_matches_nothing", pattern=pattern)


def chosen(leader: Leader, filters: Filters) -> Part:
    """The tables that pg_dump takes with these filters."""
    tables = postgres.user_tables(leader)

    def meant(patterns: Sequence[str]) -> Set[int]:
        seen = postgres.as_seen(leader, patterns)
        return {each.oid for each in tables if matches(seen, each.schema, each.name, each.visible)}

    def in_schemas(patterns: Sequence[str]) -> Set[int]:
        seen = postgres.as_seen(leader, patterns)
        return {each.oid for each in tables if matches(seen, "", each.schema)}

    if filters.tables:
        taken = meant(filters.tables)
    else:
        taken = in_schemas(filters.schemas or ["*"]) - in_schemas(filters.exclude_schemas)
    taken -= meant(filters.exclude_tables)
    return Part([each for each in tables if each.oid in taken], meant(filters.exclude_table_data))
