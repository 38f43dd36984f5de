# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Backups in a directory: written under a temporary name, synced, then linked to their own."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from datetime import datetime, timezone
from typing import Callable, Dict, Iterator, List, Optional, Sequence

from ..errors import BackupError, IntegrityError, NoStoreError, NotFoundError, StorageError
from ..events import rfc3339
from ..model import Finding, Storage
from .base import Store, StoredObject, Upload

PIECE = 1 << 20  # bytes read at a time
_TEMPORARY = ".pgstream-partial"  # suffix; the name also starts with a dot, so that no listing shows it
_TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{8}" + re.escape(_TEMPORARY))


class LocalStore(Store):
    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self._root = os.path.abspath(storage.directory)

    def _path(self, key: str) -> str:
        path = os.path.normpath(os.path.join(self._root, key))
        if os.path.commonpath([self._root, path]) != self._root or path == self._root:
            raise StorageError("the key %s leads out of the directory %s" % (key, self._root))
        return path

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        if not os.path.isdir(self._root):
            raise NoStoreError("the directory %s does not exist" % self._root, hint="Create it, or mount it.")
        path = self._path(key)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            return _LocalUpload(key, path, overwrite)
        except OSError as error:
            raise _translate(error) from error

    def stat(self, key: str) -> Optional[StoredObject]:
        try:
            found = os.stat(self._path(key))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _translate(error) from error
        return _stored(key, found) if os.path.isfile(self._path(key)) else None

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        try:
            with open(self._path(key), "rb", buffering=0) as file:
                file.seek(offset)
                while length:
                    piece = file.read(min(PIECE, length))
                    if not piece:
                        return
                    length -= len(piece)
                    yield piece
        except FileNotFoundError:
            raise NotFoundError("Backup not found: %s" % self.storage.url(key)) from None
        except OSError as error:
            raise _translate(error) from error

    def list(self, prefix: str) -> Iterator[StoredObject]:
        if not os.path.isdir(self._root):
            raise NoStoreError("the directory %s does not exist" % self._root)
        for directory, folders, files in os.walk(self._root, onerror=_raise):
            folders.sort()
            for name in sorted(files):
                path = os.path.join(directory, name)
                key = os.path.relpath(path, self._root)
                if name.startswith(".") or not key.startswith(prefix):
                    continue
                try:
                    yield _stored(key, os.stat(path))
                except FileNotFoundError:
                    continue  # removed meanwhile

    def delete(self, key: str, version_id: str = "") -> None:
        try:
            _unlink(self._path(key))
        except OSError as error:
            raise _translate(error) from error

    def sweep(self, ours: Callable[[str], bool]) -> List[str]:
        """Whatever its age: a lock on the file tells whether its writer lives."""
        directory = os.path.join(self._root, self.storage.prefix)
        swept = []
        try:
            for name in sorted(os.listdir(directory)):
                match = _TEMPORARY_NAME.fullmatch(name)
                key = os.path.join(self.storage.prefix, match.group(1)) if match else ""
                if key and ours(key) and _remove_abandoned(os.path.join(directory, name)):
                    swept.append(key)
        except FileNotFoundError:
            pass  # no backup was made yet
        except OSError as error:
            raise _translate(error) from error
        return swept

    def check(self) -> List[Finding]:
        key = os.path.join(self.storage.prefix, ".pgstream-check-" + os.urandom(4).hex())
        try:
            upload = self.begin(key, False)
            try:
                upload.write([b"check"])
                upload.commit()
                readable = self.read(key, 1, 3) == b"hec"
            finally:
                upload.abort()
                self.delete(key)
            free = os.statvfs(self._root)
        except BackupError as error:
            return [Finding("store writable", False, error.sentence())]
        return [
            Finding("store writable", True, self._root),
            Finding("store readable", readable, self._root, needed=False, follows="restore will not work"),
            Finding("store space", True, "%d bytes free" % (free.f_bavail * free.f_frsize)),
        ]


class _LocalUpload(Upload):
    def __init__(self, key: str, path: str, overwrite: bool) -> None:
        self._key = key
        self._path = path
        self._overwrite = overwrite
        directory, name = os.path.split(path)
        self._temporary = os.path.join(directory, ".%s.%s%s" % (name, os.urandom(4).hex(), _TEMPORARY))
        self._fd = _locked_file(self._temporary)
        self._size = 0
        self._replaced = False
        self._failed = False
        self._made: Optional[StoredObject] = None

    def write(self, pieces: Sequence[bytes]) -> None:
        try:
            for piece in pieces:
                view = memoryview(piece)
                self._size += len(view)
                while view:
                    view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise _translate(error) from error

    def commit(self) -> StoredObject:
        try:
            os.fsync(self._fd)
            if os.fstat(self._fd).st_size != self._size:
                raise IntegrityError(
                    "%s has %d bytes, %d were written" % (self._path, os.fstat(self._fd).st_size, self._size)
                )
            self._replaced = self._overwrite and os.path.exists(self._path)
            if self._overwrite or not self._linked():
                os.rename(self._temporary, self._path)
            _sync_directory(self._path)
        except FileExistsError:
            raise StorageError("%s exists already" % self._path, hint="Another run wrote it meanwhile.") from None
        except OSError as error:
            self._failed = True
            raise _translate(error) from error
        self._made = _stored(self._key, os.fstat(self._fd))
        self._close()
        return self._made

    def _linked(self) -> bool:
        """Give the file its name by a link, which unlike a rename fails where the name is taken. False on a file
        system without links: there the name is looked at first, and a race of two writers is not seen."""
        try:
            os.link(self._temporary, self._path)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
            if os.path.exists(self._path):
                raise FileExistsError(errno.EEXIST, "exists already", self._path) from None
            return False
        os.unlink(self._temporary)
        return True

    def abort(self) -> Optional[StoredObject]:
        if self._fd < 0:
            return self._made
        try:
            _unlink(self._temporary)
            if self._is_named():
                self._settle()
            return _stored(self._key, os.fstat(self._fd)) if not self._failed and self._is_named() else None
        except OSError as error:
            raise _translate(error) from error
        finally:
            self._close()

    def _is_named(self) -> bool:
        """Whether it has its own name already. Its count of links does not tell: NFS keeps an open file that is removed
        under another name."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _settle(self) -> None:
        """A commit that was interrupted is brought to its end. One that failed is taken back, unless another object was
        replaced: then this one is better than none."""
        if not self._failed:
            try:
                _sync_directory(self._path)
            except OSError:
                self._failed = True
        if self._failed and not self._replaced:
            _unlink(self._path)

    def _close(self) -> None:
        descriptor, self._fd = self._fd, -1
        os.close(descriptor)


def _stored(key: str, found: os.stat_result) -> StoredObject:
    return StoredObject(key, found.st_size, rfc3339(datetime.fromtimestamp(int(found.st_mtime), timezone.utc)))


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _sync_directory(path: str) -> None:
    """Of that file: its name is on disk after this."""
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _locked_file(path: str) -> int:
    """A new file, locked for as long as its writer lives: a later run sweeps away only files whose lock is free.

    One that looks between the making and the locking may take it for abandoned; then it is made once more.
    """
    while True:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return descriptor
        os.close(descriptor)


def _remove_abandoned(path: str) -> bool:
    """Remove a temporary file whose writer died; False if it lives."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False  # gone meanwhile, or another user's
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise _translate(error) from error


def _translate(error: OSError) -> StorageError:
    hint = "Free some space." if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return StorageError("%s: %s" % (error.filename or "the directory", error.strerror), hint=hint)
