# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Small whole archives made by the real writer, and the restore's own reading path without a server.

    sample = sample_of("gzip")
    outcome = restored(sample.data, sample.key)     # all that a restore does between the store and its programs
    outcome.fed                         # what each psql and pg_restore was given, in order
    wrong(sample, changed)              # the property: the original content, or IntegrityError; "" if it holds
"""

from __future__ import annotations

import functools
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Match, Optional, Sequence, Tuple

from _pgstream import age, archive, catalog, framing, restore_plan, schema, selection
from _pgstream import restore as verb
from _pgstream.cipher import CipherStore, _SealedUpload
from _pgstream.clients import Clients
from _pgstream.copying import RowBlocks, preamble
from _pgstream.errors import IntegrityError
from _pgstream.events import Log, utc_now
from _pgstream.model import (
    EXTENSIONS,
    FORMAT_VERSION,
    Block,
    DatabaseInfo,
    Index,
    RestoreRequest,
    Server,
    Storage,
    Table,
)
from _pgstream.plan import CopyItem
from _pgstream.postgres import TableFacts
from _pgstream.process import Processes
from _pgstream.store.base import Store, StoredObject, Upload
from _pgstream.target import Target

from .agekeys import KeyPair

SETTINGS = preamble("UTF8")
BLOCK_SIZE = 700  # bytes of SQL: several blocks a table
TABLES = 3
CLOSING = b"\n--\n-- PostgreSQL database dump complete\n--\n\n"  # pg_dump ends both of its sections with it
DATABASE = DatabaseInfo(
    'odd "name"\n\u00e9', "UTF8", "C", "C", "owner", comment="it's", default_acl=False,
    acl=(("", "CONNECT", False), ("r\u00f4le", "CREATE", True)), settings=(("", "search_path", '"a b", c'),),
)  # fmt: skip


class Parts:
    """An archive: its bytes, those of its blocks, of the index and the footer."""

    def __init__(self, data: bytes, index: Index) -> None:
        self.data = data
        self.index = index
        self.compression = index.compression
        self.blocks = [data[block.offset : block.offset + block.length] for block in index.blocks]
        end = len(data) - framing.FOOTER_LENGTHS[self.compression]
        self.index_block = data[index.stored_bytes : end]
        self.footer = data[end:]


class Sample(Parts):
    """A small archive with its SQL. Two variants differ in rows, not in their lengths."""

    def __init__(self, compression: str, variant: int) -> None:
        self.key = "shop_2026-01-31T02:00:00Z" + EXTENSIONS[compression]
        self._data = bytearray()
        writer = archive.ArchiveWriter(self._write, compression)
        writer.text("schema", schema.as_comments(b"PGDMP of variant %d " % variant + bytes(range(256))))
        writer.text("pre", b"SET a = %d;\nCREATE TABLE s.t0 (a int, b text);\n" % variant + CLOSING)
        counts = self._rows(writer, variant)
        self._rest(writer, variant)
        writer.text("post", b"CREATE INDEX ON s.t0 (a);\n" + CLOSING)
        index = Index(
            format_version=FORMAT_VERSION, engine_version="0", correlation_id="c", compression=compression,
            database=DATABASE, server_version=150004, pg_dump_version=15, snapshot_at="t", started_at="t",
            finished_at="t", raw_bytes=writer.raw_bytes, stored_bytes=writer.offset, rows=sum(counts.values()),
            tables=tuple(Table(n, 16384 + n, "s", "t%d" % n, rows) for n, rows in counts.items()),
            blocks=tuple(writer.blocks),
        )  # fmt: skip
        writer.finish(index)
        super().__init__(bytes(self._data), index)
        self.sql = b"".join(self._sql(block, piece) for block, piece in zip(index.blocks, self.blocks))

    def _write(self, pieces: Sequence[bytes]) -> None:
        self._data += b"".join(pieces)

    @staticmethod
    def _rows(writer: archive.ArchiveWriter, variant: int) -> Dict[int, int]:
        blocks = RowBlocks(writer, "data", "UTF8", "utf-8", BLOCK_SIZE)
        for number in range(TABLES):
            blocks.begin(CopyItem(number, TableFacts(number, "s", "t%d" % number, ('"a"', '"b"'), 1, 1, True)))
            for row in range(12 * number):
                blocks.write(b"%06d\tsome text %06d\n" % (row + 1000 * variant, row * 7919 % 1009 + variant))
            blocks.end()
        blocks.close()
        return blocks.rows

    @staticmethod
    def _rest(writer: archive.ArchiveWriter, variant: int) -> None:
        blocks = RowBlocks(writer, "rest", "UTF8", "utf-8", BLOCK_SIZE)
        blocks.sql(b"SELECT pg_catalog.setval('\"s\".\"q\"', %d, true);\n" % (variant + 1))
        blocks.close()
        blocks.sql(b"SELECT pg_catalog.lo_create('4711');\nALTER LARGE OBJECT 4711 OWNER TO \"owner\";\n")
        blocks.close()

    def _sql(self, block: Block, piece: bytes) -> bytes:
        return b"".join(framing.decode(self.compression, piece, block.raw_length))


@functools.lru_cache(maxsize=None)
def sample_of(compression: str, variant: int = 0) -> Sample:
    return Sample(compression, variant)


class MemoryStore(Store):
    """One object in memory, given out in pieces; counts what is read."""

    def __init__(self, data: bytes, key: str, piece: int = 1 << 16) -> None:
        super().__init__(Storage(kind="memory"))
        self.key = key
        self._data = data
        self._piece = piece
        self.requests: List[Tuple[int, int]] = []  # (offset, length)

    def stat(self, key: str) -> Optional[StoredObject]:
        return StoredObject(key, len(self._data)) if key == self.key else None

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        self.requests.append((offset, length))
        end = min(offset + length, len(self._data))
        for start in range(offset, end, self._piece):
            yield self._data[start : min(start + self._piece, end)]


PAIR = KeyPair()


def encrypted(sample: Sample, pair: KeyPair = PAIR) -> bytes:
    """The sample's object as a backup with recipients stores it."""
    file_key, nonce = age.new_file_key(), os.urandom(age.NONCE)
    kept = _Kept()
    upload = _SealedUpload(kept, age.seal_header(file_key, [pair.public]) + nonce, age.Payload(file_key, nonce))
    upload.write([sample.data])
    upload.commit()
    return bytes(kept.data)


