# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""docs/RECIPES.md and the README's command lines, run as they stand: inventories, playbooks, the timer's unit.

Replaced is what only a network has: the addresses of both servers and their ports, TLS, and what stands in a vault. The
recipes with containers are in tests/container and in Molecule's scenario `role`.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
import yaml

from tests.support import compare, fixture, servers
from tests.support.agekeys import KeyPair

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = (REPOSITORY / "docs" / "RECIPES.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", RECIPES, re.M | re.S))
PASSWORDS = {"backup": "password-backup", "staging": "password-staging"}


def block(section: str, start: str = "") -> str:
    """The one fenced block of a section that has this in it."""
    found = [text for text in re.findall(r"^```\w+\n(.*?)^```$", SECTIONS[section], re.M | re.S) if start in text]
    assert len(found) == 1, (section, start)
    return str(found[0])


def commands(text: str) -> List[str]:
    """The indented command lines, continued ones in one piece."""
    unfenced = re.sub(r"(?ms)^```.*?^```$", "", text)
    return [line.replace("\\\n", " ") for line in re.findall(r"(?m)^    (?! )((?:.*\\\n)*.*)$", unfenced)]


@pytest.fixture(scope="module")
def site() -> Iterator[Dict[str, Any]]:
    with servers.PostgresServer() as server, servers.S3Server() as s3:
        server.createdb("shop")
        fixture.run_file(server, "shop", "shop.sql", orders="300")
        server.psql("CREATE ROLE backup SUPERUSER LOGIN PASSWORD '%s'" % PASSWORDS["backup"])
        server.psql("CREATE ROLE staging CREATEDB LOGIN PASSWORD '%s'" % PASSWORDS["staging"])
        s3.make_bucket("company-backups")
        yield {"server": server, "s3": s3}


@pytest.fixture
def environ(site: Dict[str, Any], engine_env: Dict[str, str]) -> Dict[str, str]:
    """What the command needs to reach both servers."""
    server, s3 = site["server"], site["s3"]
    return {
        **engine_env,
        "POSTGRES_PORT": str(server.port),
        "POSTGRES_PASSWORD": server.password,
        "POSTGRES_BINDIR": server.bindir,
        "RCLONE_S3_ENDPOINT": s3.endpoint_url,
        "RCLONE_S3_ACCESS_KEY_ID": s3.access_key,
        "RCLONE_S3_SECRET_ACCESS_KEY": s3.secret_key,
    }


