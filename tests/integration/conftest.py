# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the integration tests.

everything  the name of a database with what real ones have, on `postgres`; made once a server, never changed
start       start the command: start(env, 'backup', ...) -> Command; whatever is left of it ends with the test
pg_proxy    a Proxy before `postgres`
s3_proxy    a Proxy before `s3`
quick_s3    an S3Server for large objects: it does not read an object again for each request
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Callable, Dict, Iterator, List

import pytest

from tests.support import fixture, servers
from tests.support.runs import Command, Proxy

_loaded: Dict[int, str] = {}  # by server process: what a killed server held is still there, but another's is not


@pytest.fixture
def everything(postgres: servers.PostgresServer) -> str:
    name = "everything"
    if id(postgres) not in _loaded:
        fixture.load_everything(postgres, name)
        _loaded[id(postgres)] = name
    return name


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: List[Command] = []

    def start_one(env: Dict[str, str], *arguments: str) -> Command:
        started.append(Command(tmp_path / ("run%d" % len(started)), env, *arguments))
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


@pytest.fixture(scope="session")
def _quick_s3() -> Iterator[servers.S3Server]:
    with servers.S3Server(options=["--dir-cache-time", "5m"]) as server:
        yield server


@pytest.fixture
def quick_s3(_quick_s3: servers.S3Server) -> servers.S3Server:
    return _quick_s3.start()


@pytest.fixture
def quick_bucket(quick_s3: servers.S3Server) -> str:
    return quick_s3.make_bucket("test-" + secrets.token_hex(6))
