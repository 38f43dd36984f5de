# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/ARCHITECTURE.md names what there is: the tests that hold each promise, and every file of the engine.

Files import each other in one direction, and none is long.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Dict, List, Set

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


def imported(name: str, tree: ast.Module, is_package: bool, modules: Set[str]) -> Set[str]:
    """What a file of the engine imports from others as soon as it is imported itself."""
    package = name.split(".") if is_package else name.split(".")[:-1]
    found = set()
    for top in tree.body:
        if isinstance(top, ast.If) and "TYPE_CHECKING" in ast.unparse(top.test):
            continue
        for node in ast.walk(top) if isinstance(top, (ast.Try, ast.If)) else [top]:
            if isinstance(node, ast.ImportFrom) and node.level:
                base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
                for alias in node.names:
                    parts = base + [alias.name]
                    found.add(".".join(parts if ".".join(parts) in modules else base))
    return found & modules - {name}


def test_no_file_imports_itself_by_way_of_others() -> None:
    paths: Dict[str, Path] = {}
    for path in ENGINE.rglob("*.py"):
        paths[".".join(path.relative_to(ENGINE).with_suffix("").parts).replace(".__init__", "")] = path
    imports = {
        name: imported(name, ast.parse(path.read_text()), path.name == "__init__.py", set(paths))
        for name, path in paths.items()
    }
    assert imports["restore"] > {"loading", "target"} and imports["store.s3"] > {"store.base", "store.s3_client"}
    done: Set[str] = set()

    def visit(name: str, way: List[str]) -> None:
        assert name not in way, way + [name]
        if name not in done:
            for other in sorted(imports[name]):
                visit(other, way + [name])
            done.add(name)

    for name in sorted(imports):
        visit(name, [])


def test_no_file_of_the_collection_is_long() -> None:
    """400 lines of code; documentation of modules, which Ansible wants within them, comments and empty lines aside."""
    for path in (ROOT / "plugins").rglob("*.py"):
        tree = ast.parse(path.read_text())
        lines: Set[int] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.stmt) and not isinstance(getattr(node, "value", None), ast.Constant):
                lines.update((node.lineno, node.end_lineno or node.lineno))
            if isinstance(node, ast.expr) and not isinstance(node, ast.Constant):
                lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        assert len(lines) <= 400, (path, len(lines))
