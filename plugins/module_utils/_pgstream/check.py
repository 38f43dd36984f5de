# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Look at everything a backup needs and say what was seen, fault or not."""

from __future__ import annotations

from typing import List, Sequence, Tuple

from .clients import find_clients
from .errors import BackupError, StorageError
from .events import Log
from .model import CheckResult, Finding, Server, Storage
from .postgres import Leader, user_tables
from .session import place
from .store.base import open_store


def check(server: Server, storage: Storage, database: str, log: Log) -> CheckResult:
    """Try server, client programs and store; leaves nothing behind. Never raises for what it looks at."""
    of_server = _server(server, database)
    try:
        of_store = open_store(storage).check()
    except BackupError as error:
        of_store = [Finding("store reachable", False, error.sentence())]
    exit_code = 1 if _faults(of_server) else StorageError.exit_code if _faults(of_store) else 0
    findings = (*of_server, *of_store)
    return CheckResult(exit_code == 0, findings, _conclusions(findings), exit_code, log.correlation_id)


def _faults(findings: Sequence[Finding]) -> List[Finding]:
    """What makes a backup fail."""
    return [each for each in findings if each.ok is False and each.needed]


def _conclusions(findings: Sequence[Finding]) -> Tuple[str, ...]:
    faults = _faults(findings)
    first = "a backup would fail: %s" % ", ".join(each.name for each in faults) if faults else "backup works"
    costs = ["%s fails: %s" % (each.name, each.follows) for each in findings if each.ok is False and each.follows]
    return (first, *costs)


def _server(server: Server, database: str) -> List[Finding]:
    findings: List[Finding] = []
    try:
        with Leader(server, database) as leader:
            seen = "%s, version %d" % (place(server), leader.version)
            findings.append(Finding("server reachable", True, seen))
            findings.append(Finding("direct connection", not leader.pooled, "no pooling proxy" if not leader.pooled else
                                    "a pooling proxy stands before the server"))  # fmt: skip
            findings.append(_tables(leader))
            clients = find_clients(server, leader.major)
            findings.append(
                Finding("client programs", True, "%d.%d in %s" % (clients.major, clients.minor, clients.bindir))
            )
    except BackupError as error:
        findings.append(Finding("client programs" if findings else "server reachable", False, error.sentence()))
    return findings


def _tables(leader: Leader) -> Finding:
    """Whether every table may be read; names the first that may not."""
    tables = user_tables(leader)
    denied = leader.rows(
        "SELECT oid::regclass::text FROM pg_catalog.unnest(%s::oid[]) AS t(oid)"
        " WHERE NOT pg_catalog.has_table_privilege(t.oid, 'SELECT') LIMIT 3",
        ([each.oid for each in tables],),
    )
    if denied:
        return Finding("tables readable", False, "no SELECT on %s" % ", ".join(name for (name,) in denied))
    return Finding("tables readable", True, "%d tables" % len(tables))
