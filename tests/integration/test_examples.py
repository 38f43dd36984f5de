# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The EXAMPLES of each module, and the tasks that the README shows, run as they stand against real servers.

What they name is made: the database, the roles, the buckets, the backup. Replaced is what only a network has, in
REPLACED; nothing here connects by a socket as another user, so become is left out.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
import yaml

from tests.support import fixture, servers

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = REPOSITORY / "plugins" / "modules"
DATED = "shop_2026-01-31T02:00:00Z.sql.gz"  # the backup that an example restores by its key
REPLACED = ("login_host", "endpoint_url", "ssl_mode", "directory")
#: Of the vaults, and the role whose password it is; those of S3 are no role's.
VAULT = {"vault_pg_password": "backup", "vault_staging_password": "staging", "vault_drill_password": "drill"}
Tasks = List[Dict[str, Any]]


@pytest.fixture(scope="module")
def site() -> Iterator[Dict[str, Any]]:
    """The servers, with all that the examples take for granted."""
    with servers.PostgresServer() as server, servers.S3Server() as s3:
        server.createdb("shop")
        fixture.run_file(server, "shop", "shop.sql", orders="300")
        server.psql("CREATE SCHEMA audit; CREATE TABLE audit.log (x int); CREATE TABLE public.search_cache ()", "shop")
        server.psql("CREATE ROLE backup LOGIN BYPASSRLS PASSWORD 'password-backup' IN ROLE pg_read_all_data")
        server.psql("ALTER ROLE backup SET lo_compat_privileges = on")  # as docs/SECURITY.md has it
        for table in ("sales.orders", "sales.order_items"):  # restored by name, of themselves
            server.psql("CREATE TABLE %s AS SELECT g AS id FROM generate_series(1, 50) g" % table, "shop")
        for role in ("staging", "drill"):
            server.psql("CREATE ROLE %s LOGIN CREATEDB PASSWORD 'password-%s'" % (role, role))
        for bucket in ("company-backups", "backups"):
            s3.make_bucket(bucket)
        yield {"server": server, "s3": s3}


@pytest.fixture
def run(site: Dict[str, Any], ansible_env: Dict[str, str], tmp_path: Path) -> Callable[[Tasks], str]:
    """Run tasks in one play. Each of them must have been run, and none may have failed. The output is that of -v."""
    server, s3 = site["server"], site["s3"]
    directory = tmp_path / "mount"
    directory.mkdir()
    values = dict(zip(REPLACED, (server.host, s3.endpoint_url, "prefer", str(directory))))
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "module_defaults": {
            "group/pgstream.backup.postgres": {
                "login_host": server.host,
                "login_port": server.port,
                "login_user": server.user,
                "login_password": server.password,
                "pg_bindir": server.bindir,
            },
            "group/pgstream.backup.pgstream": {
                "endpoint_url": s3.endpoint_url,
                "access_key": s3.access_key,
                "secret_key": s3.secret_key,
            },
        },
        "vars": {
            "ansible_python_interpreter": sys.executable,
            "vault_s3_access_key": s3.access_key,
            "vault_s3_secret_key": s3.secret_key,
            **{name: "password-" + role for name, role in VAULT.items()},
        },
    }

    def run_tasks(tasks: Tasks) -> str:
        path = tmp_path / "play.json"
        path.write_text(json.dumps([{**play, "tasks": [adapted(task, values) for task in tasks]}]))
        env = dict(ansible_env, ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "playbooks" / "collections"))
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-v", str(path)]
        done = subprocess.run(
            command, env=env, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        output = done.stdout.decode()
        assert done.returncode == 0, output
        ok = re.search(r"^localhost +: ok=(\d+) ", output, re.MULTILINE)
        assert ok and int(ok.group(1)) == len(tasks), output
        return output

    return run_tasks


def adapted(task: Dict[str, Any], values: Dict[str, str]) -> Dict[str, Any]:
    kept = {name: value for name, value in task.items() if not name.startswith("become")}
    for name, options in kept.items():
        if name.startswith("pgstream.backup."):
            kept[name] = {option: values.get(option, value) for option, value in options.items()}
    return kept


def examples(module: str) -> Tasks:
    text = (MODULES / (module + ".py")).read_text()
    found = re.search(r'^EXAMPLES = r"""\n(.*?)^"""', text, re.MULTILINE | re.DOTALL)
    assert found
    tasks: Tasks = yaml.safe_load(found.group(1))
    assert len([task for task in tasks if "pgstream.backup." + module in task]) >= 2
    return tasks


def back_up(key: str = "", prefix: str = "prod") -> Dict[str, Any]:
    options = {"login_db": "shop", "bucket": "company-backups", "prefix": prefix, "backup_key": key}
    return {"name": "Set up", "pgstream.backup.pg_stream_backup": {**options, "overwrite": "always"}}


def databases(server: servers.PostgresServer) -> List[str]:
    return sorted(server.psql("SELECT datname FROM pg_database WHERE datname LIKE 'shop%'").split())


def test_each_module_has_its_test_here() -> None:
    assert {path.stem for path in MODULES.glob("*.py")} == set(
        "pg_stream_" + name for name in ("backup", "info", "prune", "restore", "verify")
    )


def test_backup(run: Callable[[Tasks], str], site: Dict[str, Any], tmp_path: Path) -> None:
    tasks = examples("pg_stream_backup")
    run(tasks)
    assert (tmp_path / "mount" / "releases" / "shop-4.2.sql.zst").stat().st_size > 0
    assert len(site["s3"].keys("backups")) == 1


def test_info_and_verify(run: Callable[[Tasks], str], site: Dict[str, Any]) -> None:
    output = run([back_up(DATED), *examples("pg_stream_info"), *examples("pg_stream_verify")])
    assert "prod/" + DATED in output
    assert databases(site["server"]) == ["shop"]


def test_prune(run: Callable[[Tasks], str], site: Dict[str, Any]) -> None:
    run([back_up(DATED), back_up("", ""), *examples("pg_stream_prune")])
    assert [key for key in site["s3"].keys("company-backups") if "/" not in key]


def test_restore_and_the_readme(run: Callable[[Tasks], str], site: Dict[str, Any]) -> None:
    """The first example restores what was lost; the README's last task replaces what the last example made."""
    server = site["server"]
    run([back_up(DATED), back_up("")])
    server.dropdb("shop")
    *whole, emptied, copy = examples("pg_stream_restore")
    run(whole)
    server.psql("TRUNCATE sales.orders, sales.order_items", "shop")
    run([emptied, copy])
    assert server.psql("SELECT count(*) FROM sales.orders, sales.order_items", "shop").strip() == "2500"
    made = databases(server)
    assert made[0] == "shop" and "shop_staging" in made and len(made) == 3  # and the one that was replaced
    (copied, original) = (server.psql("SELECT count(*) FROM sales.line", name) for name in ("shop_staging", "shop"))
    assert copied == original != "0"
    shown = re.search(r"^## Modules\n\n```yaml\n(.*?)^```", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    assert shown
    run(yaml.safe_load(shown.group(1)))
    assert len(databases(server)) == 4
