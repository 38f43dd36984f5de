# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Environment variables -> which databases are meant, where there may be several, and whether the globals are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Tuple

from . import config
from .config import Reader
from .model import BackupRequest, Filters
from .patterns import ALL, is_wildcard

_WORD = re.compile(r'\s*(?:"((?:[^"]|"")+)"|([^\s,"]+))(?=[\s,]|\Z)[\s,]*')


@dataclass(frozen=True)
class Wanted:
    """`databases`: names, patterns or `all`; empty where one database is meant, or none."""

    databases: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    globals: bool = False
    globals_passwords: bool = False

    @property
    def several(self) -> bool:
        """Whether a run is one of several backups, even if it comes to one in the end."""
        return bool(self.databases or self.globals)

    @property
    def fixed(self) -> bool:
        """Whether the names are known without asking a server."""
        return not any(name == ALL or is_wildcard(name) for name in self.databases)


def names(text: str) -> Tuple[str, ...]:
    """Names with spaces or commas between them; one that has such itself stands in double quotes, a quote in it is
    doubled. ValueError for anything else."""
    found, position = [], len(text) - len(text.lstrip(" \t\r\n,"))
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            raise ValueError("a double quote stands alone, or within a name")
        found.append(match[1].replace('""', '"') if match[1] else match[2])
        position = match.end()
    return tuple(found)


def wanted(reader: Reader, only_globals: bool = False) -> Wanted:
    """BACKUP_DATABASES, else with BACKUP_ALL_DATABASES all; BACKUP_EXCLUDE_DATABASES; BACKUP_GLOBALS and
    BACKUP_GLOBALS_PASSWORDS. A flag that means nothing alone is a fault; a variable may be meant for other runs."""
    databases = _names(reader, "BACKUP_DATABASES")
    if not databases and reader.flag("BACKUP_ALL_DATABASES"):
        databases = (ALL,)
    exclude = _names(reader, "BACKUP_EXCLUDE_DATABASES")
    with_globals = only_globals or reader.flag("BACKUP_GLOBALS")
    for name, needs, there in (
        ("BACKUP_EXCLUDE_DATABASES", "--databases", databases and not only_globals),
        ("BACKUP_GLOBALS_PASSWORDS", "--globals", with_globals),
    ):
        if name in reader.flags and not there:
            reader.fault("%s goes with %s" % (reader.label(name), needs))
    passwords = with_globals and reader.flag("BACKUP_GLOBALS_PASSWORDS")
    return Wanted(() if only_globals else databases, () if only_globals else exclude, with_globals, passwords)


def of_job(environ: Mapping[str, str]) -> Wanted:
    """What a scheduled job is for; no databases: for that of POSTGRES_DB. UsageError when it cannot be read."""
    reader = Reader(environ, {})
    found = wanted(reader)
    reader.finish()
    return found


def is_several(environ: Mapping[str, str], flags: Mapping[str, str], only_globals: bool) -> bool:
    """Whether a backup is one of several, or meant to be and not understood."""
    reader = Reader(environ, flags)
    return wanted(reader, only_globals).several or bool(reader.faults)


def cluster_parts(
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    filters: Filters,
    overwrite: bool,
    correlation_id: str,
    only_globals: bool,
) -> Tuple[BackupRequest, Wanted]:
    """What is alike for each, and what is meant; the one database of POSTGRES_DB where no others are named. UsageError
    with every fault."""
    reader = Reader(environ, flags)
    found = wanted(reader, only_globals)
    one = "" if found.databases or only_globals else reader.get("POSTGRES_DB")
    request = config.read_backup(reader, one, filters, overwrite, correlation_id)
    if request.key and not one:
        reader.fault("%s goes with one database" % reader.label("BACKUP_KEY"))
    reader.finish()
    return request, found


def _names(reader: Reader, name: str) -> Tuple[str, ...]:
    try:
        found = names(reader.get(name))
    except ValueError as error:
        reader.fault("%s: %s" % (reader.label(name), error))
        return ()
    if not found and (reader.get(name) or name in reader.flags):
        reader.fault("%s names no database" % reader.label(name))
    return found
