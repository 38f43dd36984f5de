# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The edge between Ansible and the engine: options become requests, errors become failed tasks."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.pgstream.backup.plugins.module_utils import _args, _run, _specs
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream import cluster_model, errors, model

S3 = {"bucket": "b"}


def backup(**given):
    return cluster(**{"login_db": "shop", **given}).backup


def cluster(**given):
    return _args.backup_request(validated(_specs.BACKUP_SPEC, {**S3, **given}))


def restore(**given):
    return _args.restore_request(validated(_specs.RESTORE_SPEC, {"backup_key": "k.sql.gz", **S3, **given}))


def verify(**given):
    return _args.verify_request(validated(_specs.VERIFY_SPEC, {"backup_key": "k.sql.gz", **S3, **given}))


def info(**given):
    return _args.info_request(validated(_specs.INFO_SPEC, {**S3, **given}))


def prune(**given):
    return _args.prune_request(validated(_specs.PRUNE_SPEC, {"login_db": "shop", **S3, **given}))


def validated(spec, given):
    result = ArgumentSpecValidator(spec).validate(given)
    assert not result.error_messages
    return result.validated_parameters


# ----------------------------------------------------------------------------------------------- durations


@pytest.mark.parametrize(
    "text, expected",
    [("30s", 30), ("90m", 5400), (" 6h ", 21600), ("2d", 172800), ("45", 45), ("0", 0), ("", 0), (None, 0)],
)
def test_duration_is_seconds(text, expected):
    assert _args.seconds(text, "fresh_within") == expected


@pytest.mark.parametrize("text", ["6", "6h"])
def test_duration_of_an_int_or_a_word(text):
    assert backup(fresh_within=text).fresh_within == {"6": 6, "6h": 21600}[text]
    assert backup(lock_timeout=6).lock_timeout == 6


@pytest.mark.parametrize("text", ["6x", "h", "-1h", "1.5h", "6h later", "six hours"])
def test_duration_that_is_none_names_its_option(text):
    with pytest.raises(errors.UsageError, match="^fresh_within: .*is not a duration"):
        _args.seconds(text, "fresh_within")


# ------------------------------------------------------------------------------------------------ requests


def test_defaults_are_those_of_the_engine():
    server = model.Server(ssl_mode="prefer")
    assert backup() == model.BackupRequest(server=server, database="shop", storage=model.Storage(bucket="b"))
    assert restore() == model.RestoreRequest(server=server, storage=model.Storage(bucket="b"), key="k.sql.gz")
    assert info() == (model.Storage(bucket="b"), "", "", model.Retention(), model.LIST_DETAILS)
    assert prune() == model.PruneRequest(storage=model.Storage(bucket="b"), database="shop")


def test_several_databases_and_globals_arrive():
    request = cluster(databases=["all", "", "my db"], exclude_databases=["x*"], globals=True, globals_passwords=True)
    assert (request.databases, request.exclude) == (("all", "my db"), ("x*",))
    assert request.globals and request.globals_passwords and request.backup.database == ""
    assert cluster(login_db="shop") == cluster_model.ClusterRequest(backup())
    alone = cluster(globals=True, databases=[])
    assert alone.globals and not alone.databases and not alone.backup.database
    assert cluster(login_db="shop", globals=True, backup_key="k.sql.gz").backup.key == "k.sql.gz"


@pytest.mark.parametrize(
    "given, fault",
    [
        ({}, "login_db: the database to back up is not named"),
        ({"login_db": "a", "databases": ["b"]}, "login_db and databases: give one of them"),
        ({"databases": ["b"], "backup_key": "k.sql.gz"}, "backup_key: goes with one database"),
        ({"globals": True, "backup_key": "k.sql.gz"}, "backup_key: goes with one database"),
        ({"login_db": "a", "exclude_databases": ["b"]}, "exclude_databases: goes with databases"),
        ({"databases": ["b"], "globals_passwords": True}, "globals_passwords: goes with `globals: true`"),
    ],
)
def test_faults_of_several_databases(given, fault):
    with pytest.raises(errors.UsageError, match=fault):
        cluster(**given)


KEY = "globals_2026-01-31T02:00:00Z.cluster.sql.gz"


