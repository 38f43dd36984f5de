# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The fake S3 server answers as others do: each test runs against it, rclone's server and moto.

Where a server is known to differ (see `tests/support/servers.py`), the test says so.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Dict, Iterator, List, Tuple

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

from tests.support.fake_s3 import FakeS3
from tests.support.servers import S3Server

MIB = 1 << 20


class Place:
    """A client and an empty bucket of one of the servers."""

    def __init__(self, kind: str, client: Any) -> None:
        self.kind, self.client, self.bucket = kind, client, "b-" + secrets.token_hex(6)
        client.create_bucket(Bucket=self.bucket)

    def call(self, operation: str, **arguments: Any) -> Dict[str, Any]:
        return getattr(self.client, operation)(Bucket=self.bucket, **arguments)

    def refused(self, operation: str, **arguments: Any) -> Tuple[int, str]:
        with pytest.raises(ClientError) as caught:
            self.call(operation, **arguments)
        answer: Any = caught.value.response
        return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]

    def upload(self, key: str, *parts: bytes) -> Tuple[str, List[Dict[str, Any]]]:
        upload = self.call("create_multipart_upload", Key=key, Metadata={"run": "1"})["UploadId"]
        done = []
        for number, data in enumerate(parts, 1):
            answer = self.call("upload_part", Key=key, UploadId=upload, PartNumber=number, Body=data)
            done.append({"PartNumber": number, "ETag": answer["ETag"]})
        return upload, done


def client_of(endpoint: str) -> Any:
    config = Config(
        s3={"addressing_style": "path"}, request_checksum_calculation="when_required",
        response_checksum_validation="when_required", retries={"total_max_attempts": 1},
    )  # fmt: skip
    session = boto3.session.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="us-east-1")
    return session.client("s3", endpoint_url=endpoint, config=config)


@pytest.fixture(scope="module", params=["fake", "rclone", "moto"])
def client(request: pytest.FixtureRequest) -> Iterator[Tuple[str, Any]]:
    if request.param == "fake":
        with FakeS3() as fake:
            yield request.param, client_of(fake.endpoint_url)
    elif request.param == "rclone":
        with S3Server() as s3:
            yield request.param, s3.client()
    else:
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        yield request.param, client_of("http://%s:%d" % server.get_host_and_port())
        server.stop()


@pytest.fixture
def place(client: Tuple[str, Any]) -> Place:
    return Place(*client)


def test_an_object(place: Place) -> None:
    data = secrets.token_bytes(100000)
    put = place.call("put_object", Key="p/a b \u00e9.gz", Body=data, Metadata={"run": "1"})
    head = place.call("head_object", Key="p/a b \u00e9.gz")
    assert head["ContentLength"] == 100000
    assert {name.lower(): value for name, value in head["Metadata"].items()} == {"run": "1"}
    if place.kind != "rclone":  # its ETags are off, for speed
        assert put["ETag"] == head["ETag"] == '"%s"' % hashlib.md5(data).hexdigest()
    got = place.call("get_object", Key="p/a b \u00e9.gz", Range="bytes=5-104")
    assert got["Body"].read() == data[5:105] and got["ContentRange"] == "bytes 5-104/100000"
    got = place.call("get_object", Key="p/a b \u00e9.gz", Range="bytes=99990-200000")
    assert got["Body"].read() == data[99990:] and got["ContentRange"] == "bytes 99990-99999/100000"
    assert place.call("get_object", Key="p/a b \u00e9.gz")["Body"].read() == data
    place.call("delete_object", Key="p/a b \u00e9.gz")
    place.call("delete_object", Key="p/a b \u00e9.gz")
    assert place.refused("head_object", Key="p/a b \u00e9.gz") == (404, "404")


def test_what_is_not_there(place: Place) -> None:
    assert place.refused("head_object", Key="k") == (404, "404")
    assert place.refused("get_object", Key="k") == (404, "NoSuchKey")
    place.call("put_object", Key="k", Body=b"12345")
    assert place.refused("get_object", Key="k", Range="bytes=5-6") == (416, "InvalidRange")
    place.bucket = "no-such-bucket"
    assert place.refused("head_bucket") == (404, "404")
    assert place.refused("list_objects_v2") == (404, "NoSuchBucket")
    assert place.refused("create_multipart_upload", Key="k") == (404, "NoSuchBucket")


