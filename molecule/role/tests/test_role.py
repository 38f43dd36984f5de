# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A scheduled backup that runs itself: deployed, watched, broken, changed, removed. Each test goes on from the last."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import urllib.parse
import urllib.request
from pathlib import Path

import pyrage
import pytest
import testinfra
import testing

WORK = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"])
SCENARIO = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
PROJECT = testing.project() + "-deployed"
BACKUP, METRICS = PROJECT + "-pgbackup-1", PROJECT + "-pgbackup-metrics-1"
ARCHIVE = testing.project() + "-archive"
REMOTE = testing.project() + "-remote"
YEARLY = "0 0 1 1 *"
NEVER_NOW = {"pgbackup_schedule": YEARLY}  # from test_a_changed_schedule on


def play(name, *flags, fails=False, **variables):
    """Run a playbook of this scenario; its output, and the names of the tasks that changed something."""
    checkout = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
    places = checkout / "playbooks" / "collections", checkout / ".cache" / "collections"
    env = dict(
        os.environ,
        ANSIBLE_CONFIG=str(WORK / "ansible.cfg"),
        ANSIBLE_NOCOLOR="1",
        ANSIBLE_FORCE_COLOR="0",
        ANSIBLE_COLLECTIONS_PATH=":".join(map(str, places)),
    )
    argv = [
        "ansible-playbook",
        "-i",
        str(WORK / "inventory"),
        str(SCENARIO / name),
        "-e",
        json.dumps(variables),
        *flags,
    ]
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert (done.returncode != 0) == fails, done.stdout
    task, changed = "", []
    for line in done.stdout.splitlines():
        found = re.match(r"TASK \[(?:.* : )?(.*?)\] \*", line)
        if found:
            task = found[1]
        elif line.startswith("changed: ") and task not in changed:
            changed.append(task)
    return done.stdout, changed


def inspect(container):
    return json.loads(testing.docker("inspect", container))[0]


def log(container):
    """The JSON lines of stdout and stderr."""
    text = subprocess.run(
        ["docker", "logs", container], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    ).stdout
    return [json.loads(line) for line in text.splitlines()]


def finished(container, verb="backup"):
    lines = [line for line in log(container) if line["event"] == "job_finished" and line["verb"] == verb]
    return [(line["database"], line["exit_code"]) for line in lines]


def get(address):
    with urllib.request.urlopen(address, timeout=30) as answer:
        return answer.read().decode()


def counters():
    """The counters as the service itself gives them, but for verifications, which go on every minute."""
    text = testing.wait_for("metrics", scrape)
    lines = [line for line in text.splitlines() if line.startswith("pgbackup_runs_total{")]
    return sorted(line for line in lines if 'operation="verify"' not in line)


def scrape():
    try:
        return get("http://127.0.0.1:%s/metrics" % (WORK / "metrics_port").read_text())
    except OSError:
        return ""  # it is only starting


def prometheus(query):
    """{database: value}"""
    address = "http://%s/api/v1/query?query=%s" % (testing.published("prometheus", 9090), urllib.parse.quote(query))
    return {
        one["metric"].get("database", ""): float(one["value"][1]) for one in json.loads(get(address))["data"]["result"]
    }


def stored():
    """{file: uid} of the backups in the directory, which is for the container's user to read."""
    image = "pgbackup-molecule/built:" + testing.project()
    look = ["/backups", "-name", "*.sql.gz", "-printf", "%f %U\\n"]
    text = testing.docker(
        "run", "--rm", "--entrypoint=find", "--volume=%s:/backups:ro" % (WORK / "backups"), image, *look
    )
    return dict(line.split() for line in text.splitlines())


def crond_started():
    """The schedules that it has begun with since the container was made."""
    return testing.wait_for(
        "crond", lambda: [line["schedule"] for line in log(BACKUP) if line["event"] == "crond_started"]
    )


def test_crond_runs_and_says_so():
    host = testinfra.get_host("docker://" + BACKUP)
    assert crond_started() == ["* * * * *"]
    assert host.run("grep -sx crond /proc/[0-9]*/comm").stdout.count("\n") == 1


