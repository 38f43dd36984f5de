# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Would Galaxy take this collection, and show its documentation? What it runs itself is run on the archive here.

galaxy-importer checks what is uploaded, antsibull-docs what becomes of the documentation. Both must be silent. Wants
tests/images/fetch_collections.py to have been run: references into other collections are looked up.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Dict, List

REPOSITORY = Path(__file__).resolve().parents[1]
PLACE = REPOSITORY / ".cache" / "galaxy"
REQUIREMENTS = Path(__file__).with_name("galaxy-requirements.txt")
BIN = PLACE / "bin"


def install() -> None:
    """The two into an environment of their own, with the ansible-core of this one; once for these requirements."""
    core = "ansible-core==" + metadata.version("ansible-core")
    stamp, wanted = PLACE / "stamp", "\n".join((sys.version, str(PLACE), core, REQUIREMENTS.read_text()))
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(PLACE)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(BIN / "python"), "install", "--quiet"]
    subprocess.run([*pip, "--requirement", str(REQUIREMENTS), core], check=True)
    stamp.write_text(wanted)


def said(command: List[str], env: Dict[str, str], cwd: Path) -> str:
    """What a command printed. Exits where it failed."""
    done = subprocess.run(
        command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", check=False
    )
    if done.returncode:
        raise SystemExit("%s: status %d\n%s" % (" ".join(command), done.returncode, done.stdout))
    return done.stdout


def main() -> int:
    install()
    env = dict(os.environ, PATH="%s:%s" % (BIN, os.environ["PATH"]), NO_COLOR="1")
    with tempfile.TemporaryDirectory(prefix="pgstream-galaxy-") as work:
        place = Path(work)
        env["ANSIBLE_HOME"] = work
        said([str(BIN / "ansible-galaxy"), "collection", "build", str(REPOSITORY), "--output-path", work], env, place)
        (archive,) = place.glob("pgstream-backup-*.tar.gz")
        imported = said([str(BIN / "python"), "-m", "galaxy_importer.main", archive.name], env, place)
        env["ANSIBLE_COLLECTIONS_PATH"] = str(REPOSITORY / ".cache" / "collections")
        lint = [str(BIN / "antsibull-docs"), "lint-collection-docs", "--plugin-docs"]
        references = ["--validate-collection-refs", "all", "--disallow-unknown-collection-refs"]
        documented = said([*lint, *references, str(REPOSITORY)], env, place)
    complaints = re.findall(r"(?m)^.*\b(?:WARNING|ERROR|CRITICAL)\b.*$", imported) + documented.splitlines()
    if complaints or "Importer processing completed successfully" not in imported:
        print(imported + documented)
        return 1
    print("galaxy-importer and antsibull-docs find nothing")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
