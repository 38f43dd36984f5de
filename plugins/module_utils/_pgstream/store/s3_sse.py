# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Encryption by the store itself: what is asked for when an object is begun, and a key of the customer (SSE-C), which
the store forgets, so that every request about the object's contents carries it.

Source: Amazon S3 user guide, "Using server-side encryption with customer-provided keys"; the service refuses such a
key over plain HTTP.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Dict

from ..model import Storage

MODES = ("AES256", "aws:kms")
_WITH_KEY = ("create_multipart_upload", "upload_part", "complete_multipart_upload", "head_object", "get_object")


def check_customer_key(text: str) -> bytes:
    """The 32 bytes of a key in base64. ValueError for anything else, which does not show it."""
    try:
        key = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ValueError("is not 32 bytes in base64, as `openssl rand -base64 32` prints them")
    return key


def of_object(storage: Storage) -> Dict[str, Any]:
    """Parameters of the request that begins an object."""
    asked: Dict[str, Any] = {}
    if storage.encryption_mode:
        asked["ServerSideEncryption"] = storage.encryption_mode
    if storage.encryption_kms_key_id:
        asked["SSEKMSKeyId"] = storage.encryption_kms_key_id
    return asked


def of_request(storage: Storage, operation: str) -> Dict[str, Any]:
    """Parameters of one request; boto3 adds the key's digest."""
    if not storage.sse_customer_key or operation not in _WITH_KEY:
        return {}
    return {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": check_customer_key(storage.sse_customer_key)}
