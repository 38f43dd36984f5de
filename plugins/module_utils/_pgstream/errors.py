# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One family of errors; each class carries the exit code of the command and a hint.

BackupError            1  the operation failed
+-- UnexpectedError    1  by a bug, or by what the machine denied
+-- PartialError       *  several were to be done, and one failed: the exit code is that one's
+-- UsageError         2  options or environment are wrong; every fault named at once
+-- ServerError        3  PostgreSQL is unreachable or refuses
+-- StorageError       4  the bucket or directory is inaccessible
|   +-- NoStoreError      it is not there
+-- NotFoundError      5  no such backup
+-- IntegrityError     6  sha256, size, row count or truncation
+-- TargetError        7  the restore's target is not as it needs it
+-- LockedError        8  another run holds the lock
"""

from __future__ import annotations

from typing import Any, Optional, TypeVar

Given = TypeVar("Given")


class BackupError(Exception):
    """The operation failed. `stage` says where, `hint` what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, stage: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.stage = stage
        self.hint = hint

    def at(self, stage: str) -> BackupError:
        """The same error, with its stage filled in if none closer to the cause did so."""
        if not self.stage:
            self.stage = stage
        return self

    def sentence(self) -> str:
        """Stage, first cause and hint on one line."""
        cause = " ".join(self.message.split())
        text = "Failed during %s: %s" % (self.stage, cause) if self.stage else cause
        if not self.hint:
            return text
        return "%s%s %s" % (text, "" if text.endswith((".", "!", "?")) else ".", self.hint)

    def __str__(self) -> str:
        return self.sentence()


class UnexpectedError(BackupError):
    """Something that no error of this family foresaw, with its stage; most likely a bug."""


class PartialError(BackupError):
    """Of several things some failed. `result` is the result of all, as a frozen dataclass."""

    def __init__(self, message: str, exit_code: int, result: Any) -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.result = result


class UsageError(BackupError):
    exit_code = 2


class ServerError(BackupError):
    exit_code = 3


class StorageError(BackupError):
    exit_code = 4


class NoStoreError(StorageError):
    """The bucket or directory itself is not there."""


class NotFoundError(BackupError):
    exit_code = 5


class IntegrityError(BackupError):
    exit_code = 6


class TargetError(BackupError):
    exit_code = 7


class LockedError(BackupError):
    exit_code = 8


class Interrupted(BaseException):
    """Someone asked the run to stop. Not a BackupError: nothing that gets over an error may get over this."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.stage = ""
        self.done = ""  # what stays all the same

    def at(self, stage: str) -> Interrupted:
        self.stage = self.stage or stage
        return self

    def sentence(self) -> str:
        text = "%s during %s" % (self.message, self.stage) if self.stage else self.message
        return "%s. %s" % (text, self.done) if self.done else text


class Cancelled(BackupError):
    """A worker stopped because another one failed first: never the cause that is reported."""


def hint_of(text: str) -> str:
    """What to do about something that PostgreSQL says in every session alike."""
    if "conflict with recovery" in text:
        return (
            "A conflict with recovery ends sessions of a standby: raise max_standby_streaming_delay, or set"
            " hot_standby_feedback there, or back up the primary."
        )
    return ""


def first_cause(current: Optional[BaseException], new: BaseException) -> BaseException:
    """The error to report when a second one arrives: the first, unless it was only an echo."""
    if current is None or (isinstance(current, Cancelled) and not isinstance(new, Cancelled)):
        return new
    return current


def given(value: Optional[Given]) -> Given:
    """`value`, which cannot be None there; a type checker does not see that."""
    if value is None:
        raise AssertionError("a value that must be there is not")
    return value
