# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""monitoring/: the rules do what their tests say, and rules and dashboard name only metrics that the exporter has.

promtool is that of the Prometheus image.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Set

import pytest
import yaml
from _pgstream import metrics
from prometheus_client import CollectorRegistry, generate_latest

from tests.support.ledger_runs import rich_facts

MONITORING = Path(__file__).resolve().parents[2] / "monitoring"
NAME = re.compile(r"\bpgbackup_[a-z_]+")


Promtool = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def promtool(tools: Dict[str, str]) -> Promtool:
    """Runs it in a directory with an input: promtool(arguments, given=..., place=...)."""

    def run(*argv: str, given: str = "", place: Path = MONITORING) -> "subprocess.CompletedProcess[str]":
        docker = ["docker", "run", "--rm", "--interactive", "--network=none", "--user=%d" % os.getuid()]
        docker += ["--volume=%s:/rules:ro" % place, "--workdir=/rules", "--entrypoint=promtool", tools["prometheus"]]
        return subprocess.run([*docker, *argv], input=given, capture_output=True, text=True, timeout=300, check=False)

    return run


class _Everything:
    def describe(self) -> List[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        return metrics.families(rich_facts())


def exposition() -> str:
    registry = CollectorRegistry()
    registry.register(_Everything())  # type: ignore[arg-type]
    return generate_latest(registry).decode()


def exported() -> Dict[str, Set[str]]:
    """{sample name: its labels} of all that the exporter can show."""
    return {sample.name: set(sample.labels) for family in metrics.families(rich_facts()) for sample in family.samples}


def rules() -> List[Dict[str, Any]]:
    return [
        rule for group in yaml.safe_load((MONITORING / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]


def dashboard() -> Dict[str, Any]:
    found: Dict[str, Any] = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
    return found


def dashboard_expressions() -> List[str]:
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return found + [one["definition"] for one in dashboard()["templating"]["list"] if one["type"] == "query"]


def expressions() -> List[str]:
    return [rule["expr"] for rule in rules()] + dashboard_expressions()


def test_prometheus_finds_no_fault_in_the_metrics(promtool: Promtool) -> None:
    done = promtool("check", "metrics", given=exposition())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_rules_do_what_their_tests_say(promtool: Promtool) -> None:
    for argv in (("check", "rules", "alerts.yml"), ("test", "rules", "tests.yml")):
        done = promtool(*argv)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_is_seen_firing_and_silent() -> None:
    tests = yaml.safe_load((MONITORING / "tests.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    names = {rule["alert"] for rule in rules()}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == names
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == names


def test_each_alert_says_what_happened_and_how_bad_it_is() -> None:
    for rule in rules():
        assert re.fullmatch(r"Pgbackup[A-Za-z]+", rule["alert"])
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("expression", expressions())
def test_only_metrics_and_labels_that_exist(expression: str) -> None:
    known = exported()
    named = NAME.findall(expression)
    assert named or expression == "up", expression
    assert set(named) <= set(known), set(named) - set(known)
    # What stands in braces are labels of the metric before it, or those that Prometheus adds.
    for name, selector in re.findall(r"\b(pgbackup_[a-z_]+)\{([^}]*)\}", expression):
        labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!=|!~|=)", selector))
        assert labels <= known[name] | {"job", "instance"}, (name, labels)


def test_what_the_exporter_has_is_used_or_left_out_on_purpose() -> None:
    used = {name for expression in expressions() for name in NAME.findall(expression)}
    spare = {
        "last_run_timestamp_seconds",  # beside last_run_success, for one who asks
        "bucket_listing_timestamp_seconds",  # a store that stops answering is bucket_up
        "bucket_listing_duration_seconds",
        "run_duration_seconds_sum",
        "run_duration_seconds_count",
    }
    assert set(exported()) - used == {"pgbackup_" + name for name in spare}


def test_prometheus_can_read_the_dashboards_expressions(promtool: Promtool, tmp_path: Path) -> None:
    text = {"$__interval": "5m", "$job": ".*", "$database": ".*"}
    recorded = []
    for number, expression in enumerate(dashboard_expressions()):
        if expression.startswith("label_values("):  # Grafana's own
            expression = expression[len("label_values(") :].rpartition(",")[0]
        for name, value in text.items():
            expression = expression.replace(name, value)
        assert "$" not in expression
        recorded.append({"record": "dashboard:%d" % number, "expr": expression})
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    done = promtool("check", "rules", "rules.yml", place=tmp_path)
    assert done.returncode == 0 and "%d rules found" % len(recorded) in done.stdout, done.stdout + done.stderr


def test_the_dashboard_fits_together() -> None:
    found = dashboard()
    panels = found["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = set()
    for panel in panels:
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        area = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not area & cells, panel["title"]
        cells |= area
    variables = {one["name"] for one in found["templating"]["list"]}
    assert set(re.findall(r"\$(?!__)(\w+)", " ".join(dashboard_expressions()))) <= variables
