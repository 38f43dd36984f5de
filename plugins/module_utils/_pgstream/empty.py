# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""An empty database that is restored into: locked, looked at again, and emptied by a failure of what the run made.

The server does not tell who made an object. What the backup has no name for is somebody else's, and so is a row before
the definitions are complete; then nothing is dropped.
"""

from __future__ import annotations

from typing import List, Optional, Set, Tuple

from .errors import BackupError, TargetError
from .events import Log
from .quoting import qualified
from .session import Session
from .target import AFTER_LOSS, DatabaseObject, Held, Target, hold_lock, objects

_NAMED = 5  # objects in a message
_DROP_WORDS = {
    "composite type": "TYPE",
    "foreign-data wrapper": "FOREIGN DATA WRAPPER",
    "statistics object": "STATISTICS",
}
_OID = "SELECT oid::bigint FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()"
#: Schema, name and "has rows of its own" by (catalogue, OID), in their order: as an archive's script has them
#: (format_function_signature, dumpCast and others in pg_dump.c). The session's search_path is empty, as pg_dump's is.
_NAMES = """
SELECT coalesce((pg_catalog.parse_ident(i.schema))[1], '-'),
  CASE WHEN i.name IS NOT NULL THEN (pg_catalog.parse_ident(i.name))[1] ELSE coalesce(
    (SELECT proname || '(' || CASE WHEN prokind = 'a' AND pronargs = 0 THEN '*' ELSE coalesce(
        (SELECT pg_catalog.string_agg(pg_catalog.format_type(t, NULL), ', ' ORDER BY number)
         FROM pg_catalog.unnest(proargtypes) WITH ORDINALITY AS argument(t, number)), '') END || ')'
     FROM pg_catalog.pg_proc WHERE catalogue = 'pg_catalog.pg_proc'::regclass AND oid = made.object),
    (SELECT oprname FROM pg_catalog.pg_operator
     WHERE catalogue = 'pg_catalog.pg_operator'::regclass AND oid = made.object),
    (SELECT opfname FROM pg_catalog.pg_opfamily
     WHERE catalogue = 'pg_catalog.pg_opfamily'::regclass AND oid = made.object),
    (SELECT 'CAST (' || pg_catalog.format_type(castsource, NULL) || ' AS '
        || pg_catalog.format_type(casttarget, NULL) || ')'
     FROM pg_catalog.pg_cast WHERE catalogue = 'pg_catalog.pg_cast'::regclass AND oid = made.object),
    (SELECT 'TRANSFORM FOR ' || pg_catalog.format_type(trftype, NULL) || ' LANGUAGE ' || lanname
     FROM pg_catalog.pg_transform JOIN pg_catalog.pg_language l ON l.oid = trflang
     WHERE catalogue = 'pg_catalog.pg_transform'::regclass AND pg_transform.oid = made.object), '') END,
  EXISTS (SELECT FROM pg_catalog.pg_class WHERE catalogue = 'pg_catalog.pg_class'::regclass AND oid = made.object
          AND (relkind = 'r' OR relkind = 'm' AND relispopulated))
FROM ROWS FROM (pg_catalog.unnest(%s::oid[]), pg_catalog.unnest(%s::oid[]))
  WITH ORDINALITY AS made(catalogue, object, place), pg_catalog.pg_identify_object(catalogue, object, 0) i
ORDER BY made.place
"""


class EmptyDatabase(Held):
    """TargetError, when it is opened, where the database is not empty any more."""

    def _look(self) -> None:
        self._oid = self._session.value(_OID)
        found = Target(self._name, True, tuple(objects(self._session)))
        if found.content:
            raise TargetError(
                "database %s is not empty any more: it %s" % (self._name, found.described()),
                hint="Somebody else filled it just now.",
            )
        self._codec = "latin-1" if self._session.encoding == "SQL_ASCII" else "utf-8"  # as archives are
        self._before: Set[Tuple[int, int]] = {(each.catalogue, each.oid) for each in found.objects}

    def _again(self) -> None:
        """The lock once more, where the session was lost. TargetError where another database has the name now."""
        try:
            self._session.value("SELECT 1")
        except BackupError:
            self._session.close()
            self._session = Session(self._server, self._name, patience=AFTER_LOSS)
            hold_lock(self._session, self._name)
            if self._session.value(_OID) != self._oid:
                raise TargetError("another database is called %s now" % self._name) from None

    def empty_again(
        self, names: Optional[Set[bytes]], large_objects: Set[int], defined: bool, failure: str, log: Log
    ) -> None:
        """Drop what was not in the database before. What cannot be dropped is named in a warning. TargetError, and
        nothing dropped, where somebody else's objects are among it.

        `names`: of what the definitions make, `schema name`; None: not known. `large_objects`: OIDs of those that were
        loaded. `defined`: whether all definitions were made.
        """
        self._again()
        session = self._session
        session.execute("SET client_min_messages = error")
        made = self._made()
        others = self._others(made, names, large_objects, defined)
        if others or "already exists" in failure:
            raise TargetError(
                "nothing was dropped, as somebody else made objects in database %s meanwhile%s"
                % (self._name, ": " + ", ".join(others[:_NAMED]) if others else ""),
                hint="Drop what this restore made, or make the database again.",
            )
        for each in made:
            try:
                if each.kind == "large object":
                    session.execute(
                        "SELECT pg_catalog.lo_unlink(oid) FROM pg_catalog.pg_largeobject_metadata WHERE oid = %s",
                        (each.oid,),
                    )
                else:
                    words = _DROP_WORDS.get(each.kind, each.kind.upper())
                    session.execute("DROP %s IF EXISTS %s CASCADE" % (words, each.identity))
            except BackupError as error:
                log.warning("not_dropped", object=each.identity, message=error.message)
        left = self._made()
        if left:
            log.warning("left_behind", objects=["%s %s" % (each.kind, each.identity) for each in left[:10]])

    def _made(self) -> List[DatabaseObject]:
        return [each for each in objects(self._session) if (each.catalogue, each.oid) not in self._before]

    def _others(
        self, made: List[DatabaseObject], names: Optional[Set[bytes]], large_objects: Set[int], defined: bool
    ) -> List[str]:
        """What the restore cannot have made."""
        if names is None:
            return []
        session = self._session
        found = []
        told = session.rows(_NAMES, ([each.catalogue for each in made], [each.oid for each in made]))
        for each, (space, name, rows) in zip(made, told):
            if each.kind == "large object":
                ours = each.oid in large_objects
            else:
                ours = self._shown("%s %s" % (space, name)) in names
                if ours and rows and not defined:
                    ours = not session.value("SELECT EXISTS (SELECT FROM ONLY %s)" % qualified(space, name))
            if not ours:
                found.append("%s %s" % (each.kind, each.identity))
        return found

    def _shown(self, name: str) -> bytes:
        return name.replace("\n", " ").replace("\r", " ").encode(self._codec)