def test_globals_are_asked_for_by_option_or_by_key():
    assert restore(backup_key="latest", globals=True).globals and not restore(backup_key=KEY).globals
    assert verify(backup_key="latest", globals=True).globals
    request = _args.prune_request(validated(_specs.PRUNE_SPEC, {**S3, "globals": True, "keep_last": 1}))
    assert request.globals and request.database == ""


@pytest.mark.parametrize("which", [{"backup_key": KEY}, {"backup_key": "latest", "globals": True}])
@pytest.mark.parametrize(
    "more",
    [{"login_db": "x"}, {"create": True}, {"schemas": ["s"]}, {"tables": ["t"]}, {"strategy": "swap"}],
)
def test_what_is_of_a_database_goes_not_with_globals(which, more):
    with pytest.raises(errors.UsageError, match="%s: goes with a database, not with globals" % next(iter(more))):
        restore(**which, **more)


@pytest.mark.parametrize("ask", [lambda: prune(globals=True), lambda: verify(source_db="x", globals=True)])
def test_a_database_or_globals(ask):
    with pytest.raises(errors.UsageError, match="and globals: give one of them|source_db and globals"):
        ask()


def test_every_option_arrives():
    request = backup(
        login_host="h",
        login_port=5433,
        login_user="u",
        login_password="p",
        maintenance_db="m",
        ssl_mode="verify-full",
        ca_cert="/ca",
        ssl_cert="/cert",
        ssl_key="/key",
        connect_params={"options": "-c x=1", "connect_timeout": 5},
        pg_bindir="/bin",
        prefix="/a/b/",
        endpoint_url="https://s3.example.com",
        region="r",
        access_key="ak",
        secret_key="sk",
        session_token="st",
        validate_certs=False,
        aws_ca_bundle="/bundle",
        addressing_style="path",
        checksums="when_supported",
        encryption_mode="aws:kms",
        encryption_kms_key_id="kms",
        stall_timeout="5m",
        backup_key="k.sql.zst",
        overwrite="always",
        fresh_within="6h",
        compression="gzip",
        compression_level=9,
        jobs=3,
        schemas=["s"],
        exclude_schemas=["es"],
        tables=["t"],
        exclude_tables=["et"],
        exclude_table_data=["etd"],
        lock_timeout="2m",
        timeout="4h",
        correlation_id="c",
    )
    assert request == model.BackupRequest(
        server=model.Server(
            host="h",
            port=5433,
            user="u",
            password="p",
            maintenance_db="m",
            ssl_mode="verify-full",
            ca_cert="/ca",
            ssl_cert="/cert",
            ssl_key="/key",
            connect_params=(("connect_timeout", "5"), ("options", "-c x=1")),
            bindir="/bin",
        ),
        database="shop",
        storage=model.Storage(
            bucket="b",
            prefix="a/b",
            endpoint_url="https://s3.example.com",
            region="r",
            access_key="ak",
            secret_key="sk",
            session_token="st",
            validate_certs=False,
            aws_ca_bundle="/bundle",
            addressing_style="path",
            checksums="when_supported",
            encryption_mode="aws:kms",
            encryption_kms_key_id="kms",
            stall_timeout=300,
        ),
        key="k.sql.zst",
        overwrite="always",
        fresh_within=21600,
        compression_level=9,
        jobs=3,
        filters=model.Filters(("s",), ("es",), ("t",), ("et",), ("etd",)),
        lock_timeout=120,
        timeout=4 * 3600,
        correlation_id="c",
    )
    request = restore(
        backup_key="latest",
        latest_before="2026-01-31T03:00:00+01:00",
        source_db="shop",
        login_db="copy",
        create=True,
        strategy="swap",
        keep_old=False,
        schemas=["s"],
        tables=["t"],
        content="data",
        no_owner=True,
        no_privileges=True,
        role="r",
        jobs=2,
        analyze=False,
        timeout="30m",
        correlation_id="c",
    )
    assert request == model.RestoreRequest(
        server=model.Server(ssl_mode="prefer"),
        storage=model.Storage(bucket="b"),
        key="latest",
        database="copy",
        source_database="shop",
        latest_before="2026-01-31T02:00:00Z",
        create=True,
        strategy="swap",
        keep_old=False,
        schemas=("s",),
        tables=("t",),
        content="data",
        no_owner=True,
        no_privileges=True,
        role="r",
        jobs=2,
        analyze=False,
        timeout=1800,
        correlation_id="c",
    )


