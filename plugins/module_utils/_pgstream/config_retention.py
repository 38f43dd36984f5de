# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Environment variables -> what `list` and `prune` take: the retention policy, as `config` reads the rest."""

from __future__ import annotations

from typing import Mapping, Tuple

from . import retention
from .config import Reader, duration, read_storage
from .model import LIST_DETAILS, PruneRequest, Retention, Storage

#: The policy's variables, and what is said of each flag.
RETENTION = {
    "BACKUP_KEEP_LAST": "keep this many of the newest",
    "BACKUP_KEEP_HOURLY": "keep the newest of each of this many hours that have one",
    "BACKUP_KEEP_DAILY": "the same of days, in UTC",
    "BACKUP_KEEP_WEEKLY": "the same of weeks, from Monday",
    "BACKUP_KEEP_MONTHLY": "the same of months",
    "BACKUP_KEEP_YEARLY": "the same of years",
    "BACKUP_KEEP_WITHIN": "keep everything younger than this: 36h, 14d",
    "BACKUP_MIN_KEEP": "never leave fewer good ones than this; default: 1",
}


def _retention(reader: Reader) -> Retention:
    names = {variable: variable[len("BACKUP_") :].lower() for variable in RETENTION}
    values = {
        names[variable]: reader.parsed(variable, duration, 0)
        if variable == "BACKUP_KEEP_WITHIN"
        else reader.whole(variable, getattr(Retention, names[variable]), int(variable == "BACKUP_MIN_KEEP"))
        for variable in RETENTION
    }
    return Retention(**values)


def is_given(environ: Mapping[str, str]) -> bool:
    """Whether there is a policy: a rule above 0, or one that cannot be read, for `prune` to say so."""
    reader = Reader(environ, {})
    return not retention.is_empty(_retention(reader)) or bool(reader.faults)


def list_request(environ: Mapping[str, str], flags: Mapping[str, str]) -> Tuple[Storage, Retention, int]:
    """What `list` looks at, the policy that says what is kept, and how many backups are looked into."""
    reader = Reader(environ, flags)
    found = read_storage(reader), _retention(reader), reader.whole("BACKUP_LIST_DETAILS", LIST_DETAILS, 0)
    reader.finish()
    return found


def prune_request(
    environ: Mapping[str, str], flags: Mapping[str, str], correlation_id: str, of_globals: bool = False
) -> PruneRequest:
    reader = Reader(environ, flags)
    request = PruneRequest(
        storage=read_storage(reader),
        database="" if of_globals else reader.required("POSTGRES_DB"),
        globals=of_globals,
        retention=_retention(reader),
        state_dir=reader.get("BACKUP_STATE_DIR"),
        correlation_id=correlation_id,
    )
    reader.finish()
    return request
