# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command's part for several databases and the globals: flags, and what is noted and told of each."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

from . import config_cluster, notify
from .cluster_model import ClusterRequest
from .errors import BackupError, Interrupted, PartialError
from .events import Log
from .model import BackupResult, Filters
from .recorder import PART, Recorder

Texts = Mapping[str, str]
Hide = Callable[[str], str]


def add_backup_flags(parser: argparse.ArgumentParser) -> None:
    text = "all, a name, or a pattern with * and ?; may be repeated; instead of POSTGRES_DB"
    parser.add_argument("--databases", dest="BACKUP_DATABASES", action=_Listed, metavar="NAME", help=text)
    text = "leave out what this name or pattern means; may be repeated"
    parser.add_argument(
        "--exclude-databases", dest="BACKUP_EXCLUDE_DATABASES", action=_Listed, metavar="NAME", help=text
    )
    text = "back up roles and tablespaces too"
    parser.add_argument("--globals", dest="BACKUP_GLOBALS", action="store_const", const="true", help=text)
    parser.add_argument("--globals-only", action="store_true", help="back up roles and tablespaces, and no database")
    parser.add_argument(
        "--globals-passwords",
        dest="BACKUP_GLOBALS_PASSWORDS",
        action="store_const",
        const="true",
        help="with the hashes of the roles' passwords, for which the user must be a superuser",
    )


class _Listed(argparse.Action):
    """A flag that may be repeated, as one variable that is a list."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, value: Any, _option: Optional[str] = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, "%s,%s" % (before, value) if before else value)


def is_several(options: argparse.Namespace, environ: Texts, flags: Texts) -> bool:
    """Whether this run is one of several backups, each of which is noted for itself."""
    return options.verb == "backup" and config_cluster.is_several(environ, flags, options.globals_only)


def back_up(
    options: argparse.Namespace, environ: Texts, flags: Texts, filters: Filters, log: Log, hide: Hide
) -> Tuple[Dict[str, Any], Optional[BackupError]]:
    """The fields of the result line, and the failure, if some of the backups failed."""
    from . import cluster

    each = _Each(environ, log, hide, options.dry_run, "backup" if filters == Filters() else PART)
    try:
        one, wanted = config_cluster.cluster_parts(
            environ, flags, filters, options.overwrite, log.correlation_id, options.globals_only
        )
        request = ClusterRequest(one, wanted.databases, wanted.exclude, wanted.globals, wanted.globals_passwords)
        result = cluster.back_up_cluster(request, log, each, hide, options.dry_run)
    except PartialError as error:
        return asdict(error.result), error
    except BackupError as error:
        each.not_begun(error)
        raise
    return asdict(result), None


class _Each:
    """Notes each backup in the ledger as a run of its own; tells of each where a monitor has a check for each."""

    def __init__(self, environ: Texts, log: Log, hide: Hide, dry_run: bool, operation: str) -> None:
        """`operation`: as which the backup of a database is noted."""
        self._environ, self._log, self._hide = environ, log, hide
        self._directory = "" if dry_run else environ.get("BACKUP_STATE_DIR", "")
        self._dry_run, self._operation = dry_run, operation

    def __call__(self, database: str, work: Callable[[], BackupResult]) -> BackupResult:
        log = self._log
        log.operation, log.database = ("backup", database) if database else ("globals", "")
        operation = self._operation if database else "globals"
        record = Recorder(self._directory, operation, log)
        # A monitor waits for the database's backup, and a part is none.
        tell = notify.for_each(self._environ, log, self._hide, self._dry_run or operation == PART)
        record.begin()
        tell.started()
        try:
            result = work()
        except (BackupError, Interrupted) as error:
            message = self._hide(error.sentence())
            record.fail(error.exit_code, error.stage, message)
            fields = {"message": message, "stage": error.stage, "exit_code": error.exit_code}
            tell.failed(fields, interrupted=isinstance(error, Interrupted))
            raise
        except BaseException as error:
            record.fail(BackupError.exit_code, "", "unexpected " + type(error).__name__)
            tell.failed({"message": "unexpected " + type(error).__name__, "exit_code": BackupError.exit_code})
            raise
        record.succeed(asdict(result))
        tell.succeeded(asdict(result))
        return result

    def not_begun(self, error: BackupError) -> None:
        """It is not even known which databases there are: a failure of none of them, which nobody would learn of."""
        record = Recorder(self._directory, self._operation, self._log)
        record.begin()
        record.fail(error.exit_code, error.stage, self._hide(error.sentence()))
