# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An S3 bucket or a compatible one: listings, ranged reads, and the start of uploads."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

from ..errors import IntegrityError, NoStoreError, NotFoundError, StorageError
from ..events import rfc3339
from ..model import Finding, Storage
from . import profiles, s3_sse
from .base import Deletion, Store, StoredObject, Upload
from .retry import Retry
from .s3_client import HINTS, READ_FAULTS, S3Client, code_of, may_pass, status_of, translate
from .s3_delete import content_md5, delete_many
from .s3_upload import RUN_TOKEN, S3Upload

PIECE = 256 << 10  # bytes read at a time: what a broken connection may cost
UNFINISHED_AGE = timedelta(hours=24)  # of an upload that no live run can belong to any more


class S3Store(Store):
    """Safe for threads: they share the client."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.client = S3Client(storage)
        self.profile = profiles.by_endpoint(storage.endpoint_url)

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        self.require_bucket()
        # By this name the object is known again, even among those of runs with the same correlation id.
        marked = {**(metadata or {}), RUN_TOKEN: os.urandom(8).hex()}
        return S3Upload(self.client, self.profile, key, self.create(key, marked), overwrite, marked)

    def create(self, key: str, metadata: Dict[str, str]) -> str:
        """Begin a multipart upload; its id."""
        options: Dict[str, Any] = {"Metadata": metadata, "ContentType": "application/octet-stream"}
        options.update(s3_sse.of_object(self.storage))
        upload_id = str(self.client.call("create_multipart_upload", Key=key, **options).get("UploadId") or "")
        if not upload_id:
            raise StorageError("the store answered, and began no upload of %s" % key)
        return upload_id

    def require_bucket(self) -> None:
        """A missing bucket is told here; what else HEAD has to say (it has no body) the next request says better."""
        try:
            answer = self.client.call("head_bucket")
        except StorageError as error:
            if status_of(error) == 404:
                said = "bucket %s does not exist" % self.storage.bucket
                raise NoStoreError(said, hint=HINTS["NoSuchBucket"]) from None
            if not status_of(error):
                raise
            return
        if self.profile is profiles.GENERIC:
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self.profile = profiles.by_answer(headers.get("server", ""))

    def stat(self, key: str) -> Optional[StoredObject]:
        head = self.head(key)
        return None if head is None else stored_object(key, head)

    def probe(self, key: str) -> Optional[StoredObject]:
        try:
            return self.stat(key)
        except StorageError as error:
            if status_of(error) == 403:
                return None
            raise

    def head(self, key: str) -> Optional[Dict[str, Any]]:
        try:
            return self.client.call("head_object", Key=key)
        except StorageError as error:
            if status_of(error) == 404:
                return None
            raise

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        etag = ""
        retry = Retry(self.storage.stall_timeout, patient=True)
        while offset < end:
            failure: Exception = IntegrityError("%s ended %d bytes early" % (key, end - offset))
            try:
                body = self._open(key, offset, end, etag)
                etag = body.etag
                with body:
                    for piece in body.pieces(end - offset):
                        offset += len(piece)
                        retry.progress()
                        yield piece
            except StorageError as error:
                if not may_pass(error, retry):
                    raise
                failure = error
            if offset < end and not retry.again():
                raise failure

    def _open(self, key: str, offset: int, end: int, etag: str) -> _Body:
        """The bytes from `offset` on, of the object with this ETag where one was read before."""
        condition = {"IfMatch": etag} if etag and not etag.startswith("W/") else {}
        try:
            answer = self.client.once("get_object", Key=key, Range="bytes=%d-%d" % (offset, end - 1), **condition)
        except StorageError as error:
            if status_of(error) == 404 or code_of(error) == "NoSuchKey":
                raise NotFoundError("Backup not found: %s" % self.storage.url(key)) from None
            if status_of(error) == 412:
                raise IntegrityError("%s was replaced while it was read" % key) from None
            if status_of(error) == 416:
                raise IntegrityError("%s ended %d bytes early" % (key, end - offset)) from None
            raise
        body = _Body(answer, self.storage)
        if etag and body.etag and body.etag != etag:  # not every store knows If-Match
            body.close()
            raise IntegrityError("%s was replaced while it was read" % key)
        if body.offset != offset:
            body.close()
            raise IntegrityError("the store sent %s from byte %d on, not from %d" % (key, body.offset, offset))
        return body

    def list(self, prefix: str) -> Iterator[StoredObject]:
        for page in self._pages("list_objects_v2", {"ContinuationToken": "NextContinuationToken"}, prefix):
            for item in page.get("Contents", []):
                modified = rfc3339(item["LastModified"].replace(microsecond=0))
                yield StoredObject(item["Key"], int(item["Size"]), modified, item.get("ETag", "").strip('"'))

    def _uploads(self, prefix: str) -> List[Dict[str, Any]]:
        markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
        pages = self._pages("list_multipart_uploads", markers, prefix)
        return [upload for page in pages for upload in page.get("Uploads", [])]

    def _pages(self, operation: str, markers: Dict[str, str], prefix: str) -> Iterator[Dict[str, Any]]:
        """The pages of a listing. Each is a request of its own, made again where that helps."""
        more: Dict[str, Any] = {}
        while True:
            page = self.client.call(operation, Prefix=prefix, **more)
            yield page
            more = {name: page[following] for name, following in markers.items() if page.get(following)}
            if not page.get("IsTruncated"):
                return
            if not more:  # a list that is not whole is worse than none
                raise StorageError("S3 bucket %s ends its listing early" % self.storage.bucket)

    def delete(self, key: str, version_id: str = "") -> None:
        versioned: Dict[str, Any] = {"VersionId": version_id} if version_id else {}
        self.client.call("delete_object", Key=key, **versioned)

    def sweep(self, ours: Callable[[str], bool]) -> List[str]:
        """By age alone: a key does not name the server whose lock would tell whether its run lives."""
        before = datetime.now(timezone.utc) - UNFINISHED_AGE
        swept = []
        for upload in self.unfinished():
            if ours(upload["Key"]) and upload["Initiated"] < before:
                try:
                    self.client.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                except StorageError as error:
                    if code_of(error) == "NoSuchUpload":
                        continue  # another run was quicker
                    raise
                swept.append(upload["Key"])
        return swept

    def unfinished(self) -> List[Dict[str, Any]]:
        """Unfinished uploads under the prefix. MinIO knows no prefix but a whole key here: then all are asked for."""
        prefix = self.storage.prefix + "/" if self.storage.prefix else ""
        found: List[Dict[str, Any]] = []
        if self.profile.lists_uploads != "all":
            found = self._uploads(prefix)
        if prefix and not found and self.profile.lists_uploads != "by prefix":
            found = self._uploads("")
        return found

    def delete_many(self, keys: Sequence[str]) -> Iterator[Deletion]:
        events = self.client.boto.meta.events
        events.register("before-call.s3.DeleteObjects", content_md5, unique_id="pgstream-content-md5")
        return delete_many(self, keys)

    def check(self) -> List[Finding]:
        from .s3_check import check_bucket

        return check_bucket(self)


class _Body:
    """The answer to a ranged read; whatever breaks it is a StorageError."""

    def __init__(self, answer: Dict[str, Any], storage: Storage) -> None:
        self.etag = str(answer.get("ETag") or "")
        # "bytes 100-199/2000". A store that leaves it out sent the object from its beginning.
        given = str(answer.get("ContentRange") or "bytes 0-")
        self.offset = int(given.replace("bytes", "").strip().partition("-")[0])
        self._body = answer["Body"]
        self._storage = storage

    def pieces(self, wanted: int) -> Iterator[bytes]:
        while wanted > 0:
            try:
                piece = self._body.read(min(PIECE, wanted))
            except READ_FAULTS as error:
                raise translate(error, self._storage) from error
            if not piece:
                return
            wanted -= len(piece)
            yield piece

    def close(self) -> None:
        self._body.close()

    def __enter__(self) -> _Body:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def stored_object(key: str, head: Dict[str, Any]) -> StoredObject:
    return StoredObject(
        key,
        int(head["ContentLength"]),
        rfc3339(head["LastModified"].replace(microsecond=0)),
        head.get("ETag", "").strip('"'),
        head.get("VersionId", "") or "",
    )
