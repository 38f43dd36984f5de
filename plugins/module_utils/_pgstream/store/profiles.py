# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What S3-compatible stores need and can do, as data.

A store is recognised by the host of its endpoint, and where that says nothing (MinIO, Ceph and rclone run under any
name) by the `Server` header of its answers. No option chooses one: what a proxy hides is tried out instead, and a
generic store is taken to be able to do less.

Not here, as it is the same for all: parts are equal but for the last (Cloudflare R2 insists), S3's own checksums are
sent only where a request needs them (`Storage.checksums`; older Ceph, Google and others refuse the trailers that
botocore sends by default since 1.36), endpoints other than Amazon's are addressed by path, and DeleteObjects carries a
Content-MD5 (s3_delete.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

MIB = 1 << 20
GIB = 1 << 30


@dataclass(frozen=True)
class Profile:
    """One kind of store. Sizes in bytes; `hosts` and `server` are patterns, empty for none."""

    name: str
    hosts: str = ""
    server: str = ""
    max_parts: int = 10000
    smallest_part: int = 5 * MIB  # of all parts but the last
    largest_part: int = 5 * GIB
    conditional: str = "unknown"  # If-None-Match: * on the completing call: honoured, ignored, refused, unknown
    composite_etag: bool = False  # that of a multipart object is the MD5 of its parts' MD5s, and their number
    lists_uploads: str = "unknown"  # unfinished uploads: by prefix, all (a prefix must be a whole key), unknown


#: Amazon: user guide, "Amazon S3 multipart upload limits", "Add preconditions to S3 operations with conditional
#: requests"; API reference, Object: an ETag of parts is a digest of their digests, but not with SSE-KMS or SSE-C.
AWS = Profile(
    "Amazon S3",
    hosts=r"(^|\.)amazonaws\.com(\.cn)?$",
    server=r"^AmazonS3$",
    conditional="honoured",
    composite_etag=True,
    lists_uploads="by prefix",
)

#: Cloudflare: R2 documentation, "Multipart upload": 5 MiB to 5 GiB, all but the last of one size, 10,000 of them, ETags
#: as Amazon's since June 2023, unfinished ones aborted after 7 days. Conditions are documented for PutObject only.
R2 = Profile(
    "Cloudflare R2",
    hosts=r"\.r2\.cloudflarestorage\.com$",
    composite_etag=True,
    lists_uploads="by prefix",
)

#: Scaleway: Object Storage documentation, "Managing multipart uploads": 1,000 parts of 5 MB to 5 GB, objects to 5 TB.
SCALEWAY = Profile(
    "Scaleway",
    hosts=r"(^|\.)s3\.[a-z0-9-]+\.scw\.cloud$",
    max_parts=1000,
    largest_part=5 * 10**9,
    lists_uploads="by prefix",
)

#: Google: Cloud Storage documentation, "XML API multipart uploads": no preconditions, no MD5 of the object; "Quotas
#: and limits": 10,000 parts of 5 MiB to 5 GiB, objects to 5 TiB.
GCS = Profile(
    "Google Cloud Storage",
    hosts=r"(^|\.)storage\.googleapis\.com$",
    conditional="ignored",
    lists_uploads="by prefix",
)

#: Backblaze: B2 documentation, "S3 Upload Part" (part numbers 1 to 10,000), "Large files" (5 MB to 5 GB, objects to
#: 10 TB).
B2 = Profile(
    "Backblaze B2",
    hosts=r"(^|\.)s3\.[a-z0-9-]+\.backblazeb2\.com$",
    largest_part=5 * 10**9,
    lists_uploads="by prefix",
)

#: MinIO: minio/docs, "Limits"; cmd/object-handlers.go checks the conditions of the completing call. Its
#: maintainers on ListMultipartUploads: by whole key or all at once, never by a prefix; the server itself removes
#: unfinished uploads after a day (`stale_uploads_expiry`).
MINIO = Profile(
    "MinIO",
    server=r"^MinIO",
    conditional="honoured",
    composite_etag=True,
    lists_uploads="all",
)

#: Ceph: RADOS gateway, options rgw_multipart_part_upload_limit (10,000) and rgw_multipart_min_part_size (5 MiB).
CEPH = Profile("Ceph", server=r"^Ceph", composite_etag=True, lists_uploads="by prefix")

#: rclone serve s3: measured, see `tests/support/servers.py`. It keeps no ETag of its parts.
RCLONE = Profile("rclone serve", server=r"^rclone/", conditional="ignored", lists_uploads="by prefix")

GENERIC = Profile("S3-compatible")

KNOWN = (AWS, R2, SCALEWAY, GCS, B2, MINIO, CEPH, RCLONE)


def by_endpoint(endpoint_url: str) -> Profile:
    """The kind of store at an endpoint; Amazon where none is given."""
    if not endpoint_url:
        return AWS
    host = urlsplit(endpoint_url).hostname or ""
    return next((one for one in KNOWN if one.hosts and re.search(one.hosts, host)), GENERIC)


def by_answer(server: str) -> Profile:
    """The kind of store that gave this `Server` header."""
    return next((one for one in KNOWN if one.server and re.search(one.server, server)), GENERIC)
