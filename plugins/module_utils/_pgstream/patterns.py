# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""psql's name patterns (`public.*`, `"Odd Name".t?`) as regular expressions, read as pg_dump reads them; and simpler
ones for the names of databases."""

from __future__ import annotations

import functools
import re
from typing import List, Sequence, Tuple

from .errors import UsageError

ALL = "all"  # in place of a database's name: every one that takes connections and is no template
_SPECIAL = set("|*+?()[]{}.^$\\")


@functools.lru_cache(maxsize=1024)  # the same few are held against every table
def pattern_to_regex(pattern: str) -> Tuple[str, str]:
    """(schema regex or "", name regex), both anchored.

    Rules of psql's "Patterns" section: outside double quotes ASCII letters fold to lower case, `*` is any text, `?`
    any character, a dot separates schema from name, a dollar is a dollar and what else is special in regular
    expressions is so here; inside quotes all stand for themselves, `""` is a quote.
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
        elif quoted or letter == "$" or pattern[position : position + 2] == "[]":
            parts[-1].append("\\" + letter if letter in _SPECIAL else letter)
        else:
            parts[-1].append(letter.lower() if letter.isascii() else letter)
        position += 1
    if quoted:
        raise UsageError("the pattern %s has an unclosed double quote" % pattern)
    if len(parts) > 2:
        raise UsageError("the pattern %s has too many dots: schema.table at most" % pattern)
    name = "^(%s)$" % "".join(parts[-1])
    return ("^(%s)$" % "".join(parts[0]), name) if len(parts) == 2 else ("", name)


def matches(patterns: Sequence[str], schema: str, name: str, visible: bool = True) -> bool:
    """Whether a pattern matches `schema`.`name`; one without a dot is for names `visible` in the search path."""
    for pattern in patterns:
        schema_regex, name_regex = pattern_to_regex(pattern)
        try:
            fits = re.fullmatch(schema_regex, schema, re.DOTALL) if schema_regex else visible
            if fits and re.fullmatch(name_regex, name, re.DOTALL):
                return True
        except re.error as error:
            raise UsageError("the pattern %s is not a regular expression: %s" % (pattern, error)) from None
    return False


def is_wildcard(pattern: str) -> bool:
    """Whether it can mean more than the one name that it is."""
    return "*" in pattern or "?" in pattern


def database_matches(patterns: Sequence[str], name: str) -> bool:
    """Whether a pattern matches a database's name: `*` is any text, `?` any character, what else stands for itself.

    Not psql's rules: an option that is mostly an exact name (`Shop`, `my.db`) must not fold case, nor part it at dots.
    """
    for pattern in patterns:
        regex = "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
        if re.fullmatch(regex, name, re.DOTALL):
            return True
    return False


def choose(existing: Sequence[str], wanted: Sequence[str], excluded: Sequence[str] = ()) -> Tuple[List[str], List[str]]:
    """The databases that are meant, in the order of `wanted`, each once; and the patterns that meant none, those of
    `excluded` too.

    An exact name is meant whether or not it is among the `existing` ones: the backup itself says why it cannot be made.
    """
    meant: List[str] = []
    idle: List[str] = []
    for pattern in wanted:
        if pattern == ALL:
            found = list(existing)
        elif is_wildcard(pattern):
            found = [name for name in existing if database_matches([pattern], name)]
        else:
            found = [pattern]
        if not found:
            idle.append(pattern)
        meant += found
    idle += [pattern for pattern in excluded if not any(database_matches([pattern], name) for name in meant)]
    return list(dict.fromkeys(name for name in meant if not database_matches(excluded, name))), idle
