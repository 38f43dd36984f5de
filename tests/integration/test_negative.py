# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the command says and how it ends when something is wrong: exit status, first cause, JSON on the right stream."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from tests.support.runs import Command, Outcome, command_env, copy_out, sessions
from tests.support.servers import free_port

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z")


class Place:
    """A small database, an empty bucket, and the command with all it needs to know of them."""

    def __init__(self, postgres: Any, database: str, s3: Any, bucket: str, env: Dict[str, str], start: Any) -> None:
        self.postgres, self.database, self.s3, self.bucket = postgres, database, s3, bucket
        self._env, self._start = env, start

    def start(self, *arguments: str, **changes: Any) -> Command:
        env = command_env(self._env, self.postgres, self.database, self.s3, self.bucket, **changes)
        return self._start(env, *arguments)

    def run(self, *arguments: str, **changes: Any) -> Outcome:
        return self.start(*arguments, **changes).finish()

    def fails(self, code: int, *arguments: str, **changes: Any) -> str:
        """The message of a run that must end with this status, have nothing to say on stdout, and store nothing."""
        before = self.s3.keys(self.bucket)
        outcome = self.run(*arguments, **changes)
        assert outcome.code == code, outcome.err
        assert "result" not in [line["event"] for line in outcome.lines]
        failed = outcome.errors[-1]
        assert (failed["event"], failed["level"], failed["exit_code"]) == ("failed", "ERROR", code)
        assert self.s3.keys(self.bucket) == before
        assert sessions(self.postgres) == []
        return outcome.message


@pytest.fixture
def place(
    postgres: Any, database: str, s3: Any, bucket: str, engine_env: Dict[str, str], start: Callable[..., Command]
) -> Place:
    postgres.psql("CREATE TABLE t AS SELECT g AS id, 'row ' || g AS text FROM generate_series(1, 100) g", database)
    return Place(postgres, database, s3, bucket, engine_env, start)


def test_server_unreachable(place: Place) -> None:
    port = free_port()
    for arguments in (["backup"], ["restore", "some.sql.gz"]):
        message = place.fails(3 if arguments == ["backup"] else 5, *arguments, POSTGRES_PORT=str(port))
        assert "Connection refused" in message and "127.0.0.1" in message and str(port) in message


def test_wrong_password(place: Place) -> None:
    message = place.fails(3, "backup", POSTGRES_PASSWORD="not the password")
    assert 'password authentication failed for user "postgres"' in message
    assert "Check user and password" in message and "not the password" not in message


def test_unknown_database(place: Place) -> None:
    message = place.fails(3, "backup", POSTGRES_DB="no_such_database")
    assert 'database "no_such_database" does not exist' in message


def test_missing_variables_are_all_named(place: Place) -> None:
    message = place.fails(2, "backup", POSTGRES_HOST=None, POSTGRES_USER="", POSTGRES_DB=None, RCLONE_S3_BUCKET=None)
    assert all(name in message for name in ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "RCLONE_S3_BUCKET"))
    assert "POSTGRES_PORT" not in message


def test_faults_of_both_sides_are_named_at_once(place: Place) -> None:
    message = place.fails(3, "backup", POSTGRES_PORT=str(free_port()), RCLONE_S3_BUCKET="no-such-bucket")
    assert "Connection refused" in message and "bucket no-such-bucket does not exist" in message
    message = place.fails(
        2, "backup", POSTGRES_PORT="high", BACKUP_COMPRESSION="lzma", BACKUP_JOBS="-1", RCLONE_S3_ENDPOINT="ftp://x"
    )
    for name in ("POSTGRES_PORT", "BACKUP_COMPRESSION", "BACKUP_JOBS", "RCLONE_S3_ENDPOINT"):
        assert name in message


def test_no_such_bucket(place: Place) -> None:
    for arguments in (["backup"], ["list"], ["restore", "latest"]):
        message = place.fails(4, *arguments, RCLONE_S3_BUCKET="no-such-bucket")
        assert "no-such-bucket" in message and "Create the bucket" in message


def test_store_unreachable(place: Place) -> None:
    port = free_port()
    message = place.fails(4, "backup", RCLONE_S3_ENDPOINT="http://127.0.0.1:%d" % port)
    assert "Could not connect to the endpoint URL" in message and str(port) in message


def test_wrong_s3_credentials(place: Place) -> None:
    message = place.fails(4, "backup", RCLONE_S3_ACCESS_KEY_ID="wrongkey")
    assert "InvalidAccessKeyId" in message and "Check the access key" in message
    message = place.fails(4, "backup", RCLONE_S3_SECRET_ACCESS_KEY="wrongsecret")
    assert "SignatureDoesNotMatch" in message and "Check the secret key" in message
    message = place.fails(4, "list", RCLONE_S3_SECRET_ACCESS_KEY="wrongsecret")
    assert "SignatureDoesNotMatch" in message and "wrongsecret" not in message


