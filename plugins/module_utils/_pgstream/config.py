# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Environment variables -> the values the engine takes, with every fault found named in one UsageError.

Nothing here reads the process's own environment: the caller gives a mapping, and beside it the command's flags, as
a mapping of the same names that wins. An empty variable counts as absent, as compose files leave them. The only
files read are those that a `NAME_FILE` variable names.
"""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import datetime
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from . import age_keys, catalog, config_encryption
from .codec import check_level
from .errors import UsageError
from .events import rfc3339
from .model import (
    COMPRESSIONS,
    LEVELS,
    RCLONE_REMOTE,
    BackupRequest,
    Filters,
    RestoreRequest,
    Server,
    Storage,
    VerifyRequest,
)

#: The flag that sets the same value, for those that have one. No secret has: argv is readable by everyone.
FLAGS = {
    "POSTGRES_HOST": "--host",
    "POSTGRES_PORT": "--port",
    "POSTGRES_USER": "--user",
    "BACKUP_STORE": "--store",
    "BACKUP_PREFIX": "--prefix",
    "BACKUP_KEY": "--key",
    "BACKUP_COMPRESSION": "--compression",
    "BACKUP_COMPRESSION_LEVEL": "--compression-level",
    "BACKUP_JOBS": "--jobs",
    "BACKUP_FRESH_WITHIN": "--fresh-within",
    "BACKUP_LIST_DETAILS": "--details",
    "BACKUP_KEEP_LAST": "--keep-last",
    "BACKUP_KEEP_HOURLY": "--keep-hourly",
    "BACKUP_KEEP_DAILY": "--keep-daily",
    "BACKUP_KEEP_WEEKLY": "--keep-weekly",
    "BACKUP_KEEP_MONTHLY": "--keep-monthly",
    "BACKUP_KEEP_YEARLY": "--keep-yearly",
    "BACKUP_KEEP_WITHIN": "--keep-within",
    "BACKUP_MIN_KEEP": "--min-keep",
    "BACKUP_VERIFY_LEVEL": "--level",
    "BACKUP_TIMEOUT": "--timeout",
    "BACKUP_DATABASES": "--databases",
    "BACKUP_EXCLUDE_DATABASES": "--exclude-databases",
    "BACKUP_GLOBALS": "--globals",
    "BACKUP_GLOBALS_PASSWORDS": "--globals-passwords",
}

#: Variables whose value is never shown; all but libpq's own PGPASSWORD may come as `NAME_FILE` instead.
SECRETS = (
    "POSTGRES_PASSWORD",
    "RCLONE_S3_ACCESS_KEY_ID",
    "RCLONE_S3_SECRET_ACCESS_KEY",
    "RCLONE_S3_SESSION_TOKEN",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "BACKUP_PING_URL",
    "BACKUP_WEBHOOK_URL",
    "PGPASSWORD",
    "RCLONE_S3_SSE_CUSTOMER_KEY_BASE64",
    "BACKUP_AGE_IDENTITY",
)

SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")  # libpq, section "SSL Support"
_YES, _NO = ("true", "yes", "1", "on"), ("false", "no", "0", "off", "")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds


def duration(text: str) -> int:
    """`30s`, `90m`, `6h`, `2d` in seconds. A bare number is refused (ValueError): nobody can tell its unit."""
    match = re.fullmatch(r"([0-9]+)([smhd])", text.strip())
    if match is None:
        raise ValueError("%r is not a duration such as 30s, 90m, 6h or 2d" % text)
    return int(match.group(1)) * _UNITS[match.group(2)]


def moment(text: str) -> str:
    """An RFC 3339 time as the engine writes it, in UTC. ValueError for anything else, or without an offset."""
    match = re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})",
        text.strip(),
    )
    try:
        if match is None:
            raise ValueError
        # Put together again because fromisoformat before Python 3.11 knows neither Z nor short fractions.
        fraction = ((match[3] or ".") + "000000")[:7]
        offset = "+00:00" if match[4] in "Zz" else match[4]
        return rfc3339(datetime.fromisoformat(match[1] + "T" + match[2] + fraction + offset))
    except (ValueError, OverflowError):
        raise ValueError("%r is not a time with an offset, such as 2026-01-31T02:00:00Z" % text) from None


def secret_values(environ: Mapping[str, str]) -> Tuple[str, ...]:
    """Every secret that `environ` gives, to mask them in messages. An unreadable file adds none."""
    values = [environ.get(name, "") for name in SECRETS]
    for name in SECRETS:
        if environ.get(name + "_FILE"):
            try:
                values.append(_file_text(environ[name + "_FILE"]))
            except (OSError, ValueError):
                continue
    values += [line for value in values for line in age_keys.secret_lines(value)]  # a file may hold several
    return tuple(sorted({value for value in values if value}, key=len, reverse=True))


def secret(environ: Mapping[str, str], name: str) -> str:
    """One secret, given as itself or by its file; empty where it is not. UsageError when something is wrong with it."""
    reader = Reader(environ, {})
    value = reader.secret(name)
    reader.finish()
    return value


def storage(environ: Mapping[str, str], flags: Mapping[str, str]) -> Storage:
    reader = Reader(environ, flags)
    found = read_storage(reader)
    reader.finish()
    return found


def check_target(environ: Mapping[str, str], flags: Mapping[str, str]) -> Tuple[Server, Storage, str]:
    """What `check` looks at: the server, the store and the database's name."""
    reader = Reader(environ, flags)
    found = _server(reader), read_storage(reader), reader.required("POSTGRES_DB")
    reader.finish()
    return found


