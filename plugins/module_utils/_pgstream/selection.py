# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a backup a restore takes: definitions, tables, and the blocks that hold them. No other block is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, FrozenSet, Iterator, List, Optional, Sequence, Set, Tuple

from . import archive, schema
from .clients import Clients
from .errors import UsageError, given
from .events import Log
from .loading import Reader
from .model import Block, Index, RestoreRequest, Table
from .process import Processes
from .store.base import Store

_NAMED = 10  # objects in a message
_LARGE_OBJECT = b"\nSELECT pg_catalog.lo_create('"


@dataclass(frozen=True)
class Selection:
    """`archive` is empty where no definition is wanted. None: all entries of it; all tables, and all of `rest`."""

    archive: bytes
    entries: Optional[List[schema.Entry]]
    tables: Optional[Set[int]]
    data: Tuple[Block, ...]
    rest: Tuple[Block, ...]
    sequences: FrozenSet[Tuple[bytes, bytes]] = frozenset()  # (schema, name) of those that `entries` make

    def chosen(self, index: Index) -> Tuple[Table, ...]:
        """The tables whose rows are taken."""
        return tuple(table for table in index.tables if self.tables is None or table.number in self.tables)


def choose(
    store: Store, key: str, index: Index, request: RestoreRequest, clients: Clients, processes: Processes, log: Log
) -> Selection:
    """What `request` asks of a backup. UsageError names the schemas and tables that are not in it. The log tells what a
    filtered backup cannot restore."""
    sections: Dict[str, List[Block]] = {}
    for block in index.blocks:
        sections.setdefault(block.section, []).append(block)
    filtered = bool(request.schemas or request.tables)
    dumped = b""
    if filtered or request.content != "data":
        dumped = schema.from_comments(sql(store, key, index, sections.get("schema", [])))
    entries: Optional[List[schema.Entry]] = None
    tables: Optional[Set[int]] = None
    if dumped and (filtered or index.filtered or request.content == "schema"):
        entries = schema.entries(clients, processes, dumped)
        lost: List[schema.Entry] = []
        if index.filtered:
            entries, lost = schema.whole(entries)
        if filtered:
            entries, tables = _picked(index, request, clients, processes, dumped, entries)
        numbers = {entry.dump_id for entry in entries}
        named = [entry.text.decode("utf-8", "replace") for entry in lost if numbers.intersection(entry.needs)]
        if named and request.content != "data":
            why = "They refer to what is not in the backup."
            log.warning("left_out", count=len(named), objects=named[:_NAMED], message=why)
    if entries is not None and request.content == "schema":
        return Selection(dumped, [entry for entry in entries if not schema.is_refresh(entry)], set(), (), ())
    data = [block for block in sections.get("data", []) if _holds(block, tables)]
    rest = sections.get("rest", [])
    sequences = schema.sequences(clients, processes, dumped, given(entries)) if tables is not None and rest else set()
    if tables is not None and not sequences:
        rest = []
    return Selection(dumped, entries, tables, tuple(data), tuple(rest), frozenset(sequences))


def sql(store: Store, key: str, index: Index, blocks: Sequence[Block]) -> bytes:
    """The SQL of adjacent blocks that are needed in memory."""
    if not blocks:
        return b""
    reader = Reader(store, key, blocks)
    return b"".join(
        piece for block in blocks for piece in archive.block_sql(index.compression, block, reader.next_block(block))
    )


def sequence_values(store: Store, key: str, index: Index, selection: Selection) -> Iterator[bytes]:
    """The setval lines of the chosen sequences. Block by block: large objects come behind them, and may be more than
    memory; the first of them ends it."""
    for block in selection.rest:
        text = sql(store, key, index, [block])
        for line in text.splitlines(True):
            if schema.sequence_of(line) in selection.sequences:
                yield line
        if not block.tables and _LARGE_OBJECT in text:
            return


def _picked(
    index: Index,
    request: RestoreRequest,
    clients: Clients,
    processes: Processes,
    dumped: bytes,
    toc: List[schema.Entry],
) -> Tuple[List[schema.Entry], Set[int]]:
    """The archive's entries and the numbers of the tables that the filters name."""
    named: Set[int] = set()
    unknown, rowless = [], []
    for space in request.schemas:
        found = schema.listed(clients, processes, dumped, space)
        found = found or schema.empty_schema(clients, processes, dumped, toc, space)
        if not found:
            unknown.append(space)
        named |= found
    several: Dict[str, List[str]] = {}
    for wanted in request.tables:
        space, _dot, name = wanted.partition(".")
        several.setdefault(space if name else "", []).append(wanted)
    single: List[str] = []
    for space, group in several.items():
        names = {wanted.partition(".")[2] for wanted in group}
        # In a schema a name means one relation: with as many as names, each has its own. pg_restore is asked but once.
        found = schema.listed(clients, processes, dumped, space, *names) if space and len(names) > 1 else set()
        if request.content != "data" and found and schema.count_relations(toc, found) == len(names):
            named |= found
        else:
            single += group
    for wanted in single:
        found = set()
        for space, name in _places(wanted):
            found = found or schema.listed(clients, processes, dumped, space, name)
        if not found:
            unknown.append(wanted)
        elif not _holds_values(index, toc, found):
            rowless.append(wanted)
        named |= found
    if unknown:
        raise UsageError(
            "nothing in the backup matches %s" % ", ".join(unknown),
            hint="It has the schemas %s." % ", ".join(sorted({table.schema for table in index.tables})[:10]),
        )
    if rowless and request.content == "data":
        raise UsageError(
            "the backup has no rows of %s, nor the value of a sequence" % ", ".join(rowless),
            hint="Views and foreign tables have none: restore their definitions, with content schema.",
        )
    entries, oids = schema.select(toc, named)
    return entries, {table.number for table in index.tables if table.oid in oids}


def _places(wanted: str) -> Iterator[Tuple[str, str]]:
    """(schema or "", name) that `wanted` may mean: either may have dots in it."""
    if "." not in wanted:
        yield "", wanted
    for match in re.finditer(r"\.", wanted):
        yield wanted[: match.start()], wanted[match.end() :]


def _holds_values(index: Index, toc: Sequence[schema.Entry], named: Set[int]) -> bool:
    tables, sequences = schema.relations(toc, schema.with_partitions(toc, named))
    return bool(sequences) or any(table.oid in tables for table in index.tables)


def _holds(block: Block, tables: Optional[Set[int]]) -> bool:
    return tables is None or any(number in tables for number, _rows in block.tables)
