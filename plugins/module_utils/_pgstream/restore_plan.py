# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a restore is about to do, all of it checked. Nothing is changed before."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Optional, Tuple

from . import catalog, target
from .clients import Clients, find_clients
from .errors import BackupError, TargetError, UsageError
from .events import Log, new_correlation_id
from .existing import ExistingTables
from .model import CONTENTS, Index, RestoreRequest
from .process import Processes
from .selection import Selection, choose
from .session import AT_START, Session
from .stages import all_faults, stage
from .store.base import Store, StoredObject, open_store
from .target import Target
from .workers import default_jobs


@dataclass(frozen=True)
class Plan:
    request: RestoreRequest
    store: Store
    item: StoredObject
    index: Optional[Index]  # None: a foreign object, which is taken whole
    selection: Optional[Selection]
    target: Target
    how: str  # create, swap, in_place
    clients: Clients
    major: int  # the server's


def plan(request: RestoreRequest, log: Log) -> Plan:
    """Find the backup, look at the target, and choose. Raises whatever a run would raise before it changes anything."""
    request = replace(
        request,
        jobs=request.jobs or default_jobs(),
        correlation_id=request.correlation_id or new_correlation_id(),
    )
    log.correlation_id, log.operation, log.database = request.correlation_id, "restore", request.database
    with stage("validation"):
        _check_request(request)
        store = open_store(request.storage)
        (item, index), _reachable = all_faults(lambda: _resolve(store, request, log), lambda: _reach(request))
        name = request.database or (index.database.name if index else catalog.parse_key(item.key)[0])
        if not name:
            raise UsageError("the target database is not named, and the backup does not name one", hint="Set login_db.")
        log.database = name
        found = target.inspect(request.server, name)
        how = _strategy(request, found)
        if how == "swap" and request.key == "latest" and catalog.parse_key(item.key).part:
            raise UsageError(
                "the only backup%s is a filtered one: name its key to put it in the place of the whole database"
                % (" before " + request.latest_before if request.latest_before else "")
            )
        if index is None and (request.schemas or request.tables or request.content != "all"):
            raise UsageError(
                "a dump without an index is restored whole: schemas, tables and content cannot be chosen from it"
            )
        major = _reach(request)
        clients = find_clients(request.server, max(major, index.pg_dump_version if index else 0), "server and backup")
        selection = None
        if index is not None:
            with stage("reading the schema archive"):
                selection = choose(store, item.key, index, request, clients, Processes(), log)
            if request.content == "data":
                ExistingTables(request.server, name, selection.chosen(index)).close()
    return Plan(replace(request, database=name), store, item, index, selection, found, how, clients, major)


def _check_request(request: RestoreRequest) -> None:
    if request.latest_before and request.key != "latest":
        raise UsageError("latest_before goes with backup_key latest, not with a key")
    if request.content not in CONTENTS:
        raise UsageError("there is no content %r: %s" % (request.content, ", ".join(CONTENTS)))
    if request.content == "data" and (request.create or request.strategy == "swap"):
        raise UsageError(
            "content data goes into tables that exist, and create and strategy swap make a new database",
            hint="Restore with content schema first, or everything at once.",
        )


def _reach(request: RestoreRequest) -> int:
    """The server's major version; raises when it cannot be reached at all."""
    server = request.server
    try:
        with Session(server, server.maintenance_db, patience=AT_START) as session:
            return session.major
    except BackupError:
        if not request.database or request.database == server.maintenance_db:
            raise
        with Session(server, request.database) as session:
            return session.major


def _resolve(store: Store, request: RestoreRequest, log: Log) -> Tuple[StoredObject, Optional[Index]]:
    name = request.source_database or request.database
    if request.key == "latest" and not name:
        raise UsageError("backup_key latest needs the name of a database", hint="Set login_db or source_db.")
    item = catalog.resolve(store, request.key, name, log, request.latest_before)
    with stage("reading the index"):
        index = catalog.read_index(store, item)
        if index is not None and request.key == "latest":
            catalog.check_named(item.key, index)
    if index is not None and index.is_globals:
        raise UsageError(
            "%s is a backup of globals under another name" % store.storage.url(item.key),
            hint="Say globals to restore it.",
        )
    return item, index


def _strategy(request: RestoreRequest, found: Target) -> str:
    """create, swap or in_place; TargetError says which option would allow what is asked."""
    if not found.exists:
        if request.strategy == "in_place" or not request.create:
            hint = "" if request.strategy == "in_place" or request.content == "data" else "Use create to have it made."
            raise TargetError("database %s does not exist" % found.name, hint=hint)
        return "create"
    if request.strategy == "swap":
        return "swap"
    if found.content and request.content != "data":
        raise TargetError(
            "database %s is not empty: it %s" % (found.name, found.described()),
            hint="Restore into another database, or use strategy swap to put the restored one in its place.",
        )
    return "in_place"
