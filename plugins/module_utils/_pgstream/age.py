# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The cryptography of age-encryption.org/v1: the file key wrapped for X25519 recipients, and the payload in chunks.

The primitives are those of the package `cryptography`; here is only how age puts them together. A chunk is opened by
its number alone, so an encrypted object is read at random like any other. Source: the age specification, C2SP age.md.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from typing import Optional, Sequence, Union

from . import age_header
from .age_header import Header, Stanza
from .errors import IntegrityError, UsageError

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    _MISSING: Optional[ImportError] = None
except ImportError as error:
    _MISSING = error

CHUNK = 64 << 10  # bytes of contents
TAG = 16  # bytes more, once encrypted
NONCE = 16  # bytes between header and chunks
_FILE_KEY = 16
_X25519 = "X25519"
_LABEL = b"age-encryption.org/v1/X25519"
_ZERO = bytes(12)  # the nonce of a wrapped key: each wrapping key is used once


def _derive(secret: bytes, salt: bytes, label: bytes) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of 32 bytes, which is one block."""
    extracted = hmac.new(salt, secret, hashlib.sha256).digest()
    return hmac.new(extracted, label + b"\1", hashlib.sha256).digest()


def _mac(file_key: bytes, signed: bytes) -> bytes:
    return hmac.new(_derive(file_key, b"", b"header"), signed, hashlib.sha256).digest()


def _public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _wrapping(secret: X25519PrivateKey, other: bytes, share: bytes, recipient: bytes) -> ChaCha20Poly1305:
    """ValueError for a point of low order, whose secret everybody knows."""
    shared = secret.exchange(X25519PublicKey.from_public_bytes(other))
    return ChaCha20Poly1305(_derive(shared, share + recipient, _LABEL))


def new_file_key() -> bytes:
    return os.urandom(_FILE_KEY)


def seal_header(file_key: bytes, recipients: Sequence[bytes]) -> bytes:
    """A header that each of these public keys opens. UsageError for a key that is none, ImportError without the
    package."""
    if _MISSING is not None:
        raise _MISSING
    stanzas = []
    for recipient in recipients:
        ephemeral = X25519PrivateKey.generate()
        share = _public(ephemeral)
        try:
            wrapped = _wrapping(ephemeral, recipient, share, recipient).encrypt(_ZERO, file_key, None)
        except ValueError:
            raise UsageError("an age recipient is a point of low order, which keeps nothing secret") from None
        stanzas.append(Stanza(_X25519, (age_header.encode(share),), wrapped))
    signed = age_header.unsigned(stanzas)
    return signed + b" " + age_header.encode(_mac(file_key, signed)).encode() + b"\n"


def open_header(header: Header, identities: Sequence[bytes]) -> Optional[bytes]:
    """The file key, or None if none of these secret keys opens it. IntegrityError for a header that was changed,
    ImportError without the package."""
    if _MISSING is not None:
        raise _MISSING
    found = None
    keys = [X25519PrivateKey.from_private_bytes(identity) for identity in identities]
    for stanza in header.stanzas:
        if stanza.kind == _X25519:
            share = _share(stanza)
            for key in keys:
                opened = _unwrap(key, share, stanza.body)  # of every stanza: a malformed one after a good one counts
                found = found or opened
    if found is not None and not hmac.compare_digest(_mac(found, header.signed), header.mac):
        raise IntegrityError("its age header was changed: the MAC is another one")
    return found


def _share(stanza: Stanza) -> bytes:
    try:
        (share,) = map(age_header.decode, stanza.arguments)
    except ValueError:
        share = b""
    if len(share) != 32 or len(stanza.body) != _FILE_KEY + TAG:
        raise IntegrityError("its age header is damaged: a recipient's stanza is malformed")
    return share


def _unwrap(key: X25519PrivateKey, share: bytes, body: bytes) -> Optional[bytes]:
    try:
        return _wrapping(key, share, share, _public(key)).decrypt(_ZERO, body, None)
    except InvalidTag:
        return None
    except ValueError:
        raise IntegrityError("its age header is damaged: a recipient's share is a point of low order") from None


class Payload:
    """The chunks of one object. Safe for threads."""

    def __init__(self, file_key: bytes, nonce: bytes) -> None:
        self._cipher = ChaCha20Poly1305(_derive(file_key, nonce, b"payload"))

    def seal(self, number: int, last: bool, contents: Union[bytes, memoryview]) -> bytes:
        return self._cipher.encrypt(_nonce(number, last), contents, None)

    def open(self, number: int, last: bool, sealed: Union[bytes, memoryview]) -> bytes:
        """IntegrityError unless it is this very chunk of this very object."""
        try:
            return self._cipher.decrypt(_nonce(number, last), sealed, None)
        except InvalidTag:
            raise IntegrityError("chunk %d is damaged, or is not where it was written" % number) from None


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
