# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""compose.yml: the documented sequences, as they are written."""

from __future__ import annotations

import json
import re

from .stack import Stack, wait_for

RCLONE = ". docker/rclone-env.sh && "


def test_the_final_sequence(stack: Stack) -> None:
    stack.sh("docker compose up -d postgres minio")
    stack.sh('docker compose exec -T postgres psql -U postgres -c "CREATE TABLE test (id SERIAL)"')
    stack.sh("docker compose run --rm backup /usr/local/bin/backup.sh")
    stack.sh('docker compose exec -T postgres psql -U postgres -c "DROP TABLE test"')
    assert stack.psql("SELECT to_regclass('test')") == ""
    stack.sh(RCLONE + "docker compose run --rm backup /usr/local/bin/restore.sh "
             "$(rclone ls s3:backups | awk '{print $2}')")
    assert stack.psql("SELECT to_regclass('test')") == "test"


def test_the_manual_checklist(stack: Stack) -> None:
    stack.sh("docker compose up -d postgres minio")
    stack.psql("CREATE TABLE backup_test (id SERIAL); INSERT INTO backup_test SELECT FROM generate_series(1, 1000)")
    stack.sh("docker compose run --rm backup backup.sh")
    (key,) = stack.keys()
    assert re.fullmatch(r"postgres_\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\.sql\.gz", key)
    stack.psql("DROP TABLE backup_test")
    stack.sh("docker compose run --rm backup restore.sh " + key)
    assert stack.psql("SELECT count(*), sum(id) FROM backup_test") == "1000|500500"
    assert stack.psql("INSERT INTO backup_test DEFAULT VALUES RETURNING id") == "1001"  # the sequence came back too


def test_up_shows_crond_running(stack: Stack) -> None:
    stack.sh("docker compose up -d backup")
    stack.wait_for_line("crond_started")
    processes = stack.sh("docker compose top backup").stdout
    assert re.search(r"^root .* crond -f ", processes, re.MULTILINE), processes
    assert stack.s3().list_buckets()["Buckets"][0]["Name"] == "backups"


def test_errors_a_person_will_meet(stack: Stack) -> None:
    stack.sh("docker compose up -d postgres minio")
    done = stack.sh("docker compose run --rm -T backup sh -c 'POSTGRES_HOST=localhost ./backup.sh'", check=False)
    said = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 3 and "onnection" in said["message"] and "localhost" in said["message"], said
    done = stack.sh("docker compose run --rm -T backup ./restore.sh invalid_filename.sql.gz", check=False)
    said = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 5 and "Backup not found" in said["message"], said
    assert stack.keys() == []


def test_no_secret_can_be_seen_from_outside(stack: Stack) -> None:
    stack.set(BACKUP_SCHEDULE="* * * * *").sh("docker compose up -d backup")
    stack.wait_for_line("job_finished")
    places = {
        service: json.dumps(stack.inspect(service)) for service in ("postgres", "minio", "minio-init", "backup")
    }
    places["logs"] = stack.sh("docker compose logs").stdout
    places["config"] = stack.sh("docker compose config").stdout
    places["history"] = stack.sh("docker history --no-trunc pgbackup").stdout
    for name, command in {
        "environments": "cat /proc/[0-9]*/environ",
        "arguments": "cat /proc/[0-9]*/cmdline",
        "crontabs": "cat /run/pgbackup/crontabs/*",
        "ledger": "cat /var/lib/pgbackup/*",
    }.items():
        places[name] = stack.sh("docker compose exec -T backup sh -c '%s' | tr '\\000' '\\n'" % command).stdout
        assert places[name], name
    for place, text in places.items():
        for secret, value in stack.secrets.items():
            assert value not in text, "%s is seen in %s" % (secret, place)
    # Others in the container than root and the jobs' user cannot read them either.
    done = stack.sh("docker compose exec -T --user nobody backup sh -c 'cat /run/secrets/* /run/pgbackup/private/*'",
                    check=False)
    assert done.stdout == ""


def test_metrics_are_served_to_this_machine(stack: Stack) -> None:
    import urllib.request

    stack.sh("docker compose up -d postgres minio metrics")
    stack.sh("docker compose run --rm backup backup.sh")
    url = "http://127.0.0.1:%s/metrics" % stack.env["METRICS_PORT"]

    def ask() -> str:
        try:
            with urllib.request.urlopen(url, timeout=20) as answer:
                return str(answer.read().decode())
        except OSError:
            return ""

    text = wait_for("a success in the metrics", lambda: ask() if 'database="postgres"' in ask() else "", ask)
    assert "# TYPE pgbackup" in text or "# TYPE pgstream" in text, text
