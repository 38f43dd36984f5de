# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The playbooks as users run them: ansible-playbook against a real PostgreSQL and a real S3 server.

Each run of ansible-playbook costs seconds, so a test looks at as much of a run as it can. What a task returned is read
from the output of -v, as one JSON object a task and item.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import secrets
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest
import yaml
from _pgstream.ledger import Ledger

from tests import demo
from tests.support import compare, fixture, servers
from tests.support.agekeys import KeyPair
from tests.support.receiver import Receiver

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = REPOSITORY / "plugins" / "modules"
# The words ansible adds to every result; the rest must be documented.
ANSIBLES_OWN = {"ansible_loop_var", "item", "changed", "diff", "invocation", "failed"}
RESULT = re.compile(r"^(ok|changed|failed|fatal): \[([^\]]+)\][^{]*?=> (\{.*\})$", re.MULTILINE)
RECAP = re.compile(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", re.MULTILINE)


@dataclass
class Play:
    """A finished ansible-playbook."""

    status: int
    output: str

    @property
    def results(self) -> List[Dict[str, Any]]:
        """What each task, or item of a loop, returned; those without a result of a module of ours left out."""
        found = [dict(json.loads(text), host=host) for _state, host, text in RESULT.findall(self.output)]
        return [each for each in found if "correlation_id" in each or "backups" in each]

    @property
    def result(self) -> Dict[str, Any]:
        (only,) = [each for each in self.results if "results" not in each]
        return only

    @property
    def changed(self) -> Dict[str, int]:
        return {host: int(changed) for host, _ok, changed, _unreachable, _failed in RECAP.findall(self.output)}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server of this module's own, with a small shop that no test changes, as database `shop`."""
    with servers.PostgresServer() as server:
        server.createdb("shop")
        fixture.run_file(server, "shop", "shop.sql", orders="300")
        yield server


@pytest.fixture
def site(shop: Any, s3: Any, bucket: str) -> Dict[str, Any]:
    """The variables of a host: how to reach both servers."""
    return {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pgbackup_login_host": shop.host,
        "pgbackup_login_port": shop.port,
        "pgbackup_login_user": shop.user,
        "pgbackup_login_password": shop.password,
        "pgbackup_pg_bindir": shop.bindir,
        "pgbackup_bucket": bucket,
        "pgbackup_endpoint_url": s3.endpoint_url,
        "pgbackup_access_key": s3.access_key,
        "pgbackup_secret_key": s3.secret_key,
    }


@pytest.fixture
def play(ansible_env: Dict[str, str], site: Dict[str, Any], tmp_path: Path) -> Callable[..., Play]:
    def run(
        playbook: str,
        *arguments: str,
        hosts: Optional[Dict[str, Any]] = None,
        env: Optional[Dict[str, str]] = None,
        fails: bool = False,
        **extra: str,
    ) -> Play:
        """Run a playbook of the checkout (or any other by its whole name); keywords become `-e name=value`."""
        inventory = tmp_path / "inventory.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts or {"db1": {}}, "vars": site}}))
        name = playbook if "." in playbook else "playbooks/%s.yml" % playbook
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        command = [program, "-v", "-i", str(inventory), name, *arguments]
        for variable, value in extra.items():
            command += ["-e", "%s=%s" % (variable, value)]
        done = subprocess.run(
            command,
            cwd=str(tmp_path if "." in playbook else REPOSITORY),
            env=env or ansible_env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        played = Play(done.returncode, done.stdout.decode())
        assert (played.status != 0) == fails, played.output
        return played

    return run


@pytest.fixture
def fresh_name(shop: Any) -> Iterator[str]:
    """The name of a database that does not exist; what a test makes of it goes with the test."""
    name = "target_" + secrets.token_hex(4)
    yield name
    for found in shop.psql("SELECT datname FROM pg_database WHERE datname LIKE '%s%%'" % name).split():
        shop.dropdb(found)


def documented(module: str) -> Dict[str, Any]:
    text = (MODULES / (module + ".py")).read_text()
    found = re.search(r'^RETURN = r"""\n(.*?)^"""', text, re.MULTILINE | re.DOTALL)
    assert found
    return {name: entry for name, entry in yaml.safe_load(found.group(1)).items() if entry["returned"] != "failure"}


TYPES = {"str": str, "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict}


def undocumented(given: Any, entries: Dict[str, Any], where: str = "") -> List[str]:
    """In which ways a result is not as its documentation says."""
    faults = ["%s%s is not documented" % (where, name) for name in set(given) - set(entries)]
    faults += ["%s%s is missing" % (where, name) for name in set(entries) - set(given)]
    for name in set(given) & set(entries):
        value, entry = given[name], entries[name]
        if value is None and "null" in str(entry["description"]).lower():
            continue
        if not isinstance(value, TYPES[entry["type"]]):
            faults.append("%s%s is %r, not a %s" % (where, name, value, entry["type"]))
        elif "contains" in entry:
            for each in value if entry["type"] == "list" else [value]:
                faults += undocumented(each, entry["contains"], "%s%s." % (where, name))
    return sorted(set(faults))


def facts(result: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value for name, value in result.items() if name not in ANSIBLES_OWN | {"host"}}


def exists(server: Any, name: str) -> bool:
    return server.psql("SELECT count(*) FROM pg_database WHERE datname = '%s'" % name).strip() == "1"


def test_backup_list_describe_and_restore(
    play: Callable[..., Play],
    ansible_env: Dict[str, str],
    tmp_path: Path,
    shop: Any,
    s3: Any,
    bucket: str,
    fresh_name: str,
) -> None:
    """The whole way, with everything that is returned held against the documentation."""
    backup = play("backup", pgbackup_database="shop").result
    assert backup["changed"] and undocumented(facts(backup), documented("pg_stream_backup")) == []
    assert s3.keys(bucket) == [backup["key"]]
    assert backup["stored_bytes"] == s3.client().head_object(Bucket=bucket, Key=backup["key"])["ContentLength"]
    digests = compare.table_digests(shop, "shop")
    counted = {(each["schema"], each["name"]): each["rows"] for each in backup["table_rows"]}
    views = {("sales", "revenue")}  # materialized: filled again by the restore, not a table in the backup
    assert counted == {name: digest.rows for name, digest in digests.items() if name not in views}
    assert backup["rows"] == sum(counted.values()) and backup["tables"] == len(counted)

    listed = play("list")
    entries = documented("pg_stream_info")
    described = entries.pop("backup")  # returned for one backup only, which is looked at below
    assert undocumented(facts(listed.result), entries) == []
    assert [each["key"] for each in listed.result["backups"]] == [backup["key"]] and not listed.result["changed"]
    assert backup["key"] in listed.output.rpartition("TASK [Backups]")[2]

    # a key is looked into from a playbook of the user's own
    options = {name: "{{ pgbackup_%s }}" % name for name in ("bucket", "endpoint_url", "access_key", "secret_key")}
    options.update(login_db="shop", backup_key="latest")
    own = [{"hosts": "all", "gather_facts": False, "tasks": [{"pgstream.backup.pg_stream_info": options}]}]
    (tmp_path / "own.yml").write_text(json.dumps(own))
    env = dict(ansible_env, ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "playbooks" / "collections"))
    found = play(str(tmp_path / "own.yml"), env=env).result
    assert undocumented(facts(found), dict(entries, backup=described)) == []
    assert (found["backup"]["key"], found["backup"]["rows"]) == (backup["key"], backup["rows"])

    restored = play("restore", backup_key=backup["key"], target_db=fresh_name, create="true").result
    assert restored["changed"] and undocumented(facts(restored), documented("pg_stream_restore")) == []
    assert (restored["database"], restored["source_database"], restored["strategy"]) == (fresh_name, "shop", "create")
    assert (restored["rows"], restored["tables"]) == (backup["rows"], backup["tables"])
    assert compare.differences(shop, "shop", shop, fresh_name, properties=True) == []


def test_several_databases_of_several_hosts(
    play: Callable[..., Play], site: Dict[str, Any], shop: Any, s3: Any, bucket: str, fresh_name: str
) -> None:
    """Two hosts with a server each, two databases on each, one bucket."""
    with servers.PostgresServer() as second:
        for number, server in enumerate((shop, second)):
            server.createdb(fresh_name)
            server.psql("CREATE TABLE thing (id int); INSERT INTO thing VALUES (%d)" % number, fresh_name)
        second.createdb("shop")
        site["pgbackup_databases"] = ["shop", fresh_name]
        login = {"pgbackup_login_port": second.port, "pgbackup_login_password": second.password}
        hosts: Dict[str, Any] = {"db1": {}, "db2": login}

        refused = play("backup", hosts=hosts, fails=True)
        assert "Several hosts would write to the same place" in refused.output
        site["pgbackup_prefix"] = "{{ inventory_hostname }}"
        refused = play("backup", hosts=hosts, fails=True, backup_key="one.sql.gz")
        assert "backup_key names one object" in refused.output
        assert s3.keys(bucket) == []

        done = play("backup", hosts=hosts)
        assert done.changed == {"db1": 1, "db2": 1}
        parts = [(each["host"], part) for each in done.results for part in each["backups"]]
        made = sorted((host, part["database"], part["key"]) for host, part in parts)
        assert [each[:2] for each in made] == [(host, name) for host in hosts for name in site["pgbackup_databases"]]
        assert s3.keys(bucket) == sorted(key for _host, _name, key in made)
        assert all(key.startswith("%s/%s_" % (host, name)) for host, name, key in made)

        # `latest` is the host's own newest one of that database
        second.psql("INSERT INTO thing VALUES (8)", fresh_name)
        asked = {"backup_key": "latest", "pgbackup_database": fresh_name, "restore_strategy": "swap"}
        restored = play("restore", "--limit", "db2", hosts=hosts, **asked).result
        assert restored["key"] == next(key for host, name, key in made if (host, name) == ("db2", fresh_name))
        assert restored["strategy"] == "swap" and restored["old_database"].startswith(fresh_name + "_before_")
        assert second.psql("SELECT id FROM thing", fresh_name) == "1\n"
        assert second.psql("SELECT id FROM thing ORDER BY 1", restored["old_database"]) == "1\n8\n"
        assert shop.psql("SELECT id FROM thing", fresh_name) == "0\n"


def test_all_databases_and_the_globals(
    play: Callable[..., Play], site: Dict[str, Any], shop: Any, s3: Any, bucket: str, fresh_name: str
) -> None:
    """What the inventory says once serves backup, verification and pruning; one that fails keeps no other away."""
    for name in (fresh_name, fresh_name + " x", fresh_name + "_left_out"):
        shop.createdb(name)
    everything = ["postgres", "shop", fresh_name, fresh_name + " x"]
    there = "SELECT datname FROM pg_database WHERE NOT datistemplate"
    site.update(
        pgbackup_databases="all",
        pgbackup_exclude_databases=["*_left_out"]
        + sorted(set(shop.psql(there).splitlines()) - {*everything, fresh_name + "_left_out"}),
        pgbackup_globals=True,
    )
    predicted = play("backup", "--check", "--diff")
    assert predicted.changed == {"db1": 1} and s3.keys(bucket) == []
    assert predicted.result["message"] == "would back up 4 of 4 databases, and the globals"
    done = play("backup").result
    assert undocumented(facts(done), documented("pg_stream_backup")) == []
    assert [each["database"] for each in done["backups"]] == [*sorted(everything), ""]
    keys = [each["key"] for each in done["backups"]]
    assert sorted(keys) == s3.keys(bucket) and ".cluster.sql.gz" in keys[-1]

    verified = [each for each in play("verify").results if "verified" in each]
    assert [each["key"] for each in verified] == keys
    again = play("backup", pgbackup_fresh_within="1h")
    assert again.changed == {"db1": 0} and [each["key"] for each in again.result["backups"]] == keys
    shop.psql("UPDATE pg_database SET datallowconn = false WHERE datname = '%s'" % fresh_name)
    try:
        site["pgbackup_databases"] = [fresh_name, "sh?p"]
        with Receiver() as receiver:
            site["pgbackup_ping_url"] = receiver.url + "/{database}"
            failed = play("backup", fails=True).result
            assert receiver.paths() == ["/%s/fail" % fresh_name, "/shop", "/globals"]
        del site["pgbackup_ping_url"]
    finally:
        shop.psql("UPDATE pg_database SET datallowconn = true WHERE datname = '%s'" % fresh_name)
    assert failed["exit_code"] == 3 and failed["msg"].startswith("1 of 3 backups failed: %s. The first: " % fresh_name)
    assert [each["status"] for each in failed["backups"]] == ["failed", "ok", "ok"]
    assert len(s3.keys(bucket)) == len(keys) + 2

    site["pgbackup_databases"] = "all"
    pruned = {each["database"]: each for each in play("prune", pgbackup_keep_last="1").results if "removed" in each}
    assert set(pruned) == {*everything, ""}
    gone = {name: [one["key"] for one in each["removed"]] for name, each in pruned.items() if each["removed"]}
    assert gone == {"shop": [keys[1]], "": [keys[-1]]}
    refused = play("restore", fails=True, backup_key="latest")
    assert "all and patterns are for backups" in refused.output
    restored = play("restore", backup_key="latest", restore_globals="true").result
    assert restored["strategy"] == "globals" and restored["message"].endswith("there")
    assert undocumented(facts(restored), documented("pg_stream_restore")) == []


def test_a_named_backup_is_made_once(play: Callable[..., Play], s3: Any, bucket: str) -> None:
    first = play("backup", pgbackup_database="shop", backup_key="release-1.sql.gz")
    stored = s3.client().get_object(Bucket=bucket, Key="release-1.sql.gz")
    content = stored["Body"].read()
    again = play("backup", pgbackup_database="shop", backup_key="release-1.sql.gz")
    assert (first.changed, again.changed) == ({"db1": 1}, {"db1": 0})
    assert undocumented(facts(again.result), documented("pg_stream_backup")) == []
    assert again.result["rows"] == first.result["rows"]
    now = s3.client().get_object(Bucket=bucket, Key="release-1.sql.gz")
    assert (now["LastModified"], now["Body"].read()) == (stored["LastModified"], content)


def test_a_fresh_backup_is_enough(play: Callable[..., Play], s3: Any, bucket: str) -> None:
    first = play("backup", pgbackup_database="shop", pgbackup_fresh_within="6h")
    again = play("backup", pgbackup_database="shop", pgbackup_fresh_within="6h")
    assert (first.changed, again.changed) == ({"db1": 1}, {"db1": 0})
    assert again.result["key"] == first.result["key"] and s3.keys(bucket) == [first.result["key"]]


def test_check_mode_predicts_and_changes_nothing(
    play: Callable[..., Play], shop: Any, s3: Any, bucket: str, fresh_name: str
) -> None:
    predicted = play("backup", "--check", "--diff", pgbackup_database="shop", backup_key="one.sql.gz")
    assert predicted.changed == {"db1": 1} and s3.keys(bucket) == []
    assert s3.uploads(bucket) == []
    assert "would back up" in predicted.output and "+++ after: s3://%s/one.sql.gz" % bucket in predicted.output
    backup = play("backup", pgbackup_database="shop", backup_key="one.sql.gz").result
    assert predicted.result["tables"] == backup["tables"] and predicted.result["key"] == backup["key"]
    assert undocumented(facts(predicted.result), documented("pg_stream_backup")) == []

    asked = {"backup_key": "one.sql.gz", "target_db": fresh_name, "create": "true"}
    predicted = play("restore", "--check", "--diff", **asked)
    assert predicted.changed == {"db1": 1} and not exists(shop, fresh_name)
    assert (predicted.result["rows"], predicted.result["strategy"]) == (backup["rows"], "create")
    assert undocumented(facts(predicted.result), documented("pg_stream_restore")) == []
    assert "would restore" in predicted.output and "+++ after: " + fresh_name in predicted.output


def test_definitions_first_and_rows_later(play: Callable[..., Play], shop: Any, fresh_name: str) -> None:
    backup = play("backup", pgbackup_database="shop").result
    asked = {"backup_key": backup["key"], "target_db": fresh_name}
    made = play("restore", **asked, create="true", content="schema").result
    assert (made["strategy"], made["content"], made["rows"]) == ("create", "schema", 0)
    loaded = play("restore", **asked, content="data").result
    assert (loaded["strategy"], loaded["content"], loaded["rows"]) == ("in_place", "data", backup["rows"])
    assert 0 < made["bytes_read"] < loaded["bytes_read"] <= loaded["stored_bytes"] == backup["stored_bytes"]
    shop.psql("REFRESH MATERIALIZED VIEW sales.revenue", fresh_name)
    assert compare.differences(shop, "shop", shop, fresh_name, properties=True) == []


def test_restore_says_what_is_missing_or_in_the_way(play: Callable[..., Play], shop: Any) -> None:
    assert "No backup to restore: pass -e backup_key=KEY" in play("restore", fails=True).output
    unknown = play("restore", fails=True, backup_key="invalid_filename.sql.gz", create="true").result
    assert "Backup not found" in unknown["msg"] and unknown["exit_code"] == 5
    play("backup", pgbackup_database="shop", backup_key="one.sql.gz")
    before = compare.table_digests(shop, "shop")
    refused = play("restore", fails=True, backup_key="one.sql.gz").result
    assert "database shop is not empty" in refused["msg"] and refused["exit_code"] == 7
    assert compare.table_digests(shop, "shop") == before
    assert "No database to back up" in play("backup", fails=True).output


def test_no_secret_is_shown(play: Callable[..., Play], site: Dict[str, Any], shop: Any, s3: Any, bucket: str) -> None:
    hidden = [shop.password, s3.secret_key]
    done = play("backup", "-vvv", pgbackup_database="shop")
    assert not [secret for secret in hidden if secret in done.output]
    site["pgbackup_login_password"] = wrong = "wrong-" + secrets.token_hex(8)
    failed = play("backup", "-vvv", pgbackup_database="shop", fails=True)
    assert "password authentication failed" in failed.output
    (result,) = {each["msg"] for each in failed.results if each.get("exit_code") == 3}
    assert result.startswith("Failed during ")
    assert not [secret for secret in [*hidden, wrong] if secret in failed.output]
    site.update(pgbackup_login_password=shop.password, pgbackup_secret_key=wrong)
    failed = play("backup", "-vvv", pgbackup_database="shop", fails=True)
    assert {each["exit_code"] for each in failed.results} == {4}
    assert not [secret for secret in [*hidden, wrong] if secret in failed.output]
    assert len(s3.keys(bucket)) == 1


def interpreter_of(user: servers.Identity, place: Path) -> str:
    """A Python with this environment's packages that `user` can run: this one, or the system's of the same version
    where this one is in somebody's home directory. Empty if there is none."""
    packages = sysconfig.get_path("purelib")
    if not servers._reachable(Path(packages), user):
        return ""
    if servers._reachable(Path(sys.executable).resolve(), user) and servers._reachable(Path(sys.prefix), user):
        return sys.executable
    system = Path("/usr/bin/python%d.%d" % sys.version_info[:2])
    if not system.exists():
        return ""
    wrapper = place / "python"
    wrapper.write_text("#!/bin/sh\nPYTHONPATH='%s' exec %s \"$@\"\n" % (packages, system))
    wrapper.chmod(0o755)
    return str(wrapper)


def test_peer_authentication_over_the_socket(play: Callable[..., Play], site: Dict[str, Any], shop: Any) -> None:
    """No host and no password: the server knows the user by its process. As root also with become, as most will."""
    for name in ("host", "password"):
        del site["pgbackup_login_" + name]
    site["pgbackup_login_unix_socket"] = shop.socket_dir
    assert play("backup", pgbackup_database="shop", backup_key="mine.sql.gz").result["rows"] > 0

    owner = pwd.getpwuid(os.stat(os.path.join(shop.base, "data")).st_uid)
    python = interpreter_of(servers.Identity(owner.pw_name, owner.pw_uid, owner.pw_gid), shop.base)
    if os.getuid() == 0 and python:
        if owner.pw_name == shop.user:
            del site["pgbackup_login_user"]  # the default is the process's own
        site.update(ansible_become_user=owner.pw_name, ansible_become_method="ansible.builtin.su")
        site.update(ansible_become_flags="-s /bin/sh", ansible_pipelining=True, ansible_python_interpreter=python)
        assert play("backup", "--become", pgbackup_database="shop", backup_key="theirs.sql.gz").result["rows"] > 0


def test_installed_collection(
    play: Callable[..., Play], ansible_env: Dict[str, str], tmp_path: Path, shop: Any, fresh_name: str
) -> None:
    """Built, installed without a network, and used by its name from a directory that is not the checkout."""
    galaxy = [str(Path(sys.executable).with_name("ansible-galaxy")), "collection"]
    built = ["build", str(REPOSITORY), "--output-path", str(tmp_path)]
    install = ["install", "--offline", "--no-deps", "-p", str(tmp_path / "installed")]
    subprocess.run([*galaxy, *built], env=ansible_env, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    (archive,) = tmp_path.glob("pgstream-backup-*.tar.gz")
    subprocess.run([*galaxy, *install, str(archive)], env=ansible_env, check=True, stdout=subprocess.PIPE,
                   stderr=subprocess.STDOUT)  # fmt: skip
    root = tmp_path / "installed" / "ansible_collections" / "pgstream" / "backup"
    assert {"plugins", "playbooks", "meta", "README.md"} <= {each.name for each in root.iterdir()}
    env = dict(ansible_env, ANSIBLE_COLLECTIONS_PATH=str(tmp_path / "installed"))
    modules = ["pgstream.backup." + path.stem for path in MODULES.glob("pg_stream_*.py")]
    for kind, names in (("module", modules), ("role", ["pgstream.backup.pgbackup"])):
        command = [str(Path(sys.executable).with_name("ansible-doc")), "--json", "-t", kind, *names]
        shown = subprocess.run(command, env=env, cwd=str(tmp_path), stdout=subprocess.PIPE, check=True)
        assert set(json.loads(shown.stdout)) == set(names)
    play("pgstream.backup.backup", env=env, pgbackup_database="shop", backup_key="one.sql.gz")
    assert "one.sql.gz" in play("pgstream.backup.list", env=env).output
    play("pgstream.backup.restore", env=env, backup_key="one.sql.gz", target_db=fresh_name, create="true")
    assert compare.differences(shop, "shop", shop, fresh_name) == []


def test_demo(tmp_path: Path) -> None:
    """`make demo` with a smaller shop: it says that all is the same, and leaves nothing."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    temporary.chmod(0o755)
    env = dict(os.environ, HOME=str(tmp_path / "home"), TMPDIR=str(temporary))
    command = [sys.executable, str(REPOSITORY / "tests" / "demo.py"), "--orders", "300"]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode()
    assert done.returncode == 0, said
    assert said.splitlines()[-1].startswith("Done: everything is the same.")
    assert said.count("compared with the original: the same 1,") == 2
    assert "| gunzip | psql -q -v ON_ERROR_STOP=1 -d shop_plain" in said
    assert not (tmp_path / "home").exists() and not list(temporary.iterdir())


def test_demo_sees_a_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = demo.Demo(None, None, Path(), verbose=False)
    rows = {("sales", "line"): compare.Digest(2, "aa")}
    before: demo.State = {"table": dict(rows), "sequence": {}, "large object": {}}
    shown._compare(before, before)
    assert shown.same
    shown._compare(before, dict(before, table={}))
    assert not shown.same and "1 DIFFERENCES" in capsys.readouterr().out


def test_verify_and_drill(play: Callable[..., Play], shop: Any, s3: Any, bucket: str, tmp_path: Path) -> None:
    """The newest backup is proven in three ways, noted, listed as such; then it is damaged."""
    key = play("backup", pgbackup_database="shop").result["key"]
    with Receiver() as receiver:
        tell = {"pgbackup_state_dir": str(tmp_path), "pgbackup_webhook_url": receiver.url + "/secret-hook"}
        content = play("verify", pgbackup_database="shop", **tell)
        drilled = play("drill", pgbackup_database="shop", compare_source="true", **tell)
        predicted = play("drill", "--check", pgbackup_database="shop", **tell)
        told = [each.json for each in receiver.got]
    for played, level in ((content, "content"), (drilled, "restore"), (predicted, "index")):
        result = played.result
        assert undocumented(facts(result), documented("pg_stream_verify")) == []
        assert (result["verified"], result["level"], result["key"], result["changed"]) == (True, level, key, False)
        assert result["message"] in played.output.rpartition("TASK [Summary]")[2]
        assert "secret-hook" not in played.output
    assert drilled.result["compared_tables"] == drilled.result["tables"]
    assert shop.psql("SELECT count(*) FROM pg_database WHERE datname LIKE '%\\_pgstream\\_%'").strip() == "0"
    # In check mode nobody is told, and nothing is noted.
    assert [(one["event"], one["operation"], one["database"], one["level"]) for one in told] == [
        ("success", "verify", "shop", "content"),
        ("success", "verify", "shop", "restore"),
    ]
    runs = Ledger(str(tmp_path)).view().runs
    assert [(run.operation, run.database, run.level) for run in runs] == [
        ("verify", "shop", "restore"),
        ("verify", "shop", "content"),
    ]

    (listed,) = play("list", pgbackup_state_dir=str(tmp_path)).result["backups"]
    assert listed["verified_level"] == "restore" and listed["verified_at"] >= drilled.result["started_at"][:19]

    body = bytearray(s3.client().get_object(Bucket=bucket, Key=key)["Body"].read())
    body[1000] ^= 1
    s3.client().put_object(Bucket=bucket, Key=key, Body=bytes(body))
    failed = play("verify", backup_key=key, fails=True, **tell)  # nobody listens any more: a warning
    assert failed.result["exit_code"] == 6 and "1 of" in failed.result["msg"] and key in failed.result["msg"]
    assert "not_notified" in failed.output
    assert Ledger(str(tmp_path)).view().runs[0].exit_code == 6
    assert "No backup to verify" in play("verify", fails=True).output


def test_an_encrypted_backup(
    play: Callable[..., Play], site: Dict[str, Any], shop: Any, fresh_name: str, tmp_path: Path
) -> None:
    """The host that backs up has the recipient alone; who restores has the identity, as a file or from a vault."""
    pair = KeyPair()
    site["pgbackup_age_recipients"] = [pair.recipient]
    made = play("backup", pgbackup_database="shop").result
    assert made["key"].endswith(".sql.gz.age")
    again = play("backup", pgbackup_database="shop", pgbackup_fresh_within="1h").result
    assert not again["changed"] and again["key"] == made["key"]
    refused = play("restore", backup_key=made["key"], target_db=fresh_name, create="true", fails=True)
    assert not exists(shop, fresh_name)
    assert "no identity is given" in refused.output and '"exit_code": 2' in refused.output
    (listed,) = play("list").result["backups"]
    assert (listed["encrypted"], listed["foreign"], listed["rows"]) == (True, False, None)
    identity = tmp_path / "identity"
    identity.write_text("# mine\n%s\n" % pair.identity)
    site["pgbackup_age_identity_file"] = str(identity)
    (listed,) = play("list").result["backups"]
    assert listed["rows"] == made["rows"]
    del site["pgbackup_age_identity_file"]
    site["pgbackup_age_identity"] = identity.read_text()
    done = play("restore", backup_key=made["key"], target_db=fresh_name, create="true")
    assert done.result["rows"] == made["rows"] and pair.identity not in done.output
    verified = play("verify", pgbackup_database="shop", backup_key=made["key"])
    assert verified.result["verified"] and pair.identity not in verified.output
