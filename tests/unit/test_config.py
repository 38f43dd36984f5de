# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Environment and flags -> requests: every name, every fault, and all faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, Optional

import pytest
from _pgstream import config
from _pgstream.errors import UsageError
from _pgstream.model import BackupRequest, Filters, RestoreRequest, Server, Storage

MINIMUM = {
    "POSTGRES_HOST": "db",
    "POSTGRES_USER": "postgres",
    "POSTGRES_DB": "shop",
    "RCLONE_S3_BUCKET": "backups",
}


def backup(environ: Dict[str, str], **flags: str) -> BackupRequest:
    return config.backup_request(environ, flags, Filters(), False, "")


def restore(
    environ: Dict[str, str], key: str = "k", flags: Optional[Dict[str, str]] = None, **wanted: str
) -> RestoreRequest:
    return config.restore_request(environ, flags or {}, RestoreRequest(Server(), Storage(), key, **wanted))  # type: ignore[arg-type]


def store(**environ: str) -> Storage:
    return config.storage(environ, {})


def fault(environ: Dict[str, str], **flags: str) -> str:
    with pytest.raises(UsageError) as caught:
        backup(environ, **flags)
    assert caught.value.exit_code == 2
    return caught.value.sentence()


def test_minimum_and_defaults() -> None:
    request = backup(MINIMUM)
    assert request == BackupRequest(
        server=Server(host="db", user="postgres"), database="shop", storage=Storage(bucket="backups")
    )


def test_every_variable_arrives() -> None:
    environ = {
        "POSTGRES_HOST": "/run/postgresql",
        "POSTGRES_PORT": "5433",
        "POSTGRES_USER": "u",
        "POSTGRES_PASSWORD": "pw",
        "POSTGRES_DB": "d",
        "POSTGRES_BINDIR": "/opt/pg/bin",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca",
        "PGSSLCERT": "/cert",
        "PGSSLKEY": "/key",
        "RCLONE_S3_BUCKET": "b",
        "RCLONE_S3_ENDPOINT": "http://minio:9000",
        "RCLONE_S3_ACCESS_KEY_ID": "ak",
        "RCLONE_S3_SECRET_ACCESS_KEY": "sk",
        "RCLONE_S3_REGION": "eu-1",
        "AWS_PROFILE": "prod",
        "AWS_CA_BUNDLE": "/bundle",
        "BACKUP_PREFIX": "/daily/",
        "BACKUP_COMPRESSION": "gzip",
        "BACKUP_COMPRESSION_LEVEL": "3",
        "BACKUP_JOBS": "7",
        "BACKUP_KEY": "k.sql.gz",
        "BACKUP_LOCK_TIMEOUT": "2m",
        "BACKUP_TIMEOUT": "4h",
        "BACKUP_FRESH_WITHIN": "6h",
        "BACKUP_S3_CHECKSUMS": "when_supported",
        "BACKUP_S3_ADDRESSING_STYLE": "virtual",
        "BACKUP_STALL_TIMEOUT": "2m",
    }
    filters = Filters(schemas=("s",))
    assert config.backup_request(environ, {}, filters, True, "cid") == BackupRequest(
        server=Server(
            host="/run/postgresql",
            port=5433,
            user="u",
            password="pw",
            ssl_mode="verify-full",
            ca_cert="/ca",
            ssl_cert="/cert",
            ssl_key="/key",
            bindir="/opt/pg/bin",
        ),
        database="d",
        storage=Storage(
            bucket="b",
            prefix="daily",
            endpoint_url="http://minio:9000",
            region="eu-1",
            access_key="ak",
            secret_key="sk",
            profile="prod",
            aws_ca_bundle="/bundle",
            addressing_style="virtual",
            checksums="when_supported",
            stall_timeout=120,
        ),
        key="k.sql.gz",
        overwrite="always",
        fresh_within=6 * 3600,
        compression="gzip",
        compression_level=3,
        jobs=7,
        filters=filters,
        lock_timeout=120,
        timeout=4 * 3600,
        correlation_id="cid",
    )


def test_every_missing_name_at_once_and_empty_is_missing() -> None:
    text = fault({"POSTGRES_DB": ""})
    for name in ("POSTGRES_HOST", "POSTGRES_USER", "POSTGRES_DB", "RCLONE_S3_BUCKET or BACKUP_STORE"):
        assert name in text