def test_an_empty_option_is_one_that_is_not_given():
    empty = {name: "" for name, option in _specs.BACKUP_SPEC.items() if option["type"] in ("str", "path")}
    kept = {name: _specs.BACKUP_SPEC[name]["default"] for name in empty if "choices" in _specs.BACKUP_SPEC[name]}
    request = backup(**{**empty, **kept, "login_db": "shop", "bucket": "b"})
    assert request == model.BackupRequest(
        server=model.Server(ssl_mode="prefer"), database="shop", storage=model.Storage(bucket="b"), lock_timeout=0
    )


def test_socket_is_the_host():
    assert backup(login_unix_socket="/run/pg").server.host == "/run/pg"


def test_directory_instead_of_a_bucket():
    assert backup(bucket="", directory="/mnt/x/").storage == model.Storage(kind="local", directory="/mnt/x")


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"bucket": None}, "bucket, directory and rclone_remote: give exactly one"),
        ({"directory": "/mnt"}, "bucket, directory and rclone_remote: give exactly one"),
        ({"rclone_remote": "sftp:b"}, "bucket, directory and rclone_remote: give exactly one"),
        ({"bucket": None, "rclone_remote": ":sftp,pass=x:b"}, "rclone_remote: give remote:path"),
        ({"rclone_config": "/c"}, "rclone_config: goes with rclone_remote only"),
        ({"bucket": None, "directory": "mnt"}, "directory: 'mnt' is not an absolute path"),
        ({"bucket": None, "directory": "/"}, "directory: '/' is not an absolute path below the root"),
        ({"bucket": "b/prefix"}, "bucket: give the name alone"),
        ({"access_key": "ak"}, "access_key and secret_key: give both or neither"),
        ({"secret_key": "sk"}, "access_key and secret_key: give both or neither"),
        ({"access_key": "ak", "secret_key": "sk", "profile": "p"}, "access_key and profile: give one"),
        ({"encryption_kms_key_id": "k"}, "encryption_kms_key_id: needs"),
        ({"endpoint_url": "s3.example.com"}, "endpoint_url: give http"),
        ({"login_host": "h", "login_unix_socket": "/run"}, "login_host and login_unix_socket: give one"),
        ({"login_port": 0}, "login_port: 0 is not a port"),
        ({"connect_params": {"password": "hidden"}}, "connect_params: password is a secret .*use login_password"),
        ({"connect_params": {"sslpassword": "hidden"}}, "connect_params: sslpassword is a secret"),
        ({"connect_params": {"a='' password": "hidden"}}, "connect_params: .* is not a parameter's name"),
        ({"connect_params": {"dbname": "x"}}, "connect_params: dbname"),
        ({"login_db": ""}, "login_db: the database to back up is not named"),
        ({"backup_key": "latest"}, "backup_key: `latest` names a backup to restore"),
        ({"jobs": -1}, "jobs: -1 is less than 0"),
        ({"compression_level": 10}, "compression_level for gzip"),
    ],
)
def test_fault_names_its_option(given, sentence):
    with pytest.raises(errors.UsageError, match=sentence) as caught:
        backup(**given)
    assert "hidden" not in str(caught.value)


def test_credentials_in_an_address_are_not_repeated():
    with pytest.raises(errors.UsageError, match="endpoint_url: .*login_host:|login_host: .*endpoint_url:") as caught:
        backup(endpoint_url="https://user:hidden@s3.example.com", login_host="postgresql://user:hidden@db")
    assert "hidden" not in str(caught.value)


def test_every_fault_is_named_at_once():
    with pytest.raises(errors.UsageError) as caught:
        backup(bucket="", login_host="h", login_unix_socket="/run", fresh_within="x", access_key="ak", jobs=-1)
    for option in ("bucket", "login_unix_socket", "fresh_within", "secret_key", "jobs"):
        assert option in caught.value.message


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"backup_key": ""}, "backup_key: name the backup"),
        ({"backup_key": "latest"}, "`latest` needs source_db or login_db"),
        ({"latest_before": "2026-01-31T00:00:00Z"}, "latest_before: goes with"),
        ({"source_db": "shop"}, "source_db: goes with"),
        ({"backup_key": "latest", "login_db": "x", "latest_before": "yesterday"}, "latest_before: 'yesterday'"),
    ],
)
def test_restore_fault_names_its_option(given, sentence):
    with pytest.raises(errors.UsageError, match=sentence):
        restore(**given)


