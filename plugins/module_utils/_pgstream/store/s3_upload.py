# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A multipart upload: parts of one size, sent by a few threads, and the completing call that is the commit."""

from __future__ import annotations

import hashlib
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Callable, Dict, List, Optional, Sequence

from ..errors import Cancelled, IntegrityError, StorageError
from ..events import rfc3339
from ..plan import part_size
from ..stages import stage
from .base import StoredObject, Upload
from .profiles import Profile
from .retry import Retry
from .s3_client import PartBody, S3Client, code_of, may_pass, status_of

SMALLEST_PART = 8 << 20  # bytes; most stores allow 5 MiB
PARTS_IN_FLIGHT = 3  # parts held in memory while they are sent
RUN_TOKEN = "pgstream-upload"  # metadata: of this one upload and no other

_CONFLICTS = ("ConditionalRequestConflict", "OperationAborted")  # 409: something else is at work on the key
_DIGEST = re.compile(r"[0-9a-f]{32}")
_COMPOSITE = re.compile(r"([0-9a-f]{32})-([0-9]+)")


class S3Upload(Upload):
    """The first failure of any thread is kept, and raised to the next writer."""

    def __init__(
        self, client: S3Client, profile: Profile, key: str, upload_id: str, overwrite: bool, metadata: Dict[str, str]
    ) -> None:
        self._client = client
        self._profile = profile
        self._key = key
        self._upload_id = upload_id
        self._overwrite = overwrite
        self._metadata = metadata
        self._part_size = max(SMALLEST_PART, profile.smallest_part)
        # Parts are filled and sent in buffers that are used again: memory is bounded whatever the allocator does.
        self._free: "SimpleQueue[bytearray]" = SimpleQueue()
        self._made = 0
        self._part = bytearray()
        self._filled = 0
        self._size = 0
        self._parts: List[Future[Any]] = []
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="upload")
        self._failure: Optional[BaseException] = None
        self._stopped = threading.Event()
        self._completing = False
        self._done = False
        self._aborted = False

    def expect(self, estimated: int) -> None:
        smallest = max(SMALLEST_PART, self._profile.smallest_part)
        self._part_size = min(self._profile.largest_part, part_size(estimated, smallest, self._profile.max_parts))

    def write(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if not self._part:
                    self._part = self._buffer()
                taken = view[: self._part_size - self._filled]
                self._part[self._filled : self._filled + len(taken)] = taken
                self._filled += len(taken)
                view = view[len(taken) :]
                if self._filled == self._part_size:
                    self._send()

    def _buffer(self) -> bytearray:
        """A buffer of one part's size: waits for one to be sent when all are in flight."""
        if self._made <= PARTS_IN_FLIGHT and self._free.empty():
            self._made += 1
            buffer = bytearray(self._part_size)
        else:
            buffer = self._free.get()
        if self._failure is not None or self._stopped.is_set():
            self._free.put(buffer)
            raise self._failure or Cancelled("the upload was aborted")
        return buffer

    def _send(self) -> None:
        number = len(self._parts) + 1
        if number > self._profile.max_parts:
            raise StorageError(
                "the backup is larger than %d parts of %d bytes" % (self._profile.max_parts, self._part_size),
                hint="The estimate from the server's tables was far too low.",
            )
        if self._failure is not None or self._stopped.is_set():
            raise self._failure or Cancelled("the upload was aborted")
        part, filled = self._part, self._filled
        self._part, self._filled = bytearray(), 0
        self._size += filled
        self._parts.append(self._pool.submit(self._put, number, part, filled))

    def _put(self, number: int, part: bytearray, filled: int) -> Dict[str, Any]:
        try:
            if self._failure is not None or self._stopped.is_set():
                raise Cancelled("the upload was aborted")
            with stage("S3 upload"):
                answer = self._call("upload_part", PartNumber=number, Body=PartBody(memoryview(part)[:filled]))
            if not answer.get("ETag"):
                raise IntegrityError("the store gave no ETag for part %d of %s" % (number, self._key))
            # Where the store computed checksums, the completing call has to name them.
            sums = {name: answer[name] for name in answer if name.startswith("Checksum") and name != "ChecksumType"}
            return {"PartNumber": number, "ETag": answer["ETag"], **sums}
        except BaseException as error:
            self._failure = self._failure or error
            raise
        finally:
            self._free.put(part)

    def _call(self, operation: str, **arguments: Any) -> Dict[str, Any]:
        arguments.update(Key=self._key, UploadId=self._upload_id)
        return self._client.call(operation, patient=True, stopped=self._stopped, **arguments)

    def commit(self) -> StoredObject:
        if self._filled or not self._parts:
            self._send()
        try:
            parts = [part.result() for part in self._parts]
        except BaseException as error:
            raise self._failure or error from None  # the first cause, not a later part's echo of it
        self._pool.shutdown()
        self._completing = True
        answer = self._complete(parts)
        self._stopped.set()
        self._done = True
        return self._confirm(answer, parts)

    # The completing call. Its failure says little: the store may have done it, or may be at it still.

    def _complete(self, parts: List[Dict[str, Any]]) -> Dict[str, Any]:
        arguments: Dict[str, Any] = {"MultipartUpload": {"Parts": parts}, "Key": self._key, "UploadId": self._upload_id}
        if not self._overwrite:
            if self._profile.conditional != "honoured":
                self._require_free()
            arguments["IfNoneMatch"] = "*"
        retry = Retry(self._client.storage.stall_timeout, patient=True)
        doubtful = False
        while True:
            try:
                return self._client.once("complete_multipart_upload", **arguments)
            except StorageError as error:
                if "IfNoneMatch" in arguments and (code_of(error) == "NotImplemented" or status_of(error) == 501):
                    self._require_free()
                    del arguments["IfNoneMatch"]
                    continue
                found = self._look(self._client.once)  # this loop is the one that asks again
                if found.ours:
                    return found.head
                taken = status_of(error) == 412 or (found.head and not self._overwrite)
                passing = not taken and (may_pass(error, retry) or code_of(error) in _CONFLICTS)
                doubtful = doubtful or passing
                if passing and retry.again():
                    continue
                if status_of(error) in (409, 412):
                    error.hint = "Another run wrote %s meanwhile." % self._key
                return self._last_look(error, doubtful)

    def _last_look(self, error: StorageError, doubtful: bool) -> Dict[str, Any]:
        """Once the upload is aborted, no attempt of before can come true any more: then the object is there or not."""
        if not doubtful:
            raise error
        try:
            self.abort()
        except StorageError:
            pass  # it is tried, and told, again when the run ends
        found = self._look()
        if found.ours:
            return found.head
        if found.unknown:
            error.hint = "Whether %s was stored cannot be told, as the store does not let it be looked at: %s" % (
                self._key,
                found.unknown,
            )
        raise error

    def _require_free(self) -> None:
        """The next best, where the store may not hold the condition: two runs at the same moment are not seen."""
        found = self._look()
        if found.head and not found.ours:
            raise StorageError("%s exists already" % self._key, hint="Another run wrote %s meanwhile." % self._key)

    def _look(self, ask: Optional[Callable[..., Dict[str, Any]]] = None) -> _Found:
        try:
            head = (ask or self._client.call)("head_object", Key=self._key)
        except StorageError as error:
            return _Found({}, False, "" if status_of(error) == 404 else error.message, status_of(error) == 403)
        # Some stores give metadata names back in other letters.
        theirs = {name.lower(): value for name, value in head.get("Metadata", {}).items()}
        return _Found(head, theirs.get(RUN_TOKEN) == self._metadata[RUN_TOKEN])

    def _confirm(self, answer: Dict[str, Any], parts: List[Dict[str, Any]]) -> StoredObject:
        """What is stored is what was sent, as far as the credentials may look."""
        version = answer.get("VersionId", "") or ""
        retry = Retry(self._client.storage.stall_timeout)
        found = self._look()
        while not found.head and not found.unknown and retry.again():
            found = self._look()  # some show an object a moment later
        if found.unknown and not found.denied:
            raise StorageError(
                "%s was completed, and could not be looked at: %s" % (self._key, found.unknown),
                hint="It may be whole: verify it before it is relied upon.",
            )
        head = found.head
        if found.denied:  # a write-only key: the store's answer to the completing call is all there is
            if not answer.get("ETag"):
                raise IntegrityError("the store did not confirm %s" % self._key)
            head = {"ContentLength": self._size}
        fault = self._fault(head, answer, parts)
        if fault:
            raise IntegrityError("%s %s" % (self._key, fault), hint=self._remove(found, version))
        return _stored(self._key, head, answer)

    def _fault(self, head: Dict[str, Any], answer: Dict[str, Any], parts: List[Dict[str, Any]]) -> str:
        if not head or head["ContentLength"] != self._size:
            size = "%d bytes" % head["ContentLength"] if head else "nothing"
            return "has %s after the upload, %d bytes were sent" % (size, self._size)
        etags = [str(each.get("ETag") or "").strip('"') for each in (answer, head)]
        composites = [match for match in map(_COMPOSITE.fullmatch, etags) if match]
        for match in composites:
            if int(match.group(2)) != len(parts):
                return "has an ETag of %s parts, %d were sent" % (match.group(2), len(parts))
            if match.group() != composites[0].group():
                return "has the ETag %s, the store said %s" % (match.group(), composites[0].group())
        digests = [str(part["ETag"]).strip('"') for part in parts]
        # With keys of the customer or of KMS they are no digests (S3 API reference, Object).
        plain = head.get("ServerSideEncryption", "") in ("", "AES256") and not head.get("SSECustomerAlgorithm")
        if self._profile.composite_etag and composites and plain and all(map(_DIGEST.fullmatch, digests)):
            whole = hashlib.md5(b"".join(map(bytes.fromhex, digests)), usedforsecurity=False).hexdigest()
            if whole != composites[0].group(1):
                return "has the ETag %s, its parts make %s-%d" % (composites[0].group(), whole, len(parts))
        return ""

    def _remove(self, found: _Found, version: str) -> str:
        """Take a spoilt object away, if it is ours: another run may have written the key since. A hint if it stays."""
        if not (found.ours or version):
            return ""
        try:
            named: Dict[str, Any] = {"VersionId": version} if version else {}
            self._client.call("delete_object", Key=self._key, **named)
        except StorageError as error:
            return "It could not be removed: %s" % error.message
        return ""

    def abort(self) -> Optional[StoredObject]:
        if self._aborted:
            return None
        self._stopped.set()
        self._pool.shutdown(wait=True)  # a part that arrives after the abort would stay, and be paid for
        if not self._done:
            self._abort()
        self._aborted = True
        return self._made_already() if self._completing else None

    def _abort(self) -> None:
        try:
            self._client.call("abort_multipart_upload", Key=self._key, UploadId=self._upload_id)
        except StorageError as error:
            if code_of(error) != "NoSuchUpload":
                raise StorageError(
                    "the unfinished upload %s of %s is left in the bucket: %s"
                    % (self._upload_id, self._key, error.message),
                    hint="A backup under the same prefix removes it when it is a day old, if it may.",
                ) from error.__cause__

    def _made_already(self) -> Optional[StoredObject]:
        found = self._look()
        if not found.ours or found.head["ContentLength"] != self._size:
            return None
        return _stored(self._key, found.head, {})


@dataclass(frozen=True)
class _Found:
    """What HEAD said of the key. Without `head` there is nothing, or `unknown` says why it could not be seen."""

    head: Dict[str, Any]
    ours: bool = False
    unknown: str = ""
    denied: bool = False


def _stored(key: str, head: Dict[str, Any], answer: Dict[str, Any]) -> StoredObject:
    """An object by what HEAD, and before it the completing call, said of it."""
    modified = head.get("LastModified")
    return StoredObject(
        key,
        int(head["ContentLength"]),
        rfc3339(modified.replace(microsecond=0)) if modified else "",
        (head.get("ETag") or answer.get("ETag") or "").strip('"'),
        answer.get("VersionId") or head.get("VersionId") or "",
    )
