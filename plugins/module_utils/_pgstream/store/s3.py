# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only door to boto3: equal-sized multipart uploads, ranged reads, one family of errors."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, Dict, Iterator, List, Optional, Sequence

from ..errors import (
    BackupError,
    Cancelled,
    IntegrityError,
    NoStoreError,
    NotFoundError,
    StorageError,
    UsageError,
)
from ..events import rfc3339
from ..model import Finding, Storage
from ..plan import part_size
from . import Deletion, Store, StoredObject, Upload
from .s3_delete import content_md5, delete_many

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
except ImportError:
    boto3 = None  # type: ignore[assignment,unused-ignore]

SMALLEST_PART = 8 << 20  # bytes; S3 allows 5 MiB
MAX_PARTS = 10000  # S3's limit
PARTS_IN_FLIGHT = 3  # parts held in memory while they are sent
ATTEMPTS = 5  # of one request, and of a broken ranged read without progress
PIECE = 1 << 20  # bytes read at a time

_HINTS = {
    "NoSuchBucket": "Create the bucket, or check its name and the endpoint.",
    "InvalidAccessKeyId": "Check the access key.",
    "SignatureDoesNotMatch": "Check the secret key.",
    "AccessDenied": "Check what the key may do with this bucket.",
    "ExpiredToken": "Renew the session token.",
    "RequestTimeTooSkewed": "Set the clock of this host.",
    "PermanentRedirect": "Set the bucket's own region.",
    "AuthorizationHeaderMalformed": "Set the bucket's own region.",
}


