# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What docs/SECURITY.md says, run: its roles on real servers, its policies against every call to the store."""

from __future__ import annotations

import fnmatch
import json
import re
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _pgstream.errors import BackupError, NotFoundError, StorageError
from _pgstream.model import PruneRequest
from _pgstream.prune import prune
from _pgstream.retention import Retention
from botocore.client import BaseClient
from botocore.exceptions import ClientError

from tests.support import compare
from tests.support.runs import KeptLog, back_up, local_storage, restore, s3_storage, server_of

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "SECURITY.md"
PASSWORDS = {"pgbackup": "choose-a-long-one", "pgrestore": "choose-another-long-one"}
OWNER = "security_owner"

PRIVATE = """
CREATE SCHEMA private AUTHORIZATION {owner}; SET ROLE {owner};
CREATE TABLE private.account (id serial PRIMARY KEY, who text, amount int CHECK (amount >= 0));
INSERT INTO private.account (who, amount) SELECT 'someone ' || g, g FROM generate_series(1, 500) g;
ALTER TABLE private.account ENABLE ROW LEVEL SECURITY; ALTER TABLE private.account FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON private.account USING (who = current_user);
CREATE TABLE private.parts (id int, part text) PARTITION BY RANGE (id);
CREATE TABLE private.parts_low PARTITION OF private.parts FOR VALUES FROM (0) TO (50);
CREATE TABLE private.parts_high PARTITION OF private.parts FOR VALUES FROM (50) TO (100);
INSERT INTO private.parts SELECT g, 'x' FROM generate_series(0, 99) g;
CREATE VIEW private.seen AS SELECT count(*) FROM private.parts;
SELECT lo_from_bytea(4711, 'large'); RESET ROLE;
"""


