# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Who is told how a run went: the options of the modules whose runs are scheduled."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  ping_url:
    description:
      - URL of a monitor that waits for a sign of life, such as a check of healthchecks.io. It gets a POST at the end of
        a good run, at the URL with C(/fail) added after a failed one, and with C(/start) added at the beginning.
      - C({database}), C({operation}) and C({exit_code}) in it are replaced. With the last one nothing is added to it.
        A monitor sees one run after the other, so tasks for one database each need checks of their own, C({database})
        in the URL. A task for several databases tells once how all went, or with C({database}) of each, the globals
        as C(globals).
      - It is a secret, as whoever knows it can use it. A monitor that cannot be reached is a warning and no failure,
        and the end of a run waits 7 seconds for it at the most. The same is true of O(webhook_url).
    type: str
  webhook_url:
    description:
      - URL that gets a POST with the result as JSON, and with C(event), C(host) and C(text), a sentence that Slack and
        its like show.
    type: str
  notify:
    description: What O(ping_url) and O(webhook_url) are told of.
    type: list
    elements: str
    default: [success, failure]
    choices: [start, success, failure]
notes:
  - Nothing is told in check mode.
"""
