# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The database a restore goes into: what is in it, made beside another, swapped in."""

from __future__ import annotations

import secrets
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Callable, Iterator, List, Tuple, TypeVar

from .errors import BackupError, LockedError, ServerError
from .events import Log
from .model import DatabaseInfo, Server
from .quoting import literal, quote
from .session import AT_START, Session

AFTER_LOSS = 10.0  # seconds for which a server that went away is waited for, to clean up
NAME_LENGTH = 63  # bytes; NAMEDATALEN - 1
_LOCK_CLASS = 0x70677372  # "pgsr": first half of the advisory lock's key, beside the hash of the target's name
UNFINISHED = "pgstream.backup: unfinished restore of "  # begins the comment of a database that is restored into
DRILL = "pgstream.backup: drill "  # begins that of the database of a drill; its id follows
MADE = "_pgstream_(drill_[0-9a-f]{8}|[0-9a-f]{12})$"  # a regular expression: how names of both end
#: Settings stored as lists of quoted names (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c).
_NAME_LISTS = (
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
)

#: Catalogues of what lives in a schema, and their columns of schemas.
_IN_SCHEMAS = {
    "pg_class": "relnamespace",
    "pg_proc": "pronamespace",
    "pg_type": "typnamespace",
    "pg_operator": "oprnamespace",
    "pg_opfamily": "opfnamespace",
    "pg_collation": "collnamespace",
    "pg_conversion": "connamespace",
    "pg_ts_config": "cfgnamespace",
    "pg_ts_dict": "dictnamespace",
    "pg_ts_parser": "prsnamespace",
    "pg_ts_template": "tmplnamespace",
}
#: Catalogues of what belongs to the database itself.
_IN_DATABASE = (
    "pg_namespace pg_event_trigger pg_publication pg_foreign_data_wrapper pg_foreign_server pg_cast pg_language pg_am"
    " pg_transform pg_extension"
).split()
#: Rows of those catalogues that are not objects of their own: indexes, row types, array types, the schemas there are.
_CONDITIONS = {
    "pg_class": " AND relkind IN ('r', 'p', 'v', 'm', 'S', 'f', 'c')",
    "pg_type": " AND typtype IN ('b', 'd', 'e', 'r') AND typcategory <> 'A'",
    "pg_namespace": " AND oid IN (TABLE spaces) AND nspname <> 'public'",
}
_SELECTS = ["SELECT 'pg_catalog.pg_largeobject'::regclass::oid, oid FROM pg_catalog.pg_largeobject_metadata"] + [
    "SELECT 'pg_catalog.%s'::regclass::oid, oid FROM pg_catalog.%s WHERE oid >= 16384%s%s"
    % (
        name,
        name,
        " AND %s IN (TABLE spaces)" % _IN_SCHEMAS[name] if name in _IN_SCHEMAS else "",
        _CONDITIONS.get(name, ""),
    )
    for name in [*_IN_SCHEMAS, *_IN_DATABASE]
]
# Everything a user or a restore can have made (OIDs from 16384 up: FirstNormalObjectId), less what goes with something
# else: its type, its index, its extension.
_OBJECTS = """
WITH spaces AS (
  SELECT oid FROM pg_catalog.pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
), objects(classid, oid) AS (%s)
SELECT o.classid, o.oid, i.type, i.identity
FROM objects o, pg_catalog.pg_identify_object(o.classid, o.oid, 0) i
WHERE i.type IS NOT NULL
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = o.classid AND d.objid = o.oid
                  AND d.objsubid = 0 AND d.deptype IN ('e', 'i'))
ORDER BY CASE i.type WHEN 'event trigger' THEN 0 WHEN 'publication' THEN 1 WHEN 'table' THEN 2 WHEN 'schema' THEN 4
         WHEN 'extension' THEN 5 ELSE 3 END, 4
""" % " UNION ALL ".join(_SELECTS)
Result = TypeVar("Result")
HeldT = TypeVar("HeldT", bound="Held")


@dataclass(frozen=True)
class DatabaseObject:
    catalogue: int
    oid: int
    kind: str
    identity: str


