# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A whole server, by the command: all its databases whatever their names, one that fails, roles and tablespaces, and
everything back on another, empty server."""

from __future__ import annotations

import gzip
import os
import re
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest
from _pgstream import catalog
from _pgstream.ledger import Ledger
from _pgstream.target import DRILL, UNFINISHED

from tests.support import servers
from tests.support.agekeys import KeyPair
from tests.support.compare import connect
from tests.support.receiver import Receiver
from tests.support.runs import Outcome, Proxy, command_env, sessions

REPOSITORY = Path(__file__).resolve().parents[2]
#: As PostgreSQL takes them: spaces, quotes, commas, other alphabets, upper case, and what keys, lists and patterns use.
ODD = ["my db", "we\"ird na'me", "ünï,cöde", "Shop", "a_2026-01-31T02:00:00Z", "50%", "globals"]
PASSWORD = "secret-of-app"
INJECTED = REPOSITORY / "tests" / "faults" / "injected"


def quoted(name: str) -> str:
    return '"%s"' % name.replace('"', '""')


@pytest.fixture(scope="module")
def site() -> Iterator[Any]:
    """A server of this module's own, with databases, roles, their properties and a tablespace. No test changes it."""
    with servers.PostgresServer() as server:
        server.psql(
            """
            CREATE ROLE app LOGIN PASSWORD '%s';
            CREATE ROLE "Odd; ""the"" role" CONNECTION LIMIT 3;
            CREATE ROLE readers NOLOGIN;
            COMMENT ON ROLE readers IS 'they; read -- and
            nothing ''else''';
            GRANT readers TO app WITH ADMIN OPTION;
            ALTER ROLE app SET work_mem = '9MB';
            ALTER ROLE readers SET search_path = 'x', 'public';
            """
            % PASSWORD
        )
        space = make_directory(server, "space")
        server.psql("CREATE TABLESPACE fast OWNER app LOCATION '%s'" % space)
        server.psql("ALTER TABLESPACE fast SET (seq_page_cost = 2); GRANT CREATE ON TABLESPACE fast TO readers")
        for number, name in enumerate(ODD):
            server.createdb(name)
            server.psql("CREATE TABLE t AS SELECT generate_series(1, %d) AS a" % (number + 1), name)
        server.psql("ALTER TABLE t OWNER TO app; GRANT SELECT ON t TO readers", "Shop")
        server.psql('ALTER DATABASE "Shop" OWNER TO "Odd; ""the"" role"')
        yield server


def make_directory(server: Any, name: str) -> Path:
    """An empty one that belongs to the user of the server's process."""
    path = server.base / name
    path.mkdir(mode=0o700)
    owner = os.stat(str(server.base / "data"))
    os.chown(str(path), owner.st_uid, owner.st_gid)
    return path


Run = Callable[..., Outcome]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    (tmp_path / "state").mkdir()
    return tmp_path / "store"


@pytest.fixture
def environment(store: Path, engine_env: Dict[str, str]) -> Callable[..., Dict[str, str]]:
    def of(server: Any, **changes: Any) -> Dict[str, str]:
        settings = {"BACKUP_STORE": "file://%s" % store, "BACKUP_STATE_DIR": str(store.parent / "state"), **changes}
        return command_env(engine_env, server, "", **settings)

    return of


@pytest.fixture
def command(environment: Callable[..., Dict[str, str]], start: Any) -> Run:
    def run(server: Any, *arguments: str, **changes: Any) -> Outcome:
        done: Outcome = start(environment(server, **changes), *arguments).finish()
        return done

    return run


def files(store: Path) -> List[str]:
    return sorted(path.name for path in store.iterdir() if not path.name.startswith("."))


