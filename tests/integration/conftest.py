# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fixtures of the integration tests.

everything  the name of a database with what real ones have, on `postgres`; made once a server, never changed
quick_s3    an S3Server for large objects: it does not read an object again for each request
ansible_env an environment in which the programs of ansible know none of the developer's settings
"""

from __future__ import annotations

import os
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


@pytest.fixture(scope="module")
def ansible_env(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, str]:
    """As little of the developer's own settings as can be, and nothing written to the home directory."""
    home = tmp_path_factory.mktemp("ansible")
    (home / "ansible.cfg").touch()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PG", "AWS_"))}
    return dict(
        kept,
        ANSIBLE_CONFIG=str(home / "ansible.cfg"),
        ANSIBLE_HOME=str(home),
        ANSIBLE_REMOTE_TMP=str(home / "remote"),
        ANSIBLE_NOCOLOR="true",
        ANSIBLE_CALLBACK_RESULT_FORMAT="json",
        ANSIBLE_CALLBACK_FORMAT_PRETTY="false",
        ANSIBLE_LOCALHOST_WARNING="false",
        ANSIBLE_INVENTORY_UNPARSED_WARNING="false",
        LC_ALL="C.UTF-8",
    )
