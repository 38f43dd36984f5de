# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An S3 server in this process that can be awkward: the stores we have no account with, and the faults none offers.

    with FakeS3() as s3:
        s3.make_bucket("b")
        s3.deny = {"s3:GetObject"}                       # what a policy leaves out, by Amazon's names of actions
        s3.fail("UploadPart", 503, "SlowDown", times=2)  # the next two of these are answered so

Signatures are not checked. It listens on 127.0.0.1, on a port that was free. Out of the box it behaves like Amazon's,
which `unit/test_fake_s3` compares with real servers; every switch below is one step away from that.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Set, Tuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

#: The action that a policy must allow for each operation (Amazon, "Actions, resources, and condition keys").
ACTIONS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "PutObject": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
}
WRITE_ONLY = {"s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetObject", "s3:DeleteObject"}  # what it lacks
READ_ONLY = {"s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject", "s3:ListBucketMultipartUploads"}


@dataclass
class Stored:
    data: bytes
    etag: str
    metadata: Dict[str, str] = field(default_factory=dict)
    modified: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    customer_key: str = ""  # digest of the key it was encrypted with


@dataclass
class Unfinished:
    bucket: str
    key: str
    metadata: Dict[str, str]
    initiated: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    parts: Dict[int, Stored] = field(default_factory=dict)
    customer_key: str = ""


@dataclass
class Fault:
    """What happens to the next `times` requests of an operation.

    before         answered so and not done; without a status the connection is reset
    after          done, and answered so; without a status the connection is reset
    embedded       not done, status 200, the error in the body
    stall          not done, and no answer
    deaf           the body is not even read
    slow           done, but the body is read at `bytes` a second
    cut, hang      a GET whose body ends, or goes on no more, after `bytes`
    """

    operation: str
    status: int = 0
    code: str = ""
    times: int = 1
    how: str = "before"
    bytes: int = 0


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message or code


