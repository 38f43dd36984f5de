# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Somebody or something dies, stalls or lies at each stage of a backup: it fails, says why, and leaves nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator

import pytest

from tests.support.runs import Command, command_env, copy_out, local_storage

from .conftest import LITTLE_ROWS, ROWS
from .harness import (
    KILLED,
    SERVER_GONE,
    Cell,
    Scene,
    held_at,
    held_program,
    held_store,
    limits,
    listed,
    storage_of,
    stored_is_whole,
)

MIB = 1 << 20
STAGES = {
    "validation": held_at(b"pg_try_advisory_xact_lock"),
    "sweep": held_store("ListMultipartUploads"),  # its own upload is begun
    "snapshot": held_at(b"LOCK TABLE ONLY"),
    "schema": held_at(b"SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"),
    "contents": held_program("-l --verbose"),  # of what pg_dump wrote
    "head": held_program("--section=pre-data"),
    "first rows": held_at(copy_out("big"), after=0),
    "data": held_at(copy_out("big"), after=18 * MIB),  # a part of the upload is on its way
    "both data": held_at(copy_out(), after=MIB),  # of every worker
    "rest": held_at(b"SELECT 0, last_value"),
    "large objects": held_at(b"pg_catalog.lo_get", after=MIB),
    "tail": held_program("--section=post-data"),
    "completing": held_store("CompleteMultipartUpload"),
    "completed": held_store("CompleteMultipartUpload", "hold-answer"),
    "after commit": held_store("HeadObject", skip=1),  # the first asks whether the key is free
}
UPLOAD = "S3 upload"
CELLS = [
    # who dies on our side
    Cell("schema", "pg_dump", 1, "schema dump", "pg_dump was killed by signal 9"),
    Cell("head", "held pg_restore", 1, "head", "pg_restore was killed by signal 9"),
    Cell("data", "psql", 1, "table data", "psql was killed by signal 9"),
    Cell("both data", "psql", 1, "table data", "psql was killed by signal 9"),
    Cell("both data", "second psql", 1, "table data", "psql was killed by signal 9"),
    Cell("tail", "held pg_restore", 1, "tail", "pg_restore was killed by signal 9"),
    # the server's side
    Cell("validation", "leader", 3, "validation", SERVER_GONE),
    Cell("snapshot", "leader", 3, "locking tables", SERVER_GONE),
    Cell("schema", "leader", 3, "schema dump", SERVER_GONE),
    Cell("head", "leader", 3, "table data", SERVER_GONE),
    Cell("data", "leader", 3, "table data", SERVER_GONE),
    Cell("rest", "leader", 3, "rest of the data", SERVER_GONE),
    Cell("large objects", "leader", 3, "rest of the data", SERVER_GONE),
    Cell("tail", "leader", 3, "commit", SERVER_GONE),
    Cell("schema", "backend", 3, "schema dump", SERVER_GONE),
    Cell("data", "backend", 3, "table data", SERVER_GONE),
    Cell("both data", "backend", 3, "table data", SERVER_GONE),
    Cell("validation", "server", 3, "validation", SERVER_GONE),
    Cell("snapshot", "server", 3, "locking tables", SERVER_GONE),
    Cell("schema", "server", 3, "schema dump", SERVER_GONE),
    Cell("head", "server", 3, "table data", SERVER_GONE),
    Cell("data", "server", 3, "table data", SERVER_GONE),
    Cell("rest", "server", 3, "rest of the data", SERVER_GONE),
    Cell("tail", "server", 3, "commit", SERVER_GONE),
    # the store's side
    Cell("first rows", "store", 4, UPLOAD, "inaccessible"),
    Cell("tail", "store", 4, UPLOAD, "inaccessible"),
    Cell("completing", "store", 4, "commit", "inaccessible"),
    Cell("validation", "HeadBucket reset", 4, "validation", "Connection was closed|Could not connect|inaccessible"),
    Cell("validation", "CreateMultipartUpload 403", 4, "validation", "AccessDenied, HTTP 403.*what the key may do"),
    Cell("validation", "CreateMultipartUpload 500", 4, "validation", "InternalError, HTTP 500"),
    Cell("data", "UploadPart 500", 4, UPLOAD, "InternalError, HTTP 500"),
    Cell("data", "UploadPart 503", 4, UPLOAD, "SlowDown, HTTP 503"),
    Cell("data", "UploadPart 403", 4, UPLOAD, "AccessDenied, HTTP 403"),
    Cell("data", "UploadPart 409", 4, UPLOAD, "OperationAborted, HTTP 409"),
    Cell("data", "UploadPart 400", 4, UPLOAD, "InvalidRequest, HTTP 400"),
    Cell("data", "UploadPart reset", 4, UPLOAD, "inaccessible.*(closed|reset|aborted)"),
    Cell("data", "UploadPart stall", 4, UPLOAD, "timeout"),
    Cell("data", "UploadPart false-etag once", 4, "commit", "InvalidPart"),
    Cell("data", "UploadPart swallow once", 4, "commit", "InvalidPart"),
    Cell("completing", "CompleteMultipartUpload 500", 4, "commit", "InternalError, HTTP 500"),
    Cell("completing", "CompleteMultipartUpload 503", 4, "commit", "SlowDown, HTTP 503"),
    Cell("completing", "CompleteMultipartUpload 403", 4, "commit", "AccessDenied, HTTP 403"),
    Cell("completing", "CompleteMultipartUpload 409", 4, "commit", "OperationAborted, HTTP 409"),
    Cell("completing", "CompleteMultipartUpload 400", 4, "commit", "InvalidRequest, HTTP 400"),
    Cell("completing", "CompleteMultipartUpload reset", 4, "commit", "inaccessible.*(closed|reset|aborted)"),
    Cell("completing", "CompleteMultipartUpload stall", 4, "commit", "timeout"),
    Cell("after commit", "HeadObject short", 6, "commit", r"has \d+ bytes after the upload, \d+ bytes were sent"),
    # what the machine denies
    Cell("first rows", "no memory", 1, "table data", "(out of memory|can't start new thread).*more memory"),
    # the run itself
    Cell("validation", "SIGTERM", 1, "validation", "Interrupted by SIGTERM"),
    Cell("sweep", "SIGTERM", 1, "validation", "Interrupted by SIGTERM"),
    Cell("snapshot", "SIGTERM", 1, "locking tables", "Interrupted by SIGTERM"),
    Cell("contents", "SIGTERM", 1, "schema dump", "Interrupted by SIGTERM"),
    Cell("head", "SIGINT", 1, "head", "Interrupted by SIGINT"),
    Cell("data", "SIGTERM", 1, "table data", "Interrupted by SIGTERM"),
    Cell("data", "SIGINT", 1, "table data", "Interrupted by SIGINT"),
    Cell("data", "SIGHUP", 1, "table data", "Interrupted by SIGHUP"),
    Cell("rest", "SIGTERM", 1, "rest of the data", "Interrupted by SIGTERM"),
    Cell("large objects", "SIGINT", 1, "rest of the data", "Interrupted by SIGINT"),
    Cell("tail", "SIGTERM", 1, "tail", "Interrupted by SIGTERM"),
    Cell("completing", "SIGTERM", 1, "commit", "Interrupted by SIGTERM"),
    Cell("completing", "SIGINT", 1, "commit", "Interrupted by SIGINT"),
    Cell("validation", "timeout", 1, "validation", "timeout of 2s reached.*Raise timeout"),
    Cell("validation", "SIGKILL", KILLED),
    Cell("schema", "SIGKILL", KILLED),
    Cell("data", "SIGKILL", KILLED),
    Cell("rest", "SIGKILL", KILLED),
    Cell("tail", "SIGKILL", KILLED),
    Cell("completing", "SIGKILL", KILLED),
]
#: What a backup gets over. It is whole, and says so.
HARMLESS = [
    Cell("completed", "leader", 0),
    Cell("completed", "server", 0),
    Cell("completed", "SIGTERM", 0),
    Cell("completed", "SIGINT", 0),
    Cell("after commit", "SIGTERM", 0),
    Cell("after commit", "server", 0),
    Cell("data", "UploadPart 500 once", 0),
    Cell("data", "UploadPart 503 once", 0),
    Cell("data", "UploadPart reset once", 0),
    Cell("data", "UploadPart lost-answer once", 0),
    Cell("data", "UploadPart stall once", 0),
    Cell("data", "UploadPart truncate once", 0),
    Cell("data", "UploadPart delay", 0),
    Cell("completing", "CompleteMultipartUpload 500 once", 0),
    Cell("completing", "CompleteMultipartUpload reset once", 0),
    Cell("completing", "CompleteMultipartUpload lost-answer once", 0),
    Cell("completing", "CompleteMultipartUpload truncate once", 0),
    Cell("after commit", "HeadObject 500 once", 0),
]
#: Into a directory. Its disk is full, or the run is ended.
LOCAL = [
    Cell("first rows", "file size limit", 4, "table data", "File too large"),
    Cell("data", "SIGTERM", 1, "table data", "Interrupted by SIGTERM"),
    Cell("data", "SIGKILL", KILLED),
    Cell("tail", "SIGKILL", KILLED),
]
OLDER = "fault_source_2020-01-01T00:00:00Z.sql.gz"  # somebody's, not to be touched