def test_every_database_of_a_server_whatever_its_name(site: Any, store: Path, command: Run) -> None:
    done = command(site, "backup", "--databases", "all", "--exclude-databases", "post*")
    assert done.code == 0, done.err
    backups = {each["database"]: each for each in done.result["backups"]}
    assert sorted(backups) == sorted(ODD) and done.result["changed"]
    assert {name: each["rows"] for name, each in backups.items()} == {name: n + 1 for n, name in enumerate(ODD)}
    assert {each["status"] for each in backups.values()} == {"ok"}
    assert files(store) == sorted(each["key"] for each in backups.values())
    assert {catalog.parse_key(each["key"])[0]: name for name, each in backups.items()} == {name: name for name in ODD}
    assert done.result["rows"] == sum(range(len(ODD) + 1))
    committed = [line for line in done.lines if line["event"] == "committed"]
    assert [line["database"] for line in committed] == list(backups)
    assert {line["correlation_id"] for line in done.lines} == {done.result["correlation_id"]}
    noted = Ledger(str(store.parent / "state")).view().runs
    assert sorted((run.operation, run.database, run.status) for run in noted) == sorted(
        ("backup", name, "success") for name in ODD
    )
    assert {run.key for run in noted} == set(files(store))

    again = command(site, "backup", "--databases", "Shop,my?db", "--fresh-within", "1d")
    assert again.code == 0 and not again.result["changed"] and len(files(store)) == len(ODD)
    assert [each["key"] for each in again.result["backups"]] == [backups[name]["key"] for name in ("Shop", "my db")]


def test_variables_name_them_too(site: Any, store: Path, command: Run) -> None:
    done = command(site, "backup", BACKUP_DATABASES='"my db" Sh* 50?', POSTGRES_DB="absent")
    assert done.code == 0 and [each["database"] for each in done.result["backups"]] == ["my db", "Shop", "50%"]
    done = command(site, "backup", "--databases", "x*", "--databases", "y?")
    assert done.code == 2 and "no database matches x*, y?" in done.message and len(files(store)) == 3
    done = command(site, "backup", "--databases", "x*", "--databases", "Shop")
    assert done.code == 0 and [line["pattern"] for line in done.errors] == ["x*"]


def test_databases_that_are_at_work_are_not_of_all(site: Any, command: Run) -> None:
    """What a restore fills, and the scratch database of a drill: name and comment tell, not one of them alone."""
    unfinished, scratch = "half_pgstream_" + secrets.token_hex(6), "practice_pgstream_drill_" + secrets.token_hex(4)
    named, salvaged = "shop_pgstream_drill_" + secrets.token_hex(4), "salvaged_" + secrets.token_hex(4)
    try:
        for name in (unfinished, scratch, named, salvaged):
            site.psql("CREATE DATABASE %s" % name)
        for name in (unfinished, salvaged):
            site.psql("COMMENT ON DATABASE %s IS '%sshop'" % (name, UNFINISHED))
        site.psql("COMMENT ON DATABASE %s IS '%s0123abcd'" % (scratch, DRILL))
        done = command(site, "backup", "--databases", "all", "--dry-run")
        meant = sorted(each["database"] for each in done.result["backups"])
        assert meant == sorted([*ODD, "postgres", named, salvaged])
    finally:
        for name in (unfinished, scratch, named, salvaged):
            site.dropdb(name)


def test_a_scheduled_job_asks_for_the_same(
    site: Any, environment: Callable[..., Dict[str, str]], tmp_path: Path, broken: str
) -> None:
    """The image's program, with the engine of the checkout where the image has it, and one that notes its database."""
    (tmp_path / "pgstream").symlink_to(REPOSITORY / "plugins" / "module_utils" / "_pgstream")
    program = (REPOSITORY / "docker" / "lib" / "job.py").read_text()
    (tmp_path / "job.py").write_text(program.replace("/opt/pgbackup", str(tmp_path)))
    (tmp_path / "pgbackup").write_text("#!/bin/sh\nprintf '%s\\0' \"$POSTGRES_DB\" >> \"$CALLS\"\n")
    (tmp_path / "pgbackup").chmod(0o755)
    (tmp_path / "private" / "jobs").mkdir(parents=True)

    def asked(**variables: str) -> Tuple["subprocess.CompletedProcess[str]", List[str]]:
        calls = tmp_path / "calls"
        calls.write_bytes(b"")
        env = environment(site, **variables)
        env.update(PATH="%s:%s" % (tmp_path, env["PATH"]), PGBACKUP_RUN=str(tmp_path), CALLS=str(calls))
        argv = [sys.executable, str(tmp_path / "job.py"), "backup"]
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        return done, calls.read_text().split("\0")[:-1]

    site.createdb("two\nlines")
    try:
        everything = asked(BACKUP_ALL_DATABASES="true", BACKUP_EXCLUDE_DATABASES="post*")[1]
    finally:
        site.dropdb("two\nlines")
    assert sorted(everything) == sorted([*ODD, "two\nlines"])
    assert asked(BACKUP_DATABASES='"my db", Sh*, no*')[1] == ["my db", "Shop"]
    assert asked(BACKUP_DATABASES="a %s" % broken, POSTGRES_PASSWORD="wrong")[1] == ["a", broken]
    assert asked(POSTGRES_DB="shop")[1] == ["shop"]
    failed, calls = asked(BACKUP_DATABASES="all", POSTGRES_PASSWORD="wrong")
    assert failed.returncode == 3 and calls == [] and '"event": "failed"' in failed.stderr
    assert asked(BACKUP_DATABASES='"a')[0].returncode == 2


