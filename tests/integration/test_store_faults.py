# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The command against stores that allow little, want odd things, or fail in the middle of a run."""

from __future__ import annotations

import signal
from datetime import timedelta
from typing import Any, Callable, Dict, Iterator

import pytest
from _pgstream.store.s3 import UNFINISHED_AGE

from tests.support.fake_s3 import READ_ONLY, WRITE_ONLY, FakeS3
from tests.support.runs import Command, Outcome, command_env, sessions, wait_until

ROWS = 60000  # of text that does not compress: two parts and a half


@pytest.fixture
def fake() -> Iterator[FakeS3]:
    with FakeS3() as server:
        server.make_bucket("backups")
        yield server


class Place:
    def __init__(self, postgres: Any, database: str, env: Dict[str, str], start: Callable[..., Command]) -> None:
        self.postgres, self.database, self._env, self._start = postgres, database, env, start

    def start(self, s3: Any, bucket: str, *arguments: str, **changes: Any) -> Command:
        changes.setdefault("BACKUP_PREFIX", "daily")
        return self._start(command_env(self._env, self.postgres, self.database, s3, bucket, **changes), *arguments)

    def run(self, s3: Any, bucket: str, *arguments: str, **changes: Any) -> Outcome:
        return self.start(s3, bucket, *arguments, **changes).finish()

    def digest(self, database: str) -> str:
        return str(self.postgres.psql("SELECT count(*), md5(string_agg(t::text, '' ORDER BY id)) FROM t", database))


@pytest.fixture
def place(postgres: Any, database: str, engine_env: Dict[str, str], start: Callable[..., Command]) -> Place:
    text = "(SELECT string_agg(md5(g::text || s), '') FROM generate_series(1, 20) s)"
    postgres.psql("CREATE TABLE t AS SELECT g AS id, %s AS text FROM generate_series(1, %d) g" % (text, ROWS), database)
    return Place(postgres, database, engine_env, start)


def test_write_only_backup_and_read_only_restore(place: Place, fake: FakeS3, databases: Callable[[], str]) -> None:
    fake.deny = set(WRITE_ONLY)
    done = place.run(fake, "backups", "backup")
    assert done.code == 0, done.err
    assert done.err == "" and "not_swept" in [line["event"] for line in done.lines]
    assert fake.keys("backups") == [done.result["key"]] and fake.unfinished == {}
    allowed = {"HeadBucket", "HeadObject", "ListMultipartUploads"}  # asked for, denied, and done without
    assert {operation for operation, _key, status in fake.log if status == 403} <= allowed
    fake.deny = set(READ_ONLY)
    fake.log.clear()
    copy = databases()
    restored = place.run(fake, "backups", "restore", "latest", "--target-db", copy)
    assert restored.code == 0, restored.err
    assert place.digest(copy) == place.digest(place.database)
    assert {operation for operation, _key, _status in fake.log} <= {"HeadObject", "GetObject", "ListObjectsV2"}
    fake.deny |= {"s3:ListBucket"}  # the key alone is enough
    other = databases()
    restored = place.run(fake, "backups", "restore", done.result["key"], "--target-db", other)
    assert restored.code == 0, restored.err


def test_a_store_that_fails_now_and_then(place: Place, fake: FakeS3, databases: Callable[[], str]) -> None:
    """Equal parts are insisted upon, requests of every kind fail once or twice, one connection falls silent."""
    fake.equal_parts, fake.smallest_part = True, 5 << 20
    for operation in ("CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject"):
        fake.fail(operation, 503, "SlowDown")
        fake.fail(operation)
    fake.fail("UploadPart", how="stall")
    done = place.run(fake, "backups", "backup", BACKUP_STALL_TIMEOUT="2s")
    assert done.code == 0, done.err
    assert done.result["stored_bytes"] > 16 << 20 and fake.unfinished == {}
    for number in range(3):
        fake.fail("GetObject", how="cut", bytes=70000 + number)
        fake.fail("GetObject", 500, "InternalError")
    fake.fail("GetObject", how="hang", bytes=100000)
    copy = databases()
    restored = place.run(fake, "backups", "restore", "latest", "--target-db", copy, BACKUP_STALL_TIMEOUT="2s")
    assert restored.code == 0, restored.err
    assert place.digest(copy) == place.digest(place.database)


