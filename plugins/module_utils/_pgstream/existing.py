# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Tables that exist and get rows of a backup: empty before, their constraints checked after, emptied by a failure.

Where the role may (`session_replication_role`, a right of superusers that PostgreSQL 15 and newer can grant), neither
triggers nor foreign keys are asked while rows are loaded, so that these may come in any order; then every foreign key
is checked as if it were new. Where it may not, tables that have any are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import List, Sequence, Tuple

from .errors import BackupError, ServerError, TargetError
from .events import Log
from .model import Server, Table
from .postgres import extension_tables, table_facts
from .quoting import qualified, quote
from .session import Session
from .target import AFTER_LOSS, Held

_NAMED = 5  # tables in a message
_REPLICA = "SET session_replication_role = replica"
_PLACES = """
SELECT w.number - 1, c.oid::bigint, c.relkind::text
FROM ROWS FROM (pg_catalog.unnest(%s::text[]), pg_catalog.unnest(%s::text[]))
     WITH ORDINALITY AS w(nspname, relname, number)
JOIN pg_catalog.pg_namespace n ON n.nspname = w.nspname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = w.relname AND c.relkind IN ('r', 'p')
ORDER BY 1
"""
#: The tables, and the partitions of those that have any.
_TREE = """
WITH given AS (SELECT pg_catalog.unnest(%s::oid[]) AS oid),
tree AS (SELECT oid FROM given UNION SELECT p.relid FROM given, pg_catalog.pg_partition_tree(given.oid) AS p)
"""
#: Triggers that rows would fire (bit 2 of tgtype: on INSERT). A foreign key's are PostgreSQL's own, and named by it.
_TRIGGERS = (
    _TREE
    + """
SELECT DISTINCT n.nspname, c.relname, COALESCE(k.conname, t.tgname)
FROM tree JOIN pg_catalog.pg_trigger t ON t.tgrelid = tree.oid JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace LEFT JOIN pg_catalog.pg_constraint k ON k.oid = t.tgconstraint
WHERE t.tgtype & 4 <> 0 AND t.tgenabled::text = ANY(%s) ORDER BY 1, 2, 3
"""
)
#: What a session in replica mode does not check: foreign keys, and constraints that may be deferred. Those that are not
#: valid by their own account are left so. Of a partition, those of the table that it is a partition of.
_CONSTRAINTS = (
    _TREE.replace("WITH", "WITH RECURSIVE", 1)
    + """, above AS (
  SELECT k.oid, k.conparentid FROM tree JOIN pg_catalog.pg_constraint k ON k.conrelid = tree.oid
  WHERE k.convalidated AND (k.contype = 'f' OR (k.condeferrable AND k.contype IN ('p', 'u', 'x')))
  UNION SELECT k.oid, k.conparentid FROM above JOIN pg_catalog.pg_constraint k ON k.oid = above.conparentid
)
SELECT n.nspname, c.relname, k.conname, k.contype::text, pg_catalog.pg_get_constraintdef(k.oid)
FROM above JOIN pg_catalog.pg_constraint k ON k.oid = above.oid JOIN pg_catalog.pg_class c ON c.oid = k.conrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE k.conparentid = 0 ORDER BY 1, 2, 3
"""
)


@dataclass(frozen=True)
class _Place:
    """`source`: as FROM and TRUNCATE take it. `condition`: which of its rows a backup holds, if not all (an extension's
    own configuration)."""

    source: str
    condition: str = ""

    @property
    def name(self) -> str:
        return self.source[len("ONLY ") :] if self.source.startswith("ONLY ") else self.source