def test_backup_not_found(place: Place) -> None:
    message = place.fails(5, "restore", "invalid_filename.sql.gz")
    assert "Backup not found" in message and "s3://%s/invalid_filename.sql.gz" % place.bucket in message
    made = place.run("backup").result
    message = place.fails(5, "restore", made["key"].replace(".sql.gz", ".sql"))
    assert made["key"] in message  # the nearest
    message = place.fails(5, "restore", "latest", "--source-db", "another")
    assert "Backup not found" in message and "another" in message


def test_target_not_empty(place: Place) -> None:
    made = place.run("backup").result
    message = place.fails(7, "restore", made["key"])
    assert "database %s is not empty" % place.database in message and "table public.t" in message
    assert "swap" in message
    message = place.fails(7, "restore", made["key"], "--target-db", "not_there_at_all")
    assert "does not exist" in message and "create" in message


def test_second_backup_of_the_same_database(place: Place, pg_proxy: Any) -> None:
    gate = pg_proxy.gate(copy_out("t"))
    first = place.start("backup", POSTGRES_PORT=str(pg_proxy.port))
    gate.wait(first)
    second = place.run("backup", BACKUP_PREFIX="second")
    assert second.code == 8 and "another backup of database %s is running" % place.database in second.message
    gate.release()
    assert first.finish().code == 0
    assert len(place.s3.keys(place.bucket)) == 1


def test_overwrite(place: Place) -> None:
    def stored() -> bytes:
        return place.s3.client().get_object(Bucket=place.bucket, Key="mine.sql.gz")["Body"].read()

    first = place.run("backup", "--key", "mine.sql.gz").result
    assert first["changed"] is True and first["rows"] == 100
    before = stored()
    place.postgres.psql("DELETE FROM t WHERE id > 50", place.database)
    second = place.run("backup", "--key", "mine.sql.gz").result
    assert (second["changed"], second["rows"]) == (False, 100) and stored() == before
    third = place.run("backup", "--key", "mine.sql.gz", "--overwrite").result
    assert (third["changed"], third["rows"]) == (True, 50) and stored() != before
    assert place.s3.keys(place.bucket) == ["mine.sql.gz"]


def test_fresh_within(place: Place) -> None:
    first = place.run("backup").result
    again = place.run("backup", "--fresh-within", "6h").result
    assert (first["changed"], again["changed"], again["key"]) == (True, False, first["key"])
    # An old one is not fresh, nor is one that the engine did not write.
    old = "%s_2020-01-31T02:00:00Z.sql.gz" % place.database
    client = place.s3.client()
    client.copy_object(Bucket=place.bucket, Key=old, CopySource={"Bucket": place.bucket, "Key": first["key"]})
    client.delete_object(Bucket=place.bucket, Key=first["key"])
    client.put_object(Bucket=place.bucket, Key=first["key"], Body=b"no backup")
    assert place.run("backup", "--fresh-within", "6h", "--dry-run").result["changed"] is True


def test_dry_run_changes_nothing(place: Place) -> None:
    predicted = place.run("backup", "--dry-run").result
    assert predicted["changed"] is True and place.s3.keys(place.bucket) == []
    assert place.s3.uploads(place.bucket) == []


def test_every_line_is_json_on_its_stream(place: Place, tmp_path: Path) -> None:
    done = place.run("backup")
    assert done.code == 0 and done.err == ""
    result = done.result
    assert result["event"] == "result" and [line["event"] for line in done.lines].count("result") == 1
    assert result["operation"] == "backup" and result["key"].startswith(place.database + "_")
    failed = place.run("restore", result["key"])
    both = place.run("list")
    for outcome in (done, failed, both):
        lines = outcome.lines[:-1] if outcome.code == 0 else outcome.lines
        for line in lines + outcome.errors:
            assert TIME.fullmatch(line["ts"]) and line["event"] and line["correlation_id"]
            assert line["operation"] in ("backup", "restore", "list") and "database" in line
        assert {line["level"] for line in lines} <= {"INFO"}
        assert {line["level"] for line in outcome.errors} <= {"WARNING", "ERROR"}
    assert {line["correlation_id"] for line in done.lines} == {result["correlation_id"]}
    assert [entry["key"] for entry in both.result["backups"]] == [result["key"]]


def test_check_names_what_is_wrong(place: Place) -> None:
    good = place.run("check")
    assert good.code == 0 and all(finding["ok"] for finding in good.result["findings"] if finding["needed"])
    bad = place.run("check", POSTGRES_PASSWORD="wrong", RCLONE_S3_BUCKET="no-such-bucket")
    assert bad.code == 1
    assert "password authentication failed" in bad.message and "no-such-bucket" in bad.message
