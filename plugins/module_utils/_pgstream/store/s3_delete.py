# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Many objects of a bucket deleted: in batches where the store knows those, one by one where it does not.

In a bucket with versions it is the version that was seen which is deleted, for good: a mere delete marker would hide
what an object lock protects, and free nothing.
"""

from __future__ import annotations

import base64
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, List, Sequence, Tuple

from ..errors import StorageError
from .base import FAILED, LOCKED, REMOVED, Deletion

BATCH = 1000  # S3's limit of DeleteObjects
_ASKING = 8  # versions asked for at once
#: What stores answer that do not know DeleteObjects: Google Cloud Storage 400 (InvalidArgument or NotImplemented),
#: others 405 or 501.
_NO_BATCHES = (400, 405, 501)
#: "protected by object lock" (AWS), "WORM protected" (MinIO), "retention" and "legal hold" (others).
_ABOUT_A_LOCK = re.compile(r"\block|worm\b|retention|legal hold", re.IGNORECASE)

Target = Dict[str, str]  # Key, and VersionId where there is one


def content_md5(params: Dict[str, Any], **_event: Any) -> None:
    """Before a DeleteObjects is sent: Content-MD5, which S3 itself and all others take. Since 1.36 botocore sends a
    CRC instead, and stores that do not know that answer MissingContentMD5."""
    try:
        digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    except ValueError:  # a Python that has no MD5 at all (FIPS): what botocore sends has to do
        return
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode("ascii")
    params["context"].pop("checksum", None)


def delete_many(store: Any, keys: Sequence[str]) -> Iterator[Deletion]:
    """Delete objects of an S3Store, telling of each. StorageError where the store does not answer or lets nobody in."""
    batches = True
    for start in range(0, len(keys), BATCH):
        targets = _targets(store, keys[start : start + BATCH])
        if batches:
            try:
                answer = store.client.call("delete_objects", Delete={"Objects": targets, "Quiet": False})
            except StorageError as error:
                if _said(error)[0] not in _NO_BATCHES:
                    raise
                batches = False
            else:
                yield from _outcomes(store, targets, answer)
        if not batches:
            for target in targets:
                yield _single(store, target)


def _targets(store: Any, keys: Sequence[str]) -> List[Target]:
    """Keys with their versions. A bucket that never had versions names none: the first and the last key tell."""
    ends = [store.stat(key) for key in dict.fromkeys([keys[0], keys[-1]])]
    if not any(item is not None and item.version_id for item in ends):
        return [{"Key": key} for key in keys]
    with ThreadPoolExecutor(_ASKING) as pool:
        items = list(pool.map(store.stat, keys))
    # What is older than the bucket's versions has the version `null`, which not every store says.
    return [{"Key": key, "VersionId": (item and item.version_id) or "null"} for key, item in zip(keys, items)]


def _outcomes(store: Any, targets: Sequence[Target], answer: Dict[str, Any]) -> Iterator[Deletion]:
    refused = {item.get("Key"): str(item.get("Message", "")) for item in answer.get("Errors", [])}
    deleted = {item.get("Key") for item in answer.get("Deleted", [])} - set(refused)
    for target in targets:
        key = target["Key"]
        if key in deleted:
            yield Deletion(key, REMOVED)
        elif _ABOUT_A_LOCK.search(refused.get(key, "")):
            yield Deletion(key, LOCKED, refused[key])
        else:  # a passing fault, or not a word of it: alone it is tried again as requests are
            yield _single(store, target)


def _single(store: Any, target: Target) -> Deletion:
    key = target["Key"]
    try:
        store.client.call("delete_object", **target)
        return Deletion(key, REMOVED)
    except StorageError as error:
        status, message = _said(error)
        if _ABOUT_A_LOCK.search(message) or (status == 403 and _is_locked(store, key)):
            return Deletion(key, LOCKED, message)
        if status == 403:
            return Deletion(key, FAILED, error.message)
        raise


def _is_locked(store: Any, key: str) -> bool:
    """Whether the object itself says so: asked where the store said no and not why."""
    try:
        head = store.head(key) or {}
    except StorageError:
        return False
    return head.get("ObjectLockLegalHoldStatus") == "ON" or "ObjectLockRetainUntilDate" in head


def _said(error: StorageError) -> Tuple[int, str]:
    """HTTP status and message of the store's own answer; 0 where there was none."""
    answer: Dict[str, Any] = getattr(error.__cause__, "response", None) or {}
    status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return int(status), str(answer.get("Error", {}).get("Message", "") or "")