class ExistingTables(Held):
    """TargetError, when they are opened, where the tables are not as they must be."""

    def __init__(self, server: Server, database: str, tables: Sequence[Table]) -> None:
        self._tables = tables
        super().__init__(server, database)

    def _look(self) -> None:
        self._session.execute("SET search_path = ''")
        self._oids, self._places = self._find(self._tables)
        self.triggers_off = self._turn_off()
        self._refuse_rows()
        self._refuse_triggers()

    @property
    def names(self) -> List[str]:
        return [place.name for place in self._places]

    def _find(self, tables: Sequence[Table]) -> Tuple[List[int], List[_Place]]:
        names = [table.schema for table in tables], [table.name for table in tables]
        found = {int(number): (int(oid), kind) for number, oid, kind in self._session.rows(_PLACES, names)}
        missing = [qualified(each.schema, each.name) for number, each in enumerate(tables) if number not in found]
        if missing:
            raise TargetError(
                "database %s lacks %s" % (self._name, _listed("tables", missing)),
                hint="Restore their definitions first, with content schema.",
            )
        oids = [oid for oid, _kind in found.values()]
        # Where rows of a partition must go through its root, they may come into another one.
        roots = {facts.oid: facts.load_via for facts in table_facts(self._session, oids)}
        extensions = [row[0] for row in self._session.rows("SELECT oid FROM pg_catalog.pg_extension")]
        conditions = {oid: condition for oid, _n, _t, _k, condition in extension_tables(self._session, extensions)}
        places = {}
        for number, (oid, kind) in found.items():
            name = qualified(tables[number].schema, tables[number].name)
            source = roots.get(oid) or (name if kind == "p" else "ONLY " + name)
            places[source] = _Place(source, conditions.get(oid, ""))
        return oids, list(places.values())

    def _turn_off(self) -> bool:
        try:
            self._session.execute(_REPLICA)
        except ServerError:
            raise
        except BackupError:
            return False  # the role may not
        return True

    def _refuse_rows(self) -> None:
        held = [
            place.name
            for place in self._places
            if self._session.value("SELECT EXISTS (SELECT FROM %s %s)" % (place.source, place.condition))
        ]
        if held:
            raise TargetError(
                "rows cannot be restored into tables that have some: %s" % _listed("tables", held),
                hint="Empty them (TRUNCATE), or restore into another database.",
            )

    def _refuse_triggers(self) -> None:
        firing = ["A", "R"] if self.triggers_off else ["A", "O"]
        found = [
            "%s of %s" % (name, qualified(*table))
            for *table, name in self._session.rows(_TRIGGERS, (self._oids, firing))
        ]
        if found:
            hint = "Disable them for the time of the restore."
            if not self.triggers_off:
                hint = "A superuser restores past them, or from PostgreSQL 15 on a role with SET ON PARAMETER"
                hint += " session_replication_role."
            raise TargetError("rows would fire %s" % _listed("triggers and constraints", found), hint=hint)

    def check_constraints(self, loaded: bool) -> None:
        """TargetError unless the server itself finds that every foreign key holds. Each constraint is added once more,
        which reads all rows, in a transaction that is rolled back. Before the load it tells whether the role may."""
        hint = "Restore the tables that these rows refer to, too."
        if not loaded:
            hint = "The role must own the tables, and may need CREATE on their schemas."
        for space, table, name, kind, definition in self._session.rows(_CONSTRAINTS, (self._oids,)):
            drop = "" if kind == "f" else "DROP CONSTRAINT %s, " % quote(name)
            self._session.execute("BEGIN")
            try:
                self._session.execute("ALTER TABLE %s %sADD %s" % (qualified(space, table), drop, definition))
            except ServerError:
                raise
            except BackupError as error:
                raise TargetError(
                    "the server did not confirm constraint %s of %s: %s"
                    % (name, qualified(space, table), error.message),
                    hint=hint,
                ) from None
            finally:
                self._roll_back()

    def _roll_back(self) -> None:
        try:
            self._session.execute("ROLLBACK")
        except BackupError:
            pass  # the session is lost, and the transaction with it

    def empty_again(self, log: Log) -> None:
        """Remove the rows. TRUNCATE and LOCK wait for what sessions of a killed psql are still at."""
        with Session(self._server, self._name, patience=AFTER_LOSS) as session:
            session.execute("SET search_path = ''")
            if self.triggers_off:
                session.execute(_REPLICA)
            one_by_one = [place for place in self._places if place.condition]
            whole = [place for place in self._places if not place.condition]
            try:
                if whole:
                    session.execute("TRUNCATE " + ", ".join(place.source for place in whole))
            except BackupError:
                one_by_one += whole  # a table beside these refers to one of them
            for place in one_by_one:
                try:
                    session.execute(
                        "LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE; DELETE FROM %s %s"
                        % (place.source, place.source, place.condition)
                    )
                except BackupError as error:
                    log.warning("not_emptied", object=place.source, message=error.message)


def _listed(what: str, names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return "the %s %s%s" % (what, ", ".join(names[:_NAMED]), " and %d more" % more if more > 0 else "")
