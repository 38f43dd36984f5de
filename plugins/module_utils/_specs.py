# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Options of the modules, each written once: types, defaults, choices, and which are secrets."""

from __future__ import annotations

from typing import Any, Dict

from ._pgstream import notify
from ._pgstream.cluster_model import ClusterRequest
from ._pgstream.model import (
    COMPRESSIONS,
    CONTENTS,
    LEVELS,
    LIST_DETAILS,
    BackupRequest,
    PruneRequest,
    RestoreRequest,
    Retention,
    Server,
    Storage,
    VerifyRequest,
)

Spec = Dict[str, Dict[str, Any]]

SERVER_OPTIONS: Spec = {
    "login_host": {"type": "str", "default": Server.host, "aliases": ["host"]},
    "login_unix_socket": {"type": "path"},
    "login_port": {"type": "int", "default": Server.port, "aliases": ["port"]},
    "login_user": {"type": "str"},
    "login_password": {"type": "str", "no_log": True},
    "ssl_mode": {
        "type": "str",
        "default": "prefer",
        "choices": ["allow", "disable", "prefer", "require", "verify-ca", "verify-full"],
    },
    "ca_cert": {"type": "path", "aliases": ["ssl_rootcert"]},
    "ssl_cert": {"type": "path"},
    "ssl_key": {"type": "path", "no_log": False},  # a file's name
    "connect_params": {"type": "dict", "default": {}},
    "maintenance_db": {"type": "str", "default": Server.maintenance_db},
    "pg_bindir": {"type": "path"},
}

STORAGE_OPTIONS: Spec = {
    "bucket": {"type": "str"},
    "directory": {"type": "path"},
    "rclone_remote": {"type": "str"},
    "rclone_config": {"type": "path"},
    "rclone_path": {"type": "path"},
    "prefix": {"type": "str"},
    "endpoint_url": {"type": "str"},
    "region": {"type": "str"},
    "access_key": {"type": "str", "no_log": False},  # names the account, and is of no use without the secret key
    "secret_key": {"type": "str", "no_log": True},
    "session_token": {"type": "str", "no_log": True},
    "profile": {"type": "str"},
    "validate_certs": {"type": "bool", "default": Storage.validate_certs},
    "aws_ca_bundle": {"type": "path"},
    "addressing_style": {
        "type": "str",
        "default": Storage.addressing_style,
        "choices": ["auto", "path", "virtual"],
    },
    "checksums": {
        "type": "str",
        "default": Storage.checksums,
        "choices": ["when_required", "when_supported"],
    },
    "encryption_mode": {"type": "str", "default": "none", "choices": ["none", "AES256", "aws:kms"]},
    "encryption_kms_key_id": {"type": "str", "no_log": False},  # a key's name
    "sse_customer_key": {"type": "str", "no_log": True},
    "age_recipients": {"type": "list", "elements": "str", "default": []},
    "age_identity": {"type": "str", "no_log": True},
    "age_identity_file": {"type": "path"},
    "stall_timeout": {"type": "str", "default": "%ds" % Storage.stall_timeout},
}

BACKUP_OPTIONS: Spec = {
    "login_db": {"type": "str"},
    "databases": {"type": "list", "elements": "str", "default": []},
    "exclude_databases": {"type": "list", "elements": "str", "default": []},
    "globals": {"type": "bool", "default": ClusterRequest.globals},
    "globals_passwords": {"type": "bool", "default": ClusterRequest.globals_passwords, "no_log": False},  # yes or no
    "backup_key": {"type": "str", "no_log": False},  # an object's name
    "overwrite": {"type": "str", "default": BackupRequest.overwrite, "choices": ["never", "always"]},
    "fresh_within": {"type": "str"},
    "compression": {"type": "str", "default": BackupRequest.compression, "choices": list(COMPRESSIONS)},
    "compression_level": {"type": "int"},
    "jobs": {"type": "int"},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "exclude_schemas": {"type": "list", "elements": "str", "default": []},
    "tables": {"type": "list", "elements": "str", "default": []},
    "exclude_tables": {"type": "list", "elements": "str", "default": []},
    "exclude_table_data": {"type": "list", "elements": "str", "default": []},
    "lock_timeout": {"type": "str", "default": "%ds" % BackupRequest.lock_timeout},
    "timeout": {"type": "str"},
    "correlation_id": {"type": "str"},
}

