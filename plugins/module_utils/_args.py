# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A task's options, turned into the engine's frozen requests. Nothing below this file sees a parameter dict.

Every fault of a task's options is named in one UsageError. An empty string counts as not given, so that a template
that came out empty, and a default of `module_defaults` that one task wants to undo, mean the same.
"""

from __future__ import annotations

import os
import re
from typing import Any, List, Mapping, Optional, Tuple

from ._pgstream import age_keys, catalog, notify
from ._pgstream.cluster_model import ClusterRequest
from ._pgstream.codec import check_level
from ._pgstream.config import duration, moment
from ._pgstream.errors import UsageError
from ._pgstream.model import (
    RCLONE_REMOTE,
    BackupRequest,
    Filters,
    PruneRequest,
    RestoreRequest,
    Retention,
    Server,
    Storage,
    VerifyRequest,
)
from ._pgstream.store.s3_sse import check_customer_key
from ._specs import RETENTION_OPTIONS

Params = Mapping[str, Any]

# Parameters of libpq that are secrets: as part of a dictionary they would be shown with the task.
SECRET_PARAMS = ("password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key")

_ENDPOINT = re.compile(r"https?://[^/@]+(/|$)")
_LIBPQ_NAME = re.compile(r"[a-z_]+")


def seconds(value: object, option: str) -> int:
    """`30s`, `90m`, `6h`, `2d` or plain seconds, as seconds; nothing is 0. Raises UsageError naming the option."""
    text = "" if value is None else str(value).strip()
    if not text:
        return 0
    if text.isdecimal():
        return int(text)
    try:
        return duration(text)
    except ValueError as error:
        raise UsageError("%s: %s" % (option, error)) from None


class _Faults:
    """Collects what is wrong with a task's options, to say it all at once."""

    def __init__(self) -> None:
        self.found: List[str] = []

    def add_if(self, wrong: object, message: str) -> None:
        if wrong:
            self.found.append(message)

    def seconds(self, params: Params, option: str) -> int:
        try:
            return seconds(params.get(option), option)
        except UsageError as error:
            self.found.append(error.message)
            return 0

    def count(self, params: Params, option: str) -> int:
        value = params.get(option) or 0
        self.add_if(value < 0, "%s: %d is less than 0" % (option, value))
        return value

    def moment(self, params: Params, option: str) -> str:
        text = _text(params, option)
        try:
            return moment(text) if text else ""
        except ValueError as error:
            self.found.append("%s: %s" % (option, error))
            return ""

    def level(self, params: Params) -> Optional[int]:
        level = params.get("compression_level")
        try:
            check_level(params["compression"], level)
        except UsageError as error:
            self.found.append(error.sentence())
        return level

    def customer_key(self, params: Params) -> str:
        key = _text(params, "sse_customer_key")
        try:
            if key:
                check_customer_key(key)
        except ValueError as error:
            self.found.append("sse_customer_key: %s" % error)
        return key

    def recipients(self, params: Params) -> Tuple[str, ...]:
        try:
            return age_keys.read_recipients(_names(params, "age_recipients"))
        except UsageError as error:
            self.found.append("age_recipients: " + error.sentence())
            return ()

    def identity(self, params: Params) -> str:
        """The identity's text, from itself or its file."""
        text, path = _text(params, "age_identity"), _text(params, "age_identity_file")
        try:
            self.add_if(text and path, "age_identity and age_identity_file: give one of them")
            if path and not text:
                text = age_keys.file_text(path)
            if text:
                age_keys.identity_keys(text)
        except UsageError as error:
            self.found.append(("age_identity_file: " if path else "age_identity: ") + error.sentence())
        return text

    def raise_any(self) -> None:
        if self.found:
            raise UsageError("; ".join(self.found), stage="configuration")


