# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""How to reach PostgreSQL: the options of every module that connects to a server."""

from __future__ import annotations


class ModuleDocFragment:
    DOCUMENTATION = r"""
options:
  login_host:
    description:
      - Host name or address of the PostgreSQL server, as seen from the target host.
      - When empty, and O(login_unix_socket) is not given, the connection goes through the local socket, where libpq
        looks for it.
    type: str
    default: ""
    aliases: [host]
  login_unix_socket:
    description:
      - Directory of the server's local socket, if it is not where libpq looks for it.
      - Give this or O(login_host), not both.
    type: path
  login_port:
    description: Port of the server.
    type: int
    default: 5432
    aliases: [port]
  login_user:
    description:
      - Role to connect as.
      - When not given, libpq's own default is used, the name of the operating system's user. So
        C(become_user=postgres) and peer authentication over the local socket need no further option.
    type: str
  login_password:
    description:
      - Password of O(login_user).
      - When not given, libpq's own sources are used, such as the password file of the user who runs the module.
    type: str
  ssl_mode:
    description: How far the connection must be protected by TLS. Ignored on a local socket. The words are libpq's
      own.
    type: str
    default: prefer
    choices: [allow, disable, prefer, require, verify-ca, verify-full]
  ca_cert:
    description: File on the target host with the certificate authorities that may have signed the server's
      certificate.
    type: path
    aliases: [ssl_rootcert]
  ssl_cert:
    description: File on the target host with the client's certificate.
    type: path
  ssl_key:
    description: File on the target host with the client's private key.
    type: path
  connect_params:
    description:
      - Other libpq connection parameters, such as C(connect_timeout), C(target_session_attrs) or C(options).
      - Secrets such as C(password) and C(sslpassword) are refused here, because a dictionary is shown with the task.
    type: dict
    default: {}
  maintenance_db:
    description: Database to connect to for what cannot be done from inside the database itself, such as creating or
      renaming it.
    type: str
    default: postgres
  pg_bindir:
    description:
      - Directory on the target host with C(pg_dump), C(pg_restore), C(psql) and, for globals, C(pg_dumpall).
      - When not given, programs of the server's major version or newer are looked for in the usual places of
        distributions' packages, and on E(PATH).
    type: path
requirements:
  - PostgreSQL client programs (C(pg_dump), C(pg_restore), C(psql)) on the target host, of the server's major version
    or newer
  - psycopg2 (or psycopg2-binary) for the Python of the target host
"""