@dataclass(frozen=True)
class Target:
    """A target as it is found: absent, or with these objects in it (extensions do not count as content)."""

    name: str
    exists: bool
    objects: Tuple[DatabaseObject, ...] = ()

    @property
    def content(self) -> List[DatabaseObject]:
        return [each for each in self.objects if each.kind != "extension"]

    def described(self) -> str:
        if not self.exists:
            return "absent"
        if not self.content:
            return "empty"
        named = ", ".join("%s %s" % (each.kind, each.identity) for each in self.content[:3])
        return "has %d objects, such as %s" % (len(self.content), named)


def inspect(server: Server, name: str) -> Target:
    """What is in the database, or that there is none. Only connects; changes nothing."""
    try:
        with Session(server, server.maintenance_db) as session:
            if not session.rows("SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s", (name,)):
                return Target(name, False)
    except ServerError:
        if server.maintenance_db == name:
            raise
        # A role may be let into its own database only: then that it can be entered is the answer.
    with Session(server, name) as session:
        return Target(name, True, tuple(objects(session)))


def objects(session: Session) -> List[DatabaseObject]:
    session.execute("SET search_path = ''")
    return [DatabaseObject(int(a), int(b), kind, identity) for a, b, kind, identity in session.rows(_OBJECTS)]


def hold_lock(session: Session, target: str) -> None:
    """LockedError while another restore has it. There is one for each target in each database that sessions are in, and
    it ends with the session."""
    sql = "SELECT pg_catalog.pg_try_advisory_lock(%s, pg_catalog.hashtext(%s))"
    if not session.value(sql, (_LOCK_CLASS, target)):
        raise LockedError("another restore into database %s is running" % target, hint="Wait for it.")


class Held:
    """A session in the target itself, which holds the lock against another restore into it until it is closed."""

    def __init__(self, server: Server, name: str) -> None:
        self._server, self._name = server, name
        self._session = Session(server, name, patience=AT_START)
        try:
            hold_lock(self._session, name)
            self._look()
        except BaseException:
            self.close()
            raise

    def _look(self) -> None:
        """What is to be known of the target, under the lock."""
        raise NotImplementedError

    def close(self) -> None:
        try:
            self._session.execute("SELECT pg_catalog.pg_advisory_unlock_all()")  # the server is slower to end a session
        except BackupError:
            pass  # it is lost, and the lock with it
        self._session.close()

    def __enter__(self: HeldT) -> HeldT:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def marked(session: Session, mark: str) -> List[str]:
    """The databases that bear this mark, and a name as the engine gives: a comment alone may have come with a restore,
    or stayed where somebody put what a killed one left to use."""
    sql = (
        "SELECT datname FROM pg_catalog.pg_database"
        " WHERE pg_catalog.shobj_description(oid, 'pg_database') = %s AND datname ~ %s"
    )
    return [name for (name,) in session.rows(sql, (mark, MADE))]


