# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""PostgreSQL's client programs: found by version, started with everything secret in the environment."""

from __future__ import annotations

import glob
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from typing import Dict, Iterable, List, Optional, Tuple

from .errors import UsageError
from .model import Server
from .process import Process, Processes, with_large_buffer
from .session import connection_parameters

PROGRAMS = ("pg_dump", "pg_restore", "psql")
_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)
_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
#: libpq environment names of the connection options (libpq documentation, "Environment Variables").
_ENVIRONMENT = {"ssl_mode": "PGSSLMODE", "ca_cert": "PGSSLROOTCERT", "ssl_cert": "PGSSLCERT", "ssl_key": "PGSSLKEY"}
_INHERITED = ("PATH", "HOME", "LANG", "TMPDIR", "KRB5CCNAME", "SSL_CERT_FILE", "SSL_CERT_DIR", "LD_LIBRARY_PATH")


@dataclass(frozen=True)
class Clients:
    """The client programs of one major version, and how they reach one server."""

    bindir: str
    major: int
    minor: int
    server: Server

    @property
    def restricts(self) -> bool:
        """Whether this psql knows \\restrict, which lets a script run SQL and nothing else (CVE-2025-8714)."""
        since = {13: 22, 14: 19, 15: 14, 16: 10, 17: 6}
        return self.minor >= since.get(self.major, 0 if self.major >= 18 else 1000)

    def environment(self, encoding: str = "UTF8") -> Dict[str, str]:
        """The whole environment of a client: libpq's names, nothing else of ours."""
        env = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        env.update({name: value for name, value in os.environ.items() if name in ("PGPASSFILE", "PGSERVICEFILE")})
        server = self.server
        env["LC_MESSAGES"] = "C"  # the first cause is found in stderr by English words
        env["PGCLIENTENCODING"] = encoding
        env["PGCONNECT_TIMEOUT"] = str(server.connect_timeout)
        env["PGAPPNAME"] = "pgstream.backup"
        env["PGPORT"] = str(server.port)
        for name, value in (("PGHOST", server.host), ("PGUSER", server.user), ("PGPASSWORD", server.password)):
            if value:
                env[name] = value
        for field, name in _ENVIRONMENT.items():
            if getattr(server, field):
                env[name] = getattr(server, field)
        return env

    def argv(self, program: str, arguments: Iterable[str], database: str) -> List[str]:
        return [os.path.join(self.bindir, program), "--no-password"] + list(arguments) + ["-d", self.conninfo(database)]

    def conninfo(self, database: str) -> str:
        """Database and extra libpq parameters; nothing secret, because it is seen in the list of processes."""
        pairs = [("dbname", database), *connection_parameters(self.server, self.major).items()]
        return " ".join("%s='%s'" % (name, value.replace("\\", "\\\\").replace("'", "\\'")) for name, value in pairs)

    def psql(
        self,
        processes: Processes,
        database: str,
        encoding: str,
        name: str = "psql",
        script: Optional[bytes] = None,
        options: str = "",
        heard: bytes = b"",
    ) -> Process:
        """psql with ON_ERROR_STOP, reading `script`, or what is fed to it when there is none. `heard`: how lines begin
        that are kept of what it says, command tags among them; without it, it says none."""
        arguments = ["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-f", "-"] + ([] if heard else ["-q"])
        argv = self.argv("psql", arguments, database)
        env = self.environment(encoding)
        if options:
            env["PGOPTIONS"] = options
        fed = script is None
        return processes.spawn(with_large_buffer(argv, fed), env, name, data=script, feed=fed, heard=heard)


def find_clients(server: Server, minimum: int, what: str = "the server") -> Clients:
    """The client programs of major version `minimum`, else the next newer ones. UsageError says what was found."""
    seen: List[Tuple[int, int, str]] = []
    for directory in _directories(server.bindir):
        version = _version(directory)
        if version is not None:
            seen.append((version[0], version[1], directory))
    fitting = sorted(entry for entry in seen if entry[0] >= minimum)
    if not fitting:
        found = ", ".join("%d.%d in %s" % entry for entry in sorted(set(seen))) or "none"
        raise UsageError(
            "pg_dump, pg_restore and psql of PostgreSQL %d or newer are needed for %s; found: %s"
            % (minimum, what, found),
            hint="Install postgresql-client-%d, or name its directory in pg_bindir." % minimum,
        )
    # Of equal majors the first found wins: an explicit directory, then the system's, then PATH.
    major = fitting[0][0]
    chosen = next(entry for entry in seen if entry[0] == major)
    return Clients(chosen[2], chosen[0], chosen[1], server)


def _directories(explicit: str) -> List[str]:
    if explicit:
        return [explicit]
    places = [path for pattern in _PLACES for path in sorted(glob.glob(pattern))]
    on_path = shutil.which("pg_dump")
    if on_path:
        places.append(os.path.dirname(on_path))
    return places


def _version(directory: str) -> Optional[Tuple[int, int]]:
    """Version of the programs in a directory; None if one is missing or does not run."""
    if not all(os.access(os.path.join(directory, program), os.X_OK) for program in PROGRAMS):
        return None
    try:
        # Not through Processes: it is asked before a run exists, and ends at once.
        said = subprocess.run(  # pylint: disable=ansible-bad-function
            [os.path.join(directory, "pg_dump"), "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        ).stdout.decode("utf-8", "replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(said)
    return (int(match.group(1)), int(match.group(2) or 0)) if match else None
