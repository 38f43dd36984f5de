# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the scenarios' tests share: the names of their containers, and ways to ask docker, the bucket and PostgreSQL.

Molecule's environment says which scenario. For the playbooks it is a command too:

testing.py bucket NAME             make a bucket
testing.py midway KEY DO SERVICE   once a part of KEY has arrived, hold the engine (on target17) for `docker DO SERVICE`
testing.py start SERVICE           start it, and wait until it answers
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from typing import Any, Callable, List, Optional, TypeVar

import boto3
from botocore.config import Config

POSTGRES_PASSWORD = "molecule-postgres-secret"
ACCESS_KEY = "molecule-access-key"
SECRET_KEY = "molecule-s3-secret"
SECRETS = (POSTGRES_PASSWORD, ACCESS_KEY, SECRET_KEY)
BUCKET = "backups"

Found = TypeVar("Found")


def project() -> str:
    """As in group_vars/all.yml."""
    checkout = os.environ["MOLECULE_PROJECT_DIRECTORY"]
    return "pgbackup-molecule-%s-%s" % (
        os.environ["MOLECULE_SCENARIO_NAME"],
        hashlib.sha1(checkout.encode()).hexdigest()[:6],
    )


def container(service: str) -> str:
    return "%s-%s-1" % (project(), service)


def docker(*arguments: str, stdin: Optional[bytes] = None) -> str:
    """stdout; an AssertionError with stderr when it fails."""
    done = subprocess.run(["docker", *arguments], input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, "docker %s: %s" % (" ".join(arguments[:3]), done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace")


def published(service: str, port: int) -> str:
    """host:port on this machine."""
    return docker("port", container(service), "%d/tcp" % port).split()[0]


def s3() -> Any:
    return boto3.client(
        "s3",
        endpoint_url="http://" + published("minio", 9000),
        region_name="us-east-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
        config=Config(s3={"addressing_style": "path"}),
    )


def keys(bucket: str = BUCKET) -> List[str]:
    return sorted(one["Key"] for one in s3().list_objects_v2(Bucket=bucket).get("Contents", []))


def unfinished() -> List[str]:
    """Multipart uploads as MinIO keeps them on its disk: it lists only those of a key that one names."""
    text = docker("exec", container("minio"), "find", "/data/.minio.sys/multipart", "-mindepth", "2", "-maxdepth", "2")
    return text.split()


def psql(service: str, database: str, sql: str) -> str:
    """By the socket, as the user postgres. Rows a line, columns with |."""
    argv = ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-f", "-"]
    return docker("exec", "-i", "--user", "postgres", container(service), *argv, stdin=sql.encode()).strip()


def dump(service: str, database: str) -> List[str]:
    """What pg_dump says of a database, sorted: a restore may put rows in another order. Less what is of each run."""
    text = docker("exec", "--user", "postgres", container(service), "pg_dump", "-d", database)
    return sorted(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict", "-- ")))


def wait_for(what: str, look: Callable[[], Found], seconds: float = 180.0, pause: float = 0.5) -> Found:
    """What `look` returns when it is true; AssertionError with the last answer when it never is."""
    until = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < until, "%s: not within %d s, last seen: %r" % (what, seconds, found)
        time.sleep(pause)


def parts(client: Any, key: str) -> int:
    """How many parts of an upload have arrived; 0 where there is none."""
    uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=key).get("Uploads", [])
    return sum(
        len(client.list_parts(Bucket=BUCKET, Key=key, UploadId=one["UploadId"]).get("Parts", [])) for one in uploads
    )


def paused(name: str) -> bool:
    """Whether it could be: runc fails at times to freeze a container that is busy, and then says so."""
    return subprocess.run(["docker", "pause", name], check=False, stdout=subprocess.DEVNULL).returncode == 0


def midway(key: str, verb: str, service: str) -> None:
    client = s3()
    wait_for("the upload of " + key, lambda: parts(client, key), pause=0.02)
    wait_for("docker pause", lambda: paused(container("target17")))
    try:
        # Held: it cannot have ended, or what comes would be no fault midway.
        assert parts(client, key), "%s was uploaded already" % key
        docker(verb, container(service))
        if verb == "restart":
            wait_until_healthy(service)
    finally:
        docker("unpause", container("target17"))


def wait_until_healthy(service: str) -> None:
    form = "{{.State.Health.Status}}"
    wait_for(service, lambda: docker("inspect", "--format", form, container(service)).strip() == "healthy")


def main(verb: str, *words: str) -> None:
    if verb == "bucket":
        s3().create_bucket(Bucket=words[0])
    elif verb == "midway":
        midway(*words)
    elif verb == "start":
        docker("start", container(words[0]))
        wait_until_healthy(words[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
