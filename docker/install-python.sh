#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# install-python.sh [CA.pem]: requirements.txt into /out/lib and rclone into /out. Run while the image is built.
set -eu

if [ -n "${1:-}" ]; then
    # Beside the system's certificates: a proxy may inspect some hosts and not others.
    cat /etc/ssl/certs/ca-certificates.crt "$1" > /tmp/ca.pem
    export PIP_CERT=/tmp/ca.pem
fi
pip install --no-cache-dir --no-compile --disable-pip-version-check --only-binary :all: \
    --target /out/lib --requirement /build/requirements.txt
mv /out/lib/bin/rclone /out/rclone
rm -rf /out/lib/bin /tmp/ca.pem

# botocore describes every service of AWS in 27 MB; asked are S3 and what credentials can come from.
cd /out/lib/botocore/data
for service in */; do
    case "$service" in
        s3/ | sts/ | sso/ | sso-oidc/ | signin/) ;;
        *) rm -r "$service" ;;
    esac
done

# 11 MB of debugging symbols each; the cffi variant is for interpreters other than CPython.
rm /out/lib/zstandard/_cffi*.so
find /out/lib -name '*.so' -exec strip --strip-unneeded {} +
