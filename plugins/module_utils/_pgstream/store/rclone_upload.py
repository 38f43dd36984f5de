# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An upload to a remote of rclone: a stream under a partial name, compared, then renamed.

`rclone rcat` takes the death of whoever feeds it for a normal end of input and stores what it has. So nothing is ever
streamed to the key itself: a run that dies leaves a partial object, of which no listing tells, and only what was
compared is renamed.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any, Dict, Optional, Sequence

from ..errors import BackupError, Cancelled, IntegrityError, StorageError, given
from ..plan import part_size
from ..process import Process
from .base import StoredObject, Upload
from .rclone_client import RcloneClient, RcloneError, stored_object
from .retry import Retry

PARTIAL = re.compile(r"(.+)\.pgstream-[0-9a-f]{16}\.partial")
DIGESTS = ("sha256", "sha1", "md5")  # that hashlib and rclone both know, best first
_SLICE = 1 << 20  # bytes; so many at least have to be taken before rclone is given up
_GRACE = 10.0  # seconds for rclone to abort what it began, such as the parts of a multipart upload

#: How many parts a backend may send of a stream, of what size by default (rclone's documentation of each). Larger parts
#: take more of rclone's memory, so only a database that needs them gets them. Of no effect on other backends.
_PARTS = (("--s3-chunk-size", 10000, 5 << 20), ("--azureblob-chunk-size", 50000, 4 << 20))