def backup_request(
    environ: Mapping[str, str],
    flags: Mapping[str, str],
    filters: Filters,
    overwrite: bool,
    correlation_id: str,
) -> BackupRequest:
    reader = Reader(environ, flags)
    request = read_backup(reader, reader.required("POSTGRES_DB"), filters, overwrite, correlation_id)
    reader.finish()
    return request


def read_backup(reader: Reader, database: str, filters: Filters, overwrite: bool, correlation_id: str) -> BackupRequest:
    """The backup of one database; faults stay with the reader."""
    compression = reader.choice("BACKUP_COMPRESSION", COMPRESSIONS, "gzip")
    return BackupRequest(
        server=_server(reader),
        database=database,
        storage=read_storage(reader),
        key=reader.get("BACKUP_KEY"),
        overwrite="always" if overwrite else "never",
        fresh_within=reader.parsed("BACKUP_FRESH_WITHIN", duration, 0),
        compression=compression,
        compression_level=_level(reader, compression),
        jobs=reader.whole("BACKUP_JOBS", 0, 0),
        filters=filters,
        lock_timeout=reader.parsed("BACKUP_LOCK_TIMEOUT", duration, BackupRequest.lock_timeout),
        timeout=reader.parsed("BACKUP_TIMEOUT", duration, BackupRequest.timeout),
        correlation_id=correlation_id,
    )


def restore_request(environ: Mapping[str, str], flags: Mapping[str, str], wanted: RestoreRequest) -> RestoreRequest:
    """`wanted` with what the environment adds: server, store and jobs, and the names of databases.

    The target is that of `wanted`, else POSTGRES_DB, else the name in the backup. `latest` means the latest backup of
    the source in `wanted`, else of POSTGRES_DB, else of the target: so a restore beside the original names only the
    new database.
    """
    reader = Reader(environ, flags)
    home = reader.get("POSTGRES_DB")
    other = home or wanted.database
    of_globals = wanted.globals or catalog.is_globals(wanted.key)
    if of_globals:
        home = other = ""
        given = (wanted.database, wanted.create, wanted.schemas, wanted.tables, wanted.strategy != "auto")
        for flag, value in zip(("--target-db", "--create", "--schema", "--table", "--strategy"), given):
            if value:
                reader.fault("%s goes with a database, not with globals" % flag)
    names = wanted.key, wanted.source_database, wanted.latest_before, other
    source, before = _which(reader, *names, ", --target-db", of_globals)
    request = replace(
        wanted,
        server=_server(reader),
        storage=read_storage(reader),
        database=wanted.database or home,
        source_database=source,
        latest_before=before,
        jobs=reader.whole("BACKUP_JOBS", 0, 0),
        timeout=reader.parsed("BACKUP_TIMEOUT", duration, RestoreRequest.timeout),
    )
    reader.finish()
    return request


