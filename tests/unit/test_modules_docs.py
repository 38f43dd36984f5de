# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is written twice agrees: documentation and argument spec, RETURN and results, groups, fragments, playbooks."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from ansible_collections.pgstream.backup.plugins.module_utils import _specs
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream import cluster_model, model

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path.stem for path in (ROOT / "plugins" / "modules").glob("pg_stream_*.py"))
PLAYBOOKS = ["backup", "drill", "list", "prune", "restore", "verify"]
FAILURE = {"stage", "hint", "exit_code", "correlation_id"}


@pytest.fixture(scope="module")
def documented():
    """Name -> what ansible-doc makes of the module's documentation and its fragments."""
    names = ["pgstream.backup." + name for name in MODULES]
    command = [str(Path(sys.executable).with_name("ansible-doc")), "--json", "--playbook-dir", str(ROOT / "playbooks")]
    env = dict(os.environ, LC_ALL="C.UTF-8")
    done = subprocess.run(command + names, env=env, cwd="/", stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    return {name: found["pgstream.backup." + name] for name in MODULES}


@pytest.fixture(scope="module")
def runtime():
    return yaml.safe_load((ROOT / "meta" / "runtime.yml").read_text(encoding="utf-8"))


def spec_of(name):
    """The argument spec, as the module gives it to AnsibleModule."""
    module = importlib.import_module("ansible_collections.pgstream.backup.plugins.modules." + name)

    class Seen(Exception):
        pass

    def seen(**given):
        raise Seen(given)

    original, module.AnsibleModule = module.AnsibleModule, seen
    try:
        with pytest.raises(Seen) as caught:
            module.main()
    finally:
        module.AnsibleModule = original
    return caught.value.args[0]


def test_all_modules_are_here():
    names = {"pg_stream_backup", "pg_stream_restore", "pg_stream_info", "pg_stream_prune", "pg_stream_verify"}
    assert names <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_options_agree(documented, name):
    documentation = documented[name]["doc"]["options"]
    spec = spec_of(name)["argument_spec"]
    assert set(documentation) == set(spec)
    for option, said in documentation.items():
        for part, absent in (
            ("type", "str"),
            ("required", False),
            ("default", None),
            ("choices", None),
            ("elements", None),
            ("aliases", []),
        ):
            assert said.get(part, absent) == spec[option].get(part, absent), (option, part)
        assert said["description"], option


@pytest.mark.parametrize("name", MODULES)
def test_documentation_is_whole(documented, name):
    doc, examples = documented[name]["doc"], documented[name]["examples"]
    assert doc["version_added"] == "0.1.0"
    assert not [option for option, said in doc["options"].items() if "version_added" in said]
    assert {"check_mode", "diff_mode", "idempotent", "platform", "action_group"} <= set(doc["attributes"])
    for task in yaml.safe_load(examples):
        (used,) = [key for key in task if "." in key]
        if used == "pgstream.backup." + name:
            assert set(task[used]) <= set(doc["options"]), task["name"]


@pytest.mark.parametrize("name", MODULES)
def test_check_mode_is_supported_as_documented(documented, name):
    supported = documented[name]["doc"]["attributes"]["check_mode"]["support"] == "full"
    assert spec_of(name)["supports_check_mode"] is supported


@pytest.mark.parametrize("name", MODULES)
def test_action_groups(documented, runtime, name):
    groups = {group for group, members in runtime["action_groups"].items() if name in members}
    assert "pgstream" in groups
    options = spec_of(name)["argument_spec"]
    assert ("postgres" in groups) == (set(_specs.SERVER_OPTIONS) <= set(options))
    membership = documented[name]["doc"]["attributes"]["action_group"]["membership"]
    assert set(membership) == {"pgstream.backup." + group for group in groups}


def names_of(kind):
    return {field.name for field in fields(kind)}


@pytest.mark.parametrize(
    "name, result", [("pg_stream_backup", model.BackupResult), ("pg_stream_restore", model.RestoreResult)]
)
def test_every_field_of_a_result_is_documented(documented, name, result):
    returned = documented[name]["return"]
    more = {"backups"} if name == "pg_stream_backup" else set()
    assert set(returned) == (names_of(result) - {"changed"}) | FAILURE | more
    assert set(returned["table_rows"]["contains"]) == names_of(model.TableResult)


def test_every_field_of_several_backups_is_documented(documented):
    returned = documented["pg_stream_backup"]["return"]
    assert names_of(cluster_model.ClusterResult) == names_of(model.BackupResult) | {"backups"}
    assert set(returned["backups"]["contains"]) == names_of(cluster_model.Part)


def test_every_field_of_a_pruning_is_documented(documented):
    returned = documented["pg_stream_prune"]["return"]
    assert set(returned) == (names_of(model.PruneResult) - {"changed"}) | FAILURE
    assert set(returned["kept"]["contains"]) == names_of(model.KeptBackup)
    assert set(returned["removed"]["contains"]) == names_of(model.RemovedBackup)


@pytest.mark.parametrize("name", ["list", "prune"])
def test_playbooks_pass_the_retention_policy(name):
    text = (ROOT / "playbooks" / (name + ".yml")).read_text(encoding="utf-8")
    for option in _specs.RETENTION_OPTIONS:
        assert "pgbackup_%s" % option in text.split("\n- name:")[0], option
        assert '%s: "{{ pgbackup_%s | default(omit) }}"' % (option, option) in text


def test_every_field_of_a_verification_is_documented(documented):
    assert set(documented["pg_stream_verify"]["return"]) == (names_of(model.VerifyResult) - {"changed"}) | FAILURE


def test_every_field_of_the_listing_is_documented(documented):
    returned = documented["pg_stream_info"]["return"]
    assert set(returned) == {"backups", "backup"} | FAILURE
    assert set(returned["backups"]["contains"]) == names_of(model.BackupInfo)
    backup = returned["backup"]["contains"]
    assert set(backup) == names_of(model.Index) | {"key", "url"}
    assert set(backup["tables"]["contains"]) == names_of(model.Table)
    assert set(backup["database"]["contains"]) == names_of(model.DatabaseInfo)


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_playbooks_pass_every_shared_option(name):
    text = (ROOT / "playbooks" / (name + ".yml")).read_text(encoding="utf-8")
    (play,) = yaml.safe_load(text)
    wanted = {"pgstream": set(_specs.STORAGE_OPTIONS), "postgres": set(_specs.SERVER_OPTIONS) | {"jobs"}}
    if name in ("list", "prune"):
        del wanted["postgres"]
    given = play["module_defaults"]
    assert {group: set(given["group/pgstream.backup." + group]) for group in wanted} == wanted
    header = text.split("\n- name:")[0]
    for options in given.values():
        for option, value in options.items():
            assert value == "{{ pgbackup_%s | default(omit) }}" % option
            assert "pgbackup_" + option in header


@pytest.mark.parametrize("name", ["backup", "drill", "prune", "restore", "verify"])
def test_playbooks_pass_every_option_of_their_module(name):
    (play,) = yaml.safe_load((ROOT / "playbooks" / (name + ".yml")).read_text(encoding="utf-8"))
    module = "pg_stream_" + {"drill": "verify"}.get(name, name)
    (given,) = [task["pgstream.backup." + module] for task in play["tasks"] if "pgstream.backup." + module in task]
    shared = [option for options in play["module_defaults"].values() for option in options]
    assert set(given) | set(shared) == set(spec_of(module)["argument_spec"])


def test_versions_agree():
    galaxy = yaml.safe_load((ROOT / "galaxy.yml").read_text(encoding="utf-8"))
    assert galaxy["version"] == model.ENGINE_VERSION
