# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Fuzz the format reader: change whole archives in every way that tests/support/mutations.py knows, and look whether
the reader and a restore give the original content or refuse.

    .venv/bin/python tests/fuzz/format.py --seconds 600
    .venv/bin/python tests/fuzz/format.py --seed 7 --first 1234 --count 1     # one case again

Each case follows from seed and number alone. Exit status 1 at the first case that is wrong, with the command that
repeats it and the object in a file.
"""

from __future__ import annotations

import argparse
import random
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Counter as CounterOf
from typing import List, Optional, Tuple

if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(repository), str(repository / "plugins" / "module_utils")]

from _pgstream.model import COMPRESSIONS  # noqa: E402 - after sys.path

from tests.support.archives import sample_of, wrong  # noqa: E402
from tests.support.mutations import mutate  # noqa: E402


def case(seed: int, number: int) -> Tuple[str, str, bytes]:
    """(codec, mutation, object) of one case."""
    chance = random.Random("%d:%d" % (seed, number))
    compression = chance.choice(COMPRESSIONS)
    name, data = mutate(chance.randint, sample_of(compression), sample_of(compression, 1))
    return compression, name, data


def run(seed: int, first: int = 0, count: Optional[int] = None, seconds: Optional[float] = None) -> CounterOf[str]:
    """Run cases until `count` or `seconds` are reached; how many of each mutation. AssertionError names a wrong one."""
    done: CounterOf[str] = Counter()
    started, number = time.monotonic(), first
    while (count is None or number < first + count) and (seconds is None or time.monotonic() - started < seconds):
        compression, name, data = case(seed, number)
        fault = wrong(sample_of(compression), data)
        if fault:
            raise AssertionError(
                "%s of a %s archive: %s\nagain: tests/fuzz/format.py --seed %d --first %d --count 1"
                % (name, compression, fault, seed, number)
            )
        done[name] += 1
        number += 1
    return done


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the format reader.")
    parser.add_argument("--seconds", type=float, help="stop after this time; default 60 where no --count is given")
    parser.add_argument("--count", type=int, help="stop after so many cases")
    parser.add_argument("--seed", type=int, default=None, help="default: a random one")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--keep", default="fuzz-format.bin", help="file for the object of a case that is wrong")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    seconds = 60.0 if options.seconds is None and options.count is None else options.seconds
    try:
        done = run(seed, options.first, options.count, seconds)
    except AssertionError as error:
        number = int(str(error).rsplit("--first ", 1)[1].split()[0])
        Path(options.keep).write_bytes(case(seed, number)[2])
        sys.stderr.write("%s\nthe object: %s\n" % (error, options.keep))
        return 1
    sys.stdout.write("seed %d: %d cases, none wrong: %s\n" % (seed, sum(done.values()), dict(done)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