def backup_request(params: Params) -> ClusterRequest:
    """The backups a task asks for: of one database, of several, of the globals. Raises UsageError with every fault in
    its options."""
    faults = _Faults()
    one = _one_backup(params, faults)
    request = ClusterRequest(
        one,
        _names(params, "databases"),
        _names(params, "exclude_databases"),
        params["globals"],
        params["globals_passwords"],
    )
    several = request.databases
    faults.add_if(one.database and several, "login_db and databases: give one of them")
    named = one.database or several or request.globals
    faults.add_if(not named, "login_db: the database to back up is not named, nor are several by databases")
    faults.add_if(request.exclude and not several, "exclude_databases: goes with databases")
    faults.add_if(request.globals_passwords and not request.globals, "globals_passwords: goes with `globals: true`")
    faults.add_if(one.key == "latest", "backup_key: `latest` names a backup to restore, not one to write")
    faults.add_if(one.key and not one.database, "backup_key: goes with one database, in login_db")
    faults.raise_any()
    return request


def _one_backup(params: Params, faults: _Faults) -> BackupRequest:
    return BackupRequest(
        server=_server(params, faults),
        database=_text(params, "login_db"),
        storage=_storage(params, faults),
        key=_text(params, "backup_key"),
        overwrite=params["overwrite"],
        fresh_within=faults.seconds(params, "fresh_within"),
        compression=params["compression"],
        compression_level=faults.level(params),
        jobs=faults.count(params, "jobs"),
        filters=Filters(
            schemas=_names(params, "schemas"),
            exclude_schemas=_names(params, "exclude_schemas"),
            tables=_names(params, "tables"),
            exclude_tables=_names(params, "exclude_tables"),
            exclude_table_data=_names(params, "exclude_table_data"),
        ),
        lock_timeout=faults.seconds(params, "lock_timeout"),
        timeout=faults.seconds(params, "timeout"),
        correlation_id=_text(params, "correlation_id"),
    )


def restore_request(params: Params) -> RestoreRequest:
    """The restore a task asks for. Raises UsageError with every fault in its options."""
    faults = _Faults()
    request = RestoreRequest(
        server=_server(params, faults),
        storage=_storage(params, faults),
        key=_text(params, "backup_key"),
        database=_text(params, "login_db"),
        source_database=_text(params, "source_db"),
        latest_before=faults.moment(params, "latest_before"),
        globals=params["globals"],
        create=params["create"],
        strategy=params["strategy"],
        keep_old=params["keep_old"],
        schemas=_names(params, "schemas"),
        tables=_names(params, "tables"),
        content=params["content"],
        no_owner=params["no_owner"],
        no_privileges=params["no_privileges"],
        role=_text(params, "role"),
        jobs=faults.count(params, "jobs"),
        analyze=params["analyze"],
        timeout=faults.seconds(params, "timeout"),
        correlation_id=_text(params, "correlation_id"),
    )
    faults.add_if(not request.key, "backup_key: name the backup to restore, or say `latest`")
    of_globals = request.globals or catalog.is_globals(request.key)
    if of_globals:
        for option in ("login_db", "source_db", "schemas", "tables", "create"):
            faults.add_if(params.get(option), "%s: goes with a database, not with globals" % option)
        faults.add_if(request.strategy != "auto", "strategy: goes with a database, not with globals")
    if request.key == "latest":
        unnamed = not (request.database or request.source_database or of_globals)
        faults.add_if(unnamed, "backup_key: `latest` needs source_db or login_db to say of which database")
    else:
        for option in ("latest_before", "source_db"):
            faults.add_if(_text(params, option), "%s: goes with `backup_key: latest` only" % option)
    faults.raise_any()
    return request