def test_check_mode_changes_nothing(site: Any, store: Path, command: Run) -> None:
    done = command(site, "backup", "--databases", "all", "--globals", "--dry-run")
    assert done.code == 0 and done.result["changed"] and done.result["dry_run"]
    assert len(done.result["backups"]) == len(ODD) + 2 and files(store) == []
    assert done.result["backups"][-1]["message"].startswith("would back up roles and tablespaces")
    assert not Ledger(str(store.parent / "state")).view().runs


@pytest.fixture
def broken(site: Any) -> Iterator[str]:
    """A database that takes no connections, so that only its name asks for it."""
    name = "closed_" + secrets.token_hex(4)
    site.createdb(name)
    site.psql("UPDATE pg_database SET datallowconn = false WHERE datname = '%s'" % name)
    yield name
    site.psql("UPDATE pg_database SET datallowconn = true WHERE datname = '%s'" % name)
    site.dropdb(name)


@pytest.fixture
def clerk(site: Any) -> Iterator[str]:
    """A role that may read every table but that of `my db`."""
    name = "clerk_" + secrets.token_hex(4)
    site.psql("CREATE ROLE %s LOGIN PASSWORD 'clerk'" % name)
    for database in ODD:
        if database != "my db":
            site.psql("GRANT SELECT ON t TO %s" % name, database)
    yield name
    for database in ODD:
        site.psql("DROP OWNED BY %s" % name, database)
    site.psql("DROP ROLE %s" % name)


def test_one_that_fails_keeps_no_other_from_being_made(
    site: Any, store: Path, command: Run, broken: str, clerk: str
) -> None:
    user = {"POSTGRES_USER": clerk, "POSTGRES_PASSWORD": "clerk"}
    flags = ["--databases", "Shop,my?db", "--databases", broken, "--databases", "globals", "--globals"]
    done = command(site, "backup", *flags, **user)
    assert done.code == 1  # of the first that failed
    assert "2 of 5 backups failed: my db, %s. The first: " % broken in done.message
    assert "permission denied for table t" in done.message
    parts = {each["database"]: each for each in done.result["backups"]}
    assert {name: each["exit_code"] for name, each in parts.items()} == {
        "Shop": 0, "my db": 1, broken: 3, "globals": 0, "": 0,
    }  # fmt: skip
    assert "not currently accepting connections" in parts[broken]["error"] and parts[broken]["key"] == ""
    assert files(store) == sorted(parts[name]["key"] for name in ("Shop", "globals", ""))
    runs = {(run.operation, run.database): run for run in Ledger(str(store.parent / "state")).view().runs}
    assert {group: run.exit_code for group, run in runs.items()} == {
        ("backup", "Shop"): 0, ("backup", "my db"): 1, ("backup", broken): 3, ("backup", "globals"): 0,
        ("globals", ""): 0,
    }  # fmt: skip
    assert broken not in [
        each["database"] for each in command(site, "backup", "--databases", "all", "--dry-run").result["backups"]
    ]


