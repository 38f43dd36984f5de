# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Try out a bucket: what these credentials may do with it, and what the store can do.

Only a multipart upload is needed for a backup. What else is denied costs something else, which the finding says. An
object is made only where it can be removed again, and a denied deletion is known before: S3 answers 204 for a key that
is not there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Callable, Dict, List

from ..errors import BackupError, IntegrityError, StorageError
from ..model import Finding
from .s3_client import status_of

if TYPE_CHECKING:
    from .s3 import S3Store

_CONTENT = b"pgstream-check"


def check_bucket(store: S3Store) -> List[Finding]:
    store.require_bucket()
    return _Check(store).run()


class _Check:
    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._client = store.client
        prefix = store.storage.prefix
        self._key = (prefix + "/" if prefix else "") + ".pgstream-check-" + os.urandom(6).hex()
        self._version = ""  # of the object made, where the bucket keeps versions
        self._readable = ""  # the key of an object to read
        self._findings: List[Finding] = []

    def run(self) -> List[Finding]:
        store, profile = self._store, self._store.profile
        limits = "%d parts of %d MiB or more" % (profile.max_parts, profile.smallest_part >> 20)
        place = store.storage.url(store.storage.prefix)
        self._findings.append(Finding("store", True, "%s, taken for %s: %s" % (place, profile.name, limits)))
        writable = self._try("multipart upload", self._start)
        abortable = False
        if writable:
            abortable = self._try("aborting an upload", self._abort, "a failed backup leaves its parts, and they are paid for")
        deletable = self._try("deleting", self._delete, "retention will not work, and a spoilt object would stay")
        try:
            if writable and deletable:
                self._with_an_object(abortable)
            elif writable:
                self._skip("completing an upload", "the object could not be removed again")
            self._try("listing", self._list, "list, latest, fresh_within and retention will not work")
            if self._readable:
                self._try("reading", self._read, "restore will not work, nor is a backup looked at when it is done")
                self._try("reading a range", self._range, "restore will not work")
            else:
                self._skip("reading", "there is no object to read")
            self._try("listing unfinished uploads", self._unfinished, "what killed backups left is not removed")
        finally:
            if self._readable == self._key:
                self._try("cleaning up", self._clean_up, "%s stays in the bucket" % self._key)
        return self._findings

    def _with_an_object(self, abortable: bool) -> None:
        if self._try("completing an upload", self._complete) and abortable:
            unseen = "of two runs that write one key at the same moment, the second wins unseen"
            self._try("conditional put", self._condition, unseen)

    def _try(self, name: str, attempt: Callable[[], str], follows: str = "") -> bool:
        """One finding. Without `follows` a backup needs it."""
        try:
            self._findings.append(Finding(name, True, attempt(), not follows, follows))
            return True
        except BackupError as error:
            said = "denied" if status_of(error) == 403 and follows else error.sentence()
            self._findings.append(Finding(name, False, said, not follows, follows))
            return False

    def _skip(self, name: str, why: str) -> None:
        self._findings.append(Finding(name, None, "not tried: " + why, False))

    def _start(self) -> str:
        self._upload: Dict[str, Any] = {"Key": self._key, "UploadId": self._store.create(self._key, {})}
        self._part()
        return "begun, one part sent"

    def _part(self) -> Dict[str, Any]:
        answer = self._client.call("upload_part", PartNumber=1, Body=_CONTENT, **self._upload)
        return {"Parts": [{"PartNumber": 1, "ETag": answer["ETag"]}]}

    def _abort(self) -> str:
        try:
            self._client.call("abort_multipart_upload", **self._upload)
        except StorageError as error:
            left = "upload %s of %s is left: " % (self._upload["UploadId"], self._key)
            raise StorageError(left + error.message) from None
        return "nothing is left of it"

    def _delete(self) -> str:
        self._store.delete(self._key)
        return "allowed"

    def _complete(self) -> str:
        upload = self._store.begin(self._key, True)
        try:
            upload.write([_CONTENT])
            self._version = upload.commit().version_id
        finally:
            upload.abort()
        self._readable = self._key
        return "an object of %d bytes" % len(_CONTENT)

    def _condition(self) -> str:
        self._start()
        parts = self._part()
        try:
            self._client.once("complete_multipart_upload", MultipartUpload=parts, IfNoneMatch="*", **self._upload)
        except StorageError as error:
            self._abort()
            if status_of(error) in (409, 412):
                return "If-None-Match is honoured"
            raise
        raise StorageError("If-None-Match is ignored: the store overwrote an object")

    def _list(self) -> str:
        first = next(iter(self._store.list(self._store.storage.prefix)), None)
        if first is not None and not self._readable:
            self._readable = first.key
        return "allowed"

    def _read(self) -> str:
        found = self._store.stat(self._readable)
        if found is None:
            raise IntegrityError("%s is not there" % self._readable)
        return "%d bytes" % found.size

    def _range(self) -> str:
        whole = self._readable == self._key
        found = self._store.read(self._readable, 2, 4) if whole else self._store.read(self._readable, 0, 1)
        if whole and found != _CONTENT[2:6]:
            raise IntegrityError("the store sent other bytes than were asked for")
        return "exactly the bytes asked for" if whole else "the first byte of %s" % self._readable

    def _unfinished(self) -> str:
        return "%d" % len(self._store.unfinished())

    def _clean_up(self) -> str:
        try:
            self._store.delete(self._key, self._version)
        except StorageError:
            self._store.delete(self._key)
            return "removed, a version of it stays" if self._version else "removed"
        return "removed"
