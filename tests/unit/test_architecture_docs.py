# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/ARCHITECTURE.md names what there is: the tests that hold each promise, and every file of the engine."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
ENGINE = ROOT / "plugins" / "module_utils" / "_pgstream"


def test_each_promise_is_held_by_a_test_that_exists() -> None:
    table = TEXT.partition("\n## What must always hold\n")[2].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 30
    for row in rows:
        tests = re.findall(
            r"`((?:unit|integration|faults|container|fuzz)/\w+)(?:\.py)?(?:::(\w+))?", row.rpartition(" | ")[2]
        )
        named = re.search(r"`(molecule/\w+|\w+\.py)`", row)
        assert tests or named, row
        for path, test in tests:
            file = ROOT / "tests" / (path + ".py")
            assert file.is_file(), path
            assert not test or re.search(r"def %s\w*\(" % test, file.read_text()), (path, test)


def test_every_file_of_the_engine_has_its_job() -> None:
    table = TEXT.partition("In the engine, from the edge inwards:")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)/?`", table))
    there = {path.stem for path in ENGINE.rglob("*.py") if path.stem != "__init__"}
    assert there - named == set()