def run_of(cell: Cell, environment: Dict[str, str], start: Any) -> Callable[[], Command]:
    jobs = "2" if cell.stage == "both data" else "1"
    return lambda: start({**environment, **limits(cell)}, "backup", "--jobs", jobs)


@pytest.fixture
def environment(
    request: Any, scene: Scene, source: str, little: str, fault_env: Dict[str, str]
) -> Dict[str, str]:
    """Of a run that backs up the large database where the cell needs its rows to take a while, else the little one."""
    cell = request.node.callspec.params["cell"] if hasattr(request.node, "callspec") else None
    large = cell is None or cell.stage in ("first rows", "data", "both data")
    database = source if large else little
    return command_env(fault_env, scene.postgres, database, scene.s3, scene.bucket, **scene.changes())


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_backup_that_fails(cell: Cell, scene: Scene, environment: Dict[str, str], start: Any) -> None:
    scene.s3.client().put_object(Bucket=scene.bucket, Key=OLDER, Body=b"older")
    scene.play(cell, STAGES, run_of(cell, environment, start))
    scene.check_end(cell, "backup")
    assert scene.s3.keys(scene.bucket) == [OLDER] == listed(storage_of(scene.s3, scene.bucket))
    assert cell.code == KILLED or scene.s3.uploads(scene.bucket) == []
    assert all(OLDER not in path for name, path in scene.store.seen if name != "HeadObject")


