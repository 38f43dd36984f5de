# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What was backed up is what comes back: by our restore, and by the standard tools alone."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
from _pgstream import catalog
from _pgstream.model import Storage

from tests.support import compare, fixture
from tests.support.runs import back_up, local_storage, restore, s3_storage, server_of

DECOMPRESS = {"gzip": ["gunzip", "-c"], "zstd": ["zstd", "-dcq"], "none": ["cat"]}
_ENTRY = re.compile(r"(?m)^(?=--\n-- Name: )")


@pytest.fixture(autouse=True)
def _read_the_source_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons read the original again and again: keep what they found, by server and reader."""
    for name in ("schema_text", "table_digests", "sequence_values", "large_objects", "database_properties"):
        monkeypatch.setattr(compare, name, _remembering(name, getattr(compare, name)))


_remembered: Dict[Tuple[int, str, str], Any] = {}


def _remembering(reader: str, read: Callable[..., Any]) -> Callable[..., Any]:
    def remember(server: Any, db: str, *arguments: Any) -> Any:
        key = (id(server), reader, db)
        value = _remembered.get(key) or read(server, db, *arguments)
        if reader == "schema_text":
            value = _settled(value)
        if db == "everything":
            _remembered[key] = value
        return value

    return remember


def _settled(text: str) -> str:
    """A dump with its entries of publications' tables in one order.

    pg_dump sorts entries by schema and name; two publications of one table are equal in both, so that their order is
    that of their OIDs, which a parallel restore gives as it comes.
    """
    entries = _ENTRY.split(text)
    places = [number for number, entry in enumerate(entries) if "; Type: PUBLICATION TABLE; " in entry]
    for number, entry in zip(places, sorted(entries[number] for number in places)):
        entries[number] = entry
    return "".join(entries)


def differences(postgres: Any, original: str, copy: str, properties: bool = True) -> List[str]:
    return compare.differences(postgres, original, postgres, copy, properties=properties)


@pytest.fixture
def name(postgres: Any, databases: Callable[[], str]) -> str:
    """The name of a database that does not exist yet, and is dropped after the test."""
    name = databases()
    postgres.dropdb(name)
    return name


@pytest.fixture
def twin(postgres: Any, name: str) -> str:
    """An empty database as a person would make it for `gunzip | psql`."""
    fixture.create_database(postgres, name, "UTF8", fixture._utf8_ctype(postgres), fixture.OWNER)
    return name


def object_file(s3: Any, storage: Storage, key: str, tmp_path: Path) -> Path:
    """The stored object as a plain file: fetched by a GET of its own, or where the local store has it."""
    if storage.kind == "local":
        return Path(storage.directory, key)
    path = tmp_path / "object"
    s3.client().download_file(storage.bucket, key, str(path))
    return path


# What a session may be like that a block meets, when it is fed to psql alone.
HOSTILE = {
    "PGCLIENTENCODING": "LATIN1",
    "PGOPTIONS": "-c standard_conforming_strings=off -c xmloption=document -c search_path=pg_temp -c row_security=on"
    " -c backslash_quote=off -c escape_string_warning=on",
}


def psql(postgres: Any, database: str, sql: bytes) -> None:
    """Feed one script to a psql whose session is set up otherwise; it stops at the first error."""
    argv = [os.path.join(postgres.bindir, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]
    run = subprocess.run(argv, input=sql, env={**postgres.env(), **HOSTILE}, stdout=subprocess.DEVNULL,
                         stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert run.returncode == 0, run.stderr.decode("utf-8", "replace")


def pipe_into_psql(postgres: Any, database: str, path: Path, compression: str) -> None:
    """`gunzip -c OBJECT | psql -v ON_ERROR_STOP=1`, and nothing of ours."""
    argv = [os.path.join(postgres.bindir, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]
    with open(str(path), "rb") as source:
        unpack = subprocess.Popen(DECOMPRESS[compression], stdin=source, stdout=subprocess.PIPE)
        load = subprocess.run(
            argv,
            stdin=unpack.stdout,
            env=postgres.env(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert unpack.stdout is not None
        unpack.stdout.close()
        assert load.returncode == 0, load.stderr.decode("utf-8", "replace")
        assert unpack.wait() == 0


@pytest.mark.every_major
def test_every_server_version(postgres: Any, everything: str, quick_s3: Any, quick_bucket: str, name: str) -> None:
    """Four streams out and four in, on each PostgreSQL there is."""
    server, storage = server_of(postgres), s3_storage(quick_s3, quick_bucket)
    made = back_up(server, everything, storage, jobs=4)
    assert made.changed and made.tables > 300 and made.rows == sum(table.rows for table in made.table_rows)
    done = restore(server, storage, made.key, database=name, create=True, jobs=4)
    assert differences(postgres, everything, name) == []
    assert (done.strategy, done.rows, done.tables) == ("create", made.rows, made.tables)


def test_fifteen_and_sixteen_are_among_them(postgres_majors: Dict[int, str]) -> None:
    assert {15, 16} <= set(postgres_majors)


@pytest.mark.parametrize(
    "compression, jobs, kind", [("gzip", 1, "s3"), ("zstd", 4, "s3"), ("none", 4, "local")], ids=str
)
def test_our_restore_and_psql_alone(
    postgres: Any,
    everything: str,
    quick_s3: Any,
    quick_bucket: str,
    databases: Callable[[], str],
    twin: str,
    tmp_path: Path,
    compression: str,
    jobs: int,
    kind: str,
) -> None:
    server = server_of(postgres)
    storage = local_storage(tmp_path / "store")
    if kind == "s3":
        storage = s3_storage(quick_s3, quick_bucket, prefix="nightly")
    made = back_up(server, everything, storage, compression=compression, jobs=jobs)
    path = object_file(quick_s3, storage, made.key, tmp_path)
    assert path.stat().st_size == made.stored_bytes
    if compression == "gzip":
        standard_tools_read(path, made.raw_bytes)

    pipe_into_psql(postgres, twin, path, compression)
    assert differences(postgres, everything, twin, properties=False) == []

    copy = databases()
    postgres.dropdb(copy)
    restore(server, storage, made.key, database=copy, create=True, jobs=1)
    assert differences(postgres, everything, copy) == []


def standard_tools_read(path: Path, raw_bytes: int) -> None:
    """Tested, read from its start and read whole by gzip's own programs and by Python: the same readable bytes."""
    with open(str(path), "rb") as source:
        test = subprocess.run(["gunzip", "-t"], stdin=source, stderr=subprocess.PIPE, check=False)
        assert (test.returncode, test.stderr) == (0, b"")
        source.seek(0)
        text = subprocess.run(["zcat"], stdin=source, stdout=subprocess.PIPE, check=True).stdout
    assert text == gzip.decompress(path.read_bytes())
    assert len(text) > raw_bytes  # the index is part of the text
    assert text.startswith(b"-- pgstream schema archive")
    assert text.splitlines()[-1].startswith(b'-- {"block":{"section":"post"')


