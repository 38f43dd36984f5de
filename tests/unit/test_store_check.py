# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Credentials that may do little, the check that says what they may, and the sweep of what killed runs left."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List, Optional, Set

import pytest
from _pgstream import catalog, check
from _pgstream.errors import NoStoreError, NotFoundError, StorageError
from _pgstream.model import Finding, Server, Storage
from _pgstream.store import retry
from _pgstream.store.s3 import UNFINISHED_AGE, S3Store

from tests.support.fake_s3 import READ_ONLY, WRITE_ONLY, FakeS3, Stored
from tests.support.runs import KeptLog

OLD = datetime.now(timezone.utc) - UNFINISHED_AGE - timedelta(minutes=1)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")


@pytest.fixture
def s3() -> Iterator[FakeS3]:
    with FakeS3() as server:
        server.make_bucket("b")
        yield server


def open_store(s3: FakeS3, prefix: str = "p") -> S3Store:
    return S3Store(Storage(bucket="b", prefix=prefix, endpoint_url=s3.endpoint_url, access_key="a", secret_key="s"))


# --- the check


def states(findings: List[Finding]) -> Dict[str, Optional[bool]]:
    return {each.name: each.ok for each in findings}


def faults(findings: List[Finding]) -> List[str]:
    return [each.name for each in findings if each.ok is False and each.needed]


ALL = {
    "store": True, "multipart upload": True, "aborting an upload": True, "deleting": True, "completing an upload": True,
    "conditional put": True, "listing": True, "reading": True, "reading a range": True,
    "listing unfinished uploads": True, "cleaning up": True,
}  # fmt: skip


def without(*missing: str, **changes: Optional[bool]) -> Dict[str, Optional[bool]]:
    changed = {**ALL, **{name.replace("_", " "): ok for name, ok in changes.items()}}
    return {name: ok for name, ok in changed.items() if name not in missing}


@pytest.mark.parametrize("deny,expected", [
    (set(), ALL),
    ({"s3:ListBucket"}, without(listing=False)),
    ({"s3:ListBucketMultipartUploads"}, without(listing_unfinished_uploads=False)),
    ({"s3:AbortMultipartUpload"}, without("conditional put", aborting_an_upload=False)),
    ({"s3:GetObject"}, without(reading=False, reading_a_range=False)),
    ({"s3:DeleteObject"}, without("conditional put", "cleaning up", "reading a range", deleting=False,
                                  completing_an_upload=None, reading=None)),
    (WRITE_ONLY, without("conditional put", "cleaning up", "reading a range", deleting=False, listing=False,
                         completing_an_upload=None, reading=None, listing_unfinished_uploads=False)),
    (READ_ONLY, without("conditional put", "cleaning up", "reading a range", "aborting an upload",
                        "completing an upload", multipart_upload=False, deleting=False, reading=None,
                        listing_unfinished_uploads=False)),
], ids=["nothing", "list", "uploads", "abort", "get", "delete", "write-only", "read-only"])  # fmt: skip
def test_what_is_denied_is_found(s3: FakeS3, deny: Set[str], expected: Dict[str, Optional[bool]]) -> None:
    s3.deny = set(deny)
    findings = open_store(s3).check()
    assert states(findings) == expected
    assert faults(findings) == (["multipart upload"] if deny == READ_ONLY else [])
    assert all(each.detail == "denied" for each in findings if each.ok is False and not each.needed
               and each.name != "aborting an upload")  # fmt: skip
    assert s3.keys("b") == []
    assert len(s3.unfinished) == (1 if deny == {"s3:AbortMultipartUpload"} else 0)  # the one that was tried


def test_an_upload_that_may_not_be_aborted_is_named(s3: FakeS3) -> None:
    s3.deny = {"s3:AbortMultipartUpload", "s3:DeleteObject"}
    (found,) = [each for each in open_store(s3).check() if each.name == "aborting an upload"]
    (name,) = s3.unfinished
    assert name in found.detail and "Access Denied" in found.detail