@pytest.mark.parametrize("cell", HARMLESS, ids=str)
def test_a_backup_that_gets_over_it(cell: Cell, scene: Scene, environment: Dict[str, str], start: Any) -> None:
    scene.play(cell, STAGES, run_of(cell, environment, start))
    scene.check_end(cell, "backup")
    key = scene.outcome.result["key"]
    assert scene.s3.keys(scene.bucket) == [key] and scene.s3.uploads(scene.bucket) == []
    stored_is_whole(storage_of(scene.s3, scene.bucket), key, ROWS if "fault_source" in key else LITTLE_ROWS)


def test_a_backup_killed_after_its_commit_is_there(scene: Scene, environment: Dict[str, str], start: Any) -> None:
    """The one call is the commit: nobody was told, but the bucket says it."""
    cell = Cell("after commit", "SIGKILL", KILLED)
    scene.play(cell, STAGES, run_of(cell, environment, start))
    scene.check_end(cell, "backup")
    (key,) = listed(storage_of(scene.s3, scene.bucket))
    stored_is_whole(storage_of(scene.s3, scene.bucket), key, ROWS)


def test_the_compressor_raises(scene: Scene, environment: Dict[str, str], start: Any) -> None:
    cell = Cell("first rows", "nothing", 1, "table data", "ValueError: the compressor is out of order")
    environment["PGSTREAM_FAULT"] = "compressor"
    scene.play(cell, STAGES, run_of(cell, environment, start))
    scene.check_end(cell, "backup")
    assert scene.s3.keys(scene.bucket) == [] == scene.s3.uploads(scene.bucket)


def into_directory(environment: Dict[str, str], directory: Path) -> Dict[str, str]:
    kept = {name: value for name, value in environment.items() if not name.startswith("RCLONE_")}
    return dict(kept, BACKUP_STORE="file://%s" % directory)


@pytest.mark.parametrize("cell", LOCAL, ids=str)
def test_a_backup_into_a_directory_fails(
    cell: Cell, scene: Scene, environment: Dict[str, str], start: Any, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    storage = local_storage(store)
    (store / OLDER).write_bytes(b"older")
    scene.play(cell, STAGES, run_of(cell, into_directory(environment, store), start))
    scene.check_end(cell, "backup")
    visible = [name for name in os.listdir(str(store)) if cell.code != KILLED or not name.startswith(".")]
    assert visible == [OLDER] == listed(storage)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB in memory; only where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if subprocess.run(mount, stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs: the limit of a file's size stands in for it above")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_the_disk_is_full(scene: Scene, environment: Dict[str, str], start: Any, small_disk: Path) -> None:
    cell = Cell("first rows", "nothing", 4, "table data", "No space left on device.*Free some space")
    (small_disk / OLDER).write_bytes(b"older")
    scene.play(cell, STAGES, run_of(cell, into_directory(environment, small_disk), start))
    scene.check_end(cell, "backup")
    assert os.listdir(str(small_disk)) == [OLDER]