def test_a_server_that_cannot_be_asked_is_a_failure_that_is_told(store: Path, site: Any, command: Run) -> None:
    with Receiver() as receiver:
        url = receiver.url + "/ping"
        done = command(site, "backup", "--databases", "all", POSTGRES_PASSWORD="wrong", BACKUP_PING_URL=url)
        assert done.code == 3 and "password authentication failed" in done.message
        assert receiver.paths() == ["/ping/fail"]
    (run,) = Ledger(str(store.parent / "state")).view().runs
    assert (run.operation, run.database, run.exit_code) == ("backup", "", 3)


def test_pings_once_for_all_or_once_for_each(site: Any, store: Path, command: Run, broken: str) -> None:
    flags = ["backup", "--databases", "50%", "--databases", broken, "--globals"]
    with Receiver() as receiver:
        assert command(site, *flags, BACKUP_PING_URL=receiver.url + "/ping", BACKUP_NOTIFY="start success failure")
        assert receiver.paths() == ["/ping/start", "/ping/fail"]
    with Receiver() as receiver:
        command(site, *flags, BACKUP_PING_URL=receiver.url + "/{database}")
        assert receiver.paths() == ["/50%25", "/%s/fail" % broken, "/globals"]
    with Receiver() as receiver:  # a part is not the backup that a monitor waits for
        url = receiver.url + "/{database}"
        assert command(site, *flags[:3], "--globals", "--table", "t", BACKUP_PING_URL=url).code == 0
        assert command(site, "backup", "--table", "t", POSTGRES_DB="50%", BACKUP_PING_URL=url).code == 0
        assert receiver.paths() == ["/globals"]
    with Receiver() as receiver:
        command(site, "backup", "--databases", "50%", "--globals", BACKUP_PING_URL=receiver.url + "/ping")
        assert receiver.paths() == ["/ping"]


def test_stopped_in_the_middle_nothing_more_is_made(
    site: Any, store: Path, environment: Callable[..., Dict[str, str]], start: Any
) -> None:
    with Proxy(site.port) as proxy:
        gate = proxy.gate(b"globals\x00")  # the connection to that database
        env = environment(site, POSTGRES_HOST=proxy.host, POSTGRES_PORT=str(proxy.port))
        running = start(env, "backup", "--databases", "50%,globals,Shop", "--globals")
        gate.wait(running)
        running.signal(signal.SIGTERM)
        gate.release()
        done = running.finish()
    assert done.code == 1 and "Interrupted by SIGTERM" in done.message
    assert [catalog.parse_key(name)[0] for name in files(store)] == ["50%"] and sessions(site) == []
    runs = {run.database: run.status for run in Ledger(str(store.parent / "state")).view().runs}
    assert runs == {"50%": "success", "globals": "failure"}
    assert done.message.endswith(". Done before: 50%")


@pytest.mark.parametrize("sealed", [False, True], ids=["plain", "encrypted"])
def test_stopped_at_a_commit_no_other_begins(
    site: Any, store: Path, environment: Callable[..., Dict[str, str]], start: Any, sealed: bool
) -> None:
    """The one whose file had its name is made, and told as made; then the signal counts."""
    recipients = KeyPair().recipient if sealed else None
    env = environment(site, PGSTREAM_FAULT="named", BACKUP_AGE_RECIPIENTS=recipients)
    env["PYTHONPATH"] = "%s:%s" % (INJECTED, env["PYTHONPATH"])
    done = start(env, "backup", "--databases", "50%,globals,Shop", "--globals").finish()
    assert done.code == 1 and "Interrupted by SIGTERM" in done.message and done.message.endswith("Done before: 50%")
    assert [catalog.parse_key(name)[0] for name in files(store)] == ["50%"]
    runs = {run.database: run.status for run in Ledger(str(store.parent / "state")).view().runs}
    assert runs == {"50%": "success"}
    assert start(env, "backup", "--databases", "Shop").finish().code == 0  # there was nothing left to stop


