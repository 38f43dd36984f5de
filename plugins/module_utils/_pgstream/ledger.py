# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The run ledger: what every backup, restore, verification and pruning came to, in one small SQLite file.

`BACKUP_STATE_DIR/ledger.sqlite` is what metrics, health and the status page are computed from, so that they survive a
restart. A run is written when it begins and again when it ends. While it lives it holds a lock on a file of its own;
the kernel frees that however the process dies, so a reader, even in another container, can tell a run that is underway
from one that was killed. Counters are added up in the transaction that ends a run: forgetting old runs never lowers
them.

A rollback journal, not WAL: writes are rare, and only so can a reader open the file on a read-only mount.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple
from urllib.parse import quote

from .errors import BackupError
from .model import ENGINE_VERSION, LEVELS

#: globals: a backup of them, of no database; backup_part: a filtered one, which stands for no whole one.
OPERATIONS = ("backup", "backup_part", "globals", "restore", "verify", "prune")
SUCCESS, FAILURE, RUNNING = "success", "failure", "running"
FILE = "ledger.sqlite"
SCHEMA_VERSION = 2  # PRAGMA user_version; 1 had no level
KEPT = 60  # runs of one operation on one database; its last successes are kept beyond that
KEPT_GROUPS = 300  # pairs of operation and database: restores into ever new names must not add up for ever
MESSAGE = 1000  # characters kept of a message
DIED = "The process ended without a word: killed, out of memory, or the machine stopped."
#: Upper bounds of the duration histogram, in seconds.
BOUNDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 14400.0, 28800.0, 86400.0, float("inf"))

_TABLES = (
    "CREATE TABLE runs (token TEXT PRIMARY KEY, operation TEXT NOT NULL, database TEXT NOT NULL,"
    " correlation_id TEXT NOT NULL, started REAL NOT NULL, finished REAL, status TEXT NOT NULL, exit_code INTEGER,"
    " stage TEXT NOT NULL, message TEXT NOT NULL, key TEXT NOT NULL, changed INTEGER NOT NULL,"
    " raw_bytes INTEGER NOT NULL, stored_bytes INTEGER NOT NULL, rows INTEGER NOT NULL, tables INTEGER NOT NULL,"
    " seconds REAL NOT NULL, engine_version TEXT NOT NULL, level TEXT NOT NULL DEFAULT '')",
    "CREATE INDEX runs_of_group ON runs (operation, database)",
    "CREATE TABLE totals (operation TEXT NOT NULL, database TEXT NOT NULL, succeeded INTEGER NOT NULL,"
    " failed INTEGER NOT NULL, seconds REAL NOT NULL, PRIMARY KEY (operation, database))",
    "CREATE TABLE durations (operation TEXT NOT NULL, database TEXT NOT NULL, bound REAL NOT NULL,"
    " runs INTEGER NOT NULL, PRIMARY KEY (operation, database, bound))",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, since REAL NOT NULL)",
)
_SINCE_2 = "ALTER TABLE runs ADD COLUMN level TEXT NOT NULL DEFAULT ''"


class LedgerError(BackupError):
    """The ledger cannot be read or written. Never a reason for a run to fail."""


@dataclass(frozen=True)
class Run:
    """One run. Times in seconds since 1970; `finished` is None while it runs, and for one that was killed."""

    token: str  # hexadecimal; names the lock's file
    operation: str
    database: str
    correlation_id: str
    started: float
    finished: Optional[float] = None
    status: str = RUNNING
    exit_code: Optional[int] = None
    stage: str = ""
    message: str = ""
    key: str = ""
    changed: bool = False  # of a successful backup, False: there was a fresh enough one already
    raw_bytes: int = 0
    stored_bytes: int = 0
    rows: int = 0
    tables: int = 0
    seconds: float = 0.0
    engine_version: str = ENGINE_VERSION
    level: str = ""  # of a verification

    @property
    def ended(self) -> float:
        """When it was last heard of."""
        return self.started if self.finished is None else self.finished

    @property
    def worked(self) -> bool:
        """It succeeded, and not because there was nothing to do: its sizes and seconds mean something."""
        return self.status == SUCCESS and (self.changed or self.operation not in ("backup", "backup_part"))


@dataclass(frozen=True)
class Totals:
    """Counts since the ledger began, of one operation on one database; durations are of runs that `worked`."""

    succeeded: int = 0
    failed: int = 0
    seconds: float = 0.0
    durations: Mapping[float, int] = field(default_factory=dict)  # one of BOUNDS -> runs up to it, above the one before


Group = Tuple[str, str]  # operation, database
Fact = Tuple[str, float]  # value, and since when in seconds since 1970


