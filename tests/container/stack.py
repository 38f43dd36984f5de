# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One run of compose.yml, apart from every other by project name, secrets and ports. Waits ask, they do not guess."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, TypeVar

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 240.0  # seconds until a condition that does not come is given up: the machine may be slow
Found = TypeVar("Found")


def sh(script: str, env: Optional[Dict[str, str]] = None, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """A command line as a person types it, in the repository's directory; stdout and stderr apart."""
    # A shell, because the documented lines are tested as they are written.
    done = subprocess.run(["sh", "-c", script], cwd=REPOSITORY, env=env, stdin=subprocess.DEVNULL,
                          encoding="utf-8", errors="replace", stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          check=False)
    if check:
        assert done.returncode == 0, "%s: status %d\n%s\n%s" % (script, done.returncode, done.stdout, done.stderr)
    return done


def wait_for(what: str, ask: Callable[[], Optional[Found]], said: Callable[[], str] = str) -> Found:
    """The first answer of `ask` that is true; `said` is shown when none comes."""
    until = time.monotonic() + PATIENCE
    while True:
        answer = ask()
        if answer:
            return answer
        assert time.monotonic() < until, "%s: not within %d s\n%s" % (what, PATIENCE, said())
        time.sleep(0.5)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Stack:
    """`settings` are variables of compose.yml; `env` is what the commands run with."""

    def __init__(self, directory: Path) -> None:
        self.project = "pgbackup-test-" + secrets.token_hex(4)
        self.secrets = {name: secrets.token_hex(12) for name in ("postgres_password", "s3_access_key", "s3_secret_key")}
        place = directory / "secrets"
        place.mkdir(mode=0o700)
        for name, value in self.secrets.items():
            (place / name).write_text(value + "\n")
            (place / name).chmod(0o600)  # the jobs' user cannot read it: the entrypoint must see to that
        self.minio_port = free_port()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(("RCLONE_", "BACKUP_"))}
        self.env.update(
            COMPOSE_PROJECT_NAME=self.project,
            PGBACKUP_SECRETS=str(place),
            MINIO_PORT=str(self.minio_port),
            METRICS_PORT=str(free_port()),
            # rclone of this environment, for what the documented lines run on the host
            PATH=os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"],
        )

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.sh("docker compose down --volumes --timeout 5", check=False)

    def set(self, **settings: str) -> Stack:
        self.env.update(settings)
        return self

    def sh(self, script: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        return sh(script, self.env, check)

    def psql(self, statement: str) -> str:
        """As the server's superuser, in the database postgres."""
        done = subprocess.run(["docker", "compose", "exec", "-T", "postgres", "psql", "-U", "postgres", "-qAtX", "-v",
                               "ON_ERROR_STOP=1", "-c", statement], cwd=REPOSITORY, env=self.env,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def container(self, service: str) -> str:
        return self.sh("docker compose ps --all --quiet %s" % service).stdout.strip()

    def inspect(self, service: str) -> Dict[str, Any]:
        return dict(json.loads(self.sh("docker inspect %s" % self.container(service)).stdout)[0])

    def streams(self) -> List[List[Dict[str, Any]]]:
        """The lines on stdout and on stderr of the service backup. Each must be JSON."""
        done = self.sh("docker logs %s" % self.container("backup"))
        return [[json.loads(line) for line in text.splitlines()] for text in (done.stdout, done.stderr)]

    def lines(self, event: str) -> List[Dict[str, Any]]:
        return [line for stream in self.streams() for line in stream if line.get("event") == event]

    def wait_for_line(self, event: str, count: int = 1) -> Dict[str, Any]:
        """The `count`-th line of this event."""
        return wait_for("line %s" % event, lambda: self.lines(event)[count - 1 :], lambda: str(self.streams()))[0]

    def s3(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url="http://127.0.0.1:%d" % self.minio_port, region_name="us-east-1",
                            aws_access_key_id=self.secrets["s3_access_key"],
                            aws_secret_access_key=self.secrets["s3_secret_key"])

    def keys(self) -> List[str]:
        return [item["Key"] for item in self.s3().list_objects_v2(Bucket="backups").get("Contents", [])]

    def uploads(self, key: str) -> int:
        """Unfinished multipart uploads of this key (MinIO lists them by the whole key only)."""
        return len(self.s3().list_multipart_uploads(Bucket="backups", Prefix=key).get("Uploads", []))
