# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Keys as options: of the environment and of a task, every fault named, none shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any, Dict

import pytest
from _pgstream import cli, config
from _pgstream.errors import UsageError
from _pgstream.model import Filters, Storage
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.pgstream.backup.plugins.module_utils import _args, _specs

from tests.support.agekeys import KeyPair

PAIR, OTHER = KeyPair(), KeyPair()
CUSTOMER = base64.b64encode(os.urandom(32)).decode()
MINIMUM = {"POSTGRES_HOST": "db", "POSTGRES_USER": "u", "POSTGRES_DB": "shop", "RCLONE_S3_BUCKET": "b"}


def by_environment(**environ: str) -> Storage:
    return config.backup_request({**MINIMUM, **environ}, {}, Filters(), False, "").storage


def by_task(**given: Any) -> Storage:
    """As Ansible hands the options over; errors are those of this collection's own copy of the engine."""
    result = ArgumentSpecValidator(_specs.BACKUP_SPEC).validate({"login_db": "shop", "bucket": "b", **given})
    assert not result.error_messages
    return _args.backup_request(result.validated_parameters).backup.storage


def fault(ask: Any, **given: Any) -> str:
    """The sentence of a UsageError, which shows no secret."""
    with pytest.raises(Exception) as caught:
        ask(**given)
    assert type(caught.value).__name__ == UsageError.__name__
    text = str(caught.value)
    for secret in (PAIR.identity, OTHER.identity, CUSTOMER):
        assert secret[20:-1] not in text
    return text


@pytest.fixture
def recipients(tmp_path: Path) -> str:
    path = tmp_path / "recipients"
    path.write_text("# team\n%s\n" % OTHER.recipient)
    return str(path)


@pytest.fixture
def identity(tmp_path: Path) -> str:
    path = tmp_path / "identity"
    path.write_text("# age-keygen\n%s\n%s\n" % (PAIR.identity, OTHER.identity))
    return str(path)


def test_recipients(recipients: str) -> None:
    both = (PAIR.recipient, OTHER.recipient)
    assert by_environment(BACKUP_AGE_RECIPIENTS="%s, %s" % both).age_recipients == both
    assert by_environment(BACKUP_AGE_RECIPIENTS="%s\n%s" % (PAIR.recipient, recipients)).age_recipients == both
    assert by_task(age_recipients=[PAIR.recipient, recipients, ""]).age_recipients == both
    assert by_environment().age_recipients == by_task().age_recipients == ()
    assert by_environment(BACKUP_AGE_RECIPIENTS="").age_recipients == ()
    local = {"RCLONE_S3_BUCKET": "", "BACKUP_STORE": "file:///var/b", "BACKUP_AGE_RECIPIENTS": PAIR.recipient}
    assert by_environment(**local).age_recipients == (PAIR.recipient,)


def test_identities(identity: str) -> None:
    text = Path(identity).read_text()
    assert by_environment(BACKUP_AGE_IDENTITY=PAIR.identity).age_identity == PAIR.identity
    assert by_environment(BACKUP_AGE_IDENTITY_FILE=identity).age_identity == text[:-1]
    assert by_task(age_identity=text).age_identity == by_task(age_identity_file=identity).age_identity == text
    for storage in (by_environment(BACKUP_AGE_IDENTITY_FILE=identity), by_task(age_identity=text)):
        assert PAIR.identity not in repr(storage)


@pytest.mark.parametrize("given, said", [
    ({"BACKUP_AGE_RECIPIENTS": "age1x"}, "BACKUP_AGE_RECIPIENTS: 'age1x' is not an age recipient"),
    ({"BACKUP_AGE_RECIPIENTS": PAIR.identity}, "BACKUP_AGE_RECIPIENTS: it is not an age recipient"),
    ({"BACKUP_AGE_RECIPIENTS": "/nowhere/file"}, "BACKUP_AGE_RECIPIENTS: cannot read /nowhere/file"),
    ({"BACKUP_AGE_IDENTITY": PAIR.recipient}, "BACKUP_AGE_IDENTITY: line 1 of the age identity"),
    ({"BACKUP_AGE_IDENTITY": PAIR.identity[:-1]}, "mistyped"),
    ({"BACKUP_AGE_IDENTITY_FILE": "/nowhere/file"}, "BACKUP_AGE_IDENTITY_FILE: cannot read /nowhere/file"),
], ids=range(6))  # fmt: skip
def test_faults_in_the_environment(given: Dict[str, str], said: str) -> None:
    text = fault(by_environment, POSTGRES_PORT="x", **given)
    assert said in text and "POSTGRES_PORT" in text  # all at once


