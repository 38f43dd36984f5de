# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command: `backup`, `restore KEY`, `verify KEY`, `list`, `prune`, `check`; `metrics` and `health` of past runs.

Configured by the environment; flags override.

stdout: log lines of level INFO, and last one JSON line, the result. stderr: warnings and errors; where the run failed,
last one line of level ERROR, event `failed`. The exit status is that of the error's class (see `errors`). On a
terminal the lines are for people instead, as are the tables of `list`, `prune` and `check`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import traceback
from dataclasses import asdict, dataclass
from typing import Any, Dict, Mapping, NoReturn, Optional, Sequence, TextIO, Tuple
from urllib.parse import quote

from . import cli_cluster, config, config_retention, notify, tables
from .errors import BackupError, Interrupted, StorageError, UsageError
from .events import new_correlation_id
from .interrupts import Signals
from .model import COMPRESSIONS, ENGINE_VERSION, LEVELS, Filters, RestoreRequest, Server, Storage, VerifyRequest
from .progress import TerminalLog, is_terminal, printable
from .recorder import FILTERS, Recorder, operation_of

Texts = Mapping[str, str]

_PACKAGES = {
    "boto3": "boto3",
    "botocore": "boto3",
    "s3transfer": "boto3",
    "psycopg2": "psycopg2-binary",
    "prometheus_client": "prometheus-client",
    "cryptography": "cryptography",
}
_SECRET_FLAG = re.compile(
    r"--?[\w-]*(pass|secret|token|credential|identity|access-?key|customer-?key)[\w-]*", re.IGNORECASE
)


@dataclass(frozen=True)
class Outcome:
    """What a verb hands back: the result line, its form for a terminal, and whether it counts as a failure.

    `exit_code`: of an answer that is no failure of the command, such as that of `health`.
    """

    fields: Dict[str, Any]
    table: str = ""
    failure: Optional[BackupError] = None
    exit_code: int = 0
    always_table: bool = False  # before the result line where there is no terminal


