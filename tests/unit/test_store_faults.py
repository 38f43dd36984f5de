# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The S3 door against a server that fails: what is asked again and how often, and what counts as committed."""

from __future__ import annotations

import secrets
import threading
from typing import Any, Iterator, List

import pytest
from _pgstream import commit
from _pgstream.errors import BackupError, IntegrityError, StorageError
from _pgstream.events import Log
from _pgstream.model import Storage
from _pgstream.process import Processes
from _pgstream.store import profiles, retry, s3_upload
from _pgstream.store.s3 import S3Store

from tests.support.fake_s3 import WRITE_ONLY, FakeS3, Stored

KIB = 1 << 10
MIB = 1 << 20
OPERATIONS = ("HeadBucket", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "HeadObject")


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


def open_store(s3: FakeS3, **options: Any) -> S3Store:
    return S3Store(
        Storage(bucket="b", endpoint_url=s3.endpoint_url, access_key="a", secret_key="s", **options)
    )  # fmt: skip


@pytest.fixture
def store(s3: FakeS3) -> S3Store:
    return open_store(s3)


def put(store: S3Store, data: bytes = b"data", key: str = "k", overwrite: bool = False, part: int = 1000) -> Any:
    """An upload in parts of 1000 bytes; aborted where it fails, as a backup does."""
    upload: Any = store.begin(key, overwrite, {"pgstream-run": "run"})
    upload._part_size = part
    try:
        upload.write([data])
        return upload.commit()
    except BaseException:
        upload.abort()
        raise


# --- what is asked again


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    "status,code",
    [(500, "InternalError"), (503, "SlowDown"), (503, "ServiceUnavailable"), (429, "TooManyRequests"), (0, "reset")],
)
def test_what_passes_is_asked_again(s3: FakeS3, store: S3Store, operation: str, status: int, code: str) -> None:
    s3.fail(operation, status, code, times=2)
    data = secrets.token_bytes(2500)
    assert put(store, data).size == 2500
    assert s3.buckets["b"]["k"].data == data and s3.unfinished == {}
    assert s3.count(operation) >= 3


@pytest.mark.parametrize("code", ["RequestTimeout", "IncompleteBody", "BadDigest"])
def test_a_body_that_was_cut_on_its_way_is_sent_again(s3: FakeS3, store: S3Store, code: str) -> None:
    s3.fail("UploadPart", 400, code)
    assert put(store).size == 4 and s3.count("UploadPart") == 2


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize(
    "status,code", [(400, "InvalidRequest"), (403, "AccessDenied"), (404, "NoSuchBucket"), (409, "BucketGone")]
)
def test_what_is_refused_is_not(s3: FakeS3, store: S3Store, operation: str, status: int, code: str) -> None:
    s3.fail(operation, status, code, times=100)
    with pytest.raises(StorageError, match="%s, HTTP %d" % (code, status)):
        put(store)
    assert s3.count(operation) == 1
    assert s3.keys("b") == [] and s3.unfinished == {}


@pytest.mark.parametrize("status", [0, 503])
def test_a_store_that_is_gone_is_given_up(s3: FakeS3, store: S3Store, status: int) -> None:
    s3.fail("CreateMultipartUpload", status, "SlowDown", times=100)
    with pytest.raises(StorageError):
        put(store)
    assert s3.count("CreateMultipartUpload") == retry.QUICK


def test_work_that_was_done_is_given_up_later(s3: FakeS3, store: S3Store) -> None:
    s3.fail("UploadPart", 503, "SlowDown", times=100)
    with pytest.raises(StorageError, match="SlowDown"):
        put(store)
    assert s3.count("UploadPart") == retry.PATIENT and s3.unfinished == {}


