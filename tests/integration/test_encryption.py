# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encrypted backups with real servers: what comes back, who can read them, and what is seen of the keys."""

from __future__ import annotations

import base64
import gzip
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, List

import pyrage
import pytest
from _pgstream import catalog, verify
from _pgstream.errors import BackupError, IntegrityError, UsageError
from _pgstream.events import Log
from _pgstream.model import Storage, VerifyRequest
from _pgstream.store import s3
from _pgstream.store.base import open_store

from tests.integration.test_memory import LIMIT, ROWS, measured
from tests.integration.test_secrets import Watch
from tests.support import compare, fixture
from tests.support.agekeys import KeyPair
from tests.support.runs import back_up, command_env, local_storage, restore, s3_storage, server_of

PAIR, OTHER = KeyPair(), KeyPair()


def differences(postgres: Any, original: str, copy: str) -> List[str]:
    return compare.differences(postgres, original, postgres, copy, properties=False)


@pytest.fixture(params=["s3", "local"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return local_storage(tmp_path / "store")
    return s3_storage(request.getfixturevalue("s3"), request.getfixturevalue("bucket"))


def raw(storage: Storage, key: str) -> bytes:
    """The object as it is stored."""
    store = open_store(storage)._inner  # type: ignore[attr-defined]
    item = store.stat(key)
    assert item is not None
    return store.read(key, 0, item.size)


def test_by_us_and_by_standard_tools(
    postgres: Any, everything: str, place: Storage, databases: Callable[[], str]
) -> None:
    """Two recipients: one restores with the engine, in parallel, the other with rage, gunzip and psql."""
    writer = replace(place, age_recipients=(PAIR.recipient, OTHER.recipient))
    made = back_up(server_of(postgres), everything, writer, jobs=2)
    data = raw(place, made.key)
    assert made.key.endswith(".sql.gz.age") and made.stored_bytes == len(data)
    assert data.startswith(b"age-encryption.org/v1\n") and b"COPY" not in data and everything.encode() not in data

    copy = databases()
    done = restore(server_of(postgres), PAIR.reads(place), made.key, database=copy, jobs=4)
    assert done.rows == made.rows and done.jobs == 4
    assert differences(postgres, everything, copy) == []

    by_hand = databases()
    postgres.dropdb(by_hand)
    fixture.create_database(postgres, by_hand, "UTF8", fixture._utf8_ctype(postgres), fixture.OWNER)
    script = gzip.decompress(pyrage.decrypt(data, [pyrage.x25519.Identity.from_str(OTHER.identity)]))
    argv = [os.path.join(postgres.bindir, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", by_hand]
    run = subprocess.run(
        argv, input=script, env=postgres.env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False
    )
    assert run.returncode == 0, run.stderr
    assert differences(postgres, everything, by_hand) == []


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_other_compressions(
    postgres: Any, database: str, tmp_path: Path, databases: Callable[[], str], compression: str
) -> None:
    postgres.psql("CREATE TABLE t AS SELECT g AS id, repeat('x', 300) AS x FROM generate_series(1, 20000) g", database)
    place = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), database, PAIR.writes(place), compression=compression)
    copy = databases()
    assert (
        restore(server_of(postgres), PAIR.reads(place), "latest", source_database=database, database=copy).rows == 20000
    )
    assert made.compression == compression and differences(postgres, database, copy) == []


def test_blocks_are_read_by_ranges_of_their_own(
    postgres: Any, database: str, s3: Any, bucket: str, databases: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a plain object: a restore of one small table does not read the large one."""
    sql = "CREATE TABLE large AS SELECT g AS id, sha256(g::text::bytea) AS x FROM generate_series(1, 300000) g;"
    postgres.psql(sql + "CREATE TABLE small AS SELECT g AS id FROM generate_series(1, 10) g", database)
    place = s3_storage(s3, bucket)
    made = back_up(server_of(postgres), database, PAIR.writes(place), jobs=2)
    read = counted_reads(monkeypatch)
    copy = databases()
    done = restore(server_of(postgres), PAIR.reads(place), made.key, database=copy, tables=("small",), jobs=4)
    assert done.rows == 10 and made.stored_bytes > 5 << 20
    assert sum(read) < 2 << 20, read
    whole = databases()
    read.clear()
    assert restore(server_of(postgres), PAIR.reads(place), made.key, database=whole, jobs=4).rows == 300010
    assert made.stored_bytes * 0.95 < sum(read) < made.stored_bytes * 1.2 + (1 << 20) and len(read) > 5


def counted_reads(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """The lengths of the ranges that S3 is asked for."""
    lengths: List[int] = []
    original = s3_store().stream

    def stream(self: Any, key: str, offset: int, length: int) -> Any:
        lengths.append(length)
        return original(self, key, offset, length)

    monkeypatch.setattr(s3_store(), "stream", stream)
    return lengths


def s3_store() -> Any:
    return s3.S3Store


@pytest.mark.parametrize(
    "identity, said", [("", "no identity is given"), (OTHER.identity, "encrypted for others")], ids=["none", "another"]
)
def test_no_or_another_identity_touches_nothing(
    postgres: Any, database: str, place: Storage, databases: Callable[[], str], identity: str, said: str
) -> None:
    postgres.psql("CREATE TABLE t AS SELECT 1 AS id", database)
    made = back_up(server_of(postgres), database, PAIR.writes(place))
    reader = replace(place, age_identity=identity)
    empty, before = databases(), postgres.psql("SELECT count(*) FROM pg_database")
    attempts: List[Dict[str, Any]] = [
        {"database": empty}, {"database": database, "strategy": "swap"}, {"database": "new_one", "create": True},
    ]  # fmt: skip
    for attempt in attempts:
        with pytest.raises(UsageError, match=said) as caught:
            restore(server_of(postgres), reader, made.key, **attempt)
        assert caught.value.exit_code == 2 and caught.value.stage == "reading the index"
    with pytest.raises(UsageError, match=said):
        verify.verify(VerifyRequest(reader, made.key, "restore", server=server_of(postgres)), Log())
    assert postgres.psql("SELECT count(*) FROM pg_database") == before
    assert postgres.psql("SELECT count(*) FROM pg_class WHERE relname = 't'", empty).strip() == "0"
    assert postgres.psql("SELECT id FROM t", database).strip() == "1"


def test_a_drill_and_a_damaged_chunk(
    postgres: Any, database: str, tmp_path: Path, databases: Callable[[], str]
) -> None:
    postgres.psql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 200000) g", database)
    place = local_storage(tmp_path / "store")
    made = back_up(server_of(postgres), database, PAIR.writes(place))
    for level in ("index", "content", "restore"):
        result = verify.verify(
            VerifyRequest(
                PAIR.reads(place), made.key, level, server=server_of(postgres), compare_source=level == "restore"
            ),
            Log(),
        )
        assert result.verified and result.rows == 200000
    path = Path(place.directory, made.key)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        verify.verify(VerifyRequest(PAIR.reads(place), made.key, "content"), Log())
    copy = databases()
    with pytest.raises(BackupError) as caught:
        restore(server_of(postgres), PAIR.reads(place), made.key, database=copy)
    assert caught.value.exit_code == 6
    assert postgres.psql("SELECT count(*) FROM pg_class WHERE relname = 't'", copy).strip() == "0"


def test_the_command_and_what_is_seen_of_the_keys(
    postgres: Any, database: str, s3: Any, bucket: str, engine_env: Dict[str, str], start: Any,
    databases: Callable[[], str], tmp_path: Path,
) -> None:  # fmt: skip
    postgres.psql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 1000) g", database)
    copy, customer_key = databases(), base64.b64encode(os.urandom(32)).decode()
    recipients, identity = tmp_path / "recipients", tmp_path / "identity"
    recipients.write_text("# the team\n%s\n" % PAIR.recipient)
    identity.write_text("# created by age-keygen\n%s\n%s\n" % (OTHER.identity, PAIR.identity))
    writer = command_env(engine_env, postgres, database, s3, bucket, BACKUP_AGE_RECIPIENTS=str(recipients))
    reader = command_env(engine_env, postgres, database, s3, bucket, BACKUP_AGE_IDENTITY_FILE=str(identity))
    keyless = command_env(engine_env, postgres, database, s3, bucket)
    with Watch() as watch:
        made = start(writer, "backup").finish()
        key = made.result["key"]
        outcomes = [made, start(reader, "restore", key, "--target-db", copy).finish()]
        outcomes.append(start(reader, "verify", key).finish())
        outcomes.append(start({**reader, "BACKUP_AGE_IDENTITY_FILE": "", "BACKUP_AGE_IDENTITY": PAIR.identity},
                              "list").finish())  # fmt: skip
        assert [each.code for each in outcomes] == [0, 0, 0, 0], outcomes
        failed = [
            start(keyless, "restore", key, "--target-db", copy, "--debug").finish(),
            start({**keyless, "BACKUP_AGE_IDENTITY": OTHER.identity}, "verify", key, "--debug").finish(),
            start({**keyless, "BACKUP_AGE_IDENTITY": PAIR.identity[:-1]}, "list", "--debug").finish(),
            start({**keyless, "BACKUP_AGE_RECIPIENTS": PAIR.identity}, "backup", "--debug").finish(),
            start(keyless, "restore", key, "--identity=" + PAIR.identity).finish(),
            start({**keyless, "RCLONE_S3_SSE_CUSTOMER_KEY_BASE64": customer_key[:-4]}, "list", "--debug").finish(),
        ]
    assert [each.code for each in failed] == [2] * 6, failed
    listed = start(keyless, "list").finish().result["backups"]
    assert [(one["key"], one["encrypted"], one["foreign"], one["rows"]) for one in listed] == [(key, True, False, None)]
    (one,) = outcomes[3].result["backups"]
    assert one["rows"] == 1000 and one["foreign"] is False
    texts = [(each.out + each.err).encode() for each in [*outcomes, *failed[:4], failed[5]]]
    for secret in (PAIR.identity[20:-1], OTHER.identity[20:-1], customer_key[:-8]):
        assert [text for text in texts if secret.encode() in text] == []
    arguments = b"\n".join(argv for argv in watch.seen if b"--identity=" not in argv)
    assert PAIR.identity[20:-1].encode() not in arguments and b"_pgstream.main\0restore" in arguments
    assert secret_of(failed[4].out + failed[4].err) == []


def secret_of(text: str) -> List[str]:
    return [part for part in (PAIR.identity, PAIR.identity[20:]) if part in text]


def test_retention_on_a_host_without_identity(
    postgres: Any, database: str, s3: Any, bucket: str, engine_env: Dict[str, str], start: Any
) -> None:
    place = s3_storage(s3, bucket)
    postgres.psql("CREATE TABLE t AS SELECT 1 AS id", database)
    for hour in range(3):  # as yesterday's runs named them
        key = "%s_2026-01-30T0%d:00:00Z.sql.gz.age" % (database, hour)
        back_up(server_of(postgres), database, PAIR.writes(place), key=key)
    env = command_env(engine_env, postgres, database, s3, bucket, BACKUP_AGE_RECIPIENTS=PAIR.recipient)
    done = start(env, "prune", "--keep-last", "1").finish()
    assert done.code == 0 and len(done.result["removed"]) == 2
    (left,) = catalog.candidates(open_store(place))
    assert left.key == key and restore_rows(postgres, place, left.key) == 1


def restore_rows(postgres: Any, place: Storage, key: str) -> int:
    result = verify.verify(VerifyRequest(PAIR.reads(place), key, "content", server=server_of(postgres)), Log())
    return result.rows


def test_peak_memory(
    postgres: Any,
    database: str,
    databases: Any,
    quick_s3: Any,
    quick_bucket: str,
    engine_env: Dict[str, str],
    start: Any,
) -> None:
    """Within the bound of plain backups, though 300 MB pass through."""
    postgres.psql(ROWS % 1550000, database)
    keys = {"BACKUP_AGE_RECIPIENTS": PAIR.recipient, "BACKUP_AGE_IDENTITY": PAIR.identity}
    env = command_env(engine_env, postgres, database, quick_s3, quick_bucket, BACKUP_JOBS="4", **keys)
    made, backing_up = measured(start(env, "backup"))
    _done, restoring = measured(start(env, "restore", made.result["key"], "--target-db", databases()))
    assert made.result["raw_bytes"] > 290e6
    assert max(backing_up.peak, restoring.peak) < LIMIT, (backing_up.peak, restoring.peak)
    print("peak MiB:", round(backing_up.peak), round(restoring.peak))
