#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Writes the remote "s3" of the RCLONE_S3_* variables to $RCLONE_CONFIG, so that `rclone ls s3:bucket` works here.
# A store that is itself a remote of rclone has a configuration of its own, which is left alone.
set -eu
umask 077
case "${BACKUP_STORE:-}" in rclone:*) exit 0 ;; esac

# The value of a variable, or of the file that NAME_FILE names.
value() { eval "printf '%s' \"\${$1:-}\"; file=\"\${$1_FILE:-}\""; [ -z "$file" ] || cat "$file"; }

{
    echo '[s3]'
    echo 'type = s3'
    echo "provider = ${RCLONE_S3_PROVIDER:-Other}"
    echo "endpoint = ${RCLONE_S3_ENDPOINT:-}"
    echo "region = ${RCLONE_S3_REGION:-}"
    echo 'env_auth = true'
    for name in ACCESS_KEY_ID SECRET_ACCESS_KEY SESSION_TOKEN; do
        printf '%s = %s\n' "$(echo $name | tr '[:upper:]' '[:lower:]')" "$(value RCLONE_S3_$name)"
    done
} > "$RCLONE_CONFIG"
