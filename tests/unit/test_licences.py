# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every file says under which licence it is, in its first lines."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Iterator

ROOT = Path(__file__).resolve().parents[2]
HEADER = (
    "Copyright (c) 2026 the pgstream.backup authors",
    "GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)",
    "SPDX-License-Identifier: GPL-3.0-or-later",
)
#: What is made here and not kept, by .gitignore.
MADE = {".git", ".venv", ".cache", ".ansible", ".hypothesis", "build", "dist", "__pycache__", "output", "collections"}
#: Where there is no place for it: text that people read, the licence itself, JSON, values, what is generated.
WITHOUT = re.compile(
    r".*\.md|LICENSE|.*\.json|docker/demo-secrets/\w+|changelogs/(changelog|\.plugin-cache)\.yaml|.*\.gz"
)


def files(directory: Path) -> Iterator[Path]:
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            if entry.name not in MADE and not entry.name.endswith(("_cache", ".egg-info")):
                yield from files(Path(entry.path))
        elif entry.is_file(follow_symlinks=False) and entry.name != ".git" and not entry.name.endswith(".pyc"):
            yield Path(entry.path)


def test_every_file_has_the_licences_header() -> None:
    found = {path.relative_to(ROOT).as_posix(): path for path in files(ROOT)}
    assert len(found) > 200 and "plugins/module_utils/_pgstream/backup.py" in found
    bare = []
    for name, path in found.items():
        if WITHOUT.fullmatch(name) or not path.stat().st_size:
            continue
        beginning = path.read_text("utf-8", "replace")[:600].splitlines()
        lines = [line.strip("#/*{}-; ") for line in beginning]
        if not any(tuple(lines[at : at + 3]) == HEADER for at in range(4)):
            bare.append(name)
    assert bare == []