def fenced(name: str) -> str:
    """The one block of the document whose fence has this name."""
    found = re.findall(r"^```\w+ %s\n(.*?)^```$" % re.escape(name), DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == 1, name
    return str(found[0])


@pytest.fixture
def source(postgres: Any, databases: Callable[[], str]) -> Iterator[str]:
    """A database whose content belongs to a role that hides it; the document's roles end with the test."""
    name = databases()
    postgres.psql("DROP ROLE IF EXISTS %s; CREATE ROLE %s" % (OWNER, OWNER))
    postgres.psql(PRIVATE.format(owner=OWNER), name)
    yield name
    for role in ("pgbackup", "pgrestore", OWNER):
        if postgres.psql("SELECT 1 FROM pg_roles WHERE rolname = '%s'" % role).strip():
            for database in postgres.psql("SELECT datname FROM pg_database WHERE datallowconn").split():
                postgres.psql("DROP OWNED BY %s" % role, database)
            for database in postgres.psql(
                "SELECT datname FROM pg_database WHERE datdba = '%s'::regrole" % role
            ).split():
                postgres.dropdb(database)
            postgres.psql("DROP ROLE %s" % role)


def make_backup_role(postgres: Any, database: str, major: int) -> None:
    if major >= 14:
        postgres.psql(fenced("backup-14"))
    else:
        postgres.psql(fenced("backup-13-server"))
        postgres.psql(fenced("backup-13-database"), database)


def major_of(postgres: Any) -> int:
    return int(postgres.psql("SHOW server_version_num")) // 10000


@pytest.mark.every_major
def test_the_backup_role_reads_everything(
    postgres: Any, source: str, databases: Callable[[], str], tmp_path: Path
) -> None:
    make_backup_role(postgres, source, major_of(postgres))
    role = server_of(postgres, user="pgbackup", password=PASSWORDS["pgbackup"])
    storage = local_storage(tmp_path / "store")
    made = back_up(role, source, storage, jobs=2)
    assert made.rows == 600
    copy = databases()
    restore(server_of(postgres), storage, made.key, database=copy, strategy="swap", keep_old=False)
    assert compare.differences(postgres, source, postgres, copy) == []
    # It reads and does no more.
    assert postgres.psql("SELECT rolsuper OR rolcreatedb OR rolcreaterole FROM pg_roles WHERE rolname = 'pgbackup'"
                         ).strip() == "f"  # fmt: skip
    assert postgres.psql("SELECT has_table_privilege('pgbackup', 'private.account', 'INSERT, UPDATE, DELETE')",
                         source).strip() == "f"  # fmt: skip


def test_what_pg_dump_leaves_out_for_this_role_is_warned_of(postgres: Any, source: str, tmp_path: Path) -> None:
    make_backup_role(postgres, source, major_of(postgres))
    postgres.psql("CREATE SUBSCRIPTION elsewhere CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)", source)
    role = server_of(postgres, user="pgbackup", password=PASSWORDS["pgbackup"])
    try:
        for server, warned in ((role, 1), (server_of(postgres), 0)):
            log = KeptLog()
            back_up(server, source, local_storage(tmp_path / server.user), log)
            found = [fields["message"] for _level, event, fields in log.lines if event == "pg_dump_warning"]
            assert len(found) == warned and all("subscriptions" in text for text in found), found
    finally:
        postgres.psql("ALTER SUBSCRIPTION elsewhere SET (slot_name = NONE); DROP SUBSCRIPTION elsewhere", source)


@pytest.mark.parametrize("taken,said", [
    ("REVOKE pg_read_all_data FROM pgbackup", "permission denied"),
    ("ALTER ROLE pgbackup NOBYPASSRLS", "row-level security"),
    ("ALTER ROLE pgbackup RESET lo_compat_privileges", "permission denied for large object 4711"),
], ids=["read", "rls", "large objects"])  # fmt: skip
def test_each_line_of_the_backup_role_is_needed(
    postgres: Any, source: str, tmp_path: Path, taken: str, said: str
) -> None:
    """Without one of them the backup fails and says so: a part is never taken for the whole."""
    if major_of(postgres) < 14:
        pytest.fail("the newest server here should be 14 or newer")
    make_backup_role(postgres, source, 14)
    postgres.psql(taken)
    role = server_of(postgres, user="pgbackup", password=PASSWORDS["pgbackup"])
    with pytest.raises(BackupError) as caught:
        back_up(role, source, local_storage(tmp_path / "store"))
    assert said in str(caught.value)
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_the_restore_role_restores_what_becomes_its_own(postgres: Any, source: str, tmp_path: Path) -> None:
    make_backup_role(postgres, source, 14)
    postgres.psql(fenced("restore"))
    storage = local_storage(tmp_path / "store")
    reader = server_of(postgres, user="pgbackup", password=PASSWORDS["pgbackup"])
    made = back_up(reader, source, storage)
    role = server_of(postgres, user="pgrestore", password=PASSWORDS["pgrestore"])
    done = restore(
        role, storage, made.key, database=source + "_copy", create=True, no_owner=True, no_privileges=True, jobs=2
    )
    assert done.rows == 600
    assert compare.table_digests(postgres, source) == compare.table_digests(postgres, done.database)
    assert compare.sequence_values(postgres, source) == compare.sequence_values(postgres, done.database)
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert postgres.psql(owner, done.database).strip() == "pgrestore"
    with pytest.raises(BackupError):  # it may not take another's database away
        restore(role, storage, made.key, database=source, strategy="swap", no_owner=True, no_privileges=True)
    assert postgres.psql("SELECT count(*) FROM private.account", source).strip() == "500"


# --- the bucket -------------------------------------------------------------------------------------------------------

#: The action that IAM asks for, by operation (AWS, "Actions, resources, and condition keys for Amazon S3").
ACTIONS = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
}


