# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many objects deleted: against moto, with its versions, locks and pages, and for other stores' ways against a bucket
made up here."""

from __future__ import annotations

import base64
import hashlib
import secrets
from datetime import datetime, timedelta, timezone
from typing import Any, Dict, Iterator, List, Optional

import pytest
from _pgstream import prune
from _pgstream.errors import StorageError
from _pgstream.model import PruneRequest, Retention, Storage
from _pgstream.store import s3_delete
from _pgstream.store.base import FAILED, LOCKED, REMOVED, StoredObject
from _pgstream.store.s3 import S3Store
from botocore.exceptions import ClientError
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from tests.support.made import backup_bytes, put_backup

NOW = datetime.now(timezone.utc).replace(microsecond=0)
DAY = timedelta(days=1)


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this host's own credentials."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield "http://%s:%d" % (host, port)
    server.stop()


class Watched:
    """A store on moto that notes each request by operation."""

    def __init__(self, endpoint: str, locks: bool = False, **more: Any) -> None:
        bucket = "b-" + secrets.token_hex(6)
        self.store = S3Store(
            Storage(bucket=bucket, endpoint_url=endpoint, region="us-east-1", access_key="a", secret_key="s", **more)
        )
        self.client = self.store.client.boto
        self.client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=locks)
        self.bucket = bucket
        self.requests: List[str] = []
        self.sent: List[Any] = []
        self.client.meta.events.register("before-send.s3", self._seen)

    def _seen(self, request: Any, event_name: str, **_rest: Any) -> None:
        self.requests.append(event_name.rpartition(".")[2])
        self.sent.append(request)

    def versioned(self) -> None:
        self.client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def keys(self) -> List[str]:
        return sorted((item.key for item in self.store.list("")), reverse=True)

    def versions(self) -> Dict[str, List[Any]]:
        found = self.client.list_object_versions(Bucket=self.bucket)
        return {kind: found.get(kind, []) for kind in ("Versions", "DeleteMarkers")}


@pytest.fixture
def watched(endpoint: str) -> Watched:
    return Watched(endpoint)


def nights(watched: Watched, count: int) -> List[str]:
    return [put_backup(watched.store, NOW - number * DAY) for number in range(count)]


# --- against a server


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_one_batch_with_its_md5(endpoint: str, checksums: str) -> None:
    """Content-MD5 and nothing else: stores that know no CRC32 refuse it, and those that want MD5 want it."""
    watched = Watched(endpoint, checksums=checksums)
    made = nights(watched, 4)
    watched.requests.clear(), watched.sent.clear()
    outcomes = list(watched.store.delete_many(made[1:]))
    assert [(one.key, one.outcome) for one in outcomes] == [(key, REMOVED) for key in made[1:]]
    assert watched.requests == ["HeadObject", "HeadObject", "DeleteObjects"] and watched.keys() == made[:1]
    sent = watched.sent[2]
    digest = base64.b64encode(hashlib.md5(sent.body).digest()).decode()
    names = {name.lower(): value for name, value in sent.headers.items()}
    assert names["content-md5"] in (digest, digest.encode())
    assert not [name for name in names if name.startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]
    signed = names["authorization"]
    assert "content-md5" in (signed.decode() if isinstance(signed, bytes) else signed)


def test_thousands_over_pages_and_batches(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,003 backups are two pages of a listing, and 1,001 deletions two batches."""
    data = backup_bytes(NOW)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    times = [NOW - timedelta(hours=number) for number in range(1003)]
    made = ["shop_%s.sql.gz" % moment.strftime("%Y-%m-%dT%H:%M:%SZ") for moment in times]
    for key in made:
        backend.put_object(watched.bucket, key, data)
    monkeypatch.setattr(prune, "open_store", lambda _storage: watched.store)
    result = prune.prune(PruneRequest(watched.store.storage, "shop", Retention(keep_last=2)))
    assert watched.keys() == made[:2] and [one.key for one in result.removed] == made[:1:-1]
    assert result.freed_bytes == 1001 * len(data)
    counts = {
        name: watched.requests.count(name) for name in ("DeleteObjects", "DeleteObject", "HeadObject", "GetObject")
    }
    # A footer of each, and footer and index of the newest; the newest, and two or one of each batch, looked at.
    assert counts == {"DeleteObjects": 2, "DeleteObject": 0, "HeadObject": 4, "GetObject": 1003 + 2}


