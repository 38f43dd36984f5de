# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lets the scenarios' tests `import testing`, and shows what the containers said when one fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "shared"))

import testing  # noqa: E402 (after sys.path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call" and report.failed:
        argv = ["docker", "ps", "--all", "--format", "{{.Names}}", "--filter", "name=" + testing.project()]
        for name in subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False).stdout.split():
            logs = subprocess.run(
                ["docker", "logs", "--tail", "40", name],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            ).stdout
            report.sections.append(("last words of " + name, logs))
    return report
