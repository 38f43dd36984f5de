# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The rclone program: how it is called, what its exit statuses mean, when it is called again.

One process for each operation. A process costs about 0.1 s and a connection, and is simple to kill, to retry and to
trust: its exit status is the answer. No secret is in its arguments: remotes are configured by file or environment.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import signal
import threading
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List, Optional, Tuple

from ..errors import BackupError, StorageError, UsageError
from ..events import rfc3339
from ..model import RCLONE_REMOTE, Storage
from ..process import Process, Processes
from .base import StoredObject
from .retry import PATIENT_LIMIT, Retry

#: rclone's documentation, "List of exit codes". There is no telling a directory from a file where it matters here.
USAGE, NO_DIRECTORY, NO_FILE, TEMPORARY = 2, 3, 4, 5
NOT_THERE = (NO_DIRECTORY, NO_FILE)
_MAY_PASS = (1, TEMPORARY)  # 1 is "not otherwise categorised": a refused connection, say, and a wrong password too

_PERMANENT = re.compile(
    r"unable to authenticate|permission denied|access ?denied|unauthorized|forbidden|invalid_grant|InvalidAccessKeyId|"
    r"SignatureDoesNotMatch|no such host|key mismatch|knownhosts|\b40[13]\b|quota|no space left|x509",
    re.IGNORECASE,
)
_CONFIGURATION = re.compile(
    r"didn't find (section|backend)|unknown type|unable to decrypt|couldn't decrypt|"
    r"config(uration)? (file )?.*(password|decrypt)|failed to (load|read) config"
)
_LINE = re.compile(r"(?m)^(?:\d{4}/\d\d/\d\d \d\d:\d\d:\d\d )?(DEBUG|INFO|NOTICE|ERROR|CRITICAL) *: (.*)$")
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_SECRET_NAME = re.compile(
    r"(?i)(pass|secret|token|key|auth|credential|cookie|sas_url|connection_string|bearer)(?!.*(_file|_path)$)"
)
# What would change what rclone says or whether it does anything.
_NOT_INHERITED = re.compile(
    r"(POSTGRES_|PG|BACKUP_).*|RCLONE_(CONFIG|LOG_.*|VERBOSE|QUIET|USE_JSON_LOG|PROGRESS|STATS.*|DRY_RUN|INTERACTIVE)"
)
_HINTS = (
    (r"didn't find section", "Is the remote in rclone's configuration? See `rclone listremotes`."),
    (r"decrypt|config\w* .*password", "Its password may come by RCLONE_CONFIG_PASS or RCLONE_PASSWORD_COMMAND."),
    (r"unable to authenticate|unauthorized|\b401\b|invalid_grant", "See the remote's credentials."),
    (r"permission denied|forbidden|access ?denied|\b403\b", "See what its user may do there."),
    (r"no space left|quota", "Free some space."),
    (r"unknown (flag|command)|flag provided but not defined", "rclone 1.57 or newer is needed."),
)


class RcloneError(StorageError):
    """rclone failed. `status`: how it exited; negative when a signal killed it."""

    status = 1
    passing = False  # may go well another time


