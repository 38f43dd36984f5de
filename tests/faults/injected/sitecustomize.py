# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of faults change inside of the command: Python imports this at its start, where PYTHONPATH names it.

PGSTREAM_FAULT=compressor  the compressor raises after two MiB
Always: the pauses between two attempts of an S3 request are short. Their number stays.
"""

from __future__ import annotations

import os


def _failing_compressor() -> None:
    from _pgstream import codec

    whole = codec._Gzip.compress

    def compress(self, data):  # type: ignore[no-untyped-def]
        self.given = getattr(self, "given", 0) + len(data)
        if self.given > 2 << 20:
            raise ValueError("the compressor is out of order")
        return whole(self, data)

    codec._Gzip.compress = compress


def _short_pauses() -> None:
    from _pgstream.store import retry

    retry.FIRST_WAIT = retry.LONGEST_WAIT = 0.02


_short_pauses()
if os.environ.get("PGSTREAM_FAULT") == "compressor":
    _failing_compressor()