def test_an_abort_ends_the_waiting(s3: FakeS3, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that are waiting for their next attempt do not hold up the end of a run."""
    monkeypatch.setattr(retry, "FIRST_WAIT", 3600.0)
    monkeypatch.setattr(retry, "LONGEST_WAIT", 3600.0)
    s3.fail("UploadPart", 503, "SlowDown", times=100)
    upload: Any = store.begin("k", False)
    upload._part_size = 10
    upload.write([bytes(30)])
    failed = threading.Event()
    s3.on_request = lambda operation, _key: failed.set() if operation == "UploadPart" else None
    failed.wait(5)
    upload.abort()
    assert s3.unfinished == {} and s3.count("UploadPart") <= s3_upload.PARTS_IN_FLIGHT


def test_the_waits_grow_and_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.5)
    waits: List[float] = []

    class Event(threading.Event):
        def wait(self, timeout: Any = None) -> bool:
            waits.append(timeout)
            return False

    for patient, attempts in ((False, retry.QUICK), (True, retry.PATIENT)):
        waits.clear()
        tries = retry.Retry(60, patient, Event())
        while tries.again():
            pass
        assert len(waits) == attempts - 1
        for number, wait in enumerate(waits):
            longest = min(retry.LONGEST_WAIT, 0.5 * 2**number)
            assert longest / 2 <= wait <= longest
        assert sum(waits) <= (7.5 if attempts == retry.QUICK else 47.5)
    tries = retry.Retry(60, True, Event())
    now = [retry.time.monotonic() + 5 * 60]
    monkeypatch.setattr(retry.time, "monotonic", lambda: now[0])
    assert not tries.again()  # too long ago
    tries.progress()
    assert tries.again() and tries.failures == 1


# --- silence


@pytest.mark.parametrize("operation,how", [
    ("UploadPart", "stall"), ("UploadPart", "deaf"), ("CreateMultipartUpload", "stall"),
    ("CompleteMultipartUpload", "stall"), ("HeadObject", "stall"),
])  # fmt: skip
def test_a_silent_store_is_asked_again(s3: FakeS3, operation: str, how: str) -> None:
    s3.fail(operation, how=how)
    data = secrets.token_bytes(6 * MIB)  # more than the buffers of a connection take
    assert put(open_store(s3, stall_timeout=2), data, part=8 * MIB).size == len(data)
    assert s3.buckets["b"]["k"].data == data and s3.count(operation) >= 2


def test_a_store_that_stays_silent_is_a_failure(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "PATIENT_LIMIT", 1.5)  # times 1 s
    s3.fail("UploadPart", how="stall", times=100)
    with pytest.raises(StorageError, match="[Rr]ead timeout"):
        put(open_store(s3, stall_timeout=1))
    assert 1 <= s3.count("UploadPart") < retry.PATIENT
    assert s3.unfinished == {}


@pytest.mark.parametrize("operation", ["HeadBucket", "AbortMultipartUpload"])
def test_what_has_nothing_to_lose_waits_less_for_silence(s3: FakeS3, operation: str) -> None:
    s3.fail(operation, how="stall", times=100)
    with pytest.raises(StorageError, match="[Rr]ead timeout"):
        open_store(s3, stall_timeout=1).begin("k", False).abort()
    assert 1 <= s3.count(operation) < retry.QUICK


def test_slow_is_not_silent(s3: FakeS3) -> None:
    """A part takes several times the timeout, and always goes on: as a whole `sendall` it would be cut off."""
    s3.fail("UploadPart", how="slow", bytes=2 * MIB)
    data = secrets.token_bytes(12 * MIB)
    assert put(open_store(s3, stall_timeout=2), data, part=16 * MIB).size == len(data)
    assert s3.count("UploadPart") == 1 and s3.buckets["b"]["k"].data == data


def test_a_read_that_hangs_goes_on(s3: FakeS3) -> None:
    data = secrets.token_bytes(MIB)
    s3.buckets["b"]["k"] = Stored(data, "e")
    s3.fail("GetObject", how="hang", bytes=512 * KIB)
    assert open_store(s3, stall_timeout=1).read("k", 0, MIB) == data
    assert s3.ranges == ["bytes=0-1048575", "bytes=524288-1048575"]


# --- ranged reads


def test_a_cut_read_goes_on_at_the_byte_it_came_to(s3: FakeS3, store: S3Store) -> None:
    data = secrets.token_bytes(MIB)
    s3.buckets["b"]["k"] = Stored(data, "e")
    for number in range(20):  # more than the attempts of one failure
        s3.fail("GetObject", how="cut", bytes=1000 + number)
    assert store.read("k", 10, MIB - 20) == data[10:-10]
    asked = [int(each[len("bytes=") :].partition("-")[0]) for each in s3.ranges]
    assert asked == [10 + sum(1000 + before for before in range(number)) for number in range(21)]


@pytest.mark.parametrize("conditional", ["honoured", "ignored"])
def test_an_object_that_is_replaced_while_it_is_read_is_not_mixed(s3: FakeS3, store: S3Store, conditional: str) -> None:
    s3.conditional = conditional
    s3.buckets["b"]["k"] = Stored(b"a" * MIB, "old")
    s3.fail("GetObject", how="cut", bytes=300000)
    pieces = store.stream("k", 0, MIB)
    assert next(pieces)
    s3.buckets["b"]["k"] = Stored(b"b" * MIB, "new")
    with pytest.raises(IntegrityError, match="k was replaced while it was read"):
        list(pieces)
    assert s3.log[-1] == ("GetObject", "k", 412 if conditional == "honoured" else 206)


def test_a_store_that_ignores_ranges(s3: FakeS3, store: S3Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.buckets["b"]["k"] = Stored(b"0123456789", "e")
    boto = store.client.boto

    def whole(params: Any, **_rest: Any) -> None:
        params["headers"].pop("Range")

    boto.meta.events.register("before-call.s3.GetObject", whole)
    assert store.read("k", 0, 4) == b"0123"
    with pytest.raises(IntegrityError, match="sent k from byte 0 on, not from 4"):
        store.read("k", 4, 2)


def test_a_range_behind_the_end(s3: FakeS3, store: S3Store) -> None:
    s3.buckets["b"]["k"] = Stored(b"0123", "e")
    with pytest.raises(IntegrityError, match="k ended 2 bytes early"):
        store.read("k", 8, 2)
    assert s3.count("GetObject") == 1


# --- the completing call


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("status,code", [(0, ""), (500, "InternalError"), (503, "ServiceUnavailable"), (403, "Odd")])
def test_done_and_the_answer_lost(s3: FakeS3, store: S3Store, status: int, code: str, overwrite: bool) -> None:
    s3.fail("CompleteMultipartUpload", status, code, how="after")
    assert put(store, overwrite=overwrite).size == 4
    assert s3.keys("b") == ["k"] and s3.count("CompleteMultipartUpload") == 1
    assert s3.count("AbortMultipartUpload") == s3.count("DeleteObject") == 0


@pytest.mark.parametrize("code", ["InternalError", "AccessDenied", ""])
def test_an_error_with_status_200(s3: FakeS3, store: S3Store, code: str) -> None:
    s3.fail("CompleteMultipartUpload", 200, code, how="embedded", times=100)
    with pytest.raises(StorageError, match="embedded|HTTP 200"):
        put(store)
    assert s3.keys("b") == [] and s3.unfinished == {}
    assert s3.count("CompleteMultipartUpload") == retry.PATIENT


def test_an_error_with_status_200_may_pass(s3: FakeS3, store: S3Store) -> None:
    s3.fail("CompleteMultipartUpload", 200, "InternalError", how="embedded", times=2)
    assert put(store).size == 4 and s3.keys("b") == ["k"]


def test_a_conflict_is_tried_again(s3: FakeS3, store: S3Store) -> None:
    s3.fail("CompleteMultipartUpload", 409, "ConditionalRequestConflict", times=2)
    assert put(store).size == 4 and s3.count("CompleteMultipartUpload") == 3


def test_a_conflict_with_another_run(s3: FakeS3, store: S3Store) -> None:
    s3.fail("CompleteMultipartUpload", 409, "ConditionalRequestConflict", times=100)
    s3.on_request = lambda operation, _key: _theirs(s3) if operation == "CompleteMultipartUpload" else None
    with pytest.raises(StorageError, match="Another run wrote k meanwhile"):
        put(store)
    assert s3.buckets["b"]["k"].data == b"theirs" and s3.unfinished == {}
    assert s3.count("CompleteMultipartUpload") == 1


def _theirs(s3: FakeS3) -> None:
    s3.buckets["b"]["k"] = Stored(b"theirs", "e", {"pgstream-run": "run"})  # of the same correlation id, even


def test_a_store_that_completes_late(s3: FakeS3, store: S3Store) -> None:
    """Every attempt broke, and one of them came true after all: the last look finds it."""
    s3.fail("CompleteMultipartUpload", times=retry.PATIENT)

    def late(operation: str, _key: str) -> None:
        if operation == "AbortMultipartUpload":
            (name, upload), = s3.unfinished.items()  # fmt: skip
            data = b"".join(part.data for _number, part in sorted(upload.parts.items()))
            s3.buckets["b"]["k"] = Stored(data, "e", upload.metadata)
            del s3.unfinished[name]

    s3.on_request = late
    assert put(store).size == 4 and s3.keys("b") == ["k"]


def test_looking_does_not_multiply_the_attempts(s3: FakeS3, store: S3Store) -> None:
    """The store is gone in all respects: one loop of attempts, not one within another."""

    def gone(operation: str, _key: str) -> None:
        if operation == "CompleteMultipartUpload" and s3.count("CompleteMultipartUpload") == 1:
            s3.fail("HeadObject", times=1000)
            s3.fail("AbortMultipartUpload", times=1000)

    s3.on_request = gone
    s3.fail("CompleteMultipartUpload", times=1000)
    with pytest.raises(StorageError, match="Whether k was stored cannot be told"):
        store_and_leave(store)
    assert s3.count("CompleteMultipartUpload") == retry.PATIENT
    assert s3.count("HeadObject") <= retry.PATIENT + retry.QUICK + 1


def store_and_leave(store: S3Store) -> None:
    upload = store.begin("k", False)
    upload.write([b"data"])
    upload.commit()


def test_not_done_at_all(s3: FakeS3, store: S3Store) -> None:
    s3.fail("CompleteMultipartUpload", times=100)
    with pytest.raises(StorageError):
        put(store)
    assert s3.count("CompleteMultipartUpload") == retry.PATIENT
    assert s3.keys("b") == [] and s3.unfinished == {}


def test_what_cannot_be_known_is_said(s3: FakeS3, store: S3Store) -> None:
    """Done, the answer lost, and the key may not look: no success, though it is one."""
    s3.deny = set(WRITE_ONLY)
    s3.fail("CompleteMultipartUpload", how="after")
    with pytest.raises(StorageError, match="Whether k was stored cannot be told.*Access Denied|Whether.*Forbidden"):
        put(store)


def test_what_was_never_done_is_known_without_looking(s3: FakeS3, store: S3Store) -> None:
    s3.deny = set(WRITE_ONLY)
    s3.fail("CompleteMultipartUpload", 503, "SlowDown", times=2)
    assert put(store).size == 4


@pytest.mark.parametrize("operation", ["CompleteMultipartUpload", "HeadObject"])
def test_a_lie_about_the_etag(s3: FakeS3, store: S3Store, operation: str) -> None:
    s3.lies_about_etag = operation
    with pytest.raises(IntegrityError, match="has the ETag"):
        put(store, bytes(2500))
    assert s3.keys("b") == []  # and taken away again


def test_a_lie_about_a_parts_etag(s3: FakeS3, store: S3Store) -> None:
    s3.lies_about_etag = "UploadPart"
    with pytest.raises(StorageError, match="InvalidPart"):
        put(store, bytes(2500))
    assert s3.keys("b") == [] and s3.unfinished == {}


def test_an_etag_of_other_parts(s3: FakeS3, store: S3Store) -> None:
    """Both answers agree, and neither is what the parts make."""
    wrong = "0" * 32 + "-3"
    s3.on_request = lambda operation, _key: _give_etag(s3, wrong) if operation == "HeadObject" else None
    boto = store.client.boto
    boto.meta.events.register("after-call.s3.CompleteMultipartUpload", lambda parsed, **_: parsed.update(ETag=wrong))
    with pytest.raises(IntegrityError, match="its parts make [0-9a-f]{32}-3"):
        put(store, bytes(2500))
    assert s3.keys("b") == []


def test_an_etag_of_another_number_of_parts(s3: FakeS3, store: S3Store) -> None:
    """That much is asked of any store whose ETags look like Amazon's."""
    s3.server_header, wrong = "unknown", "0" * 32 + "-2"
    s3.on_request = lambda operation, _key: _give_etag(s3, wrong) if operation == "HeadObject" else None
    boto = store.client.boto
    boto.meta.events.register("after-call.s3.CompleteMultipartUpload", lambda parsed, **_: parsed.update(ETag=wrong))
    with pytest.raises(IntegrityError, match="an ETag of 2 parts, 3 were sent"):
        put(store, bytes(2500))
    assert s3.keys("b") == []


def _give_etag(s3: FakeS3, etag: str) -> None:
    for stored in s3.buckets["b"].values():
        stored.etag = etag


def test_a_dropped_part(s3: FakeS3, store: S3Store) -> None:
    s3.drops_last_part = True
    with pytest.raises(IntegrityError, match="has 2000 bytes after the upload, 2500 bytes were sent"):
        put(store, bytes(2500))
    assert s3.keys("b") == []


def test_a_dropped_part_and_a_lost_answer(s3: FakeS3, store: S3Store) -> None:
    s3.drops_last_part = True
    s3.fail("CompleteMultipartUpload", how="after")
    with pytest.raises(IntegrityError, match="has 2000 bytes"):
        put(store, bytes(2500))
    assert s3.keys("b") == []


def test_a_spoilt_object_that_may_not_be_removed(s3: FakeS3, store: S3Store) -> None:
    s3.drops_last_part = True
    s3.deny = {"s3:DeleteObject"}
    with pytest.raises(IntegrityError, match="has 2000 bytes.*could not be removed.*Access Denied"):
        put(store, bytes(2500))


def written(store: S3Store) -> Any:
    """As a backup ends."""
    upload: Any = store.begin("k", False, {"pgstream-run": "run"})

    def write() -> Any:
        upload.write([b"data"])
        return "index"

    return commit.written(upload, "k", Log(), Processes(), write, lambda: None, lambda error: error)


def test_a_commit_that_could_not_be_looked_at_is_one_when_it_can(s3: FakeS3, store: S3Store) -> None:
    s3.fail("HeadObject", 503, "SlowDown", times=retry.QUICK)
    index, stored = written(store)
    assert (index, stored.size) == ("index", 4) and s3.keys("b") == ["k"] and s3.unfinished == {}


def test_what_is_wrong_stays_wrong_where_it_cannot_be_removed(s3: FakeS3, store: S3Store) -> None:
    s3.lies_about_etag = "CompleteMultipartUpload"
    s3.deny = {"s3:DeleteObject"}
    with pytest.raises(IntegrityError, match="could not be removed"):
        written(store)
    assert s3.keys("b") == ["k"]


def test_an_object_of_another_run_is_not_removed(s3: FakeS3, store: S3Store) -> None:
    """It overwrote ours between the commit and the look."""
    s3.on_request = lambda operation, _key: _theirs(s3) if operation == "HeadObject" and s3.keys("b") else None
    with pytest.raises(IntegrityError, match="has 6 bytes"):
        put(store, overwrite=True)
    assert s3.buckets["b"]["k"].data == b"theirs"


def test_a_commit_that_cannot_be_looked_at_is_no_success(s3: FakeS3, store: S3Store) -> None:
    s3.on_request = lambda operation, _key: (
        s3.fail("HeadObject", 500, "InternalError", 100) if operation == "CompleteMultipartUpload" else None
    )
    with pytest.raises(StorageError, match="k was completed, and could not be looked at.*verify it"):
        put(store)


def test_an_object_that_shows_late(s3: FakeS3, store: S3Store) -> None:
    s3.on_request = lambda operation, _key: (
        s3.fail("HeadObject", 404, "NoSuchKey", 2) if operation == "CompleteMultipartUpload" else None
    )
    assert put(store).size == 4


# --- the abort


def test_an_abort_is_tried_again(s3: FakeS3, store: S3Store) -> None:
    upload = store.begin("k", False)
    s3.fail("AbortMultipartUpload", 503, "SlowDown", times=2)
    upload.abort()
    assert s3.unfinished == {}


def test_an_abort_that_is_denied_names_the_upload(s3: FakeS3, store: S3Store) -> None:
    s3.deny = {"s3:AbortMultipartUpload"}
    upload = store.begin("k", False)
    (name,) = s3.unfinished
    with pytest.raises(StorageError, match="unfinished upload %s of k is left.*Access Denied" % name):
        upload.abort()
    s3.deny = set()
    upload.abort()  # again, and now it is gone
    assert s3.unfinished == {}


# --- kinds of stores


def test_equal_parts(s3: FakeS3, store: S3Store) -> None:
    s3.equal_parts, s3.smallest_part = True, 1000
    for size in (1, 999, 1000, 1001, 5500):
        assert put(store, bytes(size), "k%d" % size).size == size


def test_a_limit_of_parts(s3: FakeS3, store: S3Store) -> None:
    """Scaleway's 1,000: the size of parts grows with the estimate, and the limit is said and not run into."""
    s3.max_parts = 1000
    store.profile = profiles.SCALEWAY
    upload: Any = store.begin("k", False)
    for estimated in (0, 10**9, 10**11, 2 * 10**12):
        upload.expect(estimated)
        assert upload._part_size * 1000 >= 2 * estimated and upload._part_size >= 8 * MIB
    upload._part_size = 10
    upload.write([bytes(10000)])
    with pytest.raises(StorageError, match="larger than 1000 parts of 10 bytes"):
        upload.write([bytes(10)])
    upload.abort()


@pytest.mark.parametrize("status", [400, 501])
def test_checksum_headers_that_are_refused(s3: FakeS3, store: S3Store, status: int) -> None:
    s3.refuses_checksums = status
    assert put(store).size == 4
    with pytest.raises(StorageError, match="HTTP %d" % status):
        put(open_store(s3, checksums="when_supported"), key="other")


def test_deleting_needs_no_content_md5(s3: FakeS3, store: S3Store) -> None:
    s3.wants_md5_to_delete = True
    put(store)
    store.delete("k")
    assert s3.keys("b") == [] and s3.count("DeleteObjects") == 0


@pytest.mark.parametrize("conditional,completed", [("honoured", 1), ("ignored", 0), ("refused", 0)])
def test_a_key_that_is_taken(s3: FakeS3, store: S3Store, conditional: str, completed: int) -> None:
    """Where the store does not hold the condition, or is not known to, the key is looked at before."""
    s3.conditional = conditional
    store.profile = profiles.AWS if conditional == "honoured" else profiles.GENERIC
    s3.server_header = "unknown"
    _theirs(s3)
    with pytest.raises(StorageError, match="Another run wrote k meanwhile"):
        put(store)
    assert s3.buckets["b"]["k"].data == b"theirs" and s3.unfinished == {}
    assert s3.count("CompleteMultipartUpload") == completed
    assert put(store, overwrite=True).size == 4


def test_a_store_that_refuses_the_condition(s3: FakeS3, store: S3Store) -> None:
    s3.conditional = "refused"
    assert put(store).size == 4 and s3.count("CompleteMultipartUpload") == 2


@pytest.mark.parametrize("header,name", [
    ("AmazonS3", "Amazon S3"), ("MinIO", "MinIO"), ("MinIO/RELEASE.2024", "MinIO"), ("rclone/v1.75.2", "rclone serve"),
    ("Ceph Object Gateway (squid)", "Ceph"), ("nginx", "S3-compatible"), ("", "S3-compatible"),
])  # fmt: skip
def test_a_store_says_what_it_is(s3: FakeS3, store: S3Store, header: str, name: str) -> None:
    s3.server_header = header
    store.begin("k", False).abort()
    assert store.profile.name == name


@pytest.mark.parametrize("endpoint,name", [
    ("", "Amazon S3"), ("https://s3.eu-central-1.amazonaws.com", "Amazon S3"),
    ("https://bucket.s3.cn-north-1.amazonaws.com.cn", "Amazon S3"),
    ("https://amazonaws.com.example.org", "S3-compatible"),
    ("https://0123abc.r2.cloudflarestorage.com", "Cloudflare R2"),
    ("https://0123abc.eu.r2.cloudflarestorage.com", "Cloudflare R2"),
    ("https://s3.fr-par.scw.cloud", "Scaleway"), ("https://storage.googleapis.com", "Google Cloud Storage"),
    ("https://s3.us-west-004.backblazeb2.com", "Backblaze B2"), ("http://minio:9000", "S3-compatible"),
    ("http://127.0.0.1:9000/path", "S3-compatible"), ("https://notamazonaws.com", "S3-compatible"),
])  # fmt: skip
def test_a_host_says_what_store_it_is(endpoint: str, name: str) -> None:
    assert profiles.by_endpoint(endpoint).name == name


def test_profiles_are_sound() -> None:
    for profile in profiles.KNOWN:
        assert profile.hosts or profile.server
        assert profile.conditional in ("honoured", "ignored", "unknown")
        assert profile.lists_uploads in ("by prefix", "all", "unknown")
        assert profile.smallest_part <= s3_upload.SMALLEST_PART < profile.largest_part
        assert profile.max_parts * profile.largest_part >= 5 * 10**12
    assert len({profile.name for profile in profiles.KNOWN}) == len(profiles.KNOWN)


def test_a_failing_store_is_a_backup_error(s3: FakeS3, store: S3Store) -> None:
    """No fault of the store comes up as anything else."""
    for operation in OPERATIONS:
        for how in ("before", "embedded"):
            s3.fail(operation, 400 if how == "before" else 200, "Odd", how=how)
            try:
                put(store, key="k" + operation + how)
            except BackupError:
                pass
