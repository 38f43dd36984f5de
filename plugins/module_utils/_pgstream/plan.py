# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pure: tables and their sizes -> COPY tasks in the order in which they start, and the sizes that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Optional, Sequence, Tuple

from .postgres import TableFacts
from .quoting import qualified

MIB = 1 << 20
TASK_SIZE = 256 * MIB  # bytes on the server's disk that one psql run copies, twice that of a table that is not split
SMALLEST_TASK = 4 * MIB  # below it, starting psql costs more than a second stream wins
TABLES_PER_TASK = 250  # each holds one lock in its worker's session
TASK_OVERHEAD = 32 << 10  # bytes that an empty table counts for: its statement is not free
BLOCK_SIZE = 8 * MIB  # raw bytes of a block, before the index would grow too long
MAX_BLOCKS = 50000


@dataclass(frozen=True)
class CopyItem:
    """One COPY: a whole table, or the pages from `first_page` (included) to `end_page` (excluded; None: to the end)."""

    table: int  # number in the index
    facts: TableFacts
    first_page: int = 0
    end_page: Optional[int] = None

    @property
    def name(self) -> str:
        return qualified(self.facts.schema, self.facts.name)

    @property
    def whole(self) -> bool:
        return self.first_page == 0 and self.end_page is None

    def out_statement(self) -> str:
        """COPY ... TO STDOUT for these rows."""
        return "COPY %s TO STDOUT" % self._source()

    def out_command(self) -> str:
        """The same as psql's own \\copy, which is one line; empty where a name has several."""
        source = self._source()
        return "" if "\n" in source else "\\copy %s to pstdout" % source

    def _source(self) -> str:
        """What COPY takes rows from. Only COPY (SELECT ...) can be limited to a ctid range."""
        columns = ", ".join(self.facts.columns)
        if self.whole:
            return self.name + (" (%s)" % columns if columns else "")
        bounds = ["ctid >= '(%d,0)'" % self.first_page] if self.first_page else []
        bounds += ["ctid < '(%d,0)'" % self.end_page] if self.end_page is not None else []
        return "(SELECT %s FROM ONLY %s WHERE %s)" % (columns, self.name, " AND ".join(bounds))

    def in_statement(self) -> str:
        """The line of the script before the rows."""
        columns = ", ".join(self.facts.columns)
        return "COPY %s%s FROM stdin;\n" % (self.facts.load_via or self.name, " (%s)" % columns if columns else "")


@dataclass(frozen=True)
class CopyTask:
    """What one psql run copies."""

    items: Tuple[CopyItem, ...]
    size: int  # estimated bytes


def plan_copies(tables: Sequence[Tuple[int, TableFacts]], jobs: int, task_size: int = 0) -> List[CopyTask]:
    """Split large tables, batch small ones, largest first; every page of every table in exactly one task.

    With one job nothing is split, and no table of less than two tasks: a range costs the server a tenth more time than
    a whole table.
    """
    total = sum(facts.size for _number, facts in tables)
    target = task_size or min(TASK_SIZE, max(SMALLEST_TASK, total // (jobs * 4)))
    tasks: List[CopyTask] = []
    batch: List[CopyItem] = []
    batched = 0
    for number, facts in sorted(tables, key=lambda entry: -entry[1].size):
        pieces = min(facts.pages, -(-facts.size // target))
        if jobs > 1 and facts.splittable and pieces > 1 and facts.size > 2 * target:
            bounds = [facts.pages * piece // pieces for piece in range(pieces)]
            ends: List[Optional[int]] = [*bounds[1:], None]
            for first, end in zip(bounds, ends):
                tasks.append(CopyTask((CopyItem(number, facts, first, end),), facts.size // pieces))
        elif facts.size >= target:
            tasks.append(CopyTask((CopyItem(number, facts),), facts.size))
        else:
            cost = facts.size + TASK_OVERHEAD
            if batch and (batched + cost > target or len(batch) >= TABLES_PER_TASK):
                tasks.append(CopyTask(tuple(batch), batched))
                batch, batched = [], 0
            batch.append(CopyItem(number, facts))
            batched += cost
    if batch:
        tasks.append(CopyTask(tuple(batch), batched))
    return sorted(tasks, key=lambda task: -task.size)


def block_size(estimated: int) -> int:
    """Raw bytes of a block: 8 MiB, more where the index would otherwise pass 50,000 blocks.

    The estimate is of the server's disk; text may be several times that, hence the factor.
    """
    needed = -(-4 * estimated // MAX_BLOCKS)
    return max(BLOCK_SIZE, -(-needed // MIB) * MIB)


def part_size(estimated: int, smallest: int, max_parts: int) -> int:
    """Bytes of each part of the upload, equal for all but the last, so that `max_parts` hold twice the estimate.

    Compressed rows take less than the server's disk does, unless they were compressed there already; twice covers
    hexadecimal of those. With 8 MiB and 10,000 parts it grows past 42 GB on the server's disk, and memory with it.
    """
    needed = -(-2 * estimated // max_parts)
    return max(smallest, -(-needed // MIB) * MIB)