def test_each_block_alone(
    postgres: Any, everything: str, quick_s3: Any, quick_bucket: str, twin: str, tmp_path: Path
) -> None:
    """Every block is a whole script: cut out by the index, unpacked by gunzip, each through a psql of its own, and
    those with rows in the reverse of their order."""
    storage = s3_storage(quick_s3, quick_bucket)
    made = back_up(server_of(postgres), everything, storage, jobs=4)
    stored = object_file(quick_s3, storage, made.key, tmp_path).read_bytes()
    blocks = catalog.describe(storage, made.key).blocks
    data = [block for block in blocks if block.section == "data"]
    assert len(data) >= 8
    others = [block for block in blocks if block.section != "data"]
    order = [block for block in others if block.section in ("schema", "pre")] + data[::-1]
    order += [block for block in others if block.section in ("rest", "post")]
    assert len(order) == len(blocks)
    for block in order:
        member = stored[block.offset : block.offset + block.length]
        sql = subprocess.run(["gunzip", "-c"], input=member, stdout=subprocess.PIPE, check=True).stdout
        assert len(sql) == block.raw_length
        psql(postgres, twin, sql)
    assert differences(postgres, everything, twin, properties=False) == []


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_other_encodings(postgres: Any, databases: Callable[[], str], tmp_path: Path, encoding: str) -> None:
    load = {"LATIN1": fixture.load_latin1, "SQL_ASCII": fixture.load_sql_ascii}[encoding]
    source, copy, plain = databases(), databases(), databases()
    for database in (source, copy, plain):
        postgres.dropdb(database)
    load(postgres, source)
    fixture.create_database(postgres, plain, encoding)
    server = server_of(postgres)
    for jobs, compression in ((1, "gzip"), (4, "none")):
        storage = local_storage(tmp_path / compression)
        made = back_up(server, source, storage, jobs=jobs, compression=compression)
        restore(server, storage, made.key, database=copy, strategy="auto" if jobs == 1 else "swap", create=True,
                keep_old=False, jobs=jobs)  # fmt: skip
        assert differences(postgres, source, copy) == []
    pipe_into_psql(postgres, plain, Path(storage.directory, made.key), "none")
    assert differences(postgres, source, plain) == []


def test_backups_of_one_second_are_two(postgres: Any, database: str, s3: Any, bucket: str) -> None:
    """Names have seconds. Nothing hangs on how many are made in one: none takes the place of another."""
    postgres.psql("CREATE TABLE t AS SELECT 1 AS a", database)
    made = [back_up(server_of(postgres), database, s3_storage(s3, bucket)).key for _number in range(5)]
    assert s3.keys(bucket) == made