def test_an_upload_of_parts(place: Place) -> None:
    first, last = secrets.token_bytes(5 * MIB), secrets.token_bytes(1000)
    upload, parts = place.upload("k", first, last)
    assert place.refused("head_object", Key="k") == (404, "404")
    arguments: Dict[str, Any] = {"Key": "k", "UploadId": upload, "MultipartUpload": {"Parts": parts}}
    done = place.call("complete_multipart_upload", **arguments)
    assert done["ETag"].strip('"').endswith("-2")
    if place.kind != "rclone":
        digests = [hashlib.md5(part).digest() for part in (first, last)]
        assert [part["ETag"] for part in parts] == ['"%s"' % digest.hex() for digest in digests]
        assert done["ETag"] == '"%s-2"' % hashlib.md5(b"".join(digests)).hexdigest()
        assert place.call("head_object", Key="k")["ETag"] == done["ETag"]
    head = place.call("head_object", Key="k")
    assert head["ContentLength"] == 5 * MIB + 1000
    assert {name.lower(): value for name, value in head["Metadata"].items()} == {"run": "1"}
    assert place.call("get_object", Key="k", Range="bytes=%d-" % (5 * MIB - 1))["Body"].read() == first[-1:] + last
    if place.kind != "moto":  # which takes it twice, and a part of it for a fault of its own
        assert place.refused("complete_multipart_upload", **arguments) == (404, "NoSuchUpload")
        part = {"Key": "k", "UploadId": upload, "PartNumber": 1, "Body": b"x"}
        assert place.refused("upload_part", **part) == (404, "NoSuchUpload")


def test_wrong_parts(place: Place) -> None:
    upload, parts = place.upload("k", bytes(5 * MIB), b"x")
    parts[1]["ETag"] = '"%s"' % ("0" * 32)
    wrong = {"Key": "k", "UploadId": upload, "MultipartUpload": {"Parts": parts}}
    assert place.refused("complete_multipart_upload", **wrong) == (400, "InvalidPart")
    assert place.refused("head_object", Key="k") == (404, "404")


def test_abort_and_the_listing_of_uploads(place: Place) -> None:
    first, _parts = place.upload("p/one", b"x")
    second, _parts = place.upload("p/two", b"x")
    listed = place.call("list_multipart_uploads", Prefix="p/")["Uploads"]
    assert [(each["Key"], each["UploadId"]) for each in listed] == [("p/one", first), ("p/two", second)]
    assert all(each["Initiated"].tzinfo for each in listed)
    assert "Uploads" not in place.call("list_multipart_uploads", Prefix="q/")
    place.call("abort_multipart_upload", Key="p/one", UploadId=first)
    assert place.refused("abort_multipart_upload", Key="p/one", UploadId=first) == (404, "NoSuchUpload")
    assert len(place.call("list_multipart_uploads", Prefix="p/")["Uploads"]) == 1
    assert place.call("list_objects_v2").get("Contents", []) == []


def test_listing_over_pages(place: Place) -> None:
    for number in range(7):
        place.call("put_object", Key="p/%d" % number, Body=b"xy")
    place.call("put_object", Key="q/a b \u00e9", Body=b"")
    found, more = [], {}
    while True:
        page = place.call("list_objects_v2", Prefix="p/", MaxKeys=3, **more)
        found += page["Contents"]
        if not page["IsTruncated"]:
            break
        more = {"ContinuationToken": page["NextContinuationToken"]}
    assert [each["Key"] for each in found] == ["p/%d" % number for number in range(7)]
    assert {each["Size"] for each in found} == {2}
    assert [each["Key"] for each in place.call("list_objects_v2", Prefix="q/")["Contents"]] == ["q/a b \u00e9"]


def test_conditions(place: Place) -> None:
    place.call("put_object", Key="k", Body=b"old")
    if place.kind == "rclone":  # which knows none
        place.call("put_object", Key="k", Body=b"x", IfNoneMatch="*")
        assert place.call("get_object", Key="k", IfMatch='"none"')["Body"].read() == b"x"
        return
    etag = place.call("head_object", Key="k")["ETag"]
    assert place.call("get_object", Key="k", IfMatch=etag)["Body"].read() == b"old"
    place.call("put_object", Key="k", Body=b"new")
    assert place.refused("get_object", Key="k", IfMatch=etag) == (412, "PreconditionFailed")
    assert place.refused("put_object", Key="k", Body=b"x", IfNoneMatch="*") == (412, "PreconditionFailed")


def test_deleting_many(place: Place) -> None:
    for key in ("a", "b", "c"):
        place.call("put_object", Key=key, Body=b"")
    place.call("delete_objects", Delete={"Objects": [{"Key": "a"}, {"Key": "c"}]})
    assert [each["Key"] for each in place.call("list_objects_v2")["Contents"]] == ["b"]
