# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tell someone how a run went: a ping as healthchecks.io takes it, and a webhook that gets the result as JSON.

Nothing here makes a run fail, and nothing makes it wait for long: what is sent at the start is not waited for, what is
sent at the end for BUDGET seconds at most, however many tries that is. What could not be told is a warning.

The ping: a POST to URL/start, URL for success and URL/fail, with a sentence as its body (https://healthchecks.io/docs/
http_api/). In the URL, `{database}` is replaced by the database's name, `{operation}` by the operation, and
`{exit_code}` by the exit status: then that says how it went, instead of what is added to the path.
"""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote, urlsplit, urlunsplit

from . import config
from .errors import LockedError, UsageError
from .events import Log, rfc3339, utc_now
from .model import ENGINE_VERSION

START, SUCCESS, FAILURE = "start", "success", "failure"
EVENTS = (START, SUCCESS, FAILURE)
DEFAULT_EVENTS = (SUCCESS, FAILURE)
BUDGET = 7.0  # seconds that the end of a run waits for all of this: one that is stopped meanwhile is killed after 8
HURRIED_BUDGET = 3.0  # of an interrupted one, which had to clean up before
TIMEOUT = 3.0  # seconds of one try
TRIES = 3
PAUSE = 1.0  # seconds before the second try, doubled before each further one
_WORTH_A_RETRY = (408, 425, 429)  # and all from 500 up (RFC 9110 section 15.5, RFC 6585)
_NO_MESSAGE = ("table_rows", "traceback", "diff")  # fields of a result that may be long
_DATABASE = "{database}"
_BODY = 10000  # bytes of a ping's text; healthchecks.io keeps 100 kB


@dataclass(frozen=True)
class Receivers:
    """Who is told, and of what. URLs are secrets: who knows one can send to it."""

    ping_url: str = field(default="", repr=False)
    webhook_url: str = field(default="", repr=False)
    events: Tuple[str, ...] = DEFAULT_EVENTS
    ca_bundle: str = ""  # certificate authorities beside the system's


def receivers(environ: Mapping[str, str]) -> Receivers:
    """BACKUP_PING_URL, BACKUP_WEBHOOK_URL (or `..._FILE`), BACKUP_NOTIFY and AWS_CA_BUNDLE. UsageError when wrong."""
    words = tuple(word for word in re.split(r"[\s,]+", environ.get("BACKUP_NOTIFY", "").lower()) if word)
    found = Receivers(
        config.secret(environ, "BACKUP_PING_URL"),
        config.secret(environ, "BACKUP_WEBHOOK_URL"),
        words or DEFAULT_EVENTS,
        environ.get("AWS_CA_BUNDLE", ""),
    )
    check(found, ("BACKUP_PING_URL", "BACKUP_WEBHOOK_URL", "BACKUP_NOTIFY"))
    return found


def check(found: Receivers, names: Sequence[str] = ("ping_url", "webhook_url", "notify")) -> None:
    """UsageError with every fault, in the names that the user knows. URLs are not shown."""
    faults = []
    for name, url in zip(names, (found.ping_url, found.webhook_url)):
        if url and not re.fullmatch(r"https?://[^/\s]+[^\s]*", url):
            faults.append("%s is not a URL of http or https" % name)
    unknown = [word for word in found.events if word not in EVENTS]
    if unknown:
        faults.append("%s: there is no event %s, but %s" % (names[2], ", ".join(unknown), ", ".join(EVENTS)))
    if faults:
        raise UsageError("; ".join(faults), stage="configuration")


class Notifier:
    """Of one run. `hide` takes the secrets out of a text. Never raises."""

    def __init__(
        self,
        wanted: Receivers,
        log: Log,
        hide: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._wanted = wanted
        self._log = log
        self._hide = hide
        self._clock = clock
        self._pause = pause
        self._threads: List[threading.Thread] = []
        self._ended = False

    def started(self) -> None:
        """Begin to tell that the run begins."""
        self._send(START, 0, {}, self._clock() + TIMEOUT)

    def succeeded(self, result: Mapping[str, Any]) -> None:
        """`result`: the fields of the result line."""
        self._end(SUCCESS, 0, result, BUDGET)

    def failed(self, error: Mapping[str, Any], interrupted: bool = False) -> None:
        """`error`: the fields of the error line: stage, message, exit_code."""
        code = int(error.get("exit_code") or 1)
        self._end(FAILURE, code, error, HURRIED_BUDGET if interrupted else BUDGET)

    def _end(self, event: str, code: int, fields: Mapping[str, Any], budget: float) -> None:
        """The first end counts: what fails after a commit, such as a reader that went away, does not undo it."""
        if self._ended:
            return
        self._ended = True
        deadline = self._clock() + budget
        self._wait(budget / 3)  # a start that arrived after the end would be another run to the receiver
        self._send(event, code, fields, deadline)
        self._wait(deadline - self._clock())

    def _send(self, event: str, code: int, fields: Mapping[str, Any], deadline: float) -> None:
        if event not in self._wanted.events:
            return
        try:
            self._begin_all(event, code, fields, deadline)
        except Exception as error:  # no thread to be had, say
            self._warn("receiver", "unexpected %s" % type(error).__name__)

    def _begin_all(self, event: str, code: int, fields: Mapping[str, Any], deadline: float) -> None:
        said = str(fields.get("message") or "")
        what = self._log.operation + (" of " + self._log.database if self._log.database else "")
        text = self._hide("%s: %s. %s" % (what, event, said)).strip(". ")
        ping = self._ping(event, code)
        if ping:
            self._begin("ping", ping, text.encode("utf-8", "replace")[:_BODY], "text/plain; charset=utf-8", deadline)
        if self._wanted.webhook_url:
            body = json.dumps(self._payload(event, code, fields, text), default=str).encode("ascii")
            self._begin("webhook", self._wanted.webhook_url, body, "application/json", deadline)

    def _ping(self, event: str, code: int) -> str:
        """The URL of this event; empty where there is nothing to ping."""
        url = self._wanted.ping_url
        if not url or code == LockedError.exit_code:  # another run is at work: its own ping will tell
            return ""
        parts = urlsplit(_filled(url, self._log, code))
        if "{exit_code}" in url:
            return "" if event == START else urlunsplit(parts)
        path = parts.path.rstrip("/") + {START: "/start", SUCCESS: "", FAILURE: "/fail"}[event]
        return urlunsplit(parts._replace(path=path))

    def _payload(self, event: str, code: int, fields: Mapping[str, Any], text: str) -> Dict[str, Any]:
        payload: Dict[str, Any] = {
            "event": event,
            "text": text,  # what Slack and its like show
            "host": socket.gethostname(),
            "operation": self._log.operation,
            "database": self._log.database,
            "correlation_id": self._log.correlation_id,
            "ts": rfc3339(utc_now()),
            "engine_version": ENGINE_VERSION,
            "exit_code": code,
            **self._log.known,
        }
        payload.update((name, value) for name, value in fields.items() if name not in _NO_MESSAGE)
        return {name: self._hide(value) if isinstance(value, str) else value for name, value in payload.items()}

    def _begin(self, what: str, url: str, body: bytes, content_type: str, deadline: float) -> None:
        def deliver() -> None:
            try:
                self._deliver(what, url, body, content_type, deadline)
            except Exception as error:  # a thread has nobody to raise to
                self._warn(what, "unexpected %s" % type(error).__name__)

        # A daemon: a name server or a receiver that never answers must not keep the process.
        thread = threading.Thread(target=deliver, name=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _wait(self, budget: float) -> None:
        deadline = self._clock() + budget
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._clock()))
            if thread.is_alive():
                self._warn(thread.name, "did not answer in time")
        self._threads = []

    def _deliver(self, what: str, url: str, body: bytes, content_type: str, deadline: float) -> None:
        pause, why = PAUSE, ""
        for number in range(1, TRIES + 1):
            left = deadline - self._clock()
            if left <= 0:
                break
            why, again = self._try(url, body, content_type, min(TIMEOUT, left))
            if not why:
                return
            if not again or number == TRIES or deadline - self._clock() <= pause:
                break
            self._pause(pause)
            pause *= 2
        self._warn(what, why)

    def _try(self, url: str, body: Optional[bytes], content_type: str, timeout: float) -> Tuple[str, bool]:
        """Why it could not be told, empty if it was; and whether another try may help."""
        headers = {"User-Agent": "pgstream.backup/" + ENGINE_VERSION}
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            context = ssl.create_default_context()
            if self._wanted.ca_bundle:
                context.load_verify_locations(self._wanted.ca_bundle)
            opener = urllib.request.build_opener(_NoRedirect, urllib.request.HTTPSHandler(context=context))
            request = urllib.request.Request(url, body, headers)
            with opener.open(request, timeout=timeout):
                return "", False
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (405, 501) and body is not None and content_type.startswith("text/"):
                return self._try(url, None, content_type, timeout)  # a receiver that knows GET only
            if 300 <= error.code < 400:
                return "answered %d: it is elsewhere now, and redirects are not followed" % error.code, False
            return "answered %d" % error.code, error.code >= 500 or error.code in _WORTH_A_RETRY
        except (OSError, http.client.HTTPException, ValueError) as error:
            # ValueError: a URL that is none after all. Its text, and that of others, would show the URL.
            reason = getattr(error, "reason", error)
            words = getattr(reason, "strerror", "") or type(reason).__name__
            return "cannot be reached: %s" % words, not isinstance(error, ValueError)

    def _warn(self, what: str, why: str) -> None:
        try:
            self._log.warning("not_notified", receiver=what, message="The %s %s" % (what, why or "was not tried"))
        except OSError:
            pass  # nobody reads stderr


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A POST that is redirected would become a GET without a body: delivered, as it seems, and lost."""

    def redirect_request(self, *_arguments: Any, **_named: Any) -> None:
        return None