@pytest.mark.parametrize("given, said", [
    ({"age_recipients": [PAIR.identity]}, "age_recipients: it is not an age recipient"),
    ({"age_recipients": ["./nowhere"]}, "age_recipients: cannot read ./nowhere"),
    ({"age_identity": "# none"}, "age_identity: the age identity holds no key"),
    ({"age_identity_file": "/nowhere"}, "age_identity_file: cannot read /nowhere"),
    ({"age_identity_file": "/nowhere", "age_identity": PAIR.identity}, "age_identity and age_identity_file: give one"),
    ({"sse_customer_key": CUSTOMER[:-4]}, "sse_customer_key: is not 32 bytes in base64"),
    ({"sse_customer_key": CUSTOMER, "encryption_mode": "AES256"}, "sse_customer_key and encryption_mode: give one"),
    ({"sse_customer_key": CUSTOMER, "bucket": "", "directory": "/d"}, "sse_customer_key: is for a bucket"),
], ids=range(8))  # fmt: skip
def test_faults_of_a_task(given: Dict[str, Any], said: str) -> None:
    text = fault(by_task, login_port=0, **given)
    assert said in text and "login_port" in text


def test_encryption_by_the_store(tmp_path: Path) -> None:
    found = by_environment(RCLONE_S3_SERVER_SIDE_ENCRYPTION="aws:kms", RCLONE_S3_SSE_KMS_KEY_ID="alias/x")
    assert (found.encryption_mode, found.encryption_kms_key_id) == ("aws:kms", "alias/x")
    path = tmp_path / "key"
    path.write_text(CUSTOMER + "\n")
    for found in (
        by_environment(RCLONE_S3_SSE_CUSTOMER_KEY_BASE64=CUSTOMER),
        by_environment(RCLONE_S3_SSE_CUSTOMER_KEY_BASE64_FILE=str(path)),
        by_task(sse_customer_key=CUSTOMER),
    ):
        assert found.sse_customer_key == CUSTOMER and CUSTOMER not in repr(found)
    assert by_environment().encryption_mode == by_environment().sse_customer_key == ""


@pytest.mark.parametrize("given, said", [
    ({"RCLONE_S3_SERVER_SIDE_ENCRYPTION": "DES"}, "must be one of AES256, aws:kms"),
    ({"RCLONE_S3_SSE_KMS_KEY_ID": "x"}, "needs RCLONE_S3_SERVER_SIDE_ENCRYPTION=aws:kms"),
    ({"RCLONE_S3_SSE_CUSTOMER_KEY_BASE64": CUSTOMER[:-4]}, "is not 32 bytes in base64"),
    ({"RCLONE_S3_SSE_CUSTOMER_KEY_BASE64": CUSTOMER, "RCLONE_S3_SERVER_SIDE_ENCRYPTION": "AES256"}, "are both set"),
], ids=range(4))  # fmt: skip
def test_faults_of_encryption_by_the_store(given: Dict[str, str], said: str) -> None:
    assert said in fault(by_environment, **given)


def test_each_key_of_a_file_is_masked_alone(identity: str) -> None:
    environ = {**MINIMUM, "BACKUP_AGE_IDENTITY_FILE": identity, "RCLONE_S3_SSE_CUSTOMER_KEY_BASE64": CUSTOMER}
    secrets = config.secret_values(environ)
    said = "first %s, then %s; %s" % (OTHER.identity, PAIR.identity, CUSTOMER)
    assert cli.mask(said, secrets) == "first ***, then ***; ***"


@pytest.mark.parametrize("flag", ["--identity=x", "--age-identity", "--age_identity_file=x", "--sse-customer-key=x"])
def test_no_flag_takes_a_key(flag: str) -> None:
    with pytest.raises(UsageError, match="no flag takes a secret"):
        cli.parse(["list", flag])
