# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# shellcheck shell=sh
# log LEVEL EVENT [FIELD JSON-VALUE]...: one line like the engine's own; INFO to stdout, the rest to stderr.
# To be read by other scripts with ".".

# A text as a JSON string. The quotes are put around it here: sed is not run on a text without a line.
quote() { printf '"%s"' "$(printf '%s' "$1" | tr '\000-\037' ' ' | sed 's/\\/\\\\/g; s/"/\\"/g')"; }

log() {
    line=$(printf '{"ts": "%s", "level": "%s", "event": "%s"' "$(date -u +%Y-%m-%dT%H:%M:%S.%3NZ)" "$1" "$2")
    level=$1
    shift 2
    while [ "$#" -gt 1 ]; do
        line="$line, \"$1\": $2"
        shift 2
    done
    if [ "$level" = INFO ]; then printf '%s}\n' "$line"; else printf '%s}\n' "$line" >&2; fi
}
