# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An option does the same under each of its names: module, environment, flag, role. docs/OPTIONS.md lists them."""

from __future__ import annotations

import base64
import re
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import pytest
import yaml
from _pgstream import config
from _pgstream.cluster_model import ClusterRequest
from _pgstream.config_cluster import cluster_parts
from _pgstream.config_retention import list_request, prune_request
from _pgstream.model import Filters, RestoreRequest, Server, Storage, VerifyRequest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.pgstream.backup.plugins.module_utils import _args

from tests import options_table
from tests.support.agekeys import KeyPair

ROOT = Path(__file__).resolve().parents[2]
ROLE = ROOT / "roles" / "pgbackup"
PLAYBOOKS = ROOT / "playbooks"
ROWS = {row.option: row for row in options_table.rows()}
PAIR = KeyPair()
KEY = base64.b64encode(bytes(32)).decode()
BASE = {"login_host": "db", "login_user": "u", "login_db": "shop", "bucket": "b"}
BASE_ENVIRONMENT = {"POSTGRES_HOST": "db", "POSTGRES_USER": "u", "POSTGRES_DB": "shop", "RCLONE_S3_BUCKET": "b"}
SEVERAL = {"login_db": None, "databases": ["all"]}
NO_BUCKET: Dict[str, Any] = {"bucket": None}
#: Option -> its value, as the environment has it, and what goes with it in both.
SAMPLES: Dict[str, Tuple[Any, str, Dict[str, Any], Dict[str, str]]] = {
    "login_unix_socket": ("/run/x", "/run/x", {"login_host": None}, {}),
    "databases": (["a b", "c*"], '"a b", c*', {"login_db": None}, {"POSTGRES_DB": ""}),
    "exclude_databases": (["x"], "x", SEVERAL, {"POSTGRES_DB": "", "BACKUP_DATABASES": "all"}),
    "globals": (True, "true", {}, {}),
    "globals_passwords": (True, "true", {"globals": True}, {"BACKUP_GLOBALS": "true"}),
    "ssl_mode": ("require", "require", {}, {}),
    "directory": ("/d", "file:///d", NO_BUCKET, {"RCLONE_S3_BUCKET": ""}),
    "rclone_remote": ("r:p", "rclone:r:p", NO_BUCKET, {"RCLONE_S3_BUCKET": ""}),
    "endpoint_url": ("https://s3.example.com", "https://s3.example.com", {}, {}),
    "access_key": ("A", "A", {"secret_key": "S"}, {"RCLONE_S3_SECRET_ACCESS_KEY": "S"}),
    "secret_key": ("S", "S", {"access_key": "A"}, {"RCLONE_S3_ACCESS_KEY_ID": "A"}),
    "addressing_style": ("virtual", "virtual", {}, {}),
    "checksums": ("when_supported", "when_supported", {}, {}),
    "encryption_mode": ("AES256", "AES256", {}, {}),
    "sse_customer_key": (KEY, KEY, {}, {}),
    "age_recipients": ([PAIR.recipient], PAIR.recipient, {}, {}),
    "age_identity": (PAIR.identity, PAIR.identity, {}, {}),
    "compression": ("zstd", "zstd", {}, {}),
    "level": ("index", "index", {}, {}),
}
for with_remote in ("rclone_config", "rclone_path"):
    variables = {"RCLONE_S3_BUCKET": "", "BACKUP_STORE": "rclone:r:p"}
    SAMPLES[with_remote] = ("/x", "/x", {**NO_BUCKET, "rclone_remote": "r:p"}, variables)
with_keys = {"RCLONE_S3_ACCESS_KEY_ID": "A", "RCLONE_S3_SECRET_ACCESS_KEY": "S"}
SAMPLES["session_token"] = ("T", "T", {"access_key": "A", "secret_key": "S"}, with_keys)
with_kms = {"RCLONE_S3_SERVER_SIDE_ENCRYPTION": "aws:kms"}
SAMPLES["encryption_kms_key_id"] = ("k", "k", {"encryption_mode": "aws:kms"}, with_kms)
#: Not part of a request: tested by test_notify, and where ledger and verification are.
ELSEWHERE = {"ping_url", "webhook_url", "notify", "state_dir"}
COMPARED = [option for option, row in ROWS.items() if row.variable and option not in ELSEWHERE]


def by_module(module: str, given: Mapping[str, Any]) -> Any:
    spec = options_table.SPECS[module]
    base: Dict[str, Any] = {option: value for option, value in BASE.items() if option in spec}
    if module == "verify":
        base.update(backup_key="latest", source_db="shop", level="restore")
    result = ArgumentSpecValidator(spec).validate({**base, **given})
    assert not result.error_messages
    return getattr(_args, module + "_request")(result.validated_parameters)


def by_environment(module: str, given: Mapping[str, str], flags: Mapping[str, str]) -> Any:
    environ = {**BASE_ENVIRONMENT, **given}
    if module == "verify":
        environ.setdefault("BACKUP_VERIFY_LEVEL", "restore")
        return config.verify_request(environ, flags, VerifyRequest(Storage(), "latest"))
    if module == "restore":
        return config.restore_request(environ, flags, RestoreRequest(Server(), Storage(), key="latest"))
    if module == "prune":
        return prune_request(environ, flags, "")
    if module == "info":
        return list_request(environ, flags)
    one, wanted = cluster_parts(environ, flags, Filters(), False, "", False)
    return ClusterRequest(one, wanted.databases, wanted.exclude, wanted.globals, wanted.globals_passwords)