class S3Store(Store):
    """An S3 bucket or a compatible one. The client is shared by all threads (sessions are not thread-safe)."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        if boto3 is None:
            raise UsageError("the Python package boto3 is not installed", hint="Install boto3.")
        try:
            self._client = _client(storage)
        except (BotoCoreError, ValueError) as error:
            raise _translate(error, storage) from error

    def begin(self, key: str, overwrite: bool, metadata: Optional[Dict[str, str]] = None) -> Upload:
        self._require_bucket()
        options: Dict[str, Any] = {"Metadata": metadata or {}, "ContentType": "application/octet-stream"}
        if self.storage.encryption_mode:
            options["ServerSideEncryption"] = self.storage.encryption_mode
        if self.storage.encryption_kms_key_id:
            options["SSEKMSKeyId"] = self.storage.encryption_kms_key_id
        upload_id = self._call("create_multipart_upload", Key=key, **options)["UploadId"]
        return _S3Upload(self, key, upload_id, overwrite, metadata or {})

    def _require_bucket(self) -> None:
        """A missing bucket is told here; what else HEAD has to say (it has no body) the next request says better."""
        try:
            self._client.head_bucket(Bucket=self.storage.bucket)
        except ClientError as error:
            if _status(error) == 404:
                raise NoStoreError(
                    "bucket %s does not exist" % self.storage.bucket, hint=_HINTS["NoSuchBucket"]
                ) from None
        except (BotoCoreError, HTTPClientError) as error:
            raise _translate(error, self.storage) from error

    def stat(self, key: str) -> Optional[StoredObject]:
        head = self.head(key)
        if head is None:
            return None
        return StoredObject(
            key,
            int(head["ContentLength"]),
            rfc3339(head["LastModified"].replace(microsecond=0)),
            head.get("ETag", "").strip('"'),
            head.get("VersionId", "") or "",
        )

    def probe(self, key: str) -> Optional[StoredObject]:
        try:
            return self.stat(key)
        except StorageError as error:
            if _status(error.__cause__) == 403:
                return None
            raise

    def head(self, key: str) -> Optional[Dict[str, Any]]:
        try:
            return dict(self._client.head_object(Bucket=self.storage.bucket, Key=key))
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise _translate(error, self.storage) from error
        except (BotoCoreError, HTTPClientError) as error:
            raise _translate(error, self.storage) from error

    def stream(self, key: str, offset: int, length: int) -> Iterator[bytes]:
        end = offset + length
        failures = 0
        while offset < end:
            try:
                answer = self._client.get_object(
                    Bucket=self.storage.bucket, Key=key, Range="bytes=%d-%d" % (offset, end - 1)
                )
                body = answer["Body"]
                try:
                    while offset < end:
                        piece = body.read(min(PIECE, end - offset))
                        if not piece:
                            break
                        offset += len(piece)
                        failures = 0
                        yield piece
                finally:
                    body.close()
                if offset < end:
                    failures += 1
            except ClientError as error:
                if _status(error) == 404 or _code(error) == "NoSuchKey":
                    raise NotFoundError("Backup not found: %s" % self.storage.url(key)) from None
                raise _translate(error, self.storage) from error
            except (BotoCoreError, HTTPClientError, OSError) as error:
                failures += 1
                if failures >= ATTEMPTS:
                    raise _translate(error, self.storage) from error
            if failures >= ATTEMPTS:
                raise IntegrityError("%s ended %d bytes early" % (key, end - offset))

    def list(self, prefix: str) -> Iterator[StoredObject]:
        try:
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.storage.bucket, Prefix=prefix)
            page: Dict[str, Any] = {}
            for page in pages:
                for item in page.get("Contents", []):
                    modified = rfc3339(item["LastModified"].replace(microsecond=0))
                    yield StoredObject(item["Key"], int(item["Size"]), modified, item.get("ETag", "").strip('"'))
            if page.get("IsTruncated"):  # boto3 takes a page that names no next one for the last
                raise StorageError("S3 bucket %s ends its listing early" % self.storage.bucket)
        except (BotoCoreError, ClientError, HTTPClientError) as error:
            raise _translate(error, self.storage) from error

    def delete(self, key: str, version_id: str = "") -> None:
        self._call("delete_object", Key=key, **({"VersionId": version_id} if version_id else {}))

    def delete_many(self, keys: Sequence[str]) -> Iterator[Deletion]:
        events = self._client.meta.events
        events.register("before-call.s3.DeleteObjects", content_md5, unique_id="pgstream-content-md5")
        return delete_many(self, keys)

    def check(self) -> List[Finding]:
        findings = []
        key = (self.storage.prefix + "/" if self.storage.prefix else "") + "pgstream-check"
        try:
            upload = self.begin(key, True)
            upload.abort()
            findings.append(Finding("store writable", True, "%s accepts multipart uploads" % self.storage.root))
        except BackupError as error:
            findings.append(Finding("store writable", False, error.sentence()))
            return findings
        try:
            next(iter(self.list(self.storage.prefix)), None)
            findings.append(Finding("store listable", True, self.storage.root))
        except BackupError as error:
            findings.append(Finding("store listable", False, error.sentence()))
        return findings

    def call(self, operation: str, **arguments: Any) -> Dict[str, Any]:
        return self._call(operation, **arguments)

    def _call(self, operation: str, **arguments: Any) -> Dict[str, Any]:
        try:
            return getattr(self._client, operation)(Bucket=self.storage.bucket, **arguments)
        except (BotoCoreError, ClientError, HTTPClientError) as error:
            raise _translate(error, self.storage) from error


class _S3Upload(Upload):
    """Parts of one size, sent by a few threads; the first failure is kept and raised to the next writer."""

    def __init__(self, store: S3Store, key: str, upload_id: str, overwrite: bool, metadata: Dict[str, str]) -> None:
        self._store = store
        self._target = {"Key": key, "UploadId": upload_id}
        self._key = key
        self._overwrite = overwrite
        self._part_size = SMALLEST_PART
        self._metadata = metadata
        # Parts are filled and sent in buffers that are used again: memory is bounded whatever the allocator does,
        # and botocore puts a bytearray on the wire as it is, where it would copy bytes to join them to the headers.
        self._free: "SimpleQueue[bytearray]" = SimpleQueue()
        self._made = 0
        self._part = bytearray()
        self._filled = 0
        self._size = 0
        self._parts: List[Future] = []
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="upload")
        self._failure: Optional[BaseException] = None
        self._done = False

    def expect(self, estimated: int) -> None:
        self._part_size = part_size(estimated, SMALLEST_PART, MAX_PARTS)

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
        if self._failure is not None or self._done:
            self._free.put(buffer)
            raise self._failure or Cancelled("the upload was aborted")
        return buffer

    def _send(self) -> None:
        number = len(self._parts) + 1
        if number > MAX_PARTS:
            raise StorageError(
                "the backup is larger than %d parts of %d bytes" % (MAX_PARTS, self._part_size),
                hint="The estimate from the server's tables was far too low.",
            )
        if self._failure is not None or self._done:
            raise self._failure or Cancelled("the upload was aborted")
        part, filled = self._part, self._filled
        self._part, self._filled = bytearray(), 0
        self._size += filled
        self._parts.append(self._pool.submit(self._put, number, part, filled))

    def _put(self, number: int, part: bytearray, filled: int) -> Dict[str, Any]:
        body = part if filled == len(part) else bytes(part[:filled])
        try:
            if self._failure is not None or self._done:
                raise Cancelled("the upload was aborted")
            answer = self._store.call("upload_part", PartNumber=number, Body=body, **self._target)
            sent = {"PartNumber": number, "ETag": answer["ETag"]}
            # Where the store computed checksums, the completing call has to name them.
            sent.update(
                {
                    name: value
                    for name, value in answer.items()
                    if name.startswith("Checksum") and name != "ChecksumType"
                }
            )
            return sent
        except BaseException as error:
            self._failure = self._failure or error
            raise
        finally:
            self._free.put(part)

    def commit(self) -> StoredObject:
        if self._filled or not self._parts:
            self._send()
        try:
            parts = [part.result() for part in self._parts]
        except BaseException as error:
            raise self._failure or error from None  # the first cause, not a later part's echo of it
        self._pool.shutdown()
        arguments: Dict[str, Any] = {"MultipartUpload": {"Parts": parts}, **self._target}
        answer = self._complete(arguments)
        self._done = True
        return self._confirm(answer)

    def _complete(self, arguments: Dict[str, Any]) -> Dict[str, Any]:
        if not self._overwrite:
            try:
                return self._store.call("complete_multipart_upload", IfNoneMatch="*", **arguments)
            except StorageError as error:
                code = _code(error.__cause__)
                if code in ("PreconditionFailed", "ConditionalRequestConflict") or _status(error.__cause__) == 412:
                    # Or it is ours: the answer to a first attempt was lost, and the client asked again.
                    error.hint = "Another run wrote %s meanwhile." % self._key
                    return self._settled(error)
                if code != "NotImplemented" and _status(error.__cause__) != 501:
                    return self._settled(error)
        try:
            return self._store.call("complete_multipart_upload", **arguments)
        except StorageError as error:
            return self._settled(error)

    def _settled(self, error: StorageError) -> Dict[str, Any]:
        """A completing call that failed may have succeeded all the same, its answer lost: look before saying so."""
        try:
            head = self._store.head(self._key)
        except BackupError:
            head = None
        # Some stores give metadata names back in other letters.
        theirs = {name.lower(): value for name, value in (head or {}).get("Metadata", {}).items()}
        if head and self._metadata and theirs == self._metadata and head["ContentLength"] == self._size:
            return head
        raise error

    def _confirm(self, answer: Dict[str, Any]) -> StoredObject:
        version = answer.get("VersionId", "") or ""
        try:
            stored = self._store.stat(self._key)
        except StorageError as error:
            if _status(error.__cause__) != 403:
                raise
            stored = StoredObject(
                self._key, self._size
            )  # a write-only key may not look; the store answered for the parts
        if stored is None or stored.size != self._size:
            found = "nothing" if stored is None else "%d bytes" % stored.size
            self._store.delete(self._key, version)
            raise IntegrityError("%s has %s after the upload, %d bytes were sent" % (self._key, found, self._size))
        return StoredObject(
            self._key,
            self._size,
            stored.modified_at,
            stored.etag or answer.get("ETag", "").strip('"'),
            version or stored.version_id,
        )

    def abort(self) -> None:
        if self._done:
            return
        self._done = True
        self._pool.shutdown(wait=True)  # a part that arrives after the abort would stay, and be paid for
        try:
            self._store.call("abort_multipart_upload", **self._target)
        except StorageError as error:
            if _code(error.__cause__) != "NoSuchUpload":
                raise


def _client(storage: Storage) -> Any:
    session = boto3.session.Session(
        aws_access_key_id=storage.access_key or None,
        aws_secret_access_key=storage.secret_key or None,
        aws_session_token=storage.session_token or None,
        profile_name=storage.profile or None,
        region_name=storage.region or None,
    )
    style = storage.addressing_style
    if style == "auto":
        style = "path" if storage.endpoint_url else "auto"  # other endpoints seldom have a name for every bucket
    # Before 1.36 botocore has no such options, and sends no checksums that a store could refuse.
    names = ("request_checksum_calculation", "response_checksum_validation")
    checksums: Dict[str, Any] = {name: storage.checksums for name in names if name in Config.OPTION_DEFAULTS}
    config = Config(
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        max_pool_connections=32,
        connect_timeout=10,
        read_timeout=60,
        s3={"addressing_style": style},  # type: ignore[arg-type]
        **checksums,
        user_agent_extra="pgstream.backup",
    )
    region = session.region_name or ("us-east-1" if storage.endpoint_url else None)
    verify: Any = storage.validate_certs
    if storage.validate_certs and storage.aws_ca_bundle:
        verify = storage.aws_ca_bundle
    return session.client(
        "s3",
        config=config,
        region_name=region,
        endpoint_url=storage.endpoint_url or None,
        verify=None if verify is True else verify,
    )


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, ClientError) else ""


def _status(error: Any) -> int:
    if not isinstance(error, ClientError):
        return 0
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate(error: Any, storage: Storage) -> StorageError:
    """What the store said, in one sentence, with where it is and a hint."""
    where = storage.endpoint_url or "S3"
    if isinstance(error, ClientError):
        code, status = _code(error), _status(error)
        if code in ("403", "Forbidden"):
            code = "AccessDenied"
        said = str(error.response.get("Error", {}).get("Message", "") or "").strip()
        text = "S3 bucket %s inaccessible at %s: %s (%s, HTTP %d)" % (storage.bucket, where, said or code, code, status)
        kind = NoStoreError if code == "NoSuchBucket" else StorageError
        return kind(text, hint=_HINTS.get(code, ""))
    hint = ""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        hint = "Give access_key and secret_key, a profile, or the host a role."
    elif name in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError"):
        hint = "Check the endpoint and the network."
    elif name == "SSLError":
        hint = "Give the certificate authority in aws_ca_bundle."
    return StorageError("S3 bucket %s inaccessible at %s: %s" % (storage.bucket, where, error), hint=hint)