class Iam:
    """Stands before every call of every S3 client, and refuses what a policy of the document does not allow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
        self._statements = json.loads(fenced(policy))["Statement"]
        self.used: Dict[str, int] = {}
        call = BaseClient._make_api_call

        def guarded(client: Any, operation: str, arguments: Dict[str, Any]) -> Any:
            action = ACTIONS[operation]
            objects = arguments.get("Delete", {}).get("Objects") or [arguments]
            if not all(self.allows(action, {**arguments, **each}) for each in objects):
                bare = operation.startswith("Head")  # an answer to HEAD has no body to say more in
                error = {"Code": "403" if bare else "AccessDenied", "Message": "Forbidden" if bare else "Access Denied"}
                raise ClientError({"Error": error, "ResponseMetadata": {"HTTPStatusCode": 403}}, operation)
            self.used[action] = self.used.get(action, 0) + 1
            # The tests' bucket has a name of its own; the policy knows the document's.
            return call(client, operation, arguments)

        monkeypatch.setattr(BaseClient, "_make_api_call", guarded)

    def allows(self, action: str, arguments: Dict[str, Any]) -> bool:
        resource = "arn:aws:s3:::company-backups" + ("/" + arguments["Key"] if "Key" in arguments else "")
        for statement in self._statements:
            prefixes: List[str] = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", ["*"])
            if (
                action in statement["Action"]
                and fnmatch.fnmatchcase(resource, statement["Resource"])
                and any(fnmatch.fnmatchcase(arguments.get("Prefix", ""), prefix) for prefix in prefixes)
            ):
                return True
        return False


@pytest.fixture
def small(postgres: Any, database: str) -> str:
    postgres.psql("CREATE TABLE t AS SELECT g AS id FROM generate_series(1, 100) g", database)
    return database


def test_a_host_that_may_only_write(
    postgres: Any, small: str, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, server = s3_storage(s3, bucket, prefix="db1"), server_of(postgres)
    with monkeypatch.context() as patch:
        iam = Iam(patch, "write-only")
        made = back_up(server, small, storage)
        assert set(iam.used) == {"s3:PutObject"}
        postgres.psql("CREATE TABLE refused (a int); REVOKE ALL ON refused FROM PUBLIC", small)
        with pytest.raises(BackupError):  # a failure leaves nothing: its upload is aborted
            back_up(server_of(postgres, user="nobody_there"), small, storage)
        with pytest.raises(BackupError):
            back_up(server, small, storage, key="db1/mine.sql.gz", lock_timeout=-1)
        assert "s3:AbortMultipartUpload" in iam.used
        for elsewhere in (s3_storage(s3, bucket), s3_storage(s3, bucket, prefix="db2")):
            with pytest.raises(StorageError) as caught:
                back_up(server, small, elsewhere)
            assert caught.value.exit_code == 4 and "Access Denied" in str(caught.value)
        for read in (
            lambda: restore(server, storage, made.key, database=small, strategy="swap"),
            lambda: back_up(server, small, storage, fresh_within=3600),
        ):
            with pytest.raises(StorageError):
                read()
    assert s3.keys(bucket) == [made.key]
    assert s3.uploads(bucket) == []


def test_a_host_that_may_only_restore(
    postgres: Any, small: str, databases: Callable[[], str], s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, server = s3_storage(s3, bucket, prefix="db1"), server_of(postgres)
    made = back_up(server, small, storage)
    with monkeypatch.context() as patch:
        iam = Iam(patch, "read-only")
        for key in (made.key, "latest"):
            copy = databases()
            assert restore(server, storage, key, database=copy, source_database=small).rows == 100
        assert set(iam.used) == {"s3:GetObject", "s3:ListBucket"}
        with pytest.raises(StorageError):
            back_up(server, small, storage)
        with pytest.raises((NotFoundError, StorageError)):
            restore(server, storage, "db1/none.sql.gz", database=small)
    assert s3.keys(bucket) == [made.key]


def test_a_host_that_may_only_prune(
    postgres: Any, small: str, s3: Any, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, server = s3_storage(s3, bucket, prefix="db1"), server_of(postgres)
    keys = ["db1/%s_2026-01-0%dT02:00:00Z.sql.gz" % (small, day) for day in (1, 2, 3)]
    for key in keys:
        back_up(server, small, storage, key=key)
    request = PruneRequest(storage=storage, database=small, retention=Retention(keep_last=1))
    with monkeypatch.context() as patch:
        Iam(patch, "write-only")
        with pytest.raises(StorageError):
            prune(request, KeptLog())
    assert s3.keys(bucket) == keys
    with monkeypatch.context() as patch:
        iam = Iam(patch, "prune")
        prune(request, KeptLog())
        assert set(iam.used) == {"s3:GetObject", "s3:ListBucket", "s3:DeleteObject"}
        with pytest.raises(StorageError):
            back_up(server, small, storage)
    assert s3.keys(bucket) == keys[-1:]


def test_the_rules_of_the_bucket_are_what_s3_knows(s3: Any) -> None:
    """As far as the SDK's own model of the requests can tell."""
    from botocore.validate import ParamValidator

    model = s3.client().meta.service_model
    for name, operation, member in (
        ("lifecycle", "PutBucketLifecycleConfiguration", "LifecycleConfiguration"),
        ("object-lock", "PutObjectLockConfiguration", "ObjectLockConfiguration"),
    ):
        rules = json.loads(fenced(name))
        shape = model.operation_model(operation).input_shape.members[member]
        assert not ParamValidator().validate(rules, shape).has_errors()
        assert set(rules) <= set(shape.members)
    rules = json.loads(fenced("lifecycle"))["Rules"]
    assert any("AbortIncompleteMultipartUpload" in rule for rule in rules)
