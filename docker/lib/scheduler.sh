#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# crond with a job at BACKUP_SCHEDULE, and one that verifies the newest backups at BACKUP_VERIFY_SCHEDULE; a missed
# backup first where BACKUP_CATCH_UP says so. Ends crond and, within 10 s, every running job when it is asked to stop.
set -eu
. /opt/pgbackup/bin/log.sh

crontabs=$PGBACKUP_RUN/crontabs
schedule=${BACKUP_SCHEDULE:-0 2 * * *}

# read_schedule NAME TEXT: sets fields.
read_schedule() {
    fields=$(python3 /opt/pgbackup/bin/due.py fields "$2" 2>&1) || {
        log ERROR failed message "$(quote "$1: $fields")" exit_code 2
        exit 2
    }
}
verify_fields=''
if [ -n "${BACKUP_VERIFY_SCHEDULE:-}" ]; then
    read_schedule BACKUP_VERIFY_SCHEDULE "$BACKUP_VERIFY_SCHEDULE"
    verify_fields=$fields
fi
read_schedule BACKUP_SCHEDULE "$schedule"
fault=$(python3 /opt/pgbackup/bin/due.py missed "$schedule" 2>&1) || {
    log ERROR failed message "$(quote "$fault")" exit_code 2
    exit 2
}

# shellcheck disable=SC2174 # only the last of it is made
mkdir -p -m 0755 "$crontabs"
jobs=$PGBACKUP_RUN/private/jobs
rm -rf "$jobs" # a container started again finds its old marks
setpriv --reuid pgbackup --regid pgbackup --init-groups mkdir -m 0700 "$jobs"
# The name of a crontab is the user its jobs run as. They inherit this environment, so no value is written here, and
# descriptors 3 and 4: the container's own stdout and stderr.
{
    echo "$fields python3 /opt/pgbackup/bin/job.py backup >&3 2>&4"
    [ -z "$verify_fields" ] || echo "$verify_fields python3 /opt/pgbackup/bin/job.py verify latest >&3 2>&4"
} > "$crontabs/pgbackup"
exec 3>&1 4>&2

# shellcheck disable=SC2329 # by a trap
stop() {
    trap '' TERM INT
    log INFO stopping
    kill "$crond" 2> /dev/null || true # first: no new job
    # A job ends its engine, which aborts its upload. Given up after 8 s: after 10 s Docker kills.
    for file in "$jobs"/*; do
        [ ! -e "$file" ] || kill -TERM "${file##*/}" 2> /dev/null || true
    done
    tries=80
    while [ "$tries" -gt 0 ] && [ -n "$(ls "$jobs")" ]; do
        sleep 0.1
        tries=$((tries - 1))
    done
    [ "$tries" -gt 0 ] || log ERROR killed detail '"a job did not end within 8 s"'
    exit 0
}

# crond has no JSON of its own. It is silent at this level unless something is wrong.
mkfifo -m 0600 "$PGBACKUP_RUN/crond.log"
exec 5<> "$PGBACKUP_RUN/crond.log" # by this shell, both ways: so no end waits for the other, and the name can go
rm "$PGBACKUP_RUN/crond.log"
while IFS= read -r text; do log WARNING crond message "$(quote "$text")"; done <&5 &
# Schedules are in UTC, as the times in keys and in the ledger: no hour is missed or comes twice.
TZ=UTC crond -f -l 9 -L /dev/stderr -c "$crontabs" >&5 2>&5 &
crond=$!
trap stop TERM INT
log INFO crond_started schedule "$(quote "$fields")" verify_schedule "$(quote "$verify_fields")" pid "$crond" user '"pgbackup"'

# The engine does nothing when the bucket has a backup younger than the time a run was last due.
missed=$(python3 /opt/pgbackup/bin/due.py missed "$schedule")
if [ -n "$missed" ]; then
    log INFO catch_up due_seconds_ago "$missed"
    BACKUP_START_DELAY='' setpriv --reuid pgbackup --regid pgbackup --init-groups \
        python3 /opt/pgbackup/bin/job.py backup --fresh-within "${missed}s" &
fi

# A signal ends a wait early: only crond's own end ends the container. 2>: dash would tell of a kill, not in JSON.
while kill -0 "$crond" 2> /dev/null; do wait "$crond" 2> /dev/null || true; done
log ERROR failed message '"crond ended by itself"' exit_code 1
exit 1
