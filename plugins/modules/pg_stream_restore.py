#!/usr/bin/python
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_stream_restore
version_added: 0.1.0
author: the pgstream.backup authors (@pgstream)
short_description: Stream a PostgreSQL database back from object storage
description:
  - Restores a backup straight from an S3 bucket or a directory, without temporary files, over several connections at
    once.
  - The target must be absent, with O(create=true), or empty, unless O(strategy) asks for an existing database to be
    replaced. A restore that fails leaves the old database as it was.
  - Rows are counted and compared with the backup's index before the restored database takes its place.
  - Plain dumps that another tool wrote, such as C(pg_dump | gzip) does, are restored too, as one serial stream.
  - Roles and tablespaces are restored from a backup of their own, see O(globals).
extends_documentation_fragment:
  - pgstream.backup.attributes
  - pgstream.backup.postgres
  - pgstream.backup.storage
attributes:
  action_group:
    support: full
    membership:
      - pgstream.backup.pgstream
      - pgstream.backup.postgres
  check_mode:
    support: full
    details:
      - Connects to the server and to the storage, reads the backup's index, and makes every check a restore makes.
  diff_mode:
    support: full
  idempotent:
    support: none
    details:
      - Every run restores, or refuses because the target is not empty.
  platform:
    support: full
options:
  backup_key:
    description:
      - Key of the backup, with or without O(prefix), as RV(pgstream.backup.pg_stream_backup#module:key) has it.
      - V(latest) is the newest backup of the database under O(prefix). A filtered one only where there is none of the
        whole database, with a warning, and not for O(strategy=swap).
    type: str
    required: true
  latest_before:
    description:
      - With O(backup_key=latest), the newest backup that is older than this.
      - RFC 3339 with an offset, such as V(2026-01-31T02:00:00Z).
    type: str
  globals:
    description:
      - With O(backup_key=latest), the newest backup of roles and tablespaces is meant, as
        O(pgstream.backup.pg_stream_backup#module:globals) makes them, and not that of a database. A key says so itself.
      - Roles and tablespaces that the server lacks are made. Those that it has stay, and get the properties, passwords
        (if they were backed up), settings, memberships and grants of the backup. Nothing is dropped.
      - Any error ends it. Roles come in one transaction, so that none of them is changed then. Tablespaces follow,
        one by one, as PostgreSQL has it, and their directories must exist.
      - It takes a superuser, whose own password may be among those that are restored. O(login_db) and what is about a
        database do not go with it.
    type: bool
    default: false
  source_db:
    description: With O(backup_key=latest), the database whose backup is meant. When not given, O(login_db).
    type: str
  login_db:
    description: Name of the database to restore into. When not given, the name in the backup.
    type: str
  create:
    description: Create the database if it does not exist, with the encoding, locale and settings in the backup.
    type: bool
    default: false
  strategy:
    description:
      - What to do with a database that exists.
      - V(auto) restores into it if it is empty, and refuses otherwise.
      - V(swap) restores into a new database beside it, and renames both at the end. Whatever fails before that leaves
        the old one untouched.
      - V(in_place) restores into the existing database itself, which must be empty. A restore that fails leaves it
        empty again. Where somebody else made tables in it meanwhile, nothing is dropped and a warning is logged. A
        plain dump without an index does not tell its own from others', so nobody else should work in the database then.
    type: str
    default: auto
    choices: [auto, swap, in_place]
  keep_old:
    description:
      - With O(strategy=swap), keep the replaced database under another name, which RV(old_database) tells. Dropping
        it is then up to you.
      - V(false) drops it. Where it cannot be dropped, it stays, and the restore succeeds with a warning in the log.
    type: bool
    default: true
  schemas:
    description: Restore these schemas only. A name that the backup does not have is an error.
    type: list
    elements: str
    default: []
  tables:
    description:
      - Restore these tables only, each as C(table) or C(schema.table). What a table needs, such as types, functions and
        sequences, and what hangs on it, such as indexes, comes along. So do the partitions of a table, but not children
        that inherit from it. Foreign keys to tables that are left out do not.
      - Only the blocks of these tables are read from the storage, as RV(bytes_read) tells.
    type: list
    elements: str
    default: []
  content:
    description:
      - What to restore of O(schemas) and O(tables), or of everything when neither is given.
      - V(all) makes definitions and loads rows.
      - V(schema) makes definitions only, as C(pg_restore --schema-only) does. No rows are read.
      - V(data) loads rows, positions of sequences and, without O(schemas) and O(tables), large objects, as
        C(pg_restore --data-only) does. The tables must exist in the database and be empty. Nothing is created. To name
        a view or a foreign table in O(tables) is an error.
      - With V(data), neither triggers nor foreign keys are asked while rows are loaded, which takes a superuser or,
        from PostgreSQL 15 on, a role that may set C(session_replication_role). Any other role is refused tables that
        have some. Afterwards each foreign key of the tables is checked, and a row that refers to nothing fails the
        restore.
      - With V(data), a failure leaves the tables empty again. Positions of sequences are set last, and stay. Nobody
        else should write into the tables meanwhile.
    type: str
    default: all
    choices: [all, data, schema]
  no_owner:
    description: Let the role that restores own everything, instead of the original owners.
    type: bool
    default: false
  no_privileges:
    description: Leave out grants and default privileges.
    type: bool
    default: false
  role:
    description: Role to switch to after connecting, as C(pg_restore --role) does. It owns what O(no_owner=true)
      leaves without an owner.
    type: str
  jobs:
    description:
      - How many connections load tables and build indexes at the same time. When not given or V(0), the smaller of 4
        and the number of cores.
    type: int
  analyze:
    description: Run C(ANALYZE) at the end, so that the planner knows the restored tables.
    type: bool
    default: true
  timeout:
    description:
      - How long the whole run may take. One that takes longer is ended and has failed, and leaves nothing behind.
      - A duration such as V(90m) or V(6h). When not given, there is no limit.
    type: str
  correlation_id:
    description: Name of this run in results. When not given, one is made up.
    type: str
seealso:
  - module: pgstream.backup.pg_stream_backup
  - module: pgstream.backup.pg_stream_info
"""

EXAMPLES = r"""
- name: Bring a lost database back
  become: true
  become_user: postgres
  pgstream.backup.pg_stream_restore:
    backup_key: prod/shop_2026-01-31T02:00:00Z.sql.gz
    bucket: company-backups
    create: true

- name: Replace a database by its newest backup, and keep the old one beside it
  become: true
  become_user: postgres
  pgstream.backup.pg_stream_restore:
    backup_key: latest
    login_db: shop
    strategy: swap
    bucket: company-backups
    prefix: prod
  register: restored

- name: Bring the rows of two tables back that were emptied by mistake
  become: true
  become_user: postgres
  pgstream.backup.pg_stream_restore:
    backup_key: latest
    login_db: shop
    tables: [sales.orders, sales.order_items]
    content: data
    bucket: company-backups
    prefix: prod

- name: Make a staging copy that belongs to another role
  pgstream.backup.pg_stream_restore:
    login_host: staging-db.example.com
    login_user: staging
    login_password: "{{ vault_staging_password }}"
    backup_key: latest
    source_db: shop
    latest_before: "2026-02-01T00:00:00Z"
    login_db: shop_staging
    create: true
    no_owner: true
    no_privileges: true
    bucket: company-backups
    prefix: prod
"""

RETURN = r"""
operation:
  description: What was done, always V(restore).
  returned: success
  type: str
  sample: restore
database:
  description: Name of the database that was restored into.
  returned: success
  type: str
  sample: shop
source_database:
  description: Name of the database that was backed up.
  returned: success
  type: str
  sample: shop
key:
  description: Key of the backup. With O(backup_key=latest), of the one that was found.
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
message:
  description: What was done, or in check mode would be, in one sentence.
  returned: success
  type: str
strategy:
  description: How it was done, V(create), V(swap) or V(in_place); V(globals) for roles and tablespaces.
  returned: success
  type: str
  sample: swap
old_database:
  description: Name under which the replaced database is kept. Empty if there is none.
  returned: success
  type: str
  sample: shop_before_20260201T093000Z
foreign:
  description: Whether the backup was written by another tool, and so was restored as one serial stream without an
    index.
  returned: success
  type: bool
  sample: false
content:
  description: What was restored, V(all), V(data) or V(schema).
  returned: success
  type: str
  sample: all
stored_bytes:
  description: Size of the object.
  returned: success
  type: int
  sample: 412876123
bytes_read:
  description: Number of bytes that were read from the storage. In check mode, how many would be at the most.
  returned: success
  type: int
  sample: 412876123
raw_bytes:
  description: Size of the SQL that was restored, without definitions.
  returned: success
  type: int
  sample: 1843200000
rows:
  description: Number of rows that were restored.
  returned: success
  type: int
  sample: 9120034
tables:
  description: Number of tables whose rows were restored.
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
      description: Number of rows that were restored.
      type: int
      sample: 120034
    raw_bytes:
      description: Size of its rows before compression.
      type: int
      sample: 9120034
seconds:
  description: How long the run took.
  returned: success
  type: float
  sample: 21.7
mb_per_second:
  description: RV(raw_bytes) in millions, divided by RV(seconds).
  returned: success
  type: float
  sample: 84.9
snapshot_at:
  description: The moment whose state the backup shows. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-01-31T02:00:00.120Z"
started_at:
  description: When the run began. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-02-01T09:30:00Z"
finished_at:
  description: When the restored database was in its place. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-02-01T09:30:21.700Z"
jobs:
  description: How many connections loaded tables at the same time.
  returned: success
  type: int
  sample: 4
stage:
  description: Where the run failed.
  returned: failure
  type: str
  sample: data section
hint:
  description: What to do about the failure. It is part of the message too.
  returned: failure
  type: str
exit_code:
  description:
    - Kind of the failure, as the command's exit status has it.
    - 1 is a failed operation, 2 wrong options, 3 PostgreSQL, 4 the storage, 5 an unknown backup, 6 integrity,
      7 a target that is not as the restore needs it, and 8 another run's lock.
  returned: failure
  type: int
  sample: 7
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgstream.backup.plugins.module_utils._args import restore_request
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.restore import predict_restore, restore
from ansible_collections.pgstream.backup.plugins.module_utils._run import require, restore_answer, run_module
from ansible_collections.pgstream.backup.plugins.module_utils._specs import RESTORE_SPEC


def work(module, log):
    request = restore_request(module.params)
    require(module, request.storage)
    verb = predict_restore if module.check_mode else restore
    return restore_answer(verb(request, log))


def main():
    module = AnsibleModule(argument_spec=RESTORE_SPEC, supports_check_mode=True)
    run_module(module, "restore", work)


if __name__ == "__main__":
    main()
