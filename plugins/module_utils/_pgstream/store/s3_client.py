# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only door to boto3: one client for all threads, requests made again where that helps, one family of errors."""

from __future__ import annotations

import threading
from typing import Any, Dict, Optional, Tuple, Type

from ..errors import NoStoreError, StorageError, UsageError
from ..model import Storage
from . import s3_sse
from .retry import Retry

try:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        ConnectTimeoutError,
        HTTPClientError,
        IncompleteReadError,
        SSLError,
    )
    from botocore.exceptions import ConnectionError as NotConnected
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError as TransportError

    FAULTS: Tuple[Type[BaseException], ...] = (BotoCoreError, ClientError, HTTPClientError, ResponseParserError)
    # Connections that did not come about or broke; ResponseParserError is an answer in XML that ended too early.
    BROKEN: Tuple[Type[BaseException], ...] = (
        NotConnected, HTTPClientError, IncompleteReadError, ResponseParserError, TransportError, OSError
    )  # fmt: skip
    READ_FAULTS: Tuple[Type[BaseException], ...] = (BotoCoreError, HTTPClientError, TransportError, OSError)
except ImportError:
    boto3 = None  # type: ignore[assignment,unused-ignore]
    FAULTS = READ_FAULTS = BROKEN = ()

HINTS = {
    "NoSuchBucket": "Create the bucket, or check its name and the endpoint.",
    "InvalidAccessKeyId": "Check the access key.",
    "SignatureDoesNotMatch": "Check the secret key.",
    "AccessDenied": "Check what the key may do with this bucket.",
    "ExpiredToken": "Renew the session token.",
    "RequestTimeTooSkewed": "Set the clock of this host.",
    "PermanentRedirect": "Set the bucket's own region.",
    "AuthorizationHeaderMalformed": "Set the bucket's own region.",
}

# Errors of status 400 that are the connection's fault: the store did not get the body, or not the one that was sent.
_CUT_SHORT = ("RequestTimeout", "IncompleteBody", "BadDigest")
_TOO_MANY = ("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests")


class S3Client:
    """Requests for one bucket. Every error is a StorageError whose cause is what boto3 raised."""

    def __init__(self, storage: Storage) -> None:
        if boto3 is None:
            raise UsageError("the Python package boto3 is not installed", hint="Install boto3.")
        self.storage = storage
        try:
            self.boto = make_client(storage)
        except (BotoCoreError, ValueError) as error:
            raise translate(error, storage) from error

    def call(
        self, operation: str, patient: bool = False, stopped: Optional[threading.Event] = None, **arguments: Any
    ) -> Dict[str, Any]:
        """The request, made again after what may pass. `patient` in the middle of a run; `stopped` ends the waiting."""
        retry = Retry(self.storage.stall_timeout, patient, stopped)
        while True:
            try:
                return self.once(operation, **arguments)
            except StorageError as error:
                if not (may_pass(error, retry) and retry.again()):
                    raise

    def once(self, operation: str, **arguments: Any) -> Dict[str, Any]:
        if isinstance(arguments.get("Body"), PartBody):
            arguments["Body"].seek(0)  # an attempt before this one may have read it
        try:
            key = s3_sse.of_request(self.storage, operation)
            answer: Dict[str, Any] = getattr(self.boto, operation)(Bucket=self.storage.bucket, **arguments, **key)
            return answer
        except FAULTS as error:
            raise translate(error, self.storage) from error


def make_client(storage: Storage) -> Any:
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
        retries={"mode": "standard", "total_max_attempts": 1},  # `Retry` alone decides
        max_pool_connections=32,
        # Three silences, one limit: urllib3 gives a request's body the timeout of the connecting (see `PartBody`).
        connect_timeout=storage.stall_timeout,
        read_timeout=storage.stall_timeout,
        s3={"addressing_style": style},  # type: ignore[arg-type]
        **checksums,
        user_agent_extra="pgstream.backup",
    )
    region = session.region_name or ("us-east-1" if storage.endpoint_url else None)
    verify: Any = storage.validate_certs
    if storage.validate_certs and storage.aws_ca_bundle:
        verify = storage.aws_ca_bundle
    client = session.client(
        "s3",
        config=config,
        region_name=region,
        endpoint_url=storage.endpoint_url or None,
        verify=None if verify is True else verify,
    )
    client.meta.events.register_last("before-call.s3.UploadPart", _without_expect)
    members = client.meta.service_model.operation_model("CompleteMultipartUpload").input_shape.members
    if "IfNoneMatch" not in members:  # before 1.35.2
        client.meta.events.register("provide-client-params.s3.CompleteMultipartUpload", _keep_condition)
        client.meta.events.register("before-call.s3.CompleteMultipartUpload", _send_condition)
    return client


