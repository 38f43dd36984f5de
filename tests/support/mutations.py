# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What can happen to a stored object, by accident or by someone who can compute checksums.

    name, changed = mutate(choose, sample, other)

`choose(low, high)` decides everything, both ends included: hypothesis draws, the fuzzer asks its seeded generator.
`other` is an archive of the same database with other rows, to splice with.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import struct
import zlib
from typing import Any, Callable, Dict, List, Sequence, Tuple

from _pgstream import framing
from _pgstream.index import index_text
from _pgstream.model import Index

from .archives import Parts, Sample

Choose = Callable[[int, int], int]
Mutator = Callable[[Choose, Sample, Sample], bytes]

NUMBERS = (-(1 << 63), -1, 0, 1, 2, 31, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62, 1 << 63, 1 << 80)
VALUES: Tuple[Any, ...] = (
    *NUMBERS, None, True, False, 0.0, 1.5, float("nan"), float("inf"), "", "0", "schema", "data", "rest", "post",
    "index", "gzip", "zstd", "none", "a" * 64, "0" * 64, "\0", "\ud800", "\u202e", "'; DROP TABLE t; --", "\n\\! x\n",
    [], [[]], [[0, 0]], [["", "ALL ON DATABASE postgres TO eve; --", True]], {}, {"a": {}},
)  # fmt: skip


def pick(choose: Choose, items: Sequence[Any]) -> Any:
    return items[choose(0, len(items) - 1)]


# --- bytes ------------------------------------------------------------------------------------------------------------


def _range(choose: Choose, size: int, longest: int = 300) -> Tuple[int, int]:
    start = choose(0, size - 1)
    return start, min(size, start + choose(1, longest))


def flip_bit(choose: Choose, data: bytes) -> bytes:
    place = choose(0, len(data) - 1)
    return data[:place] + bytes([data[place] ^ 1 << choose(0, 7)]) + data[place + 1 :]


def set_byte(choose: Choose, data: bytes) -> bytes:
    place = choose(0, len(data) - 1)
    return data[:place] + bytes([choose(0, 255)]) + data[place + 1 :]


def drop_bytes(choose: Choose, data: bytes) -> bytes:
    start, end = _range(choose, len(data))
    return data[:start] + data[end:]


def duplicate_bytes(choose: Choose, data: bytes) -> bytes:
    start, end = _range(choose, len(data))
    return data[:end] + data[start:end] + data[end:]


def truncate(choose: Choose, data: bytes) -> bytes:
    return data[: choose(0, len(data) - 1)]


def behead(choose: Choose, data: bytes) -> bytes:
    return data[choose(1, len(data)) :]


def extend(choose: Choose, data: bytes) -> bytes:
    kind = choose(0, 3)
    if kind == 0:
        return data + bytes(choose(1, 600))
    if kind == 1:
        return data + data[: choose(1, len(data))]
    return data + (b"\n" if kind == 2 else bytes(choose(0, 255) for _unused in range(choose(1, 20))))


def insert_bytes(choose: Choose, data: bytes) -> bytes:
    place = choose(0, len(data))
    return data[:place] + bytes(choose(0, 255) for _unused in range(choose(1, 8))) + data[place:]


def zero_bytes(choose: Choose, data: bytes) -> bytes:
    start, end = _range(choose, len(data), 4096)
    return data[:start] + bytes(end - start) + data[end:]


def move_bytes(choose: Choose, data: bytes) -> bytes:
    start, end = _range(choose, len(data))
    rest = data[:start] + data[end:]
    place = choose(0, len(rest))
    return rest[:place] + data[start:end] + rest[place:]


def reverse_bytes(choose: Choose, data: bytes) -> bytes:
    start, end = _range(choose, len(data))
    return data[:start] + data[start:end][::-1] + data[end:]


BYTES: Tuple[Callable[[Choose, bytes], bytes], ...] = (
    flip_bit, set_byte, drop_bytes, duplicate_bytes, truncate, behead, extend, insert_bytes, zero_bytes, move_bytes,
    reverse_bytes,
)  # fmt: skip


# --- blocks -----------------------------------------------------------------------------------------------------------


def _pieces(sample: Sample) -> List[bytes]:
    return [*sample.blocks, sample.index_block, sample.footer]


