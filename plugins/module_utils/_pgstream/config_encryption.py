# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Environment variables -> how objects are encrypted: by us for the recipients of age, and by the store itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Tuple

from . import age_keys
from .errors import UsageError
from .store.s3_sse import MODES, check_customer_key

if TYPE_CHECKING:
    from .config import Reader


def age(reader: Reader) -> Dict[str, Any]:
    """The fields of `Storage` that are about age."""
    recipients: Tuple[str, ...] = ()
    identity = reader.secret("BACKUP_AGE_IDENTITY")
    try:
        recipients = age_keys.read_recipients(reader.get("BACKUP_AGE_RECIPIENTS").replace(",", " ").split())
    except UsageError as error:
        reader.fault("BACKUP_AGE_RECIPIENTS: " + error.sentence())
    if identity:
        try:
            age_keys.identity_keys(identity)
        except UsageError as error:
            reader.fault("BACKUP_AGE_IDENTITY: " + error.sentence())
    return {"age_recipients": recipients, "age_identity": identity}


def of_the_store(reader: Reader) -> Dict[str, str]:
    """The fields of `Storage` that are about encryption in the bucket, by rclone's names."""
    mode = reader.choice("RCLONE_S3_SERVER_SIDE_ENCRYPTION", MODES, "")
    kms_key, customer_key = reader.get("RCLONE_S3_SSE_KMS_KEY_ID"), reader.secret("RCLONE_S3_SSE_CUSTOMER_KEY_BASE64")
    if kms_key and mode != "aws:kms":
        reader.fault("RCLONE_S3_SSE_KMS_KEY_ID needs RCLONE_S3_SERVER_SIDE_ENCRYPTION=aws:kms")
    if customer_key:
        if mode:
            reader.fault(
                "RCLONE_S3_SSE_CUSTOMER_KEY_BASE64 and RCLONE_S3_SERVER_SIDE_ENCRYPTION are both set: give one"
            )
        try:
            check_customer_key(customer_key)
        except ValueError as error:
            reader.fault("RCLONE_S3_SSE_CUSTOMER_KEY_BASE64 %s" % error)
    return {"encryption_mode": mode, "encryption_kms_key_id": kms_key, "sse_customer_key": customer_key}
