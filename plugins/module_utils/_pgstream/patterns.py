# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""psql's name patterns (`public.*`, `"Odd Name".t?`) as regular expressions, read as pg_dump reads them."""

from __future__ import annotations

import re
from typing import List, Sequence, Tuple

from .errors import UsageError

_SPECIAL = set("|*+?()[]{}.^$\\")


def pattern_to_regex(pattern: str) -> Tuple[str, str]:
    """(schema regex or "", name regex), both anchored.

    Rules of psql's "Patterns" section: outside double quotes letters fold to lower case, `*` is any text, `?` any
    character and a dot separates schema from name; inside quotes all stand for themselves, `""` is a quote.
    """
    parts: List[List[str]] = [[]]
    quoted = False
    position = 0
    while position < len(pattern):
        letter = pattern[position]
        if letter == '"':
            if quoted and pattern[position + 1 : position + 2] == '"':
                parts[-1].append('"')
                position += 1
            else:
                quoted = not quoted
        elif not quoted and letter == ".":
            parts.append([])
        elif not quoted and letter == "*":
            parts[-1].append(".*")
        elif not quoted and letter == "?":
            parts[-1].append(".")
        else:
            letter = letter if quoted else letter.lower()
            parts[-1].append("\\" + letter if letter in _SPECIAL else letter)
        position += 1
    if quoted:
        raise UsageError("the pattern %s has an unclosed double quote" % pattern)
    if len(parts) > 2:
        raise UsageError("the pattern %s has too many dots: schema.table at most" % pattern)
    name = "^(%s)$" % "".join(parts[-1])
    return ("^(%s)$" % "".join(parts[0]), name) if len(parts) == 2 else ("", name)


def matches(patterns: Sequence[str], schema: str, name: str) -> bool:
    """Whether `schema`.`name` matches any of the patterns; a pattern without a dot is for the name alone."""
    for pattern in patterns:
        schema_regex, name_regex = pattern_to_regex(pattern)
        if re.fullmatch(name_regex, name, re.DOTALL) and (
            not schema_regex or re.fullmatch(schema_regex, schema, re.DOTALL)
        ):
            return True
    return False