def test_a_scheduled_backup_of_each_database_appears_by_itself():
    testing.wait_for("jobs", lambda: {("shop", 0), ("crm", 0)} <= set(finished(BACKUP)))
    found = {key.partition("_20")[0] for key in testing.keys()}
    assert found == {"shop", "crm"}


def test_it_can_be_restored_in_the_container():
    testing.docker(
        "exec", BACKUP, "pgbackup", "restore", "latest", "--source-db", "shop", "--target-db", "shop_copy", "--create"
    )
    assert testing.dump("target17", "shop_copy") == testing.dump("target17", "shop")
    # By root's hand, and yet the ledger is still the jobs' user's.
    owners = testing.docker("exec", BACKUP, "find", "/var/lib/pgbackup", "-printf", "%u\n").split()
    assert set(owners) == {"pgbackup"}


def test_prometheus_scrapes_the_metrics():
    query = 'pgbackup_runs_total{operation="backup",status="success"}'
    testing.wait_for(
        "a scrape", lambda: set(prometheus(query)) == {"shop", "crm"} and min(prometheus(query).values()) >= 1
    )
    assert prometheus('up{job="pgbackup"}') == {"": 1.0}
    testing.wait_for("a listing", lambda: set(prometheus("pgbackup_bucket_bytes > 0")) == {"shop", "crm"})
    assert prometheus("pgbackup_last_backup_rows") == {"shop": 61000.0, "crm": 61000.0}


def test_backups_are_verified_on_a_schedule_of_their_own():
    testing.wait_for("verifications", lambda: {("shop", 0), ("crm", 0)} <= set(finished(BACKUP, "verify")))
    good = 'pgbackup_last_verification_success{level="content"} == 1'
    testing.wait_for("a scrape", lambda: set(prometheus(good)) == {"shop", "crm"})


def test_what_the_policy_does_not_keep_is_removed():
    def removed():
        return {line["key"].partition("_20")[0] for line in log(BACKUP) if line["event"] == "backup_removed"}

    testing.wait_for("removals", lambda: removed() == {"shop", "crm"})
    assert set(finished(BACKUP, "prune")) == {("shop", 0), ("crm", 0)}


def test_metrics_are_served_to_this_machine_only():
    ports = inspect(METRICS)["HostConfig"]["PortBindings"]
    assert ports == {"9187/tcp": [{"HostIp": "127.0.0.1", "HostPort": (WORK / "metrics_port").read_text()}]}
    assert "shop" in get("http://127.0.0.1:%s/" % ports["9187/tcp"][0]["HostPort"])


@pytest.mark.parametrize("container", [BACKUP, METRICS])
def test_no_secret_can_be_seen(container):
    seen = [json.dumps(inspect(container)), json.dumps(log(container)), (WORK / "deployed" / "compose.yml").read_text()]
    # Environment and arguments of every process: without more capabilities, root sees only root's. Some end meanwhile.
    look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null; true"
    seen += [testing.docker("exec", "--user", user, container, "sh", "-c", look) for user in ("root", "pgbackup")]
    assert "/opt/pgbackup/bin/scheduler.sh" in seen[-2] if container == BACKUP else "RCLONE_S3_BUCKET=" in seen[-1]
    for secret in testing.SECRETS:
        assert not [text for text in seen if secret in text]
    assert "POSTGRES_PASSWORD_FILE" in seen[0]  # so that it was the right thing that was looked at


def test_secrets_are_files_for_their_owner_only():
    found = {path.name: oct(path.stat().st_mode & 0o777) for path in (WORK / "deployed" / "secrets").iterdir()}
    assert found == {"postgres_password": "0o600", "s3_access_key_id": "0o600", "s3_secret_access_key": "0o600"}


@pytest.mark.parametrize("container", [BACKUP, METRICS])
def test_the_containers_have_limits(container):
    limits = inspect(container)["HostConfig"]
    assert (limits["Memory"], limits["NanoCpus"]) == (512 << 20, 10**9)
    assert limits["ReadonlyRootfs"] and limits["CapDrop"] == ["ALL"]


def health():
    return inspect(BACKUP)["State"]["Health"]["Status"]


