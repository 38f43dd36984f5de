# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""After all faults: what is in the bucket, on the server, and on the host that ran the engine."""

from __future__ import annotations

import gzip

import testinfra
import testing


def test_the_bucket_has_only_the_backups_that_succeeded():
    assert testing.keys() == ["target17/good.sql.gz", "target17/retried.sql.gz"]


def test_no_upload_is_left_but_the_one_whose_store_was_gone():
    """To a store that is killed for good nobody can say that an upload is over; MinIO drops those after a day. All that
    could be ended was: that of the dead server, and that of the store that came back."""
    left = (
        testing.s3()
        .list_multipart_uploads(Bucket=testing.BUCKET, Prefix="target17/interrupted.sql.gz")
        .get("Uploads", [])
    )
    assert len(testing.unfinished()) == len(left) <= 1


def test_an_upload_that_outlived_a_restart_of_its_store_is_whole():
    good, retried = (
        gzip.decompress(testing.s3().get_object(Bucket=testing.BUCKET, Key="target17/%s.sql.gz" % name)["Body"].read())
        for name in ("good", "retried")
    )
    rows = [sorted(line for line in text.split(b"\n") if line.count(b"\t") == 1) for text in (good, retried)]
    assert len(rows[0]) >= 1300000
    assert rows[0] == rows[1]


def test_no_database_was_left_behind():
    names = testing.psql("target15", "postgres", "SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1")
    assert names.split() == ["postgres", "shop"]


def test_no_session_and_no_process_was_left_behind():
    assert (
        testing.psql(
            "target15", "postgres", "SELECT count(*) FROM pg_stat_activity WHERE application_name ~ 'pgstream'"
        )
        == "0"
    )
    host = testinfra.get_host("docker://" + testing.container("target17"))
    for name in ("pg_dump", "psql"):
        assert host.process.filter(comm=name) == []
