# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`ansible-test sanity` of this checkout: `sanity.py [ARGUMENT ...]`, with the ansible-core of this environment.

ansible-test wants a directory ansible_collections/pgstream/backup that belongs to no other Git repository, so it gets a
copy. It makes an environment for each of its tests, below .cache/ansible-test, where the next run finds them again.
What it fetches comes from pip alone: its own way to a pip is a download from a host that not every site can reach.
"""

from __future__ import annotations

import ast
import configparser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Sequence

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = REPOSITORY / ".cache" / "ansible-test"
BIN = Path(sys.executable).parent
# Besides what is made here: the link by which a checkout finds itself, which no installed collection has.
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".cache", ".ansible", ".*_cache", ".hypothesis", "__pycache__", "build", "dist", "collections"
)
#: In the place of get-pip.py, which ansible-test runs with the new environment's interpreter.
GET_PIP = """\
import subprocess, sys
wanted = [argument for argument in sys.argv[1:] if argument not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([%r, "-m", "pip", "--python", sys.executable, "install", *wanted]))
"""


def prepare_home() -> None:
    """What ansible-test finds there in the place of a download, and pip's settings: variables it does not pass on."""
    spec = importlib.util.find_spec("ansible_test")
    source = Path(str((spec and spec.submodule_search_locations or [""])[0])) / "_internal" / "python_requirements.py"
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    for version in re.findall(r"\bpip='([0-9.]+)'", source.read_text()):
        (cache / ("get_pip_%s.py" % version.replace(".", "_"))).write_text(GET_PIP % sys.executable)
    settings = HOME / ".config" / "pip"
    settings.mkdir(parents=True, exist_ok=True)
    with open(settings / "pip.conf", "w", encoding="utf-8") as file:
        pip_settings().write(file)


def pip_settings() -> configparser.RawConfigParser:
    """Out of lines `section.name='value'`; those of the environment come last."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
    settings = configparser.RawConfigParser()
    for line in sorted(listed.stdout.splitlines(), key=lambda line: line.startswith(":env:")):
        name, _equals, value = line.partition("=")
        section, _dot, name = name.rpartition(".")
        section = "global" if section == ":env:" else section
        settings.read_dict({section: {name: ast.literal_eval(value)}})
    return settings


def main(argv: Sequence[str]) -> int:
    HOME.mkdir(mode=0o700, parents=True, exist_ok=True)
    prepare_home()
    with tempfile.TemporaryDirectory(prefix="pgstream-sanity-") as work:
        root = Path(work) / "ansible_collections" / "pgstream" / "backup"
        shutil.copytree(REPOSITORY, root, ignore=LEFT_OUT, symlinks=True)
        env = dict(os.environ, HOME=str(HOME), PATH="%s:/usr/bin:/bin" % BIN)
        version = "%d.%d" % sys.version_info[:2]
        command = [str(BIN / "ansible-test"), "sanity", "--color", "no", "--python", version, *argv]
        return subprocess.run(command, cwd=root, env=env, stdin=subprocess.DEVNULL, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
