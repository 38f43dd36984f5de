# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A backup and a restore to look at (`make demo`): throw-away servers, the playbooks as a user runs them, a comparison.

It says in a few lines what it did, with the commands to type; -v adds all that ansible-playbook prints. The exit status
is 1 when a step fails or when anything differs. Whatever happens, no server and no file of it stays.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import yaml  # comes with ansible-core

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support import compare, fixture, servers  # noqa: E402 - after sys.path

BUCKET = "backups"
PLAIN = "shop_plain"
WIDTH = 112
State = Dict[str, Dict[Any, Any]]


class DemoError(Exception):
    """A step that did not do what it should; the text is for the reader."""


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("-v", "--verbose", action="store_true", help="show the whole output of ansible-playbook")
    parser.add_argument("--orders", type=int, default=30000, help="size of the shop (default %(default)s)")
    options = parser.parse_args(arguments)
    # A killed demo ends as an interrupted one does: through the `with` that stops the servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="pgstream-demo-") as home:
            os.chmod(home, 0o755)  # the server may run as another user, and its programs may have to be copied here
            tempfile.tempdir = home
            with servers.PostgresServer() as postgres, servers.S3Server() as s3:
                same = Demo(postgres, s3, Path(home), options.verbose).run(options.orders)
        print("\n%s. It took %.0f s; the servers are stopped and their files removed."
              % ("Done: everything is the same" if same else "FAILED: there are differences", time.monotonic() - began))
        return 0 if same else 1
    except (DemoError, RuntimeError) as error:
        print("\nFAILED: %s" % error, flush=True)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the servers are stopped.", flush=True)
        return 130


