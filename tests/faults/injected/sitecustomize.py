# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the tests of faults change inside of the command: Python imports this at its start, where PYTHONPATH names it.

PGSTREAM_FAULT=compressor      the compressor raises after two MiB
PGSTREAM_READ_TIMEOUT=SECONDS  how long the S3 client waits for an answer
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


def _impatient_s3(seconds: float) -> None:
    from botocore.config import Config

    whole = Config.__init__

    def begin(self, *arguments, **options):  # type: ignore[no-untyped-def]
        if "read_timeout" in options:
            options["read_timeout"] = seconds
        whole(self, *arguments, **options)

    Config.__init__ = begin


def _short_pauses() -> None:
    from botocore.retries.standard import ExponentialBackoff

    ExponentialBackoff.delay_amount = lambda self, context: 0.02


_short_pauses()
if os.environ.get("PGSTREAM_FAULT") == "compressor":
    _failing_compressor()
if os.environ.get("PGSTREAM_READ_TIMEOUT"):
    _impatient_s3(float(os.environ["PGSTREAM_READ_TIMEOUT"]))