def test_the_container_is_healthy():
    testing.wait_for("healthy", lambda: health() == "healthy")


def test_it_turns_unhealthy_when_backups_fail():
    testing.docker("stop", "--time", "5", testing.container("target17"))
    testing.wait_for("failed jobs", lambda: {("shop", 3), ("crm", 3)} <= set(finished(BACKUP)))
    testing.wait_for("unhealthy", lambda: health() == "unhealthy")
    said = json.loads(inspect(BACKUP)["State"]["Health"]["Log"][-1]["Output"])
    assert said["state"] == "failing" and "The last backup of shop failed" in said["message"]
    testing.wait_for("a scrape", lambda: prometheus("pgbackup_healthy") == {"": 0.0})
    failures = 'pgbackup_runs_total{operation="backup",status="failure"}'  # of shop and of crm, which comes after it
    testing.wait_for("a scrape of both", lambda: min(prometheus(failures).values()) >= 1)
    testing.docker("start", testing.container("target17"))


def test_check_mode_changes_nothing():
    compose, before = WORK / "deployed" / "compose.yml", inspect(BACKUP)["Id"]
    text = compose.read_text()
    _output, changed = play("converge.yml", "--check", **NEVER_NOW)
    assert "Compose file" in changed
    assert (compose.read_text(), inspect(BACKUP)["Id"]) == (text, before)


def test_a_changed_schedule_changes_only_what_it_must():
    before, image = inspect(BACKUP), inspect(METRICS)["Image"]
    secrets = {path.name: path.stat().st_mtime_ns for path in (WORK / "deployed" / "secrets").iterdir()}
    _output, changed = play("converge.yml", **NEVER_NOW)
    after = inspect(BACKUP)
    assert changed == ["Compose file", "Run the services"]
    assert after["Id"] != before["Id"]
    differing = {line.partition("=")[0] for line in set(before["Config"]["Env"]) ^ set(after["Config"]["Env"])}
    assert differing == {"BACKUP_SCHEDULE"}
    assert [mount["Name"] for mount in after["Mounts"] if mount["Type"] == "volume"] == [PROJECT + "_state"]
    assert {path.name: path.stat().st_mtime_ns for path in (WORK / "deployed" / "secrets").iterdir()} == secrets
    assert {after["Image"], inspect(METRICS)["Image"]} == {image}
    assert crond_started() == [YEARLY]
    assert play("converge.yml", **NEVER_NOW)[1] == []


def test_counters_survive_a_restart():
    before = counters()
    assert [line for line in before if 'status="failure"' in line and not line.endswith(" 0.0")]
    testing.docker("restart", "--time", "12", BACKUP, METRICS)
    assert counters() == before