def test_stopped_while_a_timeout_is_cleaned_up_no_other_begins(
    site: Any, store: Path, environment: Callable[..., Dict[str, str]], start: Any
) -> None:
    env = environment(site, PGSTREAM_FAULT="cleanup", BACKUP_TIMEOUT="3s")
    env["PYTHONPATH"] = "%s:%s" % (INJECTED, env["PYTHONPATH"])
    with connect(site, "50%") as holder:  # pg_dump reads it, when there is an upload to be aborted
        holder.cursor().execute("BEGIN; LOCK TABLE pg_catalog.pg_description IN ACCESS EXCLUSIVE MODE")
        done = start(env, "backup", "--databases", "50%,Shop").finish()
    assert done.code == 1 and "Interrupted by SIGTERM" in done.message and files(store) == []
    runs = {run.database: run.message for run in Ledger(str(store.parent / "state")).view().runs}
    assert list(runs) == ["50%"] and "timeout of 3s reached" in runs["50%"]


def test_a_name_that_does_not_last_is_taken_back(
    site: Any, store: Path, environment: Callable[..., Dict[str, str]], start: Any
) -> None:
    env = environment(site, PGSTREAM_FAULT="directory", POSTGRES_DB="Shop")
    env["PYTHONPATH"] = "%s:%s" % (INJECTED, env["PYTHONPATH"])
    done = start(env, "backup").finish()
    assert done.code == 4 and "Failed during commit: the directory: Input/output error" in done.message
    assert list(store.iterdir()) == []


def test_names_are_read_whatever_the_maintenance_database_is_encoded_in(command: Run, store: Path) -> None:
    with servers.PostgresServer() as server:
        server.psql("ALTER DATABASE postgres RENAME TO first", "template1")
        server.psql("CREATE DATABASE postgres TEMPLATE template0 ENCODING 'SQL_ASCII'", "template1")
        server.psql('CREATE DATABASE "ünï" TEMPLATE template0')
        done = command(server, "backup", "--databases", "*n*", "--exclude-databases", "postgres")
        assert done.code == 0 and [each["database"] for each in done.result["backups"]] == ["ünï"]
        server.psql("SELECT format('CREATE DATABASE %I TEMPLATE template0', 'caf' || chr(233)) \\gexec")
        done = command(server, "backup", "--databases", "all")
        assert done.code == 2 and "not UTF-8: caf\\xe9" in done.message
        assert command(server, "backup", "--databases", "all", "--exclude-databases", "caf?").code == 0


@pytest.mark.parametrize(
    "variables, said",
    [
        ({"BACKUP_ALL_DATABASES": "ture"}, "BACKUP_ALL_DATABASES must be true or false, not 'ture'"),
        ({"BACKUP_GLOBALS": "enabled"}, "BACKUP_GLOBALS must be true or false, not 'enabled'"),
        ({"BACKUP_DATABASES": " , "}, "BACKUP_DATABASES names no database"),
    ],
)
def test_what_cannot_be_read_is_not_no(
    site: Any, store: Path, command: Run, variables: Dict[str, str], said: str
) -> None:
    done = command(site, "backup", POSTGRES_DB="Shop", **variables)
    assert done.code == 2 and said in done.message and files(store) == []
    (run,) = Ledger(str(store.parent / "state")).view().runs
    assert (run.status, run.exit_code) == ("failure", 2)


# --- roles and tablespaces --------------------------------------------------------------------------------------------

ROLES = """
SELECT rolname, rolsuper, rolcanlogin, rolconnlimit, rolconfig, shobj_description(oid, 'pg_authid') FROM pg_roles
WHERE rolname !~ '^pg_' ORDER BY 1;
SELECT r.rolname, m.rolname, admin_option FROM pg_auth_members JOIN pg_roles r ON r.oid = roleid
JOIN pg_roles m ON m.oid = member WHERE r.rolname !~ '^pg_' ORDER BY 1, 2;
"""
SPACES = """
SELECT spcname, pg_get_userbyid(spcowner), spcoptions, spcacl, pg_tablespace_location(oid) FROM pg_tablespace
WHERE spcname !~ '^pg_'"""
HASHES = "SELECT rolname, rolpassword FROM pg_authid WHERE rolname = 'app'"


@pytest.fixture
def other() -> Iterator[Any]:
    with servers.PostgresServer() as server:
        yield server


def globals_key(store: Path) -> str:
    (key,) = [name for name in files(store) if name.startswith("globals_") and ".cluster." in name]
    return key


