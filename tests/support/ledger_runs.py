# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Runs as the ledger holds them, and facts that have something of everything, for the tests of metrics and health."""

from __future__ import annotations

import itertools
from typing import Any, Sequence

from _pgstream import health, schedule
from _pgstream.bucket_watch import Listing, Usage
from _pgstream.ledger import FAILURE, RUNNING, SUCCESS, Run, Totals, View
from _pgstream.observer import Facts

NOW = 1769824800.0  # 2026-01-31T02:00:00Z
DAY = 86400.0
_TOKENS = itertools.count(1)


def run(
    status: str = SUCCESS,
    started: float = NOW - 3600,
    seconds: float = 60.0,
    database: str = "shop",
    operation: str = "backup",
    **more: Any,
) -> Run:
    """A run of a minute, an hour ago. A successful one has sizes; a failed one a reason."""
    facts: dict = {"token": "%032x" % next(_TOKENS), "correlation_id": "c0ffee", "seconds": seconds}
    if status == SUCCESS:
        facts.update(exit_code=0, changed=True, raw_bytes=4000, stored_bytes=1000, rows=70, tables=3, key="a.sql.gz")
    elif status == FAILURE:
        facts.update(exit_code=4, stage="S3 upload", message="Failed during S3 upload: no such bucket")
    facts.update(finished=None if status == RUNNING else started + seconds, **more)
    return Run(operation=operation, database=database, started=started, status=status, **facts)


def view(*runs: Run, **facts: Any) -> View:
    """Of these runs, newest first, with totals that fit. Keywords are facts: name=(value, since)."""
    totals: dict = {}
    for each in runs:
        if each.status != RUNNING:
            group = each.operation, each.database
            before = totals.get(group, Totals())
            good = each.status == SUCCESS
            totals[group] = Totals(before.succeeded + good, before.failed + (not good))
    return View(tuple(sorted(runs, key=lambda each: each.ended, reverse=True)), totals, facts)


def rich_facts(databases: Sequence[str] = ("shop", "crm")) -> Facts:
    """Every metric there is has a sample here."""
    first = databases[0]
    runs = [run(database=name, started=NOW - day * DAY) for name in databases for day in range(1, 9)]
    runs += [run(FAILURE, database=first, started=NOW - 50), run(RUNNING, database=first, started=NOW - 10)]
    runs += [run(operation="verify", database=first), run(operation="restore", database=first)]
    seen = view(*runs, schedule=("0 2 * * *", NOW - 30 * DAY))
    policy = health.Policy(schedule.parse("0 2 * * *"), 0, 3600, tuple(databases))
    usage = {name: Usage(8, 8000, NOW - DAY) for name in databases}
    return Facts(
        now=NOW,
        has_ledger=True,
        view=seen,
        health=health.judge(seen, policy, NOW),
        store="s3://backups/daily",
        listing=Listing(NOW - 5, 0.25, {**usage, "": Usage(1, 5)}),
    )
