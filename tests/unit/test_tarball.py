# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is published: the files of the collection's archive, and the release notes in it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Set

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
#: The whole of it; a file that none of these names does not belong there.
WANTED = r"""
MANIFEST\.json | FILES\.json | LICENSE | README\.md | CHANGELOG\.md | changelogs/(changelog|config)\.yaml
docs/[A-Z]+\.md
meta/(runtime|execution-environment)\.yml | meta/ee-(requirements|bindep)\.txt
playbooks/[a-z]+\.yml | playbooks/tasks/[a-z_]+\.yml
plugins/(modules|doc_fragments|module_utils|module_utils/_pgstream|module_utils/_pgstream/store)/[a-z0-9_]+\.py
roles/pgbackup/README\.md | roles/pgbackup/(defaults|meta|tasks|vars)/[a-z_]+\.yml
roles/pgbackup/files/[a-z_]+\.py | roles/pgbackup/templates/compose\.yml\.j2
Dockerfile | \.dockerignore | compose\.yml | monitoring/(alerts|tests)\.yml | monitoring/dashboard\.json
docker/[a-z-]+\.(sh|txt) | docker/bin/(pgbackup|[a-z-]+\.sh) | docker/lib/[a-z-]+\.(sh|py)
docker/demo-secrets/[a-z0-9_]+
"""
#: Galaxy's own (galaxy-importer, constants.py): it takes no archive with a content file of another name.
CONTENT_NAME = re.compile(r"^(?!.*__)[a-z_][0-9a-z_]*$")


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> Set[str]:
    place = tmp_path_factory.mktemp("built")
    env = dict(os.environ, ANSIBLE_HOME=str(place / "home"), LC_ALL="C.UTF-8")
    command = [str(BIN / "ansible-galaxy"), "collection", "build", str(ROOT), "--output-path", str(place)]
    subprocess.run(command, env=env, cwd=place, stdout=subprocess.PIPE, check=True)
    (archive,) = place.glob("pgstream-backup-*.tar.gz")
    with tarfile.open(archive) as opened:
        return {member.name for member in opened if not member.isdir()}


def test_nothing_else_is_in_it(names: Set[str]) -> None:
    patterns = [re.compile(text.strip()) for text in re.split(r" \| |\n", WANTED) if text.strip()]
    odd = sorted(name for name in names if not any(pattern.fullmatch(name) for pattern in patterns))
    assert odd == []
    idle = [pattern.pattern for pattern in patterns if not any(map(pattern.fullmatch, names))]
    assert idle == []


def test_nothing_is_left_out(names: Set[str]) -> None:
    """Whatever the plugins, playbooks and roles are of, and what the role builds its image from."""
    for top in ("plugins", "roles", "docker", "meta", "docs", "monitoring"):
        here = {path for path in (ROOT / top).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert {path.relative_to(ROOT).as_posix() for path in here} <= names
    plays = [path for pattern in ("*.yml", "tasks/*.yml") for path in (ROOT / "playbooks").glob(pattern)]
    assert {path.relative_to(ROOT).as_posix() for path in plays} <= names


def test_galaxy_takes_the_names(names: Set[str]) -> None:
    for name in names:
        path = Path(name)
        if path.parts[0] == "plugins" and path.stem != "__init__":
            assert CONTENT_NAME.match(path.stem), name


def test_release_notes_are_those_of_the_fragments(tmp_path: Path) -> None:
    """CHANGELOG.md and changelog.yaml are what `make changelog` writes."""
    for name in ("changelogs", "plugins", "meta", "playbooks", "roles"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("collections", "__pycache__"))
    shutil.copy(ROOT / "galaxy.yml", tmp_path)
    path = tmp_path / "changelogs" / "changelog.yaml"
    released = yaml.safe_load(path.read_text())
    version = yaml.safe_load((ROOT / "galaxy.yml").read_text())["version"]
    assert version in released["releases"]
    env = dict(os.environ, PATH="%s:%s" % (BIN, os.environ["PATH"]), HOME=str(tmp_path), LC_ALL="C.UTF-8")
    command = [str(BIN / "antsibull-changelog"), "generate", "--refresh", "--reload-plugins"]
    subprocess.run(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True)
    assert yaml.safe_load(path.read_text()) == released
    assert (tmp_path / "CHANGELOG.md").read_text() == (ROOT / "CHANGELOG.md").read_text()
