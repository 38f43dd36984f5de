# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The header of an age file (age-encryption.org/v1) as text: stanzas, one for each recipient, and a MAC over them.

Read as strictly as the specification says, without any cryptography: so a host that holds no key can tell a backup of
ours, whose last stanza is not for a recipient and which other readers pass over:

    -> pgstream 1 <sha256 of all bytes before this line, in base64>

It says whose the object is, and whether what is before it is damaged. It is no proof of origin: who may write to the
store can write it too, as they can a footer.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from typing import List, Optional, Tuple

from .errors import IntegrityError

USUAL = 4 << 10  # bytes to read for a header of some recipients
MOST = 64 << 10  # bytes of a header; one that is longer is refused

_INTRO = b"age-encryption.org/v1"
_ARMOR = b"-----BEGIN AGE ENCRYPTED FILE-----"
_MARK = "pgstream"
_COLUMNS = 64
_STANZA = re.compile(rb"-> [!-~]+( [!-~]+)*")
_END = b"\n---"


@dataclass(frozen=True)
class Stanza:
    """A file key wrapped for one recipient."""

    kind: str
    arguments: Tuple[str, ...]
    body: bytes = b""

    def text(self) -> bytes:
        body = encode(self.body)
        lines = [body[start : start + _COLUMNS] for start in range(0, len(body) + 1, _COLUMNS)]
        return "\n".join(["-> " + " ".join((self.kind, *self.arguments)), *lines, ""]).encode()


@dataclass(frozen=True)
class Header:
    stanzas: Tuple[Stanza, ...]
    signed: bytes  # what the MAC is of: all up to and with the three dashes
    mac: bytes
    marked: bool = False  # whether it says that this engine wrote it, and is undamaged

    @property
    def length(self) -> int:
        return len(self.signed) + len(" ") + len(encode(self.mac)) + len("\n")


def encode(data: bytes) -> str:
    """Base64 without padding."""
    return base64.b64encode(data).decode().rstrip("=")


def decode(text: str) -> bytes:
    """The same back; ValueError unless it is the one way to write these bytes."""
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error
    if encode(data) != text:
        raise ValueError("not canonical base64")
    return data


def unsigned(stanzas: List[Stanza]) -> bytes:
    """A header of ours, mark included, up to where its MAC follows."""
    text = _INTRO + b"\n" + b"".join(stanza.text() for stanza in stanzas)
    return text + _mark(text).text() + b"---"


def _mark(before: bytes) -> Stanza:
    return Stanza(_MARK, ("1", encode(hashlib.sha256(before).digest())))


def parse(start: bytes, whole: bool) -> Optional[Header]:
    """The header at the start of an object. None if it is longer than `start`, unless that is all there is or may be
    (`whole`). IntegrityError for what is none."""
    if start.startswith(_ARMOR):
        raise IntegrityError("it is an age file in ASCII armor, which is not read here", hint="Decrypt it with age.")
    if not start.startswith(_INTRO + b"\n"):
        raise IntegrityError("it does not begin as an age file, which its name says")
    end = start.find(_END)
    last = start.find(b"\n", end + 1) if end >= 0 else -1
    if last < 0:
        if whole:
            raise _damaged("it has no end")
        return None
    stanzas = _stanzas(start[len(_INTRO) + 1 : end].split(b"\n"))
    dashes, _space, mac = start[end + 1 : last].decode("latin-1").partition(" ")
    key = _base64(mac)
    if dashes != "---" or len(key) != hashlib.sha256().digest_size:
        raise _damaged("its last line is no MAC")
    marked = stanzas[-1].kind == _MARK
    if marked and stanzas[-1] != _mark(start[: start.rindex(b"\n-> ", 0, end) + 1]):
        raise _damaged("its sha256 is another one")
    return Header(tuple(stanzas), start[: end + len(_END)], key, marked)


def _stanzas(lines: List[bytes]) -> List[Stanza]:
    found: List[Stanza] = []
    rest = iter(lines)
    for line in rest:
        if not _STANZA.fullmatch(line):
            raise _damaged("a line of it begins no stanza")
        kind, *arguments = line[3:].decode("ascii").split(" ")
        body = ""
        for line in rest:
            body += line.decode("latin-1")
            if len(line) != _COLUMNS:
                break
        else:
            raise _damaged("a stanza of it has no end")
        if len(line) > _COLUMNS:
            raise _damaged("a line of it is too long")
        found.append(Stanza(kind, tuple(arguments), _base64(body)))
    if any(stanza.kind == "scrypt" for stanza in found) and len(found) > 1:
        raise _damaged("it has a passphrase beside other recipients")
    return found


def _base64(text: str) -> bytes:
    try:
        return decode(text)
    except ValueError as error:
        raise _damaged("%r is %s" % (text[:_COLUMNS], error)) from None


def _damaged(how: str) -> IntegrityError:
    return IntegrityError("its age header is damaged: %s" % how)