class _Kept(Upload):
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, pieces: Sequence[bytes]) -> None:
        self.data += b"".join(pieces)

    def commit(self) -> StoredObject:
        return StoredObject("", len(self.data))


def store_of(data: bytes, key: str) -> Store:
    """One object in memory, decrypted for `PAIR` where its key says that it is encrypted."""
    memory = MemoryStore(data, key)
    memory.storage = PAIR.reads(memory.storage)
    return CipherStore(memory)


class Child:
    """Stands for a program that a restore runs: keeps what it is fed, and answers as the program would."""

    def __init__(self, name: str, data: Optional[bytes], pass_fds: Sequence[int]) -> None:
        self.name = name
        self.fed = bytearray(data or b"")
        for descriptor in pass_fds:
            self.fed += os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        self._told = 0

    def write(self, data: bytes) -> None:
        self.fed += data

    def close_input(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def output(self) -> bytes:
        return b"-- what pg_restore makes of %d bytes\n" % len(self.fed)

    def forget(self) -> None:
        pass

    def lines_until(self, last: bytes) -> List[bytes]:
        assert bytes(self.fed).endswith(b"COPY (SELECT '%s') TO STDOUT;\n" % last)
        tags = self.lines()
        said, self._told = tags[self._told :], len(tags)
        return said

    def lines(self) -> List[bytes]:
        """The command tag of each COPY, with the rows that a server would have counted."""
        tags, rows = [], -1
        for line in bytes(self.fed).split(b"\n"):
            if rows < 0 and line.startswith(b"COPY ") and not line.startswith(b"COPY ("):
                rows = 0
            elif rows >= 0 and line == b"\\.":
                tags.append(b"COPY %d" % rows)
                rows = -1
            elif rows >= 0:
                rows += 1
        return tags


class Children(Processes):
    """As the real door to programs, and starts none."""

    def __init__(self) -> None:
        super().__init__()
        self.all: List[Child] = []

    def spawn(  # type: ignore[override]
        self,
        argv: Sequence[str],
        env: Dict[str, str],
        name: str,
        data: Optional[bytes] = None,
        feed: bool = False,
        pass_fds: Sequence[int] = (),
        heard: bytes = b"",
    ) -> Child:
        self.all.append(Child(name, data, pass_fds))
        return self.all[-1]


@dataclass
class Outcome:
    """How a restore ended, and what its programs were fed until then, in the order in which they began."""

    fed: List[Tuple[str, bytes]]
    error: Optional[BaseException]


def restored(data: bytes, key: str, **options: Any) -> Outcome:
    """Restore an object with real code from the key to the programs' input; there is no server."""
    store, children = store_of(data, key), Children()
    request = RestoreRequest(Server(), store.storage, key, "d", jobs=1, analyze=False, correlation_id="c", **options)
    error: Optional[BaseException] = None
    try:
        item, index = restore_plan._resolve(store, request, Log())
        clients = Clients("/nowhere", 15, 0, Server())  # too old for \restrict, whose token is random
        choice = None if index is None else selection.choose(store, item.key, index, request, clients, children, Log())
        planned = restore_plan.Plan(request, store, item, index, choice, Target("d", True), "in_place", clients, 15)
        run = verb._Run(planned, Log(), utc_now())
        run.processes = children
        run._load("d")
    except Exception as caught:
        error = caught
    return Outcome([(child.name, bytes(child.fed)) for child in children.all], error)


@functools.lru_cache(maxsize=None)
def expected(compression: str, variant: int = 0) -> List[Tuple[str, bytes]]:
    """What the programs are fed from a sample that nobody touched."""
    outcome = restored(sample_of(compression, variant).data, sample_of(compression, variant).key)
    assert outcome.error is None, outcome.error
    return outcome.fed


def read_all(data: bytes, key: str) -> Optional[bytes]:
    """All SQL that the index names, every block checked; None for a foreign object."""
    store = store_of(data, key)
    item = catalog.find(store, key)
    index = catalog.read_index(store, item)
    if index is None:
        return None
    return b"".join(
        piece
        for block in index.blocks
        for piece in archive.block_sql(index.compression, block, store.read(key, block.offset, block.length))
    )


def wrong(sample: Sample, data: bytes) -> str:
    """What is wrong with how an object made from `sample` is read; empty if nothing is.

    Whole or refused: the reader gives exactly the original SQL or raises IntegrityError. A restore feeds its programs
    exactly what it feeds them from the original, or it raises IntegrityError and has fed them nothing else until then.
    An object of which beginning and end are damaged may be taken for a plain dump. Nothing can be checked of one before
    it is loaded; it is refused all the same, unless not a line of it says any more that it was ours.
    """
    foreign = False
    try:
        sql = read_all(data, sample.key)
        foreign = sql is None
        if not foreign and sql != sample.sql:
            return "the reader gave other SQL"
    except IntegrityError:
        pass
    except Exception as error:
        return "the reader raised %r" % error
    outcome = restored(data, sample.key)
    if outcome.error is None and content(outcome.fed) == content(expected(sample.compression)):
        return ""
    if outcome.error is None and not (foreign and framing.COMMENT not in data):
        return "a restore succeeded with other content"
    if outcome.error is not None and not isinstance(outcome.error, IntegrityError):
        return "a restore raised %r" % outcome.error
    return "" if foreign else _fed_otherwise(sample, outcome)


_OTHER_ENCODING = b"-- in another encoding\n"
_BEGIN = schema.in_one_message(b"BEGIN;\n" + SETTINGS)
_BETWEEN_RUNS = re.compile(
    re.escape(_BEGIN).replace(b"UTF8", b"(?P<encoding>[A-Z0-9_]+)")
    + b"(?P<settings>%s)?" % re.escape(SETTINGS)
    + rb"|(COMMIT\\; )?COPY \(SELECT 'COPY done [0-9a-f]{16}'\) TO STDOUT;\n"
)


def content(fed: Sequence[Tuple[str, bytes]]) -> Tuple[List[bytes], bytes]:
    """What pg_restore was given, and what psql was, one session after the other: how runs are cut is no content."""
    return [data for name, data in fed if name != "psql"], b"".join(_body(data) for name, data in fed if name == "psql")


def _body(fed: bytes) -> bytes:
    """A session without where its runs begin and end, and without settings, which are made once a run.

    An index that names another encoding than the blocks do is no other content where the blocks' own settings follow.
    """
    return _BETWEEN_RUNS.sub(_between, fed).replace(SETTINGS, b"")


def _between(found: Match[bytes]) -> bytes:
    return b"" if found["encoding"] in (None, b"UTF8") or found["settings"] else _OTHER_ENCODING


def _fed_otherwise(sample: Sample, outcome: Outcome) -> str:
    """What a refused restore had fed its programs that is not in the original."""
    original = [_body(fed) for _name, fed in expected(sample.compression)] + [_body(sample.sql)]
    for name, fed in outcome.fed:
        if not any(_body(fed) in text for text in original):
            return "a restore that was refused fed %s other content: %r" % (name, fed[-100:])
    return ""
