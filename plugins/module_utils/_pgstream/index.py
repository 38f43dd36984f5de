# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The index as text: SQL comment lines, one JSON object each. What is read may have been written by anyone.

No line, number or text passes that the writer would not have written, and none takes more memory or time than its size.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Tuple, TypeVar

from .errors import IntegrityError
from .model import FORMAT_VERSION, Block, DatabaseInfo, Index, Table

# What a reader accepts, and so what a writer may write: a hostile object must not be able to ask for all memory.
MAX_INDEX = 128 << 20  # bytes, stored and raw: about a million tables
MAX_LINE = 4 << 20  # bytes of one line of the index
MAX_BLOCK = 4 << 30  # bytes of a block, stored and raw: a row of the longest (1 GiB) in the largest block planned
MAX_SCHEMA = 1 << 30  # bytes of the schema block, which is held in memory unpacked
LARGEST = 1 << 62  # bytes or rows: more than any store holds
_DIGITS = 20  # of a number in the index: enough for LARGEST, and int() takes quadratic time
_PLAIN = {"int": int, "str": str, "bool": bool}
ORDER = {"schema": 0, "pre": 1, "data": 2, "rest": 3, "post": 4}
_DATABASE_PRIVILEGES = ("CREATE", "CONNECT", "TEMPORARY")
_ENCODING = re.compile(r"[A-Z0-9_]+")  # as pg_encoding_to_char() names them: it is written into SQL
_FIRST_LINE = b"-- pgstream index: what this file holds, one JSON object a line"

Made = TypeVar("Made")


class _CutShort(IntegrityError):
    pass


def index_text(index: Index) -> bytes:
    """The index as SQL comment lines, one JSON object each: the head, then the tables, then the blocks."""
    head = dataclasses.asdict(dataclasses.replace(index, tables=(), blocks=()))
    del head["tables"], head["blocks"]
    if not head["passwords"]:
        del head["passwords"]  # only said of globals
    lines: List[Dict[str, Any]] = [{"index": head}]
    lines += [{"table": vars(table)} for table in index.tables]
    lines += [{"block": vars(block)} for block in index.blocks]
    text = [_FIRST_LINE.decode("ascii")]
    text += ["-- " + json.dumps(line, separators=(",", ":"), ensure_ascii=True) for line in lines]
    return "\n".join(text).encode("ascii") + b"\n"


def parse_index(pieces: Iterable[bytes]) -> Index:
    """The reverse of `index_text`. Raises IntegrityError for anything it would not have written."""
    head: Optional[Dict[str, Any]] = None
    tables: List[Table] = []
    blocks: List[Block] = []
    copies = 0  # COPYs in all blocks
    try:
        for kind, fields in _objects(pieces):
            if kind == "index" and head is None:
                head = fields
            elif kind == "table" and head is not None and not blocks:
                tables.append(_made(Table, fields))
            elif kind == "block" and head is not None:
                fields["tables"] = tuple((number, rows) for number, rows in fields["tables"])
                blocks.append(_checked(_made(Block, fields)))
                copies += len(blocks[-1].tables)
                # Whoever fills blocks one after the other begins each table once, and goes on with it in the next.
                if copies > len(tables) + 2 * len(blocks):
                    raise IntegrityError("the index names more pieces of tables than its blocks can hold")
            else:
                raise IntegrityError("the index has a line that is out of place")
        if head is None:
            raise IntegrityError("the index has no head")
        if head["format_version"] != FORMAT_VERSION:
            raise IntegrityError("the index has format version %.20s" % head["format_version"])
        database = head.pop("database")
        for name, types in (("acl", (str, str, bool)), ("settings", (str, str, str))):
            database[name] = tuple(_row(entry, types) for entry in database[name])
        if any(privilege not in _DATABASE_PRIVILEGES for _grantee, privilege, _grantable in database["acl"]):
            raise IntegrityError("the index grants what no database has")
        info = _made(DatabaseInfo, database)
        if not _ENCODING.fullmatch(info.encoding):
            raise IntegrityError("the index names an encoding that is none")
        return _made(Index, {**head, "database": info, "tables": tuple(tables), "blocks": tuple(blocks)})
    except IntegrityError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError("the index cannot be read: %.200s" % error) from error


def parse_head(pieces: Iterable[bytes]) -> Dict[str, Any]:
    """The head's fields, unchecked; empty where the pieces end before its line does. Raises IntegrityError."""
    try:
        for kind, fields in _objects(pieces):
            return dict(fields) if kind == "index" else {}
    except _CutShort:
        pass
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityError("the index cannot be read: %s" % error) from error
    return {}


def _objects(pieces: Iterable[bytes]) -> Iterator[Tuple[str, Dict[str, Any]]]:
    """The one member of each line's object, its name first. The first line is for people."""
    for number, line in enumerate(_lines(pieces)):
        if not line.startswith(b"-- "):
            raise IntegrityError("the index has a line that is no comment")
        if number:
            ((kind, fields),) = _JSON.decode(line[3:].decode("ascii")).items()
            yield kind, fields


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Lines without their ends; one that is too long is refused before it is held."""
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if max(map(len, [*lines, rest])) > MAX_LINE:
            raise IntegrityError("the index has a line of more than %d bytes" % MAX_LINE)
        yield from lines
    if rest:
        raise _CutShort("the index ends in the middle of a line")


def _whole_number(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError("a number of %d digits" % len(digits))
    return int(digits)


_JSON = json.JSONDecoder(parse_int=_whole_number)


def _row(entry: Any, types: Tuple[type, ...]) -> Tuple[Any, ...]:
    if not isinstance(entry, list) or tuple(map(type, entry)) != types:
        raise IntegrityError("the index has grants or settings that are not what they should be")
    for value in entry:
        _check_text(value)
    return tuple(entry)


def _check_text(value: Any) -> None:
    """No text that PostgreSQL could not have given us: programs and libraries refuse it in ways of their own."""
    if isinstance(value, str):
        value.encode("utf-8")  # half a surrogate pair is a ValueError
        if "\0" in value:
            raise ValueError("a text with a null character")


def _made(kind: Callable[..., Made], fields: Dict[str, Any]) -> Made:
    """A dataclass from JSON, whose plain fields have the types that they are declared with."""
    made = kind(**fields)
    for field in dataclasses.fields(made):  # type: ignore[arg-type]
        wanted = _PLAIN.get(str(field.type))
        value = getattr(made, field.name)
        if wanted is not None and (type(value),) != (wanted,):  # True is an int to isinstance
            raise IntegrityError("the index has a field %s that is not what it should be" % field.name)
        _check_text(value)
    return made


def most_bytes(section: str) -> int:
    """Bytes that a block of this section may have, stored and raw."""
    return MAX_SCHEMA if section == "schema" else MAX_BLOCK


def _checked(block: Block) -> Block:
    numbers = [block.offset, block.length, block.raw_length, block.rows]
    for pair in block.tables:
        numbers += pair
    if {type(number) for number in numbers} != {int} or min(numbers) < 0 or max(numbers) > LARGEST:
        raise IntegrityError("the index has a block that cannot be")
    if block.section not in ORDER or max(block.length, block.raw_length) > most_bytes(block.section):
        raise IntegrityError("the index has a %s block of %d bytes" % (block.section, block.raw_length))
    return block
