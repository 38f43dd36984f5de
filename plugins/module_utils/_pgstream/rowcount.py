# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Rows counted where they stand in a block's SQL, without a look at each: newlines between a COPY and its end."""

from __future__ import annotations

from typing import List

from .copying import END_AFTER_ROWS
from .errors import IntegrityError

_BEGIN = b"\nCOPY "
_STATEMENT_END = b" FROM stdin;"


class RowCounter:
    """Fed with SQL in pieces of any size; `counts` has the rows of each COPY, in order."""

    def __init__(self) -> None:
        self.counts: List[int] = []
        self._rows = False  # the SQL is in the middle of rows
        self._rest = b"\n"  # what may be the beginning of something

    def feed(self, piece: bytes) -> None:
        data, start = self._rest + piece, 0
        while True:
            if self._rows:
                end = data.find(END_AFTER_ROWS, start)
                if end < 0:
                    cut = max(start, len(data) - len(END_AFTER_ROWS) + 1)
                    self.counts[-1] += data.count(b"\n", start, cut)
                    break
                self.counts[-1] += data.count(b"\n", start, end + 1)
                start, self._rows = end + len(END_AFTER_ROWS) - 1, False
            else:
                begin = data.find(_BEGIN, start)
                if begin < 0:
                    cut = max(start, len(data) - len(_BEGIN) + 1)
                    break
                end = data.find(b"\n", begin + 1)
                while end >= 0 and data.count(b'"', begin, end) % 2:  # in the middle of a quoted name
                    end = data.find(b"\n", end + 1)
                if end < 0:
                    cut = begin
                    break
                start = end
                if data.endswith(_STATEMENT_END, begin, end):
                    self.counts.append(-1)  # the newline of the statement is counted, too
                    self._rows = True
        self._rest = data[cut:]

    def finish(self) -> List[int]:
        """The counts; IntegrityError where the last rows have no end."""
        if self._rows:
            raise IntegrityError("its rows have no end")
        return self.counts