RESTORE_OPTIONS: Spec = {
    "backup_key": {"type": "str", "required": True, "no_log": False},
    "latest_before": {"type": "str"},
    "globals": {"type": "bool", "default": RestoreRequest.globals},
    "source_db": {"type": "str"},
    "login_db": {"type": "str"},
    "create": {"type": "bool", "default": RestoreRequest.create},
    "strategy": {"type": "str", "default": RestoreRequest.strategy, "choices": ["auto", "swap", "in_place"]},
    "keep_old": {"type": "bool", "default": RestoreRequest.keep_old},
    "schemas": {"type": "list", "elements": "str", "default": []},
    "tables": {"type": "list", "elements": "str", "default": []},
    "content": {"type": "str", "default": RestoreRequest.content, "choices": list(CONTENTS)},
    "no_owner": {"type": "bool", "default": RestoreRequest.no_owner},
    "no_privileges": {"type": "bool", "default": RestoreRequest.no_privileges},
    "role": {"type": "str"},
    "jobs": {"type": "int"},
    "analyze": {"type": "bool", "default": RestoreRequest.analyze},
    "timeout": {"type": "str"},
    "correlation_id": {"type": "str"},
}

RETENTION_OPTIONS: Spec = {
    "keep_last": {"type": "int", "default": Retention.keep_last},
    "keep_hourly": {"type": "int", "default": Retention.keep_hourly},
    "keep_daily": {"type": "int", "default": Retention.keep_daily},
    "keep_weekly": {"type": "int", "default": Retention.keep_weekly},
    "keep_monthly": {"type": "int", "default": Retention.keep_monthly},
    "keep_yearly": {"type": "int", "default": Retention.keep_yearly},
    "keep_within": {"type": "str"},
    "min_keep": {"type": "int", "default": Retention.min_keep},
}

VERIFY_OPTIONS: Spec = {
    "backup_key": {"type": "str", "required": True, "no_log": False},
    "latest_before": {"type": "str"},
    "globals": {"type": "bool", "default": VerifyRequest.globals},
    "source_db": {"type": "str"},
    "level": {"type": "str", "default": VerifyRequest.level, "choices": list(LEVELS)},
    "compare_source": {"type": "bool", "default": VerifyRequest.compare_source},
    "no_owner": {"type": "bool", "default": VerifyRequest.no_owner},
    "no_privileges": {"type": "bool", "default": VerifyRequest.no_privileges},
    "role": {"type": "str"},
    "jobs": {"type": "int"},
    "state_dir": {"type": "path"},
    "correlation_id": {"type": "str"},
}

INFO_OPTIONS: Spec = {
    "login_db": {"type": "str"},
    "backup_key": {"type": "str", "no_log": False},
    "details": {"type": "int", "default": LIST_DETAILS},
    "state_dir": {"type": "path"},
}

PRUNE_OPTIONS: Spec = {
    "login_db": {"type": "str"},
    "globals": {"type": "bool", "default": PruneRequest.globals},
    "correlation_id": {"type": "str"},
}

NOTIFY_OPTIONS: Spec = {
    "ping_url": {"type": "str", "no_log": True},
    "webhook_url": {"type": "str", "no_log": True},
    "notify": {
        "type": "list",
        "elements": "str",
        "default": list(notify.DEFAULT_EVENTS),
        "choices": list(notify.EVENTS),
    },
}

BACKUP_SPEC: Spec = {**SERVER_OPTIONS, **STORAGE_OPTIONS, **BACKUP_OPTIONS, **NOTIFY_OPTIONS}
RESTORE_SPEC: Spec = {**SERVER_OPTIONS, **STORAGE_OPTIONS, **RESTORE_OPTIONS}
INFO_SPEC: Spec = {**STORAGE_OPTIONS, **RETENTION_OPTIONS, **INFO_OPTIONS}
PRUNE_SPEC: Spec = {**STORAGE_OPTIONS, **RETENTION_OPTIONS, **PRUNE_OPTIONS}
VERIFY_SPEC: Spec = {**SERVER_OPTIONS, **STORAGE_OPTIONS, **VERIFY_OPTIONS, **NOTIFY_OPTIONS}