def verify_request(environ: Mapping[str, str], flags: Mapping[str, str], wanted: VerifyRequest) -> VerifyRequest:
    """`wanted` with what the environment adds: level, store and jobs, and for the level restore the server.

    `latest` means the latest backup of the source in `wanted`, else of POSTGRES_DB.
    """
    reader = Reader(environ, flags)
    level = reader.choice("BACKUP_VERIFY_LEVEL", LEVELS, VerifyRequest.level)
    home = "" if wanted.globals else reader.get("POSTGRES_DB")
    names = wanted.key, wanted.source_database, wanted.latest_before, home
    source, before = _which(reader, *names, of_globals=wanted.globals)
    if wanted.compare_source and level != "restore":
        reader.fault("--compare-source only goes with --level restore")
    request = replace(
        wanted,
        level=level,
        server=_server(reader) if level == "restore" else Server(),
        storage=read_storage(reader),
        source_database=source,
        latest_before=before,
        jobs=reader.whole("BACKUP_JOBS", 0, 0),
    )
    reader.finish()
    return request


class Reader:
    """Reads variables one by one and remembers what was wrong, so that `finish` can say it all at once."""

    def __init__(self, environ: Mapping[str, str], flags: Mapping[str, str]) -> None:
        self.values: Dict[str, str] = {**environ, **flags}
        self.flags = flags
        self.missing: List[str] = []
        self.faults: List[str] = []

    def label(self, name: str) -> str:
        """The name the user set it by."""
        return FLAGS[name] if name in self.flags else name

    def get(self, *names: str) -> str:
        """The first of `names` that is set and not empty, else an empty string."""
        for name in names:
            if self.values.get(name):
                return self.values[name]
        return ""

    def required(self, name: str) -> str:
        value = self.get(name)
        if not value:
            self.missing.append(name)
        return value

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def choice(self, name: str, choices: Sequence[str], default: str) -> str:
        value = self.get(name) or default
        if value not in choices and value != default:
            self.fault("%s must be one of %s, not %r" % (self.label(name), ", ".join(choices), value))
            return default
        return value

    def flag(self, name: str) -> bool:
        """Whether it is one of the words for yes; empty is no."""
        word = self.get(name).strip().lower()
        if word not in _YES + _NO:
            self.fault("%s must be true or false, not %r" % (self.label(name), self.get(name)))
        return word in _YES

    def whole(self, name: str, default: int, low: int, high: Optional[int] = None) -> int:
        text = self.get(name)
        if not text:
            return default
        value = int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else None
        if value is None or value < low or (high is not None and value > high):
            span = "of at least %d" % low if high is None else "from %d to %d" % (low, high)
            self.fault("%s must be a whole number %s, not %r" % (self.label(name), span, text))
            return default
        return value

    def parsed(self, name: str, parse: Callable[[str], int], default: int) -> int:
        if not self.get(name):
            return default
        try:
            return parse(self.get(name))
        except ValueError as error:
            self.fault("%s: %s" % (self.label(name), error))
            return default

    def secret(self, name: str) -> str:
        """The value, or that of the file `NAME_FILE` names, less one newline at its end. Faults never show it."""
        value, path = self.get(name), self.get(name + "_FILE")
        if not path:
            return value
        if value:
            self.fault("%s and %s_FILE are both set: give one" % (name, name))
            return value
        try:
            value = _file_text(path)
        except OSError as error:
            self.fault("%s_FILE: cannot read %s: %s" % (name, path, error.strerror or type(error).__name__))
        except ValueError:
            self.fault("%s_FILE: %s is not text in UTF-8" % (name, path))
        else:
            if not value:
                self.fault("%s_FILE: %s is empty" % (name, path))
        return value

    def finish(self) -> None:
        """Raise UsageError if anything was wrong."""
        faults = ["missing: " + ", ".join(self.missing)] if self.missing else []
        faults += self.faults
        if faults:
            raise UsageError("; ".join(faults), stage="configuration")


