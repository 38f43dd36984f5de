# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Several databases and the globals, without a server: which are meant, their keys, and what of a script is run."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import pytest
from _pgstream import catalog, cluster, globals_backup, globals_restore, health, listing, prune, verify
from _pgstream.cluster_model import ClusterRequest
from _pgstream.config_cluster import Wanted, cluster_parts, names, of_job
from _pgstream.errors import BackupError, Interrupted, LockedError, PartialError, StorageError, UsageError
from _pgstream.events import Log, utc_now
from _pgstream.ledger import FAILURE, Ledger
from _pgstream.model import (
    BackupRequest,
    BackupResult,
    Filters,
    PruneRequest,
    Retention,
    Server,
    Storage,
    VerifyRequest,
)
from _pgstream.patterns import choose, database_matches
from _pgstream.store.base import open_store
from hypothesis import given
from hypothesis import strategies as st

from tests.support import ledger_runs
from tests.support.ledger_runs import run, view
from tests.support.made import backup_bytes, put, put_backup

NOW = datetime(2026, 1, 31, 2, tzinfo=timezone.utc)
#: Anything a name can hold, and often what is special in a pattern, a key or a list.
NAMES = st.text(
    st.one_of(
        st.characters(exclude_characters="\0", exclude_categories=("Cs",)), st.sampled_from("*?.,\"'$[]_\n :ZT2026aA")
    ),
    min_size=1,
    max_size=20,
)

# --- which databases --------------------------------------------------------------------------------------------------

THERE = ["Shop", "crm", "my db", "postgres", "shop", "test_1", "test_2"]


@pytest.mark.parametrize(
    "wanted, excluded, found",
    [
        (["all"], [], THERE),
        (["all"], ["test_*", "postgres"], ["Shop", "crm", "my db", "shop"]),
        (["all"], ["*"], []),
        (["shop", "crm"], [], ["shop", "crm"]),
        (["?hop"], [], ["Shop", "shop"]),
        (["shop", "test_*", "all"], [], ["shop", "test_1", "test_2", "Shop", "crm", "my db", "postgres"]),
        (["absent", "crm"], [], ["absent", "crm"]),
        (["my?db"], [], ["my db"]),
        (["crm"], ["crm"], []),
    ],
)
def test_choosing(wanted: List[str], excluded: List[str], found: List[str]) -> None:
    assert choose(THERE, wanted, excluded) == (found, [])


def test_a_pattern_without_a_match_is_told() -> None:
    assert choose(THERE, ["x*", "crm"]) == (["crm"], ["x*"])
    assert choose(THERE, ["all"], ["test_*", "tset_*"]) == (THERE[:-2], ["tset_*"])
    assert choose(THERE, ["shop"], ["crm"]) == (["shop"], ["crm"])


@given(NAMES, NAMES)
def test_a_name_is_itself_and_a_star_anything(name: str, other: str) -> None:
    assert database_matches([name], name) and database_matches(["*"], name)
    assert database_matches([name + "*"], name + other) and database_matches(["*" + name], other + name)
    if not set("*?") & set(name):
        assert database_matches([name], other) == (name == other)
        assert not database_matches([name], name + "\n")


@given(st.lists(NAMES))
def test_any_names_pass_through_a_variable(given_names: List[str]) -> None:
    quoted = ['"%s"' % name.replace('"', '""') for name in given_names]
    assert names(", ".join(quoted)) == names(" ".join(quoted)) == tuple(given_names)


@pytest.mark.parametrize("text", ['"shop', 'sh"op', '"shop"crm', '""'])
def test_quotes_that_stand_alone(text: str) -> None:
    with pytest.raises(ValueError, match="double quote"):
        names(text)
    with pytest.raises(UsageError, match="BACKUP_DATABASES: a double quote"):
        of_job({"BACKUP_DATABASES": text})


SITE = {"POSTGRES_HOST": "h", "POSTGRES_USER": "u", "BACKUP_STORE": "file:///b", "POSTGRES_DB": "shop"}


def parts(flags: Dict[str, str], only_globals: bool = False, **environ: str) -> Tuple[str, Wanted]:
    one, wanted = cluster_parts({**SITE, **environ}, flags, Filters(), False, "c", only_globals)
    return one.database, wanted


def test_a_flag_goes_before_variables_and_names_before_all() -> None:
    everything = {"BACKUP_ALL_DATABASES": "true"}
    assert parts({}, **everything) == ("", Wanted(("all",)))
    assert parts({}, BACKUP_DATABASES="a b", **everything)[1].databases == ("a", "b")
    assert parts({"BACKUP_DATABASES": "c"}, BACKUP_DATABASES="a b")[1].databases == ("c",)
    assert parts({}, BACKUP_GLOBALS="yes") == ("shop", Wanted(globals=True))
    assert parts({}, True, BACKUP_DATABASES="a") == ("", Wanted(globals=True))


