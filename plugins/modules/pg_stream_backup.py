#!/usr/bin/python
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_stream_backup
version_added: 0.1.0
author: the pgstream.backup authors (@pgstream)
short_description: Stream PostgreSQL databases to object storage
description:
  - Backs up one database as one object in an S3 bucket or a directory, without temporary files. O(databases) backs up
    several or all of a server, each as an object of its own, one after the other.
  - Several connections that share one snapshot read the tables side by side. The object is nevertheless one plain SQL
    script, compressed, that C(gunzip | psql) restores with no other tool.
  - A backup is either whole or does not exist. Completing the upload is the last step, and nothing that fails before
    it leaves an object behind.
  - Roles and tablespaces belong to the server and not to a database. O(globals) backs them up as an object of their
    own.
extends_documentation_fragment:
  - pgstream.backup.attributes
  - pgstream.backup.postgres
  - pgstream.backup.storage
  - pgstream.backup.notify
attributes:
  action_group:
    support: full
    membership:
      - pgstream.backup.pgstream
      - pgstream.backup.postgres
  check_mode:
    support: full
    details:
      - Connects to the server and to the storage and makes every check a backup makes.
  diff_mode:
    support: full
  idempotent:
    support: partial
    details:
      - A new backup is made at every run, as one expects of a backup, unless O(backup_key) names one that exists, or
        O(fresh_within) finds one.
  platform:
    support: full
