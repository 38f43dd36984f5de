# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""`make bench`: pipelines that a user would write and ours, in turn, on servers of this run's own.

    python -m tests.bench --scale 0.5 --rounds 3 --databases mixed,huge --report docs/BENCHMARKS.md

Each round runs every pipeline once, in an order that turns by one, so that a busy minute hits all alike; a ratio is
taken within a round, and the median of the rounds is shown. PostgreSQL and the S3 server run on this machine, with
settings of a small server (below), the same for all. --delay puts that many milliseconds of round trip between all
clients and both servers (delay.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

from tests.bench import report
from tests.bench.databases import DATABASES
from tests.bench.delay import Delay
from tests.bench.measure import Failed, Sample, measure
from tests.bench.pipelines import BACKUPS, RESTORES, Pipeline
from tests.support.servers import PostgresServer, S3Server

REPOSITORY = Path(__file__).resolve().parents[2]
BUCKET = "bench"
SETTINGS = ("shared_buffers=256MB", "max_wal_size=4GB", "checkpoint_timeout=15min", "maintenance_work_mem=128MB",
            "max_connections=50", "autovacuum=off")
Samples = Dict[str, List[Sample]]


class Bench:
    """The servers, and one environment in which every pipeline finds them."""

    def __init__(self, postgres: PostgresServer, s3: S3Server, work: Path, jobs: int, delay: float) -> None:
        self.postgres, self.s3, self.work = postgres, s3, work
        self.ports = {"postgres": postgres.port, "s3": int(s3.endpoint_url.rpartition(":")[2])}
        if delay:
            self.ports = {name: Delay(port, delay / 2000).port for name, port in self.ports.items()}
        endpoint = "http://127.0.0.1:%d" % self.ports["s3"]
        clients = {name: value for name, value in postgres.env().items() if name.startswith("PG") or name == "PATH"}
        self.env = dict(
            {**s3.env(), **clients},
            PGPORT=str(self.ports["postgres"]),
            RCLONE_CONFIG=str(work / "rclone.conf"),
            RCLONE_CONFIG_S3_TYPE="s3", RCLONE_CONFIG_S3_PROVIDER="Other", RCLONE_CONFIG_S3_ENDPOINT=endpoint,
            RCLONE_CONFIG_S3_ACCESS_KEY_ID=s3.access_key, RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=s3.secret_key,
            AWS_ENDPOINT_URL=endpoint,
            POSTGRES_HOST=postgres.host, POSTGRES_PORT=str(self.ports["postgres"]), POSTGRES_USER=postgres.user,
            POSTGRES_PASSWORD=postgres.password, POSTGRES_BINDIR=postgres.bindir,
            RCLONE_S3_BUCKET=BUCKET, RCLONE_S3_ENDPOINT=endpoint, RCLONE_S3_REGION=s3.region,
            RCLONE_S3_ACCESS_KEY_ID=s3.access_key, RCLONE_S3_SECRET_ACCESS_KEY=s3.secret_key,
            PYTHON=sys.executable, PYTHONPATH=str(REPOSITORY / "plugins" / "module_utils"), BUCKET=BUCKET,
            WORK=str(work), JOBS=str(jobs), TARGET="target",
        )
        self.env["PATH"] = os.path.dirname(sys.executable) + os.pathsep + self.env["PATH"]
        self.env.pop("PYTHONDONTWRITEBYTECODE", None)  # as an installed program runs

    def use(self, database: str, sql: str) -> int:
        """Make it; its size in bytes on the server's disk."""
        self.postgres.createdb(database)
        self.postgres.psql(sql + "\nVACUUM ANALYZE;\nCHECKPOINT;", database)
        self.env.update(PGDATABASE=database, POSTGRES_DB=database)
        return int(self.postgres.psql("SELECT pg_database_size(current_database())", database))

    def run(self, pipelines: Sequence[Pipeline], rounds: int, fresh_target: bool) -> Tuple[Samples, Dict[str, str]]:
        """Samples by pipeline, and why some have none."""
        left_out = {}
        for one in pipelines:
            lacking = [need for need in one.needs if not shutil.which(need, path=self.env["PATH"])]
            if lacking:
                left_out[one.name] = "%s is not installed" % ", ".join(lacking)
        chosen = [one for one in pipelines if one.name not in left_out]
        samples: Samples = {one.name: [] for one in chosen}
        for number in range(rounds):
            turn = number % max(1, len(chosen))
            for one in chosen[turn:] + chosen[:turn]:
                if one.name in left_out:
                    continue
                self._prepare(one, fresh_target)
                script = one.script.replace("$COPY_TO_NOWHERE", self._copy_to_nowhere())
                try:
                    sample = measure(script, self.env, [self.postgres.pid, self.s3.pid])
                except Failed as error:
                    left_out[one.name] = str(error)
                    del samples[one.name]
                    say("  %-20s %s" % (one.name, error))
                    continue
                samples[one.name].append(sample)
                say("  %-20s %6.1f s, processor %6.1f s and %6.1f s, %4d MiB"
                    % (one.name, sample.seconds, sample.cpu, sample.server_cpu, sample.peak))
        return samples, left_out

    def _prepare(self, pipeline: Pipeline, fresh_target: bool) -> None:
        for key in self.s3.keys(BUCKET):
            if pipeline.key and key == pipeline.key or key.startswith("barman/"):
                self.s3.client().delete_object(Bucket=BUCKET, Key=key)
        if pipeline.before:
            subprocess.run(["bash", "-c", pipeline.before], env=self.env, check=True)
        if fresh_target:
            self.postgres.dropdb("target")
            self.postgres.createdb("target")
        self.postgres.psql("CHECKPOINT")

    def _copy_to_nowhere(self) -> str:
        """Two halves of all rows, one a connection: whole tables, those over 64 MB in two by ctid."""
        jobs = int(self.env["JOBS"])
        rows = self.postgres.psql(
            "SELECT c.oid::regclass, c.relpages, pg_table_size(c.oid) FROM pg_class c WHERE c.relkind = 'r' "
            "AND c.relnamespace = 'public'::regnamespace ORDER BY 3 DESC", self.env["PGDATABASE"])
        loads: List[Tuple[int, List[str]]] = [(0, []) for _unused in range(jobs)]
        for name, pages, size in (line.split("|") for line in rows.splitlines()):
            parts = jobs if int(size) > 64 << 20 else 1
            edges = [int(pages) * part // parts for part in range(parts)] + [4294967295]
            for low, high in zip(edges, edges[1:]):
                loads.sort(key=lambda load: load[0])
                load, statements = loads[0]
                what = name if parts == 1 else (
                    "(SELECT * FROM ONLY %s WHERE ctid >= '(%d,0)' AND ctid < '(%d,0)')" % (name, low, high))
                statements.append("COPY %s TO STDOUT;" % what)
                loads[0] = load + int(size) // parts, statements
        lines = []
        for number, (_load, statements) in enumerate(loads):
            script = self.work / ("copy_%d.sql" % number)
            script.write_text("\n".join(statements) + "\n")
            lines.append("psql -Xq -v ON_ERROR_STOP=1 -f %s > /dev/null &" % script)
        return "\n".join([*lines, "for job in $(jobs -p); do wait $job; done"])

    def sizes(self) -> Dict[str, int]:
        """Stored bytes by key; a directory's all together."""
        found: Dict[str, int] = {}
        for page in self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
            for one in page.get("Contents", []):
                key = one["Key"].partition("/")[0]
                found[key] = found.get(key, 0) + one["Size"]
        return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def versions(postgres: PostgresServer, env: Dict[str, str]) -> List[str]:
    found = [postgres.psql("SELECT version()").split(" on ")[0]]
    for argv in (["rclone", "version"], ["gzip", "--version"], ["zstd", "--version"], ["pigz", "--version"],
                 ["barman-cloud-backup", "--version"], [sys.executable, "--version"]):
        if shutil.which(argv[0], path=env["PATH"]):
            done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
            found.append(done.stdout.strip().splitlines()[0].strip("* "))
    return found


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="1.0: mixed has 1.9 GB of rows (default)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="of every pipeline that has them")
    parser.add_argument("--databases", default=",".join(DATABASES))
    parser.add_argument("--delay", type=float, default=0.0, metavar="MS", help="round trip to both servers")
    parser.add_argument("--only", default="", help="names of pipelines, with commas between")
    parser.add_argument("--report", metavar="FILE", help="write it there, in the place of what was measured before")
    options = parser.parse_args(argv)
    only = options.only.split(",") if options.only else []
    parts: List[str] = []
    with tempfile.TemporaryDirectory(prefix="pgstream-bench-") as place, \
            PostgresServer(settings=SETTINGS) as postgres, S3Server() as s3:
        work = Path(place)
        (work / "rclone.conf").touch()
        s3.make_bucket(BUCKET)
        bench = Bench(postgres, s3, work, options.jobs, options.delay)
        for name in options.databases.split(","):
            size = bench.use(name, DATABASES[name](options.scale))
            say("%s: %d MB on disk" % (name, size / 1e6))
            made, no_backup = bench.run(chosen(BACKUPS, only), options.rounds, False)
            stored = bench.sizes()
            loaded, no_restore = bench.run(chosen(RESTORES, only), options.rounds, True)
            parts.append(report.section(name, DATABASES[name].__doc__ or "", size, made, loaded, stored,
                                        {**no_backup, **no_restore}))
            postgres.dropdb(name)
        text = report.whole(parts, versions(postgres, bench.env), SETTINGS, vars(options))
    if options.report:
        report.write(Path(options.report), text)
    else:
        print(text)
    return 0


def chosen(pipelines: Sequence[Pipeline], only: Sequence[str]) -> List[Pipeline]:
    return [one for one in pipelines if not only or one.name in only]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
