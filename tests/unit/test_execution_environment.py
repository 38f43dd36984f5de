# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an execution environment installs is what the modules need and say that they need."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def listed(name: str) -> list:
    lines = (ROOT / "meta" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_what_is_named_is_there() -> None:
    """ansible-builder reads version 1 of this file, with paths from the collection's root."""
    told = yaml.safe_load((ROOT / "meta" / "execution-environment.yml").read_text(encoding="utf-8"))
    assert told["version"] == 1
    assert told["dependencies"] == {"python": "meta/ee-requirements.txt", "system": "meta/ee-bindep.txt"}


def test_python_packages_are_those_of_the_modules() -> None:
    needed = {re.split("[<>=~ ]", line)[0] for line in listed("ee-requirements.txt")}
    assert needed == {"boto3", "psycopg2-binary"}
    documented = "".join(path.read_text() for path in (ROOT / "plugins" / "doc_fragments").glob("*.py"))
    for package in needed:
        assert re.search(r"- %s\b" % package.replace("-binary", ""), documented), package


def test_the_client_programs_come_from_the_system() -> None:
    """As bindep has it: a package and the platform where it is called so."""
    platforms = dict(re.fullmatch(r"(\S+) \[platform:(\w+)\]", line).groups()[::-1] for line in listed("ee-bindep.txt"))
    assert platforms == {"dpkg": "postgresql-client", "rpm": "postgresql"}