def test_what_is_there_is_read_where_nothing_may_be_made(s3: FakeS3) -> None:
    s3.buckets["b"]["p/shop_2026-01-31T02:00:00Z.sql.gz"] = Stored(b"data", "e")
    s3.deny = set(READ_ONLY)
    found = states(open_store(s3).check())
    assert found["reading"] is True and found["reading a range"] is True and found["multipart upload"] is False


@pytest.mark.parametrize("conditional,said", [("ignored", "ignored"), ("refused", "NotImplemented")])
def test_conditions_that_are_not_held(s3: FakeS3, conditional: str, said: str) -> None:
    s3.conditional = conditional
    findings = open_store(s3).check()
    (found,) = [each for each in findings if not each.ok]
    assert found.name == "conditional put" and said in found.detail and not found.needed
    assert s3.keys("b") == [] and s3.unfinished == {}


def test_a_store_that_loses_parts_is_found(s3: FakeS3) -> None:
    s3.drops_last_part = True
    findings = open_store(s3).check()
    assert faults(findings) == ["completing an upload"]
    assert s3.keys("b") == []


def test_no_bucket(s3: FakeS3) -> None:
    s3.buckets.clear()
    with pytest.raises(NoStoreError):
        open_store(s3).check()


@pytest.mark.parametrize("deny,code,first", [
    (set(), 0, "backup works"), (WRITE_ONLY, 0, "backup works"),
    (READ_ONLY, 4, "a backup would fail: multipart upload"),
], ids=["all", "write-only", "read-only"])  # fmt: skip
def test_conclusions(s3: FakeS3, monkeypatch: pytest.MonkeyPatch, deny: Set[str], code: int, first: str) -> None:
    monkeypatch.setattr(check, "_server", lambda *_arguments: [Finding("server reachable", True, "")])
    s3.deny = set(deny)
    result = check.check(Server(), open_store(s3).storage, "shop", KeptLog())
    assert (result.exit_code, result.ok, result.conclusions[0]) == (code, code == 0, first)
    if deny == WRITE_ONLY:
        assert "listing fails: list, latest, fresh_within and retention will not work" in result.conclusions
    monkeypatch.setattr(check, "_server", lambda *_arguments: [Finding("server reachable", False, "gone")])
    result = check.check(Server(), open_store(s3).storage, "shop", KeptLog())
    assert (result.exit_code, result.ok) == (1, False)
    assert result.conclusions[0].startswith("a backup would fail: server reachable")


# --- credentials that may do little


def test_write_only(s3: FakeS3) -> None:
    s3.deny = set(WRITE_ONLY)
    store = open_store(s3)
    assert store.probe("p/k") is None
    upload = store.begin("p/k", False, {"pgstream-run": "r"})
    upload.write([b"data"])
    done = upload.commit()
    assert done.size == 4 and done.etag.endswith("-1") and s3.buckets["b"]["p/k"].data == b"data"
    again = store.begin("p/k", False)
    with pytest.raises(StorageError, match="Another run wrote p/k meanwhile"):
        again.commit()
    again.abort()
    assert s3.buckets["b"]["p/k"].data == b"data" and s3.unfinished == {}


def test_read_only(s3: FakeS3) -> None:
    key = "p/shop_2026-01-31T02:00:00Z.sql.gz"
    s3.buckets["b"][key] = Stored(b"0123456789", "e")
    s3.deny = set(READ_ONLY)
    store = open_store(s3)
    assert catalog.latest(store, "shop").key == key == catalog.find(store, key[2:]).key
    assert store.read(key, 3, 4) == b"3456"
    with pytest.raises(NotFoundError):
        catalog.find(store, "none.sql.gz")
    with pytest.raises(StorageError, match="Access Denied"):
        store.begin("p/k", False)
    s3.deny |= {"s3:ListBucket"}  # a key that is known is all that a restore needs
    assert catalog.find(store, key).size == 10 and store.read(key, 3, 4) == b"3456"
    assert not any(status == 200 for operation, _key, status in s3.log if "Upload" in operation or "Put" in operation)