def test_missing_and_wrong_are_named_together() -> None:
    text = fault(
        {
            "POSTGRES_PORT": "70000",
            "PGSSLMODE": "yes",
            "BACKUP_JOBS": "many",
            "BACKUP_COMPRESSION": "lzma",
            "BACKUP_LOCK_TIMEOUT": "60",
            "BACKUP_TIMEOUT": "60",
            "BACKUP_FRESH_WITHIN": "6 hours",
            "BACKUP_S3_CHECKSUMS": "never",
            "BACKUP_S3_ADDRESSING_STYLE": "dns",
            "BACKUP_STALL_TIMEOUT": "0s",
            "RCLONE_S3_ENDPOINT": "minio:9000",
            "RCLONE_S3_ACCESS_KEY_ID": "ak",
        }
    )
    for name in (
        "POSTGRES_HOST",
        "POSTGRES_USER",
        "POSTGRES_DB",
        "RCLONE_S3_BUCKET",
        "POSTGRES_PORT",
        "PGSSLMODE",
        "BACKUP_JOBS",
        "BACKUP_COMPRESSION",
        "BACKUP_LOCK_TIMEOUT",
        "BACKUP_TIMEOUT",
        "BACKUP_FRESH_WITHIN",
        "BACKUP_S3_CHECKSUMS",
        "BACKUP_S3_ADDRESSING_STYLE",
        "BACKUP_STALL_TIMEOUT",
        "RCLONE_S3_ENDPOINT",
        "RCLONE_S3_SECRET_ACCESS_KEY",
    ):
        assert name in text, name
    assert "\n" not in text


@pytest.mark.parametrize("text, seconds", [("30s", 30), ("90m", 5400), ("6h", 21600), ("2d", 172800), ("0s", 0)])
def test_duration(text: str, seconds: int) -> None:
    assert config.duration(text) == seconds


@pytest.mark.parametrize("text", ["", "60", "h", "-1h", "1.5h", "1w", "1h30m", "\u0661h"])
def test_duration_refused(text: str) -> None:
    with pytest.raises(ValueError):
        config.duration(text)


@pytest.mark.parametrize(
    "text, utc",
    [
        ("2026-01-31T02:00:00Z", "2026-01-31T02:00:00Z"),
        ("2026-01-31t02:00:00.5z", "2026-01-31T02:00:00.500Z"),
        ("2026-01-31 02:00:00+02:00", "2026-01-31T00:00:00Z"),
    ],
)
def test_moment(text: str, utc: str) -> None:
    assert config.moment(text) == utc


@pytest.mark.parametrize("text", ["", "2026-01-31", "2026-01-31T02:00:00", "2026-02-31T02:00:00Z", "yesterday"])
def test_moment_refused(text: str) -> None:
    with pytest.raises(ValueError, match="2026-01-31T02:00:00Z"):
        config.moment(text)


def test_numbers_have_limits() -> None:
    assert "BACKUP_JOBS" in fault({**MINIMUM, "BACKUP_JOBS": "-1"})
    assert "POSTGRES_PORT" in fault({**MINIMUM, "POSTGRES_PORT": "0"})
    assert "POSTGRES_PORT" in fault({**MINIMUM, "POSTGRES_PORT": "tcp://10.0.0.1:5432"})  # as Kubernetes sets it
    assert "BACKUP_COMPRESSION_LEVEL" in fault({**MINIMUM, "BACKUP_COMPRESSION_LEVEL": "10"})
    assert "BACKUP_COMPRESSION_LEVEL" in fault(
        {**MINIMUM, "BACKUP_COMPRESSION": "none", "BACKUP_COMPRESSION_LEVEL": "1"}
    )


def test_url_as_host_is_refused_unshown() -> None:
    text = fault({**MINIMUM, "POSTGRES_HOST": "postgres://u:hunter2@db"})
    assert "POSTGRES_HOST" in text and "hunter2" not in text


