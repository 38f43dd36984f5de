# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of the container tests.

engine    a Docker engine, its plugins and the images of tests/images/recipes.py: made available or the tests fail
image     the image pgbackup, built by the documented line as it is written
tools     the tags of the images that tests run by themselves
stack     compose.yml as a project of its own, with secrets and ports of its own; fresh for each test, gone after it
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Dict, Iterator

import pytest

from .stack import REPOSITORY, Stack


@pytest.fixture(scope="session")
def engine() -> None:
    done = subprocess.run([sys.executable, str(REPOSITORY / "tests" / "images" / "ensure.py"), "plugins", "base",
                           "postgres-15", "minio", "prometheus", "actionlint"], stderr=subprocess.PIPE, check=False)
    assert done.returncode == 0, done.stderr.decode()


@pytest.fixture(scope="session")
def image(engine: None) -> str:
    done = subprocess.run(["docker", "build", "-t", "pgbackup", "."], cwd=REPOSITORY, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, check=False)
    assert done.returncode == 0, done.stdout.decode()[-4000:]
    return "pgbackup"


@pytest.fixture(scope="session")
def tools(engine: None) -> Dict[str, str]:
    """The tags of all images of tests/images, by name."""
    done = subprocess.run([sys.executable, str(REPOSITORY / "tests" / "images" / "ensure.py"), "--list"],
                          stdout=subprocess.PIPE, encoding="utf-8", check=True)
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.fixture
def stack(image: str, tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path) as one:
        yield one
