# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""pack_context.py ROOT [ARCHIVE]: what the image is built from, out of the collection at ROOT.

Prints its sha256, and writes it to ARCHIVE as a tar file. Both depend on names and contents alone, not on dates, owners
or on how the collection was installed. Runs on the controller.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from pathlib import Path

CONTEXT = (".dockerignore", "Dockerfile", "docker", "plugins/module_utils/_pgstream")
LEFT_OUT = ("__pycache__", "demo-secrets")


def files(root: Path) -> list[Path]:
    """Relative paths, sorted."""
    found = []
    for name in CONTEXT:
        top = root / name
        found += [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
    return sorted(path.relative_to(root) for path in found if not set(LEFT_OUT) & set(path.parts))


def pack(root: Path) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in files(root):
            content = (root / path).read_bytes()
            member = tarfile.TarInfo(path.as_posix())
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def main() -> int:
    root = Path(sys.argv[1])
    if not (root / "Dockerfile").is_file():
        print("no Dockerfile in %s: is the collection whole?" % root, file=sys.stderr)
        return 1
    packed = pack(root)
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_bytes(packed)
    print(hashlib.sha256(packed).hexdigest())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