def verify_request(params: Params) -> VerifyRequest:
    """The verification a task asks for. Raises UsageError with every fault in its options."""
    faults = _Faults()
    request = VerifyRequest(
        storage=_storage(params, faults),
        key=_text(params, "backup_key"),
        level=params["level"],
        source_database=_text(params, "source_db"),
        latest_before=faults.moment(params, "latest_before"),
        globals=params["globals"],
        server=_server(params, faults),
        compare_source=params["compare_source"],
        no_owner=params["no_owner"],
        no_privileges=params["no_privileges"],
        role=_text(params, "role"),
        jobs=faults.count(params, "jobs"),
        correlation_id=_text(params, "correlation_id"),
    )
    faults.add_if(not request.key, "backup_key: name the backup to verify, or say `latest`")
    faults.add_if(request.globals and request.source_database, "source_db and globals: give one of them")
    faults.add_if(
        request.compare_source and request.level != "restore", "compare_source: goes with `level: restore` only"
    )
    if request.key == "latest":
        unnamed = not (request.source_database or request.globals)
        faults.add_if(unnamed, "backup_key: `latest` needs source_db to say of which database")
    else:
        for option in ("latest_before", "source_db"):
            faults.add_if(_text(params, option), "%s: goes with `backup_key: latest` only" % option)
    faults.raise_any()
    return request


def receivers(params: Params) -> notify.Receivers:
    """Whom a task wants to be told. Raises UsageError with every fault in its options."""
    found = notify.Receivers(
        ping_url=_text(params, "ping_url"),
        webhook_url=_text(params, "webhook_url"),
        events=_names(params, "notify"),
        ca_bundle=_text(params, "aws_ca_bundle"),
    )
    notify.check(found)
    return found


def info_request(params: Params) -> Tuple[Storage, str, str, Retention, int]:
    """Where a task looks for backups, of which database (empty: all), which one to describe, what would keep them, and
    how many are looked into. Raises UsageError."""
    faults = _Faults()
    storage, database, key = _storage(params, faults), _text(params, "login_db"), _text(params, "backup_key")
    policy, details = _retention(params, faults), faults.count(params, "details")
    faults.add_if(key == "latest" and not database, "backup_key: `latest` needs login_db to say of which database")
    faults.raise_any()
    return storage, database, key, policy, details


def prune_request(params: Params) -> PruneRequest:
    """The pruning a task asks for. Raises UsageError with every fault in its options."""
    faults = _Faults()
    request = PruneRequest(
        storage=_storage(params, faults),
        database=_text(params, "login_db"),
        globals=params["globals"],
        retention=_retention(params, faults),
        correlation_id=_text(params, "correlation_id"),
    )
    named = bool(request.database) + request.globals
    faults.add_if(not named, "login_db: the database whose backups to prune is not named")
    faults.add_if(named > 1, "login_db and globals: give one of them")
    faults.raise_any()
    return request


def _retention(params: Params, faults: _Faults) -> Retention:
    counts = {option: faults.count(params, option) for option in RETENTION_OPTIONS if option != "keep_within"}
    faults.add_if(params["min_keep"] == 0, "min_keep: the newest good backup is never removed: give 1 or more")
    return Retention(**counts, keep_within=faults.seconds(params, "keep_within"))


def _server(params: Params, faults: _Faults) -> Server:
    host, socket = _text(params, "login_host"), _text(params, "login_unix_socket")
    faults.add_if(host and socket, "login_host and login_unix_socket: give one of them")
    faults.add_if("://" in host, "login_host: give a host name, not a URL")  # not shown: it may carry a password
    faults.add_if(not 0 < params["login_port"] < 65536, "login_port: %d is not a port" % params["login_port"])
    return Server(
        host=socket or host,
        port=params["login_port"],
        user=_text(params, "login_user"),
        password=_text(params, "login_password"),
        maintenance_db=_text(params, "maintenance_db") or Server.maintenance_db,
        ssl_mode=params["ssl_mode"],
        ca_cert=_text(params, "ca_cert"),
        ssl_cert=_text(params, "ssl_cert"),
        ssl_key=_text(params, "ssl_key"),
        connect_params=_connect_params(params.get("connect_params") or {}, faults),
        bindir=_text(params, "pg_bindir"),
    )