@dataclass(frozen=True)
class View:
    """The ledger at one moment. `runs`: the one heard of last comes first."""

    runs: Tuple[Run, ...] = ()
    totals: Mapping[Group, Totals] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def groups(self) -> Dict[Group, List[Run]]:
        """The runs by operation and database, newest first; a group may have none but those forgotten."""
        found: Dict[Group, List[Run]] = {group: [] for group in sorted(self.totals)}
        for run in self.runs:
            found.setdefault((run.operation, run.database), []).append(run)
        return found


def proves(run: Run, level: str) -> bool:
    """Whether a verification was one of this level or of one that proves more. A level that is not known, of a run that
    ended before it was, counts as the lowest."""
    return LEVELS.index(run.level or LEVELS[0]) >= LEVELS.index(level)


class RunLock:
    """Held by a living run: an flock on a file of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Safe to call more than once."""
        if self._descriptor >= 0:
            _remove(self._path)
            os.close(self._descriptor)
            self._descriptor = -1


class Ledger:
    """The ledger in `directory`. What can go wrong with files is raised as LedgerError."""

    def __init__(self, directory: str, patience: float = 10.0) -> None:
        """`patience`: seconds to wait for another process's transaction."""
        self.directory = os.path.abspath(directory)
        self.path = os.path.join(self.directory, FILE)
        self._patience = patience

    def begin(self, run: Run) -> RunLock:
        """Note that the run began; `release` the lock after `finish`. Runs found killed are counted as failed."""
        with self._faults():
            lock = RunLock(self._lock_path(run))
            try:
                with self._writing() as connection:
                    self._bury(connection)
                    _put(connection, _storable(run))
            except BaseException:
                lock.release()
                raise
            return lock

    def finish(self, run: Run) -> None:
        """Note how the run ended, whether or not its beginning was noted, and count it."""
        with self._faults(), self._writing() as connection:
            _end(connection, run)

    def view(self) -> View:
        """Everything, changing nothing. A killed run is a failure here even before a writer has counted it.

        Empty where nothing was written yet; LedgerError where the directory is missing.
        """
        with self._faults(), self._reading() as connection:
            if connection is None:
                return View()
            columns = _COLUMNS if _version(connection) > 1 else _COLUMNS.replace("level", "''")
            runs = [_run(row) for row in connection.execute("SELECT %s FROM runs" % columns)]
            totals = _totals(connection)
            facts = {name: (value, since) for name, value, since in connection.execute("SELECT * FROM facts")}
            for number, run in enumerate(runs):
                # Inside the transaction: nobody can commit an end meanwhile, and a lock is held until that is done.
                if run.status == RUNNING and not self._alive(run):
                    runs[number] = _dead(run)
                    group = run.operation, run.database
                    before = totals.get(group, Totals())
                    totals[group] = replace(before, failed=before.failed + 1)
        return View(tuple(sorted(runs, key=lambda run: (run.ended, run.started), reverse=True)), totals, facts)

    def remember(self, name: str, value: str, now: float) -> None:
        """Note a fact, and since when it has had this value. Makes the ledger where there is none."""
        with self._faults(), self._writing() as connection:
            connection.execute(
                "INSERT INTO facts VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value,"
                " since = excluded.since WHERE value != excluded.value",
                (name, value, now),
            )

    def _lock_path(self, run: Run) -> str:
        return os.path.join(self.directory, "run-%s.lock" % run.token)

    def _alive(self, run: Run) -> bool:
        try:
            descriptor = os.open(self._lock_path(run), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _bury(self, connection: sqlite3.Connection) -> None:
        """Count the runs that were killed, and remove the lock files they left."""
        query = "SELECT %s FROM runs WHERE status = ?" % _COLUMNS
        for run in [_run(row) for row in connection.execute(query, (RUNNING,))]:
            if not self._alive(run):
                _end(connection, _dead(run))
                _remove(self._lock_path(run))

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, sqlite3.Error) as error:  # ValueError: a path that no file can have
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            raise LedgerError("the run ledger %s cannot be used: %s" % (self.path, reason)) from error

    @contextmanager
    def _reading(self) -> Iterator[Optional[sqlite3.Connection]]:
        """One transaction; None where there is no ledger yet, or an empty file."""
        if FILE not in os.listdir(self.directory):
            yield None
            return
        with closing(self._connect("ro")) as connection:
            connection.execute("BEGIN")
            yield connection if _check_version(connection, self.path) else None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or by an exception nothing."""
        with closing(self._connect("rwc")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            version = _check_version(connection, self.path)
            if version != SCHEMA_VERSION:
                for statement in _TABLES if version == 0 else [_SINCE_2]:
                    connection.execute(statement)
                connection.execute("PRAGMA user_version = %d" % SCHEMA_VERSION)
            yield connection
            connection.execute("COMMIT")

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = "file:%s?mode=%s" % (quote(os.fsencode(self.path)), mode)
        return sqlite3.connect(address, uri=True, timeout=self._patience, isolation_level=None)


_COLUMNS = ", ".join(each.name for each in fields(Run))
_CHANGED = [each.name for each in fields(Run)].index("changed")


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(connection: sqlite3.Connection, path: str) -> int:
    """0 for a file that is still empty."""
    version = _version(connection)
    if version > SCHEMA_VERSION:
        raise LedgerError("the run ledger %s has version %d, not %d" % (path, version, SCHEMA_VERSION))
    return version


def _run(row: Sequence[Any]) -> Run:
    values = list(row)
    values[_CHANGED] = bool(values[_CHANGED])  # SQLite has no truth values
    return Run(*values)


def _put(connection: sqlite3.Connection, run: Run) -> None:
    marks = ", ".join("?" * len(fields(Run)))
    connection.execute("INSERT OR REPLACE INTO runs (%s) VALUES (%s)" % (_COLUMNS, marks), astuple(run))


def _storable(run: Run) -> Run:
    """SQLite keeps text as UTF-8; an argument may hold bytes that are none."""

    def clean(text: str, length: int = 0) -> str:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")[: length or None]

    return replace(
        run,
        database=clean(run.database),
        stage=clean(run.stage),
        message=clean(run.message, MESSAGE),
        key=clean(run.key),
        level=clean(run.level),
    )


def _dead(run: Run) -> Run:
    return replace(run, status=FAILURE, message=DIED)


def _end(connection: sqlite3.Connection, run: Run) -> None:
    run = _storable(run)
    _put(connection, run)
    group = run.operation, run.database
    connection.execute("INSERT OR IGNORE INTO totals VALUES (?, ?, 0, 0, 0)", group)
    column = "succeeded" if run.status == SUCCESS else "failed"
    connection.execute("UPDATE totals SET %s = %s + 1 WHERE (operation, database) = (?, ?)" % (column, column), group)
    if run.worked:
        query = "UPDATE totals SET seconds = seconds + ? WHERE (operation, database) = (?, ?)"
        connection.execute(query, (run.seconds, *group))
        bound = next(bound for bound in BOUNDS if run.seconds <= bound)
        connection.execute("INSERT OR IGNORE INTO durations VALUES (?, ?, ?, 0)", (*group, bound))
        query = "UPDATE durations SET runs = runs + 1 WHERE (operation, database, bound) = (?, ?, ?)"
        connection.execute(query, (*group, bound))
    _forget(connection, group)


def _forget(connection: sqlite3.Connection, group: Group) -> None:
    """Keep the ledger small: old runs of this group, and the groups that nothing was heard of for longest."""
    ended = "coalesce(finished, started) DESC, started DESC"
    rows = connection.execute(
        "SELECT token, status, changed, level FROM runs WHERE (operation, database) = (?, ?) ORDER BY " + ended, group
    ).fetchall()
    kept = {row[0] for row in rows[:KEPT]}
    kept.update(token for token, status, _changed, _level in rows if status == RUNNING)
    kept.update([token for token, status, changed, _level in rows if status == SUCCESS and changed][:1])
    newest: Dict[Tuple[str, bool], str] = {}  # of each level the last run and the last success: a drill may be rare
    for token, status, _changed, level in rows:
        for good in (False, status == SUCCESS):
            newest.setdefault((level, good), token)
    kept.update(newest.values())
    gone = [(row[0],) for row in rows if row[0] not in kept]
    connection.executemany("DELETE FROM runs WHERE token = ?", gone)
    stale = connection.execute(
        "SELECT operation, database FROM runs GROUP BY operation, database"
        " ORDER BY max(coalesce(finished, started)) DESC LIMIT -1 OFFSET ?",
        (KEPT_GROUPS,),
    ).fetchall()
    for table in ("runs", "totals", "durations"):
        connection.executemany("DELETE FROM %s WHERE (operation, database) = (?, ?)" % table, stale)


def _totals(connection: sqlite3.Connection) -> Dict[Group, Totals]:
    durations: Dict[Group, Dict[float, int]] = {}
    for operation, database, bound, runs in connection.execute("SELECT * FROM durations"):
        durations.setdefault((operation, database), {})[bound] = runs
    return {
        (operation, database): Totals(succeeded, failed, seconds, durations.get((operation, database), {}))
        for operation, database, succeeded, failed, seconds in connection.execute("SELECT * FROM totals")
    }


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
