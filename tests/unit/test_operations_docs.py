# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The runbook has a section for each alert and each exit status, and for none that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Iterator, List, Type

import yaml
from _pgstream import errors

ROOT = Path(__file__).resolve().parents[2]
RUNBOOK = (ROOT / "docs" / "OPERATIONS.md").read_text(encoding="utf-8")


def sections(pattern: str) -> List[str]:
    return re.findall(r"^### (%s)$" % pattern, RUNBOOK, re.M)


def classes(base: Type[BaseException]) -> Iterator[Any]:
    yield base
    for each in base.__subclasses__():
        yield from classes(each)


def test_every_alert_has_its_section() -> None:
    rules = yaml.safe_load((ROOT / "monitoring" / "alerts.yml").read_text(encoding="utf-8"))
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 5 and sections("Pgbackup.*") == alerts


def test_every_exit_status_has_its_section() -> None:
    codes = {each.exit_code for each in classes(errors.BackupError)} | {errors.Interrupted.exit_code, 0}
    assert sections("Exit .*") == ["Exit %d" % code for code in sorted(codes)]


def test_every_section_says_what_to_do() -> None:
    for section in re.split(r"^(?=##)", RUNBOOK, flags=re.M):
        if section.startswith("### ") and not section.startswith("### Exit 0"):
            assert "**Means**" in section and "**Do**" in section, section.splitlines()[0]


def test_documents_are_found_and_their_links_lead_somewhere() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("SECURITY", "OPERATIONS"):
        assert "](docs/%s.md)" % name in readme
        text = (ROOT / "docs" / (name + ".md")).read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)", text):
            assert (ROOT / "docs" / link).exists(), link