def flat(value: Any, name: str = "") -> Dict[str, Any]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {path: leaf for key, each in value.items() for path, leaf in flat(each, "%s.%s" % (name, key)).items()}
    if isinstance(value, tuple) and any(map(is_dataclass, value)):  # of several; which one is where differs
        return {path: leaf for each in value if is_dataclass(each) or isinstance(each, int)
                for path, leaf in flat(each, name).items()}  # fmt: skip
    return {name: value}


def changes(before: Any, after: Any) -> Dict[str, Any]:
    first, second = flat(before), flat(after)
    return {path: value for path, value in second.items() if first[path] != value}


def sample(option: str, tmp_path: Path) -> Tuple[Any, str, Dict[str, Any], Dict[str, str]]:
    if option == "age_identity_file":
        path = tmp_path / "key"
        path.write_text(PAIR.identity)
        return str(path), str(path), {}, {}
    if option in SAMPLES:
        return SAMPLES[option]
    spec = ROWS[option].spec
    if spec["type"] == "int":
        return 7, "7", {}, {}
    text = "7h" if option.endswith(("_within", "timeout")) else "x"
    return text, text, {}, {}


@pytest.mark.parametrize("option", COMPARED)
def test_option_and_variable_do_the_same(option: str, tmp_path: Path) -> None:
    """So does the flag that stands for the variable."""
    row = ROWS[option]
    value, text, more, variables = sample(option, tmp_path)
    module = row.modules[0]
    wanted = changes(by_module(module, {}), by_module(module, {**more, option: value}))
    before = by_environment(module, {}, {})
    assert wanted
    found = changes(before, by_environment(module, {**variables, row.variable: text}, {}))
    if option == "level":
        found = {path: each for path, each in found.items() if not path.startswith(".server")}  # which then none needs
    assert found == wanted
    if row.variable in config.FLAGS:
        assert row.flag == config.FLAGS[row.variable]
        if option != "level":
            assert changes(before, by_environment(module, variables, {row.variable: text})) == wanted


@pytest.mark.parametrize("module", options_table.SPECS)
def test_what_is_not_given_is_the_same(module: str) -> None:
    """But for the level that the comparison itself needs, and the key of a restore."""
    given = {"backup_key": "latest", "source_db": "shop", "login_db": "shop"} if module == "restore" else {}
    own, other = flat(by_module(module, given)), flat(by_environment(module, {}, {}))
    different = {path for path in own if path in other and own[path] != other[path]}
    assert different <= {".server.ssl_mode", ".backup.server.ssl_mode"}


def test_a_variable_stands_for_each_option_or_a_flag_does() -> None:
    """What only modules have, with the reason."""
    nowhere = {row.option for row in ROWS.values() if not row.variable and not row.flag}
    assert nowhere == {
        "connect_params",  # libpq reads PG* variables itself
        "maintenance_db",
        "validate_certs",  # a CA is named instead
        "correlation_id",  # the command makes one
    }
    assert [row.option for row in ROWS.values() if not row.playbooks] == []
    heads = "".join(path.read_text().partition("\n- name:")[0] for path in PLAYBOOKS.glob("*.yml"))
    explained = set(re.findall(r"\w+", heads))
    assert {name for row in ROWS.values() for name in row.playbooks} <= explained


def test_every_flag_is_an_options_or_the_commands_own() -> None:
    used = {row.flag for row in ROWS.values()} | {"--keep-old", "--schema-only"}
    own = {"--globals-only", "-h", "--help", "--debug", "--dry-run", "--json", "--table", "--listen", "--textfile"}
    for verb, flags in options_table.flags().items():
        assert flags - used - own == set(), verb


def test_the_role_passes_each_variable_on() -> None:
    template = (ROLE / "templates" / "compose.yml.j2").read_text()
    secrets: Dict[str, Dict[str, str]] = yaml.safe_load((ROLE / "vars" / "main.yml").read_text())["pgbackup_secrets"]
    secret = {
        (re.sub("_FILE$", "", each["variable"]), name)
        for each in secrets.values()
        for name in re.findall(r"pgbackup_\w+", each["value"])
    }
    defaults: Dict[str, Any] = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text())
    missing: List[str] = []
    for row in ROWS.values():
        if not row.role:
            continue
        line = re.search(r"'%s': .*\b(%s|pgbackup_names)\b" % (row.variable, row.role), template)
        if line is None and (row.variable, row.role) not in secret:
            missing.append(row.option)
        default = row.spec.get("default")
        assert defaults[row.role] in ("", 0, [], default), row.option
    assert missing == ["rclone_config"]  # a file that is mounted: see test_role_specs


def test_the_table_is_up_to_date() -> None:
    assert (ROOT / "docs" / "OPTIONS.md").read_text() == options_table.render(), "run what its first lines say"
