#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# install-system.sh "MAJOR ...": Python, busybox (crond) and PostgreSQL's clients. Run while the image is built.
# Without a MAJOR: the distribution's.
set -eu
umask 022
export DEBIAN_FRONTEND=noninteractive

available() { apt-cache show "postgresql-client-$1" > /dev/null 2>&1; }

# PGDG's signing key is in a package that Debian signs, so nothing has to be trusted that is fetched here.
add_pgdg() {
    . /etc/os-release
    apt-get download postgresql-common
    dpkg-deb -x postgresql-common_*.deb common
    install -D -m 0644 common/usr/share/postgresql-common/pgdg/apt.postgresql.org.asc /etc/apt/keyrings/pgdg.asc
    echo "deb [signed-by=/etc/apt/keyrings/pgdg.asc] http://apt.postgresql.org/pub/repos/apt $VERSION_CODENAME-pgdg main" \
        > /etc/apt/sources.list.d/pgdg.list
    apt-get update -o APT::Update::Error-Mode=any
}

work=$(mktemp -d)
chmod 0755 "$work" # apt's own user downloads into it
cd "$work"
apt-get update

majors=${1:-$(apt-cache depends postgresql-client | sed -n 's/.*Depends: postgresql-client-\([0-9]*\)$/\1/p')}
for major in $majors; do
    available "$major" || [ -e /etc/apt/sources.list.d/pgdg.list ] || add_pgdg ||
        { echo "PostgreSQL $major: this distribution has no such client, and PGDG cannot be reached" >&2; exit 1; }
    available "$major" || { echo "PostgreSQL $major: neither this distribution nor PGDG has such a client" >&2; exit 1; }
done

apt-get install -y --no-install-recommends busybox-static ca-certificates python3 python3-psycopg2
for major in $majors; do
    # Unpacked, not installed: postgresql-client-common would bring Perl (50 MB) only to choose a version, which the
    # engine does itself. The package is entered where scanners of small images look for it.
    apt-get download "postgresql-client-$major"
    package=$(ls postgresql-client-"$major"_*.deb)
    dpkg-deb -f "$package" Depends | tr ',' '\n' | sed 's/|.*//; s/(.*//; s/ //g; s/:any//' |
        grep -v '^postgresql-client-common$' | xargs apt-get install -y --no-install-recommends
    dpkg-deb -x "$package" client
    mkdir -p /usr/lib/postgresql /var/lib/dpkg/status.d
    rm -rf "client/usr/lib/postgresql/$major/lib" # pgxs, for those who compile extensions
    cp -a "client/usr/lib/postgresql/$major" /usr/lib/postgresql/
    dpkg-deb -f "$package" > "/var/lib/dpkg/status.d/postgresql-client-$major"
    rm -rf client
done

# On PATH is the newest: it reads what older servers have.
# shellcheck disable=SC2086 # a list
for program in /usr/lib/postgresql/"$(printf '%s\n' $majors | sort -n | tail -n 1)"/bin/*; do
    ln -s "$program" /usr/local/bin/
done
cd /
rm -rf "$work" /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/*-old /var/log/apt /var/log/dpkg.log
