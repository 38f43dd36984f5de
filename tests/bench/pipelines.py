# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What is measured: the pipelines that a user would write, and ours, each a bash script as the report shows it.

The environment has what each program reads: PG... for the clients, RCLONE_CONFIG_S3_... for a remote `s3:`,
POSTGRES_... and RCLONE_S3_... for ours, AWS_... for barman; JOBS, BUCKET, WORK (an empty directory), TARGET (an empty
database). `needs` are programs without which it is left out, and the report says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

ENGINE = '"$PYTHON" -m _pgstream.main'
BACKUP = ENGINE + " backup --overwrite"  # as all others do


@dataclass(frozen=True)
class Pipeline:
    name: str
    script: str
    needs: Tuple[str, ...] = ()
    before: str = ""  # not measured
    key: str = ""  # of the object that it makes, for its size
    note: str = ""


BASELINE = "gzip"
OURS_GZIP, OURS_ZSTD = "ours gzip", "ours zstd"

BACKUPS = (
    Pipeline(BASELINE, "pg_dump | gzip | rclone rcat s3:$BUCKET/gzip.sql.gz", key="gzip.sql.gz"),
    Pipeline("pigz", "pg_dump | pigz -p$JOBS | rclone rcat s3:$BUCKET/pigz.sql.gz", ("pigz",), key="pigz.sql.gz"),
    Pipeline("zstd -1", "pg_dump | zstd -1 | rclone rcat s3:$BUCKET/zstd.sql.zst", ("zstd",), key="zstd.sql.zst"),
    Pipeline("pg_dump -Fc", "pg_dump -Fc | rclone rcat s3:$BUCKET/custom.dump", key="custom.dump"),
    Pipeline("pg_dump -Fd", "pg_dump -Fd -j$JOBS -f $WORK/directory\nrclone copy $WORK/directory s3:$BUCKET/directory",
             before="rm -rf $WORK/directory; rclone delete s3:$BUCKET/directory", note="needs the disk"),
    Pipeline("barman-cloud", "barman-cloud-backup --endpoint-url $AWS_ENDPOINT_URL --gzip s3://$BUCKET/barman measured",
             ("barman-cloud-backup",), note="the whole server's files, indexes too"),
    Pipeline("pg_dump to nowhere", "pg_dump > /dev/null"),
    Pipeline("COPY to nowhere", "$COPY_TO_NOWHERE", note="every table over $JOBS connections: the limit"),
    Pipeline(OURS_GZIP, "%s --jobs $JOBS --key ours.sql.gz" % BACKUP, key="ours.sql.gz"),
    Pipeline(OURS_ZSTD, "%s --jobs $JOBS --key ours.sql.zst --compression zstd" % BACKUP, key="ours.sql.zst"),
)
RESTORES = (
    Pipeline("gunzip psql", "rclone cat s3:$BUCKET/gzip.sql.gz | gunzip | psql -Xq -v ON_ERROR_STOP=1 -d $TARGET"),
    Pipeline("pg_restore -j", "pg_restore -j$JOBS -d $TARGET $WORK/directory", note="from the local disk"),
    Pipeline(OURS_GZIP, "%s restore ours.sql.gz --target-db $TARGET --jobs $JOBS" % ENGINE),
    Pipeline(OURS_ZSTD, "%s restore ours.sql.zst --target-db $TARGET --jobs $JOBS" % ENGINE),
)
