#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# backup.sh [FLAG ...]: a backup of POSTGRES_DB, or of each of BACKUP_DATABASES, now.
exec pgbackup backup "$@"