def main(argv: Optional[Sequence[str]] = None, environ: Optional[Texts] = None) -> int:
    """Run one verb and return the exit status. Raises nothing, but for the SystemExit of --help and --version."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    environment = dict(os.environ if environ is None else environ)
    out, err = _utf8(sys.stdout), _utf8(sys.stderr)
    debug = "--debug" in arguments
    log = TerminalLog(new_correlation_id(), "", environment.get("POSTGRES_DB", ""), out, err)
    operation = operation_of(arguments)
    record = Recorder(environment.get("BACKUP_STATE_DIR", ""), operation, log)

    def hide(text: str) -> str:
        return mask(text, _hidden(environment))

    tell = notify.for_command(environment, operation, log, hide)
    with log, Signals() as signals:
        status = 0
        try:
            options = parse(arguments)
            log.operation = options.verb
            if cli_cluster.is_several(options, environment, _flags(options)):
                log.database = ""
                record = Recorder("", "", log)  # each is noted for itself
                tell = notify.for_command(environment, operation, log, hide, several=True)
            record.begin()
            tell.started()
            outcome = _run(options, environment, log)
            signals.ignore()  # what is done is done: the result shall be told
            status = outcome.exit_code
            if outcome.failure is None:
                record.succeed(outcome.fields)
            log.progress_bar.close()
            line = {"event": "result", "correlation_id": log.correlation_id, **outcome.fields}
            shown = json.dumps(line, ensure_ascii=False, default=str)
            if outcome.table and is_terminal(out) and not options.json:
                shown = outcome.table
            elif outcome.always_table:
                shown = outcome.table + "\n" + shown
            try:
                out.write(shown + "\n")
                out.flush()
            finally:
                if outcome.failure is None:  # it succeeded, whether or not anyone reads that here
                    tell.succeeded(outcome.fields)
            error: Optional[BaseException] = outcome.failure
        except (Exception, KeyboardInterrupt, Interrupted) as caught:
            signals.ignore()
            error = signals.received or caught  # what else fails then is an echo of the interrupt
        log.progress_bar.close()
        return status if error is None else _fail(log, record, tell, error, environment, debug)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Raises UsageError. Flags that stand for a variable are found under its name, None where absent."""
    for argument in arguments:
        name = argument.partition("=")[0]
        # Before argparse, whose message would show the value. The exception takes none.
        if _SECRET_FLAG.fullmatch(name) and argument != "--globals-passwords":
            raise UsageError(
                "no flag takes a secret (%s): every user of the machine can read a process's arguments" % name,
                hint="Use the environment, such as POSTGRES_PASSWORD_FILE.",
            )
    return _parser().parse_args(list(arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="See %s --help." % self.prog)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="pgbackup",
        description="Stream PostgreSQL databases to object storage and back.",
        epilog="Configured by the environment (POSTGRES_*, RCLONE_S3_* or AWS_*, BACKUP_*); flags override it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=ENGINE_VERSION)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        for variable in ("POSTGRES_HOST", "POSTGRES_PORT", "POSTGRES_USER", "BACKUP_STORE", "BACKUP_PREFIX"):
            _setting(found, variable)
        found.add_argument("--debug", action="store_true", help="show where an error came from")
        found.set_defaults(json=True)
        return found

    backup = verb("backup", "Back up POSTGRES_DB as one object, or several databases as one each.")
    _setting(backup, "BACKUP_KEY")
    _setting(backup, "BACKUP_COMPRESSION", "one of " + ", ".join(COMPRESSIONS))
    _setting(backup, "BACKUP_COMPRESSION_LEVEL")
    _setting(backup, "BACKUP_JOBS")
    _setting(backup, "BACKUP_FRESH_WITHIN", "do nothing if a backup is younger than this: 30s, 90m, 6h, 2d")
    _setting(backup, "BACKUP_TIMEOUT", "end the run after this: 90m, 6h")
    backup.add_argument("--overwrite", action="store_true", help="replace an object of the same key")
    for name in FILTERS:
        _pattern(backup, name, "a pattern as pg_dump knows it; may be repeated")
    cli_cluster.add_backup_flags(backup)
    backup.add_argument("--dry-run", action="store_true", help="check everything and predict, change nothing")

    restore = verb("restore", "Restore a backup.")
    restore.add_argument("key", metavar="KEY", help="a backup's key, or latest")
    restore.add_argument("--target-db", default="", metavar="NAME", help="default: POSTGRES_DB, else the backup's own")
    restore.add_argument("--create", action="store_true", help="the target does not exist yet: create it")
    restore.add_argument("--strategy", default="auto", choices=("auto", "swap", "in_place"))
    old = restore.add_mutually_exclusive_group()
    old.add_argument("--keep-old", dest="keep_old", action="store_true", default=True, help="swap: keep what was there")
    old.add_argument("--drop-old", dest="keep_old", action="store_false", help="swap: drop what was there")
    _setting(restore, "BACKUP_JOBS")
    _setting(restore, "BACKUP_TIMEOUT", "end the run after this: 90m, 6h")
    for name in ("schema", "table"):
        _pattern(restore, name, "restore only this; may be repeated")
    part = restore.add_mutually_exclusive_group()
    for name, text in (("data", "rows, into tables that exist and are empty"), ("schema", "definitions, no rows")):
        flag = "--%s-only" % name
        part.add_argument(flag, dest="content", action="store_const", const=name, default="all", help=text)
    _names(restore)
    restore.add_argument("--no-analyze", dest="analyze", action="store_false")
    restore.add_argument("--dry-run", action="store_true", help="check everything and predict, change nothing")

    verify = verb("verify", "Prove a backup, by its index, all its bytes, or a restore for practice.")
    verify.add_argument("key", metavar="KEY", help="a backup's key, or latest")
    _setting(verify, "BACKUP_VERIFY_LEVEL", "one of %s; content by default" % ", ".join(LEVELS))
    verify.add_argument(
        "--compare-source", action="store_true", help="level restore: contents as the source's, at rest"
    )
    _setting(verify, "BACKUP_JOBS")
    _names(verify)

    for name, text in (("list", "List the backups."), ("check", "Check the server and the store.")):
        verb(name, text).add_argument("--json", action="store_true", default=False, help="JSON on a terminal too")

    metrics = verb("metrics", "Serve Prometheus metrics and a status page, from BACKUP_STATE_DIR and the store.")
    metrics.add_argument("--listen", metavar="HOST:PORT", help="default: BACKUP_METRICS_LISTEN, else 0.0.0.0:9187")
    metrics.add_argument("--textfile", metavar="PATH", help="write this file for node_exporter instead, once")
    listing = verbs.choices["list"]
    listing.add_argument("--table", action="store_true", help="show a table, also where there is no terminal")
    text = "how many of the newest backups are looked into, for rows, ratio and duration; default: 100"
    _setting(listing, "BACKUP_LIST_DETAILS", text)
    prune = verb("prune", "Remove the backups of POSTGRES_DB that the retention policy does not keep.")
    prune.add_argument("--globals", action="store_true", help="those of roles and tablespaces instead")
    prune.add_argument("--dry-run", action="store_true", help="say what would be removed, remove nothing")
    prune.add_argument("--json", action="store_true", default=False, help="JSON on a terminal too")
    for parser_of in (listing, prune):
        for variable in config_retention.RETENTION:
            _setting(parser_of, variable, config_retention.RETENTION[variable])

    verb("health", "Exit 0 if the last scheduled backups succeeded in time, else 1.")
    return parser


def _setting(parser: argparse.ArgumentParser, variable: str, text: str = "") -> None:
    parser.add_argument(config.FLAGS[variable], dest=variable, metavar="VALUE", help=text or "overrides " + variable)


def _names(parser: argparse.ArgumentParser) -> None:
    """Flags of what restores: whose backup, and who owns what is restored."""
    parser.add_argument("--globals", action="store_true", help="with latest: of roles and tablespaces")
    parser.add_argument("--no-owner", action="store_true")
    parser.add_argument("--no-privileges", action="store_true")
    parser.add_argument("--role", default="", help="SET ROLE to this before restoring")
    parser.add_argument("--latest-before", default="", metavar="TIME", help="with latest: made before this, RFC 3339")
    parser.add_argument("--source-db", default="", metavar="NAME", help="with latest: of this database")


def _pattern(parser: argparse.ArgumentParser, name: str, text: str) -> None:
    parser.add_argument("--" + name, action="append", default=[], metavar="NAME", help=text)


def _flags(options: argparse.Namespace) -> Texts:
    return {name: value for name, value in vars(options).items() if name in config.FLAGS and value is not None}


def _run(options: argparse.Namespace, environ: Texts, log: TerminalLog) -> Outcome:
    flags = _flags(options)
    verbs = {
        "backup": _backup,
        "restore": _restore,
        "verify": _verify,
        "list": _list,
        "prune": _prune,
        "check": _check,
        "metrics": _metrics,
        "health": _health,
    }
    try:
        return verbs[options.verb](options, environ, flags, log)
    except ImportError as error:
        package = _PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise UsageError(
            "the Python package %s is not installed" % package, hint="Install it: pip install %s" % package
        ) from error


# Each verb imports its part of the engine when it runs: --help needs neither boto3 nor psycopg2.


def _backup(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    filters = Filters(
        schemas=tuple(options.schema),
        exclude_schemas=tuple(options.exclude_schema),
        tables=tuple(options.table),
        exclude_tables=tuple(options.exclude_table),
        exclude_table_data=tuple(options.exclude_table_data),
    )
    if cli_cluster.is_several(options, environ, flags):
        secrets = _hidden(environ)
        fields, failure = cli_cluster.back_up(options, environ, flags, filters, log, lambda text: mask(text, secrets))
        return Outcome({**fields, "dry_run": options.dry_run}, failure=failure)
    request = config.backup_request(environ, flags, filters, options.overwrite, log.correlation_id)
    from . import backup

    verb = backup.predict_backup if options.dry_run else backup.back_up
    return Outcome({**asdict(verb(request, log)), "dry_run": options.dry_run})


def _restore(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    wanted = RestoreRequest(
        server=Server(),
        storage=Storage(),
        key=options.key,
        database=options.target_db,
        source_database=options.source_db,
        latest_before=options.latest_before,
        globals=options.globals,
        create=options.create,
        strategy=options.strategy,
        keep_old=options.keep_old,
        schemas=tuple(options.schema),
        tables=tuple(options.table),
        content=options.content,
        no_owner=options.no_owner,
        no_privileges=options.no_privileges,
        role=options.role,
        analyze=options.analyze,
        correlation_id=log.correlation_id,
    )
    log.database = options.target_db or log.database
    request = config.restore_request(environ, flags, wanted)
    from . import restore

    verb = restore.predict_restore if options.dry_run else restore.restore
    return Outcome({**asdict(verb(request, log)), "dry_run": options.dry_run})


def _verify(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    wanted = VerifyRequest(
        storage=Storage(),
        key=options.key,
        source_database=options.source_db,
        latest_before=options.latest_before,
        globals=options.globals,
        compare_source=options.compare_source,
        no_owner=options.no_owner,
        no_privileges=options.no_privileges,
        role=options.role,
        correlation_id=log.correlation_id,
    )
    log.database = options.source_db or log.database
    request = config.verify_request(environ, flags, wanted)
    from . import verify

    return Outcome(asdict(verify.verify(request, log)))


def _list(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    storage, policy, details = config_retention.list_request(environ, flags)
    log.database = ""  # of every database
    from . import listing

    runs = listing.known_runs(environ.get("BACKUP_STATE_DIR", ""), log)
    backups = listing.list_backups(storage, "", details, policy, runs)
    fields = {"operation": "list", "backups": [asdict(one) for one in backups]}
    table = tables.backup_table(backups) or "No backups in %s" % printable(storage.url(storage.prefix))
    return Outcome(fields, table, always_table=options.table)


def _prune(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    request = config_retention.prune_request(environ, flags, log.correlation_id, options.globals)
    log.database = request.database
    from . import prune

    verb = prune.predict_prune if options.dry_run else prune.prune
    result = verb(request, log)
    return Outcome({**asdict(result), "dry_run": options.dry_run}, tables.prune_table(result, options.dry_run))


def _check(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    server, storage, database = config.check_target(environ, flags)
    from . import check

    result = check.check(server, storage, database, log)
    failure = None
    if not result.ok:
        bad = ["%s: %s" % (each.name, each.detail) for each in result.findings if each.ok is False and each.needed]
        kind = StorageError if result.exit_code == StorageError.exit_code else BackupError
        failure = kind("; ".join(bad), stage="check")
    table = "\n".join([tables.finding_table(result.findings), *result.conclusions])
    return Outcome({**asdict(result), "correlation_id": log.correlation_id}, table, failure)


def _metrics(options: argparse.Namespace, environ: Texts, flags: Texts, log: TerminalLog) -> Outcome:
    log.database = ""  # of every database
    from . import exporter

    secrets = config.secret_values(environ)
    settings = exporter.settings(environ, flags, options.listen or "", lambda text: mask(text, secrets))
    if options.textfile:
        exporter.write_textfile(settings, options.textfile)
        return Outcome({"operation": "metrics", "textfile": options.textfile})
    try:
        exporter.serve(settings, log)
    except Interrupted:
        pass  # that is how a server ends
    return Outcome({"operation": "metrics"})


def _health(_options: argparse.Namespace, environ: Texts, _flags: Texts, log: TerminalLog) -> Outcome:
    from . import health

    found = health.look(environ)
    return Outcome({"operation": "health", **asdict(found)}, found.message, exit_code=0 if found.ok else 1)


def _fail(
    log: TerminalLog, record: Recorder, tell: notify.Notifier, error: BaseException, environ: Texts, debug: bool
) -> int:
    """Note the failure, write the one ERROR line, tell of it and return the exit status."""
    secrets = config.secret_values(environ)
    fields: Dict[str, object] = {"stage": "", "exit_code": 1}
    if isinstance(error, (BackupError, Interrupted)):
        secrets = _hidden(environ)
        message = error.sentence()
        fields.update(stage=error.stage, exit_code=error.exit_code)
    else:
        message = ("unexpected %s: %s" % (type(error).__name__, error)).strip().rstrip(":")
    fields["message"] = mask(message, secrets)
    record.fail(int(str(fields["exit_code"])), str(fields["stage"]), str(fields["message"]))
    if debug:
        trace = traceback.format_exception(type(error), error, error.__traceback__)
        fields["traceback"] = mask("".join(trace), config.secret_values(environ))
    try:
        log.error("failed", **fields)
    except OSError:
        pass  # nobody reads stderr any more; the exit status still says it
    tell.failed(fields, interrupted=isinstance(error, Interrupted))
    if isinstance(error, BrokenPipeError):
        _silence(sys.stdout)
    return int(str(fields["exit_code"]))


def _hidden(environ: Texts) -> Tuple[str, ...]:
    """The secrets; a word that is none elsewhere, such as the user's name, stays readable though it is the password."""
    public = {environ.get(name) for name in ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "RCLONE_S3_BUCKET")}
    return tuple(secret for secret in config.secret_values(environ) if secret not in public)


def mask(text: str, secrets: Sequence[str]) -> str:
    """`text` with every secret as `***`, also where it was quoted by repr or for a URL. Longest first."""
    forms = {form for secret in secrets for form in (secret, repr(secret)[1:-1], quote(secret), quote(secret, safe=""))}
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _utf8(stream: TextIO) -> TextIO:
    """JSON is UTF-8 whatever the locale; what cannot be encoded (an odd byte in an argument) becomes an escape."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    return stream


def _silence(stream: TextIO) -> None:
    """Keep the interpreter from failing again when it flushes a pipe nobody reads."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):
        pass