def test_a_server_comes_back_on_an_empty_one(site: Any, other: Any, store: Path, command: Run) -> None:
    """Globals, then a database with its owners; the tablespace's directory must be there."""
    made = command(site, "backup", "--databases", "Shop", "--globals")
    assert made.code == 0 and made.result["message"] == "backed up 1 of 1 databases, and the globals"
    key = globals_key(store)
    assert made.result["backups"][1]["key"] == key and made.result["backups"][1]["globals"]
    script = gzip.decompress((store / key).read_bytes()).decode()
    assert "PASSWORD" not in script and "SCRAM" not in script and 'CREATE ROLE "Odd; ""the"" role";' in script
    listed = {one["key"]: one for one in command(site, "list").result["backups"]}
    assert listed[key]["globals"] and not listed[key]["foreign"] and listed[key]["database"] == ""
    assert command(site, "list", "--table").out.count("(globals)") == 1
    for level in ("index", "content"):
        verified = command(site, "verify", "latest", "--globals", "--level", level)
        assert verified.code == 0 and verified.result["key"] == key and not verified.result["foreign"]

    space = Path(site.psql("SELECT pg_tablespace_location(oid) FROM pg_tablespace WHERE spcname = 'fast'").strip())
    moved = space.rename(space.with_name("away"))  # one directory serves one server of a version
    try:
        predicted = command(other, "restore", "latest", "--globals", "--dry-run")
        assert predicted.code == 0 and "4 to make, 1 are there" in predicted.result["message"]
        failed = command(other, "restore", key)
        assert failed.code == 1 and "Failed during tablespaces" in failed.message and str(space) in failed.message
        assert "the roles are there already" in failed.message
        assert other.psql(ROLES) == site.psql(ROLES) and other.psql(SPACES) == ""
        owner = os.stat(str(other.base / "data"))
        space.mkdir(mode=0o700)
        os.chown(str(space), owner.st_uid, owner.st_gid)
        restored = command(other, "restore", "latest", "--globals")
        assert restored.code == 0 and restored.result["strategy"] == "globals", restored.err
        assert "1 made, 4 were there" in restored.result["message"]
        assert other.psql(SPACES) == site.psql(SPACES).replace(str(moved), str(space))
        assert other.psql(HASHES) == "app|\n"

        again = command(other, "restore", key, "--no-analyze")
        assert again.code == 0 and "0 made, 5 were there" in again.result["message"]
        back = command(other, "restore", "latest", "--source-db", "Shop", "--target-db", "Shop", "--create")
        assert back.code == 0, back.err
        owners = "SELECT tableowner, has_table_privilege('readers', 't', 'SELECT') FROM pg_tables WHERE tablename = 't'"
        assert other.psql(owners, "Shop") == site.psql(owners, "Shop") == "app|t\n"
        query = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'Shop'"
        assert other.psql(query) == 'Odd; "the" role\n'
    finally:
        other.psql('DROP DATABASE IF EXISTS "Shop"; DROP TABLESPACE IF EXISTS fast')
        if space.exists():
            space.rmdir()
        moved.rename(space)


def test_by_hand_with_gunzip_and_psql(site: Any, other: Any, store: Path, command: Run) -> None:
    """What is there already is an error to psql, and a harmless one."""
    assert command(site, "backup", "--globals-only", POSTGRES_DB="absent").code == 0
    assert files(store) == [globals_key(store)]
    script = subprocess.run(
        ["gunzip", "-c", str(store / globals_key(store))], stdout=subprocess.PIPE, check=True
    ).stdout
    psql = [other.bindir + "/psql", "-X"]
    done = subprocess.run(psql, input=script.decode(), env=other.env(), capture_output=True, text=True, check=True)
    errors = re.findall("ERROR: .*", done.stderr)
    assert errors[0] == 'ERROR:  role "postgres" already exists'
    assert all("tablespace" in each or "directory" in each for each in errors[1:])
    assert other.psql(ROLES) == site.psql(ROLES)


