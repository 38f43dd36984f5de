# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures of all tests: servers that start when the first test asks for them, and one fresh thing per test.

postgres        the PostgresServer of this session, or of each available major for tests marked `every_major`
postgres_majors {major: bindir} of all that can be started here
s3              the S3Server of this session
bucket          the name of a fresh, empty bucket of `s3`
database        the name of a fresh, empty database of `postgres`
databases       make more of them: databases() -> name
engine_env      an environment in which `python -m _pgstream.main` runs in a subprocess
start           start the command: start(env, 'backup', ...) -> Command; whatever is left of it ends with the test
pg_proxy        a Proxy before `postgres`
s3_proxy        a Proxy before `s3`

`import _pgstream` works in tests: plugins/module_utils is on sys.path.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, Optional

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
MODULE_UTILS = REPOSITORY / 'plugins' / 'module_utils'
sys.path.insert(0, str(MODULE_UTILS))

from tests.support import servers  # noqa: E402 (after sys.path, as all imports of tests)
from tests.support.runs import Command, Proxy  # noqa: E402

# A shell has what it starts in the background ignore SIGINT, nohup SIGHUP, and so all that those start: tests send it.
for ignored, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, handler)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test marked `every_major` once for each PostgreSQL major that this machine has."""
    if metafunc.definition.get_closest_marker('every_major'):
        if 'postgres' not in metafunc.fixturenames:
            raise pytest.UsageError('%s: every_major without the fixture postgres' % metafunc.definition.nodeid)
        majors = list(servers.available_majors())
        metafunc.parametrize('postgres', majors, indirect=True, scope='session', ids=['pg%d' % m for m in majors])


@pytest.fixture(scope='session')
def postgres_majors() -> Dict[int, str]:
    return servers.available_majors()


@pytest.fixture(scope='session')
def _running() -> Iterator[Dict[str, servers.PostgresServer]]:
    """The servers that were started so far, by bindir; all end with the session."""
    started: Dict[str, servers.PostgresServer] = {}
    yield started
    for server in started.values():
        server.close()


@pytest.fixture(scope='session')
def postgres(request: pytest.FixtureRequest, _running: Dict[str, servers.PostgresServer]) -> servers.PostgresServer:
    major: Optional[int] = getattr(request, 'param', None)
    bindir = servers.find_postgres(major)
    if bindir not in _running:
        _running[bindir] = servers.PostgresServer(bindir).start()
    return _running[bindir]


@pytest.fixture
def databases(postgres: servers.PostgresServer) -> Iterator[Callable[[], str]]:
    made: List[str] = []

    def make() -> str:
        made.append(postgres.createdb('test_' + secrets.token_hex(6)))
        return made[-1]

    yield make
    postgres.start()  # a test may have killed it
    for name in made:
        postgres.dropdb(name)


@pytest.fixture
def database(databases: Callable[[], str]) -> str:
    return databases()


@pytest.fixture(scope='session')
def _s3() -> Iterator[servers.S3Server]:
    with servers.S3Server() as server:
        yield server


@pytest.fixture
def s3(_s3: servers.S3Server) -> servers.S3Server:
    """Started again if the test before killed it."""
    _s3.start()
    return _s3


@pytest.fixture
def bucket(s3: servers.S3Server) -> str:
    return s3.make_bucket('test-' + secrets.token_hex(6))


@pytest.fixture
def engine_env() -> Dict[str, str]:
    return dict(os.environ, PYTHONPATH=str(MODULE_UTILS))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: List[Command] = []

    def start_one(env: Dict[str, str], *arguments: str) -> Command:
        started.append(Command(tmp_path / ('run%d' % len(started)), env, *arguments))
        return started[-1]

    yield start_one
    for command in started:
        command.close()


@pytest.fixture
def pg_proxy(postgres: servers.PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres.port) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(s3: servers.S3Server) -> Iterator[Proxy]:
    with Proxy(s3.port) as proxy:
        yield proxy
