# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A version that is written in more than one place is the same in each: tests run what the image ships."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, Set

REPOSITORY = Path(__file__).resolve().parents[2]
PIN = re.compile(r"\b([A-Za-z0-9_-]+)(?:\[\w+\])?==([\w.]+)")
IMAGE = re.compile(r"\$\{(\w+_IMAGE):-([^}]+:[^}]+)\}")


def pins(path: str) -> Dict[str, str]:
    found = dict(PIN.findall((REPOSITORY / path).read_text()))
    assert found, path
    return found


def test_python_packages() -> None:
    tested = pins("requirements.txt")
    for path in ("docker/requirements.txt", "molecule/shared/target/Dockerfile"):
        for name, version in pins(path).items():
            assert tested[name] == version, (path, name)


def test_images() -> None:
    """compose.yml, Molecule's and the recipes that build what cannot be pulled."""
    done = subprocess.run([sys.executable, str(REPOSITORY / "tests" / "images" / "ensure.py"), "--env"],
                          stdout=subprocess.PIPE, encoding="utf-8", check=True)
    recipes = dict(line.split("=", 1) for line in done.stdout.splitlines())
    seen: Set[str] = set()
    for path in ("compose.yml", "molecule/shared/compose.yml"):
        for variable, tag in IMAGE.findall((REPOSITORY / path).read_text()):
            if variable in recipes:
                assert recipes[variable] == tag, (path, variable)
                seen.add(variable)
    assert seen == set(recipes)