def test_an_answer_that_is_lost(place: Place, fake: FakeS3) -> None:
    fake.fail("CompleteMultipartUpload", how="after")
    done = place.run(fake, "backups", "backup")
    assert done.code == 0, done.err
    assert fake.keys("backups") == [done.result["key"]] and fake.count("CompleteMultipartUpload") == 1


@pytest.mark.parametrize("fault,code", [("drops", 6), ("lies", 6), ("refuses", 4)])
def test_a_commit_that_goes_wrong(place: Place, fake: FakeS3, fault: str, code: int) -> None:
    fake.drops_last_part = fault == "drops"
    fake.lies_about_etag = "HeadObject" if fault == "lies" else ""
    if fault == "refuses":
        fake.fail("CompleteMultipartUpload", 400, "InvalidRequest", times=100)
    failed = place.run(fake, "backups", "backup")
    assert failed.code == code and "Failed during commit" in failed.message, failed.err
    assert fake.keys("backups") == [] and fake.unfinished == {} and sessions(place.postgres) == []


def test_an_upload_that_stays_is_named(place: Place, fake: FakeS3) -> None:
    fake.deny = {"s3:AbortMultipartUpload"}
    fake.fail("UploadPart", 403, "AccessDenied", times=100)
    failed = place.run(fake, "backups", "backup")
    assert failed.code == 4 and "Access" in failed.message
    (warning,) = [line for line in failed.errors if line["event"] == "abort_failed"]
    (name,) = fake.unfinished
    assert warning["level"] == "WARNING" and name in warning["message"]


def test_a_killed_backup_is_swept_when_it_is_a_day_old(place: Place, fake: FakeS3) -> None:
    fake.fail("UploadPart", how="stall")
    killed = place.start(fake, "backups", "backup")
    wait_until(lambda: fake.count("UploadPart"), "a part that is sent")
    killed.signal(signal.SIGKILL)
    assert killed.finish().code == -signal.SIGKILL
    killed.close()
    (left,) = fake.unfinished.values()
    wait_until(lambda: sessions(place.postgres) == [], "the end of the killed run's sessions")
    second = place.run(fake, "backups", "backup")
    assert second.code == 0, second.err
    assert list(fake.unfinished.values()) == [left]  # it could be at work still
    left.initiated -= UNFINISHED_AGE + timedelta(minutes=1)
    predicted = place.run(fake, "backups", "backup", "--dry-run")
    assert predicted.code == 0 and list(fake.unfinished.values()) == [left]  # which changes nothing
    third = place.run(fake, "backups", "backup", "--key", "third.sql.gz")
    assert third.code == 0, third.err
    assert fake.unfinished == {}
    assert [line["keys"] for line in third.lines if line["event"] == "swept"] == [[left.key]]


def test_check(place: Place, fake: FakeS3, s3: Any, bucket: str) -> None:
    for store, name in ((fake, "backups"), (s3, bucket)):
        good = place.run(store, name, "check")
        assert good.code == 0, good.err
        assert good.result["conclusions"][0] == "backup works" and good.result["ok"] is True
        assert store.keys(name) == []
    bad = [finding["name"] for finding in good.result["findings"] if not finding["ok"]]
    assert bad == ["conditional put"]  # rclone knows none
    assert s3.uploads(bucket) == [] and fake.unfinished == {}
    fake.deny = set(WRITE_ONLY)
    write_only = place.run(fake, "backups", "check")
    assert write_only.code == 0 and len(write_only.result["conclusions"]) > 1
    fake.deny = set(READ_ONLY)
    read_only = place.run(fake, "backups", "check")
    assert read_only.code == 4 and read_only.result["ok"] is False
    assert read_only.message.startswith("Failed during check: multipart upload: ")
    both = place.run(fake, "backups", "check", POSTGRES_PASSWORD="wrong")
    assert both.code == 1 and "password authentication failed" in both.message
