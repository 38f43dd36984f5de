# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A program that reads an object as a restore does, in little memory: `limited.py FILE KEY MEBIBYTES`.

MEBIBYTES of address space beyond what the interpreter and the libraries take. Prints how the restore ended.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

if __name__ == "__main__":
    repository = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(repository), str(repository / "plugins" / "module_utils")]
    from tests.support.archives import restored, sample_of

    sample = sample_of("gzip")
    assert restored(sample.data, sample.key).error is None  # all that is imported late is there now
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    data = Path(sys.argv[1]).read_bytes()
    limit = pages * resource.getpagesize() + len(data) + (int(sys.argv[3]) << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    error = restored(data, sys.argv[2]).error
    sys.stdout.write("%s: %s\n" % (type(error).__name__, error))
