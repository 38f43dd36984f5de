# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make available what the container tests need: `ensure.py [NAME ...]`, without a NAME everything.

A Docker engine first (engine.py), then the images of recipes.py: each is left alone when it is there, pulled when a
registry answers, else built here and tagged with the name that could not be pulled, so that the Dockerfile,
compose.yml and people's own commands find it. What was built here is built again when its recipe changes; a second run
does nothing.

`--list` prints the names, `--env` the variables of compose.yml. Each step's time goes to stderr. Exit status 1 with one
line that says what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import List, Optional, Set

sys.path.insert(0, str(Path(__file__).resolve().parent))
import engine  # noqa: E402 (its directory is no package)
import recipes  # noqa: E402

PULL_TIMEOUT = 300.0  # seconds for one image, where a registry answers


class Ensurer:
    """Makes images in the order in which they need each other."""

    def __init__(self, registry: Optional[bool] = None) -> None:
        self.registry = registry  # None: not known yet whether one answers
        self.done: Set[str] = set()

    def ensure(self, name: str) -> None:
        if name not in self.done:
            recipe = recipes.RECIPES[name]
            began = time.monotonic()
            how = self._ensure(recipe)
            self.done.add(name)
            report("%-13s %s: %s" % (name, recipe.tag, how), began)

    def _ensure(self, recipe: recipes.Recipe) -> str:
        label = engine.image_label(recipe.tag, recipes.LABEL)
        if label == "":
            return "present"  # pulled, or made by somebody else
        if label is None and recipe.pullable and self._pull(recipe.tag):
            return "pulled"
        digest = recipe.digest()
        cached = "%s:%s" % (recipes.CACHE, digest)
        how = "there already, built here"
        # By tag, not by label: images inherit the labels of their base.
        if engine.image_label(cached, recipes.LABEL) is None:
            if recipe.base:
                self.ensure(recipe.base)
            recipe.build(cached, digest)
            how = "built"
        engine.docker("tag", cached, recipe.tag)
        return how

    def _pull(self, tag: str) -> bool:
        if self.registry is None:
            self.registry = engine.registry_answers()
        return self.registry and engine.try_docker("pull", "--quiet", tag, timeout=PULL_TIMEOUT)


def report(text: str, began: float) -> None:
    print("%6.1f s  %s" % (time.monotonic() - began, text), file=sys.stderr, flush=True)


def main(argv: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Make available what the container tests need.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of --list; default: all, and the plugins")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--env", action="store_true", help="print variables for compose.yml and change nothing")
    parser.add_argument("--no-pull", dest="pull", action="store_false", help="build even what could be pulled")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.names) - set(recipes.RECIPES) - {"plugins"})
    if unknown:
        parser.error("no such name: %s; there are: plugins %s" % (", ".join(unknown), " ".join(recipes.RECIPES)))
    if options.list or options.env:
        for name, recipe in recipes.RECIPES.items():
            if options.list:
                print("%-13s %s" % (name, recipe.tag))
            elif recipe.variable:
                print("%s=%s" % (recipe.variable, recipe.tag))
        return 0
    try:
        began = time.monotonic()
        report("engine: " + ("started" if engine.ensure_engine() else "runs"), began)
        ensurer = Ensurer(None if options.pull else False)
        names = options.names or ["plugins"] + [name for name, one in recipes.RECIPES.items() if one.wanted]
        for name in names:
            if name == "plugins":
                began = time.monotonic()
                missing = engine.missing_plugins()
                if missing:
                    ensurer.ensure("tools")
                    engine.install_plugins(missing, recipes.RECIPES["tools"].tag)
                report("plugins: %s" % (", ".join(missing) + " installed" if missing else "present"), began)
            else:
                ensurer.ensure(name)
    except engine.Missing as error:
        print("ensure.py: %s" % error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
