# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Remotes of rclone on real servers: `rclone serve sftp` and `webdav`, and the environment that configures a remote."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Dict, List

from tests.support.servers import _current_user, _Server, find_rclone


class RemoteServer(_Server):
    """`rclone serve PROTOCOL` of a private directory `root`: each object is a file there."""

    def __init__(self, protocol: str) -> None:
        super().__init__(_current_user())
        self.kind = protocol
        self._rclone = find_rclone()
        self.user, self.password = "backup", "word-" + secrets.token_hex(8)

    @property
    def root(self) -> Path:
        return self.base / "root"

    def _prepare(self) -> None:
        for name in ("root", "cache"):
            (self.base / name).mkdir(0o700)
        (self.base / "rclone.conf").touch(0o600)

    def _environment(self) -> Dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("RCLONE_")}
        return dict(kept, RCLONE_USER=self.user, RCLONE_PASS=self.password)

    def _argv(self) -> List[str]:
        return [self._rclone, "serve", self.kind, "--config", str(self.base / "rclone.conf"),
                "--cache-dir", str(self.base / "cache"), "--addr", "%s:%d" % (self.host, self.port),
                "--dir-cache-time", "10ms", str(self.root)]  # fmt: skip

    def _ready(self) -> bool:
        try:
            with socket.create_connection((self.host, self.port), 5) as connection:
                if self.kind == "webdav":
                    connection.sendall(b"OPTIONS / HTTP/1.0\r\n\r\n")
                return bool(connection.recv(64))
        except OSError:
            return False

    def remote(self, name: str, port: int = 0, **options: str) -> Dict[str, str]:
        """The variables that make it the remote `name`; `port`: of a proxy before it."""
        where = {"host": self.host, "port": str(port or self.port)}
        if self.kind == "webdav":  # as of the vendors that take a stream; `other` ones do not
            where = {"url": "http://%s:%d" % (self.host, port or self.port), "vendor": "rclone"}
        password = {"pass": obscured(self.password)}
        return variables(name, type=self.kind, user=self.user, **{**password, **where, **options})


def variables(name: str, **options: str) -> Dict[str, str]:
    """The remote `name`, as rclone reads it from the environment."""
    return {"RCLONE_CONFIG_%s_%s" % (name.upper(), option.upper()): value for option, value in options.items()}


def obscured(password: str) -> str:
    """As rclone wants passwords in a configuration."""
    done = subprocess.run([find_rclone(), "obscure", "-"], input=password, capture_output=True, text=True, check=True)
    return done.stdout.strip()
