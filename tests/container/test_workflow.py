# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The GitHub workflow: what actionlint says of it, and that it runs nothing that can change under it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Dict

from .stack import REPOSITORY

WORKFLOWS = REPOSITORY / ".github" / "workflows"


def actionlint(image: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["docker", "run", "--rm", "--network=none", "--user=%d" % os.getuid(),
         "--volume=%s:/workflows:ro" % directory, "--workdir=/workflows", image, "-no-color",
         *[path.name for path in sorted(directory.iterdir())]],
        capture_output=True, text=True, check=False
    )


def test_actionlint_finds_nothing(tools: Dict[str, str]) -> None:
    done = actionlint(tools["actionlint"], WORKFLOWS)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_actionlint_would_find_a_fault(tools: Dict[str, str], tmp_path: Path) -> None:
    text = (WORKFLOWS / "ci.yml").read_text()
    (tmp_path / "ci.yml").write_text(text.replace("matrix.core", "matrix.kernel", 1))
    done = actionlint(tools["actionlint"], tmp_path)
    assert done.returncode == 1 and '"kernel"' in done.stdout, done.stdout + done.stderr


def test_actions_are_pinned_by_commit() -> None:
    used = re.findall(r"\buses: (\S+)", (WORKFLOWS / "ci.yml").read_text())
    assert used and all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", action) for action in used), used


def test_it_calls_the_makefile_for_what_a_person_would_call_it_for() -> None:
    targets = set(re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    made = set(re.findall(r"^[^#\n]*\bmake ([a-z]+)", (WORKFLOWS / "ci.yml").read_text(), re.MULTILINE))
    assert made >= {"lint", "container", "molecule"} and made <= targets, made
