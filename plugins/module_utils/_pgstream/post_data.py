# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What comes after the rows: indexes, constraints, triggers, materialized views."""

from __future__ import annotations

import os
import re
from typing import Dict, List, Sequence

from . import loading, schema
from .model import RestoreRequest
from .process import Process, Processes, memory_file
from .restore_plan import Plan
from .workers import processors

_VARIABLE = re.compile(rb"(?<!:):[\w\"'{]")


def as_script(planned: Plan) -> bool:
    """Whether pg_restore would make a setting that the server does not know."""
    return planned.clients.major >= 17 > planned.major


def owner_options(request: RestoreRequest) -> List[str]:
    options = ["--no-owner"] if request.no_owner else []
    return options + (["--no-privileges"] if request.no_privileges else [])


def statements(planned: Plan, processes: Processes, dumped: bytes, entries: Sequence[schema.Entry]) -> bytes:
    """For these entries of the schema archive, to be made beside others. Nothing where psql may take a part of it for
    a variable of its own, as the slice of an array can look like one."""
    options = owner_options(planned.request)
    sql = schema.statements(planned.clients, processes, dumped, entries, options, planned.major)
    settings = "".join("SET %s = %s;\n" % setting for setting in _settings(planned.request, dumped).items())
    return b"" if _VARIABLE.search(sql) else settings.encode() + sql


def start(
    planned: Plan, processes: Processes, database: str, dumped: bytes, arguments: Sequence[str], lists: Sequence[int]
) -> Process:
    """A pg_restore of the schema archive `dumped`. `lists`: descriptors of the files that the arguments name."""
    role, clients = planned.request.role, planned.clients
    file = memory_file(dumped)  # one for each process, as they seek in it
    try:
        options = ["--section=post-data", *arguments] + (["--role=" + role] if role else [])
        argv = clients.argv("pg_restore", options, database) + ["/dev/fd/%d" % file]
        env = clients.environment()
        settings = "".join(" -c %s=%s" % setting for setting in _settings(planned.request, dumped).items())
        env["PGOPTIONS"] = loading.load_options(planned.major) + settings
        return processes.spawn(argv, env, "pg_restore", pass_fds=[file, *lists])
    finally:
        os.close(file)


def _settings(request: RestoreRequest, dumped: bytes) -> Dict[str, str]:
    """Where the jobs alone keep the server's processors busy, as is known of this host, workers that build an index
    together are in the way. Measured on two processors, without them the same indexes took a fifth less."""
    host = request.server.host
    here = not host or host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")
    full = here and processors() <= request.jobs <= schema.count_indexes(dumped)
    return {"max_parallel_maintenance_workers": "0"} if full else {}
