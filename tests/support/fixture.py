# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Make the databases that the tests back up and restore."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Optional

from psycopg2 import sql
from psycopg2.extensions import make_dsn

from .compare import connect

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
EXTENSION_FILES = ("pgstream_fixture.control", "pgstream_fixture--1.0.sql")

OWNER = "pgstream \"own'er\""
READER = "pgstream_reader"
WRITER = "pgstream-Writer"
GROUP = "pgstream_group"

DATABASE_SETTINGS_SQL = '''
ALTER DATABASE {db} SET search_path = "pgstream-odd ""schema""", "$user", public, "with space", "com,ma", "sin'gle";
ALTER DATABASE {db} SET myapp.key = 'it''s "quoted"';
ALTER DATABASE {db} SET myapp.odd = E'back\\\\slash; -- \\n new line';
ALTER DATABASE {db} SET myapp.empty = '';
ALTER DATABASE {db} SET DateStyle = 'SQL, DMY';
ALTER DATABASE {db} SET IntervalStyle = 'sql_standard';
ALTER DATABASE {db} SET TimeZone = 'Asia/Kathmandu';
ALTER DATABASE {db} SET bytea_output = 'escape';
ALTER DATABASE {db} SET extra_float_digits = -3;
ALTER DATABASE {db} SET work_mem = '5MB';
ALTER DATABASE {db} SET statement_timeout = '10min';
ALTER DATABASE {db} SET default_text_search_config = 'pg_catalog.simple';
ALTER ROLE {owner} IN DATABASE {db} SET search_path = granted, "MixedCase";
ALTER ROLE {owner} IN DATABASE {db} SET myapp.key = 'the owner''s';
ALTER ROLE {reader} IN DATABASE {db} SET default_transaction_read_only = on;
ALTER ROLE {reader} IN DATABASE {db} SET statement_timeout = '1min';
COMMENT ON DATABASE {db} IS E'everything, it''s \\\\ "odd"\\nand has two lines';
REVOKE ALL ON DATABASE {db} FROM PUBLIC;
GRANT CONNECT ON DATABASE {db} TO {reader} WITH GRANT OPTION;
GRANT CONNECT, TEMPORARY ON DATABASE {db} TO {writer};
GRANT CREATE ON DATABASE {db} TO {group};
ALTER DATABASE {db} CONNECTION LIMIT 77;
'''

LATIN1_SQL = """
CREATE SCHEMA "sch\u00e9ma";
CREATE TYPE "sch\u00e9ma"."humeur \u00e9" AS ENUM ('g\u00eane', 'no\u00ebl');
CREATE TABLE "sch\u00e9ma"."\u00e9t\u00e9 \u00ff" (
    "cl\u00e9" int PRIMARY KEY, "donn\u00e9e" text, humeur "sch\u00e9ma"."humeur \u00e9"
);
INSERT INTO "sch\u00e9ma"."\u00e9t\u00e9 \u00ff"
SELECT g, 'byte ' || chr(g) || repeat(chr(g), g), 'no\u00ebl' FROM generate_series(1, 255) AS g;
COMMENT ON TABLE "sch\u00e9ma"."\u00e9t\u00e9 \u00ff" IS 'l''\u00e9t\u00e9 \u00a3\u00a9';
CREATE SEQUENCE "sch\u00e9ma"."s\u00e9quence" START WITH 5;
CREATE VIEW "sch\u00e9ma"."vue \u00e9" AS
SELECT '\u00e9'::text AS "\u00e8", "cl\u00e9" FROM "sch\u00e9ma"."\u00e9t\u00e9 \u00ff";
CREATE FUNCTION "sch\u00e9ma"."fa\u00e7ade"("\u00e0" int) RETURNS text LANGUAGE sql AS 'SELECT ''\u00fc\u00f1''::text';
"""

# Names and data are put together from bytes, as no client encoding could
# carry them: they are valid in no multi-byte encoding.
SQL_ASCII_SQL = """
CREATE SCHEMA plain;
CREATE TABLE plain.bytes (id int PRIMARY KEY, body text);
INSERT INTO plain.bytes SELECT g, 'byte ' || chr(g) || '.' FROM generate_series(1, 255) AS g;
INSERT INTO plain.bytes VALUES
    (300, chr(195) || chr(169)), (301, chr(195)), (302, chr(255) || chr(254)),
    (303, chr(237) || chr(160) || chr(128)), (304, chr(192) || chr(128));
INSERT INTO plain.bytes
SELECT 1000 + g, chr(128 + g % 128) || E'\\t\\\\.\\n' || chr(255 - g % 128) FROM generate_series(1, 200) AS g;
DO $do$
DECLARE
    odd text := 'odd ' || chr(233) || chr(255);
BEGIN
    EXECUTE format('CREATE SCHEMA %I', odd);
    EXECUTE format('CREATE TABLE %I.%1$I (id int, %1$I text DEFAULT %L)', odd, odd);
    EXECUTE format('INSERT INTO %I.%1$I (id) SELECT g FROM generate_series(1, 10) AS g', odd);
    EXECUTE format('COMMENT ON TABLE %I.%1$I IS %L', odd, odd);
    EXECUTE format('CREATE SEQUENCE %I.%I START WITH 3', odd, odd || ' sequence');
END
$do$;
"""