@pytest.mark.parametrize(
    "flags, environ, said",
    [
        ({"BACKUP_EXCLUDE_DATABASES": "x"}, {}, "--exclude-databases goes with --databases"),
        ({"BACKUP_GLOBALS_PASSWORDS": "true"}, {}, "--globals-passwords goes with --globals"),
        ({"BACKUP_DATABASES": "a", "BACKUP_KEY": "k.sql.gz"}, {}, "--key goes with one database"),
        ({"BACKUP_DATABASES": "a"}, {"POSTGRES_HOST": ""}, "missing: POSTGRES_HOST"),
    ],
)
def test_faults(flags: Dict[str, str], environ: Dict[str, str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parts(flags, **environ)


def test_variables_for_other_runs_are_no_fault() -> None:
    assert of_job({**SITE, "BACKUP_EXCLUDE_DATABASES": "x", "BACKUP_GLOBALS_PASSWORDS": "true"}) == Wanted((), ("x",))


def test_health_expects_what_is_named_and_the_globals() -> None:
    assert health.policy({"BACKUP_DATABASES": "a b c", "BACKUP_EXCLUDE_DATABASES": "b"}).databases == ("a", "c")
    assert health.policy({"BACKUP_DATABASES": "a b*"}).databases == ()
    assert health.policy({"BACKUP_DATABASES": "all", "BACKUP_GLOBALS": "true"}).globals
    runs = (
        run(FAILURE, operation="globals", database=""),
        run(database="a"),
    )
    wanted = health.Policy(databases=("a",))
    assert health.judge(view(*runs), wanted, ledger_runs.NOW).ok
    found = health.judge(view(*runs), health.Policy(databases=("a",), globals=True), ledger_runs.NOW)
    assert not found.ok and "The last backup of (globals) failed" in found.message


# --- one after the other ----------------------------------------------------------------------------------------------


class Engine:
    """Stands in for what backs up one: fails where told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: List[str] = []
        self.fails: Dict[str, BaseException] = {}
        monkeypatch.setattr(cluster.backup, "back_up", self._back_up)
        monkeypatch.setattr(cluster.globals_backup, "back_up_globals", self._globals)

    def _back_up(self, request: BackupRequest, log: Log) -> BackupResult:
        self.done.append(request.database)
        log.database = request.database
        if request.database in self.fails:
            raise self.fails[request.database]
        return BackupResult(
            True, request.database, "k-" + request.database, "u", request.correlation_id, raw_bytes=10, rows=2
        )

    def _globals(self, request: BackupRequest, passwords: bool, log: Log) -> BackupResult:
        return self._back_up(BackupRequest(request.server, "", request.storage, correlation_id="c"), log)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    return Engine(monkeypatch)


def back_up(databases: Tuple[str, ...], **more: Any) -> Any:
    one = BackupRequest(Server(), "", Storage(), correlation_id="c")
    return cluster.back_up_cluster(ClusterRequest(one, databases, **more), Log(), hide=lambda text: text.upper())


def test_all_are_made_and_summed(engine: Engine) -> None:
    result = back_up(("a", "b"), globals=True)
    assert engine.done == ["a", "b", ""]
    assert (result.raw_bytes, result.rows, result.changed, result.key) == (30, 6, True, "")
    assert [(each.database, each.globals, each.status) for each in result.backups] == [
        ("a", False, "ok"),
        ("b", False, "ok"),
        ("", True, "ok"),
    ]
    assert result.message == "backed up 2 of 2 databases, and the globals"


def test_one_that_fails_keeps_no_other_from_being_made(engine: Engine) -> None:
    engine.fails = {"a": LockedError("busy"), "b": StorageError("no room"), "c": BackupError("odd")}
    with pytest.raises(PartialError) as caught:
        back_up(("a", "b", "c", "d"), globals=True)
    assert engine.done == ["a", "b", "c", "d", ""]
    assert caught.value.exit_code == StorageError.exit_code  # a lock held elsewhere is worth less
    assert caught.value.message == "3 of 5 backups failed: a, b, c. The first: BUSY"
    result = caught.value.result
    assert [each.status for each in result.backups] == ["failed"] * 3 + ["ok"] * 2
    assert [each.exit_code for each in result.backups] == [8, 4, 1, 0, 0]
    assert result.backups[1].error == "NO ROOM" and result.changed


def test_nothing_but_locks_is_a_lock(engine: Engine) -> None:
    engine.fails = {"a": LockedError("busy")}
    with pytest.raises(PartialError) as caught:
        back_up(("a",))
    assert caught.value.exit_code == LockedError.exit_code and not caught.value.result.changed


def test_an_interrupt_ends_it_all(engine: Engine) -> None:
    engine.fails = {"a": Interrupted("Interrupted by SIGTERM")}
    with pytest.raises(Interrupted):
        back_up(("a", "b"), globals=True)
    assert engine.done == ["a"]


def test_nothing_named_is_a_fault(engine: Engine) -> None:
    for databases, exclude in (((), ()), (("a",), ("?",))):
        with pytest.raises(UsageError, match="no database"):
            back_up(databases, exclude=exclude)
    assert engine.done == []


# --- keys and retention -----------------------------------------------------------------------------------------------


def storage_of(path: Path, **changes: Any) -> Storage:
    return Storage(kind="local", directory=str(path), **changes)


@pytest.mark.parametrize("compression, ending", [("gzip", ".sql.gz"), ("zstd", ".sql.zst"), ("none", ".sql")])
def test_the_key_of_globals(tmp_path: Path, compression: str, ending: str) -> None:
    storage = storage_of(tmp_path, prefix="host1")
    key = catalog.new_globals_key(storage, NOW, compression)
    assert key == "host1/globals_2026-01-31T02:00:00Z.cluster" + ending
    assert catalog.is_globals(key) and catalog.is_templated(storage, key)
    assert catalog.parse_key(key) == ("", "2026-01-31T02:00:00Z", "") and catalog.compression_of(key) == compression
    assert catalog.is_globals(key + ".age")


@given(NAMES)
def test_no_database_has_the_key_of_globals(name: str) -> None:
    storage = Storage()
    for database in (name, "globals", "globals_2026-01-31T02:00:00Z.cluster", "x_2026-01-31T02:00:00Z.cluster" + name):
        key = catalog.new_key(storage, database, NOW, "gzip")
        assert not catalog.is_globals(key) and catalog.parse_key(key)[0] == database
    assert not catalog.is_globals("globals_2026-02-31T02:00:00Z.cluster.sql.gz")  # no such day


def put_globals(storage: Storage, moment: datetime) -> str:
    """A backup of globals, which is one without a database's name."""
    store = open_store(storage)
    key = catalog.new_globals_key(storage, moment, "gzip")
    return put(store, key, backup_bytes(moment, "", rows=0, tables=0))


def nights(storage: Storage, count: int) -> List[str]:
    now = utc_now()
    return [put_globals(storage, now - timedelta(days=night)) for night in range(count)]


def test_globals_are_a_series_of_their_own(tmp_path: Path) -> None:
    storage = storage_of(tmp_path)
    made = nights(storage, 4)
    shop = [
        put_backup(open_store(storage), utc_now() - timedelta(days=night, hours=1), "globals") for night in range(3)
    ]
    done = prune.prune(PruneRequest(storage, "", Retention(keep_last=2), globals=True))
    assert [one.key for one in done.kept] == made[:2] and {one.key for one in done.removed} == set(made[2:])
    done = prune.prune(PruneRequest(storage, "globals", Retention(keep_last=1)))
    assert [one.key for one in done.kept] == shop[:1] and {one.key for one in done.removed} == set(shop[1:])
    listed = {one.key: one for one in listing.list_backups(storage, policy=Retention(keep_last=1))}
    assert {key: (one.globals, one.database, one.why, one.foreign) for key, one in listed.items()} == {
        made[0]: (True, "", ("last 1",), False),
        made[1]: (True, "", (), False),
        shop[0]: (False, "globals", ("last 1",), False),
    }
    assert [one.key for one in catalog.candidates(open_store(storage), "globals")] == shop[:1]
    assert catalog.latest(open_store(storage), "", of_globals=True).key == made[0]


def test_pruning_needs_to_know_whose(tmp_path: Path) -> None:
    made = nights(storage_of(tmp_path), 3)
    with pytest.raises(UsageError, match="neither a database nor globals"):
        prune.prune(PruneRequest(storage_of(tmp_path), "", Retention(keep_last=1)))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(made)


def test_after_globals_that_failed_none_is_removed(tmp_path: Path) -> None:
    storage, state = storage_of(tmp_path / "store"), tmp_path / "state"
    for directory in (tmp_path / "store", state):
        directory.mkdir()
    made = nights(storage, 3)
    Ledger(str(state)).finish(run(FAILURE, operation="globals", database=""))
    request = PruneRequest(storage, "", Retention(keep_last=1), state_dir=str(state), globals=True)
    with pytest.raises(BackupError, match="the last backup of the globals failed"):
        prune.prune(request)
    Ledger(str(state)).finish(run(operation="globals", database="", started=ledger_runs.NOW))
    assert len(prune.prune(request).removed) == 2 and len(made) == 3


@pytest.mark.parametrize("level", ["index", "content"])
def test_globals_are_verified(tmp_path: Path, level: str) -> None:
    storage = storage_of(tmp_path)
    key = nights(storage, 2)[0]
    done = verify.verify(VerifyRequest(storage, "latest", level, globals=True), Log())
    assert (done.verified, done.key, done.foreign) == (True, key, False)
    data = bytearray((tmp_path / key).read_bytes())
    data[150] ^= 1  # in the script's block
    (tmp_path / key).write_bytes(data)
    if level == "content":
        with pytest.raises(BackupError, match="damaged"):
            verify.verify(VerifyRequest(storage, key, level), Log())


def test_globals_are_not_restored_for_practice(tmp_path: Path) -> None:
    key = nights(storage_of(tmp_path), 1)[0]
    with pytest.raises(UsageError, match="cannot be restored for practice"):
        verify.verify(VerifyRequest(storage_of(tmp_path), key, "restore"), Log())


# --- scripts ----------------------------------------------------------------------------------------------------------

SCRIPT = rb"""-- it's; "quoted
SET client_encoding = 'UTF8';
CREATE ROLE app;
ALTER ROLE app WITH LOGIN PASSWORD 'SCRAM-SHA-256$4096:a;b$c:d';
CREATE ROLE "odd ""; name";
COMMENT ON ROLE app IS 'line; one
-- no comment; ''really''';
COMMENT ON ROLE "odd ""; name" IS E'back\\slash\'; quote';
-- User Config "x'"
ALTER ROLE app SET search_path TO 'a', 'b';
GRANT "odd ""; name" TO app GRANTED BY postgres;
CREATE TABLESPACE fast OWNER app LOCATION '/srv/a;b';
ALTER TABLESPACE fast SET (seq_page_cost=1);
CREATE TABLESPACE slow OWNER app LOCATION '/srv/slow';
GRANT ALL ON TABLESPACE fast TO app;
"""


def test_a_script_is_parted_at_its_statements() -> None:
    found = list(globals_restore.statements(SCRIPT))
    assert len(found) == 12 and all(each.endswith(b";") and b"\n--" not in each[:3] for each in found)
    assert found[4] == b"COMMENT ON ROLE app IS 'line; one\n-- no comment; ''really''';"
    assert found[5] == rb"""COMMENT ON ROLE "odd ""; name" IS E'back\\slash\'; quote';"""


@pytest.mark.parametrize(
    "existing, made, found",
    [
        (set(), ["role app", 'role odd "; name', "tablespace fast", "tablespace slow"], []),
        ({b"ROLE app", b"TABLESPACE slow"}, ['role odd "; name', "tablespace fast"], ["role app", "tablespace slow"]),
        ({b'ROLE odd "; name', b"ROLE App", b"TABLESPACE app"}, ["role app", "tablespace fast", "tablespace slow"],
         ['role odd "; name']),
    ],
)  # fmt: skip
def test_what_is_there_is_not_made(existing: Set[bytes], made: List[str], found: List[str]) -> None:
    script = globals_restore.script_of(SCRIPT, existing)
    assert (list(script.made), list(script.found)) == (made, found)
    everything = script.roles + script.tablespaces + script.rest
    assert len(everything) == 12 - len(found)
    assert all(each.startswith(b"CREATE TABLESPACE ") for each in script.tablespaces)
    assert all(b"TABLESPACE fast" in each for each in script.rest) and len(script.rest) == 2


@pytest.mark.parametrize("bad", [b"\\! touch /tmp/x\n;", b"DROP ROLE app;", b"COPY t FROM PROGRAM 'x';", b"ALTER ROLE"])
def test_what_pg_dumpall_does_not_write_is_refused(bad: bytes) -> None:
    with pytest.raises(BackupError, match="does not write|in the middle"):
        globals_restore.script_of(SCRIPT + bad, set())


@pytest.mark.parametrize("cut", [0, 1, 40, 400])
def test_a_dump_without_its_last_line_is_none(monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    name = b'CREATE ROLE "two\n\\restrict x\n\\unrestrict x\nlines";\n'
    head, middle = b"--\n-- PostgreSQL database cluster dump\n--\n\n\\restrict abc\n\n", b"\\unrestrict abc\n\n"
    whole = head + SCRIPT + name + middle + b"--\n-- PostgreSQL database cluster dump complete\n--\n\n"

    class Said:
        def run(self, *_arguments: Any) -> bytes:
            return whole[: len(whole) - cut] if cut != 1 else whole + b"CREATE ROLE x;\n"

    class Clients:
        server = Server()

        def argv(self, *_arguments: Any) -> List[str]:
            return []

        environment = argv

    if cut:
        with pytest.raises(BackupError, match="without its last line"):
            globals_backup.dump(Clients(), Said(), False)  # type: ignore[arg-type]
    else:
        text = globals_backup.dump(Clients(), Said(), False)  # type: ignore[arg-type]
        assert name in text and b"restrict abc" not in text
