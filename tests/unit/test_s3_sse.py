# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encryption by the store: what each request says, with a server that holds it to its word, and with moto."""

from __future__ import annotations

import base64
import os
import secrets
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Dict, Iterator, List

import pytest
from _pgstream import catalog
from _pgstream.errors import StorageError
from _pgstream.model import Storage
from _pgstream.store import retry, s3_sse
from _pgstream.store.base import Store, open_store
from moto.server import ThreadedMotoServer

from tests.support.agekeys import KeyPair
from tests.support.fake_s3 import FakeS3
from tests.support.made import put_backup

MIB = 1 << 20
NIGHT = datetime(2026, 1, 31, 2, tzinfo=timezone.utc)
KEY = base64.b64encode(os.urandom(32)).decode()
OTHER = base64.b64encode(os.urandom(32)).decode()


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield "http://%s:%d" % (host, port)
    server.stop()


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeS3]:
    with FakeS3() as server:
        yield server


def storage_at(endpoint: str, **options: Any) -> Storage:
    import boto3

    bucket = "b" + secrets.token_hex(6)
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket=bucket)
    return Storage(bucket=bucket, endpoint_url=endpoint, region="us-east-1", access_key="a", secret_key="s", **options)


@pytest.fixture(params=["fake", "moto"])
def storage(request: pytest.FixtureRequest) -> Storage:
    server = request.getfixturevalue(request.param)
    return storage_at(getattr(server, "endpoint_url", server), sse_customer_key=KEY)


def put(store: Store, key: str, data: bytes) -> None:
    upload = store.begin(key, False)
    upload.write([data])
    assert upload.commit().size == len(data)


def test_a_backup_in_parts_comes_back(storage: Storage) -> None:
    """Create, every part, the completing call and its HEAD carry the key: without it the server refuses."""
    data = os.urandom(17 * MIB)
    store = open_store(storage)
    put(store, "k.sql.gz", data)
    item = store.stat("k.sql.gz")
    assert item is not None and item.size == len(data)
    assert store.read("k.sql.gz", 9 * MIB, 100) == data[9 * MIB : 9 * MIB + 100]
    assert store.read("k.sql.gz", 0, len(data)) == data


@pytest.mark.parametrize("key", ["", OTHER], ids=["none", "other"])
def test_without_the_key_or_with_another_nothing_is_read(fake: FakeS3, key: str) -> None:
    storage = storage_at(fake.endpoint_url, sse_customer_key=KEY)
    put(open_store(storage), "k.sql.gz", b"data")
    store = open_store(replace(storage, sse_customer_key=key))
    for ask in (lambda: store.stat("k.sql.gz"), lambda: store.read("k.sql.gz", 0, 4)):
        with pytest.raises(StorageError, match="400") as caught:
            ask()
        assert ("Check sse_customer_key" in caught.value.hint) == bool(key)
        assert KEY not in repr(caught.value.__dict__) and OTHER not in str(caught.value)


def test_listing_needs_no_key_and_deleting_has_it(storage: Storage) -> None:
    key = put_backup(open_store(storage), NIGHT)
    (one,) = catalog.candidates(open_store(replace(storage, sse_customer_key="")))
    assert one.key == key
    assert [done.outcome for done in open_store(storage).delete_many([key])] == ["removed"]


def test_a_check_of_the_bucket_uses_the_key(storage: Storage) -> None:
    findings = open_store(storage).check()
    assert [each.name for each in findings if each.ok is False and each.needed] == []
    assert {each.name: each.ok for each in findings}["reading a range"] is True


def test_with_age_too(storage: Storage) -> None:
    pair = KeyPair()
    key = put_backup(open_store(pair.writes(storage)), NIGHT)
    store = open_store(pair.reads(storage))
    item = store.stat(key)
    assert item is not None and key.endswith(".sql.gz.age")
    index = catalog.read_index(store, item)
    assert index is not None and index.rows == 3


@pytest.mark.parametrize("mode", ["AES256", "aws:kms"])
def test_modes_of_the_store(moto: str, mode: str) -> None:
    storage = storage_at(moto, encryption_mode=mode)
    store = open_store(storage)
    put(store, "k.sql.gz", b"data")
    head: Dict[str, Any] = store._inner.head("k.sql.gz")  # type: ignore[attr-defined]
    assert head["ServerSideEncryption"] == mode and store.read("k.sql.gz", 0, 4) == b"data"


def test_parameters() -> None:
    storage = Storage(bucket="b", encryption_mode="aws:kms", encryption_kms_key_id="alias/x")
    assert s3_sse.of_object(storage) == {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/x"}
    assert s3_sse.of_object(Storage(bucket="b")) == s3_sse.of_request(Storage(bucket="b"), "get_object") == {}
    with_key = Storage(bucket="b", sse_customer_key=KEY)
    asked: List[str] = [name for name in ("head_object", "upload_part") if s3_sse.of_request(with_key, name)]
    assert asked == ["head_object", "upload_part"] and s3_sse.of_request(with_key, "delete_object") == {}
    assert KEY not in repr(with_key)


NO_KEYS = ["", "x", KEY[:-1], KEY[4:], base64.b64encode(bytes(33)).decode(), KEY + "\n\u00e9"]


@pytest.mark.parametrize("text", NO_KEYS, ids=range(len(NO_KEYS)))
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="is not 32 bytes in base64"):
        s3_sse.check_customer_key(text)
