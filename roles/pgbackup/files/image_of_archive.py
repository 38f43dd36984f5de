# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""image_of_archive.py ARCHIVE IMAGE: the id of IMAGE in an archive made by `docker save`, compressed or not.

Exit status 1 where the file is no such archive or has no image of that name. Runs on the controller.
"""

from __future__ import annotations

import json
import sys
import tarfile


def image_id(path: str, image: str) -> str:
    """`sha256:...`, as `docker image inspect` shows it. ValueError with a sentence, OSError."""
    wanted = image if ":" in image.rpartition("/")[2] else image + ":latest"
    try:
        with tarfile.open(path) as archive:
            manifest = archive.extractfile("manifest.json")
            assert manifest is not None
            images = json.load(manifest)
    except (tarfile.TarError, KeyError, AssertionError) as error:
        raise ValueError("%s was not made by docker save: %s" % (path, error)) from None
    for one in images:
        if wanted in (one.get("RepoTags") or []):
            # "<hex>.json", or "blobs/sha256/<hex>" from engine 25 on
            return "sha256:" + one["Config"].rpartition("/")[2].partition(".")[0]
    names = [name for one in images for name in one.get("RepoTags") or []]
    raise ValueError("%s has no image %s but %s" % (path, wanted, ", ".join(names) or "one without a name"))


def main() -> int:
    try:
        print(image_id(sys.argv[1], sys.argv[2]))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
