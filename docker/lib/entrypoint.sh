#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Prepares /run/pgbackup, then runs the schedule (crond, the default) or any other command as the user pgbackup.
# Works as any user; only the schedule wants root.
set -eu
. /opt/pgbackup/bin/log.sh

run=/run/pgbackup
root=$([ "$(id -u)" = 0 ] && echo yes || echo no)

as_user() {
    if [ "$root" = yes ]; then setpriv --reuid pgbackup --regid pgbackup --init-groups "$@"; else "$@"; fi
}

# root's: the crontab. private/ is the jobs' user's: secrets, and marks of running jobs.
# shellcheck disable=SC2174 # only the last of it is made
if ! mkdir -p -m 0755 "$run" 2> /dev/null; then # neither root nor a writable /run
    run=$(mktemp -d /tmp/pgbackup.XXXXXX)
    [ "${RCLONE_CONFIG:-}" != /run/pgbackup/private/rclone.conf ] || export RCLONE_CONFIG="$run/private/rclone.conf"
fi
export PGBACKUP_RUN="$run"
if [ ! -d "$run/private" ]; then
    mkdir -m 0700 "$run/private"
    [ "$root" = no ] || chown pgbackup:pgbackup "$run/private"
fi

# A secret's file keeps the owner it has on the host. What root can read and the jobs' user cannot is copied for it.
only_root_reads() { [ "$root" = yes ] && [ -r "$1" ] && ! as_user test -r "$1"; }
# shellcheck disable=SC2016 # that shell's own
hand_over() { as_user sh -c 'umask 077 && cat > "$1.$$" && mv "$1.$$" "$1"' copy "$2" < "$1"; }
for name in $(env | sed -n 's/^\([A-Z][A-Z0-9_]*\)_FILE=.*/\1/p'); do
    file=''
    eval "file=\${${name}_FILE:-}"
    if only_root_reads "$file"; then
        hand_over "$file" "$run/private/$name"
        export "${name}_FILE=$run/private/$name"
    fi
done
if only_root_reads "${RCLONE_CONFIG:-}"; then
    # Once: rclone writes the tokens into it that it renews.
    [ -e "$run/private/remotes.conf" ] || hand_over "$RCLONE_CONFIG" "$run/private/remotes.conf"
    export RCLONE_CONFIG="$run/private/remotes.conf"
fi

as_user /opt/pgbackup/bin/rclone-conf.sh

if [ "${1:-crond}" = crond ]; then
    if [ "$root" = no ]; then
        log ERROR failed message '"crond needs root, to become the user of its jobs: run this container as root"'
        exit 2
    fi
    exec /opt/pgbackup/bin/scheduler.sh
fi
if [ "$root" = yes ]; then
    HOME=/tmp exec setpriv --reuid pgbackup --regid pgbackup --init-groups --inh-caps=-all "$@"
fi
exec "$@"