options:
  login_db:
    description: Name of the database to back up. Give this or O(databases), unless only O(globals) are wanted.
    type: str
  databases:
    description:
      - Names of the databases to back up, instead of O(login_db).
      - V(all) is every database that takes connections and is no template, as C(pg_dumpall) has it. So C(postgres) is
        among them unless O(exclude_databases) has it.
      - In a name V(*) is any text and V(?) any character. Upper and lower case differ.
      - A database that fails does not keep the others from being backed up. The task fails then, with the
        RV(exit_code) of the first failure, and RV(backups) has the results of all.
    type: list
    elements: str
    default: []
  exclude_databases:
    description: Of O(databases), leave these out. Names and patterns as there.
    type: list
    elements: str
    default: []
  globals:
    description:
      - Back up the server's roles, their memberships and settings, and its tablespaces, as C(pg_dumpall --globals-only)
        has them, in one more object.
      - Its key is made of O(prefix), C(globals), the time, C(.cluster) and the compression's ending, which no
        database has. Of the other options those that are about the server, the storage, compression, O(fresh_within)
        and O(timeout) apply.
      - Needs the program C(pg_dumpall) on the target host.
    type: bool
    default: false
  globals_passwords:
    description:
      - With O(globals=true), back up the hashes of the roles' passwords too. Only a superuser may read them.
      - Without them, restored roles have no password.
    type: bool
    default: false
  backup_key:
    description:
      - Key of the object to write, with O(login_db). O(prefix) is put before it, unless it begins with that already.
      - When not given, the key is made of O(prefix), the name of the database, the time and the compression's ending,
        for example C(prod/shop_2026-01-31T02:00:00Z.sql.gz). A filtered backup has C(.part-) and 8 hexadecimal digits
        of its filters before the ending.
      - A key of that form must say what is backed up, the same database and the same filters.
    type: str
  overwrite:
    description:
      - What to do when O(backup_key) exists already.
      - V(never) leaves it as it is, and the task is unchanged.
      - V(always) replaces it when the new backup is whole.
    type: str
    default: never
    choices: [never, always]
  fresh_within:
    description:
      - Make no backup if there is one of this database under O(prefix), with the same filters, that is younger than
        this. One that is dated in the future does not count.
      - With O(globals_passwords=true) a backup of globals must say that it has the hashes. An encrypted one that no
        identity here opens cannot.
      - A number with a unit, such as V(30s), V(90m), V(6h) or V(2d). Without a unit it is seconds.
    type: str
  compression:
    description:
      - How the backup is compressed.
      - V(zstd) needs the Python package C(zstandard) on the target host.
      - V(gzip) uses C(isal) where it is installed, which is several times faster, and Python's own zlib otherwise.
    type: str
    default: gzip
    choices: [gzip, zstd, none]
  compression_level:
    description: Level from V(1) to V(9) for gzip, from V(1) to V(19) for zstd. When not given, one that favours speed.
    type: int
  jobs:
    description: How many connections read tables at the same time. When not given or V(0), the smaller of 4 and the
      number of cores.
    type: int
  schemas:
    description:
      - Back up these schemas only. Patterns as C(pg_dump --schema) has them, each of which must match something.
      - Not together with O(tables), beside which they have no effect in pg_dump either.
      - A backup with this or one of the other filters is a filtered one, which is never taken for one of the whole
        database; see O(backup_key). Those with the same filters are a series of their own.
    type: list
    elements: str
    default: []
  exclude_schemas:
    description: Leave these schemas out. Patterns as C(pg_dump --exclude-schema) has them. One that matches nothing is
      a warning. Not together with O(tables).
    type: list
    elements: str
    default: []
  tables:
    description: Back up these tables only. Patterns as C(pg_dump --table) has them, each of which must match something.
      A partitioned table means its partitions too, here and in O(exclude_tables) and O(exclude_table_data).
    type: list
    elements: str
    default: []
  exclude_tables:
    description: Leave these tables out. Patterns as C(pg_dump --exclude-table) has them.
    type: list
    elements: str
    default: []
  exclude_table_data:
    description: Keep these tables' definitions but not their rows. Patterns as C(pg_dump --exclude-table-data) has
      them. Where rows refer to those by a foreign key, a restore of all fails at it; one without them goes by
      O(pgstream.backup.pg_stream_restore#module:content) V(schema) or
      O(pgstream.backup.pg_stream_restore#module:tables).
    type: list
    elements: str
    default: []
  lock_timeout:
    description:
      - How long to wait for a lock on a table that another session holds. The locks asked for conflict with schema
        changes only.
      - A duration as in O(fresh_within).
    type: str
    default: 60s
  timeout:
    description:
      - How long the backup may take, each one of several. One that takes longer is ended and has failed, and leaves
        nothing behind.
      - A duration such as V(90m) or V(6h). When not given, there is no limit.
    type: str
  correlation_id:
    description: Name of this run in results and in the backup's index. When not given, one is made up.
    type: str
seealso:
  - module: pgstream.backup.pg_stream_restore
  - module: pgstream.backup.pg_stream_info
"""

EXAMPLES = r"""
- name: Back up a database over the local socket, as the server's own user
  become: true
  become_user: postgres
  pgstream.backup.pg_stream_backup:
    login_db: shop
    bucket: company-backups
    prefix: prod
    region: eu-central-1

- name: Back up to an S3-compatible service, with credentials from a vault
  pgstream.backup.pg_stream_backup:
    login_host: db1.example.com
    login_user: backup
    login_password: "{{ vault_pg_password }}"
    ssl_mode: verify-full
    login_db: shop
    bucket: backups
    endpoint_url: https://minio.example.com:9000
    access_key: "{{ vault_s3_access_key }}"
    secret_key: "{{ vault_s3_secret_key }}"
    jobs: 8

- name: Have a backup that is not older than six hours before an upgrade
  pgstream.backup.pg_stream_backup:
    login_db: shop
    bucket: company-backups
    fresh_within: 6h
  register: backup

- name: Back up a whole server, roles included, but for the databases of tests
  become: true
  become_user: postgres
  pgstream.backup.pg_stream_backup:
    databases: all
    exclude_databases: [postgres, "test_*"]
    globals: true
    bucket: company-backups
    prefix: "{{ inventory_hostname }}"
  register: server

- name: Show the keys
  ansible.builtin.debug:
    msg: "{{ server.backups | map(attribute='key') }}"

- name: Keep the state of a release, once, without the rows of two large tables
  pgstream.backup.pg_stream_backup:
    login_db: shop
    directory: /mnt/backups
    backup_key: releases/shop-4.2.sql.zst
    compression: zstd
    exclude_table_data:
      - audit.*
      - public.search_cache
"""

RETURN = r"""
operation:
  description: What was done, always V(backup).
  returned: success
  type: str
  sample: backup
database:
  description: Name of the database. This, RV(key), RV(url) and what else is of one object are empty with O(databases)
    or O(globals), where RV(backups) has each.
  returned: success
  type: str
  sample: shop
key:
  description:
    - Key of the backup, as O(pgstream.backup.pg_stream_restore#module:backup_key) takes it.
    - When nothing was changed, the key of the backup that was found. In check mode, the key a backup would have had.
  returned: success
  type: str
  sample: prod/shop_2026-01-31T02:00:00Z.sql.gz
url:
  description: The same with the bucket or directory.
  returned: success
  type: str
  sample: s3://company-backups/prod/shop_2026-01-31T02:00:00Z.sql.gz
correlation_id:
  description: Name of this run.
  returned: always
  type: str
  sample: 5f2c9a0b7d31
backups:
  description: Each backup of the run, in order. The globals come last.
  returned: success, and when some of several failed
  type: list
  elements: dict
  contains:
    database:
      description: Name of the database. Empty for the globals.
      type: str
      sample: shop
    globals:
      description: Whether it is that of the globals.
      type: bool
      sample: false
    status:
      description: V(ok) or V(failed).
      type: str
      sample: ok
    changed:
      description: Whether a new object was made, or in check mode would be.
      type: bool
      sample: true
    key:
      description: Key of the object. Empty if it failed.
      type: str
      sample: prod/shop_2026-01-31T02:00:00Z.sql.gz
    url:
      description: The same with the bucket or directory.
      type: str
      sample: s3://company-backups/prod/shop_2026-01-31T02:00:00Z.sql.gz
    raw_bytes:
      description: Size of the SQL script before compression.
      type: int
      sample: 1843200000
    stored_bytes:
      description: Size of the object.
      type: int
      sample: 412876123
    rows:
      description: Number of rows in it.
      type: int
      sample: 9120034
    tables:
      description: Number of tables whose rows are in it.
      type: int
      sample: 84
    seconds:
      description: How long it took.
      type: float
      sample: 12.4
    message:
      description: What was done, in one sentence. Empty if it failed.
      type: str
    error:
      description: Why it failed.
      type: str
    exit_code:
      description: Kind of the failure, as RV(exit_code) has it. 0 if it did not fail.
      type: int
      sample: 0
message:
  description: What was done, or in check mode would be, in one sentence.
  returned: success
  type: str
version_id:
  description: Version of the object. Empty if the bucket keeps no versions.
  returned: success
  type: str
etag:
  description: Entity tag the store gave the object.
  returned: success
  type: str
compression:
  description: How the backup is compressed.
  returned: success
  type: str
  sample: gzip
raw_bytes:
  description: Size of the SQL script before compression.
  returned: success
  type: int
  sample: 1843200000
stored_bytes:
  description: Size of the object.
  returned: success
  type: int
  sample: 412876123
rows:
  description: Number of rows in the backup.
  returned: success
  type: int
  sample: 9120034
tables:
  description: Number of tables whose rows are in the backup.
  returned: success
  type: int
  sample: 84
table_rows:
  description: Each of those tables.
  returned: success
  type: list
  elements: dict
  contains:
    schema:
      description: Name of the schema.
      type: str
      sample: public
    name:
      description: Name of the table.
      type: str
      sample: orders
    rows:
      description: Number of its rows in the backup. V(-1) in check mode, where they are not counted.
      type: int
      sample: 120034
    raw_bytes:
      description: Size of its rows before compression.
      type: int
      sample: 9120034
estimated_bytes:
  description: Size of the tables on the server's disk, from which the run was planned.
  returned: success
  type: int
  sample: 2147483648
seconds:
  description: How long the run took.
  returned: success
  type: float
  sample: 12.4
mb_per_second:
  description: RV(raw_bytes) in millions, divided by RV(seconds).
  returned: success
  type: float
  sample: 148.6
snapshot_at:
  description: The moment whose state the backup shows. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-01-31T02:00:00.120Z"
started_at:
  description: When the run began. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-01-31T02:00:00Z"
finished_at:
  description: When the backup was complete. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-01-31T02:00:12.431Z"
server_version:
  description: Version of the server as a number, the major version times 10000 plus the minor one.
  returned: success
  type: int
  sample: 160004
jobs:
  description: How many connections read tables at the same time.
  returned: success
  type: int
  sample: 4
stage:
  description: Where the run failed. Empty if some of several failed.
  returned: failure
  type: str
  sample: S3 upload
hint:
  description: What to do about the failure. It is part of the message too.
  returned: failure
  type: str
exit_code:
  description:
    - Kind of the failure, as the command's exit status has it.
    - 1 is a failed operation, 2 wrong options, 3 PostgreSQL, 4 the storage, 5 an unknown backup, 6 integrity,
      7 a target that is not empty, and 8 another run's lock.
  returned: failure
  type: int
  sample: 3
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgstream.backup.plugins.module_utils._args import backup_request
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.backup import back_up, predict_backup
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.cluster import alone, back_up_cluster
from ansible_collections.pgstream.backup.plugins.module_utils._run import (
    backup_answer,
    cluster_answer,
    hider,
    require,
    run_module,
    telling_of_each,
)
from ansible_collections.pgstream.backup.plugins.module_utils._specs import BACKUP_SPEC


def work(module, log):
    request = backup_request(module.params)
    require(module, request.backup.storage)
    if not (request.databases or request.globals):
        verb = predict_backup if module.check_mode else back_up
        return backup_answer(verb(request.backup, log))
    around = alone if module.check_mode else telling_of_each(module, log)
    return cluster_answer(back_up_cluster(request, log, around, hider(module), module.check_mode))


def main():
    module = AnsibleModule(argument_spec=BACKUP_SPEC, supports_check_mode=True)
    run_module(module, "backup", work)


if __name__ == "__main__":
    main()
