# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Back up several databases of a server in one run, one after the other, and its globals.

Each is an object of its own, made as if it were alone. One that fails does not keep the others from being made; then
the run as a whole has failed. The globals come last: whoever owns something in a backup was there before it was made.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Callable, List, Sequence

from . import backup, globals_backup
from .cluster_model import FAILED, OK, ClusterRequest, ClusterResult, Part, part
from .errors import BackupError, Interrupted, LockedError, PartialError, UsageError
from .events import Log, new_correlation_id, rfc3339, utc_now
from .interrupts import still_wanted
from .model import BackupResult, Server
from .patterns import ALL, choose, is_wildcard
from .session import AT_START, Session
from .stages import stage
from .target import DRILL, MADE, UNFINISHED
from .workers import default_jobs

GLOBALS = "the globals"  # how they are called where a database would be named
#: Names as bytes: each is in the encoding of whoever gave it.
#: As pg_dumpall has it (-2: what DROP DATABASE left when it was interrupted, since August 2023), but for the databases
#: of restores and drills that are at work: they will be gone, or under another name, in the middle of their backup.
_QUERY = """
SELECT pg_catalog.namesend(datname) FROM pg_catalog.pg_database
WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2
  AND NOT (datname ~ %s AND (pg_catalog.starts_with(COALESCE(pg_catalog.shobj_description(oid, 'pg_database'), ''), %s)
    OR pg_catalog.starts_with(COALESCE(pg_catalog.shobj_description(oid, 'pg_database'), ''), %s)))
ORDER BY datname
"""


#: What is done around the backup of a database (empty: of the globals), such as to note it and tell of it.
Around = Callable[[str, Callable[[], BackupResult]], BackupResult]


def alone(_database: str, work: Callable[[], BackupResult]) -> BackupResult:
    return work()


def back_up_cluster(
    request: ClusterRequest, log: Log, around: Around = alone, hide: Callable[[str], str] = str, dry_run: bool = False
) -> ClusterResult:
    """Run a backup of each. PartialError, after all were tried, where one failed: its exit code is that of the first
    failure (of another run's lock only if there was no other), and it has the results of all. `hide` takes the secrets
    out of what a result says of a failure. `dry_run`: predict and change nothing."""
    began, start = time.monotonic(), utc_now()
    one = replace(request.backup, correlation_id=request.backup.correlation_id or new_correlation_id())
    log.correlation_id, log.operation, log.database = one.correlation_id, "backup", ""
    if request.databases and one.key:
        raise UsageError("a key is for one database", hint="Leave backup_key out.")
    names = [one.database] if one.database else []
    if request.databases:
        with stage("validation"):
            names = select(one.server, request.databases, request.exclude, log)
        log.info("databases", names=names)
    if not names and not request.globals:
        raise UsageError("no database is named", hint="Set login_db, databases, POSTGRES_DB or BACKUP_DATABASES.")

    def run(name: str) -> BackupResult:
        if name:
            return (backup.predict_backup if dry_run else backup.back_up)(replace(one, database=name), log)
        if dry_run:
            return globals_backup.predict_globals(one, request.globals_passwords, log)
        return globals_backup.back_up_globals(one, request.globals_passwords, log)

    parts: List[Part] = []
    failures: List[BackupError] = []
    for name in names + [""] * request.globals:
        log.known.clear()
        begun = time.monotonic()
        try:
            still_wanted()
            parts.append(part(around(name, partial(run, name))))
        except Interrupted as error:
            error.done = _done(parts)
            raise
        except BackupError as error:
            failures.append(error)
            parts.append(_failed(name, error, hide(error.sentence()), time.monotonic() - begun))
            log.warning("backup_failed", database=name, message=parts[-1].error, exit_code=error.exit_code)
    log.operation, log.database = "backup", ""
    log.known.clear()
    result = ClusterResult(
        changed=any(each.changed for each in parts),
        database="",
        key="",
        url="",
        correlation_id=one.correlation_id,
        compression=one.compression,
        raw_bytes=sum(each.raw_bytes for each in parts),
        stored_bytes=sum(each.stored_bytes for each in parts),
        rows=sum(each.rows for each in parts),
        tables=sum(each.tables for each in parts),
        seconds=round(time.monotonic() - began, 3),
        started_at=rfc3339(start),
        finished_at=rfc3339(utc_now()),
        jobs=one.jobs or default_jobs(),
        message=_summary(parts, dry_run),
        backups=tuple(parts),
    )
    if failures:
        raise _partial(result, failures)
    return result


def _failed(name: str, error: BackupError, sentence: str, seconds: float) -> Part:
    return Part(
        database=name,
        globals=not name,
        status=FAILED,
        seconds=round(seconds, 3),
        error=sentence,
        exit_code=error.exit_code,
    )


def _done(parts: Sequence[Part]) -> str:
    names = [each.database or GLOBALS for each in parts if each.status == OK]
    return "Done before: %s" % ", ".join(names) if names else ""


def _summary(parts: Sequence[Part], dry_run: bool) -> str:
    databases = [each for each in parts if not each.globals]
    made = sum(each.changed for each in databases)
    old = sum(each.status == OK for each in databases) - made
    text = "%s %d of %d databases" % ("would back up" if dry_run else "backed up", made, len(databases))
    text += " (there is a backup of %d already)" % old if old else ""
    return text + "".join(", and %s" % GLOBALS for each in parts if each.globals and each.status == OK)


def _partial(result: ClusterResult, failures: Sequence[BackupError]) -> PartialError:
    names = [each.database or GLOBALS for each in result.backups if each.status == FAILED]
    worst = next((each for each in failures if not isinstance(each, LockedError)), failures[0])
    errors = [each.error for each in result.backups if each.status == FAILED]
    return PartialError(
        "%d of %d backups failed: %s. The first: %s" % (len(names), len(result.backups), ", ".join(names), errors[0]),
        worst.exit_code,
        result,
    )


def select(server: Server, wanted: Sequence[str], excluded: Sequence[str], log: Log) -> List[str]:
    """The names of the databases that `wanted` and `excluded` mean, as the server has them now. The server is asked
    only where a pattern is among them. UsageError where they mean none."""
    existing: List[str] = []
    if ALL in wanted or any(map(is_wildcard, wanted)):
        with Session(server, server.maintenance_db, patience=AT_START) as session:
            rows = session.rows(_QUERY, (MADE, UNFINISHED, DRILL))
        existing = [bytes(name).decode("utf-8", "surrogateescape") for (name,) in rows]
    names, idle = choose(existing, wanted, excluded)
    if not names:
        raise UsageError(
            "no database matches %s%s" % (", ".join(wanted), " without " + ", ".join(excluded) if excluded else ""),
            hint="The server has %s." % ", ".join(existing[:10]) if existing else "",
        )
    odd = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if odd:
        shown = ", ".join(odd).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        raise UsageError("databases with names that are not UTF-8: " + shown, hint="Rename them, or exclude a pattern.")
    for pattern in idle:
        log.warning("no_database_matches", pattern=pattern)
    return names
