# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keys of age for tests: made here, so that none lies in the repository.

ours = KeyPair()
Storage(..., age_recipients=(ours.recipient,), age_identity=ours.identity)
"""

from __future__ import annotations

from dataclasses import replace

from _pgstream.age_keys import checksum
from _pgstream.model import Storage
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

LETTERS = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def bech32(prefix: str, data: bytes) -> str:
    """As BIP 173 writes it."""
    bits = "".join("{:08b}".format(byte) for byte in data)
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[at : at + 5], 2) for at in range(0, len(bits), 5)]
    check = checksum(prefix, [*values, 0, 0, 0, 0, 0, 0]) ^ 1
    values += [check >> 5 * (5 - at) & 31 for at in range(6)]
    return prefix + "1" + "".join(LETTERS[value] for value in values)


class KeyPair:
    def __init__(self) -> None:
        secret = X25519PrivateKey.generate()
        self.secret = secret.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
        self.public = secret.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.recipient = bech32("age", self.public)
        self.identity = bech32("age-secret-key-", self.secret).upper()

    def writes(self, storage: Storage) -> Storage:
        """The storage of a host that only encrypts."""
        return replace(storage, age_recipients=(self.recipient,), age_identity="")

    def reads(self, storage: Storage) -> Storage:
        """That of one that only decrypts."""
        return replace(storage, age_recipients=(), age_identity=self.identity)
