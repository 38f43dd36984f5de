# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The recipe of a CronJob, as a container with all that the pod asks for: its user, limits, environment and volumes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shlex import quote

import yaml

from .stack import REPOSITORY, Stack


def test_the_pod_backs_up(stack: Stack, tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "RECIPES.md").read_text()
    (job,) = [each for each in re.findall(r"(?ms)^```yaml\n(.*?)^```$", text) if "kind: CronJob" in each]
    pod = yaml.safe_load(job)["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    here = {"POSTGRES_HOST": "postgres", "POSTGRES_USER": "postgres", "POSTGRES_DB": "postgres",
            "RCLONE_S3_BUCKET": "backups", "RCLONE_S3_ENDPOINT": "http://minio:9000"}
    environ = {**{each["name"]: each["value"] for each in container["env"]}, **here}
    secrets = tmp_path / "mounted"
    secrets.mkdir()
    for name, value in stack.secrets.items():
        assert "/secrets/" + name in environ.values()
        (secrets / name).write_text(value)
        (secrets / name).chmod(0o644)  # a Secret's files; the group of the pod's fsGroup may read them
    context, user = container["securityContext"], pod["securityContext"]
    assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
    (memory,) = [each["emptyDir"]["sizeLimit"] for each in pod["volumes"] if "emptyDir" in each]
    options = ["--user=%d:%d" % (user["runAsUser"], user["runAsGroup"]), "--read-only",
               "--security-opt=no-new-privileges", "--tmpfs=/tmp:size=%s" % memory.replace("Mi", "m"),
               *("--cap-drop=" + each for each in context["capabilities"]["drop"]),
               "--network=%s_backup" % stack.project, "--volume=%s:/secrets:ro" % secrets,
               *("--env=%s=%s" % item for item in environ.items())]
    stack.sh("docker compose up -d --wait postgres minio && docker compose up minio-init")
    stack.psql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS id")
    done = stack.sh(" ".join(map(quote, ["docker", "run", "--rm", *options, "pgbackup", *container["args"]])))
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] == 1000
    assert stack.keys() == [result["key"]]