def change_blocks(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """Drop, duplicate, swap, replace, cut off or splice whole blocks, index and footer too."""
    pieces, theirs = _pieces(sample), _pieces(other)
    kind = choose(0, 8)
    one, two = choose(0, len(pieces) - 1), choose(0, len(pieces) - 1)
    if kind == 0:
        del pieces[one]
    elif kind == 1:
        pieces.insert(two, pieces[one])
    elif kind == 2:
        pieces[one], pieces[two] = pieces[two], pieces[one]
    elif kind == 3:
        pieces[one] = pick(choose, theirs)
    elif kind == 4:
        pieces[one] = theirs[min(one, len(theirs) - 1)]
    elif kind == 5:
        pieces = pieces[:one]
    elif kind == 6:
        one = max(one, 1)  # all of the other would be an archive as good as this
        pieces = pieces[:one] + theirs[min(one, len(theirs) - 1) :]
    elif kind == 7:
        pieces = pieces[one:]
    else:
        pieces = pieces[:one] + theirs + pieces[one:]
    return b"".join(pieces)


def change_ends(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """Damage the first bytes and the last: what is left looks like nobody's."""
    data = bytearray(sample.data)
    for low, high in ((0, 80), (len(data) - len(sample.footer), len(data) - 1)):
        for _byte in range(choose(1, 3)):
            data[choose(low, high)] = choose(0, 255)
    return bytes(data)


def other_index(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """The blocks of one, the index of the other, a footer that fits."""
    lines = lines_of(other.index)
    return forged(sample, sample.blocks, lines)


# --- the index, by someone who can compute checksums ------------------------------------------------------------------


def lines_of(index: Index) -> List[Any]:
    return [json.loads(line[3:]) for line in index_text(index).decode("ascii").splitlines()[1:]]


def text_of(lines: Sequence[Any]) -> bytes:
    return ("-- index\n" + "".join("-- %s\n" % json.dumps(line) for line in lines)).encode("ascii")


def with_text(sample: Parts, blocks: Sequence[bytes], text: bytes) -> bytes:
    """Blocks, any text as their index, and a footer that is right for both."""
    stored = b"".join(framing.encode(sample.compression, "index", text))
    offset = sum(map(len, blocks))
    digest = hashlib.sha256(stored).digest()
    return b"".join([*blocks, stored, framing.footer(sample.compression, offset, len(stored), len(text), digest)])


def forged(sample: Parts, blocks: Sequence[bytes], lines: Sequence[Any]) -> bytes:
    return with_text(sample, blocks, text_of(lines))


def places(item: Any, path: Tuple[Any, ...] = ()) -> List[Tuple[Any, ...]]:
    """Every place in a JSON value that could hold something else."""
    found = [path] if path else []
    inside = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    for key, each in inside:
        found += places(each, (*path, key))
    return found


def edit_index(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """Values, keys and lines of the index."""
    lines = lines_of(sample.index)
    for _change in range(choose(1, 2)):
        number, kind = choose(0, len(lines) - 1), choose(0, 6)
        if kind == 0:
            del lines[number]
        elif kind == 1:
            lines.insert(choose(0, len(lines)), copy.deepcopy(lines[number]))
        elif kind == 2:
            second = choose(0, len(lines) - 1)
            lines[number], lines[second] = lines[second], lines[number]
        elif kind == 3 and isinstance(lines[number], dict):
            lines[number][pick(choose, ("x", "index", "block", "table"))] = pick(choose, VALUES)
        else:
            path = pick(choose, places(lines[number]) or [()])
            lines[number] = _put(lines[number], path, choose)
        if not lines:
            break
    return forged(sample, sample.blocks, lines)


def _put(item: Any, path: Tuple[Any, ...], choose: Choose) -> Any:
    """The item with another value at a place: near the old one, or nothing like it."""
    if not path:
        return pick(choose, VALUES)
    holder = item
    for step in path[:-1]:
        holder = holder[step]
    old = holder[path[-1]]
    if choose(0, 3) == 0 and isinstance(holder, dict):
        del holder[path[-1]]
    elif isinstance(old, int) and not isinstance(old, bool) and choose(0, 2):
        holder[path[-1]] = old + pick(choose, (-1000, -48, -1, 1, 48, 1000))
    else:
        holder[path[-1]] = pick(choose, VALUES)
    return item


def edit_index_bytes(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """The index's text changed as any bytes are, its hash and footer right again."""
    text = pick(choose, BYTES)(choose, index_text(sample.index))
    return with_text(sample, sample.blocks, text)


def edit_footer(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """Offset, lengths, version and sha256 of the footer, its checksum right again."""
    fields = [sample.index.stored_bytes, len(sample.index_block), len(index_text(sample.index))]
    which = choose(0, 3)
    digest = hashlib.sha256(sample.index_block).digest()
    if which < 3:
        value = pick(choose, NUMBERS) if choose(0, 1) else fields[which] + choose(-100, 100)
        fields[which] = max(0, min(value, (1 << 64) - 1))
    else:
        digest = bytes([digest[0] ^ choose(1, 255)]) + digest[1:]
    if which == 0 and choose(0, 1):  # the sum right too
        fields[1] = max(0, len(sample.data) - len(sample.footer) - fields[0])
    body = struct.pack("<8sHHQQQ32s", b"PGSTREAM", pick(choose, (1, 1, 1, 0, 2)), choose(0, 1), *fields, digest)
    made = framing.footer(sample.compression, 0, 0, 0, digest)
    old = struct.pack("<8sHHQQQ32s", b"PGSTREAM", 1, 0, 0, 0, 0, digest)
    for wrong, right in ((old, body), (_crc(old), _crc(body))):
        made = made.replace(wrong, right) if sample.compression != "none" else _replaced_hex(made, wrong, right)
    return b"".join([*sample.blocks, sample.index_block, made])


def _crc(body: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(body))


def _replaced_hex(line: bytes, wrong: bytes, right: bytes) -> bytes:
    return line.replace(wrong.hex().encode(), right.hex().encode())


def rebuilt(sample: Parts, number: int, payload: bytes, **changed: Any) -> Tuple[List[bytes], List[Any]]:
    """The blocks with another payload and announcement of one, and the index's lines that agree in all but rows."""
    old = sample.index.blocks[number]
    block = dataclasses.replace(old, **changed)
    said = (block.section, len(payload), block.raw_length, block.rows, block.table)
    blocks = [*sample.blocks]
    blocks[number] = framing.announce(sample.compression, *said) + payload
    longer = len(blocks[number]) - old.length
    lines = lines_of(sample.index)
    lines[0]["index"]["raw_bytes"] += block.raw_length - old.raw_length
    lines[0]["index"]["stored_bytes"] += longer
    entries = [line["block"] for line in lines[1 + len(sample.index.tables) :]]
    sha256 = hashlib.sha256(blocks[number]).hexdigest()
    entries[number].update(changed, length=old.length + longer, sha256=sha256)
    for entry in entries[number + 1 :]:
        entry["offset"] += longer
    return blocks, lines


def forge_block(choose: Choose, sample: Sample, other: Sample) -> bytes:
    """One block announces something else of itself, and index, sums and hashes agree with it."""
    number = choose(0, len(sample.blocks) - 1)
    block = sample.index.blocks[number]
    name = pick(choose, ("raw_length", "rows", "table", "section"))
    changed: Dict[str, Any] = {
        "raw_length": {"raw_length": max(0, block.raw_length + pick(choose, (-1, 1, 1 << 20, 1 << 33)))},
        "rows": {"rows": block.rows + pick(choose, (1, 1000))},
        "table": {"table": pick(choose, (0, 1, 2, 77))},
        "section": {"section": pick(choose, ("schema", "pre", "data", "rest", "post"))},
    }[name]
    payload = sample.blocks[number][framing.HEADER_LENGTHS[sample.compression] :]
    blocks, lines = rebuilt(sample, number, payload, **changed)
    entry = lines[1 + len(sample.index.tables) + number]["block"]
    if name == "rows":
        more = entry["rows"] - block.rows
        if block.tables and choose(0, 1):  # every sum right: only the server's own count can tell
            entry["tables"][0][1] += more
            lines[1 + entry["tables"][0][0]]["table"]["rows"] += more
        lines[0]["index"]["rows"] += more
    return forged(sample, blocks, lines)


# --- all --------------------------------------------------------------------------------------------------------------


def change_bytes(choose: Choose, sample: Sample, other: Sample) -> bytes:
    data = sample.data
    for _change in range(choose(1, 3)):
        data = pick(choose, BYTES)(choose, data) or b"\0"
    return data


def blocks_then_bytes(choose: Choose, sample: Sample, other: Sample) -> bytes:
    return pick(choose, BYTES)(choose, change_blocks(choose, sample, other) or b"\0")


MUTATORS: Tuple[Mutator, ...] = (
    change_bytes, change_blocks, blocks_then_bytes, change_ends, other_index, edit_index, edit_index_bytes, edit_footer,
    forge_block,
)  # fmt: skip


def mutate(choose: Choose, sample: Sample, other: Sample) -> Tuple[str, bytes]:
    """One changed object, and what was done to it."""
    mutator = pick(choose, MUTATORS)
    return mutator.__name__, mutator(choose, sample, other)
