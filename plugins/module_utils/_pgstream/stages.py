# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where an error happened, and every fault of a validation in one message."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator, List

from .errors import BackupError, Interrupted, UnexpectedError

_MORE_MEMORY = "Give the run more memory, or fewer jobs."


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Errors that leave this block say that they happened in this stage, unless one nearer to the cause did."""
    try:
        yield
    except (BackupError, Interrupted) as error:
        raise error.at(name)  # noqa: B904 - it is the same error
    except MemoryError as error:
        raise BackupError("out of memory", stage=name, hint=_MORE_MEMORY) from error
    except ImportError:
        raise  # a package is missing: the edge says which
    except Exception as error:
        if isinstance(error, RuntimeError) and "start new thread" in str(error):
            raise BackupError(str(error), stage=name, hint=_MORE_MEMORY) from error
        raise UnexpectedError("unexpected %s: %s" % (type(error).__name__, error), stage=name) from error


def all_faults(*checks: Callable[[], Any]) -> List[Any]:
    """Run every check; the first fault is raised with the sentences of the others added. Results in order."""
    results: List[Any] = []
    faults: List[BackupError] = []
    try:
        for check in checks:
            try:
                results.append(check())
            except BackupError as error:
                faults.append(error)
    except BaseException:  # an interrupt
        _undo(results)
        raise
    if not faults:
        return results
    first, *others = faults + _undo(results)  # told after the first cause, not instead of it
    for other in others:
        first.hint = ("%s Also: %s" % (first.hint, other.sentence())).strip()
    raise first


def _undo(results: List[Any]) -> List[BackupError]:
    """Close what was opened; what went wrong with that."""
    faults: List[BackupError] = []
    for result in results:
        for opened in result if isinstance(result, tuple) else (result,):
            for undo in ("abort", "close"):
                if hasattr(opened, undo):
                    try:
                        getattr(opened, undo)()
                    except BackupError as error:
                        faults.append(error)
    return faults
