#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs every tool of the image once, as the user that will; the build fails where this does.
set -eu
as_user() { setpriv --reuid pgbackup --regid pgbackup --init-groups "$@"; }

for bindir in /usr/lib/postgresql/*/bin; do
    for program in pg_dump pg_dumpall psql pg_restore pg_isready; do as_user "$bindir/$program" --version; done
done
as_user rclone version
as_user pgbackup --version
as_user pgbackup --help > /dev/null
# The C extensions, and the parts of botocore that were left.
cd /opt/pgbackup
PYTHONPATH=/opt/pgbackup/lib as_user python3 -c '
import boto3, cryptography.hazmat.primitives.ciphers.aead, isal.igzip, prometheus_client, psycopg2, zstandard
for service in ("s3", "sts", "sso", "sso-oidc"):
    boto3.client(service, region_name="eu-west-1")
'
crond --help 2>&1 | grep -q Foreground