# --- the sweep


def unfinished(s3: FakeS3, store: S3Store, key: str, initiated: Optional[datetime] = OLD) -> None:
    name = store.create(key, {})
    if initiated is not None:
        s3.unfinished[name].initiated = initiated


OURS = [
    "p/shop_2026-01-31T02:00:00Z.sql.gz", "p/shop_2026-01-31T02:00:00Z.sql.zst", "p/shop_2026-01-31T02:00:00Z.sql",
    "p/a%2Fb_c_2026-01-31T02:00:00Z.sql.gz",
]  # fmt: skip
FOREIGN = [
    "p/shop.sql.gz", "p/shop_2026-01-31.sql.gz", "p/shop_2026-01-31T02:00:00Z.tar", "p/video.mp4",
    "p/deep/shop_2026-01-31T02:00:00Z.sql.gz", "shop_2026-01-31T02:00:00Z.sql.gz",
    "p2/shop_2026-01-31T02:00:00Z.sql.gz", "p/shop_2026-02-31T02:00:00Z.sql.gz", "p/.pgstream-check-00",
]  # fmt: skip


@pytest.mark.parametrize("listing,server", [
    ("by prefix", "AmazonS3"), ("by key", "MinIO"), ("by key", "unknown"), ("by prefix", "unknown")
])  # fmt: skip
def test_what_is_old_and_ours_is_swept(s3: FakeS3, listing: str, server: str) -> None:
    """MinIO lists unfinished uploads by whole key or all of them: it is asked for all, where it can be told."""
    s3.lists_uploads, s3.server_header = listing, server
    store, log = open_store(s3), KeptLog()
    store.require_bucket()
    for key in OURS + FOREIGN:
        unfinished(s3, store, key)
    young = "p/young_2026-01-31T02:00:00Z.sql.gz"
    unfinished(s3, store, young, datetime.now(timezone.utc) - UNFINISHED_AGE + timedelta(minutes=5))
    catalog.sweep(store, log)
    assert sorted(each.key for each in s3.unfinished.values()) == sorted([*FOREIGN, young])
    assert [(event, sorted(fields["keys"])) for _level, event, fields in log.lines] == [("swept", sorted(OURS))]
    catalog.sweep(store, log)
    assert len(log.lines) == 1


def test_without_a_prefix(s3: FakeS3) -> None:
    store = open_store(s3, "")
    unfinished(s3, store, "shop_2026-01-31T02:00:00Z.sql.gz")
    unfinished(s3, store, "p/shop_2026-01-31T02:00:00Z.sql.gz")
    catalog.sweep(store, KeptLog())
    assert [each.key for each in s3.unfinished.values()] == ["p/shop_2026-01-31T02:00:00Z.sql.gz"]


@pytest.mark.parametrize("deny", ["s3:ListBucketMultipartUploads", "s3:AbortMultipartUpload"])
def test_what_may_not_be_swept_fails_nothing(s3: FakeS3, deny: str) -> None:
    store, log = open_store(s3), KeptLog()
    unfinished(s3, store, OURS[0])
    s3.deny = {deny}
    catalog.sweep(store, log)
    ((level, event, fields),) = log.lines
    assert (level, event) == ("INFO", "not_swept") and "Access Denied" in str(fields["message"])
    assert len(s3.unfinished) == 1


def test_two_that_sweep_at_once(s3: FakeS3) -> None:
    store = open_store(s3)
    for key in OURS:
        unfinished(s3, store, key)
    gone: List[Any] = []

    def another(operation: str, key: str) -> None:
        if operation == "AbortMultipartUpload" and not gone:
            gone.extend(name for name, upload in s3.unfinished.items() if upload.key == key)
            del s3.unfinished[gone[0]]

    s3.on_request = another
    log = KeptLog()
    catalog.sweep(store, log)
    assert s3.unfinished == {} and len(gone) == 1 and log.events() == ["swept"]