def _which(
    reader: Reader, key: str, source: str, before: str, otherwise: str, flags: str = "", of_globals: bool = False
) -> Tuple[str, str]:
    """Whose latest backup, and made before when; both are for the key `latest` alone."""
    if of_globals and source:
        reader.fault("--source-db goes with a database, not with globals")
    if not key:
        reader.fault("KEY is empty: give a backup's key, or latest")
    if key == "latest":
        source = source or otherwise
        if not source and not of_globals:
            reader.fault("latest needs to know of which database: give POSTGRES_DB%s or --source-db" % flags)
        try:
            return source, moment(before) if before else ""
        except ValueError as error:
            reader.fault("--latest-before: %s" % error)
    else:
        for flag, value in (("--latest-before", before), ("--source-db", source)):
            if value:
                reader.fault("%s only goes with the key latest" % flag)
    return source, before


def _file_text(path: str) -> str:
    """A secret's file as text. OSError when unreadable, ValueError when not UTF-8."""
    with open(path, "rb") as stream:
        text = stream.read().decode("utf-8")
    for end in ("\r\n", "\n"):
        if text.endswith(end):
            return text[: -len(end)]
    return text


def _level(reader: Reader, compression: str) -> Optional[int]:
    if "BACKUP_COMPRESSION" in reader.flags and "BACKUP_COMPRESSION_LEVEL" not in reader.flags:
        reader.values["BACKUP_COMPRESSION_LEVEL"] = ""  # it was meant for the compression that the flag replaced
    name = "BACKUP_COMPRESSION_LEVEL"
    level = reader.whole(name, 0, 0) if reader.get(name) else None
    for which, value in (("BACKUP_COMPRESSION", None), (name, level)):
        try:
            check_level(compression, value)
        except UsageError as error:
            reader.fault("%s: %s" % (reader.label(which), error.sentence()))
            break
    return level


def _server(reader: Reader) -> Server:
    host = reader.required("POSTGRES_HOST")
    if "://" in host:  # not shown: a URL may carry a password
        reader.fault("%s must be a host name or a socket's directory, not a URL" % reader.label("POSTGRES_HOST"))
    return Server(
        host=host,
        port=reader.whole("POSTGRES_PORT", 5432, 1, 65535),
        user=reader.required("POSTGRES_USER"),
        password=reader.secret("POSTGRES_PASSWORD"),  # optional: a password file, peer or trust may do
        ssl_mode=reader.choice("PGSSLMODE", SSL_MODES, ""),
        ca_cert=reader.get("PGSSLROOTCERT"),
        ssl_cert=reader.get("PGSSLCERT"),
        ssl_key=reader.get("PGSSLKEY"),
        bindir=reader.get("POSTGRES_BINDIR"),
    )


def read_storage(reader: Reader) -> Storage:
    return replace(_place(reader), **config_encryption.age(reader))


