# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""No password or secret key where anyone could read it."""

from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterator, List, Set
from urllib.parse import quote

import pytest
from _pgstream.errors import BackupError
from _pgstream.model import BackupRequest, RestoreRequest

from tests.support.runs import KeptLog, back_up, command_env, restore, s3_storage, server_of

ROLE = "secret_keeper"
PASSWORD = "pa55'w\\ord \"ü\" %20&="  # what quoting, URLs and JSON would each write differently

# Takes the place of a client program: notes its arguments, then becomes it.
RECORDER = '#!/bin/sh\nprintf "%%s\\0" "$0" "$@" >> "%s"\nprintf "\\n" >> "%s"\nexec "%s" "$@"\n'


class Watch(threading.Thread):
    """Reads the arguments of every process of this machine, again and again."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: Set[bytes] = set()
        self._stop_now = threading.Event()
        self.rounds = 0

    def run(self) -> None:
        while not self._stop_now.is_set():
            for entry in os.listdir("/proc"):
                if entry.isdigit():
                    try:
                        self.seen.add(Path("/proc", entry, "cmdline").read_bytes())
                    except OSError:
                        continue
            self.rounds += 1

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop_now.set()
        self.join()


class Keeper(SimpleNamespace):
    """The server as the role with the odd password reaches it."""


@pytest.fixture
def keeper(postgres: Any, tmp_path: Path) -> Iterator[Keeper]:
    """A role whose password is worth hiding, and client programs that note how they are called."""
    literal = PASSWORD.replace("\\", "\\\\").replace("'", "''")
    postgres.psql("DROP ROLE IF EXISTS %s; CREATE ROLE %s SUPERUSER LOGIN PASSWORD E'%s'" % (ROLE, ROLE, literal))
    bindir, record = tmp_path / "bin", tmp_path / "arguments"
    bindir.mkdir()
    for name in ("pg_dump", "pg_restore", "psql"):
        program = bindir / name
        program.write_text(RECORDER % (record, record, os.path.join(postgres.bindir, name)))
        program.chmod(0o755)
    yield Keeper(
        host=postgres.host, port=postgres.port, user=ROLE, password=PASSWORD, bindir=str(bindir), record=record
    )
    postgres.psql("DROP ROLE " + ROLE)


@pytest.fixture
def secrets_in(s3: Any) -> Callable[[bytes], List[str]]:
    """The secrets that a text holds, in any of the forms that writing one down may give it."""

    def found(text: bytes) -> List[str]:
        hits = []
        for secret in (PASSWORD, s3.secret_key):
            forms = {secret, repr(secret)[1:-1], quote(secret), quote(secret, safe=""), secret.replace("'", "\\'")}
            forms |= {secret.replace("\\", "\\\\"), secret.replace("\\", "\\\\").replace('"', '\\"'), secret[:9]}
            hits += [form for form in forms if form.encode() in text]
        return hits

    return found


def test_the_search_finds_a_secret(secrets_in: Callable[[bytes], List[str]], s3: Any) -> None:
    assert secrets_in(("x" + PASSWORD).encode()) and secrets_in(s3.secret_key.encode()) and not secrets_in(b"x")


def test_arguments_logs_results_and_object(
    postgres: Any, keeper: Keeper, database: str, s3: Any, bucket: str, engine_env: Dict[str, str], start: Any,
    databases: Any, secrets_in: Any,
) -> None:  # fmt: skip
    postgres.psql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 1000) g; CREATE INDEX ON t (id)", database)
    copy = databases()
    env = command_env(engine_env, keeper, database, s3, bucket)
    with Watch() as watch:
        made = start(env, "backup", "--jobs", "2").finish()
        done = start(env, "restore", made.result["key"], "--target-db", copy, "--strategy", "swap").finish()
    assert (made.code, done.code) == (0, 0)
    calls = keeper.record.read_bytes()
    for program in (b"/pg_dump\0", b"/pg_restore\0", b"/psql\0"):
        assert program in calls
    arguments = b"\n".join(watch.seen)
    assert b"_pgstream.main\0backup" in arguments and b"_pgstream.main\0restore" in arguments and watch.rounds > 3
    assert secrets_in(calls) == [] and secrets_in(arguments) == []
    for outcome in (made, done):
        assert secrets_in((outcome.out + outcome.err).encode()) == []
    stored = s3.client().get_object(Bucket=bucket, Key=made.result["key"])
    assert secrets_in(repr(stored["Metadata"]).encode()) == []
    text = gzip.decompress(stored["Body"].read())
    assert b'{"index":' in text and secrets_in(text) == []
    postgres.dropdb(done.result["old_database"])


def test_failures_do_not_tell(
    postgres: Any, keeper: Keeper, database: str, s3: Any, bucket: str, engine_env: Any, start: Any, secrets_in: Any
) -> None:
    """Refused by either side, with the traceback that --debug adds."""
    postgres.psql("ALTER ROLE %s PASSWORD 'another'" % ROLE)
    env = command_env(engine_env, keeper, database, s3, bucket)
    refused = start(env, "backup", "--debug").finish()
    assert refused.code == 3 and "password authentication failed" in refused.message
    assert "Traceback" in refused.errors[-1]["traceback"]
    env = command_env(engine_env, postgres, database, s3, bucket, RCLONE_S3_ACCESS_KEY_ID="unknown")
    denied = start(env, "backup", "--debug").finish()
    assert denied.code == 4
    flag = start(env, "backup", "--password=" + PASSWORD).finish()
    assert flag.code == 2
    for outcome in (refused, denied, flag):
        assert secrets_in((outcome.out + outcome.err).encode()) == []


def test_values_and_exceptions_do_not_tell(
    postgres: Any, keeper: Keeper, database: str, s3: Any, bucket: str, databases: Any, secrets_in: Any
) -> None:
    server, storage = server_of(keeper), s3_storage(s3, bucket)
    request = BackupRequest(server, database, storage)
    for value in (request, RestoreRequest(server, storage, "key"), server, storage):
        assert secrets_in(repr(value).encode()) == [] and secrets_in(str(value).encode()) == []
    log = KeptLog()
    made = back_up(server, database, storage, log)
    done = restore(server, storage, made.key, log, database=databases())
    assert secrets_in(repr((made, done, log.lines)).encode()) == []
    postgres.psql("ALTER ROLE %s PASSWORD 'another'" % ROLE)
    with pytest.raises(BackupError) as caught:
        back_up(server, database, storage, log)
    error = caught.value
    chain = repr((error, error.args, str(error), error.__cause__, error.__dict__, log.lines))
    assert "password authentication failed" in chain and secrets_in(chain.encode()) == []