class Demo:
    """The steps, in order. `home` is ansible's home and holds the inventory; it goes with the demo."""

    def __init__(self, postgres: Any, s3: Any, home: Path, verbose: bool) -> None:
        self.postgres, self.s3, self.home, self.verbose = postgres, s3, home, verbose
        self.number = 0
        self.same = True

    def run(self, orders: int) -> bool:
        """True when nothing differs. Raises DemoError when a step fails."""
        version = "%d.%d" % divmod(self.postgres.version, 10000)
        print("pgstream.backup: a backup and a restore, on a PostgreSQL %s and an S3 server" % version)
        print("that were started for this, on 127.0.0.1 with files in a temporary directory.", flush=True)
        self.s3.make_bucket(BUCKET)
        self._write_inventory()

        with self._step("Make a database"):
            self.postgres.createdb("shop")
            fixture.run_file(self.postgres, "shop", "shop.sql", orders=str(orders))
            before = self._state("shop")
            size = int(self.postgres.psql("SELECT pg_database_size('shop')"))
            self._say("shop: %s, %.1f MB on the server's disk" % (_counted(before), size / 1e6))

        with self._step("Back it up"):
            said = self._playbook("backup.yml", "-e", "pgbackup_database=shop")
            self._say(_summary(said))
            key = self._only_key()

        with self._step("List the backups"):
            self._say(", ".join(_messages(self._playbook("list.yml"))))

        with self._step("Lose the database"):
            self._command(["dropdb", "shop"], lambda: self.postgres.dropdb("shop"))

        with self._step("Restore it"):
            said = self._playbook("restore.yml", "-e", "backup_key=" + key, "-e", "create=true")
            self._say(_summary(said))
            self._compare(before, self._state("shop"))

        with self._step("Restore it without this collection, by standard tools alone"):
            self._command(["createdb", PLAIN], lambda: self.postgres.createdb(PLAIN))
            self._plain_restore(key)
            after = self._state(PLAIN)
            for state in (before, after):  # a database's own properties are no part of an SQL script
                state.pop("database property")
            self._compare(before, after)
        return self.same

    # -- steps

    def _playbook(self, name: str, *arguments: str) -> str:
        """Run one of the collection's playbooks as from a shell; what it printed. DemoError shows it if it fails."""
        command = ["ansible-playbook", "-i", "inventory.yml", "playbooks/" + name, *arguments]
        program = str(Path(sys.executable).with_name("ansible-playbook"))
        argv = [program, "-i", str(self.home / "inventory.yml"), *command[3:]]
        return self._command(command, lambda: self._run(argv))

    def _run(self, argv: List[str]) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "PG", "AWS_"))}
        env = dict(kept, ANSIBLE_HOME=str(self.home / "ansible"), ANSIBLE_LOCALHOST_WARNING="false", LC_ALL="C.UTF-8",
                   ANSIBLE_NOCOLOR="true", ANSIBLE_REMOTE_TMP=str(self.home / "remote"))
        env["ANSIBLE_CONFIG"] = str(self.home / "ansible.cfg")  # the user's own settings are none of this
        process = subprocess.Popen(argv, cwd=str(REPOSITORY), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT)
        try:
            said = process.communicate()[0].decode("utf-8", "replace")
        except BaseException:
            process.terminate()  # not killed: ansible-playbook has to end its own children
            process.communicate()
            raise
        if process.returncode:
            raise DemoError("%s ended with status %d:\n%s" % (argv[3], process.returncode, said))
        if self.verbose:
            print(textwrap.indent(said.strip(), "   | "), flush=True)
        return said

    def _plain_restore(self, key: str) -> None:
        """`rclone cat | gunzip | psql`, and nothing of ours: each program must end well."""
        psql = ["psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", PLAIN]
        cat = ["rclone", "cat", "s3:%s/%s" % (BUCKET, key)]
        print("   $ %s" % _shown(cat, ["gunzip"], psql), flush=True)
        env = self.postgres.env(PLAIN)
        cat_env = dict(env, RCLONE_CONFIG=str(self.home / "rclone.conf"), RCLONE_CONFIG_S3_TYPE="s3",
                       RCLONE_CONFIG_S3_PROVIDER="Rclone", RCLONE_CONFIG_S3_ENDPOINT=self.s3.endpoint_url,
                       RCLONE_CONFIG_S3_ACCESS_KEY_ID=self.s3.access_key,
                       RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=self.s3.secret_key)
        pipe = subprocess.PIPE
        with tempfile.TemporaryFile() as said:
            first = subprocess.Popen([servers.find_rclone(), *cat[1:]], env=cat_env, stdout=pipe, stderr=said)
            second = subprocess.Popen(["gunzip"], stdin=first.stdout, stdout=pipe, stderr=said)
            last = subprocess.Popen([os.path.join(self.postgres.bindir, "psql"), "-X", *psql[1:]], env=env,
                                    stdin=second.stdout, stdout=subprocess.DEVNULL, stderr=said)
            for process in (first, second):  # held by the next program now: a broken pipe must be seen
                assert process.stdout is not None
                process.stdout.close()
            codes = [process.wait() for process in (last, second, first)]
            if any(codes):
                said.seek(0)
                why = said.read().decode("utf-8", "replace")
                raise DemoError("psql, gunzip and rclone ended with %s: %s" % (codes, why))

    def _only_key(self) -> str:
        keys = self.s3.keys(BUCKET)
        if len(keys) != 1:
            raise DemoError("the bucket holds %s, not one object" % (keys or "nothing"))
        return str(keys[0])

    def _write_inventory(self) -> None:
        host = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "pgbackup_login_host": self.postgres.host,
            "pgbackup_login_port": self.postgres.port,
            "pgbackup_login_user": self.postgres.user,
            "pgbackup_login_password": self.postgres.password,
            "pgbackup_pg_bindir": self.postgres.bindir,
            "pgbackup_endpoint_url": self.s3.endpoint_url,
            "pgbackup_access_key": self.s3.access_key,
            "pgbackup_secret_key": self.s3.secret_key,
            "pgbackup_bucket": BUCKET,
        }
        path = self.home / "inventory.yml"
        path.touch(0o600)
        path.write_text(yaml.safe_dump({"all": {"hosts": {"db1": host}}}))
        (self.home / "ansible.cfg").touch()

    # -- comparison

    def _state(self, database: str) -> State:
        """All that is compared, read before the database is dropped."""
        definitions = compare.schema_text(self.postgres, database).split("\n")
        return {
            "definition": dict(enumerate(definitions)),
            "table": dict(compare.table_digests(self.postgres, database)),
            "sequence": dict(compare.sequence_values(self.postgres, database)),
            "large object": dict(compare.large_objects(self.postgres, database)),
            "database property": dict(compare.database_properties(self.postgres, database)),
        }

    def _compare(self, before: State, after: State) -> None:
        found = [
            "%s %s: %r, now %r" % (kind, name, before[kind].get(name), after[kind].get(name))
            for kind in before
            for name in sorted(set(before[kind]) | set(after[kind]), key=str)
            if before[kind].get(name) != after[kind].get(name)
        ]
        if found:
            self.same = False
            self._say("%d DIFFERENCES: %s" % (len(found), "; ".join(found[:10])))
        else:
            what = "definitions" + (", owner, settings and comment" if "database property" in before else "")
            self._say("compared with the original: the same %s, the same %s" % (_counted(after), what))

    # -- what the reader sees

    def _step(self, title: str) -> "_Step":
        self.number += 1
        return _Step("%d. %s" % (self.number, title))

    def _say(self, text: str) -> None:
        print(textwrap.fill(text, WIDTH, initial_indent="   ", subsequent_indent="     ", break_on_hyphens=False,
                            break_long_words=False), flush=True)

    def _command(self, shown: Sequence[str], work: Callable[[], Any]) -> Any:
        print("   $ " + _shown(shown), flush=True)
        return work()


class _Step:
    """Prints a title, and at the end of the block how long it took."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> None:
        self._began = time.monotonic()
        print("\n" + self._title, flush=True)

    def __exit__(self, kind: Any, _error: Any, _trace: Any) -> None:
        if kind is None:
            print("   %.1f s" % (time.monotonic() - self._began), flush=True)


def _shown(*commands: Sequence[str]) -> str:
    return " | ".join(" ".join(shlex.quote(word) for word in command) for command in commands)


def _messages(said: str) -> List[str]:
    """What the playbook's own summary says: the texts of its `debug` tasks."""
    found: List[str] = []
    for one, several in re.findall(r'"msg": (?:"((?:[^"\\]|\\.)*)"|\[([^\]]*)\])', said):
        found += [one] if one else re.findall(r'"((?:[^"\\]|\\.)*)"', several)
    return found


def _summary(said: str) -> str:
    messages = _messages(said)
    if not messages:
        raise DemoError("the playbook printed no summary:\n" + said)
    return messages[-1]


def _counted(state: State) -> str:
    tables = state["table"]
    rows = sum(digest.rows for digest in tables.values())
    parts: List[Tuple[int, str]] = [(rows, "row"), (len(tables), "table"), (len(state["sequence"]), "sequence")]
    parts.append((len(state["large object"]), "large object"))
    texts = ["{:,} {}{}".format(count, name, "" if count == 1 else "s") for count, name in parts]
    return "%s in %s (with the materialized view), %s and %s" % tuple(texts)


if __name__ == "__main__":
    sys.exit(main())