@pytest.mark.parametrize("name", ["RCLONE_S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_endpoint_with_credentials_is_refused_unshown(name: str) -> None:
    text = fault({**MINIMUM, name: "http://u:hunter2@minio:9000"})
    assert name in text and "hunter2" not in text


# Flags


def test_flags_win_over_the_environment() -> None:
    environ = {**MINIMUM, "BACKUP_JOBS": "2", "BACKUP_KEY": "a", "POSTGRES_PORT": "1", "BACKUP_FRESH_WITHIN": "bad"}
    request = backup(environ, POSTGRES_HOST="h2", BACKUP_JOBS="3", BACKUP_KEY="b", BACKUP_FRESH_WITHIN="1h")
    assert (request.server.host, request.server.port, request.jobs, request.key) == ("h2", 1, 3, "b")
    assert request.fresh_within == 3600


def test_a_faulty_flag_is_named_as_a_flag() -> None:
    text = fault(MINIMUM, BACKUP_JOBS="x")
    assert "--jobs" in text and "BACKUP_JOBS" not in text


def test_level_of_a_replaced_compression_is_dropped() -> None:
    environ = {**MINIMUM, "BACKUP_COMPRESSION_LEVEL": "9"}
    assert backup(environ).compression_level == 9
    assert backup(environ, BACKUP_COMPRESSION="none").compression_level is None
    assert backup(environ, BACKUP_COMPRESSION="gzip", BACKUP_COMPRESSION_LEVEL="2").compression_level == 2


def test_no_secret_has_a_flag() -> None:
    assert not set(config.FLAGS) & set(config.SECRETS)


# Stores


def test_store_urls() -> None:
    assert store(BACKUP_STORE="s3://b") == Storage(bucket="b")
    assert store(BACKUP_STORE="s3://b/x/y/") == Storage(bucket="b", prefix="x/y")
    assert store(BACKUP_STORE="s3://b", BACKUP_PREFIX="p") == Storage(bucket="b", prefix="p")
    assert store(BACKUP_STORE="s3://b/p", BACKUP_PREFIX="/p/") == Storage(bucket="b", prefix="p")
    assert store(BACKUP_STORE="file:///var/b/", BACKUP_PREFIX="p/") == Storage(
        kind="local", directory="/var/b", prefix="p"
    )
    assert store(BACKUP_STORE="rclone:sftp:b/c", BACKUP_PREFIX="p", BACKUP_STALL_TIMEOUT="9s") == Storage(
        kind="rclone", rclone_remote="sftp:b/c", prefix="p", stall_timeout=9
    )
    assert store(BACKUP_STORE="rclone:r:", RCLONE_CONFIG="/c", BACKUP_RCLONE_PATH="/bin/rclone") == Storage(
        kind="rclone", rclone_remote="r:", rclone_config="/c", rclone_path="/bin/rclone"
    )


@pytest.mark.parametrize("url", [
    "backups", "s3://", "s3:///p", "file://b", "file:///", "http://b", "rclone:", "rclone:b", "rclone::sftp,pass=x:b",
])  # fmt: skip
def test_store_urls_refused(url: str) -> None:
    assert "BACKUP_STORE" in fault({**MINIMUM, "RCLONE_S3_BUCKET": "", "BACKUP_STORE": url})


def test_store_conflicts() -> None:
    text = fault({**MINIMUM, "BACKUP_STORE": "s3://b"})
    assert "BACKUP_STORE" in text and "RCLONE_S3_BUCKET" in text
    no_bucket = {**MINIMUM, "RCLONE_S3_BUCKET": "", "BACKUP_STORE": "s3://b/p", "BACKUP_PREFIX": "q"}
    text = fault(no_bucket)
    assert "BACKUP_STORE" in text and "BACKUP_PREFIX" in text
    text = fault(MINIMUM, BACKUP_STORE="s3://b/p", BACKUP_PREFIX="q")
    assert "--store" in text and "--prefix" in text
    assert "BACKUP_PREFIX" in fault({**MINIMUM, "RCLONE_S3_BUCKET": "b/p"})


def test_store_flags_win() -> None:
    assert backup(MINIMUM, BACKUP_STORE="s3://b/p").storage == Storage(bucket="b", prefix="p")
    environ = {**MINIMUM, "BACKUP_PREFIX": "env"}
    assert backup(environ, BACKUP_STORE="s3://b/p").storage.prefix == "p"
    assert backup(environ, BACKUP_STORE="s3://b").storage.prefix == "env"
    environ = {**MINIMUM, "RCLONE_S3_BUCKET": "", "BACKUP_STORE": "s3://b/env"}
    assert backup(environ, BACKUP_PREFIX="flag").storage == Storage(bucket="b", prefix="flag")


# S3


def test_without_keys_boto3s_chain_is_left_to_work() -> None:
    found = store(RCLONE_S3_BUCKET="b", AWS_SESSION_TOKEN="stray")
    assert (found.access_key, found.secret_key, found.session_token) == ("", "", "")


def test_aws_names_are_fallbacks() -> None:
    aws = {
        "RCLONE_S3_BUCKET": "b",
        "AWS_ACCESS_KEY_ID": "ak",
        "AWS_SECRET_ACCESS_KEY": "sk",
        "AWS_SESSION_TOKEN": "st",
        "AWS_DEFAULT_REGION": "r1",
        "AWS_ENDPOINT_URL": "https://e1",
    }
    found = store(**aws)
    assert (found.access_key, found.secret_key, found.session_token) == ("ak", "sk", "st")
    assert (found.region, found.endpoint_url) == ("r1", "https://e1")
    found = store(**aws, AWS_REGION="r2", AWS_ENDPOINT_URL_S3="https://e2")
    assert (found.region, found.endpoint_url) == ("r2", "https://e2")
    found = store(**aws, RCLONE_S3_REGION="r3", RCLONE_S3_ENDPOINT="https://e3", AWS_REGION="r2")
    assert (found.region, found.endpoint_url) == ("r3", "https://e3")


def test_keys_of_two_families_are_never_mixed() -> None:
    aws = {"AWS_ACCESS_KEY_ID": "a1", "AWS_SECRET_ACCESS_KEY": "a2", "AWS_SESSION_TOKEN": "a3"}
    found = store(RCLONE_S3_BUCKET="b", RCLONE_S3_ACCESS_KEY_ID="r1", RCLONE_S3_SECRET_ACCESS_KEY="r2", **aws)
    assert (found.access_key, found.secret_key, found.session_token) == ("r1", "r2", "")
    text = fault({**MINIMUM, **aws, "RCLONE_S3_ACCESS_KEY_ID": "r1"})
    assert "RCLONE_S3_SECRET_ACCESS_KEY" in text
    assert "AWS_ACCESS_KEY_ID" in fault({**MINIMUM, "AWS_SECRET_ACCESS_KEY": "a2"})


# Secrets from files


@pytest.mark.parametrize(
    "content, value", [("pw\n", "pw"), ("pw", "pw"), ("pw\r\n", "pw"), (" p w \n\n", " p w \n"), ("\u00fc", "\u00fc")]
)
def test_secret_file_loses_one_newline(tmp_path: Path, content: str, value: str) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content.encode())
    assert backup({**MINIMUM, "POSTGRES_PASSWORD_FILE": str(path)}).server.password == value


@pytest.mark.parametrize("family", ["RCLONE_S3_", "AWS_"])
def test_s3_keys_from_files(tmp_path: Path, family: str) -> None:
    environ = dict(MINIMUM)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        path = tmp_path / name
        path.write_text("value of %s\n" % name)
        environ[family + name + "_FILE"] = str(path)
    found = backup(environ).storage
    assert found.access_key == "value of ACCESS_KEY_ID"
    assert found.secret_key == "value of SECRET_ACCESS_KEY"
    assert found.session_token == "value of SESSION_TOKEN"


@pytest.mark.parametrize("name", [name for name in config.SECRETS if name != "PGPASSWORD" and "_URL" not in name])
def test_secret_given_twice(tmp_path: Path, name: str) -> None:
    path = tmp_path / "secret"
    path.write_text("hunter2")
    keys = {"RCLONE_S3_ACCESS_KEY_ID": "k", "RCLONE_S3_SECRET_ACCESS_KEY": "k"}
    if name.startswith("AWS_"):
        keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "k"}
    text = fault({**MINIMUM, **keys, name: "hunter3", name + "_FILE": str(path)})
    assert name + "_FILE" in text and "both" in text
    assert "hunter" not in text