class Maintenance:
    """The connection that makes, renames and drops databases; it holds the lock on the target's name."""

    def __init__(self, server: Server, target: str, mark: str = "") -> None:
        """`mark`: the comment of what is made, to its end; else it bears one only until it takes its place."""
        self._server = server
        self._database = server.maintenance_db if server.maintenance_db != target else "template1"
        self._session = Session(server, self._database)
        self._target, self._kept_mark = target, mark
        self._mark = mark or UNFINISHED + target
        self._name = ""  # of the database that was made, or may have been
        self._made = 0  # its OID
        self.major = self._session.major
        try:
            hold_lock(self._session, target)
        except BaseException:
            self._session.close()
            raise

    def close(self) -> None:
        self._session.close()

    def _again(self, work: Callable[[], Result]) -> Result:
        """For what cleans up: in a new session where the old one was lost, with a server that restarts waited for."""
        try:
            return work()
        except ServerError:
            self._session.close()
            self._session = Session(self._server, self._database, patience=AFTER_LOSS)
            return work()

    def sweep(self, log: Log) -> None:
        """Drop what restores into this target that were killed left behind. We hold its lock, so none is running; where
        a session is still at it, it stays."""
        for name in marked(self._session, self._mark):
            try:
                self._session.execute("DROP DATABASE IF EXISTS " + quote(name))
                log.info("swept", object=name)
            except BackupError as error:
                log.warning("not_swept", object=name, message=error.message)

    def _make(self, name: str, words: str) -> None:
        """CREATE DATABASE. What was made bears its purpose until it takes its place."""
        self._name = name
        try:
            self._session.execute(words)
        except ServerError:
            raise  # whether it was made is not known
        except BackupError:
            self._name = ""
            raise
        self._session.execute("COMMENT ON DATABASE %s IS %s" % (quote(name), literal(self._mark)))
        self._made = int(self._session.value("SELECT oid FROM pg_catalog.pg_database WHERE datname = %s", (name,)))

    def made_is(self, name: str) -> bool:
        """Whether the database that was made bears this name now."""
        sql = "SELECT datname FROM pg_catalog.pg_database WHERE oid = %s"
        self._leave_transaction()
        return self._made != 0 and self._again(lambda: self._session.value(sql, (self._made,))) == name

    def create(self, info: DatabaseInfo, no_owner: bool, role: str) -> str:
        """A database with encoding, collation and owner of the backup's, under a name of its own, which is told."""
        name = beside(self._target, self._session.codec)
        if role:
            self._session.execute("SET ROLE " + quote(role))
        words = ["CREATE DATABASE", quote(name), "TEMPLATE template0 ENCODING", literal(info.encoding)]
        words += ["LC_COLLATE", literal(info.collate), "LC_CTYPE", literal(info.ctype)]
        if self.major >= 15 and info.locale_provider == "i":
            words += ["LOCALE_PROVIDER icu ICU_LOCALE", literal(info.locale)]
            if self.major >= 16 and info.icu_rules:
                words += ["ICU_RULES", literal(info.icu_rules)]
        elif self.major >= 17 and info.locale_provider == "b":
            words += ["LOCALE_PROVIDER builtin BUILTIN_LOCALE", literal(info.locale)]
        elif self.major >= 15:
            words += ["LOCALE_PROVIDER libc"]
        if info.owner and not no_owner and not role:
            words += ["OWNER", quote(info.owner)]
        try:
            self._make(name, " ".join(words))
        except BackupError as error:
            if "role" in error.message and "does not exist" in error.message:
                error.hint = "Create the role, or use no_owner."
            raise
        finally:
            if role:
                self._session.execute("RESET ROLE")
        return name

    def create_like(self, role: str) -> str:
        """A database of the server's defaults, for a backup that does not say what its own was like."""
        name = beside(self._target, self._session.codec)
        owner = " OWNER " + quote(role) if role else ""
        self._make(name, "CREATE DATABASE %s TEMPLATE template0%s" % (quote(name), owner))
        return name

    def apply_properties(self, name: str, info: DatabaseInfo, no_owner: bool, no_privileges: bool) -> None:
        """Settings, grants and connection limit. After the load, which some of them would hinder."""
        database = quote(name)
        for role, setting, value in info.settings:
            words = "ALTER DATABASE %s" % database
            if role:
                words = "ALTER ROLE %s IN DATABASE %s" % (quote(role), database)
            self._session.execute("%s SET %s TO %s" % (words, _setting_name(setting), _setting_value(setting, value)))
        if not no_privileges and not info.default_acl:
            owner = self._session.value(
                "SELECT pg_catalog.pg_get_userbyid(datdba) FROM pg_catalog.pg_database WHERE datname = %s", (name,)
            )
            self._session.execute("REVOKE ALL ON DATABASE %s FROM PUBLIC, %s" % (database, quote(owner)))
            for grantee, privilege, grantable in info.acl:
                if grantee == info.owner:
                    grantee = owner
                to = quote(grantee) if grantee else "PUBLIC"
                option = " WITH GRANT OPTION" if grantable else ""
                self._session.execute("GRANT %s ON DATABASE %s TO %s%s" % (privilege, database, to, option))
        if info.connection_limit >= 0:
            self._session.execute("ALTER DATABASE %s CONNECTION LIMIT %d" % (database, info.connection_limit))

    def drop_made(self) -> None:
        """Drop what was made, if anything was."""
        if self._name:
            self.drop(self._name)

    def has(self, name: str) -> bool:
        sql = "SELECT 1 FROM pg_catalog.pg_database WHERE datname = %s"
        return bool(self._again(lambda: self._session.rows(sql, (name,))))

    def drop(self, name: str) -> None:
        self._again(lambda: self._session.execute("DROP DATABASE IF EXISTS %s WITH (FORCE)" % quote(name)))

    def kept_name(self, moment: datetime) -> str:
        """A name for the replaced database."""
        return kept_name(self._target, moment, self._session.codec)

    def rename(self, name: str, comment: str, kept: str = "") -> None:
        """The target becomes `kept`, if that is given, and `name` becomes the target, which gets its own comment in
        place of its mark: in one transaction, all or nothing."""
        target = quote(self._target)
        with self._without_sessions(name, *([self._target] if kept else [])):
            self._session.execute("BEGIN")
            try:
                if kept:
                    self._session.execute("ALTER DATABASE %s RENAME TO %s" % (target, quote(kept)))
                self._session.execute("ALTER DATABASE %s RENAME TO %s" % (quote(name), target))
                own = "" if comment.startswith((UNFINISHED, DRILL)) else comment  # a backup of what was unfinished
                said = self._kept_mark or own
                self._session.execute("COMMENT ON DATABASE %s IS %s" % (target, literal(said) if said else "NULL"))
                self._session.execute("COMMIT")
            except BaseException:
                self._leave_transaction()
                raise

    def _leave_transaction(self) -> None:
        try:
            self._session.execute("ROLLBACK")
        except BackupError:
            pass  # the session is lost, and the transaction with it

    @contextmanager
    def _without_sessions(self, *names: str) -> Iterator[None]:
        """End the sessions of these databases for as long as the block lasts. A rename locks a database against new
        ones and then waits 5 s for the others to go (CountOtherDBBackends in procarray.c): so none gets in between,
        and nothing has to be forbidden that a run that is killed would leave forbidden."""
        done = threading.Event()

        def end_them() -> None:
            try:
                with Session(self._server, self._database) as session:
                    while not done.is_set():
                        session.rows(
                            "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
                            " WHERE datname = ANY(%s)",
                            (list(names),),
                        )
                        done.wait(0.05)
            except BackupError:
                pass  # the rename says that sessions are in its way

        thread = threading.Thread(target=end_them, name="sessions", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def beside(target: str, codec: str = "utf-8") -> str:
    """A name of its own for the database that is restored into before it is renamed. `codec`: Python's name of the
    encoding that the server counts the bytes of names in."""
    return _cut(target, "_pgstream_" + secrets.token_hex(6), codec)


def kept_name(target: str, moment: datetime, codec: str = "utf-8") -> str:
    return _cut(target, moment.strftime("_before_%Y%m%dT%H%M%SZ"), codec)


def _cut(name: str, suffix: str, codec: str) -> str:
    return name.encode(codec)[: NAME_LENGTH - len(suffix)].decode(codec, "ignore") + suffix


def _setting_name(name: str) -> str:
    return ".".join(quote(part) for part in name.split("."))


def _setting_value(name: str, value: str) -> str:
    """A value as ALTER DATABASE takes it: lists of names name by name, everything else as one literal."""
    if name.lower() not in _NAME_LISTS:
        return literal(value)
    names, current, quoted = [], "", False
    position = 0
    while position < len(value):
        letter = value[position]
        if letter == '"' and quoted and value[position + 1 : position + 2] == '"':
            current += letter
            position += 1
        elif letter == '"':
            quoted = not quoted
        elif letter == "," and not quoted:
            names.append(current)
            current = ""
        elif quoted or not letter.isspace():
            current += letter
        position += 1
    names.append(current)
    return ", ".join(literal(each) for each in names)
