# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a backup a restore takes: definitions, tables, and the blocks that hold them. No other block is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from . import archive, schema
from .clients import Clients
from .errors import UsageError
from .loading import Reader
from .model import Block, Index, RestoreRequest, Table
from .process import Processes
from .store import Store

_LARGE_OBJECT = b"\nSELECT pg_catalog.lo_create('"


@dataclass(frozen=True)
class Selection:
    """`archive` is empty where no definition is wanted. None: all entries of it, or all tables."""

    archive: bytes
    entries: Optional[List[schema.Entry]]
    tables: Optional[Set[int]]
    data: Tuple[Block, ...]
    rest: Tuple[Block, ...]

    def chosen(self, index: Index) -> Tuple[Table, ...]:
        """The tables whose rows are taken."""
        return tuple(table for table in index.tables if self.tables is None or table.number in self.tables)


def choose(
    store: Store, key: str, index: Index, request: RestoreRequest, clients: Clients, processes: Processes
) -> Selection:
    """What `request` asks of a backup. UsageError names the schemas and tables that are not in it."""
    sections: Dict[str, List[Block]] = {}
    for block in index.blocks:
        sections.setdefault(block.section, []).append(block)
    filtered = bool(request.schemas or request.tables)
    dumped = b""
    if filtered or request.content != "data":
        dumped = schema.from_comments(sql(store, key, index, sections.get("schema", [])))
    entries, tables = _picked(index, request, clients, processes, dumped) if filtered else (None, None)
    if request.content == "schema":
        if entries is None:
            entries = schema.entries(clients, processes, dumped)
        return Selection(dumped, [entry for entry in entries if not schema.is_refresh(entry)], set(), (), ())
    data = [block for block in sections.get("data", []) if _holds(block, tables)]
    rest = sections.get("rest", [])
    if entries is not None and not _sequences(entries):
        rest = []
    return Selection(dumped, entries, tables, tuple(data), tuple(rest))


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
    names = _sequences(selection.entries or ())
    for block in selection.rest:
        text = sql(store, key, index, [block])
        for line in text.splitlines(True):
            name = schema.sequence_of(line)
            if name and any(entry.startswith(b"SEQUENCE " + name + b" ") for entry in names):
                yield line
        if not block.tables and _LARGE_OBJECT in text:
            return


def _sequences(entries: Sequence[schema.Entry]) -> List[bytes]:
    return [entry.text for entry in entries if entry.text.startswith(b"SEQUENCE ")]


def _picked(
    index: Index, request: RestoreRequest, clients: Clients, processes: Processes, dumped: bytes
) -> Tuple[List[schema.Entry], Set[int]]:
    """The archive's entries and the numbers of the tables that the filters name."""
    wanted = [
        (name.partition(".")[0], name.partition(".")[2]) if "." in name else ("", name) for name in request.tables
    ]
    toc = schema.entries(clients, processes, dumped)
    unknown = schema.unknown(toc, request.schemas, wanted)
    if unknown:
        raise UsageError(
            "nothing in the backup matches %s" % ", ".join(unknown),
            hint="It has the schemas %s." % ", ".join(sorted({table.schema for table in index.tables})[:10]),
        )
    oids = {
        table.oid
        for table in index.tables
        if table.schema in request.schemas
        or any(name == table.name and space in ("", table.schema) for space, name in wanted)
    }
    entries, oids = schema.select(toc, request.schemas, wanted, oids)
    return entries, {table.number for table in index.tables if table.oid in oids}


def _holds(block: Block, tables: Optional[Set[int]]) -> bool:
    return tables is None or any(number in tables for number, _rows in block.tables)
