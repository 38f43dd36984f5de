#!/bin/sh
# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# job.sh VERB [FLAG ...]: one scheduled run of the engine, for each database in turn: an optional random delay, the
# runs, the exit status of each as a line. That of the first run that failed is the job's own. A good backup is followed
# by a run of `prune` if there is a retention policy. With BACKUP_GLOBALS the same follows of roles and tablespaces.
# While it runs, a file named after its process id stands in jobs/, for whoever wants to stop it.
set -u
. /opt/pgbackup/bin/log.sh

mark=$PGBACKUP_RUN/private/jobs/$$
child=''
stopped=''
stop() {
    stopped=yes
    [ -z "$child" ] || kill -TERM "$child" 2> /dev/null
}
trap stop TERM INT HUP
trap 'rm -f "$mark"' EXIT
: > "$mark"

# await: until the child has ended; a signal interrupts a wait. Sets status. 2>: dash would tell of a kill, not in JSON.
await() {
    [ -z "$stopped" ] || stop # asked before the child was known
    status=0
    wait "$child" 2> /dev/null || status=$?
    while kill -0 "$child" 2> /dev/null; do
        status=0
        wait "$child" 2> /dev/null || status=$?
    done
    child=''
}

# report VERB: of the run that ended. Its start is in `began`.
report() {
    case $status in
        0) level=INFO ;;
        8) level=WARNING ;; # another run of this database holds the lock: nothing is lost
        *) level=ERROR ;;
    esac
    log $level job_finished verb "$(quote "$1")" database "$(quote "${POSTGRES_DB:-}")" exit_code "$status" \
        seconds "$(($(date +%s) - began))"
    # A lock held elsewhere is worth less than any other failure.
    case $worst in 0 | 8) [ "$status" = 0 ] || worst=$status ;; esac
    # One monitor for several databases: the next one's success must not be the last that it hears.
    case $worst in 0 | 8) ;; *) export BACKUP_JOB_FAILED=1 ;; esac
}

run() {
    began=$(date +%s)
    pgbackup "$@" &
    child=$!
    await
    report "$1"
}

# Empty without a policy: a rule of 0 keeps nothing.
policy="${BACKUP_KEEP_LAST:-}${BACKUP_KEEP_HOURLY:-}${BACKUP_KEEP_DAILY:-}${BACKUP_KEEP_WEEKLY:-}"
policy=$(printf %s "$policy${BACKUP_KEEP_MONTHLY:-}${BACKUP_KEEP_YEARLY:-}${BACKUP_KEEP_WITHIN:-}" | tr -d 0)

worst=0
began=$(date +%s)
if [ -n "${BACKUP_START_DELAY:-}" ]; then
    # Many hosts with one schedule shall not meet at one store.
    delay=$(python3 /opt/pgbackup/bin/due.py delay "$BACKUP_START_DELAY") || delay=0
    log INFO job_delayed verb "$(quote "$1")" seconds "$delay"
    sleep "$delay" &
    child=$!
    await
fi

python3 /opt/pgbackup/bin/databases.py "$1" > "$mark" &
child=$!
await
if [ -n "$stopped" ]; then status=143; fi # 128 + SIGTERM, as if the run had begun
if [ "$status" != 0 ]; then
    report "$1"
    exit "$status"
fi

names=$(cat "$mark")
IFS='
'
set -f
case $(printf %s "${BACKUP_GLOBALS:-}" | tr '[:upper:]' '[:lower:]') in
    true | yes | 1 | on) globals=yes ;;
    *) globals='' ;;
esac
unset BACKUP_DATABASES BACKUP_ALL_DATABASES BACKUP_EXCLUDE_DATABASES BACKUP_GLOBALS # each run below is for one of them
for POSTGRES_DB in ${names:-""}; do # no name at all is for the engine to name among what is missing
    export POSTGRES_DB
    run "$@"
    [ -z "$stopped" ] || break
    if [ "$1" = backup ] && [ "$status" = 0 ] && [ -n "$policy" ]; then run prune; fi
    [ -z "$stopped" ] || break
done
if [ -n "$globals" ] && [ -z "$stopped" ]; then
    export POSTGRES_DB=
    if [ "$1" = backup ]; then
        run "$@" --globals-only
        if [ "$status" = 0 ] && [ -n "$policy" ] && [ -z "$stopped" ]; then run prune --globals; fi
    elif [ "$1" = verify ]; then
        run "$@" --globals --level content # no server to restore them on
    fi
fi
exit "$worst"
