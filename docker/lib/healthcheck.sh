#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Healthy when the last scheduled run succeeded in time, as the ledger says, and crond is there for the next one.
set -eu
grep -qsx crond /proc/[0-9]*/comm || { echo "crond is not running"; exit 1; }
exec setpriv --reuid pgbackup --regid pgbackup --init-groups pgbackup health
