# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One small interface for every place backups are kept; each kind has one door, in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from ..age_header import Header
from ..errors import IntegrityError, StorageError, UsageError
from ..model import Finding, Storage


@dataclass(frozen=True)
class StoredObject:
    """An object as the store tells of it. `modified_at` is RFC 3339, UTC."""

    key: str
    size: int
    modified_at: str = ""
    etag: str = ""
    version_id: str = ""


REMOVED, LOCKED, FAILED = "removed", "locked", "failed"


@dataclass(frozen=True)
class Deletion:
    """What became of one object that was to be deleted; `detail`: in the store's words why it is still there."""

    key: str
    outcome: str  # REMOVED (or gone before), LOCKED (the store protects it), FAILED
    detail: str = ""


class Upload:
    """An object being written: nothing of it is visible under its key until `commit` returned."""

    def expect(self, estimated: int) -> None:
        """Say before the first write how many bytes may come at the most, so that parts of one size suffice."""

    def write(self, pieces: Sequence[bytes]) -> None:
        """Append bytes. Blocks while the parts in flight are as many as memory allows."""
        raise NotImplementedError

    def commit(self) -> StoredObject:
        """Make the object exist, whole, and check its stored size. The one call that is the commit."""
        raise NotImplementedError

    def abort(self) -> Optional[StoredObject]:
        """Leave nothing behind. Safe to call more than once. After a commit that was interrupted, or failed, it tells
        what that made all the same: the object, whole, or None where there is none and none can come."""
        raise NotImplementedError


class Store:
    """A bucket, directory or remote. Keys are whole: the prefix is part of them."""

    bytes_read = 0  # of objects, as they are stored, by `read` and `stream`; what `open_store` gives counts them

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        """Start an object; fails here, before any work, when the store cannot be written."""
        raise NotImplementedError

    def probe(self, key: str) -> Optional[StoredObject]:
        """As `stat`, but None also where the credentials may write and not look: then the commit itself tells."""
        return self.stat(key)

    def stat(self, key: str) -> Optional[StoredObject]:
        """The object, or None where there is none."""
        raise NotImplementedError

    def read(self, key: str, offset: int, length: int) -> bytes:
        """Exactly that range of bytes; IntegrityError where the object is shorter."""
        data = b"".join(self.stream(key, offset, length))
        if len(data) != length:
            raise IntegrityError("%s ended %d bytes early" % (key, length - len(data)))
        return data

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        """That range in pieces, resumed where a connection broke. IntegrityError where the object was replaced."""
        raise NotImplementedError

    def contents_size(self, key: str, size: int) -> int:
        """How many bytes `read` and `stream` have of an object that is stored in `size` bytes: fewer where it is
        encrypted. UsageError where that has no identity to open it."""
        return size

    def sealed(self, key: str, size: int) -> Optional[Header]:
        """The header of an encrypted object that no identity here opens; None for every other, which can be read.
        IntegrityError for a damaged one."""
        return None

    def list(self, prefix: str) -> Iterator[StoredObject]:
        raise NotImplementedError

    def delete(self, key: str, version_id: str = "") -> None:
        raise NotImplementedError

    def delete_many(self, keys: Sequence[str]) -> Iterator[Deletion]:
        """Delete objects in that order, telling of each as soon as it is known. StorageError ends it early."""
        for key in keys:
            try:
                self.delete(key)
            except StorageError as error:
                yield Deletion(key, FAILED, error.message)
            else:
                yield Deletion(key, REMOVED)

    def sweep(self, ours: Callable[[str], bool]) -> List[str]:
        """Remove what killed runs left unfinished under keys that are `ours`, unless a run may be at it; the keys.
        StorageError where the credentials may not do that: no reason to fail a backup."""
        raise NotImplementedError

    def check(self) -> List[Finding]:
        """Try what a backup and a restore need, leaving nothing behind. NoStoreError where there is no store."""
        raise NotImplementedError


def open_store(storage: Storage) -> Store:
    """The store, with encrypted objects encrypted and decrypted. UsageError for keys of age that are none."""
    from ..cipher import CipherStore

    return CipherStore(_door(storage))


def _door(storage: Storage) -> Store:
    if storage.kind == "s3":
        from .s3 import S3Store

        return S3Store(storage)
    if storage.kind == "local":
        from .local import LocalStore

        return LocalStore(storage)
    if storage.kind == "rclone":
        from .rclone import RcloneStore

        return RcloneStore(storage)
    raise UsageError("unknown store %r: s3, local or rclone" % storage.kind)
