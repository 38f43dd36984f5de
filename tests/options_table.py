# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Each option under all its names, as docs/OPTIONS.md: `python -m tests.options_table > docs/OPTIONS.md`.

Modules, command, playbooks and role are asked for what they have; only which variable of the environment stands for
which option is written here. tests/unit/test_options.py shows that the two do the same.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Set

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "plugins" / "module_utils"), str(REPOSITORY / "playbooks" / "collections")]

from _pgstream import cli, config  # noqa: E402 (after sys.path, as what follows)
from ansible_collections.pgstream.backup.plugins.module_utils import _specs  # noqa: E402

SPECS: Dict[str, Dict[str, Dict[str, Any]]] = {
    "backup": _specs.BACKUP_SPEC,
    "restore": _specs.RESTORE_SPEC,
    "verify": _specs.VERIFY_SPEC,
    "info": _specs.INFO_SPEC,
    "prune": _specs.PRUNE_SPEC,
}
COMMANDS = {"info": "list"}  # verbs of the command that are not called as their module
ENVIRONMENT = {
    "login_host": "POSTGRES_HOST",
    "login_unix_socket": "POSTGRES_HOST",
    "login_port": "POSTGRES_PORT",
    "login_user": "POSTGRES_USER",
    "login_password": "POSTGRES_PASSWORD",
    "login_db": "POSTGRES_DB",
    "databases": "BACKUP_DATABASES",
    "exclude_databases": "BACKUP_EXCLUDE_DATABASES",
    "globals": "BACKUP_GLOBALS",
    "globals_passwords": "BACKUP_GLOBALS_PASSWORDS",
    "ssl_mode": "PGSSLMODE",
    "ca_cert": "PGSSLROOTCERT",
    "ssl_cert": "PGSSLCERT",
    "ssl_key": "PGSSLKEY",
    "pg_bindir": "POSTGRES_BINDIR",
    "bucket": "RCLONE_S3_BUCKET",
    "directory": "BACKUP_STORE",
    "rclone_remote": "BACKUP_STORE",
    "rclone_config": "RCLONE_CONFIG",
    "rclone_path": "BACKUP_RCLONE_PATH",
    "prefix": "BACKUP_PREFIX",
    "endpoint_url": "RCLONE_S3_ENDPOINT",
    "region": "RCLONE_S3_REGION",
    "access_key": "RCLONE_S3_ACCESS_KEY_ID",
    "secret_key": "RCLONE_S3_SECRET_ACCESS_KEY",
    "session_token": "RCLONE_S3_SESSION_TOKEN",
    "profile": "AWS_PROFILE",
    "aws_ca_bundle": "AWS_CA_BUNDLE",
    "addressing_style": "BACKUP_S3_ADDRESSING_STYLE",
    "checksums": "BACKUP_S3_CHECKSUMS",
    "encryption_mode": "RCLONE_S3_SERVER_SIDE_ENCRYPTION",
    "encryption_kms_key_id": "RCLONE_S3_SSE_KMS_KEY_ID",
    "sse_customer_key": "RCLONE_S3_SSE_CUSTOMER_KEY_BASE64",
    "age_recipients": "BACKUP_AGE_RECIPIENTS",
    "age_identity": "BACKUP_AGE_IDENTITY",
    "age_identity_file": "BACKUP_AGE_IDENTITY_FILE",
    "stall_timeout": "BACKUP_STALL_TIMEOUT",
    "backup_key": "BACKUP_KEY",
    "fresh_within": "BACKUP_FRESH_WITHIN",
    "compression": "BACKUP_COMPRESSION",
    "compression_level": "BACKUP_COMPRESSION_LEVEL",
    "jobs": "BACKUP_JOBS",
    "lock_timeout": "BACKUP_LOCK_TIMEOUT",
    "timeout": "BACKUP_TIMEOUT",
    "level": "BACKUP_VERIFY_LEVEL",
    "details": "BACKUP_LIST_DETAILS",
    "state_dir": "BACKUP_STATE_DIR",
    "ping_url": "BACKUP_PING_URL",
    "webhook_url": "BACKUP_WEBHOOK_URL",
    "notify": "BACKUP_NOTIFY",
    **{option: "BACKUP_" + option.upper() for option in _specs.RETENTION_OPTIONS},
}
#: Flags that are neither those of a variable nor called as the option.
FLAGS = {
    "login_db": "--target-db",
    "keep_old": "--drop-old",
    "analyze": "--no-analyze",
    "content": "--data-only",
}
#: Flags beside these.
MORE_FLAGS = {"content": ", `--schema-only`", "globals": ", `--globals-only`"}
#: Variables of role and playbooks that are not `pgbackup_` and the option.
ROLE = {"login_db": "pgbackup_databases", "level": "pgbackup_verify_level"}
#: Variables of the playbooks that stand in an expression there.
PLAYBOOKS = {
    "databases": {"pgbackup_databases"},
    "exclude_databases": {"pgbackup_exclude_databases"},
    "globals": {"pgbackup_globals", "restore_globals"},
    "source_db": {"pgbackup_database"},
    "level": {"pgbackup_verify_level"},
}
HEAD = """# Every option of the modules, under all its names

Generated from the code by `python -m tests.options_table > docs/OPTIONS.md`. What an option does is in
`ansible-doc pgstream.backup.pg_stream_backup` and its like, in the [README](../README.md#the-command) for the
environment, and in [the role's README](../roles/pgbackup/README.md). A variable that is a secret can also come as
`NAME_FILE`. Modules are named without `pg_stream_`. What only the command and the role have (schedules,
health, metrics) is in these two READMEs.
"""