def test_a_changed_secret_reaches_the_container():
    _output, changed = play("converge.yml", pgbackup_login_password="not-the-password", **NEVER_NOW)
    assert changed == ["Secrets", "Compose file", "Run the services"]
    testing.wait_for("PostgreSQL", lambda: testing.psql("target17", "postgres", "SELECT 1"))
    done = subprocess.run(
        ["docker", "exec", "-e", "POSTGRES_DB=shop", BACKUP, "pgbackup", "backup"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "password authentication failed" in json.loads(done.stderr.splitlines()[-1])["message"]
    assert "not-the-password" not in done.stderr + done.stdout
    assert play("converge.yml", **NEVER_NOW)[1] == ["Secrets", "Compose file", "Run the services"]
    testing.docker("exec", "-e", "POSTGRES_DB=shop", BACKUP, "backup.sh")


def test_what_is_wrong_is_said_before_anything_is_changed():
    before = inspect(BACKUP)["Id"]
    output, changed = play("converge.yml", fails=True, pgbackup_login_host="", pgbackup_bucket="", **NEVER_NOW)
    said = "pgbackup_login_host is empty; exactly one of pgbackup_bucket, pgbackup_directory and pgbackup_rclone_remote"
    assert said + " must be given" in " ".join(output.split())
    output, more = play("converge.yml", fails=True, pgbackup_schedule="61 * * * *")
    assert "'61' is not from 0 to 59" in " ".join(output.split())
    assert changed + more == []
    assert inspect(BACKUP)["Id"] == before


def test_from_an_archive_every_database_into_a_directory():
    _output, changed = play("archive.yml")
    assert "Load" in changed
    backup = ARCHIVE + "-pgbackup-1"
    # What was due last New Year is made up for at once.
    testing.wait_for("catching up", lambda: {("postgres", 0), ("shop", 0)} <= set(finished(backup)))
    found = stored()
    assert sorted(name.partition("_20")[0] for name in found) == ["postgres", "shop"]
    assert set(found.values()) == {"10001"}
    assert play("archive.yml")[1] == []


def verify_remote(**secrets):
    """`pgbackup verify latest` in the container; status, and the last line that it says."""
    options = [word for name in ("POSTGRES_DB", *secrets) for word in ("--env", name)]  # by name: not in the arguments
    argv = ["docker", "exec", *options, REMOTE + "-pgbackup-1", "pgbackup", "verify", "latest", "--level", "content"]
    env = {**os.environ, "POSTGRES_DB": "shop", **secrets}
    done = subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def test_encrypted_to_a_remote_of_rclone():
    """The deployment has a public key only, so it cannot read what it wrote; with the identity it is verified."""
    identity = pyrage.x25519.Identity.generate()
    variables = {"pgbackup_age_recipients": [str(identity.to_public())], **NEVER_NOW}
    testing.s3().create_bucket(Bucket="boxes")
    play("remote.yml", **variables)
    container = REMOTE + "-pgbackup-1"
    testing.wait_for("catching up", lambda: ("shop", 0) in finished(container))
    (key,) = testing.keys("boxes")
    assert re.fullmatch(r"there/daily/shop_20[0-9TZ:-]+\.sql\.gz\.age", key)
    stored = testing.s3().get_object(Bucket="boxes", Key=key)["Body"].read()
    assert stored.startswith(b"age-encryption.org/v1\n-> X25519 ")
    assert b"-- PostgreSQL database dump" in gzip.decompress(pyrage.decrypt(stored, [identity]))
    status, said = verify_remote()
    assert status == 2 and "no identity is given" in said["message"]
    status, said = verify_remote(BACKUP_AGE_IDENTITY=str(identity))
    assert (status, said["verified"], said["key"], said["rows"]) == (0, True, "daily/" + key.rsplit("/", 1)[1], 61000)
    assert play("remote.yml", **variables)[1] == []


def test_the_remotes_configuration_is_a_secret():
    file = WORK / "remote" / "secrets" / "rclone_config"
    assert oct(file.stat().st_mode & 0o777) == "0o600" and testing.SECRET_KEY in file.read_text()
    container = REMOTE + "-pgbackup-1"
    look = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2> /dev/null; true"
    seen = [json.dumps(inspect(container)), json.dumps(log(container)), (WORK / "remote" / "compose.yml").read_text()]
    seen += [testing.docker("exec", "--user", user, container, "sh", "-c", look) for user in ("root", "pgbackup")]
    assert "RCLONE_CONFIG=/run/secrets/rclone_config" in seen[0]
    assert not [text for text in seen for secret in testing.SECRETS if secret in text]


def test_absent_leaves_the_backups():
    keys = testing.keys()
    assert keys
    _output, changed = play("converge.yml", pgbackup_state="absent")
    assert changed == ["Remove the services", "Remove the configuration", "Remove the project directory"]
    assert testing.docker("ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project=" + PROJECT) == ""
    assert not (WORK / "deployed").exists()
    assert testing.keys() == keys
    assert testing.docker("volume", "ls", "--quiet", "--filter", "name=" + PROJECT).split() == [PROJECT + "_state"]
    assert play("converge.yml", pgbackup_state="absent")[1] == []


def test_absent_leaves_the_directory_and_takes_the_ledger_when_asked():
    found = stored()
    assert found
    _output, changed = play("archive.yml", pgbackup_state="absent", pgbackup_remove_state=True)
    assert changed[-1] == "Remove the run ledger"
    assert stored() == found
    assert testing.docker("volume", "ls", "--quiet", "--filter", "name=" + ARCHIVE) == ""


def test_no_upload_is_left():
    assert testing.unfinished() == []
