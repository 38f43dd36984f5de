# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image by itself: the first documented command, who runs in it, and what is in it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pyrage

from .stack import REPOSITORY, Stack, sh


def test_the_build_line(image: str) -> None:
    done = sh('docker build -q -t pgbackup . && docker run --rm pgbackup sh -c "pg_dump --version && rclone version"')
    assert "pg_dump (PostgreSQL) " in done.stdout
    assert "rclone v" in done.stdout


def test_commands_run_as_an_unprivileged_user_without_capabilities(image: str) -> None:
    done = sh("docker run --rm pgbackup sh -c 'id -u; grep CapEff /proc/self/status; echo >/opt/pgbackup/x'",
              check=False)
    assert done.stdout.split() == ["10001", "CapEff:", "0000000000000000"]
    assert done.returncode != 0 and "ermission denied" in done.stderr


def test_it_runs_read_only_and_as_any_user(image: str) -> None:
    options = "--read-only --tmpfs /tmp --cap-drop ALL --user 12345:12345"
    assert sh("docker run --rm %s pgbackup pgbackup --version" % options).stdout.strip()
    # The schedule is root's, and says so.
    done = sh("docker run --rm %s pgbackup" % options, check=False)
    assert done.returncode == 2 and "crond needs root" in json.loads(done.stderr)["message"]


def test_the_scripts_hand_over_to_the_engine(image: str) -> None:
    done = sh("docker run --rm pgbackup sh -c 'POSTGRES_HOST=localhost ./backup.sh'", check=False)
    assert done.returncode == 2
    assert "missing: POSTGRES_DB, POSTGRES_USER" in json.loads(done.stderr)["message"]


def test_encryption_and_rclone_work_in_the_image(stack: Stack, tmp_path: Path) -> None:
    """A backup to a remote whose configuration only root can read, for a public key; verified with the identity."""
    identity = pyrage.x25519.Identity.generate()
    remotes = tmp_path / "rclone.conf"
    remotes.write_text("[box]\ntype = alias\nremote = /tmp/box\n")
    remotes.chmod(0o600)
    stack.sh("docker compose up -d --wait postgres")
    stack.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    script = "mkdir -p /tmp/box/there && pgbackup backup && pgbackup verify latest --level content; ls /tmp/box/there"
    variables = {"BACKUP_STORE": "rclone:box:there", "RCLONE_CONFIG": "/mnt/rclone.conf", "POSTGRES_DB": "postgres",
                 "BACKUP_AGE_RECIPIENTS": str(identity.to_public()), "BACKUP_AGE_IDENTITY": str(identity)}
    stack.set(**variables)
    options = "-e RCLONE_S3_BUCKET= " + " ".join("-e " + name for name in variables)
    done = stack.sh("docker compose run --rm --no-deps -T -v %s:/mnt/rclone.conf:ro %s backup sh -c '%s'"
                    % (remotes, options, script))
    *lines, name = done.stdout.splitlines()
    results = [line for line in map(json.loads, lines) if "url" in line]
    assert name.startswith("postgres_") and name.endswith(".sql.gz.age")
    assert [(one["operation"], one["rows"], one["key"]) for one in results] == [
        ("backup", 1000, name), ("verify", 1000, name)
    ]


def test_an_impossible_schedule_is_refused_at_the_start(image: str) -> None:
    done = sh("docker run --rm -e BACKUP_SCHEDULE='61 * * * *' pgbackup", check=False)
    assert done.returncode == 2
    assert "minute: '61' is not from 0 to 59" in json.loads(done.stderr)["message"]


def test_labels_and_healthcheck(image: str) -> None:
    config = json.loads(sh("docker image inspect pgbackup").stdout)[0]["Config"]
    for name in ("title", "description", "licenses", "source", "version"):
        assert config["Labels"]["org.opencontainers.image." + name]
    assert config["Healthcheck"]["Test"] == ["CMD", "/opt/pgbackup/bin/healthcheck.sh"]


def test_the_build_fails_where_a_tool_is_missing(image: str) -> None:
    done = sh("docker build --build-arg PG_MAJORS=99 .", check=False)
    assert done.returncode != 0
    assert "PostgreSQL 99: " in done.stdout + done.stderr


def test_the_build_fails_where_a_tool_does_not_run(image: str, tmp_path: Path) -> None:
    for path in ("usr/local/bin/rclone", "usr/lib/postgresql/15/bin/pg_restore", "opt/pgbackup/pgstream/cli.py"):
        (tmp_path / "Dockerfile").write_text(
            "FROM pgbackup\nRUN echo 'exit(1)' > /%s && /opt/pgbackup/bin/self-test.sh\n" % path
        )
        done = sh("docker build %s" % tmp_path, check=False)
        assert done.returncode != 0, path
    (tmp_path / "Dockerfile").write_text("FROM pgbackup\nRUN /opt/pgbackup/bin/self-test.sh\n")
    sh("docker build -q %s" % tmp_path)


def test_a_build_secret_leaves_nothing_behind(image: str, tmp_path: Path) -> None:
    mark = b"this-authority-is-not-for-the-image"
    authority = tmp_path / "ca.pem"
    authority.write_bytes(b"# " + mark + b"\n")
    tag = "pgbackup-test-secret"
    try:
        sh("DOCKER_BUILDKIT=1 docker build -q -t %s --build-arg EXTRA_CA=secret --secret id=extra_ca,src=%s ."
           % (tag, authority))
        with subprocess.Popen(["docker", "save", tag], stdout=subprocess.PIPE) as saved:
            assert saved.stdout is not None
            before, size = b"", 0
            while True:
                chunk = saved.stdout.read(1 << 20)
                if not chunk:
                    break
                assert mark not in before + chunk
                before, size = chunk[-len(mark) :], size + len(chunk)
        assert saved.returncode == 0 and size > 100e6
    finally:
        sh("docker rmi %s" % tag, check=False)
    done = sh("DOCKER_BUILDKIT=1 docker build --no-cache-filter packages --build-arg EXTRA_CA=secret .", check=False)
    assert done.returncode != 0, "built without the secret it was told to use"


def test_nothing_of_the_host_is_in_the_build_context() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in ignored and "docker/demo-secrets" in ignored


def test_any_text_becomes_a_line_of_json(image: str) -> None:
    texts = '"" "a\\"b\\\\c" "two\nlines"'
    script = '. /opt/pgbackup/bin/log.sh; for one in %s; do log INFO said text "$(quote "$one")"; done' % texts
    done = subprocess.run(["docker", "run", "--rm", "pgbackup", "sh", "-c", script], capture_output=True, text=True,
                          check=True)
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["", 'a"b\\c', "two lines"]
