# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the container tests need, under which name it is pulled, and how it is built where it cannot be.

The base images come from debootstrap (bootstrap.py), all others from a Dockerfile beside this file on one of these.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List

import bootstrap
import engine

HERE = Path(__file__).resolve().parent
LABEL = "org.pgstream.backup.built-from"
CACHE = "pgbackup-test/cache"  # the same images under the hashes of what they are built from


@dataclass(frozen=True)
class Recipe:
    """One image. `base` is the name of another recipe, `variable` what compose.yml or the tests call it."""

    tag: str
    base: str = ""
    directory: str = ""
    arguments: Dict[str, str] = field(default_factory=dict)
    variable: str = ""
    pullable: bool = True
    wanted: bool = True  # made when no name is given

    def digest(self) -> str:
        """A hash of everything that the image is built from, but for the distribution's packages of the day."""
        base = RECIPES[self.base].digest() if self.base else ""
        found = hashlib.sha256(repr((self.tag, base, sorted(self.arguments.items()))).encode())
        files: List[Path] = [Path(bootstrap.__file__), *bootstrap.local_cas()]
        for path in sorted((HERE / self.directory).iterdir()) if self.directory else files:
            found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return found.hexdigest()[:16]

    def build(self, tag: str, digest: str) -> None:
        """Raises engine.Missing."""
        label = "%s=%s" % (LABEL, digest)
        if not self.directory:
            bootstrap.bootstrap(tag, self.arguments["suite"], label)
            return
        argv = ["build", "--tag", tag, "--label", label]
        arguments = dict(self.arguments, BASE=RECIPES[self.base].tag)
        for name, value in sorted(arguments.items()):
            argv += ["--build-arg", "%s=%s" % (name, value)]
        engine.docker(*argv, str(HERE / self.directory))


RECIPES: Dict[str, Recipe] = {
    "base": Recipe("debian:bookworm-slim", arguments={"suite": "bookworm"}),
    "base-trixie": Recipe("debian:trixie-slim", arguments={"suite": "trixie"}),
    "tools": Recipe("pgbackup-test/tools:1", base="base-trixie", directory="tools", pullable=False, wanted=False),
    "postgres-15": Recipe("postgres:15.14-bookworm", base="base", directory="postgres", arguments={"MAJOR": "15"},
                          variable="POSTGRES_IMAGE"),
    "postgres-17": Recipe("postgres:17.6-trixie", base="base-trixie", directory="postgres", arguments={"MAJOR": "17"},
                          variable="POSTGRES_17_IMAGE"),
    "minio": Recipe("minio/minio:RELEASE.2025-09-07T16-13-09Z", base="base-trixie", directory="minio",
                    arguments={"MINIO_VERSION": "v0.0.0-20260212201848-7aac2a2c5b7c"}, variable="MINIO_IMAGE"),
    "actionlint": Recipe("rhysd/actionlint:1.7.7", base="base-trixie", directory="actionlint",
                         arguments={"ACTIONLINT_VERSION": "v1.7.7"}),
    "prometheus": Recipe("prom/prometheus:v2.53.5", base="base", directory="prometheus", variable="PROMETHEUS_IMAGE"),
}
