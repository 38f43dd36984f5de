#!/usr/bin/python
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_stream_info
version_added: 0.1.0
author: the pgstream.backup authors (@pgstream)
short_description: List backups of PostgreSQL databases in object storage
description:
  - Lists the backups in an S3 bucket or a directory, newest first. With a retention policy, says what would keep them.
  - With O(backup_key), also reads what one backup says of itself, by two small requests however large the backup is.
  - Needs no connection to a PostgreSQL server.
extends_documentation_fragment:
  - pgstream.backup.attributes
  - pgstream.backup.retention
  - pgstream.backup.storage
attributes:
  action_group:
    support: full
    membership:
      - pgstream.backup.pgstream
  check_mode:
    support: full
    details:
      - Changes nothing in any mode.
  diff_mode:
    support: none
  idempotent:
    support: full
    details:
      - Changes nothing in any mode.
  platform:
    support: full
options:
  login_db:
    description: List backups of this database only.
    type: str
  backup_key:
    description:
      - Key of a backup to describe, with or without O(prefix), or V(latest) for the newest one of O(login_db),
        a filtered one only where there is no other.
      - It must be one that this collection wrote. The others have no index.
    type: str
  details:
    description:
      - So many of the newest backups are looked into, by two small requests each, to see whether they are foreign, and
        for their rows, ratio and duration. Of the others these are null.
    type: int
    default: 100
  state_dir:
    description: Directory on the target host of the run ledger, which knows when a backup was verified. It is what
      O(pgstream.backup.pg_stream_verify#module:state_dir) names, or the command's E(BACKUP_STATE_DIR).
    type: path
seealso:
  - module: pgstream.backup.pg_stream_backup
  - module: pgstream.backup.pg_stream_prune
  - module: pgstream.backup.pg_stream_restore
"""

EXAMPLES = r"""
- name: List the backups of one database
  pgstream.backup.pg_stream_info:
    bucket: company-backups
    prefix: prod
    login_db: shop
  register: found

- name: Show their keys, newest first
  ansible.builtin.debug:
    msg: "{{ found.backups | map(attribute='key') }}"

- name: See what is in the newest one
  pgstream.backup.pg_stream_info:
    bucket: company-backups
    prefix: prod
    login_db: shop
    backup_key: latest
"""

RETURN = r"""
backups:
  description: The backups that were found, newest first.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Key of the backup, as O(pgstream.backup.pg_stream_restore#module:backup_key) takes it.
      type: str
      sample: prod/shop_2026-01-31T02:00:00Z.sql.gz
    url:
      description: The same with the bucket or directory.
      type: str
      sample: s3://company-backups/prod/shop_2026-01-31T02:00:00Z.sql.gz
    size:
      description: Size of the object in bytes.
      type: int
      sample: 412876123
    modified_at:
      description: When the object was stored. RFC 3339, UTC.
      type: str
      sample: "2026-01-31T02:00:12Z"
    database:
      description: Name of the database, from the key.
      type: str
      sample: shop
    globals:
      description: Whether it is of roles and tablespaces of a server, from the key.
      type: bool
      sample: false
    filtered:
      description: Whether schemas or tables were chosen or left out, from the key, or where it is looked into from the
        backup itself.
      type: bool
      sample: false
    part:
      description: Which part of the database it is of, from the key, as 8 hexadecimal digits that stand for the
        filters. Empty for a whole one.
      type: str
      sample: ""
    time:
      description: When the backup was begun, from the key. RFC 3339, UTC. Empty if the key has no time.
      type: str
      sample: "2026-01-31T02:00:00Z"
    compression:
      description: How the backup is compressed, from the key.
      type: str
      sample: gzip
    encrypted:
      description: Whether it is encrypted by age, from the key. Its rows and ratio are only known with an identity, or
        from the run ledger.
      type: bool
      sample: false
    foreign:
      description: Whether another tool wrote it. Such a backup has no index, and is restored as one serial stream. Null
        where it was not looked into, see O(details).
      type: bool
      sample: false
    etag:
      description: Entity tag the store gave the object.
      type: str
    age:
      description: Seconds since the backup was begun.
      type: int
      sample: 14400
    raw_bytes:
      description: Size of the SQL script before compression. Null where it is not known.
      type: int
      sample: 1843200000
    ratio:
      description: RV(backups[].raw_bytes) for each byte stored. Null where it is not known.
      type: float
      sample: 4.46
    rows:
      description: Number of rows in the backup. Null where it is not known.
      type: int
      sample: 9120034
    seconds:
      description: How long the backup took. Null where it is not known.
      type: float
      sample: 12.331
    why:
      description: With a retention policy, what keeps the backup; empty for one that pruning would remove, null for
        what pruning leaves alone. Null without a policy.
      type: list
      elements: str
      sample: [last 1, daily 2026-01-31]
    verified_at:
      description: When it was last verified and no fault was found. RFC 3339, UTC. Empty if that is not known from
        O(state_dir).
      type: str
      sample: "2026-02-01T06:00:00Z"
    verified_level:
      description: How that was done, V(index), V(content) or V(restore).
      type: str
      sample: restore
backup:
  description: What one backup says of itself.
  returned: when O(backup_key) is given
  type: dict
  contains:
    key:
      description: Key of the backup.
      type: str
      sample: prod/shop_2026-01-31T02:00:00Z.sql.gz
    url:
      description: The same with the bucket or directory.
      type: str
      sample: s3://company-backups/prod/shop_2026-01-31T02:00:00Z.sql.gz
    format_version:
      description: Version of the format.
      type: int
      sample: 1
    engine_version:
      description: Version of the program that wrote it.
      type: str
      sample: 0.1.0
    correlation_id:
      description: Name of the run that wrote it.
      type: str
      sample: 5f2c9a0b7d31
    compression:
      description: How the backup is compressed.
      type: str
      sample: gzip
    server_version:
      description: Version of the server as a number, the major version times 10000 plus the minor one.
      type: int
      sample: 160004
    pg_dump_version:
      description: Major version of the C(pg_dump) that wrote the definitions.
      type: int
      sample: 16
    snapshot_at:
      description: The moment whose state the backup shows. RFC 3339, UTC.
      type: str
      sample: "2026-01-31T02:00:00.120Z"
    started_at:
      description: When the backup was begun. RFC 3339, UTC.
      type: str
      sample: "2026-01-31T02:00:00Z"
    finished_at:
      description: When its last block was written. RFC 3339, UTC.
      type: str
      sample: "2026-01-31T02:00:12.331Z"
    raw_bytes:
      description: Size of the SQL script before compression.
      type: int
      sample: 1843200000
    stored_bytes:
      description: Size of the blocks as they are stored, without the index.
      type: int
      sample: 412870122
    passwords:
      description: Of a backup of globals, whether the hashes of the roles' passwords are in it.
      type: bool
      sample: false
    rows:
      description: Number of rows in the backup.
      type: int
      sample: 9120034
    blocks:
      description: Number of pieces that can be read on their own.
      type: int
      sample: 31
    filtered:
      description: Whether schemas or tables were chosen or left out.
      type: bool
      sample: false
    tables:
      description: Each table whose rows are in the backup.
      type: list
      elements: dict
      contains:
        number:
          description: Its number in the index.
          type: int
          sample: 0
        oid:
          description: Its object identifier in the original database.
          type: int
          sample: 16412
        schema:
          description: Name of the schema.
          type: str
          sample: public
        name:
          description: Name of the table.
          type: str
          sample: orders
        rows:
          description: Number of its rows in the backup.
          type: int
          sample: 120034
        raw_bytes:
          description: Size of its rows before compression.
          type: int
          sample: 9120034
    database:
      description: What the database itself was like.
      type: dict
      contains:
        name:
          description: Name of the database.
          type: str
          sample: shop
        encoding:
          description: Its character encoding.
          type: str
          sample: UTF8
        collate:
          description: Its collation.
          type: str
          sample: en_US.UTF-8
        ctype:
          description: Its character classification.
          type: str
          sample: en_US.UTF-8
        owner:
          description: The role that owned it.
          type: str
          sample: shop
        locale_provider:
          description: Where its locale comes from, V(c) for the C library, V(i) for ICU, V(b) for PostgreSQL itself.
          type: str
          sample: c
        locale:
          description: Name of the provider's locale, where it has one.
          type: str
        icu_rules:
          description: Additional collation rules.
          type: str
        connection_limit:
          description: How many connections it allowed, V(-1) for any number.
          type: int
          sample: -1
        comment:
          description: Its comment.
          type: str
        acl:
          description: Privileges on the database, each as a list of the role, the privilege and whether it can be
            granted further.
          type: list
          elements: list
        default_acl:
          description: Whether its privileges were never changed.
          type: bool
          sample: true
        settings:
          description: Its settings, each as a list of the role or nothing, the name and the value.
          type: list
          elements: list
stage:
  description: Where the run failed.
  returned: failure
  type: str
  sample: listing the backups
hint:
  description: What to do about the failure. It is part of the message too.
  returned: failure
  type: str
exit_code:
  description: Kind of the failure, as RV(pgstream.backup.pg_stream_backup#module:exit_code) has it.
  returned: failure
  type: int
  sample: 4
correlation_id:
  description: Name of this run.
  returned: failure
  type: str
  sample: 5f2c9a0b7d31
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgstream.backup.plugins.module_utils._args import info_request
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.catalog import describe, resolve
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.listing import known_runs, list_backups
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.store.base import open_store
from ansible_collections.pgstream.backup.plugins.module_utils._run import info_answer, require, run_module
from ansible_collections.pgstream.backup.plugins.module_utils._specs import INFO_SPEC


def work(module, log):
    storage, database, key, policy, details = info_request(module.params)
    require(module, storage, postgres=False)
    runs = known_runs(module.params["state_dir"] or "", log)
    backups = list_backups(storage, database, details, policy, runs)
    if not key:
        return info_answer(backups)
    store = open_store(storage)
    found = resolve(store, key, database, log)
    return info_answer(backups, found.key, storage.url(found.key), describe(storage, found.key))


def main():
    module = AnsibleModule(argument_spec=INFO_SPEC, supports_check_mode=True)
    run_module(module, "info", work)


if __name__ == "__main__":
    main()
