# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the integration tests.

everything  the name of a database with what real ones have, on `postgres`; made once a server, never changed
quick_s3    an S3Server for large objects: it does not read an object again for each request
"""

from __future__ import annotations

import secrets
from typing import Dict, Iterator

import pytest

from tests.support import fixture, servers

_loaded: Dict[int, str] = {}  # by server process: what a killed server held is still there, but another's is not


@pytest.fixture
def everything(postgres: servers.PostgresServer) -> str:
    name = "everything"
    if id(postgres) not in _loaded:
        fixture.load_everything(postgres, name)
        _loaded[id(postgres)] = name
    return name


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
