# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A store whose objects are encrypted by age where their key ends in `.age`; every other object passes as it is.

Who reads or writes through it sees contents alone: offsets and lengths are those of the decrypted object, and a range
is decrypted from the chunks that it touches. Sizes of listings stay those that are stored. Writing needs recipients,
reading an identity; what can be known without one is in the header (see `age_header`).
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

from . import age_header
from .age_header import Header
from .age_keys import identity_keys, recipient_key
from .errors import IntegrityError, NotFoundError, UsageError, given
from .model import ENCRYPTED, Finding, Storage
from .store.base import Deletion, Store, StoredObject, Upload

if TYPE_CHECKING:
    from .age import Payload  # it takes the package cryptography, which only those need who encrypt or decrypt


@dataclass(frozen=True)
class _Opened:
    """An object whose header was read. `payload` is None where no identity opens it."""

    size: int  # as stored
    header: Header
    payload: Optional[Payload]
    start: int  # where the first chunk is stored
    contents: int  # bytes
    chunks: int


def check_name(storage: Storage, key: str) -> None:
    """UsageError unless a new object's name says whether it is encrypted."""
    if key.endswith(ENCRYPTED) and not storage.age_recipients:
        raise UsageError(
            "the key %s names an encrypted backup, and no recipient is given" % key,
            hint="Set age_recipients or BACKUP_AGE_RECIPIENTS.",
        )
    if storage.age_recipients and not key.endswith(ENCRYPTED):
        raise UsageError(
            "the key %s of an encrypted backup does not end in %s" % (key, ENCRYPTED),
            hint="A restore decrypts what has that ending, and nothing else.",
        )


