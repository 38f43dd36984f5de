# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What a module supports. The fragment says what each attribute means, the module says how far it goes."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options: {}
attributes:
  action_group:
    description:
      - Groups of modules whose options can be given once, in C(module_defaults).
      - C(group/pgstream.backup.pgstream) has every module and suits the storage options.
        C(group/pgstream.backup.postgres) has those that connect to a server and suits the connection options.
  check_mode:
    description: Says what would change, and changes nothing.
  diff_mode:
    description: Says in the difference what was changed, or in check mode would be.
  idempotent:
    description: Changes nothing when it is run a second time with the same options.
  platform:
    description: Operating systems of the target host.
    platforms: posix
"""