def _without_expect(params: Dict[str, Any], **_rest: Any) -> None:
    """A body that is read like a file is announced with `Expect: 100-continue`: a round trip for each part, and a
    second of waiting where a store does not answer that."""
    params["headers"].pop("Expect", None)


def _keep_condition(params: Dict[str, Any], context: Dict[str, Any], **_rest: Any) -> None:
    """An older botocore refuses the parameter; the header is what counts."""
    context["if_none_match"] = params.pop("IfNoneMatch", "")


def _send_condition(params: Dict[str, Any], context: Dict[str, Any], **_rest: Any) -> None:
    if context.get("if_none_match"):
        params["headers"]["If-None-Match"] = context["if_none_match"]


class PartBody:
    """A part as a file. It is sent in small pieces, each with the whole timeout to itself: a bytearray would be
    one `sendall`, which Python limits in all, so that a slow but steady link would count as stalled."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data)

    def read(self, size: int = -1) -> bytes:
        piece = self._data[self._at :] if size < 0 else self._data[self._at : self._at + size]
        self._at += len(piece)
        return bytes(piece)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        return self._at

    def tell(self) -> int:
        return self._at


def _cause(error: Optional[BaseException]) -> Any:
    return error.__cause__ if isinstance(error, StorageError) else error


def code_of(error: Optional[BaseException]) -> str:
    """The store's own code, such as NoSuchUpload; empty where it did not answer."""
    cause = _cause(error)
    return str(cause.response.get("Error", {}).get("Code", "")) if isinstance(cause, ClientError) else ""


def status_of(error: Optional[BaseException]) -> int:
    """The HTTP status of the answer, 0 where there was none."""
    cause = _cause(error)
    if not isinstance(cause, ClientError):
        return 0
    return int(cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def may_pass(error: Optional[BaseException], retry: Retry) -> bool:
    """Whether the same request may succeed a little later. What is refused (400, 403, 404 ...) is refused again."""
    cause = _cause(error)
    if isinstance(cause, ClientError):
        # 200: an error of the completing call may come so; newer botocore makes 500 of it, older one loses its text.
        return status_of(cause) in (200, 429, 500, 502, 503, 504, 509) or code_of(cause) in _CUT_SHORT + _TOO_MANY
    if isinstance(cause, ConnectTimeoutError):
        return retry.patient  # the kernel itself asked several times
    if isinstance(cause, SSLError):
        return "CERTIFICATE" not in str(cause).upper()
    return isinstance(cause, BROKEN)


def translate(error: Any, storage: Storage) -> StorageError:
    """What the store said, in one sentence, with where it is and a hint."""
    where = storage.endpoint_url or "S3"
    if isinstance(error, ClientError):
        code, status = code_of(error), status_of(error)
        if code in ("403", "Forbidden"):
            code = "AccessDenied"
        said = str(error.response.get("Error", {}).get("Message", "") or "").strip()
        text = "S3 bucket %s inaccessible at %s: %s (%s, HTTP %d)" % (
            storage.bucket, where, said or code or "an error", code or "no code", status
        )  # fmt: skip
        kind = NoStoreError if code == "NoSuchBucket" else StorageError
        hint = HINTS.get(code, "")
        if status == 400 and storage.sse_customer_key and not hint:
            hint = "Check sse_customer_key: it opens only what was stored with it."
        return kind(text, hint=hint)
    hint = ""
    name = type(error).__name__
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        hint = "Give access_key and secret_key, a profile, or the host a role."
    elif name in ("EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError"):
        hint = "Check the endpoint and the network."
    elif name == "SSLError":
        hint = "Give the certificate authority in aws_ca_bundle."
    return StorageError("S3 bucket %s inaccessible at %s: %s" % (storage.bucket, where, error), hint=hint)
