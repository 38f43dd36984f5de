# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role says each thing in several places: defaults, argument_specs, README, compose template. Here they agree."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLE = REPOSITORY / "roles" / "pgbackup"
PACK = ROLE / "files" / "pack_context.py"
IMAGE_OF = ROLE / "files" / "image_of_archive.py"


def load(name):
    return yaml.safe_load((ROLE / name).read_text())


DEFAULTS = load("defaults/main.yml")
OPTIONS = load("meta/argument_specs.yml")["argument_specs"]["main"]["options"]


def typed(value):
    """True is not 1 here."""
    return type(value).__name__, value


def test_there_are_variables():
    assert len(DEFAULTS) > 30


def test_defaults_and_argument_specs_agree_in_keys_and_values():
    specified = {name: typed(option["default"]) for name, option in OPTIONS.items()}
    assert specified == {name: typed(value) for name, value in DEFAULTS.items()}


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_default_is_what_its_own_specification_allows(name):
    option, kinds = (
        OPTIONS[name],
        {"str": str, "path": str, "bool": bool, "int": int, "float": float, "list": list, "dict": dict},
    )
    assert (type(option["default"]),) == (kinds[option["type"]],)
    values = option["default"] if option["type"] == "list" else [option["default"]]
    assert set(map(str, values)) <= set(map(str, option.get("choices", values)))


def test_the_table_of_the_readme_has_each_variable_with_its_default():
    rows = re.findall(
        r"^\| `(pgbackup_\w+)` \| (?:`(.*?)`)? ?\| .{10,} \|$", (ROLE / "README.md").read_text(), re.MULTILINE
    )
    assert {name: typed(yaml.safe_load(shown) if shown else "") for name, shown in rows} == {
        name: typed(value) for name, value in DEFAULTS.items()
    }


def test_every_variable_does_something_and_every_one_used_is_known():
    """A variable of the role is one of defaults, of vars, or registered or set by a task."""
    texts = [path.read_text() for place in ("tasks", "templates", "vars") for path in (ROLE / place).iterdir()]
    used = set(re.findall(r"\bpgbackup_[a-z0-9_]+", "\n".join(texts)))
    made = set(re.findall(r"(?:register: |^ +)(pgbackup_[a-z0-9_]+)(?=$|:)", "\n".join(texts), re.MULTILINE))
    assert set(DEFAULTS) - used == set()
    assert used - set(DEFAULTS) - set(load("vars/main.yml")) - made == set()


def test_secrets_are_marked_and_none_has_a_default():
    secret = {name for name, option in OPTIONS.items() if option.get("no_log")}
    inside = json.dumps(load("vars/main.yml")["pgbackup_secrets"])
    assert secret == set(re.findall(r"pgbackup_[a-z_]+", inside))
    assert {DEFAULTS[name] for name in secret} == {""}


def test_the_compose_file_never_names_a_secrets_value():
    text = (ROLE / "templates" / "compose.yml.j2").read_text()
    assert ".value" not in text
    assert not [name for name, option in OPTIONS.items() if option.get("no_log") and name in text]


def test_the_playbooks_call_things_by_the_same_names():
    """An inventory serves the role and the playbooks; what only the role has is about the service."""
    known = set(re.findall(r"\bpgbackup_\w+", (REPOSITORY / "playbooks" / "backup.yml").read_text()))
    shared = {
        name
        for name in DEFAULTS
        if re.match(
            r"pgbackup_(login_|ssl_|bucket|rclone_(remote|config)$|prefix|endpoint|region|access|secret|session|aws)",
            name,
        )
    }
    assert len(shared) > 10
    assert shared - known == set()


def played(tmp_path, tasks, **variables):
    """Run tasks on this machine with the role's defaults, vars and these variables; status and output."""
    given = {**DEFAULTS, **load("vars/main.yml"), "pgbackup_secret_files": {"results": []}, **variables}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": given, "tasks": tasks}
    (tmp_path / "play.json").write_text(json.dumps([play]))
    (tmp_path / "ansible.cfg").touch()
    env = dict(os.environ, ANSIBLE_CONFIG=str(tmp_path / "ansible.cfg"), ANSIBLE_HOME=str(tmp_path), LC_ALL="C.UTF-8")
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    done = subprocess.run(
        [program, str(tmp_path / "play.json")], env=env, capture_output=True, text=True, check=False, cwd=str(tmp_path)
    )
    return done.returncode, done.stdout + done.stderr


def rendered(tmp_path, **variables):
    """The compose file."""
    source, target = str(ROLE / "templates" / "compose.yml.j2"), tmp_path / "compose.yml"
    task = {"ansible.builtin.template": {"src": source, "dest": str(target), "mode": "0600"}}
    python = {"ansible_python_interpreter": sys.executable, "pgbackup_databases": ["shop"], "ansible_managed": ""}
    status, output = played(tmp_path, [task], **{**python, **variables})
    assert status == 0, output
    return yaml.safe_load(target.read_text())


