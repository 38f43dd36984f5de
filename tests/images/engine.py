# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The Docker engine: found, or started where this may be done; asked by the `docker` command only.

It may be started by root where none answers and neither DOCKER_HOST nor a context points elsewhere. Then docker.io,
iptables and debootstrap are installed by apt where they lack. A started engine keeps its data in the default place, and
runs on until whoever asked for it stops it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

START_TIMEOUT = 60.0  # seconds
PROBE_TIMEOUT = 10.0  # seconds
PLUGINS = ("compose", "buildx")
LOG = "/var/log/pgbackup-test-dockerd.log"


class Missing(RuntimeError):
    """Something is not there and cannot be made; the text is one line that says what to do."""


def docker(*arguments: str, timeout: Optional[float] = None, stdin: Optional[int] = None,
           env: Optional[Dict[str, str]] = None) -> str:
    """The output of a docker command. Missing, with the end of what it said, when it fails."""
    return run(["docker", *arguments], timeout, stdin, env)


def run(argv: Sequence[str], timeout: Optional[float] = None, stdin: Optional[int] = None,
        env: Optional[Dict[str, str]] = None) -> str:
    done = subprocess.run(argv, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=timeout, check=False, env=dict(os.environ, **env) if env else None)
    said = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        raise Missing("%s failed: %s" % (" ".join(argv[:3]), " | ".join(lines[-8:])))
    return said


def try_docker(*arguments: str, timeout: Optional[float] = None) -> bool:
    try:
        docker(*arguments, timeout=timeout)
    except (Missing, OSError, subprocess.TimeoutExpired):
        return False
    return True


def image_label(tag: str, label: str) -> Optional[str]:
    """The label's value; empty where the image has none, None where there is no such image."""
    try:
        return docker("image", "inspect", "--format", '{{index .Config.Labels "%s"}}' % label, tag).strip()
    except Missing:
        return None


def registry_answers() -> bool:
    """Is there a registry to pull from? Asked of the engine, which may have a mirror or a proxy of its own, for a name
    that nobody has: that it is denied or not found is an answer, too."""
    try:
        docker("pull", "--quiet", "pgstream/no-such-image:none", timeout=PROBE_TIMEOUT)
    except Missing as error:
        return any(word in str(error) for word in ("denied", "manifest unknown", "not found"))
    except subprocess.TimeoutExpired:
        return False
    return True


def ensure_engine() -> Optional["subprocess.Popen[bytes]"]:
    """The dockerd that had to be started; None where an engine runs, or the system's init has started it.

    Missing where none runs and none may be started.
    """
    if shutil.which("docker"):
        if try_docker("version", timeout=PROBE_TIMEOUT):
            return None
        context = docker("context", "inspect", "--format", "{{.Name}}").strip()
        if os.environ.get("DOCKER_HOST") or context != "default":
            raise Missing("no Docker engine answers at %s: start it" % (os.environ.get("DOCKER_HOST") or context))
    if os.geteuid() != 0:
        raise Missing("no Docker engine answers: install docker.io (or docker-ce), start it, and join the group docker")
    lacking = [package for program, package in (("dockerd", "docker.io"), ("iptables", "iptables"),
                                                ("debootstrap", "debootstrap")) if not which(program)]
    if lacking:
        if not shutil.which("apt-get"):
            raise Missing("install a Docker engine and start it: no apt-get here to do it with")
        # Without starting services: a machine without an init system would fail, one with it starts them below.
        run(["apt-get", "update"])
        run(["apt-get", "install", "-y", "--no-install-recommends", "ca-certificates", *lacking],
            env={"DEBIAN_FRONTEND": "noninteractive"})
    if Path("/run/systemd/system").is_dir():
        run(["systemctl", "start", "docker"])
        return None
    return _start_dockerd()


def which(program: str) -> Optional[str]:
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def _start_dockerd() -> "subprocess.Popen[bytes]":
    dockerd = which("dockerd")
    assert dockerd
    with open(LOG, "ab") as log:
        process = subprocess.Popen([dockerd], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + START_TIMEOUT
    while not try_docker("version", timeout=PROBE_TIMEOUT):
        if process.poll() is not None or time.monotonic() > until:
            process.terminate()
            raise Missing("dockerd did not start; its last words are in %s" % LOG)
        time.sleep(0.2)
    return process


def missing_plugins() -> List[str]:
    return [name for name in PLUGINS if not try_docker(name, "version", timeout=PROBE_TIMEOUT)]


def install_plugins(names: Sequence[str], image: str) -> None:
    """Copy them out of the tools image to where the docker command of this user looks. Nothing is replaced."""
    directory = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "cli-plugins"
    directory.mkdir(parents=True, exist_ok=True)
    container = docker("create", image, "true").strip().splitlines()[-1]
    try:
        for name in names:
            docker("cp", "%s:/plugins/docker-%s" % (container, name), str(directory / ("docker-" + name)))
    finally:
        docker("rm", container)
    left = missing_plugins()
    if left:
        raise Missing("docker's plugins do not run here: %s; install them from your system" % ", ".join(left))
