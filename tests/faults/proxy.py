# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An HTTP proxy before an S3 server that knows S3's operations and does to them what networks and stores do.

    with FaultyStore(s3.port) as store:
        store.fault("UploadPart", "503", times=2)
        hold = store.fault("CompleteMultipartUpload", "hold")

A fault meets requests of its operation: the first `times` of them, all for times=0, after `skip` were let through.

hold          wait for `release` before the store sees the request; `reached` tells that one waits. The request of a
              client that died meanwhile is dropped
hold-answer   the store did it; its answer waits for `release`
reset         the connection is reset; the store sees nothing
lost-answer   the store did it; the connection is reset instead of an answer
stall         the store sees nothing, and no answer ever comes
truncate      half of the answer's body, then the end of the connection
delay         the answer comes a little later
corrupt       one bit of the answer's body is another one
500, 403 ...  this status and an S3 error; the store sees nothing
false-etag    the answer's ETag is another one
swallow       a part is answered for and never stored
short         the answer says of the object that it is a byte shorter than it is
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import struct
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, Optional, Tuple
from urllib.parse import parse_qs, urlsplit

CODES = {
    400: "InvalidRequest",
    403: "AccessDenied",
    409: "OperationAborted",
    500: "InternalError",
    503: "SlowDown",
}
DELAY = 0.2  # seconds
_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length", "expect")


def operation_of(method: str, path: str) -> str:
    """S3's name of what a request asks for."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    of_object = "/" in parts.path.strip("/")
    if "uploadId" in query:
        names = {"PUT": "UploadPart", "POST": "CompleteMultipartUpload", "DELETE": "AbortMultipartUpload"}
        return names.get(method, "ListParts")
    if "uploads" in query:
        return "CreateMultipartUpload" if method == "POST" else "ListMultipartUploads"
    if method == "GET" and not of_object:
        return "ListObjects"
    return {"HEAD": "Head", "GET": "Get", "PUT": "Put", "DELETE": "Delete"}[method] + (
        "Object" if of_object else "Bucket"
    )


class Fault:
    def __init__(self, operation: str, kind: str, times: int, skip: int) -> None:
        self.operation, self.kind = operation, kind
        self._left, self._skip = times or -1, skip
        self.reached = threading.Event()
        self.released = threading.Event()

    def meets(self, operation: str) -> bool:
        """Whether this request is met; counts it. The caller holds the lock."""
        if operation != self.operation or not self._left:
            return False
        if self._skip:
            self._skip -= 1
            return False
        self._left -= 1
        self.reached.set()
        return True

    def release(self) -> None:
        self.released.set()


class FaultyStore:
    """Listens on loopback. `seen`: the operations asked for so far, with their paths, in order."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.seen: List[Tuple[str, str]] = []
        self._faults: List[Fault] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        handler = type("Handler", (_Handler,), {"store": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = int(self._server.server_address[1])
        self.endpoint_url = "http://127.0.0.1:%d" % self.port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def fault(self, operation: str, kind: str, times: int = 1, skip: int = 0) -> Fault:
        self._faults.append(Fault(operation, kind, times, skip))
        return self._faults[-1]

    def meet(self, operation: str, path: str) -> Optional[Fault]:
        with self._lock:
            self.seen.append((operation, path))
            return next((fault for fault in self._faults if fault.meets(operation)), None)

    def count(self, operation: str) -> int:
        with self._lock:
            return sum(1 for name, _path in self.seen if name == operation)

    def wait_closed(self) -> None:
        self._closed.wait()

    def release(self) -> None:
        for fault in self._faults:
            fault.release()

    def close(self) -> None:
        self._closed.set()
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> FaultyStore:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that was killed in the middle of a request


class _Answer:
    def __init__(self, status: int, headers: Dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client. `Expect: 100-continue` is answered here, so that a request is whole when judged."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body of an answer in one packet
    disable_nagle_algorithm = True
    store: FaultyStore

    def _serve(self) -> None:
        operation = operation_of(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.store.meet(operation, self.path)
        kind = fault.kind if fault is not None else ""
        if kind == "stall":
            self.store.wait_closed()
            self._reset()
        elif kind == "reset":
            self._reset()
        elif kind.isdigit():
            self._send(_error(int(kind)))
        elif kind == "swallow":
            self._send(_Answer(200, {"ETag": '"%s"' % hashlib.md5(body).hexdigest()}, b""))
        else:
            if fault is not None and kind == "hold":
                fault.released.wait()
                if self._client_is_gone():
                    self._reset()
                    return
            self._finish(fault, self._forward(body))

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

    def _finish(self, fault: Optional[Fault], answer: Optional[_Answer]) -> None:
        kind = fault.kind if fault is not None else ""
        if answer is None or kind == "lost-answer":
            self._reset()
            return
        if fault is not None and kind == "hold-answer":
            fault.released.wait()
        if kind == "delay":
            time.sleep(DELAY)
        elif kind == "corrupt":
            middle = len(answer.body) // 2
            answer.body = answer.body[:middle] + bytes([answer.body[middle] ^ 1]) + answer.body[middle + 1 :]
        elif kind == "false-etag":
            answer.headers = {name: value for name, value in answer.headers.items() if name.lower() != "etag"}
            answer.headers["ETag"] = '"%s"' % ("0" * 32)
        elif kind == "short":
            answer.headers["Content-Length"] = str(int(answer.headers["Content-Length"]) - 1)
        self._send(answer, truncated=kind == "truncate")

    def _forward(self, body: bytes) -> Optional[_Answer]:
        """What the store answers; None where it is not there."""
        upstream = http.client.HTTPConnection("127.0.0.1", self.store.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP}
        headers["Content-Length"] = str(len(body))
        try:
            upstream.request(self.command, self.path, body, headers)
            response = upstream.getresponse()
            kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP}
            length = response.getheader("Content-Length")
            if self.command == "HEAD" and length is not None:
                kept["Content-Length"] = length
            return _Answer(response.status, kept, response.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            upstream.close()

    def _send(self, answer: _Answer, truncated: bool = False) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if truncated else answer.body)
        self.wfile.flush()
        if truncated:
            self.close_connection = True

    def _client_is_gone(self) -> bool:
        try:
            return self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


def _error(status: int) -> _Answer:
    code = CODES[status]
    text = "<Error><Code>%s</Code><Message>The proxy says %d.</Message></Error>" % (code, status)
    return _Answer(status, {"Content-Type": "application/xml"}, text.encode())