def test_bad_secret_files_are_named_without_content(tmp_path: Path) -> None:
    binary, empty, absent = tmp_path / "binary", tmp_path / "empty", tmp_path / "absent"
    binary.write_bytes(b"hunter2\xff")
    empty.write_text("\n")
    text = fault(
        {
            **MINIMUM,
            "POSTGRES_PASSWORD_FILE": str(absent),
            "RCLONE_S3_ACCESS_KEY_ID_FILE": str(binary),
            "RCLONE_S3_SECRET_ACCESS_KEY_FILE": str(empty),
        }
    )
    for part in ("POSTGRES_PASSWORD_FILE", str(absent), "RCLONE_S3_ACCESS_KEY_ID_FILE", str(binary), str(empty)):
        assert part in text
    assert "hunter2" not in text
    assert "IsADirectory" not in fault({**MINIMUM, "POSTGRES_PASSWORD_FILE": str(tmp_path)})


def test_empty_password_beside_a_file_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("pw")
    environ = {**MINIMUM, "POSTGRES_PASSWORD": "", "POSTGRES_PASSWORD_FILE": str(path)}
    assert backup(environ).server.password == "pw"


def test_secret_values_and_repr(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("from-file\n")
    environ = {
        **MINIMUM,
        "POSTGRES_PASSWORD_FILE": str(path),
        "AWS_SESSION_TOKEN": "tok",
        "AWS_ACCESS_KEY_ID_FILE": "/no",
    }
    assert config.secret_values(environ) == ("from-file", "tok")  # longest first
    assert "from-file" not in repr(backup({**environ, "AWS_ACCESS_KEY_ID_FILE": ""}))


# Restore


def test_restore_target_is_flag_then_environment_then_the_backups_own() -> None:
    assert restore(MINIMUM).database == "shop"
    assert restore(MINIMUM, database="copy").database == "copy"
    assert restore({**MINIMUM, "POSTGRES_DB": ""}).database == ""


def test_restore_latest_is_of_the_source() -> None:
    assert restore(MINIMUM, "latest").source_database == "shop"
    found = restore(MINIMUM, "latest", database="copy")
    assert (found.database, found.source_database) == ("copy", "shop")
    assert restore(MINIMUM, "latest", source_database="other").source_database == "other"
    nameless = {**MINIMUM, "POSTGRES_DB": ""}
    assert restore(nameless, "latest", database="copy").source_database == "copy"
    with pytest.raises(UsageError, match="--source-db"):
        restore(nameless, "latest")
    assert restore(MINIMUM, "latest", latest_before="2026-01-31T02:00:00+01:00").latest_before == "2026-01-31T01:00:00Z"


def test_restore_faults_come_all_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        restore({"BACKUP_JOBS": "x"}, "some.key", latest_before="yesterday", source_database="s")
    text = caught.value.sentence()
    for name in ("POSTGRES_HOST", "POSTGRES_USER", "BACKUP_STORE", "BACKUP_JOBS", "--latest-before", "--source-db"):
        assert name in text
    with pytest.raises(UsageError, match="--latest-before"):
        restore(MINIMUM, "latest", latest_before="yesterday")
    with pytest.raises(UsageError, match="KEY is empty"):
        restore(MINIMUM, "")


def test_restore_jobs_and_flags() -> None:
    assert restore({**MINIMUM, "BACKUP_JOBS": "2"}).jobs == 2
    assert restore({**MINIMUM, "BACKUP_TIMEOUT": "90m"}).timeout == 5400
    assert restore({**MINIMUM, "BACKUP_JOBS": "2"}, flags={"BACKUP_JOBS": "5"}).jobs == 5


def test_check_target_needs_everything_and_list_only_a_store() -> None:
    assert config.check_target(MINIMUM, {}) == (Server(host="db", user="postgres"), Storage(bucket="backups"), "shop")
    with pytest.raises(UsageError, match="POSTGRES_HOST, POSTGRES_USER, RCLONE_S3_BUCKET or BACKUP_STORE, POSTGRES_DB"):
        config.check_target({}, {})
    assert config.storage({"RCLONE_S3_BUCKET": "b"}, {}) == Storage(bucket="b")
    with pytest.raises(UsageError, match="RCLONE_S3_BUCKET"):
        config.storage({}, {})


def test_the_process_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "stray")
    monkeypatch.setenv("AWS_REGION", "stray")
    request = backup(MINIMUM)
    assert (request.server.password, request.storage.region) == ("", "")