class RcloneClient:
    """Safe for threads."""

    def __init__(self, storage: Storage) -> None:
        if not RCLONE_REMOTE.fullmatch(storage.rclone_remote):
            raise UsageError(
                "the rclone remote must be remote:path, and the remote's options stand in rclone's configuration"
            )
        self.storage = storage
        self._program = _program(storage.rclone_path)
        self._processes = Processes()
        self._env = {name: value for name, value in os.environ.items() if not _NOT_INHERITED.fullmatch(name)}
        self._env["TZ"] = "UTC"  # times in listings have the offset of this
        config = storage.rclone_config or os.environ.get("RCLONE_CONFIG", "")
        if config:
            self._env["RCLONE_CONFIG"] = config
        self._secrets = _secrets(self._env)

    def place(self, key: str) -> str:
        """The key as rclone names it."""
        root = self.storage.rclone_remote
        if key.startswith("/") or ".." in key.split("/"):
            raise StorageError("the key %s leads out of %s" % (key, self.storage.root))
        return root + ("" if not key or root.endswith((":", "/")) else "/") + key

    def spawn(self, *arguments: str, feed: bool = False, stall_timeout: int = 0) -> Process:
        """Start rclone. It does not try a whole operation again by itself: what is known here decides that."""
        stall = "%ds" % max(stall_timeout, self.storage.stall_timeout)
        # A request within a stream cannot be made again from here. The others are, and it knows no bound in time.
        tries = "3" if feed else "1"
        common = ["--retries", "1", "--low-level-retries", tries, "--timeout", stall, "--stats", "0",
                  "--log-level", "NOTICE", "--ask-password=false"]  # fmt: skip
        return self._processes.spawn([self._program, *arguments, *common], self._env, "rclone", feed=feed)

    @contextmanager
    def bounded(self, process: Process, stall_timeout: int = 0) -> Iterator[None]:
        """Kill the process if this block takes too long, whatever it is waiting for: not every backend of rclone heeds
        its --timeout. RcloneError says so."""
        seconds = (PATIENT_LIMIT + 1) * max(stall_timeout, self.storage.stall_timeout)
        watch = threading.Timer(seconds, process.kill)
        watch.daemon = True
        watch.start()
        try:
            yield
        except RcloneError as error:
            if watch.finished.is_set() and error.status == -signal.SIGKILL:
                error.message = "rclone, at %s: nothing happened for %d s" % (self.storage.root, seconds)
            raise
        finally:
            watch.cancel()

    def output(self, *arguments: str, stall_timeout: int = 0) -> Iterator[bytes]:
        """What one rclone prints, as it comes. RcloneError after the last of it if it did not end well."""
        process = self.spawn(*arguments, stall_timeout=stall_timeout)
        try:
            pieces = process.chunks()
            while True:
                with self.bounded(process, stall_timeout):
                    piece = next(pieces, b"")
                    if not piece:
                        self.finish(process)
                        return
                yield piece
        finally:
            process.kill()
            process.status()

    def once(self, *arguments: str, stall_timeout: int = 0) -> bytes:
        return b"".join(self.output(*arguments, stall_timeout=stall_timeout))

    def call(self, *arguments: str, patient: bool = False, stall_timeout: int = 0) -> bytes:
        """As `once`, made again where that may help. Only for what can be done twice."""
        retry = Retry(self.storage.stall_timeout, patient)
        while True:
            try:
                return self.once(*arguments, stall_timeout=stall_timeout)
            except RcloneError as error:
                if not (error.passing and retry.again()):
                    raise

    def stat(self, key: str, patient: bool = False) -> Optional[Dict[str, Any]]:
        """What `lsjson` says of a file; None where there is none."""
        try:
            text = self.call("lsjson", "--stat", "--no-mimetype", "--use-server-modtime", self.place(key),
                             patient=patient)  # fmt: skip
        except RcloneError as error:
            if error.status in NOT_THERE:
                return None
            raise
        found = _parsed(text)
        return found if found and not found.get("IsDir") else None

    def remove(self, key: str) -> None:
        """Remove a file; done where there is none."""
        try:
            self.call("deletefile", self.place(key))
        except RcloneError as error:
            if error.status not in NOT_THERE:
                raise

    def digest(self, key: str, kind: str, size: int) -> str:
        """The checksum that the remote has of a file, or makes: some read all of it, and are silent meanwhile."""
        arguments = ("lsjson", "--stat", "--no-mimetype", "--no-modtime", "--hash", "--hash-type", kind)
        slowest = 10 << 20  # bytes a second
        text = self.call(*arguments, self.place(key), patient=True,
                         stall_timeout=self.storage.stall_timeout + size // slowest)  # fmt: skip
        found = _parsed(text) or {}
        return str((found.get("Hashes") or {}).get(kind, ""))

    def features(self) -> Dict[str, Any]:
        """What the remote can do: `Features` and `Hashes` as `rclone backend features` has them."""
        found = _parsed(self.call("backend", "features", self.storage.rclone_remote))
        if not found or "Features" not in found:
            raise StorageError("rclone does not say what %s can do" % self.storage.root)
        return found

    def finish(self, process: Process) -> None:
        """Wait for its end; RcloneError or UsageError if it did not end well."""
        status = process.status()
        if status:
            raise self.failure(status, process.stderr_text())

    def failure(self, status: int, said: str) -> BackupError:
        said = self._masked(said)
        cause = first_cause_in(said) or (
            "it was killed by signal %d" % -status if status < 0 else "it exited with status %d" % status
        )
        hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said, re.IGNORECASE)), "")
        message = "rclone, at %s: %s" % (self.storage.root, cause)
        if status == USAGE or _CONFIGURATION.search(said):
            return UsageError(message, hint=hint)
        error = RcloneError(message, hint=hint)
        error.status = status
        error.passing = status < 0 or (status in _MAY_PASS and not _PERMANENT.search(said))
        return error

    def _masked(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _USERINFO.sub("***", text)


def first_cause_in(said: str) -> str:
    """The line of rclone's stderr that says what went wrong first: an error, else the notice that it failed."""
    lines: List[Tuple[str, str]] = _LINE.findall(said)
    for wanted in (("ERROR", "CRITICAL"), ("NOTICE",)):
        for level, text in lines:
            if level in wanted and (level != "NOTICE" or text.startswith("Failed to")):
                return re.sub(r"^Failed to \w+( with \d+ errors: last error was)?: ", "", text).strip()
    plain = [line for line in said.splitlines() if line.startswith(("Error:", "Fatal error:"))]
    return plain[0].partition(": ")[2] if plain else ""


def stored_object(key: str, found: Dict[str, Any]) -> StoredObject:
    return StoredObject(key, int(found["Size"]), rfc3339(time_of(found)))


def time_of(found: Dict[str, Any]) -> datetime:
    """In whole seconds. The program runs in UTC, so that its times have no other offset."""
    text = str(found.get("ModTime", ""))
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)", text):
        raise StorageError("rclone gave %r as the time of %s" % (text, found.get("Path")))
    return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)


def _parsed(text: bytes) -> Optional[Dict[str, Any]]:
    try:
        found = json.loads(text or b"null")
    except ValueError:
        raise StorageError("rclone printed what is no JSON: %r" % text[:100]) from None
    return found if isinstance(found, dict) else None


def _program(named: str) -> str:
    found = shutil.which(named or "rclone")
    if not found:
        raise UsageError(
            "the program %s is not there, or cannot be run" % (named or "rclone"),
            hint="Install rclone, or name it in rclone_path (BACKUP_RCLONE_PATH).",
        )
    return found


def _secrets(env: Dict[str, str]) -> List[str]:
    """Values that must not be shown, longest first. rclone itself is careful with them; what servers say may not be."""
    found = {value for name, value in env.items() if name.startswith("RCLONE_") and _SECRET_NAME.search(name)}
    config = configparser.RawConfigParser(strict=False)
    try:
        config.read(env.get("RCLONE_CONFIG") or os.path.expanduser("~/.config/rclone/rclone.conf"), encoding="utf-8")
        found.update(value for name in config.sections() for option, value in config.items(name)
                     if _SECRET_NAME.search(option))  # fmt: skip
    except (configparser.Error, OSError, ValueError):
        pass  # encrypted, or not there
    return sorted((value for value in found if len(value) > 3), key=len, reverse=True)