def install_extension(bindir: str, sharedir: Optional[str] = None) -> None:
    """Put the test extension where the server looks for extensions, if it is not there yet.

    Give the server's own SHAREDIR where it is known: not every build of the server comes with pg_config.
    """
    if sharedir is None:
        pg_config = os.path.join(bindir, "pg_config")
        output = subprocess.run([pg_config, "--sharedir"], stdout=subprocess.PIPE, check=True).stdout
        sharedir = os.fsdecode(output.rstrip(b"\n"))
    target = Path(sharedir) / "extension"
    for name in EXTENSION_FILES:
        content = (FIXTURES / "extension" / name).read_bytes()
        installed = target / name
        if installed.is_file() and installed.read_bytes() == content:
            continue
        if not os.access(target, os.W_OK):
            raise RuntimeError(f"cannot install the test extension: {target} is not writable")
        _replace(installed, content)


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file at once, as tests that run side by side install the same one."""
    handle, temporary = tempfile.mkstemp(dir=str(path.parent), prefix=".pgstream-")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, str(path))
    except BaseException:
        os.unlink(temporary)
        raise


def run_file(server: Any, db: str, name: str, **variables: str) -> None:
    """Run one of the fixture scripts with psql."""
    command = [os.path.join(server.bindir, "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1"]
    for variable, value in variables.items():
        command += ["-v", f"{variable}={value}"]
    command += ["-d", make_dsn(dbname=db), "-f", str(FIXTURES / name)]
    run = subprocess.run(command, env=server.env(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if run.returncode != 0:
        raise RuntimeError(f"{name} failed: {run.stdout.decode('utf-8', 'replace')}")


def _execute(server: Any, db: str, statement: sql.Composable) -> None:
    with connect(server, db) as connection, connection.cursor() as cursor:
        cursor.execute(statement)


def _set_database_properties(server: Any, db: str) -> None:
    """Give a database the settings, rights and comment that only its catalogue row carries."""
    names = {"db": db, "owner": OWNER, "reader": READER, "writer": WRITER, "group": GROUP}
    identifiers = {key: sql.Identifier(name) for key, name in names.items()}
    _execute(server, "postgres", sql.SQL(DATABASE_SETTINGS_SQL).format(**identifiers))


def _server_sharedir(server: Any) -> str:
    with connect(server, "postgres") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT setting FROM pg_config WHERE name = 'SHAREDIR'")
        return str(cursor.fetchone()[0])


def _utf8_ctype(server: Any) -> str:
    """Name a character type other than the collation, where the system has one, to see it kept apart."""
    with connect(server, "postgres") as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT collctype FROM pg_collation"
            " WHERE collprovider = 'c' AND lower(collctype) IN ('c.utf8', 'c.utf-8') LIMIT 1"
        )
        row = cursor.fetchone()
    return row[0] if row else "C"


def create_database(server: Any, db: str, encoding: str, ctype: str = "C", owner: str = "") -> None:
    """Create an empty database that takes nothing over from the cluster's defaults."""
    _execute(
        server,
        "postgres",
        sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE {}").format(
            sql.Identifier(db), sql.Identifier(owner or server.user), sql.Literal(encoding), sql.Literal(ctype)
        ),
    )


def load_everything(server: Any, db: str, portable: bool = False) -> None:
    """Create a UTF8 database with what real databases have.

    A portable one has no feature that depends on how the server was built, so it can be restored on any other build.
    """
    install_extension(server.bindir, _server_sharedir(server))
    run_file(server, "postgres", "roles.sql")
    create_database(server, db, "UTF8", _utf8_ctype(server), OWNER)
    run_file(server, db, "everything.sql", portable="true" if portable else "false")
    _set_database_properties(server, db)


def load_latin1(server: Any, db: str) -> None:
    """Create a LATIN1 database with names and data outside ASCII."""
    create_database(server, db, "LATIN1")
    _execute(server, db, sql.SQL(LATIN1_SQL))


def load_sql_ascii(server: Any, db: str) -> None:
    """Create a SQL_ASCII database with names and data that are not valid UTF-8."""
    create_database(server, db, "SQL_ASCII")
    _execute(server, db, sql.SQL(SQL_ASCII_SQL))