def test_hashes_only_where_they_are_asked_for(site: Any, other: Any, store: Path, command: Run, clerk: str) -> None:
    user = {"POSTGRES_USER": clerk, "POSTGRES_PASSWORD": "clerk"}
    refused = command(site, "backup", "--globals-only", "--globals-passwords", **user)
    assert refused.code == 1 and "Only a superuser may read the hashes" in refused.message and files(store) == []
    made = command(site, "backup", "--globals-only", "--globals-passwords")
    assert made.code == 0
    (name, kept) = site.psql(HASHES).strip().split("|")
    assert kept.startswith("SCRAM-SHA-256$")
    assert kept in gzip.decompress((store / globals_key(store)).read_bytes()).decode()
    # The password of the role that restores is replaced on the way.
    failed = command(other, "restore", globals_key(store))
    assert failed.code == 1 and "Failed during tablespaces" in failed.message
    for said in (made, failed):
        assert "SCRAM" not in said.out + said.err and kept not in said.out + said.err
    other.password = site.password
    assert other.psql(HASHES) == site.psql(HASHES)


def test_encrypted_globals_are_kept_and_restored_as_all_is(site: Any, other: Any, store: Path, command: Run) -> None:
    pair = KeyPair()
    recipients = {"BACKUP_AGE_RECIPIENTS": pair.recipient}
    made = command(site, "backup", "--databases", "Shop", "--globals", "--globals-passwords", **recipients)
    assert made.code == 0
    key = globals_key(store)
    assert key.endswith(".cluster.sql.gz.age") and b"SCRAM" not in (store / key).read_bytes()
    fresh = command(site, "backup", "--globals-only", "--fresh-within", "1d", **recipients)
    assert fresh.code == 0 and [each["key"] for each in fresh.result["backups"]] == [key]
    assert [one["why"] for one in command(site, "list", "--keep-last", "1").result["backups"]] == [["last 1"]] * 2
    sealed = command(other, "restore", "latest", "--globals", "--dry-run")
    assert sealed.code == 2 and "no identity is given" in sealed.message
    opened = command(other, "restore", "latest", "--globals", "--dry-run", BACKUP_AGE_IDENTITY=pair.identity)
    assert opened.code == 0 and "4 to make, 1 are there" in opened.result["message"]


def test_a_hash_is_in_no_error(site: Any, other: Any, store: Path, command: Run) -> None:
    """A server that refuses the very statement that has it, in whatever words."""
    assert command(site, "backup", "--globals-only", "--globals-passwords").code == 0
    before = other.psql(ROLES)
    limited = "CREATE ROLE small LOGIN CREATEROLE PASSWORD 'small'"
    other.psql(limited)
    user = {"POSTGRES_USER": "small", "POSTGRES_PASSWORD": "small"}
    failed = command(other, "restore", globals_key(store), **user)
    assert failed.code == 1 and "Failed during roles" in failed.message
    assert "Restore globals as a superuser" in failed.message
    noted = str(Ledger(str(store.parent / "state")).view().runs)
    assert "SCRAM" not in failed.out + failed.err + noted
    other.psql("DROP ROLE small")
    assert other.psql(ROLES) == before  # one transaction


def test_a_database_is_not_taken_for_globals_nor_globals_for_one(site: Any, store: Path, command: Run) -> None:
    made = command(site, "backup", "--databases", "globals", "--globals")
    shop, key = [each["key"] for each in made.result["backups"]]
    wrong = command(site, "restore", shop, "--globals")
    assert wrong.code == 2 and "is a backup of database globals, not of globals" in wrong.message
    wrong = command(site, "restore", key, "--target-db", "x", "--create")
    assert wrong.code == 2 and "--target-db goes with a database" in wrong.message and "--create" in wrong.message
    (store / "renamed.sql.gz").write_bytes((store / key).read_bytes())
    wrong = command(site, "restore", "renamed.sql.gz", "--target-db", "x", "--create")
    assert wrong.code == 2 and "is a backup of globals under another name" in wrong.message
    assert "verified" in command(site, "verify", "latest", "--source-db", "globals").result
    pruned = command(site, "prune", "--globals", "--keep-last", "1")
    assert pruned.code == 0 and [each["key"] for each in pruned.result["kept"]] == [key]
