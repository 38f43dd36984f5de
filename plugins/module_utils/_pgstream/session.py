# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The only door to psycopg2: one connection, settled so that nothing the server was told ends or changes our work."""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple, TypeVar

from .errors import BackupError, ServerError, UsageError, hint_of
from .model import Server
from .workers import run_parallel

try:
    import psycopg2
    import psycopg2.extensions
except ImportError:
    psycopg2 = None  # type: ignore[assignment]

#: What a session needs so that COPY writes what any server reads back the same, and nothing ends it early.
_SESSION_SETTINGS = (
    "SET LOCAL jit = off",  # compiling takes longer than any query of ours, and COPY gains nothing by it
    "SET LOCAL row_security = off",
    "SET LOCAL extra_float_digits = 3",
    "SET LOCAL DateStyle = 'ISO, YMD'",
    "SET LOCAL IntervalStyle = 'postgres'",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL xmloption = content",
    "SET LOCAL synchronize_seqscans = off",
    "SET LOCAL search_path = ''",
)
#: A peer that is gone without a word (a failover, a firewall that forgot) is noticed after two minutes, where the
#: system's own defaults wait for hours, or for ever when nothing is sent. Only silence of the network counts: a server
#: that is long at a query still answers for its connection. Names as libpq has them; an option of the user's wins.
DEAD_PEER = (("keepalives_idle", "60"), ("keepalives_interval", "15"), ("keepalives_count", "4"))
SENT_IN_VAIN = ("tcp_user_timeout", "120000")  # milliseconds; libpq 12 and newer
AT_START = 5.0  # seconds for which a server that does not listen is asked again, before there is work to lose
STARTING = 60.0  # seconds for one that says it is starting
POOLER_PATIENCE = 5.0  # seconds
CONNECT_PAUSE = 0.25  # seconds between two attempts
CANCEL_PATIENCE = 2.0  # seconds until a statement that was cancelled is given up, and its connection with it
_TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")


Own = TypeVar("Own", bound="Session")
Result = TypeVar("Result")
Task = TypeVar("Task")


def unhindered(major: int) -> Dict[str, str]:
    """Settings that keep what a role, database or server sets from ending or refusing our work."""
    names = _TIMEOUTS + (("idle_session_timeout",) if major >= 14 else ())
    names += ("transaction_timeout",) if major >= 17 else ()
    return {**{name: "0" for name in names}, "default_transaction_read_only": "off"}


def session_settings(major: int) -> List[str]:
    return ["SET LOCAL %s = '%s'" % item for item in unhindered(major).items()] + list(_SESSION_SETTINGS)


def connection_parameters(server: Server, libpq: int) -> Dict[str, str]:
    """What the user gave, over what notices a dead peer. `libpq`: its major version."""
    own = dict(DEAD_PEER + ((SENT_IN_VAIN,) if libpq >= 12 else ()))
    return {**own, **dict(server.connect_params)}


def require() -> None:
    if psycopg2 is None:
        raise UsageError("the Python package psycopg2 is not installed", hint="Install psycopg2 or psycopg2-binary.")


