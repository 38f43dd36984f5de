# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The keys of age as people write them: recipients `age1...` and identities `AGE-SECRET-KEY-1...`, in Bech32 (BIP 173).

Needs no cryptography: what is wrong with a key is told before anything else is done. Only X25519 keys are known here,
no plugins, no SSH keys, no passphrases. No message shows an identity.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

from .errors import UsageError

IDENTITY_MARK = "AGE-SECRET-KEY-1"  # begins the lines of an identity file that are secret
MOST_RECIPIENTS = 100  # so that a header stays well within what a reader takes

_LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_CHECKSUM = 6  # letters
_KEY = 32  # bytes


def checksum(prefix: str, values: Sequence[int]) -> int:
    """Bech32's polymod over a prefix and values of 5 bits; 1 where the last six of them are the right ones."""
    spread = [ord(letter) >> 5 for letter in prefix] + [0] + [ord(letter) & 31 for letter in prefix]
    found = 1
    for value in (*spread, *values):
        top = found >> 25
        found = (found & 0x1FFFFFF) << 5 ^ value
        for bit, factor in enumerate(_GENERATOR):
            found ^= factor if top >> bit & 1 else 0
    return found


def _decode(text: str, prefix: str) -> bytes:
    """The 32 bytes of a key in small letters. ValueError for anything else, which never shows the key."""
    head, _one, letters = text.rpartition("1")
    if head != prefix:
        raise ValueError("another beginning than %s1" % prefix)
    if any(letter not in _LETTERS for letter in letters):
        raise ValueError("a character that no key has")
    values = [_LETTERS.index(letter) for letter in letters]
    if len(values) < _CHECKSUM or checksum(prefix, values) != 1:
        raise ValueError("its checksum is wrong: it was mistyped or cut off")
    number, bits = 0, 5 * (len(values) - _CHECKSUM)
    for value in values[:-_CHECKSUM]:
        number = number << 5 | value
    padding = bits - 8 * _KEY
    if not 0 <= padding < 5 or number & (1 << padding) - 1:
        raise ValueError("another length than that of an X25519 key")
    return (number >> padding).to_bytes(_KEY, "big")


def recipient_key(text: str) -> bytes:
    """The public key in `age1...`. UsageError for what is none."""
    try:
        if text != text.lower():
            raise ValueError("capital letters")
        return _decode(text, "age")
    except ValueError as error:
        shown = "it" if text.upper().startswith("AGE-SECRET-KEY") else repr(text)
        raise UsageError(
            "%s is not an age recipient of type X25519: %s" % (shown, error),
            hint="age-keygen -y prints the recipient of an identity: age1 and 58 more characters.",
        ) from None


def read_recipients(entries: Sequence[str]) -> Tuple[str, ...]:
    """Recipients from a list of them and of files that hold one a line (an entry with a slash is a file's name; lines
    with `#` are comments). Each once, in order. UsageError for what is none, and for a file without any."""
    found: List[str] = []
    for entry in entries:
        if "/" not in entry:
            found.append(entry)
            continue
        lines = _lines(file_text(entry))
        if not lines:
            raise UsageError("%s names no recipient" % entry)
        found += lines
    for text in found:
        recipient_key(text)
    if len(set(found)) > MOST_RECIPIENTS:
        raise UsageError("%d recipients are more than the %d allowed" % (len(set(found)), MOST_RECIPIENTS))
    return tuple(dict.fromkeys(found))


def identity_keys(text: str) -> Tuple[bytes, ...]:
    """The secret keys in an identity file's text, one a line. UsageError where there is none, or something else."""
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line != line.upper():
                raise ValueError("small letters")
            keys.append(_decode(line.lower(), "age-secret-key-"))
        except ValueError as error:
            raise UsageError(
                "line %d of the age identity is not one of type X25519: %s" % (number, error),
                hint="An identity is what age-keygen prints: %s and 58 more characters." % IDENTITY_MARK,
            ) from None
    if not keys:
        raise UsageError("the age identity holds no key")
    return tuple(keys)


def secret_lines(text: str) -> List[str]:
    """The lines of an identity file that have to be masked."""
    return [line for line in _lines(text) if line.upper().startswith(IDENTITY_MARK)]


def _lines(text: str) -> List[str]:
    stripped = (line.strip() for line in text.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]


def file_text(path: str) -> str:
    """UsageError for a file that cannot be read, or is not text."""
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except (OSError, ValueError) as error:
        raise UsageError("cannot read %s: %s" % (path, getattr(error, "strerror", "") or "it is not text")) from None
