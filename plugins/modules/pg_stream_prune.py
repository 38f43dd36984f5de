#!/usr/bin/python
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: pg_stream_prune
version_added: 0.1.0
author: the pgstream.backup authors (@pgstream)
short_description: Remove old backups of a PostgreSQL database from object storage
description:
  - Removes the backups of one database, or of the server's roles and tablespaces, that a retention policy does not
    keep, and says of each other one why it stays.
  - Never removed are the newest good backup, the last O(min_keep), backups of other databases or under other prefixes,
    objects of other names, objects that another tool wrote, and what the store protects by an object lock.
  - Filtered backups are a series of their own for each set of filters, to which the policy applies by itself. So the
    last backups with filters that are no more used stay until they are removed by hand.
  - Nothing is removed without a policy, when a backup claims to be made after now (a clock is wrong), when the listing
    is not complete, or when the newest good backup has no sound index.
  - In a bucket with versions the version that was listed is deleted for good, which takes the permission
    C(s3:DeleteObjectVersion).
  - Needs no connection to a PostgreSQL server. Let it follow a backup that succeeded.
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
      - Looks at everything a run looks at, and says what would be removed. What is under an object lock only the run
        finds out.
  diff_mode:
    support: full
  idempotent:
    support: full
  platform:
    support: full
options:
  login_db:
    description: Name of the database whose backups are pruned. Give this or O(globals).
    type: str
  globals:
    description: Prune the backups of roles and tablespaces instead, which
      O(pgstream.backup.pg_stream_backup#module:globals) makes.
    type: bool
    default: false
  correlation_id:
    description: Name of this run, to find it in other logs. Made up when not given.
    type: str
seealso:
  - module: pgstream.backup.pg_stream_backup
  - module: pgstream.backup.pg_stream_info
"""

EXAMPLES = r"""
- name: Keep a week of days, two months of weeks and a year of months
  pgstream.backup.pg_stream_prune:
    login_db: shop
    bucket: company-backups
    prefix: prod
    keep_daily: 7
    keep_weekly: 9
    keep_monthly: 12
  register: pruned

- name: Say how much that freed
  ansible.builtin.debug:
    msg: "{{ pruned.removed | length }} backups, {{ pruned.freed_bytes | human_readable }}"

- name: Keep what is younger than a month, and five in any case
  pgstream.backup.pg_stream_prune:
    login_db: shop
    bucket: company-backups
    keep_within: 30d
    min_keep: 5
"""

RETURN = r"""
operation:
  description: V(prune).
  returned: success
  type: str
  sample: prune
message:
  description: What was done, in a sentence.
  returned: success
  type: str
  sample: 3 backups removed, 28 kept
database:
  description: Name of the database.
  returned: success
  type: str
  sample: shop
correlation_id:
  description: Name of this run.
  returned: always
  type: str
  sample: 5f2c9a0b7d31
kept:
  description: The backups that stay, newest first.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Key of the backup.
      type: str
      sample: prod/shop_2026-01-31T02:00:00Z.sql.gz
    size:
      description: Size of the object in bytes.
      type: int
      sample: 412876123
    time:
      description: When the backup was begun, from the key. RFC 3339, UTC.
      type: str
      sample: "2026-01-31T02:00:00Z"
    why:
      description: What keeps it. The rules with the place or the period, V(minimum) and a number where only O(min_keep)
        does, V(foreign) for what another tool wrote, V(locked) for what the store protects, V(failed run) for
        filtered ones when the last filtered backup failed, V(no policy) without one.
      type: list
      elements: str
      sample: [last 1, daily 2026-01-31, monthly 2026-01]
removed:
  description: The backups that were removed, or in check mode would be, oldest first.
  returned: success
  type: list
  elements: dict
  contains:
    key:
      description: Key of the backup.
      type: str
      sample: prod/shop_2025-01-31T02:00:00Z.sql.gz
    size:
      description: Size of the object in bytes.
      type: int
      sample: 398211004
    time:
      description: When the backup was begun, from the key. RFC 3339, UTC.
      type: str
      sample: "2025-01-31T02:00:00Z"
freed_bytes:
  description: Size of the removed objects.
  returned: success
  type: int
  sample: 398211004
seconds:
  description: How long it took.
  returned: success
  type: float
  sample: 0.8
stage:
  description: Where the run failed.
  returned: failure
  type: str
  sample: removing backups
hint:
  description: What to do about the failure. It is part of the message too.
  returned: failure
  type: str
exit_code:
  description: Kind of the failure, as RV(pgstream.backup.pg_stream_backup#module:exit_code) has it.
  returned: failure
  type: int
  sample: 4
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.pgstream.backup.plugins.module_utils._args import prune_request
from ansible_collections.pgstream.backup.plugins.module_utils._pgstream.prune import predict_prune, prune
from ansible_collections.pgstream.backup.plugins.module_utils._run import prune_answer, require, run_module
from ansible_collections.pgstream.backup.plugins.module_utils._specs import PRUNE_SPEC


def work(module, log):
    request = prune_request(module.params)
    require(module, request.storage, postgres=False)
    verb = predict_prune if module.check_mode else prune
    return prune_answer(verb(request, log))


def main():
    module = AnsibleModule(argument_spec=PRUNE_SPEC, supports_check_mode=True)
    run_module(module, "prune", work)


if __name__ == "__main__":
    main()
