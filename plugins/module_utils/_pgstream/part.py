# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the filters of a backup mean in one database. pg_dump decides in the end: a table that it takes and we did not
is an error."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import List, Sequence, Set, Tuple

from . import postgres
from .errors import UsageError
from .events import Log
from .model import Filters
from .patterns import matches
from .postgres import Leader, TableName
from .quoting import qualified

_OPTION = len("--exclude-table=") + 9  # bytes of an argument beside its value: its name, its end, its address
_MOST = os.sysconf("SC_ARG_MAX") // 2  # bytes of arguments; the other half is for the environment


@dataclass(frozen=True)
class Part:
    """`tables`: those that the filters do not rule out. `bare`: OIDs of those whose rows are left out. `named`: the
    filters for pg_dump, to which a partitioned table does not mean its partitions (before 16, nothing can)."""

    tables: List[TableName]
    bare: Set[int]
    named: Filters


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
    """The tables that pg_dump takes with these filters. UsageError where they have more partitions than it can be
    told of."""
    tables = postgres.user_tables(leader)

    def meant(patterns: Sequence[str]) -> Tuple[Set[int], Tuple[str, ...]]:
        """OIDs of the tables that match and of their partitions, and patterns that mean them all."""
        if not patterns:
            return set(), ()
        seen = postgres.as_seen(leader, patterns)
        found = {each.oid for each in tables if matches(seen, each.schema, each.name, each.visible)}
        below = [each for each in postgres.partitions(leader, found) if each[0] not in found]
        exact = (qualified(schema, name) for _oid, schema, name in below)
        return found.union(each[0] for each in below), (*patterns, *postgres.as_given(leader, exact))

    def in_schemas(patterns: Sequence[str]) -> Set[int]:
        seen = postgres.as_seen(leader, patterns)
        return {each.oid for each in tables if matches(seen, "", each.schema)}

    taken, take = meant(filters.tables)
    excluded, exclude = meant(filters.exclude_tables)
    if not filters.tables:
        taken = in_schemas(filters.schemas or ["*"]) - in_schemas(filters.exclude_schemas)
    given = replace(filters, tables=take, exclude_tables=exclude)
    if sum(len(os.fsencode(each)) + _OPTION for each in take + exclude) > _MOST:
        raise UsageError(
            "the tables have too many partitions to name each to pg_dump",
            hint="Choose by schema, or by a pattern that matches their partitions too: public.events*.",
        )
    bare, _patterns = meant(filters.exclude_table_data)
    taken -= excluded
    return Part([each for each in tables if each.oid in taken], bare, given)
