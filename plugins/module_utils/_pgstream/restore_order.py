# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pure: what a restore's workers do next. An index or a constraint of a large table is made as soon as its rows are
there, while those of other tables are loaded, so that no processor idles behind the locks of one table at the end."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Collection, Dict, FrozenSet, Iterable, Iterator, List, Sequence, Set, Tuple, Union

from .model import Block, Index
from .schema import Entry

#: Raw bytes of a table whose indexes are worth a pg_restore of their own, which takes 10 ms.
WORTH = 16 << 20
WORTH_OF_ARCHIVE = 16  # times the archive's size, as each reads it whole: measured on 4 MB, 50 ms
_PG_CLASS = 1259
_PG_CONSTRAINT = 2606


@dataclass(frozen=True)
class Early:
    """An index or a constraint that may be made before the rows of other tables are there."""

    entries: Tuple[Entry, ...]  # it, and its comments
    tables: FrozenSet[int]  # numbers in the index
    keys: FrozenSet[int]  # dump ids of others of these that come first
    alone: bool  # takes a lock on its tables that no index can be made beside

    @property
    def foreign(self) -> bool:
        return self.entries[0].text.startswith(b"FK ")


Task = Union[List[Block], Early]


def large_tables(index: Index, archive_size: int) -> Set[int]:
    """Numbers of the tables that are worth it. `archive_size`: bytes of the schema archive."""
    limit = max(WORTH, WORTH_OF_ARCHIVE * archive_size)
    return {table.number for table in index.tables if table.raw_bytes >= limit}


def early_entries(toc: Sequence[Entry], index: Index, large: Collection[int]) -> List[Early]:
    """What may be made early: indexes, keys and foreign keys of these tables, and the keys that those refer to.

    Only what needs nothing but tables whose rows are in the backup and keys on them. A function that an index calls may
    read other tables, and one of an extension its configuration tables, whatever it is declared as: where there
    are rows of these, which come last, nothing is early. Nor is anything of partitions and what has them, whose keys
    hang together.
    """
    if any(rows for block in index.blocks if block.section == "rest" for _number, rows in block.tables):
        return []
    attachments = [entry for entry in toc if entry.text.startswith(b"TABLE ATTACH ") and not entry.oid]
    attached = {need for entry in attachments for need in entry.needs}
    numbers = {table.oid: table.number for table in index.tables}
    tables = {
        entry.dump_id: numbers[entry.oid]
        for entry in toc
        if entry.catalogue == _PG_CLASS and entry.text.startswith(b"TABLE ") and entry.oid in numbers
        if entry.dump_id not in attached
    }
    found: Dict[int, Early] = {}
    for foreign in (False, True):  # they need keys, wherever in the archive these are
        for place, entry in enumerate(toc):
            needs = set(entry.needs)
            keys = frozenset(needs & found.keys()) if foreign else frozenset()
            # A foreign key to what is not in the backup has no key among its needs.
            if _is_made(entry, foreign) and bool(keys) == foreign and needs - keys and needs - keys <= tables.keys():
                of = {tables[need] for need in needs - keys}.union(*(found[key].tables for key in keys))
                alone = entry.catalogue == _PG_CONSTRAINT
                found[entry.dump_id] = Early(_with_comments(toc, place), frozenset(of), keys, alone)
    wanted = {number for number, early in found.items() if early.tables & set(large)}
    wanted |= {key for number in wanted for key in found[number].keys}
    return [early for number, early in found.items() if number in wanted]


def _with_comments(toc: Sequence[Entry], place: int) -> Tuple[Entry, ...]:
    """A comment has no section of its own: pg_restore takes it for one of that of the entry before it in a list."""
    end = place + 1
    while end < len(toc) and toc[end].text.startswith(b"COMMENT ") and not toc[end].catalogue:
        end += 1
    return tuple(toc[place:end])


def _is_made(entry: Entry, foreign: bool) -> bool:
    """By its catalogue's OID too: a schema may be called INDEX."""
    if foreign:
        return entry.catalogue == _PG_CONSTRAINT and entry.text.startswith(b"FK CONSTRAINT ")
    kinds = {_PG_CLASS: b"INDEX ", _PG_CONSTRAINT: b"CONSTRAINT "}
    return entry.catalogue in kinds and entry.text.startswith(kinds[entry.catalogue])


