# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/RECIPES.md: its variables exist, its environments are ones that the command takes, its YAML is YAML."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Dict, List

import pytest
import yaml
from _pgstream import config
from _pgstream.config_retention import prune_request
from _pgstream.model import Filters

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "RECIPES.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.M | re.S)
COMMANDS = re.findall(r"^    (ansible-playbook .*(?:\\\n.*)*)$", TEXT, re.M)


def explained(playbook: str) -> List[str]:
    """The words at a playbook's top."""
    head = (ROOT / "playbooks" / (playbook + ".yml")).read_text().partition("\n- name:")[0]
    return re.findall(r"\w+", head)


def test_every_variable_exists() -> None:
    role: Dict[str, Any] = yaml.safe_load((ROOT / "roles" / "pgbackup" / "defaults" / "main.yml").read_text())
    known = {word for path in (ROOT / "playbooks").glob("*.yml") for word in explained(path.stem)} | set(role)
    used = set(re.findall(r"\bpgbackup_\w+", TEXT))
    assert len(used) > 20
    assert used - known == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_playbook_is_given_is_explained_at_its_top(command: str) -> None:
    (playbook,) = re.findall(r"pgstream\.backup\.(\w+)", command)
    assert set(re.findall(r"-e (\w+)=", command)) <= set(explained(playbook)) | {"pgbackup_hosts"}


def test_there_is_a_recipe_for_each_playbook_that_is_named() -> None:
    assert len(COMMANDS) >= 6 and {kind for kind, _text in BLOCKS} == {"yaml", "ini"}
    for kind, text in BLOCKS:
        assert kind != "yaml" or isinstance(yaml.safe_load(text), dict)


def test_the_timers_environment_backs_up_and_prunes() -> None:
    (environment,) = [text for kind, text in BLOCKS if kind == "ini" and "POSTGRES_DB=" in text]
    environ = dict(line.split("=", 1) for line in environment.splitlines())
    request = config.backup_request(environ, {}, Filters(), False, "")
    assert (request.database, request.storage.bucket, request.storage.prefix) == ("shop", "company-backups", "db1")
    assert prune_request(environ, {}, "").retention.keep_daily == 14
    unit = next(text for kind, text in BLOCKS if "[Service]" in text)
    for module in re.findall(r"-m _pgstream\.(\w+)", unit):
        assert (ROOT / "plugins" / "module_utils" / "_pgstream" / (module + ".py")).is_file()


def test_the_cron_jobs_environment_is_a_backups(tmp_path: Path) -> None:
    (job,) = [yaml.safe_load(text) for kind, text in BLOCKS if "kind: CronJob" in text]
    spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    environ = {each["name"]: each["value"] for each in container["env"]}
    for name, path in environ.items():
        if name.endswith("_FILE"):
            (tmp_path / Path(path).name).write_text("secret")
            environ[name] = str(tmp_path / Path(path).name)
    request = config.backup_request(environ, {}, Filters(), False, "")
    assert request.server.password == request.storage.secret_key == "secret"
    (user,) = re.findall(r"useradd .*--uid (\d+)", (ROOT / "Dockerfile").read_text())
    assert spec["securityContext"]["runAsUser"] == int(user)