class CipherStore(Store):
    """Safe for threads, as the store behind it is."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner.storage)
        self._inner = inner
        self._recipients = [recipient_key(text) for text in self.storage.age_recipients]
        self._identities = identity_keys(self.storage.age_identity) if self.storage.age_identity else ()
        self._lock = threading.Lock()
        self._opened: Dict[str, _Opened] = {}

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        check_name(self.storage, key)
        if not self._recipients:
            return self._inner.begin(key, overwrite, metadata)
        from . import age

        with self._lock:
            self._opened.pop(key, None)  # it will be another object
        file_key, nonce = age.new_file_key(), os.urandom(age.NONCE)
        head = age.seal_header(file_key, self._recipients) + nonce
        return _SealedUpload(self._inner.begin(key, overwrite, metadata), head, age.Payload(file_key, nonce))

    def contents_size(self, key: str, size: int) -> int:
        return self._open(key, size).contents if key.endswith(ENCRYPTED) else size

    def sealed(self, key: str, size: int) -> Optional[Header]:
        if not key.endswith(ENCRYPTED):
            return None
        opened = self._look(key, size)
        return None if opened.payload else opened.header

    def read(self, key: str, offset: int, length: int) -> bytes:
        encrypted = key.endswith(ENCRYPTED)
        return super().read(key, offset, length) if encrypted else self._fetch(key, offset, length)

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        if not key.endswith(ENCRYPTED):
            yield from self._counted(self._inner.stream(key, offset, length))
            return
        from .age import CHUNK, TAG

        opened = self._open(key)
        end = min(offset + length, opened.contents)
        if offset >= end:
            return
        number, last = offset // CHUNK, (end - 1) // CHUNK
        first = opened.start + number * (CHUNK + TAG)
        stop = min(opened.start + (last + 1) * (CHUNK + TAG), opened.size)
        skip, wanted = offset - number * CHUNK, end - offset
        for sealed in _pieces(self._counted(self._inner.stream(key, first, stop - first)), CHUNK + TAG):
            contents = self._decrypted(key, opened, number, sealed)[skip:][:wanted]
            number, skip, wanted = number + 1, 0, wanted - len(contents)
            yield contents
        if wanted:
            raise IntegrityError("%s ended %d bytes early" % (key, wanted))

    def _fetch(self, key: str, offset: int, length: int) -> bytes:
        return b"".join(self._counted([self._inner.read(key, offset, length)]))

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            with self._lock:
                self.bytes_read += len(piece)
            yield piece

    def _decrypted(self, key: str, opened: _Opened, number: int, sealed: bytes) -> bytes:
        try:
            return given(opened.payload).open(number, number == opened.chunks - 1, sealed)
        except IntegrityError as error:
            error.message = "%s is damaged, or was replaced while it was read: %s" % (key, error.message)
            raise

    def _open(self, key: str, size: Optional[int] = None) -> _Opened:
        """UsageError where no identity opens it."""
        opened = self._look(key, size)
        if opened.payload is None and not self._identities:
            raise UsageError(
                "%s is encrypted, and no identity is given" % key,
                hint="Set age_identity, age_identity_file, BACKUP_AGE_IDENTITY or BACKUP_AGE_IDENTITY_FILE.",
            )
        if opened.payload is None:
            raise UsageError(
                "%s is encrypted for others than the %d identities given" % (key, len(self._identities)),
                hint="Give the identity of one of the recipients it was made for.",
            )
        return opened

    def _look(self, key: str, size: Optional[int] = None) -> _Opened:
        """The header, read once for each object; without `size`, of whatever object was read before."""
        with self._lock:
            opened = self._opened.get(key)
        if opened is not None and size in (None, opened.size):
            return opened
        if size is None:
            found = self._inner.stat(key)
            if found is None:
                raise NotFoundError("Backup not found: %s" % self.storage.url(key))
            size = found.size
        try:
            opened = self._read_header(key, size)
        except (IntegrityError, UsageError) as error:
            error.message = "%s: %s" % (key, error.message)
            raise
        with self._lock:
            self._opened[key] = opened
        return opened

    def _read_header(self, key: str, size: int) -> _Opened:
        for most in (age_header.USUAL, age_header.MOST):
            start = self._fetch(key, 0, min(size, most)) if size else b""
            header = age_header.parse(start, len(start) == min(size, age_header.MOST))
            if header is not None:
                break
        header = given(header)  # `parse` raises rather than ask for more than there is
        if not self._identities:
            return _Opened(size, header, None, 0, 0, 0)
        from . import age

        file_key = age.open_header(header, self._identities)
        if file_key is None:
            return _Opened(size, header, None, 0, 0, 0)
        body = header.length + age.NONCE
        nonce = (start if len(start) >= body else self._fetch(key, 0, min(size, body)))[header.length : body]
        stored, whole = size - body, age.CHUNK + age.TAG
        chunks = max(1, -(-stored // whole))
        last = stored - (chunks - 1) * whole
        # An empty chunk is only the whole of an empty object.
        if last < age.TAG or (last == age.TAG and chunks > 1):
            raise IntegrityError("it was cut off: its last encrypted chunk is not whole")
        return _Opened(size, header, age.Payload(file_key, nonce), body, stored - chunks * age.TAG, chunks)

    # What has nothing to do with contents.

    def probe(self, key: str) -> Optional[StoredObject]:
        return self._inner.probe(key)

    def stat(self, key: str) -> Optional[StoredObject]:
        return self._inner.stat(key)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self._inner.list(prefix)

    def delete(self, key: str, version_id: str = "") -> None:
        self._inner.delete(key, version_id)

    def delete_many(self, keys: Sequence[str]) -> Iterator[Deletion]:
        return self._inner.delete_many(keys)

    def sweep(self, ours: Callable[[str], bool]) -> List[str]:
        return self._inner.sweep(ours)

    def check(self) -> List[Finding]:
        return self._inner.check()


class _SealedUpload(Upload):
    """Encrypts on the way to the store. Holds less than two chunks."""

    def __init__(self, inner: Upload, head: bytes, payload: Payload) -> None:
        from .age import CHUNK, TAG

        self._inner = inner
        self._head = head
        self._payload = payload
        self._whole, self._tag = CHUNK, TAG
        self._rest = bytearray()
        self._number = 0

    def expect(self, estimated: int) -> None:
        chunks = estimated // self._whole + 1
        self._inner.expect(estimated + len(self._head) + chunks * self._tag)

    def write(self, pieces: Sequence[bytes]) -> None:
        """A full chunk waits until more comes: only the last one may be marked as last."""
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if len(self._rest) == self._whole:
                    self._seal(self._rest, False)
                    self._rest.clear()
                while not self._rest and len(view) > self._whole:  # without a copy
                    self._seal(view[: self._whole], False)
                    view = view[self._whole :]
                taken = view[: self._whole - len(self._rest)]
                self._rest += taken
                view = view[len(taken) :]

    def _seal(self, contents: bytes | bytearray | memoryview, last: bool) -> None:
        sealed = self._payload.seal(self._number, last, memoryview(contents))
        self._inner.write([self._head, sealed] if self._head else [sealed])
        self._number, self._head = self._number + 1, b""

    def commit(self) -> StoredObject:
        self._seal(self._rest, True)
        return self._inner.commit()

    def abort(self) -> Optional[StoredObject]:
        return self._inner.abort()


def _pieces(stream: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in pieces of one size; the last may be shorter."""
    rest = b""
    for piece in stream:
        rest += piece
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield rest[start : start + size]
        rest = rest[whole:]
    if rest:
        yield rest
