#!/usr/bin/python
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_stream_verify
version_added: 0.1.0
author: the pgstream.backup authors (@pgstream)
short_description: Prove that a backup in object storage can be relied upon
description:
  - Reads a backup in an S3 bucket or a directory and fails where anything is wrong with it, saying what and where.
  - O(level) says how much is proven, and what that costs.
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
      - Does the same as without it, but for O(level=restore), which then reads the index only.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Leaves the backup and every database as they are.
  platform:
    support: full
options:
  backup_key:
    description:
      - Key of the backup, with or without O(prefix), as RV(pgstream.backup.pg_stream_backup#module:key) has it.
      - V(latest) is the newest backup of O(source_db) under O(prefix). A filtered one only where there is none of
        the whole database, with a warning.
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
        O(pgstream.backup.pg_stream_backup#module:globals) makes them, and not that of a database. With a
        key it does nothing. O(level=restore) cannot be had of them.
    type: bool
    default: false
  source_db:
    description: With O(backup_key=latest), the database whose backup is meant.
    type: str
  level:
    description:
      - V(index) reads the footer and the index by small requests, and checks that they are whole and agree with each
        other and with the object's size.
      - V(content) also reads every byte, checks the sha256 of each block, decompresses it and counts its rows.
      - V(restore) restores the backup into a scratch database called C(NAME_pgstream_drill_ID), counts the rows of
        each table there, and drops it, also after a failure. It needs a role that may create databases, and as much
        disk on the server as the database takes.
      - A plain dump that another tool made has no index. V(content) decompresses it and looks for the line with which
        C(pg_dump) ends, and no more can be said of it without a restore.
    type: str
    default: content
    choices: [index, content, restore]
  compare_source:
    description:
      - With O(level=restore), also compare the contents of each table with those of the original, which must be on the
        same server.
      - PostgreSQL does not tell whether a table was written to since the backup. So any difference is a failure, and
        this is for databases that stand still. Sequences and large objects are not compared.
    type: bool
    default: false
  no_owner:
    description: With O(level=restore), let the role that restores own everything. For a server that lacks the original
      owners.
    type: bool
    default: false
  no_privileges:
    description: With O(level=restore), leave out grants and default privileges.
    type: bool
    default: false
  role:
    description: With O(level=restore), role to switch to after connecting.
    type: str
  jobs:
    description:
      - How many blocks are read, or connections load tables, at the same time. When not given or V(0), the smaller of
        4 and the number of cores.
    type: int
  state_dir:
    description: Directory on the target host with a run ledger, where the result is noted for
      M(pgstream.backup.pg_stream_info), for C(pgbackup list) and for the metrics. When not given, it is noted nowhere.
    type: path
  correlation_id:
    description: Name of this run in results. When not given, one is made up.
    type: str
seealso:
  - module: pgstream.backup.pg_stream_backup
  - module: pgstream.backup.pg_stream_restore
"""

EXAMPLES = r"""
- name: Read every byte of the newest backup
  pgstream.backup.pg_stream_verify:
    backup_key: latest
    source_db: shop
    bucket: company-backups
    prefix: prod

- name: Restore it for practice on another server
  pgstream.backup.pg_stream_verify:
    login_host: staging-db.example.com
    login_user: drill
    login_password: "{{ vault_drill_password }}"
    backup_key: latest
    source_db: shop
    level: restore
    no_owner: true
    no_privileges: true
    bucket: company-backups
    prefix: prod
"""

RETURN = r"""
operation:
  description: What was done, always V(verify).
  returned: success
  type: str
  sample: verify
verified:
  description: Always V(true), as a fault is a failure.
  returned: success
  type: bool
  sample: true
level:
  description: How much was proven, V(index), V(content) or V(restore).
  returned: success
  type: str
  sample: content
database:
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
  description: What was proven, in one sentence.
  returned: success
  type: str
foreign:
  description: Whether the backup was written by another tool, and so has no index.
  returned: success
  type: bool
  sample: false
stored_bytes:
  description: Size of the object.
  returned: success
  type: int
  sample: 412876123
raw_bytes:
  description: Size of the SQL that was decompressed.
  returned: success
  type: int
  sample: 1843200000
bytes_read:
  description: Number of bytes that were read from the storage.
  returned: success
  type: int
  sample: 412876123
blocks:
  description: Number of blocks in the index.
  returned: success
  type: int
  sample: 221
rows:
  description: Number of rows that were counted. With O(level=index), that the index names.
  returned: success
  type: int
  sample: 9120034
tables:
  description: Number of tables in the index.
  returned: success
  type: int
  sample: 84
compared_tables:
  description: Number of tables whose contents were found to be those of the source. Only with O(compare_source=true).
  returned: success
  type: int
  sample: 84
seconds:
  description: How long the run took.
  returned: success
  type: float
  sample: 3.4
mb_per_second:
  description: RV(bytes_read) in millions, divided by RV(seconds).
  returned: success
  type: float
  sample: 121.4
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
  description: When it ended. RFC 3339, UTC.
  returned: success
  type: str
  sample: "2026-02-01T09:30:03.400Z"
jobs:
  description: How many blocks were read, or connections loaded tables, at the same time.
  returned: success
  type: int
  sample: 4
stage:
  description: Where the run failed.
  returned: failure
  type: str
  sample: reading the contents
hint:
  description: What to do about the failure. It is part of the message too.
  returned: failure
  type: str
exit_code:
  description:
    - Kind of the failure, as RV(pgstream.backup.pg_stream_restore#module:exit_code) has it.
    - 6 is a backup that is damaged, 5 one that does not exist, 4 a storage that cannot be read.
  returned: failure
  type: int
  sample: 6
"""

from dataclasses import asdict, replace

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgstream.backup.plugins.module_utils._args import verify_request
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.verify import verify
from ansible_collections.pgstream.backup.plugins.module_utils._run import noted, require, run_module
from ansible_collections.pgstream.backup.plugins.module_utils._specs import VERIFY_SPEC


def work(module, log):
    request = verify_request(module.params)
    require(module, request.storage, postgres=request.level == "restore")
    if not module.check_mode:
        return noted(module.params["state_dir"], log, lambda: asdict(verify(request, log)))
    if request.level == "restore":
        request = replace(request, level="index", compare_source=False)
    return asdict(verify(request, log))


def main():
    module = AnsibleModule(argument_spec=VERIFY_SPEC, supports_check_mode=True)
    run_module(module, "verify", work)


if __name__ == "__main__":
    main()
