#!/usr/bin/env bash
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Makes the cluster on the first start, as POSTGRES_USER, POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, POSTGRES_DB,
# POSTGRES_INITDB_ARGS and /docker-entrypoint-initdb.d/*.sql|*.sh say; then runs PostgreSQL as the user postgres.
set -euo pipefail

if [ "${1:0:1}" = - ]; then set -- postgres "$@"; fi
if [ "$1" != postgres ]; then exec "$@"; fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
password=${POSTGRES_PASSWORD:-}
if [ -n "${POSTGRES_PASSWORD_FILE:-}" ]; then password=$(< "$POSTGRES_PASSWORD_FILE"); fi
unset POSTGRES_PASSWORD

as_postgres() { setpriv --reuid postgres --regid postgres --init-groups "$@"; }

mkdir -p "$PGDATA" /var/run/postgresql
chown postgres:postgres "$PGDATA" /var/run/postgresql
chmod 0700 "$PGDATA"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "$password" ]; then
        echo "no password: set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE" >&2
        exit 1
    fi
    # read -a: the arguments of initdb are words.
    read -r -a arguments <<< "${POSTGRES_INITDB_ARGS:-}"
    pwfile=$(as_postgres mktemp) # root's pipes cannot be opened by postgres
    printf '%s\n' "$password" > "$pwfile"
    as_postgres initdb --username "$user" --pwfile "$pwfile" --auth-host scram-sha-256 \
        --auth-local trust "${arguments[@]}"
    rm "$pwfile"
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    # Without TCP while it is made ready: nobody shall take it for the server that is to come.
    as_postgres pg_ctl -w -o "-c listen_addresses=" start
    if [ "$database" != postgres ]; then as_postgres createdb -U "$user" "$database"; fi
    for file in /docker-entrypoint-initdb.d/*; do
        case "$file" in
            *.sh) . "$file" ;;
            *.sql) as_postgres psql -v ON_ERROR_STOP=1 -U "$user" -d "$database" < "$file" ;;
        esac
    done
    as_postgres pg_ctl -w -m fast stop
fi
shift
exec setpriv --reuid postgres --regid postgres --init-groups postgres -c "listen_addresses=*" \
    -c "unix_socket_directories=/var/run/postgresql" "$@"
