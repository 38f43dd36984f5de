# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The S3 door: against moto, a server in this process, and for exact faults against a client made up here."""

from __future__ import annotations

import hashlib
import io
import secrets
import socket
import threading
import time
import traceback
import tracemalloc
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Callable, Dict, Iterator, List, Optional

import boto3
import pytest
from _pgstream import catalog
from _pgstream.errors import (
    BackupError,
    Cancelled,
    IntegrityError,
    NoStoreError,
    NotFoundError,
    StorageError,
    UsageError,
)
from _pgstream.model import Storage
from _pgstream.store import profiles, retry, s3_client, s3_upload
from _pgstream.store import s3 as module
from _pgstream.store.s3 import S3Store
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)
from botocore.parsers import ResponseParserError
from moto.server import ThreadedMotoServer

MIB = 1 << 20
PATIENCE = 60  # seconds until a wait is given up; never a measure of speed
ACCESS, SECRET, TOKEN = "AKIDACCESSKEY", "the-secret-key-itself", "the-session-token-itself"
RUN = {"pgstream-run": "run-1"}
MODIFIED = datetime(2026, 1, 31, 2, 0, 0, 123, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this host's own credentials, no questions to a cloud's metadata service, no waiting before retries."""
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield "http://%s:%d" % (host, port)
    server.stop()


def settings(endpoint: str, bucket: str, **more: Any) -> Storage:
    return Storage(
        bucket=bucket, endpoint_url=endpoint, region="us-east-1", access_key=ACCESS, secret_key=SECRET,
        session_token=TOKEN, **more,
    )  # fmt: skip


@pytest.fixture
def store(endpoint: str) -> S3Store:
    made = S3Store(settings(endpoint, "b-" + secrets.token_hex(6)))
    made.client.boto.create_bucket(Bucket=made.storage.bucket)
    return made


def put(store: S3Store, key: str, data: bytes, overwrite: bool = False) -> Any:
    upload = store.begin(key, overwrite, RUN)
    upload.write([data])
    return upload.commit()


def multiparts(store: S3Store) -> List[Any]:
    return store.client.boto.list_multipart_uploads(Bucket=store.storage.bucket).get("Uploads", [])


# --- against a server


@pytest.mark.parametrize("size", [0, 8 * MIB - 1, 8 * MIB, 20 * MIB])
def test_written_and_read(store: S3Store, size: int) -> None:
    data = hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1)
    data = data[:size]
    upload = store.begin("k", False, RUN)
    for start in range(0, size, 3 * MIB + 7):
        upload.write([data[start : start + 1000], data[start + 1000 : start + 3 * MIB + 7]])
    assert store.stat("k") is None  # not before the commit
    done = upload.commit()
    assert (done.key, done.size) == ("k", size) and done.etag and done.modified_at.endswith("Z")
    assert store.read("k", 0, size) == data
    assert store.read("k", size // 2, size - size // 2) == data[size // 2 :]
    assert multiparts(store) == []
    head = store.head("k")
    assert head is not None and head["Metadata"].items() >= RUN.items()
    # The ETag of a multipart object ends with the number of its parts.
    assert done.etag.endswith("-%d" % max(1, -(-size // (8 * MIB))))


def test_abort_leaves_no_multipart_upload(store: S3Store) -> None:
    upload = store.begin("k", False, RUN)
    upload.write([bytes(9 * MIB)])
    assert len(multiparts(store)) == 1
    upload.abort()
    assert multiparts(store) == [] and store.stat("k") is None
    upload.abort()
    with pytest.raises(Cancelled):
        upload.write([bytes(9 * MIB)])


def test_abort_after_a_commit_takes_nothing_back(store: S3Store) -> None:
    upload = store.begin("k", False, RUN)
    upload.write([b"x"])
    upload.commit()
    upload.abort()
    assert store.read("k", 0, 1) == b"x"


def test_overwrite_where_it_is_asked(store: S3Store) -> None:
    put(store, "k", b"old")
    put(store, "k", b"newer", overwrite=True)
    assert store.read("k", 0, 5) == b"newer"


def test_listing_goes_on_over_pages(store: S3Store) -> None:
    pages: List[Any] = []

    def few(params: Dict[str, Any], **_rest: Any) -> None:
        params["MaxKeys"] = 5
        pages.append(params)

    for number in range(23):
        store.client.boto.put_object(Bucket=store.storage.bucket, Key="p/%04d" % number, Body=b"xy")
    store.client.boto.meta.events.register("provide-client-params.s3.ListObjectsV2", few)
    store.client.boto.put_object(Bucket=store.storage.bucket, Key="q/a b \u00e9", Body=b"")
    found = list(store.list("p/"))
    assert len(found) == 23 and {item.size for item in found} == {2} and len(pages) == 5
    assert [item.key for item in store.list("q/")] == ["q/a b \u00e9"]
    assert len(list(store.list(""))) == 24


def test_check_leaves_nothing(store: S3Store) -> None:
    findings = store.check()
    assert [(each.name, each.ok) for each in findings if not each.ok] == []
    assert {"completing an upload", "conditional put", "reading a range", "cleaning up"} <= {f.name for f in findings}
    assert multiparts(store) == [] and list(store.list("")) == []


def test_no_such_bucket(endpoint: str) -> None:
    store = S3Store(settings(endpoint, "no-such-bucket"))
    with pytest.raises(StorageError, match="bucket no-such-bucket does not exist.*Create the bucket") as caught:
        store.begin("k", False)
    assert caught.value.exit_code == 4
    with pytest.raises(StorageError, match="no-such-bucket inaccessible at http://.*NoSuchBucket"):
        list(store.list(""))
    with pytest.raises(NoStoreError):
        store.check()


def test_no_such_bucket_is_not_called_a_missing_backup(endpoint: str) -> None:
    """HEAD of a key says 404 for both: who asked for a backup must hear that the bucket is not there."""
    with pytest.raises(StorageError, match="no-such-bucket"):
        catalog.find(S3Store(settings(endpoint, "no-such-bucket")), "a.sql.gz")


def test_reading_what_is_not_there(store: S3Store) -> None:
    with pytest.raises(NotFoundError, match="Backup not found: s3://%s/none" % store.storage.bucket):
        store.read("none", 0, 1)
    assert store.stat("none") is None is store.probe("none")
    store.delete("none")


def test_encryption_is_asked_for(endpoint: str) -> None:
    bucket = "b-" + secrets.token_hex(6)
    store = S3Store(settings(endpoint, bucket, encryption_mode="aws:kms", encryption_kms_key_id="key-1"))
    store.client.boto.create_bucket(Bucket=bucket)
    put(store, "k", b"x")
    head = store.head("k")
    assert head is not None and head["ServerSideEncryption"] == "aws:kms" and head["SSEKMSKeyId"] == "key-1"


@pytest.mark.parametrize("checksums", ["when_required", "when_supported"])
def test_checksums_of_parts_are_named_again(endpoint: str, checksums: str) -> None:
    bucket = "b-" + secrets.token_hex(6)
    store = S3Store(settings(endpoint, bucket, checksums=checksums))
    store.client.boto.create_bucket(Bucket=bucket)
    sent: List[Dict[str, Any]] = []
    store.client.boto.meta.events.register(
        "provide-client-params.s3.CompleteMultipartUpload", lambda params, **_rest: sent.append(params)
    )
    put(store, "k", bytes(9 * MIB))
    named = [set(part) for part in sent[0]["MultipartUpload"]["Parts"]]
    assert len(named) == 2
    assert all(
        ("ChecksumCRC32" in names or "ChecksumCRC64NVME" in names) == (checksums == "when_supported") for names in named
    )


def test_nobody_at_the_endpoint() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused
        store = S3Store(settings("http://127.0.0.1:%d" % held.getsockname()[1], "b"))
        for use in (lambda: store.begin("k", False), lambda: store.stat("k"), lambda: store.read("k", 0, 1)):
            with pytest.raises(StorageError, match="inaccessible at http://127.0.0.1.*Check the endpoint") as caught:
                use()
            assert caught.value.exit_code == 4


# --- against a client made up here


def refused(status: int, code: str, message: str = "", operation: str = "Operation") -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)


class Client:
    """An S3 client whose answers a test decides: `faults` maps an operation to what is called instead of it."""

    def __init__(self) -> None:
        self.faults: Dict[str, Callable[..., Any]] = {}
        self.calls: List[str] = []
        self.parts: Dict[int, int] = {}
        self.objects: Dict[str, Dict[str, Any]] = {}
        self.uploads = 0
        self.metadata: Dict[str, str] = {}
        self.bodies: Dict[str, bytes] = {}
        self.lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(**arguments: Any) -> Any:
            with self.lock:
                self.calls.append(name)
            if name in self.faults:
                return self.faults[name](**arguments)
            return getattr(self, "do_" + name)(**arguments)

        if name.startswith("do_"):
            raise AttributeError(name)
        return call

    def do_head_bucket(self, **_rest: Any) -> Dict[str, Any]:
        return {}

    def do_create_multipart_upload(self, Metadata: Dict[str, str], **_rest: Any) -> Dict[str, Any]:
        self.uploads += 1
        self.metadata = Metadata
        return {"UploadId": "u"}

    def do_upload_part(self, PartNumber: int, Body: bytes, **_rest: Any) -> Dict[str, Any]:
        with self.lock:
            self.parts[PartNumber] = len(Body)
        return {"ETag": '"%d"' % PartNumber, "ResponseMetadata": {}}

    def do_complete_multipart_upload(
        self, Key: str, MultipartUpload: Dict[str, Any], IfNoneMatch: str = "", **_rest: Any
    ) -> Dict[str, Any]:
        if IfNoneMatch == "*" and Key in self.objects:
            raise refused(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold")
        assert [part["PartNumber"] for part in MultipartUpload["Parts"]] == sorted(self.parts)
        self.uploads -= 1
        self.objects[Key] = self.described(sum(self.parts.values()), self.metadata)
        return {"ETag": '"whole-%d"' % len(self.parts), "VersionId": "v1"}

    @staticmethod
    def described(size: int, metadata: Dict[str, str]) -> Dict[str, Any]:
        theirs = {name.title(): value for name, value in metadata.items()}  # as some stores give them back
        return {"ContentLength": size, "LastModified": MODIFIED, "ETag": '"whole"', "Metadata": theirs}

    def do_abort_multipart_upload(self, **_rest: Any) -> Dict[str, Any]:
        self.uploads -= 1
        return {}

    def do_head_object(self, Key: str, **_rest: Any) -> Dict[str, Any]:
        if Key not in self.objects:
            raise refused(404, "404", "Not Found")
        return self.objects[Key]

    def do_delete_object(self, Key: str, **_rest: Any) -> Dict[str, Any]:
        self.objects.pop(Key, None)
        return {}

    def do_get_object(self, Key: str, Range: str, **_rest: Any) -> Dict[str, Any]:
        start, end = (int(number) for number in Range[len("bytes=") :].split("-"))
        return {"Body": io.BytesIO(self.bodies[Key][start : end + 1]), "ContentRange": "bytes %d-%d/99" % (start, end)}


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def fake(client: Client, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    with monkeypatch.context() as patch:
        patch.setattr(s3_client, "make_client", lambda storage: client)
        return S3Store(settings("http://127.0.0.1:9", "bucket"))


def failing(error: BaseException) -> Callable[..., Any]:
    def call(**_arguments: Any) -> Any:
        raise error

    return call


def after(real: Callable[..., Any], error: BaseException) -> Callable[..., Any]:
    """Done, and the answer lost."""

    def call(**arguments: Any) -> Any:
        real(**arguments)
        raise error

    return call


def lost() -> ConnectionClosedError:
    return ConnectionClosedError(endpoint_url="http://127.0.0.1:9")


def begun(store: S3Store, data: bytes = b"data", overwrite: bool = False) -> Any:
    upload = store.begin("k", overwrite, RUN)
    upload.write([data])
    return upload


def test_parts_are_equal_but_the_last(fake: S3Store, client: Client) -> None:
    upload = fake.begin("k", False, RUN)
    upload.expect(600 * 10**9)
    size = 2 * 600 * 10**9 // 10000
    size = -(-size // MIB) * MIB
    upload._part_size = size // MIB  # the same arithmetic in bytes, for the test's memory
    written = 0
    for number in range(3000):
        piece = bytes(number % 97)
        written += len(piece)
        upload.write([piece])
    upload.commit()
    sizes = [client.parts[number] for number in sorted(client.parts)]
    assert sorted(client.parts) == list(range(1, len(sizes) + 1))
    assert set(sizes[:-1]) == {size // MIB} and 0 < sizes[-1] <= size // MIB and sum(sizes) == written


def test_twice_the_estimate_fits_the_parts_of_the_store(fake: S3Store) -> None:
    upload: Any = fake.begin("k", False)
    for estimated in (0, 10**9, 42 * 10**9, 10**12, 2 * 10**13):
        upload.expect(estimated)
        assert upload._part_size >= 8 * MIB and -(-2 * estimated // upload._part_size) <= 10000


def test_too_many_parts_are_told(fake: S3Store, client: Client) -> None:
    fake.profile = replace(fake.profile, max_parts=5)
    upload: Any = fake.begin("k", False)
    upload._part_size = 10
    upload.write([bytes(50)])
    with pytest.raises(StorageError, match="larger than 5 parts of 10 bytes.*too low"):
        upload.write([bytes(10)])
    upload.abort()
    assert client.objects == {} and client.uploads == 0


def test_an_exact_multiple_has_no_empty_part(fake: S3Store, client: Client) -> None:
    upload: Any = fake.begin("k", False)
    upload._part_size = 10
    upload.write([bytes(7), bytes(23)])
    upload.commit()
    assert client.parts == {1: 10, 2: 10, 3: 10}


def test_nothing_written_is_one_empty_part(fake: S3Store, client: Client) -> None:
    fake.begin("k", False).commit()
    assert client.parts == {1: 0}


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_parts_in_memory(fake: S3Store, client: Client) -> None:
    """While no part gets through, the writer comes to a stand when PARTS_IN_FLIGHT are sent and one more is full."""
    gate = threading.Event()
    waiting: List[int] = []

    def upload_part(**arguments: Any) -> Any:
        waiting.append(arguments["PartNumber"])
        assert gate.wait(PATIENCE)
        return client.do_upload_part(**arguments)

    client.faults["upload_part"] = upload_part
    upload: Any = fake.begin("k", False)
    upload._part_size = 1000
    begun: List[int] = []

    def write() -> None:
        for number in range(20):
            begun.append(number)
            upload.write([bytes(1000)])

    thread = threading.Thread(target=write)
    thread.start()
    wait_for(lambda: len(waiting) == s3_upload.PARTS_IN_FLIGHT and len(begun) == s3_upload.PARTS_IN_FLIGHT + 2)
    time.sleep(0.2)  # it would go on now, if it went on
    assert len(begun) == s3_upload.PARTS_IN_FLIGHT + 2 and len(waiting) == s3_upload.PARTS_IN_FLIGHT
    gate.set()
    thread.join(PATIENCE)
    upload.commit()
    assert len(client.parts) == 20


def test_bytes_in_memory(fake: S3Store) -> None:
    upload: Any = fake.begin("k", False)
    upload._part_size = MIB
    tracemalloc.start()
    try:
        for _piece in range(40 * 8):
            upload.write([bytes(MIB // 8)])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    upload.commit()
    # Buffers are used again, and what is written is copied once. Without a bound it would be 40.
    assert peak < (s3_upload.PARTS_IN_FLIGHT + 2) * MIB


def test_a_part_that_fails_fails_the_next_write_and_the_commit(fake: S3Store, client: Client) -> None:
    client.faults["upload_part"] = failing(refused(403, "AccessDenied", "Access Denied"))
    upload: Any = fake.begin("k", False)
    upload._part_size = 10
    with pytest.raises(StorageError, match="Access Denied"):
        for _piece in range(100):
            upload.write([bytes(10)])
            time.sleep(0.001)
    with pytest.raises(StorageError, match="Access Denied"):
        upload.commit()
    upload.abort()
    assert client.objects == {} and client.uploads == 0 and "complete_multipart_upload" not in client.calls


def test_the_first_failed_part_is_the_cause(fake: S3Store, client: Client) -> None:
    """A part that was given up because another failed comes before it by number, and is no cause."""
    upload: Any = fake.begin("k", False)
    upload._part_size = 10
    upload._failure = StorageError("the cause")
    upload._parts.append(upload._pool.submit(_cancelled))
    with pytest.raises(StorageError, match="the cause"):
        upload.commit()
    upload.abort()


def _cancelled() -> Any:
    raise Cancelled("an echo")


def test_abort_waits_for_parts_under_way(fake: S3Store, client: Client) -> None:
    """A part that came after the abort would stay in the bucket, and be paid for."""
    order: List[str] = []
    started, gate = threading.Event(), threading.Event()

    def upload_part(**arguments: Any) -> Any:
        started.set()
        assert gate.wait(PATIENCE)
        order.append("part")
        return client.do_upload_part(**arguments)

    client.faults["upload_part"] = upload_part
    client.faults["abort_multipart_upload"] = lambda **_rest: order.append("abort")
    upload: Any = fake.begin("k", False)
    upload._part_size = 10
    upload.write([bytes(10)])
    assert started.wait(PATIENCE)
    thread = threading.Thread(target=upload.abort)
    thread.start()
    wait_for(upload._stopped.is_set)
    gate.set()
    thread.join(PATIENCE)
    assert order == ["part", "abort"]


def test_an_upload_gone_already_is_aborted(fake: S3Store, client: Client) -> None:
    client.faults["abort_multipart_upload"] = failing(refused(404, "NoSuchUpload"))
    fake.begin("k", False).abort()
    client.faults["abort_multipart_upload"] = failing(refused(500, "InternalError", "We are sorry"))
    with pytest.raises(StorageError, match="We are sorry"):
        fake.begin("k", False).abort()


@pytest.mark.parametrize(
    "status,code", [(412, "PreconditionFailed"), (409, "ConditionalRequestConflict"), (412, "412")]
)
def test_a_key_taken_meanwhile(fake: S3Store, client: Client, status: int, code: str) -> None:
    theirs = client.described(4, {"pgstream-run": "another"})
    client.objects["k"] = theirs
    fake.profile = profiles.AWS
    client.faults["complete_multipart_upload"] = failing(refused(status, code, "did not hold"))
    upload = begun(fake)
    with pytest.raises(StorageError, match="did not hold.*Another run wrote k meanwhile"):
        upload.commit()
    upload.abort()
    assert client.objects["k"] is theirs and client.uploads == 0
    assert client.calls.count("complete_multipart_upload") == 1 and "delete_object" not in client.calls


def test_the_condition_is_sent_unless_overwriting(fake: S3Store, client: Client) -> None:
    sent: List[Dict[str, Any]] = []

    def complete(**arguments: Any) -> Any:
        sent.append(arguments)
        return client.do_complete_multipart_upload(**arguments)

    client.faults["complete_multipart_upload"] = complete
    begun(fake).commit()
    begun(fake, overwrite=True).commit()
    assert [each.get("IfNoneMatch") for each in sent] == ["*", None]


def test_a_second_writer_loses(fake: S3Store, client: Client) -> None:
    client.objects["k"] = client.described(9, {"pgstream-run": "another"})
    upload = begun(fake)
    with pytest.raises(StorageError, match="Another run"):
        upload.commit()
    assert client.objects["k"]["ContentLength"] == 9


@pytest.mark.parametrize("status,code", [(501, "NotImplemented"), (501, "501"), (400, "NotImplemented")])
def test_a_store_without_the_condition(fake: S3Store, client: Client, status: int, code: str) -> None:
    def complete(**arguments: Any) -> Any:
        if "IfNoneMatch" in arguments:
            raise refused(status, code, "A header you provided implies functionality that is not implemented")
        return client.do_complete_multipart_upload(**arguments)

    client.faults["complete_multipart_upload"] = complete
    assert begun(fake).commit().size == 4
    assert client.calls.count("complete_multipart_upload") == 2


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("error", [
    lost(),
    ReadTimeoutError(endpoint_url="x"),
    refused(500, "InternalError", "We encountered an internal error"),
    refused(404, "NoSuchUpload", "The specified upload does not exist"),  # the client's own second attempt
    refused(412, "PreconditionFailed", "did not hold"),  # the same, and what is in the way is ours
], ids=["closed", "timeout", "500", "no upload", "412"])  # fmt: skip
def test_a_lost_answer_of_the_commit_is_settled_by_looking(
    fake: S3Store, client: Client, error: BaseException, overwrite: bool
) -> None:
    client.faults["complete_multipart_upload"] = after(client.do_complete_multipart_upload, error)
    upload = begun(fake, overwrite=overwrite)
    assert upload.commit().size == 4
    upload.abort()
    assert "k" in client.objects and "abort_multipart_upload" not in client.calls


@pytest.mark.parametrize("there", [
    None, ("run-1", 5), ("another", 4), ("", 4),
], ids=["nothing", "another size", "another run", "no metadata"])  # fmt: skip
def test_a_failed_commit_is_a_failure(fake: S3Store, client: Client, there: Any) -> None:
    if there:
        client.objects["k"] = client.described(there[1], {"pgstream-run": there[0]} if there[0] else {})
    before = dict(client.objects)
    fake.profile = profiles.AWS
    client.faults["complete_multipart_upload"] = failing(lost())
    upload = begun(fake)
    with pytest.raises(StorageError, match="Check the endpoint and the network"):
        upload.commit()
    upload.abort()
    assert client.objects == before and client.uploads == 0


def test_a_failed_commit_that_cannot_be_looked_at(fake: S3Store, client: Client) -> None:
    client.faults["complete_multipart_upload"] = failing(lost())
    client.faults["head_object"] = failing(refused(403, "403", "Forbidden"))
    with pytest.raises(StorageError, match="Connection was closed"):
        begun(fake).commit()


@pytest.mark.parametrize("stored", [3, 5, None])
def test_another_size_than_was_sent(fake: S3Store, client: Client, stored: Optional[int]) -> None:
    deleted: List[Dict[str, Any]] = []

    def head(**_rest: Any) -> Any:
        if stored is None:
            raise refused(404, "404")
        return client.described(stored, client.metadata)

    client.faults["head_object"] = head
    client.faults["delete_object"] = lambda **arguments: deleted.append(arguments)
    with pytest.raises(IntegrityError, match="after the upload, 4 bytes were sent") as caught:
        begun(fake).commit()
    assert caught.value.exit_code == 6
    assert deleted == [{"Bucket": "bucket", "Key": "k", "VersionId": "v1"}]  # that version alone


def test_a_key_that_may_write_and_not_look(fake: S3Store, client: Client) -> None:
    client.faults["head_object"] = failing(refused(403, "403", "Forbidden"))
    assert fake.probe("k") is None
    with pytest.raises(StorageError, match="403.*Check what the key may do"):
        fake.stat("k")
    done = begun(fake).commit()
    assert (done.size, done.version_id, done.etag) == (4, "v1", "whole-1") and "k" in client.objects
    assert "delete_object" not in client.calls


def test_other_faults_of_looking_come_up(fake: S3Store, client: Client) -> None:
    client.faults["head_object"] = failing(refused(500, "500", "Internal"))
    with pytest.raises(StorageError, match="Internal"):
        fake.probe("k")
    with pytest.raises(StorageError, match="Internal"):
        begun(fake).commit()


# --- ranged reads


class Broken(io.BytesIO):
    """A body that gives `good` bytes and then breaks: by an exception, or by ending."""

    def __init__(self, data: bytes, good: int, error: Optional[BaseException]) -> None:
        super().__init__(data[:good])
        self._error = error

    def read(self, size: Optional[int] = -1) -> bytes:
        piece = super().read(size)
        if not piece and self._error is not None:
            raise self._error
        return piece


@pytest.mark.parametrize("error", [
    ResponseStreamingError(error="reset"), IncompleteReadError(actual_bytes=1, expected_bytes=2),
    ReadTimeoutError(endpoint_url="x"), ConnectionResetError("reset"), None,
], ids=lambda error: type(error).__name__)  # fmt: skip
def test_a_broken_read_goes_on_where_it_broke(fake: S3Store, client: Client, error: Optional[BaseException]) -> None:
    """As often as it must: each time something arrived counts as progress."""
    data = secrets.token_bytes(100000)
    ranges: List[str] = []

    def get_object(Key: str, Range: str, **_rest: Any) -> Any:
        ranges.append(Range)
        start, end = (int(number) for number in Range[len("bytes=") :].split("-"))
        return {"Body": Broken(data[start : end + 1], 7000, error), "ContentRange": "bytes %d-%d/100000" % (start, end)}

    client.faults["get_object"] = get_object
    assert fake.read("k", 100, 90000) == data[100:90100]
    assert ranges[:2] == ["bytes=100-90099", "bytes=7100-90099"] and len(ranges) == 13 > retry.PATIENT


@pytest.mark.parametrize(
    "error,raised", [(ResponseStreamingError(error="reset"), StorageError), (None, IntegrityError)]
)
def test_a_read_without_progress_ends(fake: S3Store, client: Client, error: Any, raised: Any) -> None:
    client.faults["get_object"] = lambda **_rest: {"Body": Broken(b"", 0, error)}
    with pytest.raises(raised):
        fake.read("k", 0, 10)
    assert client.calls.count("get_object") == retry.PATIENT


def test_a_failed_connection_is_tried_again(fake: S3Store, client: Client) -> None:
    client.bodies["k"] = b"0123456789"
    left = [3]

    def get_object(**arguments: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise EndpointConnectionError(endpoint_url="x")
        return client.do_get_object(**arguments)

    client.faults["get_object"] = get_object
    assert fake.read("k", 2, 5) == b"23456"


def test_a_refused_read_is_not_tried_again(fake: S3Store, client: Client) -> None:
    client.faults["get_object"] = failing(refused(403, "AccessDenied", "Access Denied"))
    with pytest.raises(StorageError, match="Access Denied"):
        fake.read("k", 0, 1)
    assert client.calls.count("get_object") == 1
    client.faults["get_object"] = failing(refused(404, "NoSuchKey"))
    with pytest.raises(NotFoundError, match="Backup not found: s3://bucket/k"):
        fake.read("k", 0, 1)


def test_pieces_are_small_and_bodies_closed(fake: S3Store, client: Client) -> None:
    data = bytes(3 * MIB + 5)
    bodies: List[io.BytesIO] = []

    def get_object(**_rest: Any) -> Any:
        bodies.append(io.BytesIO(data))
        return {"Body": bodies[-1]}

    client.faults["get_object"] = get_object
    sizes = [len(piece) for piece in fake.stream("k", 0, len(data))]
    assert sum(sizes) == len(data) and max(sizes) <= module.PIECE
    pieces: Any = fake.stream("k", 0, len(data))
    next(pieces)
    pieces.close()  # a reader that stops early leaves no connection in use
    assert all(body.closed for body in bodies)


# --- what is said


@pytest.mark.parametrize("status,code,message,hint", [
    (403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist", "Check the access key."),
    (403, "SignatureDoesNotMatch", "The request signature we calculated does not match", "Check the secret key."),
    (403, "AccessDenied", "Access Denied", "Check what the key may do with this bucket."),
    (404, "NoSuchBucket", "No such bucket", "Create the bucket, or check its name and the endpoint."),
    (400, "ExpiredToken", "The provided token has expired", "Renew the session token."),
    (403, "RequestTimeTooSkewed", "The difference is too large", "Set the clock of this host."),
    (301, "PermanentRedirect", "Use another endpoint", "Set the bucket's own region."),
    (400, "AuthorizationHeaderMalformed", "The region is wrong", "Set the bucket's own region."),
    (418, "Teapot", "short and stout", ""),
])  # fmt: skip
def test_what_the_store_said_and_a_hint(
    fake: S3Store, client: Client, status: int, code: str, message: str, hint: str
) -> None:
    client.faults["create_multipart_upload"] = failing(refused(status, code, message))
    with pytest.raises(StorageError) as caught:
        fake.begin("k", False)
    said = "S3 bucket bucket inaccessible at http://127.0.0.1:9: %s (%s, HTTP %d)" % (message, code, status)
    assert caught.value.message == said and caught.value.hint == hint


@pytest.mark.parametrize("error,hint", [
    (NoCredentialsError(), "Give access_key and secret_key"),
    (EndpointConnectionError(endpoint_url="http://x"), "Check the endpoint"),
    (SSLError(endpoint_url="https://x", error="self-signed"), "aws_ca_bundle"),
], ids=lambda value: type(value).__name__)  # fmt: skip
def test_what_stands_before_the_store(fake: S3Store, client: Client, error: BaseException, hint: str) -> None:
    client.faults["head_bucket"] = failing(error)
    with pytest.raises(StorageError, match=hint):
        fake.begin("k", False)


@pytest.mark.parametrize("error,quick,patient", [
    (ConnectTimeoutError(endpoint_url="http://x"), 1, retry.PATIENT),  # the kernel itself asked for a minute
    (SSLError(endpoint_url="https://x", error="certificate verify failed: self-signed"), 1, 1),
    (SSLError(endpoint_url="https://x", error="EOF occurred in violation of protocol"), retry.QUICK, retry.PATIENT),
    (NoCredentialsError(), 1, 1),
    (ResponseParserError("Unable to parse response, invalid XML received"), retry.QUICK, retry.PATIENT),
], ids=["connecting", "certificate", "cut off", "credentials", "half an answer"])  # fmt: skip
def test_what_is_worth_another_attempt(
    fake: S3Store, client: Client, error: BaseException, quick: int, patient: int
) -> None:
    upload = begun(fake)
    client.faults["upload_part"] = client.faults["create_multipart_upload"] = failing(error)
    client.calls.clear()
    with pytest.raises(StorageError):
        upload.commit()
    assert client.calls.count("upload_part") == patient
    with pytest.raises(StorageError):
        fake.begin("k", False)
    assert client.calls.count("create_multipart_upload") == quick


def test_a_part_without_an_etag(fake: S3Store, client: Client) -> None:
    client.faults["upload_part"] = lambda **_rest: {}
    upload = begun(fake)
    with pytest.raises(IntegrityError, match="no ETag for part 1 of k"):
        upload.commit()
    upload.abort()
    assert client.objects == {} and client.uploads == 0


def test_a_forbidden_bucket_is_told_by_the_next_request(fake: S3Store, client: Client) -> None:
    """HEAD has no body: 403 there may be a key that may only write."""
    client.faults["head_bucket"] = failing(refused(403, "403", "Forbidden"))
    assert begun(fake).commit().size == 4


def test_no_secret_is_ever_said(endpoint: str, fake: S3Store, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    real = S3Store(settings(endpoint, "no-such-bucket"))
    errors: List[BaseException] = []
    for status, code in ((403, "SignatureDoesNotMatch"), (403, "InvalidAccessKeyId"), (400, "ExpiredToken")):
        client.faults["create_multipart_upload"] = failing(refused(status, code, "no"))
        with pytest.raises(BackupError) as caught:
            fake.begin("k", False)
        errors.append(caught.value)
    with pytest.raises(BackupError) as caught:
        list(real.list(""))
    errors.append(caught.value)
    said = [repr(real.storage), str(real.storage), repr(real), repr(vars(real)), caplog.text]
    for error in errors:
        said += [str(error), repr(error), "".join(traceback.format_exception(type(error), error, error.__traceback__))]
    for text in said:
        assert SECRET not in text and TOKEN not in text and ACCESS not in text


# --- the client


@pytest.mark.parametrize("style,endpoint_url,path", [
    ("auto", "http://127.0.0.1:9", True), ("auto", "", False), ("path", "", True), ("virtual", "http://h:9", False),
])  # fmt: skip
def test_addressing(style: str, endpoint_url: str, path: bool) -> None:
    storage = Storage(bucket="bucket", endpoint_url=endpoint_url, region="eu-central-1", addressing_style=style,
                      access_key=ACCESS, secret_key=SECRET)  # fmt: skip
    url = S3Store(storage).client.boto.generate_presigned_url("get_object", {"Bucket": "bucket", "Key": "k"})
    assert ("/bucket/k" in url) == path and ("//bucket." in url) == (not path)


def test_retries_and_connections_are_stated() -> None:
    config = S3Store(settings("http://127.0.0.1:9", "b")).client.boto.meta.config
    assert config.retries["total_max_attempts"] == 1  # the engine itself tries again, and nobody else
    assert config.connect_timeout == config.read_timeout == 60
    assert config.max_pool_connections >= s3_upload.PARTS_IN_FLIGHT
    assert config.request_checksum_calculation == config.response_checksum_validation == "when_required"


def test_a_profile_that_is_not_there() -> None:
    with pytest.raises(StorageError, match="no-such-profile"):
        S3Store(Storage(bucket="b", profile="no-such-profile"))


def test_without_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    assert s3_client.boto3 is boto3
    monkeypatch.setattr(s3_client, "boto3", None)
    with pytest.raises(UsageError, match="boto3 is not installed"):
        S3Store(Storage(bucket="b"))
