# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the command counts of its own work: Python imports this at its start, where PYTHONPATH names it.

PGSTREAM_WORK=FILE  at the end, JSON: what the kernel counted of the command's own reads and writes (proc(5), io), the
                    pages of memory that it was given (getrusage(2), ru_minflt), and the programs it started, by name
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import subprocess
from collections import Counter

_started: Counter = Counter()


class _Counted(subprocess.Popen):
    def __init__(self, args, **options):  # type: ignore[no-untyped-def]
        names = [os.path.basename(word) for word in args]
        _started[next(name for name in names if name != "stdbuf" and not name.startswith("-"))] += 1
        super().__init__(args, **options)


def _tell(place: str) -> None:
    with open("/proc/self/io", encoding="ascii") as lines:
        counted = {name: int(number) for name, number in (line.split(": ") for line in lines)}
    with open(place, "w", encoding="utf-8") as file:
        pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        json.dump({"io": counted, "pages": pages, "started": _started}, file)


subprocess.Popen = _Counted  # type: ignore[misc]
atexit.register(_tell, os.environ["PGSTREAM_WORK"])