def _connect_params(given: Mapping[str, Any], faults: _Faults) -> Tuple[Tuple[str, str], ...]:
    for name in sorted(set(given) & set(SECRET_PARAMS)):
        instead = " (use login_password)" if name == "password" else ""
        faults.add_if(True, "connect_params: %s is a secret and would be shown here%s" % (name, instead))
    for name in sorted(name for name in given if not _LIBPQ_NAME.fullmatch(name)):
        faults.add_if(True, "connect_params: %r is not a parameter's name" % name)
    faults.add_if("dbname" in given, "connect_params: dbname is not for this option (use login_db)")
    return tuple((str(name), str(value)) for name, value in sorted(given.items()))


def _storage(params: Params, faults: _Faults) -> Storage:
    bucket, directory, remote = (_text(params, option) for option in ("bucket", "directory", "rclone_remote"))
    access_key, secret_key = _text(params, "access_key"), _text(params, "secret_key")
    encryption_mode = "" if params["encryption_mode"] == "none" else params["encryption_mode"]
    endpoint_url = _text(params, "endpoint_url")
    kms_key = _text(params, "encryption_kms_key_id")
    stall_timeout = faults.seconds(params, "stall_timeout") or Storage.stall_timeout
    places = [each for each in (bucket, directory, remote) if each]
    faults.add_if(len(places) != 1, "bucket, directory and rclone_remote: give exactly one of them")
    faults.add_if(
        remote and not RCLONE_REMOTE.fullmatch(remote),  # not shown: a remote's options may be secrets
        "rclone_remote: give remote:path, the remote's name as in rclone's configuration",
    )
    for option in ("rclone_config", "rclone_path"):
        faults.add_if(_text(params, option) and not remote, "%s: goes with rclone_remote only" % option)
    faults.add_if("/" in bucket, "bucket: give the name alone, its path goes into prefix")
    rooted = os.path.isabs(directory) and directory.strip("/")
    faults.add_if(directory and not rooted, "directory: %r is not an absolute path below the root" % directory)
    faults.add_if(bool(access_key) != bool(secret_key), "access_key and secret_key: give both or neither")
    faults.add_if(access_key and _text(params, "profile"), "access_key and profile: give one of them")
    faults.add_if(
        endpoint_url and not _ENDPOINT.match(endpoint_url),  # not shown: it may carry a password
        "endpoint_url: give http://host[:port] or https://host[:port], without credentials",
    )
    customer_key = faults.customer_key(params)
    faults.add_if(customer_key and encryption_mode, "sse_customer_key and encryption_mode: give one of them")
    faults.add_if(customer_key and directory, "sse_customer_key: is for a bucket")
    faults.add_if(kms_key and encryption_mode != "aws:kms", "encryption_kms_key_id: needs `encryption_mode: aws:kms`")
    return Storage(
        kind="rclone" if remote else "local" if directory else "s3",
        bucket=bucket,
        directory=directory.rstrip("/"),
        rclone_remote=remote,
        rclone_config=_text(params, "rclone_config"),
        rclone_path=_text(params, "rclone_path"),
        prefix=_text(params, "prefix").strip("/"),
        endpoint_url=endpoint_url,
        region=_text(params, "region"),
        access_key=access_key,
        secret_key=secret_key,
        session_token=_text(params, "session_token"),
        profile=_text(params, "profile"),
        validate_certs=params["validate_certs"],
        aws_ca_bundle=_text(params, "aws_ca_bundle"),
        addressing_style=params["addressing_style"],
        checksums=params["checksums"],
        encryption_mode=encryption_mode,
        encryption_kms_key_id=kms_key,
        sse_customer_key=customer_key,
        age_recipients=faults.recipients(params),
        age_identity=faults.identity(params),
        stall_timeout=stall_timeout,
    )


def _text(params: Params, option: str) -> str:
    return params.get(option) or ""


def _names(params: Params, option: str) -> Tuple[str, ...]:
    return tuple(name for name in params.get(option) or () if name)