class Session:
    """One connection. Errors come up as ServerError (cannot connect) or BackupError, in the server's own words."""

    def __init__(self, server: Server, database: str, autocommit: bool = True, patience: float = 0) -> None:
        """`patience`: seconds for which a server that does not listen is asked again, as it may be restarting. One that
        says it is starting up is asked for STARTING."""
        require()
        self._server, self._database = server, database
        options: Dict[str, Any] = {
            "host": server.host,
            "user": server.user,
            "password": server.password,
            "sslmode": server.ssl_mode,
            "sslrootcert": server.ca_cert,
            "sslcert": server.ssl_cert,
            "sslkey": server.ssl_key,
        }
        options = {name: value for name, value in options.items() if value}
        options.update(connection_parameters(server, psycopg2.extensions.libpq_version() // 10000))
        options.update(
            dbname=database,
            port=server.port,
            connect_timeout=server.connect_timeout,
            application_name="pgstream.backup",
        )
        self._options = options
        began = time.monotonic()
        while True:
            try:
                self._connection = psycopg2.connect(**options)
                break
            except psycopg2.Error as error:
                if time.monotonic() - began >= _worth_waiting(str(error), patience):
                    raise ServerError(
                        "PostgreSQL unreachable at %s: %s" % (place(server), str(error).strip()),
                        hint=_connection_hint(str(error)),
                    ) from None
            time.sleep(CONNECT_PAUSE)
        try:
            self._settle(autocommit)
        except psycopg2.Error as error:
            self.close()
            raise translate(error) from None
        except BaseException:
            self.close()
            raise

    def _settle(self, autocommit: bool) -> None:
        self._connection.autocommit = True
        self.version: int = self._connection.server_version  # server_version_num
        self.major: int = self.version // 10000
        self.encoding = self._connection.info.parameter_status("server_encoding") or "UTF8"
        self.codec = "latin-1"
        # Names of an SQL_ASCII database are bytes of no known encoding: LATIN1 carries each one unchanged.
        client = "LATIN1" if self.encoding == "SQL_ASCII" else self.encoding
        self._connection.set_client_encoding(client)
        self.codec = psycopg2.extensions.encodings[self._connection.encoding]
        self.pooled = self._connection.info.backend_pid != self._backend()
        if self.pooled:
            self._refuse_transaction_pooling()
        self.execute("; ".join("SET %s = '%s'" % item for item in unhindered(self.major).items()))
        self._connection.autocommit = autocommit

    @property
    def lost(self) -> bool:
        """Whether a statement has found the connection gone."""
        return bool(self._connection.closed)

    def _backend(self) -> int:
        return int(self.value("SELECT pg_catalog.pg_backend_pid()"))

    def _refuse_transaction_pooling(self) -> None:
        """A pooler that hands out server connections by the transaction gives the one that we have just used to the
        next who begins one. Then settings go astray, and locks and temporary names with them."""
        ours, seen = self._backend(), queue.Queue()  # type: Tuple[int, queue.Queue[int]]

        def look() -> None:
            try:
                other = psycopg2.connect(**self._options)
            except psycopg2.Error:
                seen.put(0)
                return
            try:
                with other.cursor() as cursor:
                    cursor.execute("SELECT pg_catalog.pg_backend_pid()")
                    seen.put(cursor.fetchone()[0])
            except psycopg2.Error:
                seen.put(ours)  # not even transactions: a pool of single statements
            finally:
                other.close()

        threading.Thread(target=look, name="pooler", daemon=True).start()
        try:
            theirs = seen.get(timeout=POOLER_PATIENCE)
        except queue.Empty:
            return  # a pool of sessions of which none is free
        if theirs == ours:
            raise ServerError(
                "a pooler in transaction mode stands before PostgreSQL at %s" % place(self._server),
                hint="Connect to PostgreSQL itself, or to a pool in session mode.",
            )

    def rows(self, sql: str, parameters: Optional[Sequence[object]] = None) -> List[Tuple[Any, ...]]:
        def run() -> List[Tuple[Any, ...]]:
            try:
                with self._connection.cursor() as cursor:
                    cursor.execute(sql, parameters)
                    return cursor.fetchall() if cursor.description else []
            except psycopg2.Error as error:
                raise translate(error) from None

        return self._interruptible(run)

    def value(self, sql: str, parameters: Optional[Sequence[object]] = None) -> Any:
        rows = self.rows(sql, parameters)
        return rows[0][0] if rows else None

    def execute(self, sql: str, parameters: Optional[Sequence[object]] = None) -> None:
        self.rows(sql, parameters)

    def _interruptible(self, work: Callable[[], Result]) -> Result:
        """Any statement may wait for ever: for a lock, for a server that is gone. So it runs in a thread of its own,
        and the main thread, which signals interrupt, can stop waiting: psycopg2 itself never would."""
        if threading.current_thread() is not threading.main_thread():
            return work()
        results: List[Result] = []
        failures: List[BaseException] = []
        done = threading.Event()  # not join: a signal that interrupts it makes CPython take the thread for ended

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                failures.append(error)
            finally:
                done.set()

        threading.Thread(target=run, name="statement", daemon=True).start()
        try:
            done.wait()
        except BaseException:
            self.stop(done)
            raise
        if failures:
            raise failures[0]
        return results[0]

    def stop(self, done: threading.Event) -> None:
        """Cancel the statement that another thread is at, and wait for it to be `done`; where the server does not hear
        of it, end the connection under it."""
        threading.Thread(target=self.cancel, name="cancel", daemon=True).start()
        if not done.wait(CANCEL_PATIENCE):
            try:
                with socket.socket(fileno=os.dup(self._connection.fileno())) as connection:
                    connection.shutdown(socket.SHUT_RDWR)
            except (psycopg2.Error, OSError):
                return  # it was closed just now
            done.wait(CANCEL_PATIENCE)

    def copy_to(self, sql: str, sink: Any) -> int:
        """COPY ... TO STDOUT into `sink.write`; the number of rows by the server's own count."""

        def copy() -> int:
            try:
                with self._connection.cursor() as cursor:
                    cursor.copy_expert(sql, sink, 1 << 20)
                    return int(cursor.rowcount)
            except psycopg2.Error as error:
                raise translate(error) from None

        return self._interruptible(copy)

    def commit(self) -> None:
        try:
            self._connection.commit()
        except psycopg2.Error as error:
            raise translate(error) from None

    def cancel(self) -> None:
        """Stop the statement that another thread is running on this connection. Not by psycopg2's own call, which
        holds the interpreter's lock until the server answers: one that is gone would stop every thread."""
        try:
            with Session(self._server, self._database) as other:
                other.rows("SELECT pg_catalog.pg_cancel_backend(%s)", (self._connection.info.backend_pid,))
        except BackupError:
            pass

    def close(self) -> None:
        try:
            self._connection.close()
        except psycopg2.Error:
            pass

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def share_out(
    tasks: Sequence[Task], jobs: int, connect: Callable[[], Session], work: Callable[[Session, Task], None]
) -> None:
    """Call `work` on every task in order of start, in as many sessions as there are jobs, each at one task at a time.
    The first failure cancels what the others are at."""
    sessions: List[Session] = []
    idle: "queue.SimpleQueue[Session]" = queue.SimpleQueue()
    ended = threading.Event()

    def one(task: Task) -> None:
        session = idle.get()
        work(session, task)
        idle.put(session)

    def stop() -> None:
        for session in sessions:
            threading.Thread(target=session.stop, args=(ended,), name="stop", daemon=True).start()

    try:
        for _number in range(min(jobs, len(tasks))):
            sessions.append(connect())
            idle.put(sessions[-1])
        run_parallel(tasks, one, len(sessions), stop)
    finally:
        ended.set()
        for session in sessions:
            session.close()


def _worth_waiting(said: str, patience: float) -> float:
    """Seconds to go on asking a server of which a connection heard this. What is refused for a reason is final."""
    if not patience:
        return 0
    if "the database system is" in said:  # starting up, shutting down, in recovery mode, not yet accepting connections
        return STARTING
    absent = ("Connection refused", "No such file", "closed the connection")  # the last by a proxy that is in between
    return patience if any(words in said for words in absent) else 0


def place(server: Server) -> str:
    return "%s:%d" % (server.host or "the local socket", server.port)


def translate(error: Any) -> BackupError:
    """A psycopg2 error as one sentence of the server's, with a hint where a common cause is known."""
    diagnostics = error.diag
    # Without the server's word it is libpq's, whose first line says it; the others guess.
    text = diagnostics.message_primary or str(error).strip().partition("\n")[0] or type(error).__name__
    if diagnostics.message_detail:
        text = "%s (%s)" % (text, diagnostics.message_detail)
    code = error.pgcode or ""
    hints = {
        "53200": "Raise max_locks_per_transaction on the server: every table dumped needs one lock.",
        "55P03": "Another session holds a lock on the table; raise lock_timeout, or run when it is done.",
        "42501": "Grant the role what it lacks: pg_read_all_data is enough for most backups.",
        "3D000": "Check the database's name.",
        "55006": "Other sessions are connected to the database.",
    }
    hint = hints.get(code, "") or hint_of(text) or diagnostics.message_hint or ""
    cls = ServerError if code[:2] in ("08", "28", "57") or code in ("3D000",) or not code else BackupError
    return cls(text, hint=hint)


def _connection_hint(text: str) -> str:
    if "password authentication failed" in text or "no password supplied" in text:
        return "Check user and password."
    if "does not exist" in text:
        return "Check the names of database and role."
    if "Connection refused" in text or "could not translate" in text or "No such file" in text:
        return "Check host and port, and that the server runs."
    return ""