@pytest.fixture
def run(site: Dict[str, Any], ansible_env: Dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Run a recipe's ansible-playbook line with its inventory. `replaced`: variables with values of this machine."""
    server, s3 = site["server"], site["s3"]
    network = {
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "pgbackup_login_host": server.host,
        "pgbackup_login_port": server.port,
        "pgbackup_pg_bindir": server.bindir,
        "pgbackup_ssl_mode": "prefer",
        "pgbackup_ca_cert": "",
        "pgbackup_endpoint_url": s3.endpoint_url,
        "pgbackup_access_key": s3.access_key,
        "pgbackup_secret_key": s3.secret_key,
        **{"vault_%s_password" % role: password for role, password in PASSWORDS.items()},
    }

    def run_line(line: str, inventory: Dict[str, Any], **replaced: str) -> str:
        program, flag, name, *rest = shlex.split(line)
        assert (program, flag) == ("ansible-playbook", "-i")
        (tmp_path / name).write_text(yaml.safe_dump(inventory))
        (tmp_path / "here.json").write_text(json.dumps({**network, **replaced}))
        command = [str(Path(sys.executable).with_name(program)), flag, name, *rest, "-e", "@here.json"]
        env = dict(ansible_env, ANSIBLE_COLLECTIONS_PATH=str(REPOSITORY / "playbooks" / "collections"))
        done = subprocess.run(
            command, env=env, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        output = done.stdout.decode()
        assert done.returncode == 0, output
        (host,) = inventory["all"]["hosts"]
        assert re.search(r"^%s +: ok=\d+ +changed=1 " % re.escape(host), output, re.M), output
        return output

    return run_line


BASTION = yaml.safe_load(block("A managed database, from a bastion"))


def test_from_a_bastion_and_restored_once(
    run: Callable[..., str], site: Dict[str, Any], environ: Dict[str, str], start: Any
) -> None:
    server = site["server"]
    dated = {"POSTGRES_HOST": server.host, "POSTGRES_USER": server.user, "POSTGRES_DB": "shop"}
    dated.update(RCLONE_S3_BUCKET="company-backups", BACKUP_KEY="shop/shop_2026-01-31T02:00:00Z.sql.gz")
    assert start({**environ, **dated}, "backup").finish().code == 0  # from before the recipe's latest_before
    server.psql("CREATE TABLE later (a int)", "shop")
    (line,) = commands(SECTIONS["A managed database, from a bastion"])
    run(line, BASTION)
    assert len([key for key in site["s3"].keys("company-backups") if key.startswith("shop/")]) == 2
    server.psql("DROP TABLE later", "shop")
    (line,) = commands(SECTIONS["Restore once"])
    run(line, BASTION)
    assert compare.table_digests(server, "shop") == compare.table_digests(server, "shop_before")


def test_without_docker_and_restored_on_another_host(
    run: Callable[..., str], site: Dict[str, Any], environ: Dict[str, str], start: Any, tmp_path: Path
) -> None:
    server, section = site["server"], "Without Docker, by a systemd timer"
    unit = block(section, "[Service]")
    variables = dict(line.split("=", 1) for line in block(section, "POSTGRES_DB=").splitlines())
    here = {"POSTGRES_HOST": server.socket_dir, "POSTGRES_USER": server.user, "BACKUP_STATE_DIR": str(tmp_path)}
    assert set(here) <= set(variables)
    lines = [shlex.split(line) for line in re.findall(r"^ExecStart=(.*)$", unit, re.M)]
    assert [line[1:3] for line in lines] == [["-m", "_pgstream.main"]] * 2
    for _python, _m, _module, *arguments in lines:
        done = start({**environ, **variables, **here}, *arguments).finish()
        assert done.code == 0, done.err
    staging = yaml.safe_load(block("Restore to another host"))
    (line,) = commands(SECTIONS["Restore to another host"])
    run(line, staging)
    assert compare.table_digests(server, "shop") == compare.table_digests(server, "shop_staging")
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop_staging'"
    assert server.psql(owner).strip() == "staging"


def test_encrypted(run: Callable[..., str], site: Dict[str, Any], tmp_path: Path) -> None:
    pair, server = KeyPair(), site["server"]
    recipe = yaml.safe_load(block("Encrypted"))
    assert list(recipe["all"]["vars"]) == ["pgbackup_age_recipients"]
    recipe["all"]["vars"]["pgbackup_age_recipients"] = [pair.recipient]
    inventory = {"all": {**BASTION["all"], **recipe["all"]}}
    identity = tmp_path / "backup-key.txt"
    identity.write_text(pair.identity + "\n")
    (backup,) = commands(SECTIONS["A managed database, from a bastion"])
    run(backup, inventory)
    made, restore = commands(SECTIONS["Encrypted"])
    assert made == "age-keygen -o backup-key.txt"
    run(restore, inventory, pgbackup_age_identity_file=str(identity))
    assert compare.table_digests(server, "shop") == compare.table_digests(server, "shop_copy")
    server.dropdb("shop_copy")
    assert [key for key in site["s3"].keys("company-backups") if key.endswith(".age")]


def test_the_commands_of_the_readme(site: Dict[str, Any], environ: Dict[str, str], tmp_path: Path) -> None:
    """By a shell, from the checkout; the exports that name this machine's servers come after the README's own."""
    found = re.search(r"^## The command\n(.*?)^In the image", (REPOSITORY / "README.md").read_text(), re.M | re.S)
    assert found
    lines = commands(found.group(1))
    exports = [line for line in lines if line.startswith("export ")]
    assert len(exports) == 3 and len(lines) == 9
    server = site["server"]
    password = tmp_path / "pg"
    password.write_text(server.password)
    own = "export POSTGRES_HOST=%s POSTGRES_USER=%s POSTGRES_PASSWORD_FILE=%s" % (server.host, server.user, password)
    script = ["set -e", *exports, own, *(line for line in lines if line not in exports)]
    env = {name: value for name, value in environ.items() if name not in ("POSTGRES_PASSWORD", "PYTHONPATH")}
    env["PATH"] = str(Path(sys.executable).parent) + ":" + env["PATH"]
    done = subprocess.run(
        ["sh", "-c", "\n".join(script)],
        cwd=str(REPOSITORY), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout.decode()
    assert compare.table_digests(server, "shop") == compare.table_digests(server, "shop_copy")
    server.dropdb("shop_copy")
