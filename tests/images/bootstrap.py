# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A base image of a Debian release, made by debootstrap as root, slimmed as the official slim images are.

It also trusts the certificate authorities that this machine was given (EXTRA_CA_FILE, and Debian's place for local
ones), so that builds upon it work behind a TLS-inspecting proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import List

import engine

LOCAL_CAS = Path("/usr/local/share/ca-certificates")
# As in the official slim images.
LEFT_OUT = ("/usr/share/doc", "/usr/share/man", "/usr/share/locale", "/usr/share/info", "/usr/share/groff",
            "/usr/share/lintian", "/usr/share/linda")


def local_cas() -> List[Path]:
    """Certificate authorities that somebody added to this machine, in PEM."""
    named = os.environ.get("EXTRA_CA_FILE", "")
    found = sorted(LOCAL_CAS.rglob("*.crt")) if LOCAL_CAS.is_dir() else []
    return ([Path(named)] if named and Path(named).is_file() and Path(named).stat().st_size else []) + found


def bootstrap(tag: str, suite: str, label: str) -> None:
    """Make a base image of a Debian release. Raises engine.Missing."""
    if os.geteuid() != 0 or not engine.which("debootstrap"):
        raise engine.Missing("%s can neither be pulled nor built: run as root with debootstrap installed" % tag)
    with tempfile.TemporaryDirectory(prefix="pgbackup-base-") as place:
        root = Path(place) / "root"
        engine.run([str(engine.which("debootstrap")), "--variant=minbase", suite, str(root)])
        sources = root / "etc/apt/sources.list"
        mirror = sources.read_text().split()[1]  # "deb MIRROR SUITE main": debootstrap's own choice
        sources.write_text(
            "deb {0} {1} main\ndeb {0} {1}-updates main\ndeb {0}-security {1}-security main\n".format(mirror, suite)
        )
        slim(root)
        trust(root)
        with subprocess.Popen(["tar", "-C", str(root), "-c", "."], stdout=subprocess.PIPE) as tar:
            assert tar.stdout is not None
            engine.docker("import", "--change", "LABEL " + label, "--change", 'CMD ["bash"]', "-", tag,
                          stdin=tar.stdout.fileno())
        if tar.returncode:
            engine.docker("rmi", tag)
            raise engine.Missing("%s: tar failed with status %d" % (tag, tar.returncode))


def slim(root: Path) -> None:
    """Leave out documentation, now and for packages to come, and what apt downloaded."""
    lines = ["path-exclude %s/*" % place for place in LEFT_OUT] + ["path-include /usr/share/doc/*/copyright"]
    (root / "etc/dpkg/dpkg.cfg.d/docker").write_text("\n".join(lines) + "\n")
    (root / "etc/apt/apt.conf.d/docker-clean").write_text(
        'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };\nAcquire::Languages "none";\n'
    )
    for place in LEFT_OUT:
        for path in sorted((root / place[1:]).rglob("*"), reverse=True):
            if path.name == "copyright" and not path.is_symlink():
                continue
            if path.is_dir() and not path.is_symlink():
                if not any(path.iterdir()):
                    path.rmdir()
            else:
                path.unlink()
    for place in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(root / place)
        (root / place / "partial").mkdir(parents=True) if place.endswith("lists") else (
            root / place / "archives/partial").mkdir(parents=True)
    for path in list((root / "var/log").glob("*.log")) + list((root / "var/cache/debconf").glob("*-old")):
        path.unlink()


def trust(root: Path) -> None:
    """Where ca-certificates, once installed, finds local authorities; its own bundle is then made with them."""
    place = root / "usr/local/share/ca-certificates"
    place.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(local_cas()):
        shutil.copyfile(path, place / ("machine-%d.crt" % number))
