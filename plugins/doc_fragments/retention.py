# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backups are kept: the options of the modules that judge by a retention policy."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  keep_last:
    description:
      - Keep this many of the newest backups of the database.
      - What any of these rules keeps is kept. Without any of O(keep_last), O(keep_hourly), O(keep_daily),
        O(keep_weekly), O(keep_monthly), O(keep_yearly) and O(keep_within) there is no policy, and nothing is removed.
    type: int
    default: 0
  keep_hourly:
    description: Keep the newest backup of each of this many newest hours that have one.
    type: int
    default: 0
  keep_daily:
    description: Keep the newest backup of each of this many newest days that have one. Days are those of UTC.
    type: int
    default: 0
  keep_weekly:
    description: Keep the newest backup of each of this many newest weeks that have one. Weeks begin on Monday.
    type: int
    default: 0
  keep_monthly:
    description: Keep the newest backup of each of this many newest months that have one.
    type: int
    default: 0
  keep_yearly:
    description: Keep the newest backup of each of this many newest years that have one.
    type: int
    default: 0
  keep_within:
    description: Keep everything younger than this, such as V(36h) or V(14d).
    type: str
  min_keep:
    description:
      - Never leave fewer good backups of the database than this, the newest ones.
      - The default is no more than what never goes anyway, so that a policy keeps what it says. Give more with
        O(keep_within) alone, which after a long pause keeps nothing that is older than the pause.
    type: int
    default: 1
"""
