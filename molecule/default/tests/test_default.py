# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the lifecycle left behind, seen from outside and by standard tools."""

from __future__ import annotations

import gzip

import pytest
import testing

TARGETS = ("target15", "target17")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("restored", ("shop", "the one that was swapped out"))
def test_a_restored_database_is_the_original(target, restored):
    if restored != "shop":
        restored = testing.psql(target, "postgres", "SELECT datname FROM pg_database WHERE datname ~ '^shop_before'")
    original = testing.dump(target, "shop_original")
    assert testing.dump(target, restored) == original
    assert len(original) > 61000


@pytest.mark.parametrize("target", TARGETS)
def test_the_bucket_has_what_was_asked_for(target):
    mine = [key for key in testing.keys() if key.startswith(target + "/")]
    assert len(mine) == 2
    assert mine[0] == target + "/first.sql.gz"
    assert mine[1].startswith(target + "/shop_20") and mine[1].endswith("Z.sql.gz")


def test_no_upload_is_left():
    assert testing.unfinished() == []


@pytest.mark.parametrize("target", TARGETS)
def test_psql_alone_restores_it(target):
    body = testing.s3().get_object(Bucket=testing.BUCKET, Key=target + "/first.sql.gz")["Body"].read()
    testing.psql(target, "postgres", "CREATE DATABASE by_psql;")
    testing.psql(target, "by_psql", gzip.decompress(body).decode())
    assert testing.dump(target, "by_psql") == testing.dump(target, "shop_original")


@pytest.mark.parametrize("target", TARGETS)
def test_a_directory_keeps_backups_to_their_owner(target):
    import testinfra

    host = testinfra.get_host("docker://" + testing.container(target))
    backup = host.file("/var/lib/postgresql/backups/shop.sql.gz")
    assert backup.user == "postgres"
    assert backup.mode & 0o077 == 0
    assert host.run("gunzip -t %s", backup.path).rc == 0