class RcloneUpload(Upload):
    def __init__(self, client: RcloneClient, features: Dict[str, Any], key: str, overwrite: bool) -> None:
        self._client = client
        self._key = key
        self._overwrite = overwrite
        self._partial = "%s.pgstream-%s.partial" % (key, os.urandom(8).hex())
        self._kind = next((each for each in DIGESTS if each in (features.get("Hashes") or ())), "")
        self._digest = hashlib.new(self._kind, usedforsecurity=False) if self._kind else None
        self._copies = not features["Features"].get("Move")
        self._process: Optional[Process] = None
        self._options: Sequence[str] = ()
        self._size = 0
        self._renaming = self._replaces = False
        self._done = False
        self._made: Optional[StoredObject] = None
        # Says at once whether this can be written: rcat itself would find out with the first part of the stream.
        try:
            self._start()
            self._feed(b"a backup begins\n")
            self._end()
        except BaseException:
            self._quietly_abort()
            raise

    def expect(self, estimated: int) -> None:
        for flag, parts, usual in _PARTS:
            size = part_size(estimated, usual, parts)
            if size > usual:
                self._options = (*self._options, flag, "%dM" % (size >> 20))

    def write(self, pieces: Sequence[bytes]) -> None:
        if self._done:
            raise Cancelled("the upload was aborted")
        if self._process is None:
            self._start()
        for piece in pieces:
            if self._digest is not None:
                self._digest.update(piece)
            self._size += len(piece)
            self._feed(piece)

    def _start(self) -> None:
        # What is stored is compared here, with what was sent: rclone's own comparison would read it once more.
        self._process = self._client.spawn(
            "rcat", "--ignore-checksum", *self._options, self._client.place(self._partial), feed=True
        )

    def _feed(self, piece: bytes) -> None:
        process = given(self._process)
        view = memoryview(piece)
        for start in range(0, len(view), _SLICE):
            with self._client.bounded(process):
                try:
                    process.write(view[start : start + _SLICE])
                except BackupError:  # it died: what it said of that is better than that it did
                    self._client.finish(process)
                    raise

    def _end(self) -> None:
        """The end of the stream, and rclone's own."""
        process = given(self._process)
        with self._client.bounded(process):
            process.close_input()
            self._client.finish(process)
        self._process = None

    def commit(self) -> StoredObject:
        self.write([])
        self._end()
        fault = self._fault(self._partial, self._client.stat(self._partial, patient=True), True)
        if fault:
            raise IntegrityError("%s %s" % (self._partial, fault))
        found = self._rename()
        fault = self._fault(self._key, found, self._copies)
        if fault:
            raise IntegrityError("%s %s" % (self._key, fault), hint=self._remove_spoilt())
        self._made = stored_object(self._key, found)
        self._done = True
        return self._made

    def _fault(self, key: str, found: Optional[Dict[str, Any]], summed: bool) -> str:
        if found is None or found["Size"] != self._size:
            size = "%d bytes" % found["Size"] if found else "nothing"
            return "has %s after the upload, %d bytes were sent" % (size, self._size)
        return "has another %s than what was sent" % self._kind if summed and not self._is_ours(key, True) else ""

    def _is_ours(self, key: str, otherwise: bool) -> bool:
        """Whether the remote has the checksum of what was sent there; `otherwise` where it has none."""
        if self._digest is None:
            return otherwise
        theirs = self._client.digest(key, self._kind, self._size)
        return theirs == self._digest.hexdigest() if theirs else otherwise

    def _rename(self) -> Dict[str, Any]:
        """The commit. Its failure says little: the remote may have done it all the same, so both names are looked at.

        rclone looks whether the key is free just before, and few remotes can hold that as a condition: of two runs
        that write one key at the same moment, the second may win unseen. A key that is replaced is free for a moment.
        """
        flag = "--ignore-times" if self._overwrite else "--ignore-existing"
        retry = Retry(self._client.storage.stall_timeout, patient=True)
        source, target = self._client.place(self._partial), self._client.place(self._key)
        there = self._client.stat(self._key, patient=True) is not None
        if there and not self._overwrite:
            raise self._taken()
        self._renaming, self._replaces = True, there
        while True:
            failure: Optional[RcloneError] = None
            try:
                self._client.once("moveto", flag, source, target)
            except RcloneError as error:
                failure = error
            left = self._client.stat(self._partial, patient=True)
            found = self._client.stat(self._key, patient=True)
            if found and (left is None or (failure and self._is_ours(self._key, False))):
                self._remove_copied(left)
                return found
            if found and not self._overwrite:
                raise self._taken()
            if left is None:  # some show an object a moment later
                failure = RcloneError("%s is neither under its name nor under %s" % (self._key, self._partial))
                failure.passing = True
            elif failure is None:
                raise StorageError("rclone says that it renamed %s, and it is still there" % self._partial)
            if not failure.passing or not retry.again():
                raise failure

    def _taken(self) -> StorageError:
        return StorageError("%s exists already" % self._key, hint="Another run wrote %s meanwhile." % self._key)

    def _remove_copied(self, left: Optional[Dict[str, Any]]) -> None:
        """A copy was made and its source not removed: the backup is whole, and a later run sweeps what is left."""
        if left is not None:
            try:
                self._client.remove(self._partial)
            except StorageError:
                pass

    def _remove_spoilt(self) -> str:
        try:
            self._client.remove(self._key)
        except StorageError as error:
            return "It could not be removed: %s" % error.message
        return ""

    def _quietly_abort(self) -> None:
        try:
            self.abort()
        except StorageError:
            pass  # what was wrong before says why

    def abort(self) -> Optional[StoredObject]:
        if self._done:
            return self._made
        self._done = True
        if self._process is not None:  # before its input is closed
            self._process.terminate(_GRACE)
            self._process.status()
        try:
            if self._renaming:
                self._settle()
            if self._made is None:
                self._client.remove(self._partial)
        except StorageError as error:
            raise StorageError(
                "%s is left at %s: %s" % (self._partial, self._client.storage.root, error.message),
                hint=error.hint or "A backup under the same prefix removes it when it is a day old.",
            ) from error.__cause__
        return self._made

    def _settle(self) -> None:
        """What a renaming that was interrupted, or failed, made all the same."""
        found = self._client.stat(self._key)
        left = self._client.stat(self._partial)
        if found is None and self._replaces:
            raise StorageError("the object that was to be replaced is gone, and %s is whole" % self._partial,
                               hint="Rename it: rclone moveto")  # fmt: skip
        if found and (left is None or self._is_ours(self._key, False)):
            if not self._fault(self._key, found, self._copies):
                self._remove_copied(left)
                self._made = stored_object(self._key, found)