def test_a_page_that_fails_removes_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of three, by every way in which it can."""
    made = nights(watched, 6)
    original = S3Store.list
    pages: List[int] = []

    def fault(kind: str) -> Any:
        def small_pages(params: Dict[str, Any], **_event: Any) -> None:
            params["MaxKeys"] = 2

        def answer(parsed: Dict[str, Any], **_event: Any) -> None:
            pages.append(1)
            if len(pages) == 2 and kind == "no token":
                parsed.pop("NextContinuationToken")  # and still truncated
            if len(pages) == 2 and kind == "refused":
                parsed.clear()
                raise ClientError(
                    {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "List"
                )

        def listed(self: S3Store, prefix: str) -> Any:
            self.client.boto.meta.events.register("before-parameter-build.s3.ListObjectsV2", small_pages)
            self.client.boto.meta.events.register("after-call.s3.ListObjectsV2", answer)
            return original(self, prefix)

        return listed

    for kind, said in (("no token", "ends its listing early"), ("refused", "AccessDenied")):
        pages.clear()
        monkeypatch.setattr(S3Store, "list", fault(kind))
        with pytest.raises(StorageError, match=said):
            prune.prune(PruneRequest(watched.store.storage, "shop", Retention(keep_last=1)))
        assert len(pages) == 2
    monkeypatch.undo()
    assert watched.keys() == made


def lock(watched: Watched, key: str, mode: str = "COMPLIANCE", until: Optional[datetime] = None) -> None:
    retention = {"Mode": mode, "RetainUntilDate": until or NOW + 30 * DAY}
    watched.client.put_object_retention(Bucket=watched.bucket, Key=key, Retention=retention)


def test_what_is_locked_is_kept_and_said(endpoint: str) -> None:
    """Retention in both modes and a legal hold; what was locked once goes. Nothing is hidden by a marker either."""
    watched = Watched(endpoint, locks=True)
    made = nights(watched, 6)
    lock(watched, made[5])
    lock(watched, made[4], "GOVERNANCE")
    watched.client.put_object_legal_hold(Bucket=watched.bucket, Key=made[3], LegalHold={"Status": "ON"})
    lock(watched, made[2], until=NOW - DAY)
    result = prune.prune(PruneRequest(watched.store.storage, "shop", Retention(keep_last=1)))
    assert {one.key: one.why for one in result.kept} == {
        made[0]: ("last 1",), **{key: ("locked",) for key in made[3:]},
    }  # fmt: skip
    assert [one.key for one in result.removed] == [made[2], made[1]]
    assert watched.keys() == [made[0], *made[3:]]
    left = watched.versions()
    assert (len(left["Versions"]), left["DeleteMarkers"]) == (4, [])
    again = prune.prune(PruneRequest(watched.store.storage, "shop", Retention(keep_last=1)))
    assert not again.changed and len(again.kept) == 4


def test_in_a_bucket_with_versions_they_go_for_good(watched: Watched) -> None:
    before = nights(watched, 2)  # from before there were versions: theirs is `null`
    watched.versioned()
    newer = [put_backup(watched.store, NOW + timedelta(seconds=number - 2)) for number in range(2)]
    assert {one.outcome for one in watched.store.delete_many([before[1], newer[0]])} == {REMOVED}
    left = watched.versions()
    assert sorted(item["Key"] for item in left["Versions"]) == sorted([before[0], newer[1]])
    assert left["DeleteMarkers"] == []


def test_what_is_gone_already_is_gone(watched: Watched) -> None:
    made = nights(watched, 2)
    for keys in (["shop_2020-01-01T00:00:00Z.sql.gz", made[1]], [made[1]]):
        assert {one.outcome for one in watched.store.delete_many(keys)} == {REMOVED}
    assert watched.keys() == made[:1]


def test_no_bucket_is_told(endpoint: str) -> None:
    storage = Storage(bucket="absent", endpoint_url=endpoint, region="us-east-1", access_key="a", secret_key="s")
    with pytest.raises(StorageError, match="NoSuchBucket|does not exist"):
        prune.prune(PruneRequest(storage, "shop", Retention(keep_last=1)))


# --- against a bucket made up here


def refused(status: int, code: str, message: str = "") -> StorageError:
    error = StorageError("S3 bucket b inaccessible: %s (%s)" % (message or code, code))
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    error.__cause__ = ClientError(answer, "Operation")
    return error


class Bucket:
    """Answers as a test says: `batch` and `single` are raised, or called with the keys."""

    def __init__(self, batch: Any = None, single: Any = None, head: Any = None) -> None:
        self.client = self
        self.batch, self.single, self.head_says = batch, single, head
        self.asked: List[Any] = []

    def stat(self, key: str) -> StoredObject:
        return StoredObject(key, 1)

    def head(self, key: str) -> Any:
        if isinstance(self.head_says, Exception):
            raise self.head_says
        return self.head_says

    def call(self, operation: str, **arguments: Any) -> Any:
        if operation == "delete_objects":
            wanted = [target["Key"] for target in arguments["Delete"]["Objects"]]
            answer = self.batch
        else:
            wanted, answer = [arguments["Key"]], self.single
        self.asked.append((operation, len(wanted)))
        if callable(answer):
            answer = answer(*wanted)
        if isinstance(answer, Exception):
            raise answer
        return answer if answer is not None else {"Deleted": [{"Key": key} for key in wanted]}


def outcomes(bucket: Bucket, *keys: str) -> Dict[str, str]:
    return {one.key: one.outcome for one in s3_delete.delete_many(bucket, keys or ("k1", "k2", "k3"))}


@pytest.mark.parametrize(
    "status, code",
    [(400, "InvalidArgument"), (400, "NotImplemented"), (501, "NotImplemented"), (405, "MethodNotAllowed"),
     (400, "MissingContentMD5")],
)  # fmt: skip
def test_a_store_without_batches_is_asked_once(status: int, code: str) -> None:
    bucket = Bucket(batch=refused(status, code))
    keys = ["k%d" % number for number in range(1500)]
    assert outcomes(bucket, *keys) == {key: REMOVED for key in keys}
    assert bucket.asked == [("delete_objects", 1000)] + [("delete_object", 1)] * 1500


@pytest.mark.parametrize("status, code", [(403, "AccessDenied"), (404, "NoSuchBucket"), (503, "SlowDown"), (0, "")])
def test_other_refusals_of_a_batch_come_up(status: int, code: str) -> None:
    bucket = Bucket(batch=refused(status, code))
    with pytest.raises(StorageError):
        outcomes(bucket)
    assert bucket.asked == [("delete_objects", 3)]


def test_what_a_batch_did_not_do_is_tried_alone() -> None:
    """k1 failed for once, of k2 not a word was said, k3 is named in both lists."""
    answer = {
        "Deleted": [{"Key": "k3"}, {"Key": "k4"}],
        "Errors": [{"Key": "k1", "Code": "InternalError", "Message": "try again"}, {"Key": "k3", "Code": "X"}],
    }
    bucket = Bucket(batch=lambda *_keys: answer)
    assert outcomes(bucket, "k1", "k2", "k3", "k4") == dict.fromkeys(["k1", "k2", "k3", "k4"], REMOVED)
    assert bucket.asked == [("delete_objects", 4)] + [("delete_object", 1)] * 3


@pytest.mark.parametrize(
    "status, code, message",
    [
        (403, "AccessDenied", "Access Denied because object protected by object lock."),
        (400, "InvalidRequest", "Object is WORM protected and cannot be overwritten"),
        (403, "AccessDenied", "forbidden by object lock"),
        (409, "ObjectUnderRetention", "the object is under retention until 2030"),
        (403, "AccessDenied", "a legal hold is in place"),
    ],
)
@pytest.mark.parametrize("batches", [True, False])
def test_stores_say_in_their_own_words_that_it_is_locked(batches: bool, status: int, code: str, message: str) -> None:
    said = {"Errors": [{"Key": "k1", "Code": code, "Message": message}]}
    single = refused(status, code, message)
    bucket = Bucket(batch=(lambda *_keys: said) if batches else refused(501, "NotImplemented"), single=single)
    assert outcomes(bucket, "k1") == {"k1": LOCKED}


@pytest.mark.parametrize(
    "head, outcome",
    [
        ({"ObjectLockRetainUntilDate": NOW}, LOCKED),
        ({"ObjectLockLegalHoldStatus": "ON"}, LOCKED),
        ({"ObjectLockLegalHoldStatus": "OFF"}, FAILED),
        ({}, FAILED),
        (None, FAILED),
        (StorageError("no"), FAILED),
    ],
)
def test_a_bare_no_is_asked_for_its_reason(head: Any, outcome: str) -> None:
    """An `Access Denied` that says no more is a lock only if the object says so; else the key may not delete."""
    said = {"Errors": [{"Key": "k1", "Code": "AccessDenied", "Message": "Access Denied"}]}
    bucket = Bucket(batch=lambda *_keys: said, single=refused(403, "AccessDenied", "Access Denied"), head=head)
    assert outcomes(bucket, "k1") == {"k1": outcome}


def test_a_failure_that_is_no_refusal_ends_it() -> None:
    bucket = Bucket(batch=refused(501, "NotImplemented"), single=refused(500, "InternalError"))
    with pytest.raises(StorageError, match="InternalError"):
        outcomes(bucket)
    assert bucket.asked == [("delete_objects", 3), ("delete_object", 1)]


def test_a_python_without_md5_leaves_it_to_botocore(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_md5(*_arguments: Any, **_options: Any) -> Any:
        raise ValueError("unsupported hash type md5")

    monkeypatch.setattr(hashlib, "md5", no_md5)
    params: Dict[str, Any] = {"body": b"x", "headers": {}, "context": {"checksum": {"request_algorithm": "crc32"}}}
    s3_delete.content_md5(params)
    assert params["headers"] == {} and params["context"]["checksum"]
