# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of faults change inside of the command: Python imports this at its start, where PYTHONPATH names it.

PGSTREAM_FAULT=compressor  the compressor raises after two MiB
PGSTREAM_FAULT=named       SIGTERM once a file in a directory has its name
PGSTREAM_FAULT=cleanup     SIGTERM once an upload is to be aborted
PGSTREAM_FAULT=directory   what a directory holds cannot be synced
Always: the pauses between two attempts of an S3 request are short. Their number stays.
"""

from __future__ import annotations

import errno
import os
import signal
import stat


def _failing_compressor() -> None:
    from _pgstream import codec

    whole = codec._Gzip.compress

    def compress(self, data):  # type: ignore[no-untyped-def]
        self.given = getattr(self, "given", 0) + len(data)
        if self.given > 2 << 20:
            raise ValueError("the compressor is out of order")
        return whole(self, data)

    codec._Gzip.compress = compress


def _signal_once_named() -> None:
    link = os.link

    def linked(*arguments, **named):  # type: ignore[no-untyped-def]
        link(*arguments, **named)
        os.link = link
        os.kill(os.getpid(), signal.SIGTERM)

    os.link = linked


def _signal_at_cleanup() -> None:
    from _pgstream import commit

    abort = commit.abort

    def aborted(*arguments):  # type: ignore[no-untyped-def]
        commit.abort = abort
        os.kill(os.getpid(), signal.SIGTERM)
        return abort(*arguments)

    commit.abort = aborted


def _no_sync_of_directories() -> None:
    sync = os.fsync

    def synced(descriptor):  # type: ignore[no-untyped-def]
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(descriptor)

    os.fsync = synced


def _short_pauses() -> None:
    from _pgstream.store import retry

    retry.FIRST_WAIT = retry.LONGEST_WAIT = 0.02


_short_pauses()
_faults = {
    "compressor": _failing_compressor,
    "named": _signal_once_named,
    "cleanup": _signal_at_cleanup,
    "directory": _no_sync_of_directories,
}
_faults.get(os.environ.get("PGSTREAM_FAULT", ""), lambda: None)()