class Row(NamedTuple):
    option: str
    modules: List[str]
    spec: Dict[str, Any]
    variable: str
    flag: str
    playbooks: List[str]
    role: str


def flags() -> Dict[str, Set[str]]:
    """Verb of the command -> its flags."""
    (verbs,) = [each for each in cli._parser()._actions if isinstance(each, argparse._SubParsersAction)]
    return {name: set(parser._option_string_actions) for name, parser in verbs.choices.items()}


def flag_of(option: str, modules: List[str]) -> str:
    known = set().union(*(flags()[COMMANDS.get(module, module)] for module in modules))
    named = "--" + option.replace("_", "-")
    variable = config.FLAGS.get(ENVIRONMENT.get(option, ""), "")
    return next((each for each in (variable, FLAGS.get(option, ""), named, named[:-1]) if each in known), "")


def playbook_variables() -> Dict[str, Set[str]]:
    """Option -> the variables that playbooks give it, of those that they explain at their top."""
    found: Dict[str, Set[str]] = {}
    for path in sorted((REPOSITORY / "playbooks").glob("*.yml")):
        head, _name, body = path.read_text().partition("\n- name:")
        explained = set(re.findall(r"\w+", head))
        for option, variable in re.findall(r'^ +(\w+): "\{\{ (\w+)\b', body, re.M):
            if variable in explained:
                found.setdefault(option, set()).add(variable)
    return found


def rows() -> List[Row]:
    defaults = yaml.safe_load((REPOSITORY / "roles" / "pgbackup" / "defaults" / "main.yml").read_text())
    given, seen = playbook_variables(), []
    for option in dict.fromkeys(option for spec in SPECS.values() for option in spec):
        modules = [module for module, spec in SPECS.items() if option in spec]
        role = ROLE.get(option, "pgbackup_" + option)
        names = sorted(PLAYBOOKS.get(option) or given.get(option, set()))
        variable, flag = ENVIRONMENT.get(option, ""), flag_of(option, modules)
        seen.append(
            Row(option, modules, SPECS[modules[0]][option], variable, flag, names, role if role in defaults else "")
        )
    return seen


def described(spec: Dict[str, Any]) -> str:
    """Type, default and choices."""
    kind = "list of " + spec["elements"] if spec["type"] == "list" else spec["type"]
    default = spec.get("default")
    if default in (None, "", [], {}):
        shown = ""
    else:
        shown = ", ".join(default) if isinstance(default, list) else str(default)
    choices = ", ".join("`%s`" % each for each in spec.get("choices", []))
    return kind + (", default `%s`" % shown if shown else "") + (": " + choices if choices else "")


def render() -> str:
    lines = [
        HEAD,
        "| option | modules | type | environment | flag | playbooks | role |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        modules = "all" if len(row.modules) == len(SPECS) else ", ".join(row.modules)
        names = [row.variable, row.flag, *([", ".join("`%s`" % name for name in row.playbooks)]), row.role]
        shown = [name if "`" in name or not name else "`%s`" % name for name in names]
        shown[1] += MORE_FLAGS.get(row.option, "")
        lines.append("| `%s` | %s | %s | %s |" % (row.option, modules, described(row.spec), " | ".join(shown)))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