def test_an_rclone_remote_reaches_the_container(tmp_path):
    """Its configuration is mounted, from the text that was given or from the host's own file."""
    remote = {"pgbackup_rclone_remote": "box:a/b", "pgbackup_prefix": "p"}
    for given, file in (
        ({"pgbackup_rclone_config_content": "[box]\npass = rclone-secret"}, "./secrets/rclone_config"),
        ({"pgbackup_rclone_config": "/etc/rclone.conf"}, "/etc/rclone.conf"),
    ):
        compose = rendered(tmp_path, **remote, **given, pgbackup_age_recipients=["age1a", "age1b"])
        assert "rclone-secret" not in json.dumps(compose)
        assert compose["secrets"] == {"rclone_config": {"file": file}}
        for service in compose["services"].values():
            found = {name: value for name, value in service["environment"].items() if "KEEP" not in name}
            assert (found["BACKUP_STORE"], found["BACKUP_PREFIX"]) == ("rclone:box:a/b", "p")
            assert found["RCLONE_CONFIG"] == "/run/secrets/rclone_config" and service["secrets"] == ["rclone_config"]
            assert found["BACKUP_AGE_RECIPIENTS"] == "age1a age1b"
            assert not [name for name in found if "S3" in name]


def test_the_other_secrets_are_named_by_files(tmp_path):
    compose = rendered(tmp_path, pgbackup_bucket="b", pgbackup_login_password="x", pgbackup_age_identity="y")
    found = compose["services"]["pgbackup"]["environment"]
    assert found["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres_password"
    assert found["BACKUP_AGE_IDENTITY_FILE"] == "/run/secrets/age_identity"
    assert "RCLONE_CONFIG" not in found and "BACKUP_STORE" not in found


def test_the_retention_policy_reaches_the_container(tmp_path):
    """Rules that are not set are not in the file; nothing of it is a policy by default."""

    def environment(**variables):
        found = rendered(tmp_path, **variables)["services"]["pgbackup"]["environment"]
        return {name: value for name, value in found.items() if "KEEP" in name}

    assert environment() == {"BACKUP_MIN_KEEP": "1"}
    names = [name for name in DEFAULTS if re.match(r"pgbackup_(keep|min_keep)", name)]
    rules = {name: number for number, name in enumerate(names, 3)}
    assert len(rules) == 8
    given = environment(**{**rules, "pgbackup_keep_within": "14d"})
    assert given == {**{name[len("pg") :].upper(): str(rules[name]) for name in rules}, "BACKUP_KEEP_WITHIN": "14d"}


def test_which_databases_are_meant_reaches_the_container(tmp_path):
    """As the engine reads it: names with spaces and quotes, patterns, `all`, and the globals."""
    sys.path.insert(0, str(REPOSITORY / "plugins" / "module_utils"))
    from _pgstream import config_cluster

    def environment(**variables):
        found = rendered(tmp_path, **variables)["services"]["pgbackup"]["environment"]
        return {name: value.replace("$$", "$") for name, value in found.items()}

    one = environment(pgbackup_databases="shop")
    assert one["POSTGRES_DB"] == "shop" and not {name for name in one if "DATABASES" in name or "GLOBALS" in name}
    names = ["shop", "my db", 'a "b", c$', "test_*", "all"]
    given = environment(
        pgbackup_databases=names,
        pgbackup_exclude_databases=["x y", "z?"],
        pgbackup_globals=True,
        pgbackup_globals_passwords=True,
    )
    assert "POSTGRES_DB" not in given
    assert config_cluster.of_job(given) == config_cluster.Wanted(tuple(names), ("x y", "z?"), True, True)
    for pattern in ("all", "shop_*"):
        alone = environment(pgbackup_databases=[pattern])
        assert config_cluster.of_job(alone).databases == (pattern,) and "POSTGRES_DB" not in alone


LEAST = {"pgbackup_databases": ["shop"], "pgbackup_login_host": "db", "pgbackup_login_user": "u"}
ONE_STORE = "exactly one of pgbackup_bucket, pgbackup_directory and pgbackup_rclone_remote must be given"


@pytest.mark.parametrize(
    "given, said",
    [
        ({}, ONE_STORE),
        ({"bucket": "b", "directory": "/d"}, ONE_STORE),
        ({"bucket": "b", "rclone_remote": "r:", "rclone_config": "/c"}, ONE_STORE),
        ({"rclone_remote": "r:"}, "pgbackup_rclone_remote needs one of pgbackup_rclone_config and"),
        ({"rclone_remote": "r:", "rclone_config": "/c", "rclone_config_content": "x"}, "needs one of"),
        ({"rclone_remote": ":sftp,pass=x:", "rclone_config": "/c"}, "must be remote:path"),
        ({"rclone_remote": "nothing", "rclone_config": "/c"}, "must be remote:path"),
        ({"bucket": "b", "rclone_config": "/c"}, "are for pgbackup_rclone_remote"),
        ({"rclone_remote": "my box:a/b", "rclone_config": "/c"}, ""),
        ({"rclone_remote": "r:", "rclone_config_content": "x"}, ""),
        ({"directory": "/d"}, ""),
    ],
)
def test_one_store_with_what_it_needs(tmp_path, given, said):
    variables = {"pgbackup_" + name: value for name, value in given.items()}
    status, output = played(tmp_path, load("tasks/preflight.yml")[:1], **LEAST, **variables)
    assert (status == 0) == (not said) and said in output


def test_a_policy_that_cannot_be_is_refused_before_anything_is_changed(tmp_path):
    preflight = load("tasks/preflight.yml")[:1]
    good = {**LEAST, "pgbackup_bucket": "b"}
    assert played(tmp_path, preflight, **good, pgbackup_keep_daily=7, pgbackup_keep_within="14d")[0] == 0
    status, output = played(tmp_path, preflight, **good, pgbackup_keep_daily=-1, pgbackup_keep_within="14 days")
    assert status != 0 and "pgbackup_keep_last and its like must not be negative" in output
    assert "pgbackup_keep_within must be a time such as 36h or 14d" in output
    assert played(tmp_path, preflight, **good, pgbackup_min_keep=0)[0] != 0


# --- the build context ------------------------------------------------------------------------------------------------


def pack(root, *more):
    done = subprocess.run(
        [sys.executable, str(PACK), str(root), *map(str, more)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_context_has_all_that_the_dockerfile_copies(tmp_path):
    pack(REPOSITORY, tmp_path / "context.tar")
    with tarfile.open(tmp_path / "context.tar") as archive:
        names = archive.getnames()
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    sources = [
        word for line in re.findall(r"^COPY (?!--from)(.*)$", dockerfile, re.MULTILINE) for word in line.split()[:-1]
    ]
    assert len(sources) > 3
    for source in sources:
        assert [name for name in names if name == source or name.startswith(source + "/")], source
    assert "Dockerfile" in names
    assert not [name for name in names if "__pycache__" in name or "secrets" in name or name.startswith("tests")]


def test_the_context_depends_on_contents_alone(tmp_path):
    roots = []
    for number, mode in ((1, 0o644), (2, 0o755)):
        root = tmp_path / str(number)
        for name in ("Dockerfile", "docker/lib/job.py", "plugins/module_utils/_pgstream/cli.py"):
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(mode)
        roots.append(root)
    (roots[1] / "docker" / "__pycache__").mkdir()
    (roots[1] / "docker" / "__pycache__" / "x.pyc").write_text("x")
    assert pack(roots[0]) == pack(roots[1])
    (roots[1] / "docker" / "lib" / "job.py").write_text("other")
    assert pack(roots[0]) != pack(roots[1])


# --- an image's archive -----------------------------------------------------------------------------------------------


def archive(path, mode, config):
    text = json.dumps(
        [{"Config": config, "RepoTags": ["registry.example:5000/pgbackup:1", "pgbackup:latest"]}]
    ).encode()
    with tarfile.open(path, mode) as out:
        member = tarfile.TarInfo("manifest.json")
        member.size = len(text)
        out.addfile(member, io.BytesIO(text))
    return path


def image_of(path, image):
    return subprocess.run(
        [sys.executable, str(IMAGE_OF), str(path), image], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("config", ["%s.json" % ("ab" * 32), "blobs/sha256/" + "ab" * 32])
@pytest.mark.parametrize("image", ["registry.example:5000/pgbackup:1", "pgbackup", "pgbackup:latest"])
def test_an_archive_tells_its_images_id(tmp_path, mode, config, image):
    done = image_of(archive(tmp_path / "image.tar", mode, config), image)
    assert (done.returncode, done.stdout.strip()) == (0, "sha256:" + "ab" * 32)


def test_an_archive_without_the_image_says_what_it_has(tmp_path):
    done = image_of(archive(tmp_path / "image.tar", "w", "x.json"), "pgbackup:2")
    assert done.returncode == 1
    assert "has no image pgbackup:2 but registry.example:5000/pgbackup:1" in done.stderr


def test_what_is_no_archive_is_said_to_be_none(tmp_path):
    (tmp_path / "image.tar").write_text("no")
    done = image_of(tmp_path / "image.tar", "pgbackup")
    assert done.returncode == 1
    assert "was not made by docker save" in done.stderr