class Order(Iterator[Task]):
    """Tasks for `run_parallel`, which calls `done` with each that went well, and `close` so that nobody waits on.

    What can be made comes before rows, and first the rows of tables that have most to be made. Only indexes, which
    share their lock, are made side by side on one table, and foreign keys one at a time: so no worker waits for
    another's lock, nor do two lock each other out. It ends when all rows are loaded and nothing can be made beside what
    is being made: the rest, which `made` does not have, is left to pg_restore's own jobs.
    """

    def __init__(self, runs: Iterable[List[Block]], early: Sequence[Early], index: Index) -> None:
        sizes = {table.number: table.raw_bytes for table in index.tables}
        ranks = _ranks(early, sizes)
        last = len(ranks)
        self._runs = sorted(
            runs, key=lambda run: min((ranks.get(number, last) for number in _tables(run)), default=last)
        )
        self._runs.reverse()  # taken from the end
        self._pending: Dict[int, int] = {}  # runs with rows of a table that are not loaded
        for run in self._runs:
            for number in _tables(run):
                self._pending[number] = self._pending.get(number, 0) + 1
        self._loading = 0
        self._sizes = sizes
        self._waiting = list(early)
        self._ready: List[Early] = []
        self._making: List[Early] = []
        self._closed = False
        self._changed = threading.Condition()
        self.made: Set[int] = set()  # dump ids
        self._look()

    def __next__(self) -> Task:
        with self._changed:
            while not self._closed:
                for early in self._ready:
                    if not any(_in_the_way(early, other) for other in self._making):
                        self._ready.remove(early)
                        self._making.append(early)
                        return early
                if self._runs:
                    self._loading += 1
                    return self._runs.pop()
                if not (self._loading and (self._waiting or self._ready)):
                    self._closed = True
                else:
                    self._changed.wait()
            raise StopIteration

    def done(self, task: Task, made: bool = True) -> None:
        """`made`: False if it must be left to the end after all."""
        with self._changed:
            if isinstance(task, Early):
                self._making.remove(task)
                if made:
                    self.made.update(entry.dump_id for entry in task.entries)
            else:
                self._loading -= 1
                for number in _tables(task):
                    self._pending[number] -= 1
            self._look()
            self._changed.notify_all()

    def close(self) -> None:
        """No further task."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _look(self) -> None:
        """What became ready to be made. First foreign keys, of which the next one waits for this, then what they wait
        for; of them the largest."""
        waiting, self._waiting = self._waiting, []
        for early in waiting:
            is_ready = early.keys <= self.made and not any(self._pending.get(number) for number in early.tables)
            (self._ready if is_ready else self._waiting).append(early)
        self._ready.sort(
            key=lambda each: (not each.foreign, not each.alone, -max(self._sizes[number] for number in each.tables))
        )


def _tables(run: Sequence[Block]) -> Set[int]:
    return {number for block in run for number, _rows in block.tables}


def _in_the_way(early: Early, other: Early) -> bool:
    return (early.foreign and other.foreign) or ((early.alone or other.alone) and bool(early.tables & other.tables))


def _ranks(early: Sequence[Early], sizes: Dict[int, int]) -> Dict[int, int]:
    """The places of tables by the work that waits for their rows, each with those that foreign keys join it to."""
    work: Dict[int, int] = {}
    joined: Dict[int, Set[int]] = {}
    for each in early:
        for number in each.tables:
            work[number] = work.get(number, 0) + sizes[number] * (2 if each.foreign else 1)
            joined.setdefault(number, set()).update(each.tables)
    ranks: Dict[int, int] = {}
    longest_first = sorted(work, key=lambda number: (-work[number], number))
    for number in longest_first:
        ranks.setdefault(number, len(ranks))
        for other in sorted(joined[number], key=longest_first.index):
            ranks.setdefault(other, len(ranks))
    return ranks