class FakeS3:
    def __init__(self) -> None:
        self.deny: Set[str] = set()
        self.max_parts = 10000  # Scaleway: 1000
        self.smallest_part = 0  # of all but the last; Amazon: 5 MiB, too large for most tests
        self.equal_parts = False  # Cloudflare R2
        self.refuses_checksums = 0  # older Ceph, Google: the status for a body with Amazon's newer checksums
        self.wants_md5_to_delete = False
        self.conditional = "honoured"  # or ignored, refused
        self.lists_uploads = "by prefix"  # MinIO: by key
        self.lies_about_etag = ""  # the operation whose answer gives another ETag
        self.drops_last_part = False
        self.server_header = "AmazonS3"
        self.on_request: Optional[Callable[[str, str], None]] = None  # called with operation and key, before all else
        self.buckets: Dict[str, Dict[str, Stored]] = {}
        self.unfinished: Dict[str, Unfinished] = {}
        self.log: List[Tuple[str, str, int]] = []  # operation, key, status (0: none was sent)
        self.arrived: List[str] = []  # operations
        self.ranges: List[str] = []  # as they were asked for
        self.access_key, self.secret_key, self.region = "fake-access-key", "fake-secret-key", "us-east-1"
        self._faults: List[Fault] = []
        self._let_go = threading.Event()
        self.lock = threading.RLock()
        fake = self

        class Handler(_Handler):
            s3 = fake

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        # What the kernel takes for a server that does not read would look like progress: let that be little.
        self._server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def endpoint_url(self) -> str:
        return "http://127.0.0.1:%d" % self._server.server_address[1]

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def make_bucket(self, name: str) -> str:
        self.buckets[name] = {}
        return name

    def fail(
        self, operation: str, status: int = 0, code: str = "", times: int = 1, how: str = "before", bytes: int = 0
    ) -> None:
        with self.lock:
            self._faults.append(Fault(operation, status, code, times, how, bytes))

    def fault(self, operation: str) -> Optional[Fault]:
        with self.lock:
            for fault in self._faults:
                if fault.operation == operation and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def count(self, operation: str) -> int:
        """The requests that came so far, answered or not."""
        with self.lock:
            return self.arrived.count(operation)

    def keys(self, bucket: str) -> List[str]:
        return sorted(self.buckets[bucket])

    def wait_here(self) -> None:
        self._let_go.wait()

    def close(self) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> FakeS3:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    s3: FakeS3
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # one write for headers and body
    disable_nagle_algorithm = True

    def version_string(self) -> str:
        return self.s3.server_header

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the client went away

    def handle_expect_100(self) -> bool:
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    def do_GET(self) -> None:
        self._serve()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _serve(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.bucket, _slash, self.key = unquote(url.path).lstrip("/").partition("/")
        operation = self._operation()
        with self.s3.lock:
            self.s3.arrived.append(operation)
        fault = self.s3.fault(operation) or Fault(operation, how="")
        if fault.how == "deaf":
            return self._silence(operation, hold=True)
        body = self._body(fault)
        if self.s3.on_request is not None:
            self.s3.on_request(operation, self.key)
        try:
            if fault.how == "before":
                self._fail(fault)
            if fault.how == "stall":
                return self._silence(operation, hold=True)
            if fault.how == "embedded":
                return self._answer(operation, 200, _error(fault.code, "embedded"))
            with self.s3.lock:
                self._allow(operation)
                status, headers, data = getattr(self, "_" + operation)(self._decoded(body))
            if fault.how == "after":
                self._fail(fault)
            self._answer(operation, status, data, headers, fault)
        except Refused as refused:
            self._answer(operation, refused.status, _error(refused.code, refused.message))
        except ConnectionAbortedError:
            self._silence(operation)

    @staticmethod
    def _fail(fault: Fault) -> None:
        if not fault.status:
            raise ConnectionAbortedError
        raise Refused(fault.status, fault.code)

    def _body(self, fault: Fault) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        if fault.how != "slow":
            return self.rfile.read(length)
        body = b""
        while len(body) < length:
            piece = self.rfile.read(min(fault.bytes // 8, length - len(body)))
            if not piece:
                raise ConnectionResetError
            body += piece
            time.sleep(1 / 8)
        return body

    def _operation(self) -> str:
        method, query = self.command, self.query
        if not self.bucket:
            return "ListBuckets"
        if not self.key:
            if method == "GET":
                return "ListMultipartUploads" if "uploads" in query else "ListObjectsV2"
            return {"HEAD": "HeadBucket", "PUT": "CreateBucket", "POST": "DeleteObjects"}[method]
        if method == "POST":
            return "CreateMultipartUpload" if "uploads" in query else "CompleteMultipartUpload"
        if "uploadId" in query:
            return {"PUT": "UploadPart", "DELETE": "AbortMultipartUpload"}[method]
        return {"PUT": "PutObject", "GET": "GetObject", "HEAD": "HeadObject", "DELETE": "DeleteObject"}[method]

    def _allow(self, operation: str) -> None:
        if ACTIONS.get(operation) in self.s3.deny:
            raise Refused(403, "AccessDenied", "Access Denied")
        if operation not in ("ListBuckets", "CreateBucket") and self.bucket not in self.s3.buckets:
            raise Refused(404, "NoSuchBucket", "The specified bucket does not exist")

    def _decoded(self, body: bytes) -> bytes:
        """The bytes in a body that comes in chunks, with a checksum after them."""
        names = " ".join(self.headers).lower()
        if self.s3.refuses_checksums and ("x-amz-checksum" in names or "x-amz-trailer" in names):
            code = "NotImplemented" if self.s3.refuses_checksums == 501 else "InvalidArgument"
            raise Refused(self.s3.refuses_checksums, code, "A header you provided is not supported")
        if "aws-chunked" not in (self.headers.get("Content-Encoding") or ""):
            return body
        data, rest = b"", body
        while True:
            size, _end, rest = rest.partition(b"\r\n")
            length = int(size.split(b";")[0], 16)
            if not length:
                return data
            data, rest = data + rest[:length], rest[length + 2 :]

    # --- operations, under the lock

    def _ListBuckets(self, _body: bytes) -> Any:
        names = "".join("<Bucket><Name>%s</Name></Bucket>" % escape(name) for name in sorted(self.s3.buckets))
        return 200, {}, _xml("ListAllMyBucketsResult", "<Buckets>%s</Buckets>" % names)

    def _CreateBucket(self, _body: bytes) -> Any:
        self.s3.buckets.setdefault(self.bucket, {})
        return 200, {}, b""

    def _HeadBucket(self, _body: bytes) -> Any:
        return 200, {}, b""

    def _PutObject(self, body: bytes) -> Any:
        self._condition()
        stored = Stored(body, hashlib.md5(body).hexdigest(), self._metadata())
        self.s3.buckets[self.bucket][self.key] = stored
        return 200, {"ETag": self._etag("PutObject", stored.etag)}, b""

    def _HeadObject(self, _body: bytes) -> Any:
        stored = self._stored("404", "Not Found")
        return 200, {**self._headers(stored, "HeadObject"), "Content-Length": str(len(stored.data))}, b""

    def _GetObject(self, _body: bytes) -> Any:
        stored = self._stored("NoSuchKey", "The specified key does not exist.")
        wanted = self.headers.get("If-Match")
        if wanted and wanted.strip('"') != stored.etag and self.s3.conditional == "honoured":
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        headers, size = self._headers(stored, "GetObject"), len(stored.data)
        self.s3.ranges.append(self.headers.get("Range") or "")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not match:
            return 200, headers, stored.data
        first, last = int(match.group(1)), min(int(match.group(2) or size), size - 1)
        if first >= size:
            raise Refused(416, "InvalidRange", "The requested range is not satisfiable")
        headers["Content-Range"] = "bytes %d-%d/%d" % (first, last, size)
        return 206, headers, stored.data[first : last + 1]

    def _DeleteObject(self, _body: bytes) -> Any:
        self.s3.buckets[self.bucket].pop(self.key, None)
        return 204, {}, b""

    def _DeleteObjects(self, body: bytes) -> Any:
        given = self.headers.get("Content-MD5")
        if self.s3.wants_md5_to_delete and not given:
            raise Refused(400, "InvalidRequest", "Missing required header for this request: Content-MD5")
        if given and given != base64.b64encode(hashlib.md5(body).digest()).decode():
            raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        keys = [element.text or "" for element in ElementTree.fromstring(body).iter() if element.tag.endswith("Key")]
        for key in keys:
            self.s3.buckets[self.bucket].pop(key, None)
        done = "".join("<Deleted><Key>%s</Key></Deleted>" % escape(key) for key in keys)
        return 200, {}, _xml("DeleteResult", done)

    def _ListObjectsV2(self, _body: bytes) -> Any:
        prefix = self.query.get("prefix", "")
        after = self.query.get("continuation-token", "")
        most = int(self.query.get("max-keys", "1000"))
        keys = [key for key in sorted(self.s3.buckets[self.bucket]) if key.startswith(prefix) and key > after]
        items = ""
        for key in keys[:most]:
            stored = self.s3.buckets[self.bucket][key]
            items += "<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;%s&quot;</ETag>" % (
                escape(key), _iso(stored.modified), stored.etag)  # fmt: skip
            items += "<Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>" % len(stored.data)
        more = len(keys) > most
        items += "<IsTruncated>%s</IsTruncated><KeyCount>%d</KeyCount>" % (str(more).lower(), len(keys[:most]))
        if more:
            items += "<NextContinuationToken>%s</NextContinuationToken>" % escape(keys[most - 1])
        return 200, {}, _xml("ListBucketResult", items)

    def _CreateMultipartUpload(self, _body: bytes) -> Any:
        upload = secrets.token_hex(12)
        self.s3.unfinished[upload] = Unfinished(
            self.bucket, self.key, self._metadata(), customer_key=self._customer_key()
        )
        inner = "<Bucket>%s</Bucket><Key>%s</Key><UploadId>%s</UploadId>" % (self.bucket, escape(self.key), upload)
        return 200, {}, _xml("InitiateMultipartUploadResult", inner)

    def _UploadPart(self, body: bytes) -> Any:
        upload, number = self._upload(), int(self.query["partNumber"])
        if number > self.s3.max_parts:
            raise Refused(400, "InvalidArgument", "Part number must be between 1 and %d" % self.s3.max_parts)
        given = self.headers.get("Content-MD5")
        if given and given != base64.b64encode(hashlib.md5(body).digest()).decode():
            raise Refused(400, "BadDigest", "The Content-MD5 you specified did not match what we received.")
        if upload.customer_key != self._customer_key():
            raise Refused(400, "InvalidRequest", "The multipart upload initiate requested encryption with another key")
        salt = upload.customer_key.encode()  # with a customer's key an ETag is not the digest of the bytes
        upload.parts[number] = Stored(body, hashlib.md5(salt + body).hexdigest())
        return 200, {"ETag": self._etag("UploadPart", upload.parts[number].etag)}, b""

    def _CompleteMultipartUpload(self, body: bytes) -> Any:
        upload = self._upload()
        self._condition()
        named = []
        for element in ElementTree.fromstring(body):
            texts = {child.tag.rpartition("}")[2]: child.text or "" for child in element}
            named.append((int(texts["PartNumber"]), texts["ETag"].strip('"')))
        if any(number not in upload.parts or upload.parts[number].etag != etag for number, etag in named):
            raise Refused(400, "InvalidPart", "One or more of the specified parts could not be found.")
        if named != sorted(named):
            raise Refused(400, "InvalidPartOrder", "The list of parts was not in ascending order.")
        parts = [upload.parts[number] for number, _etag in named]
        sizes = [len(part.data) for part in parts[:-1]]
        if any(size < self.s3.smallest_part for size in sizes):
            raise Refused(400, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size")
        if self.s3.equal_parts and (len(set(sizes)) > 1 or (sizes and len(parts[-1].data) > sizes[0])):
            raise Refused(400, "InvalidPart", "All non-trailing parts must have the same length.")
        if self.s3.drops_last_part:
            parts = parts[:-1]
        digest = hashlib.md5(b"".join(bytes.fromhex(part.etag) for part in parts)).hexdigest()
        whole = Stored(b"".join(part.data for part in parts), "%s-%d" % (digest, len(parts)), upload.metadata)
        whole.customer_key = upload.customer_key
        if whole.customer_key:
            whole.etag = "%s-%d" % (hashlib.md5(whole.data).hexdigest(), len(parts))
        self.s3.buckets[self.bucket][self.key] = whole
        del self.s3.unfinished[self.query["uploadId"]]
        etag = self._etag("CompleteMultipartUpload", whole.etag)
        inner = "<Bucket>%s</Bucket><Key>%s</Key><ETag>%s</ETag>" % (self.bucket, escape(self.key), escape(etag))
        return 200, {}, _xml("CompleteMultipartUploadResult", inner)

    def _AbortMultipartUpload(self, _body: bytes) -> Any:
        self._upload()
        del self.s3.unfinished[self.query["uploadId"]]
        return 204, {}, b""

    def _ListMultipartUploads(self, _body: bytes) -> Any:
        prefix, inner = self.query.get("prefix", ""), ""
        for name, upload in sorted(self.s3.unfinished.items(), key=lambda item: (item[1].key, item[0])):
            there = upload.key.startswith(prefix)
            if prefix and self.s3.lists_uploads == "by key":
                there = upload.key == prefix
            if upload.bucket == self.bucket and there:
                inner += "<Upload><Key>%s</Key><UploadId>%s</UploadId><Initiated>%s</Initiated></Upload>" % (
                    escape(upload.key), name, _iso(upload.initiated))  # fmt: skip
        return 200, {}, _xml("ListMultipartUploadsResult", inner + "<IsTruncated>false</IsTruncated>")

    # --- what operations share

    def _stored(self, code: str, message: str) -> Stored:
        stored = self.s3.buckets[self.bucket].get(self.key)
        if stored is None:
            if "s3:ListBucket" in self.s3.deny:  # who may not list may not know either
                raise Refused(403, "AccessDenied", "Access Denied")
            raise Refused(404, code, message)
        if stored.customer_key != self._customer_key():
            raise Refused(400, "InvalidRequest", "The object was stored using a form of Server Side Encryption.")
        return stored

    def _customer_key(self) -> str:
        """The digest of the key in a request; refused unless it is one of 32 bytes and the digest is right."""
        given = self.headers.get("x-amz-server-side-encryption-customer-key")
        if not given:
            return ""
        key, digest = base64.b64decode(given), self.headers.get("x-amz-server-side-encryption-customer-key-MD5")
        if len(key) != 32 or digest != base64.b64encode(hashlib.md5(key).digest()).decode():
            raise Refused(400, "InvalidArgument", "The secret key was invalid for the specified algorithm.")
        return digest

    def _upload(self) -> Unfinished:
        upload = self.s3.unfinished.get(self.query["uploadId"])
        if upload is None or (upload.bucket, upload.key) != (self.bucket, self.key):
            raise Refused(404, "NoSuchUpload", "The specified upload does not exist.")
        return upload

    def _condition(self) -> None:
        if self.headers.get("If-None-Match") is None or self.s3.conditional == "ignored":
            return
        if self.s3.conditional == "refused":
            raise Refused(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        if self.key in self.s3.buckets[self.bucket]:
            raise Refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")

    def _metadata(self) -> Dict[str, str]:
        mark = "x-amz-meta-"
        given = {name.lower(): value for name, value in self.headers.items()}
        return {name[len(mark) :]: value for name, value in given.items() if name.startswith(mark)}

    def _headers(self, stored: Stored, operation: str) -> Dict[str, str]:
        headers = {"x-amz-meta-" + name: value for name, value in stored.metadata.items()}
        if stored.customer_key:
            headers["x-amz-server-side-encryption-customer-algorithm"] = "AES256"
        return {**headers, "ETag": self._etag(operation, stored.etag), "Accept-Ranges": "bytes",
                "Last-Modified": format_datetime(stored.modified, usegmt=True)}  # fmt: skip

    def _etag(self, operation: str, etag: str) -> str:
        if self.s3.lies_about_etag == operation:
            etag = etag[:31][::-1] + ("0" if etag[31] != "0" else "1") + etag[32:]
        return '"%s"' % etag

    def _answer(
        self, operation: str, status: int, data: bytes, headers: Optional[Dict[str, str]] = None,
        fault: Optional[Fault] = None,
    ) -> None:  # fmt: skip
        cut = fault.bytes if fault and fault.how in ("cut", "hang") else None
        with self.s3.lock:
            self.s3.log.append((operation, self.key, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if cut is None else data[:cut])
        self.wfile.flush()
        if cut is not None:
            self.close_connection = True
            if fault and fault.how == "hang":
                self.s3.wait_here()

    def _silence(self, operation: str, hold: bool = False) -> None:
        """No answer: the connection is reset, at once or when the server ends."""
        with self.s3.lock:
            self.s3.log.append((operation, self.key, 0))
        if hold:
            self.s3.wait_here()
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _iso(moment: datetime) -> str:
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(name: str, inner: str) -> bytes:
    head = '<?xml version="1.0" encoding="UTF-8"?>\n<%s xmlns="http://s3.amazonaws.com/doc/2006-03-01/">' % name
    return ("%s%s</%s>" % (head, inner, name)).encode()


def _error(code: str, message: str) -> bytes:
    return ('<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>%s</Code><Message>%s</Message></Error>'
            % (escape(code), escape(message))).encode()  # fmt: skip
