# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""job.py VERB [FLAG ...]: one scheduled run of the engine, for each database in turn.

An optional random delay, the runs, the exit status of each as a line. That of the first run that failed is the job's
own; that of one which found another run's lock (8) only if nothing else failed. A good backup is followed by a run of
`prune` if there is a retention policy, and all databases by the globals where BACKUP_GLOBALS says so.

Which databases: those that BACKUP_DATABASES, BACKUP_ALL_DATABASES and BACKUP_EXCLUDE_DATABASES mean, as the server has
them now; else POSTGRES_DB. Where that cannot be known, the failure is logged, noted in the run ledger and told to
whoever is to be told, and its exit status is the job's: else nobody would learn of it in time.

While it runs, a file named after its process id stands in jobs/, for whoever wants to stop it: SIGTERM ends the engine,
and no other begins.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

sys.path[:0] = ["/opt/pgbackup", "/opt/pgbackup/lib"]
if TYPE_CHECKING:
    from pgstream.errors import BackupError
    from pgstream.events import Log

STOPPED = 128 + signal.SIGTERM
OF_THE_JOB = ("BACKUP_DATABASES", "BACKUP_ALL_DATABASES", "BACKUP_EXCLUDE_DATABASES", "BACKUP_GLOBALS")


class Job:
    def __init__(self, verb: str, flags: list[str]) -> None:
        self.verb, self.flags = verb, flags
        self.stopped = False
        self.child: subprocess.Popen[bytes] | None = None
        self.worst = 0

    def stop(self, *_signal: object) -> None:
        self.stopped = True
        if self.child is not None:
            self.child.terminate()

    def work(self, log: Log) -> None:
        from pgstream.errors import BackupError, Interrupted
        from pgstream.interrupts import Signals

        self.log, one, began = log, os.environ.get("POSTGRES_DB", ""), time.monotonic()
        self._delay()
        try:
            if self.stopped:
                raise Interrupted("stopped while it waited")
            with Signals():
                names, prunes, with_globals = _plan(self.verb, log)
        except BackupError as error:
            _tell(self.verb, error, log)
            return self._ended(self.verb, one, error.exit_code, began)
        except Interrupted:
            self.stopped = True
            return self._ended(self.verb, one, STOPPED, began)
        for name in names:
            if self._run(name, *self.flags) == 0 and prunes and not self.stopped:
                self._run(name, verb="prune")
        if with_globals and self.verb == "backup":
            if self._run("", *self.flags, "--globals-only") == 0 and prunes and not self.stopped:
                self._run("", "--globals", verb="prune")
        elif with_globals and self.verb == "verify":
            self._run("", *self.flags, "--globals", "--level", "content")  # no server to restore them on

    def _delay(self) -> None:
        """Many hosts with one schedule shall not meet at one store."""
        from pgstream import config

        text = os.environ.get("BACKUP_START_DELAY", "")
        if text:
            try:
                seconds = random.randint(0, config.duration(text))
            except ValueError as error:
                self.log.warning("not_delayed", message="BACKUP_START_DELAY: %s" % error)
                return
            self.log.info("job_delayed", verb=self.verb, seconds=seconds)
            end = time.monotonic() + seconds
            while not self.stopped and time.monotonic() < end:
                time.sleep(min(1, max(0, end - time.monotonic())))

    def _run(self, database: str, *flags: str, verb: str = "") -> int:
        """The exit status of one run of the engine, of one database; empty: of none. STOPPED where none may begin."""
        verb, status, began = verb or self.verb, STOPPED, time.monotonic()
        if not self.stopped:
            env = {name: value for name, value in os.environ.items() if name not in OF_THE_JOB}
            env["POSTGRES_DB"] = database
            if self.worst not in (0, 8):  # one monitor of several: a success must not be the last that it hears
                env["BACKUP_JOB_FAILED"] = "1"
            self.child = subprocess.Popen(["pgbackup", verb, *flags], env=env)
            if self.stopped:  # asked before the child was known
                self.child.terminate()
            status = self.child.wait()
            self.child = None
        self._ended(verb, database, status if status >= 0 else 128 - status, began)
        return status

    def _ended(self, verb: str, database: str, status: int, began: float) -> None:
        # 8: another run of this database holds the lock, and nothing is lost. Any other failure is worth more.
        tell = {0: self.log.info, 8: self.log.warning}.get(status, self.log.error)
        self.log.database = database
        tell("job_finished", verb=verb, exit_code=status, seconds=int(time.monotonic() - began))
        if status and self.worst in (0, 8):
            self.worst = status


def _plan(verb: str, log: Log) -> tuple[list[str], bool, bool]:
    """The databases, whether good backups are followed by pruning, and whether the globals are meant too."""
    from pgstream import cluster, config, config_cluster, config_retention
    from pgstream.model import Server

    wanted = config_cluster.of_job(os.environ)
    names = [os.environ.get("POSTGRES_DB", "")]  # none at all is for the engine to name among what is missing
    if wanted.databases:
        server = Server()  # is not asked for databases that are named
        if not wanted.fixed:  # any name: it is the maintenance database that is asked
            server, _storage, _name = config.check_target(os.environ, {"POSTGRES_DB": "postgres"})
        names = cluster.select(server, wanted.databases, wanted.exclude, log)
    return names, verb == "backup" and config_retention.is_given(os.environ), wanted.globals


def _tell(verb: str, error: BackupError, log: Log) -> None:
    """A job that could not begin: in the log, the ledger, and to its receivers."""
    from pgstream import config, notify
    from pgstream.cli import mask
    from pgstream.recorder import Recorder

    secrets = config.secret_values(os.environ)
    fields = {"message": mask(error.sentence(), secrets), "stage": error.stage, "exit_code": error.exit_code}
    recorder = Recorder(os.environ.get("BACKUP_STATE_DIR", ""), verb, log)
    recorder.begin()
    recorder.fail(error.exit_code, error.stage, str(fields["message"]))
    log.error("failed", **fields)
    notify.for_command(os.environ, verb, log, lambda text: mask(text, secrets)).failed(fields)


def main() -> int:
    """The mark comes first: the engine's libraries take a moment to load."""
    job = Job(sys.argv[1], sys.argv[2:])
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, job.stop)
    mark = os.path.join(os.environ["PGBACKUP_RUN"], "private", "jobs", str(os.getpid()))
    with open(mark, "wb"):
        pass
    try:
        from pgstream.events import JsonLog

        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]
        job.work(JsonLog(operation=job.verb))
        return job.worst
    finally:
        os.unlink(mark)


if __name__ == "__main__":
    raise SystemExit(main())