def _filled(url: str, log: Log, code: int) -> str:
    database = log.database or (log.operation if log.operation == "globals" else "")
    for name, value in (("database", database), ("operation", log.operation), ("exit_code", str(code))):
        url = url.replace("{%s}" % name, quote(value, safe="", errors="replace"))
    return url


def of_all(wanted: Receivers) -> Receivers:
    """Who is told of a run of several backups as a whole: not a monitor that has a check for each database."""
    return replace(wanted, ping_url="") if _DATABASE in wanted.ping_url else wanted


def of_each(wanted: Receivers) -> Receivers:
    """Who is told of each backup in a run of several: a monitor that has a check for each database."""
    return replace(wanted, webhook_url="", ping_url=wanted.ping_url if _DATABASE in wanted.ping_url else "")


def for_each(environ: Mapping[str, str], log: Log, hide: Callable[[str], str], dry_run: bool) -> Notifier:
    """The command's, of one backup in a run of several."""
    try:
        wanted = Receivers() if dry_run else of_each(receivers(environ))
    except UsageError:
        wanted = Receivers()  # said once, of all
    return Notifier(wanted, log, hide)


def for_command(
    environ: Mapping[str, str], operation: str, log: Log, hide: Callable[[str], str], several: bool = False
) -> Notifier:
    """The command's. The ping is for backups alone, as a monitor waits for one of a schedule; the webhook is for every
    operation. What is wrong with the variables is a warning, as a good backup is worth more than a message.

    `several`: of a run of several backups as a whole.

    BACKUP_JOB_FAILED: set by a job of several databases once one of them failed."""
    try:
        wanted = receivers(environ) if operation else Receivers()
    except UsageError as error:
        log.warning("not_notified", message=error.message)
        wanted = Receivers()
    failed_before = bool(environ.get("BACKUP_JOB_FAILED")) and _DATABASE not in wanted.ping_url
    if operation != "backup" or failed_before:  # the job's one check shall not be told that all is well
        wanted = Receivers("", wanted.webhook_url, wanted.events, wanted.ca_bundle)
    if several:
        wanted = of_all(wanted)
    return Notifier(wanted, log, hide)