POLICY = dict(
    keep_last=1, keep_hourly=2, keep_daily=3, keep_weekly=4, keep_monthly=5, keep_yearly=6, keep_within="7d", min_keep=8
)


def test_the_retention_policy_arrives():
    policy = model.Retention(1, 2, 3, 4, 5, 6, 7 * 86400, 8)
    assert prune(correlation_id="c", prefix="p", **POLICY) == model.PruneRequest(
        storage=model.Storage(bucket="b", prefix="p"), database="shop", retention=policy, correlation_id="c"
    )
    assert info(details=5, **POLICY)[3:] == (policy, 5)


def test_a_verification_as_it_is_asked_for():
    asked = {"backup_key": "latest", "source_db": "shop", "level": "restore", "compare_source": True, "jobs": 3}
    request = verify(login_host="db", **asked)
    assert (request.key, request.source_database, request.level, request.compare_source) == (
        "latest", "shop", "restore", True,
    )  # fmt: skip
    assert (request.server.host, request.jobs, verify().level) == ("db", 3, "content")


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"login_db": ""}, "login_db: the database whose backups to prune is not named"),
        ({"keep_daily": -1}, "keep_daily: -1 is less than 0"),
        ({"keep_within": "a week"}, "keep_within: 'a week' is not a duration"),
        ({"min_keep": 0}, "min_keep: the newest good backup is never removed"),
        ({"bucket": None}, "bucket, directory and rclone_remote"),
    ],
)
def test_prune_fault_names_its_option(given, sentence):
    with pytest.raises(errors.UsageError, match=sentence):
        prune(**{"keep_last": 1, **given})


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"backup_key": ""}, "backup_key: name the backup to verify"),
        ({"backup_key": "latest"}, "`latest` needs source_db"),
        ({"source_db": "shop"}, "source_db: goes with `backup_key: latest` only"),
        ({"compare_source": True}, "compare_source: goes with `level: restore` only"),
        ({"jobs": -1}, "jobs: -1 is less than 0"),
    ],
)
def test_verification_fault_names_its_option(given, sentence):
    with pytest.raises(errors.UsageError, match=sentence):
        verify(**given)


def test_whom_a_task_tells():
    params = validated(_specs.VERIFY_SPEC, {"backup_key": "k", **S3, "ping_url": "https://hc.example.com/u"})
    found = _args.receivers(params)
    assert (found.ping_url, found.webhook_url, found.events) == ("https://hc.example.com/u", "", ("success", "failure"))
    with pytest.raises(errors.UsageError, match="webhook_url is not a URL") as caught:
        _args.receivers({**params, "webhook_url": "hc.example.com"})
    assert "hc.example" not in str(caught.value)


def test_latest_to_describe_needs_a_database():
    assert info(backup_key="latest", login_db="shop")[1:3] == ("shop", "latest")
    with pytest.raises(errors.UsageError, match="`latest` needs login_db"):
        info(backup_key="latest")


