# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Prometheus metrics of past runs and of the store: an HTTP server, or a file for node_exporter's textfile collector.

`/metrics` is for Prometheus, `/` for people, `/healthz` for a container's health check. Every answer is computed when
it is asked for, from the run ledger and a listing of the store: a restart of the server loses nothing.
"""

from __future__ import annotations

import re
import socket
import socketserver
import sys
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Iterator, List, Mapping, Optional

from . import config, health, metrics, page
from .errors import UsageError
from .events import Log
from .model import Storage
from .observer import Observer

try:
    from prometheus_client import CollectorRegistry, exposition, write_to_textfile
    from prometheus_client.metrics_core import Metric

    _MISSING: Optional[ImportError] = None
except ImportError as error:
    _MISSING = error

DEFAULT_LISTEN = "0.0.0.0:9187"
DEFAULT_INTERVAL = "5m"  # between two listings of the store
REQUEST_TIMEOUT = 10  # seconds for a client to send its request
ONCE_PATIENCE = 60.0  # seconds that the textfile waits for the store: there is no second scrape


@dataclass(frozen=True)
class Settings:
    """`directory`: of the ledger, empty for none. `interval`: seconds for which a listing is good enough."""

    host: str
    port: int
    directory: str
    storage: Optional[Storage]
    interval: int
    policy: health.Policy
    hide: Callable[[str], str]  # takes the secrets out of a message

    def observer(self) -> Observer:
        return Observer(self.directory, self.storage, self.interval, self.policy, self.hide)


def settings(
    environ: Mapping[str, str], flags: Mapping[str, str], listen: str = "", hide: Callable[[str], str] = str
) -> Settings:
    """From the environment. UsageError when something is wrong, or when there is nothing to tell of; ImportError
    without the package prometheus-client."""
    if _MISSING is not None:
        raise _MISSING
    address = listen or environ.get("BACKUP_METRICS_LISTEN") or DEFAULT_LISTEN
    match = re.fullmatch(r"(?:\[([0-9A-Za-z:.%]+)\]|([^:\[\]]*)):([0-9]{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise UsageError("%r is not an address to listen on, such as 0.0.0.0:9187 or [::]:9187" % address)
    try:
        interval = config.duration(environ.get("BACKUP_METRICS_BUCKET_INTERVAL") or DEFAULT_INTERVAL)
    except ValueError as error:
        raise UsageError("BACKUP_METRICS_BUCKET_INTERVAL: %s" % error) from None
    values = {**environ, **flags}
    storage = None
    if values.get("RCLONE_S3_BUCKET") or values.get("BACKUP_STORE"):
        storage = config.storage(environ, flags)
    directory = environ.get("BACKUP_STATE_DIR", "")
    if not directory and storage is None:
        raise UsageError("neither BACKUP_STATE_DIR nor a store is set: there is nothing to tell of")
    host = match[1] or match[2] or ""
    return Settings(host, int(match[3]), directory, storage, interval, health.policy(environ), hide)


def write_textfile(found: Settings, path: str) -> None:
    """Write the metrics to a file, whole or not at all. UsageError when it cannot be written."""
    try:
        write_to_textfile(path, _registry(found.observer(), ONCE_PATIENCE))
    except OSError as error:
        raise UsageError("cannot write %s: %s" % (path, error.strerror or error)) from error


def serve(found: Settings, log: Log) -> None:
    """Answer until a signal raises in this thread, which must be the main one. UsageError when it cannot listen."""
    try:
        server = _Server(found, log)
    except OSError as error:
        place = "%s:%d" % (found.host, found.port)
        raise UsageError("cannot listen on %s: %s" % (place, error.strerror or error)) from error
    log.info("listening", address=server.address, state_dir=found.directory, store=found.storage and found.storage.root)
    # Not served in this thread: the server would take an interrupt that comes during a request for the request's fault.
    thread = threading.Thread(target=server.serve_forever, name="server", daemon=True)
    thread.start()
    try:
        threading.Event().wait()
    finally:
        server.shutdown()
        server.server_close()


def _registry(observer: Observer, patience: Optional[float] = None) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(_Collector(observer, patience))
    return registry


class _Collector:
    def __init__(self, observer: Observer, patience: Optional[float]) -> None:
        self._observer, self._patience = observer, patience

    def describe(self) -> List[Metric]:
        return []  # so that registering does not collect

    def collect(self) -> Iterator[Metric]:
        return metrics.families(self._observer.facts(self._patience))


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, found: Settings, log: Log) -> None:
        self.address_family = socket.AF_INET6 if ":" in found.host else socket.AF_INET
        self.log = log
        self.observer = found.observer()
        self.registry = _registry(self.observer)
        super().__init__((found.host, found.port), _Handler)
        host, port = self.server_address[:2]
        self.address = ("[%s]:%d" if self.address_family == socket.AF_INET6 else "%s:%d") % (host, port)

    def server_bind(self) -> None:
        # Not HTTPServer's: it asks the name service for the host's full name, which can take long.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):  # a client that went away is no news
            self.log.error("request_failed", message="unexpected %s: %s" % (type(error).__name__, error))


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "pgbackup"
    sys_version = ""
    timeout = REQUEST_TIMEOUT

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        answer = {"/metrics": self._metrics, "/": self._page, "/healthz": self._healthz}.get(path)
        if answer is None:
            self._send(404, "text/plain; charset=utf-8", b"Not found. There are /, /metrics and /healthz.\n")
            return
        try:
            answer()
        except OSError:
            raise  # the client went away
        except Exception as error:
            self.server.log.error("request_failed", message="unexpected %s: %s" % (type(error).__name__, error))
            self._send(500, "text/plain; charset=utf-8", b"This page could not be made; the log says why.\n")

    do_HEAD = do_GET

    def _metrics(self) -> None:
        encode, content_type = exposition.choose_encoder(self.headers.get("Accept") or "")
        self._send(200, content_type, encode(self.server.registry))

    def _page(self) -> None:
        text = page.render(self.server.observer.facts())
        self._send(200, "text/html; charset=utf-8", text.encode("utf-8", "replace"))

    def _healthz(self) -> None:
        """Whether this server can do its work; whether the backups are in order is for `pgbackup health`."""
        facts = self.server.observer.facts(0.0)
        text = (facts.ledger_error or "ok") + "\n"
        self._send(503 if facts.ledger_error else 200, "text/plain; charset=utf-8", text.encode("utf-8", "replace"))

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", page.CONTENT_SECURITY_POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """No line a scrape: they would bury the lines that matter."""
