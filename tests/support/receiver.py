# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A monitor and webhook to send to: an HTTP server that keeps what it gets and answers as it is told."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, List, NamedTuple


class Got(NamedTuple):
    method: str
    path: str
    body: bytes
    content_type: str

    @property
    def json(self) -> Dict[str, Any]:
        found: Dict[str, Any] = json.loads(self.body)
        return found


class Receiver:
    """Answers with the statuses of `answers`, one a request, then with 200. 0 is no answer until `close`."""

    def __init__(self, *answers: int) -> None:
        self.answers: List[int] = list(answers)
        self.got: List[Got] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                receiver._receive(self)

            do_GET = do_POST

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = "http://127.0.0.1:%d" % self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def paths(self) -> List[str]:
        return [each.path for each in self.got]

    def close(self) -> None:
        self._closed.set()
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _receive(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self.got.append(Got(handler.command, handler.path, body, handler.headers.get("Content-Type") or ""))
            status = self.answers.pop(0) if self.answers else 200
        if status == 0:
            self._closed.wait()
            return
        handler.send_response(status)
        if 300 <= status < 400:
            handler.send_header("Location", self.url + "/elsewhere")
        handler.send_header("Content-Length", "0")
        handler.end_headers()