def test_no_secret_is_shown():
    request = backup(login_password="hidden1", access_key="ak", secret_key="hidden2", session_token="hidden3")
    assert "hidden" not in repr(request)
    secrets = {name for name, option in _specs.BACKUP_SPEC.items() if option.get("no_log")}
    assert secrets == {
        "login_password", "secret_key", "session_token", "ping_url", "webhook_url", "sse_customer_key", "age_identity"
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ outcomes


class Ended(Exception):
    def __init__(self, **answer):
        super().__init__(answer)
        self.answer = answer


class FakeModule:
    """As much of AnsibleModule as the edge uses."""

    def __init__(self, diff=False, **params):
        self.params = params
        self.warnings = []
        self._diff = diff

    def warn(self, text):
        self.warnings.append(text)

    def exit_json(self, **answer):
        raise Ended(**answer)

    def fail_json(self, **answer):
        raise Ended(failed=True, **answer)


def outcome(module, work):
    with pytest.raises(Ended) as caught:
        _run.run_module(module, "backup", work)
    return caught.value.answer


def raising(error):
    def work(module, log):
        log.warning("slow part", part=3)
        raise error

    return work


def test_engine_error_is_one_sentence_with_its_parts():
    error = errors.ServerError("no\n  such server", stage="connecting", hint="Start it.")
    module = FakeModule(correlation_id="abc")
    assert outcome(module, raising(error)) == {
        "failed": True,
        "msg": "Failed during connecting: no such server. Start it.",
        "stage": "connecting",
        "hint": "Start it.",
        "exit_code": 3,
        "correlation_id": "abc",
    }
    assert module.warnings == ["slow part: part=3"]


def test_bug_goes_through_fail_json_where_secrets_are_masked():
    answer = outcome(FakeModule(), raising(ValueError("odd")))
    assert answer["failed"] and answer["exit_code"] == 1 and len(answer["correlation_id"]) == 12
    assert answer["msg"] == "Unexpected ValueError: odd"
    assert "Traceback" in answer["exception"]


def test_missing_libraries_are_named_together(monkeypatch):
    def no_library(name):
        raise ImportError(name)

    monkeypatch.setattr(_run, "import_module", no_library)
    with pytest.raises(Ended) as caught:
        _run.require(FakeModule(), model.Storage(bucket="b"))
    assert "psycopg2 and boto3" in caught.value.answer["msg"]
    with pytest.raises(Ended) as caught:
        _run.require(FakeModule(), model.Storage(kind="local", directory="/x"))
    assert "psycopg2" in caught.value.answer["msg"] and "boto3" not in caught.value.answer["msg"]
    _run.require(FakeModule(), model.Storage(kind="local", directory="/x"), postgres=False)


def backup_result(**fields):
    rows = (model.TableResult("public", "t", 3, 30),)
    return model.BackupResult(True, "shop", "k", "s3://b/k", "abc", table_rows=rows, tables=1, **fields)


def test_result_is_plain_data():
    answer = outcome(FakeModule(), lambda module, log: _run.backup_answer(backup_result()))
    rows = json.loads(json.dumps(answer))["table_rows"]
    assert rows == [{"schema": "public", "name": "t", "rows": 3, "raw_bytes": 30}]
    assert "diff" not in answer


def test_difference_of_a_backup():
    answer = outcome(FakeModule(diff=True), lambda module, log: _run.backup_answer(backup_result(estimated_bytes=9)))
    assert answer["diff"]["before"] == {}
    assert answer["diff"]["after"] == {"key": "k", "database": "shop", "tables": 1, "estimated_bytes": 9}
    unchanged = model.BackupResult(False, "shop", "k", "s3://b/k", "abc")
    diff = _run.backup_answer(unchanged)["diff"]
    assert diff["before"] == diff["after"] == {"key": "k"}


def test_difference_of_a_pruning():
    stays = (model.KeptBackup("b3", 5, "t", ("last 1",)), model.KeptBackup("b1", 5, "t", ("locked",)))
    result = model.PruneResult(True, "shop", "c", stays, (model.RemovedBackup("b2", 7, "t"),), 7)
    answer = _run.prune_answer(result)
    assert answer["diff"] == {
        "before_header": "shop",
        "after_header": "shop",
        "before": {"backups": ["b3", "b2", "b1"]},
        "after": {"backups": ["b3", "b1"]},
    }
    assert (answer["changed"], answer["freed_bytes"], answer["kept"][1]["why"]) == (True, 7, ("locked",))


def test_difference_of_a_restore():
    done = model.RestoreResult(True, "shop", "k", "u", "abc", strategy="swap", old_database="shop_old")
    diff = _run.restore_answer(done)["diff"]
    assert diff["before"] == {"database": "shop"}
    assert diff["after"] == {"database": "shop", "restored_from": "k", "strategy": "swap", "old_database": "shop_old"}
    made = model.RestoreResult(True, "shop", "k", "u", "abc", strategy="create")
    assert _run.restore_answer(made)["diff"]["before"] == {"database": None}