def _place(reader: Reader) -> Storage:
    url = reader.get("BACKUP_STORE")
    bucket = reader.get("RCLONE_S3_BUCKET")
    label = reader.label("BACKUP_STORE")
    prefix = reader.get("BACKUP_PREFIX").strip("/")
    if not url:
        if not bucket:
            reader.missing.append("RCLONE_S3_BUCKET or BACKUP_STORE")
        elif "/" in bucket:
            reader.fault("RCLONE_S3_BUCKET must be the bucket's name alone: its path goes into BACKUP_PREFIX")
        return _s3(reader, bucket, prefix)
    if bucket and "BACKUP_STORE" not in reader.flags:
        reader.fault("BACKUP_STORE and RCLONE_S3_BUCKET are both set: give one")
    if url.startswith("file://"):
        directory = url[len("file://") :]
        if not directory.startswith("/") or not directory.strip("/"):
            reader.fault("%s must name an absolute directory: file:///var/backups" % label)
        return Storage(kind="local", directory=directory.rstrip("/"), prefix=prefix)
    if url.startswith("rclone:"):
        return _rclone(reader, url[len("rclone:") :], prefix)
    if not url.startswith("s3://"):
        reader.fault("%s must be s3://bucket, s3://bucket/prefix, file:///directory or rclone:remote:path" % label)
        return Storage()
    bucket, _slash, path = url[len("s3://") :].partition("/")
    path = path.strip("/")
    if not bucket:
        reader.fault("%s names no bucket: s3://bucket or s3://bucket/prefix" % label)
    # A flag wins over a variable; of two variables, or two flags, neither does.
    if path and prefix and path != prefix and ("BACKUP_STORE" in reader.flags) == ("BACKUP_PREFIX" in reader.flags):
        reader.fault("%s and %s name two different prefixes: give one" % (label, reader.label("BACKUP_PREFIX")))
    if path and "BACKUP_PREFIX" not in reader.flags:
        prefix = path
    return _s3(reader, bucket, prefix)


def _rclone(reader: Reader, remote: str, prefix: str) -> Storage:
    if not RCLONE_REMOTE.fullmatch(remote):  # not shown: a remote's options may be secrets
        label = reader.label("BACKUP_STORE")
        reader.fault("%s must be rclone:remote:path, the remote's name as in rclone's configuration" % label)
    return Storage(
        kind="rclone",
        rclone_remote=remote,
        rclone_config=reader.get("RCLONE_CONFIG"),
        rclone_path=reader.get("BACKUP_RCLONE_PATH"),
        prefix=prefix,
        stall_timeout=_stall_timeout(reader),
    )


def _stall_timeout(reader: Reader) -> int:
    stall_timeout = reader.parsed("BACKUP_STALL_TIMEOUT", duration, Storage.stall_timeout)
    if not stall_timeout:
        reader.fault("BACKUP_STALL_TIMEOUT must be 1s or more")
    return stall_timeout


def _s3(reader: Reader, bucket: str, prefix: str) -> Storage:
    names = ("RCLONE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    endpoint = reader.get(*names)
    if endpoint and not re.match(r"https?://[^/@]+(/|$)", endpoint):  # not shown: it may carry a password
        name = next(name for name in names if reader.get(name))
        reader.fault("%s must be http://host[:port] or https://host[:port], without credentials" % name)
    access_key, secret_key, token = _s3_keys(reader)
    return Storage(
        bucket=bucket,
        prefix=prefix,
        endpoint_url=endpoint,
        region=reader.get("RCLONE_S3_REGION", "AWS_REGION", "AWS_DEFAULT_REGION"),
        access_key=access_key,
        secret_key=secret_key,
        session_token=token,
        profile=reader.get("AWS_PROFILE"),
        aws_ca_bundle=reader.get("AWS_CA_BUNDLE"),
        addressing_style=reader.choice("BACKUP_S3_ADDRESSING_STYLE", ("auto", "path", "virtual"), "auto"),
        checksums=reader.choice("BACKUP_S3_CHECKSUMS", ("when_required", "when_supported"), "when_required"),
        stall_timeout=_stall_timeout(reader),
        **config_encryption.of_the_store(reader),  # type: ignore[arg-type]
    )


def _s3_keys(reader: Reader) -> Tuple[str, str, str]:
    """Access key, secret key and session token, all of one family: half of each fits no lock. None given: all
    empty, and boto3's own chain (profile, instance role ...) is asked."""
    for family in ("RCLONE_S3_", "AWS_"):
        names = family + "ACCESS_KEY_ID", family + "SECRET_ACCESS_KEY"
        given = [bool(reader.get(name, name + "_FILE")) for name in names]
        if not any(given):
            continue
        if not all(given):
            reader.fault("%s is set without %s" % (names if given[0] else names[::-1]))
        return reader.secret(names[0]), reader.secret(names[1]), reader.secret(family + "SESSION_TOKEN")
    return "", "", ""
