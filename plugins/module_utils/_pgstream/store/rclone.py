# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Any remote of rclone as a store: listings, ranged reads, and the start of uploads.

For what S3 does not cover: SFTP, Azure, Google Drive, WebDAV and others. A remote must take a stream, and must rename
or copy on its own side (`require`).
"""

from __future__ import annotations

import json
import os
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

from ..errors import BackupError, IntegrityError, NoStoreError, NotFoundError, StorageError, UsageError
from ..events import utc_now
from ..model import Finding, Storage
from .base import Store, StoredObject, Upload
from .rclone_client import NOT_THERE, RcloneClient, RcloneError, stored_object, time_of
from .rclone_upload import DIGESTS, PARTIAL, RcloneUpload
from .retry import Retry

UNFINISHED_AGE = timedelta(hours=24)  # of a partial object that no live run can belong to any more

#: What tells one object from another under the same key: size, time and, where the remote has one, its id.
Identity = Tuple[int, str, str]


class RcloneStore(Store):
    """Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.client = RcloneClient(storage)
        self._seen: Dict[str, Identity] = {}  # as last looked at: a read that is resumed goes on with no other

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        self.client.place(key)  # where it leads out, nothing is begun
        features = self.client.features()
        for finding in require(features, self.storage.root):
            if finding.ok is False and finding.needed:
                raise UsageError(finding.detail, hint="Choose another remote, or a directory or bucket.")
        self.require_root(bool(features["Features"].get("BucketBased")))
        return RcloneUpload(self.client, features, key, overwrite)

    def require_root(self, bucket_based: bool = True) -> None:
        """NoStoreError where the remote's path does not exist: what is not mounted is not written beside. A bucket's
        paths exist by what is in them."""
        try:
            self.client.call("lsjson", "--stat", "--no-modtime", self.storage.rclone_remote)
            return
        except RcloneError as error:
            if error.status not in NOT_THERE:
                raise
        try:
            if bucket_based:
                self.client.call("lsf", "--max-depth", "1", self.storage.rclone_remote)
                return
        except RcloneError as error:
            if error.status not in NOT_THERE:
                raise
        raise NoStoreError(
            "%s does not exist" % self.storage.root, hint="Create it: rclone mkdir %s" % self.storage.rclone_remote
        )

    def stat(self, key: str) -> Optional[StoredObject]:
        found = self.client.stat(key)
        if found is None:
            return None
        self._seen[key] = identity(found)
        return stored_object(key, found)

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        """One `rclone cat` reads one object, whatever takes its place meanwhile. A second one may meet another."""
        if length <= 0:
            return
        end = offset + length
        first = self._seen.get(key) or self._identity(key)
        retry = Retry(self.storage.stall_timeout, patient=True)
        resumed = False
        while offset < end:
            failure: BackupError = IntegrityError("%s ended %d bytes early" % (key, end - offset))
            span = ("--offset", str(offset), "--count", str(end - offset))
            try:
                # With no tries of its own: it would go on after a fault without looking whether it is the same object.
                for piece in self.client.output("cat", *span, self.client.place(key)):
                    offset += len(piece)
                    retry.progress()
                    yield piece
            except RcloneError as error:
                if error.status in NOT_THERE:
                    raise self._not_found(key) from None
                failure = error
            if offset < end:
                resumed = True
                self._require_same(key, first)
                if first[0] <= offset:
                    raise IntegrityError("%s ended %d bytes early" % (key, end - offset))
                if isinstance(failure, RcloneError) and not failure.passing or not retry.again():
                    raise failure
        if resumed:
            self._require_same(key, first)

    def _identity(self, key: str) -> Identity:
        found = self.client.stat(key, patient=True)
        if found is None:
            raise self._not_found(key)
        return identity(found)

    def _require_same(self, key: str, first: Identity) -> None:
        if self._identity(key) != first:
            raise IntegrityError("%s was replaced while it was read" % key)

    def _not_found(self, key: str) -> NotFoundError:
        return NotFoundError("Backup not found: %s" % self.storage.url(key))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        directory = prefix.rpartition("/")[0]
        for found in self._listed(directory, "-R"):
            key = (directory + "/" if directory else "") + str(found["Path"])
            if key.startswith(prefix) and not PARTIAL.fullmatch(key):
                self._seen[key] = identity(found)
                yield stored_object(key, found)

    def _listed(self, directory: str, *options: str) -> Iterator[Dict[str, Any]]:
        """The files of a directory, one JSON object a line, as they come. Made again only while none was given on."""
        arguments = ("lsjson", "--files-only", "--no-mimetype", "--use-server-modtime", *options)
        retry = Retry(self.storage.stall_timeout)
        while True:
            given = False
            try:
                for line in _lines(self.client.output(*arguments, self.client.place(directory))):
                    text = line.strip().rstrip(b",")
                    if text not in (b"", b"[", b"]"):
                        given = True
                        yield json.loads(text)
                return
            except ValueError:
                raise StorageError("rclone printed a listing that is no JSON") from None
            except RcloneError as error:
                if error.status in NOT_THERE and not given:
                    self.require_root()
                    return  # no backup was made yet
                if given or not error.passing or not retry.again():
                    raise

    def delete(self, key: str, version_id: str = "") -> None:
        self.client.remove(key)

    def sweep(self, ours: Callable[[str], bool]) -> List[str]:
        """By age alone, as the remote tells it: nothing there says whether the run of a partial object lives."""
        before = utc_now() - UNFINISHED_AGE
        prefix = self.storage.prefix + "/" if self.storage.prefix else ""
        swept = []
        for found in list(self._listed(self.storage.prefix)):
            match = PARTIAL.fullmatch(prefix + str(found["Path"]))
            if match and ours(match.group(1)) and time_of(found) < before:
                self.client.remove(match.group())
                swept.append(match.group(1))
        return swept

    def check(self) -> List[Finding]:
        """Features first: a remote that cannot do what is needed is not written to."""
        features = self.client.features()
        findings = require(features, self.storage.root)
        if any(each.ok is False and each.needed for each in findings):
            return findings
        key = (self.storage.prefix + "/" if self.storage.prefix else "") + ".pgstream-check-" + os.urandom(4).hex()
        try:
            upload = self.begin(key, False)
            try:
                upload.write([b"check"])
                upload.commit()
                readable = self.read(key, 1, 3) == b"hec"
                listed = any(each.key == key for each in self.list(key))
            finally:
                upload.abort()
                self.delete(key)
        except BackupError as error:
            return [*findings, Finding("store writable", False, error.sentence())]
        place = self.storage.url(self.storage.prefix)
        return [
            *findings,
            Finding("store writable", True, place),
            Finding("store readable", readable, place, needed=False, follows="restore will not work"),
            Finding("listing", listed, place, needed=False, follows="list, latest and retention will not work"),
        ]


def require(features: Dict[str, Any], root: str) -> List[Finding]:
    """Whether a remote can do what a backup needs, by what `rclone backend features` says of it."""
    can = features["Features"]
    streams = bool(can.get("PutStream"))
    how = [name for name in ("Move", "Copy") if can.get(name)]
    kind = next((each for each in DIGESTS if each in (features.get("Hashes") or ())), "")
    return [
        Finding(
            "streaming upload",
            streams,
            "supported"
            if streams
            else "%s takes no stream of unknown length: rclone would first write the whole"
            " backup to a disk here" % root,
        ),
        Finding(
            "renaming",
            bool(how),
            "by the remote: %s" % how[0].lower()
            if how
            else "%s can neither rename nor copy on its own side, so that a backup cannot appear there whole" % root,
        ),
        Finding(
            "checksum",
            bool(kind),
            kind or "the remote has none that is known here",
            needed=False,
            follows="" if kind else "after an upload only the size is compared",
        ),
    ]


def identity(found: Dict[str, Any]) -> Identity:
    return int(found["Size"]), str(found.get("ModTime", "")), str(found.get("ID", ""))


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest
