# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""rclone as a store: the real program on real servers, with what all stores promise, a directory as the measure."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _pgstream import catalog
from _pgstream.errors import (
    Cancelled,
    IntegrityError,
    Interrupted,
    NoStoreError,
    NotFoundError,
    StorageError,
    UsageError,
)
from _pgstream.model import Storage
from _pgstream.process import Process
from _pgstream.store import rclone, rclone_client, rclone_upload, retry
from _pgstream.store.base import REMOVED, Store
from _pgstream.store.base import _door as open_store  # without what encrypts above it
from _pgstream.store.rclone_client import RcloneError, first_cause_in

from tests.support import servers
from tests.support.remotes import RemoteServer, obscured, variables
from tests.support.runs import wait_until

KEY = "p/db_2026-01-31T02:00:00Z.sql.gz"
MIB = 1 << 20
DAY = 86400
KINDS = ["local", "alias", "sftp", "webdav", "s3", "crypt"]


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this host's own remotes; no waiting before retries."""
    for name in list(os.environ):
        if name.startswith("RCLONE_"):
            monkeypatch.delenv(name)
    config = tmp_path / "rclone.conf"
    config.touch(0o600)
    monkeypatch.setenv("RCLONE_CONFIG", str(config))
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.0)


@pytest.fixture(scope="module")
def _sftp() -> Iterator[RemoteServer]:
    with RemoteServer("sftp") as server:
        yield server


@pytest.fixture(scope="module")
def _webdav() -> Iterator[RemoteServer]:
    with RemoteServer("webdav") as server:
        yield server


@pytest.fixture(scope="module")
def _s3_with_checksums() -> Iterator[servers.S3Server]:
    with servers.S3Server(options=["--etag-hash", "MD5"]) as server:
        yield server


class Place:
    """One store, and the files that its server keeps."""

    def __init__(self, storage: Storage, root: Path) -> None:
        self.storage = storage
        self.root = root
        self.store = open_store(storage)

    def files(self) -> List[str]:
        return sorted(str(each.relative_to(self.root)) for each in self.root.rglob("*") if each.is_file())

    def partial(self) -> Path:
        (name,) = [name for name in self.files() if name.endswith(".partial")]
        return self.root / name


@pytest.fixture
def place_of(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Place]:
    """A fresh directory, behind a store of some kind."""

    def make(kind: str, **changes: Any) -> Place:
        options: Dict[str, Any] = {"kind": "rclone", "rclone_path": servers.find_rclone(), "prefix": "p", **changes}
        name = "d" + os.urandom(6).hex()
        if kind in ("local", "alias"):
            root = tmp_path / name
            environment = variables("alias", type="alias", remote=str(tmp_path))
        elif kind.startswith("s3"):
            s3, kind = request.getfixturevalue("s3" if kind == "s3" else "_s3_with_checksums"), "s3"
            root = s3.root / name
            environment = variables("s3", type="s3", provider="Other", endpoint=s3.endpoint_url, region=s3.region,
                                    access_key_id=s3.access_key, secret_access_key=s3.secret_key)  # fmt: skip
        else:
            server = request.getfixturevalue("_webdav" if kind == "webdav" else "_sftp").start()
            root = server.root / name
            environment = server.remote("webdav" if kind == "webdav" else "sftp")
            if kind == "crypt":
                environment.update(variables("crypt", type="crypt", remote="sftp:" + name, password=obscured("word")))
        root.mkdir()
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        if kind == "local":
            return Place(Storage(kind="local", directory=str(root), prefix="p"), root)
        return Place(Storage(rclone_remote="crypt:" if kind == "crypt" else "%s:%s" % (kind, name), **options), root)

    return make


@pytest.fixture(params=KINDS)
def place(request: pytest.FixtureRequest, place_of: Callable[..., Place]) -> Place:
    return place_of(request.param)


@pytest.fixture
def sftp(place_of: Callable[..., Place]) -> Place:
    return place_of("sftp")


@pytest.fixture
def alias(place_of: Callable[..., Place]) -> Place:
    return place_of("alias")


def put(store: Store, key: str, data: bytes, overwrite: bool = False) -> None:
    upload = store.begin(key, overwrite)
    upload.write([data])
    upload.commit()


def listed(store: Store, prefix: str = "") -> List[str]:
    return [item.key for item in store.list(prefix)]


def rclone_of(upload: Any) -> Process:
    process = upload._process
    assert process is not None
    return process


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


# --- what all stores promise ------------------------------------------------------------------------------------------


def test_written_listed_read_and_removed(place: Place) -> None:
    store = place.store
    upload = store.begin(KEY, False)
    upload.expect(1000)
    upload.write([b"hello ", b"", b"wor"])
    upload.write([memoryview(b"ld")])
    assert store.stat(KEY) is None and listed(store) == []
    done = upload.commit()
    assert (done.key, done.size) == (KEY, 11) and done.modified_at.endswith("Z")
    assert store.stat(KEY) == done == store.probe(KEY)
    assert [(item.key, item.size) for item in store.list("p/")] == [(KEY, 11)]  # its time may be rounded
    assert store.read(KEY, 0, 11) == b"hello world" and store.read(KEY, 6, 3) == b"wor"
    assert len(place.files()) == 1
    upload.abort()
    assert store.stat(KEY) == done
    assert [one.outcome for one in store.delete_many([KEY, KEY])] == [REMOVED, REMOVED]
    assert store.stat(KEY) is None and place.files() == []


def test_megabytes_in_odd_pieces(place: Place) -> None:
    data = os.urandom(5 * MIB + 123)
    upload = place.store.begin(KEY, False)
    for start in range(0, len(data), 777777):
        upload.write([data[start : start + 777777]])
    assert upload.commit().size == len(data)
    assert place.store.read(KEY, 0, len(data)) == data
    assert place.store.read(KEY, 4 * MIB - 1, MIB) == data[4 * MIB - 1 : 5 * MIB - 1]


def test_nothing_is_seen_of_what_is_aborted(place: Place) -> None:
    upload = place.store.begin(KEY, False)
    upload.write([os.urandom(3 * MIB)])
    assert place.store.stat(KEY) is None and listed(place.store) == []
    upload.abort()
    upload.abort()
    assert place.store.stat(KEY) is None and listed(place.store) == [] and place.files() == []


def test_a_taken_key_is_not_overwritten(place: Place) -> None:
    first, second = place.store.begin(KEY, False), place.store.begin(KEY, False)
    first.write([b"first"])
    second.write([b"again"])
    first.commit()
    with pytest.raises(StorageError, match="exists already.*Another run"):
        second.commit()
    second.abort()
    assert place.store.read(KEY, 0, 5) == b"first" and len(place.files()) == 1


def test_overwrite_where_it_is_asked(place: Place) -> None:
    """Of the same size within the same second: a store that compares those would keep the old one."""
    put(place.store, KEY, b"old!")
    put(place.store, KEY, b"new!", overwrite=True)
    assert place.store.read(KEY, 0, 4) == b"new!" and len(place.files()) == 1


def test_what_is_not_there(place: Place) -> None:
    store = place.store
    assert listed(store, "p/") == [] and store.sweep(lambda key: True) == []
    with pytest.raises(NotFoundError, match="Backup not found: .*p/none"):
        store.read("p/none", 0, 1)
    assert store.stat("p/none") is None and store.stat("p") is None
    store.delete("p/none")
    put(store, KEY, b"12345")
    with pytest.raises(IntegrityError, match="ended 3 bytes early"):
        store.read(KEY, 3, 5)
    with pytest.raises(IntegrityError, match="ended 2 bytes early"):
        store.read(KEY, 7, 2)
    assert store.stat("p") is None


def test_listing(place: Place) -> None:
    for key in ("p/b.sql.gz", "p/a [1] {x} *?.sql.gz", "q/a.sql.gz", "p2/a", "p/deep/\u00e9.sql"):
        put(place.store, key, b"12")
    assert sorted(listed(place.store, "p/")) == ["p/a [1] {x} *?.sql.gz", "p/b.sql.gz", "p/deep/\u00e9.sql"]
    assert sorted(listed(place.store, "p")) == sorted(listed(place.store, "p/") + ["p2/a"])
    assert len(listed(place.store)) == 5 and [item.size for item in place.store.list("q/")] == [2]
    assert place.store.read("p/a [1] {x} *?.sql.gz", 1, 1) == b"2"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "/etc/x", "..", "a/.."])
def test_keys_that_lead_out_are_refused(place: Place, key: str) -> None:
    for use in (lambda: place.store.begin(key, True), lambda: place.store.stat(key), lambda: place.store.delete(key)):
        with pytest.raises(StorageError, match="leads out of"):
            use()
    assert place.files() == []


def test_check(place: Place) -> None:
    findings = place.store.check()
    bad = [each.name for each in findings if not each.ok]
    assert bad == (["checksum"] if place.storage.rclone_remote.startswith(("crypt", "webdav")) else [])
    assert {"store writable", "store readable"} <= {each.name for each in findings} and place.files() == []


def test_an_empty_object(alias: Place) -> None:
    alias.store.begin(KEY, False).commit()
    assert alias.store.stat(KEY).size == 0  # type: ignore[union-attr]


# --- partial objects --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["alias", "sftp", "webdav"])
def test_rclone_is_killed_while_it_writes(place_of: Callable[..., Place], kind: str) -> None:
    place = place_of(kind)
    upload = place.store.begin(KEY, False)
    upload.write([os.urandom(3 * MIB)])
    rclone_of(upload).kill()
    with pytest.raises(StorageError, match="killed by signal 9"):
        for _unused in range(100):
            upload.write([os.urandom(MIB)])
    upload.abort()
    assert place.store.stat(KEY) is None and place.files() == []


def test_rclone_is_killed_before_the_end(alias: Place) -> None:
    upload = alias.store.begin(KEY, False)
    upload.write([b"x" * 1000])
    rclone_of(upload).kill()
    with pytest.raises(StorageError, match="killed by signal 9"):
        upload.commit()
    upload.abort()
    assert alias.files() == []


@pytest.mark.parametrize("kind", ["sftp", "webdav", "s3"])
def test_the_server_is_killed_while_it_is_written_to(
    place_of: Callable[..., Place], request: pytest.FixtureRequest, kind: str
) -> None:
    """The partial object cannot be removed then; the key stays free."""
    place = place_of(kind, stall_timeout=1)
    server = request.getfixturevalue("s3" if kind == "s3" else "_" + kind)
    upload = place.store.begin(KEY, False)
    upload.write([os.urandom(3 * MIB)])
    server.kill()
    with pytest.raises(StorageError) as caught:
        for _unused in range(100):
            upload.write([os.urandom(MIB)])
        upload.commit()
    assert caught.value.exit_code == 4 and place.storage.root in str(caught.value)
    with pytest.raises(StorageError, match="partial is left at .*day old"):
        upload.abort()
    server.start()
    assert place.store.stat(KEY) is None and listed(place.store) == []
    assert all(name.endswith(".partial") or ".rclone_temp" in name for name in place.files())


def test_an_rclone_that_does_nothing_is_given_up(place_of: Callable[..., Place], tmp_path: Path) -> None:
    """Stopped while it is fed, and while it is waited for: a run is not held up for ever, whatever rclone waits for."""
    place = place_of("alias", stall_timeout=1)
    upload = place.store.begin(KEY, False)
    upload.write([b"x"])
    os.kill(rclone_of(upload).pid, signal.SIGSTOP)
    with pytest.raises(StorageError, match="nothing happened for 6 s"):
        upload.write([bytes(8 * MIB)])
    upload.abort()
    assert place.files() == []
    with acting(place, tmp_path, "lsjson", before="kill -STOP $$") as store:
        client: Any = store.client  # type: ignore[attr-defined]
        with pytest.raises(StorageError, match="nothing happened for 6 s"):
            client.once("lsjson", client.place(""))


def test_a_killed_run_leaves_what_the_next_sweeps(sftp: Place) -> None:
    """rclone takes the death of its feeder for the end of the stream: what it stores then is under the partial name."""
    code = (
        "import os, signal, sys; from _pgstream.store.base import open_store; from _pgstream.model import Storage;"
        "u = open_store(Storage(kind='rclone', rclone_remote=%r, rclone_path=%r, prefix='p')).begin(%r, False);"
        "u.write([os.urandom(3 << 20)]); print(u._process.pid); sys.stdout.flush();"
        "os.kill(os.getpid(), signal.SIGKILL)" % (sftp.storage.rclone_remote, sftp.storage.rclone_path, KEY)
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=False,
                          env=dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path)))  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    wait_until(lambda: not Path("/proc", done.stdout.decode().strip()).exists(), "the end of rclone")
    store = sftp.store
    left = sftp.partial()
    assert left.stat().st_size == 3 * MIB and sftp.files() == [str(left.relative_to(sftp.root))]
    assert store.stat(KEY) is None and listed(store) == [] and catalog.candidates(store) == []
    assert store.sweep(lambda key: True) == []  # it is young
    aged(left, DAY + 60)
    assert store.sweep(lambda key: key != KEY) == [] and left.exists()  # not ours
    assert store.sweep(lambda key: key == KEY) == [KEY] and sftp.files() == []


def test_sweep_leaves_other_files(alias: Place) -> None:
    token = "0123456789abcdef"
    names = ["x.partial", "x.pgstream-%s.partial.sql", "x.pgstream-1%s.partial", "deep/x.pgstream-%s.partial"]
    names = [name.replace("%s", token) for name in names]
    for name in names:
        path = alias.root / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        aged(path, 3 * DAY)
    assert alias.store.sweep(lambda key: True) == [] and len(alias.files()) == 4
    assert len(listed(alias.store)) == 3  # all but the partial one of a deeper prefix


def test_an_interrupt_at_the_start_leaves_nothing(alias: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_self: Any, _data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Process, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        alias.store.begin(KEY, False)
    assert alias.files() == []


def test_an_aborted_multipart_upload_is_aborted_there_too(place_of: Callable[..., Place], s3: Any) -> None:
    """rclone is asked to stop before it is killed, so that nothing stays that is paid for."""
    place = place_of("s3")
    bucket = place.root.name
    upload = place.store.begin(KEY, False)
    for _unused in range(24):
        upload.write([os.urandom(MIB)])
    wait_until(lambda: s3.uploads(bucket), "the multipart upload")
    upload.abort()
    assert s3.uploads(bucket) == [] and place.files() == []


def test_nothing_is_written_after_an_abort(alias: Place) -> None:
    upload = alias.store.begin(KEY, False)
    upload.abort()
    with pytest.raises(Cancelled):
        upload.write([b"x"])
    assert alias.files() == []


# --- the commit -------------------------------------------------------------------------------------------------------


@contextmanager
def acting(place: Place, tmp_path: Path, operation: str, before: str = "", after: str = "") -> Iterator[Store]:
    """A store whose rclone is a script: around one operation of the real one it does something else, once."""
    script, used = tmp_path / "rclone.sh", tmp_path / "used"
    text = """#!/bin/sh
if [ "$1" = %s ] && mkdir %s 2> /dev/null; then
%s
%s "$@"; status=$?
%s
exit $status
fi
exec %s "$@"
""" % (operation, used, before, place.storage.rclone_path, after, place.storage.rclone_path)
    script.write_text(text)
    script.chmod(0o700)
    yield open_store(replace(place.storage, rclone_path=str(script)))
    assert used.exists(), "rclone %s was never called" % operation


@pytest.mark.parametrize("kind", ["sftp", "s3"])
def test_the_answer_to_the_rename_is_lost(place_of: Callable[..., Place], tmp_path: Path, kind: str) -> None:
    place = place_of(kind)
    with acting(place, tmp_path, "moveto", after="status=5") as store:
        put(store, KEY, b"whole")
    assert place.store.read(KEY, 0, 5) == b"whole" and len(place.files()) == 1


def test_an_interrupt_meets_the_rename_once_it_is_made(sftp: Place, tmp_path: Path) -> None:
    """What is told agrees with what is there. rclone makes the rename, and does not end."""
    with acting(sftp, tmp_path, "moveto", after="touch %s; exec sleep 60" % (tmp_path / "renamed")) as store:
        upload = store.begin(KEY, False)
        upload.write([b"whole"])

        def interrupt(_number: int, _frame: Any) -> None:
            raise Interrupted("stop")

        before = signal.signal(signal.SIGUSR1, interrupt)
        threading.Thread(target=_signal_when, args=(tmp_path / "renamed",), daemon=True).start()
        try:
            with pytest.raises(Interrupted):
                upload.commit()
        finally:
            signal.signal(signal.SIGUSR1, before)
        made = upload.abort()
    assert made is not None and sftp.store.stat(KEY) == made and len(sftp.files()) == 1


def _signal_when(path: Path) -> None:
    wait_until(path.exists, "the rename")
    os.kill(os.getpid(), signal.SIGUSR1)


def test_a_rename_that_fails_at_first_is_made_again(sftp: Place, tmp_path: Path) -> None:
    with acting(sftp, tmp_path, "moveto", before="exit 5") as store:
        put(store, KEY, b"whole")
    assert sftp.store.read(KEY, 0, 5) == b"whole" and len(sftp.files()) == 1


def test_a_copy_whose_source_stayed_is_a_commit(place_of: Callable[..., Place], tmp_path: Path) -> None:
    """The remote copies and removes; the removal failed. The checksum says whose the object is."""
    place = place_of("s3 with checksums")
    before = '%s copyto "$3" "$4"; exit 5' % place.storage.rclone_path
    with acting(place, tmp_path, "moveto", before=before) as store:
        put(store, KEY, b"whole")
    assert place.store.read(KEY, 0, 5) == b"whole" and len(place.files()) == 1


@pytest.mark.parametrize("kind", ["sftp", "webdav", "s3"])
def test_another_run_was_quicker_by_a_moment(place_of: Callable[..., Place], tmp_path: Path, kind: str) -> None:
    """The key was free when it was looked at."""
    place = place_of(kind)
    with acting(place, tmp_path, "moveto", before='printf other | %s rcat "$4"' % place.storage.rclone_path) as store:
        upload = store.begin(KEY, False)
        upload.write([b"our's"])
        with pytest.raises(StorageError, match="exists already"):
            upload.commit()
        upload.abort()
    assert place.store.read(KEY, 0, 5) == b"other" and len(place.files()) == 1


@pytest.mark.parametrize("kind, spoil, says", [
    ("sftp", 'truncate -s 3 "$3"', "has 3 bytes after the upload, 5 bytes were sent"),
    ("webdav", 'truncate -s 3 "$3"', "has 3 bytes after the upload, 5 bytes were sent"),
    ("sftp", 'printf X | dd of="$3" conv=notrunc 2> /dev/null', "has another sha1 than what was sent"),
    ("alias", 'printf X | dd of="$3" conv=notrunc 2> /dev/null', "has another sha256 than what was sent"),
])  # fmt: skip
def test_what_is_stored_is_what_was_sent(
    place_of: Callable[..., Place], tmp_path: Path, kind: str, spoil: str, says: str
) -> None:
    """Spoilt between the upload and the comparison, which begins with a look at the partial object."""
    place = place_of(kind)
    upload: Any = place.store.begin(KEY, False)
    upload.write([b"whole"])
    real = upload._end

    def end() -> None:
        real()
        subprocess.run(["sh", "-c", spoil, "sh", "", "", str(place.partial())], check=True)

    upload._end = end
    with pytest.raises(IntegrityError, match=says):
        upload.commit()
    upload.abort()
    assert place.files() == []


def test_a_spoilt_rename_is_taken_back(alias: Place, tmp_path: Path) -> None:
    spoil = "truncate -s 3 %s/%s" % (alias.root, KEY)
    with acting(alias, tmp_path, "moveto", after=spoil) as store:
        upload = store.begin(KEY, False)
        upload.write([b"whole"])
        with pytest.raises(IntegrityError, match="has 3 bytes after the upload, 5 bytes were sent"):
            upload.commit()
        upload.abort()
    assert alias.files() == []


def test_an_interrupted_replacement_loses_nothing(alias: Place, tmp_path: Path) -> None:
    """rclone removes the old object before it renames the new one. If it dies between, the new one is all there is."""
    put(alias.store, KEY, b"old")
    with acting(alias, tmp_path, "moveto", before="rm %s/%s; exit 7" % (alias.root, KEY)) as store:
        upload = store.begin(KEY, True)
        upload.write([b"new"])
        with pytest.raises(StorageError):
            upload.commit()
        with pytest.raises(StorageError, match="to be replaced is gone, and .*partial is whole.*rclone moveto"):
            upload.abort()
    assert alias.partial().read_bytes() == b"new"


# --- reading ----------------------------------------------------------------------------------------------------------


def cut_once(place: Place, tmp_path: Path, then: str = "") -> Any:
    """The first `cat` gives a mebibyte, and dies of it."""
    before = '%s "$@" | head -c %d; %s\nexit 5' % (place.storage.rclone_path, MIB, then)
    return acting(place, tmp_path, "cat", before=before)


def test_a_broken_read_is_resumed(sftp: Place, tmp_path: Path) -> None:
    data = os.urandom(3 * MIB)
    put(sftp.store, KEY, data)
    with cut_once(sftp, tmp_path) as store:
        assert hashlib.sha256(store.read(KEY, 5, 3 * MIB - 5)).digest() == hashlib.sha256(data[5:]).digest()


def test_rclone_is_killed_while_it_reads(sftp: Place) -> None:
    data = os.urandom(20 * MIB)
    put(sftp.store, KEY, data)
    client: Any = sftp.store.client  # type: ignore[attr-defined]
    spawned: List[Process] = []
    real = client.spawn

    def spawn(*arguments: str, **more: Any) -> Process:
        process = real(*arguments, **more)
        if arguments[0] == "cat":
            spawned.append(process)
        return process

    client.spawn = spawn
    got, pieces = b"", sftp.store.stream(KEY, 0, len(data))
    for piece in pieces:
        if not got:
            spawned[0].kill()
        got += piece
    assert got == data and len(spawned) == 2


@pytest.mark.parametrize("size", [3 * MIB, 2 * MIB])
def test_a_replaced_object_is_not_mixed_in(sftp: Place, tmp_path: Path, size: int) -> None:
    put(sftp.store, KEY, os.urandom(3 * MIB))
    aged(sftp.root / KEY, 100)
    other = tmp_path / "other"
    other.write_bytes(os.urandom(size))
    with cut_once(sftp, tmp_path, "cp %s %s" % (other, sftp.root / KEY)) as store:
        with pytest.raises(IntegrityError, match="was replaced while it was read"):
            store.read(KEY, 0, 3 * MIB)


def test_an_object_that_vanishes_while_it_is_read(sftp: Place, tmp_path: Path) -> None:
    put(sftp.store, KEY, os.urandom(3 * MIB))
    with cut_once(sftp, tmp_path, "rm %s" % (sftp.root / KEY)) as store:
        with pytest.raises(NotFoundError):
            store.read(KEY, 0, 3 * MIB)


def test_a_read_that_is_given_up_leaves_no_process(sftp: Place) -> None:
    put(sftp.store, KEY, os.urandom(8 * MIB))
    pieces = sftp.store.stream(KEY, 0, 8 * MIB)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    client: Any = sftp.store.client  # type: ignore[attr-defined]
    assert not [each for each in client._processes._alive if each.running()]


def test_thousands_are_listed_by_one_process(alias: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (alias.root / "p").mkdir()
    for number in range(3000):
        (alias.root / "p" / ("db%d_2026-01-31T02:00:00Z.sql.gz" % number)).touch()
    client: Any = alias.store.client  # type: ignore[attr-defined]
    calls: List[str] = []
    real = client.spawn
    monkeypatch.setattr(client, "spawn", lambda *each, **more: calls.append(each[0]) or real(*each, **more))
    assert len(set(listed(alias.store, "p/"))) == 3000 and calls == ["lsjson"]


def test_a_listing_that_breaks_is_an_error(alias: Place, tmp_path: Path) -> None:
    for number in range(3):
        put(alias.store, "p/%d.sql" % number, b"x")
    before = '%s "$@" | head -n 2; exit 5' % alias.storage.rclone_path
    with acting(alias, tmp_path, "lsjson", before=before) as store:
        with pytest.raises(StorageError, match="exited with status 5"):
            list(store.list("p/"))


# --- remotes that will not do, and faults -----------------------------------------------------------------------------


def test_a_remote_without_streams_is_refused(
    place_of: Callable[..., Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclone would write the whole stream to a disk first."""
    place = place_of("webdav")
    monkeypatch.setenv("RCLONE_CONFIG_WEBDAV_VENDOR", "other")
    store = open_store(place.storage)
    with pytest.raises(UsageError, match="takes no stream of unknown length"):
        store.begin(KEY, False)
    assert [(each.name, each.ok) for each in store.check()][:2] == [("streaming upload", False), ("renaming", True)]
    assert len(store.check()) == 3 and place.files() == []


def test_a_remote_that_neither_renames_nor_copies_is_refused() -> None:
    findings = rclone.require({"Features": {"PutStream": True, "Move": False, "Copy": False}, "Hashes": None}, "r:")
    assert [each.ok for each in findings] == [True, False, False] and findings[1].needed and not findings[2].needed


@pytest.mark.parametrize("kind", ["alias", "sftp", "webdav", "s3"])
def test_a_path_that_is_not_there(place_of: Callable[..., Place], kind: str) -> None:
    place = place_of(kind)
    store = open_store(replace(place.storage, rclone_remote=kind + ":no-such-place"))
    for use in (lambda: store.begin(KEY, False), lambda: list(store.list("")), lambda: list(store.list("p/"))):
        with pytest.raises(NoStoreError, match="does not exist.*rclone mkdir"):
            use()
    assert [each.ok for each in store.check() if each.name == "store writable"] == [False]
    assert not (place.root.parent / "no-such-place").exists()


def test_a_server_that_is_gone(place_of: Callable[..., Place], _sftp: RemoteServer) -> None:
    place = place_of("sftp")
    _sftp.kill()
    try:
        with pytest.raises(StorageError, match="rclone, at rclone:sftp:.*connection refused") as caught:
            place.store.stat(KEY)
        assert caught.value.exit_code == 4
    finally:
        _sftp.start()


def test_a_wrong_password_is_told_at_once(sftp: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RCLONE_CONFIG_SFTP_PASS", obscured("wrong-word"))
    store = open_store(sftp.storage)
    monkeypatch.setattr(retry.Retry, "again", lambda _self: pytest.fail("tried again"))
    with pytest.raises(StorageError, match="unable to authenticate.*See the remote's credentials"):
        store.stat(KEY)


@pytest.mark.parametrize("remote", [":sftp,host=h,pass=x:p", ":local:/", "-x:y", "nothing", "a,pass=x:y", "", "a/b:c"])
def test_remotes_that_are_no_names(remote: str) -> None:
    with pytest.raises(UsageError, match="must be remote:path") as caught:
        open_store(Storage(kind="rclone", rclone_remote=remote))
    assert "pass=" not in str(caught.value)


def test_a_remote_that_is_not_configured() -> None:
    store = open_store(Storage(kind="rclone", rclone_remote="nope:x", rclone_path=servers.find_rclone()))
    with pytest.raises(UsageError, match="didn't find section.*listremotes") as caught:
        store.stat(KEY)
    assert caught.value.exit_code == 2


def test_no_program() -> None:
    with pytest.raises(UsageError, match="/nowhere/rclone is not there.*BACKUP_RCLONE_PATH"):
        open_store(Storage(kind="rclone", rclone_remote="a:b", rclone_path="/nowhere/rclone"))


def test_a_configuration_file(alias: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "other.conf"
    config.write_text("[mine]\ntype = alias\nremote = %s\nsome_token = secret-of-the-file\n" % alias.root)
    storage = replace(alias.storage, rclone_remote="mine:", rclone_config=str(config))
    assert storage.url("k") == "rclone:mine:k" and alias.storage.url("k").endswith("/k")
    store: Any = open_store(storage)
    put(store, KEY, b"x")
    assert alias.files() == [KEY]
    monkeypatch.setenv("RCLONE_CONFIG_MINE_PASS", "secret-of-the-environment")
    store = open_store(storage)
    said = "2026/01/31 02:00:00 ERROR : no secret-of-the-file, secret-of-the-environment at https://me:word@host/x"
    shown = store.client.failure(1, said).sentence()
    assert shown.count("***") == 3 and "secret" not in shown and "word" not in shown and "host" in shown


def test_no_secret_and_nothing_of_postgres_goes_to_rclone(
    sftp: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_PASSWORD", "the-database's")
    monkeypatch.setenv("PGPASSWORD", "the-database's")
    monkeypatch.setenv("RCLONE_VERBOSE", "2")
    monkeypatch.setenv("RCLONE_DRY_RUN", "true")
    seen = tmp_path / "seen"
    with acting(sftp, tmp_path, "lsjson", before='echo "$@" > %s; env >> %s' % (seen, seen)) as store:
        assert store.stat(KEY) is None
    text = seen.read_text()
    assert "the-database" not in text and "RCLONE_VERBOSE" not in text and "DRY_RUN" not in text
    arguments = text.splitlines()[0]
    assert arguments.startswith("lsjson") and os.environ["RCLONE_CONFIG_SFTP_PASS"] not in arguments


@pytest.mark.parametrize("status, said, kind, passing", [
    (5, "", RcloneError, True),
    (1, "ERROR : x: connection refused", RcloneError, True),
    (1, "CRITICAL: Failed to create file system: ssh: unable to authenticate", RcloneError, False),
    (1, "ERROR : open x: permission denied", RcloneError, False),
    (-9, "", RcloneError, True),
    (3, "NOTICE: Failed to lsjson: directory not found", RcloneError, False),
    (6, "", RcloneError, False),
    (7, "", RcloneError, False),
    (2, "Error: unknown flag: --stat", UsageError, False),
])  # fmt: skip
def test_exit_statuses(alias: Place, status: int, said: str, kind: Any, passing: bool) -> None:
    error = alias.store.client.failure(status, said)  # type: ignore[attr-defined]
    assert (type(error), getattr(error, "passing", False)) == (kind, passing)
    if status == 2:
        assert "unknown flag: --stat" in error.sentence() and "1.57 or newer" in error.hint


def test_the_first_cause_is_told() -> None:
    said = (
        "2026/01/31 02:00:00 NOTICE: remote: No host key validation is being performed\n"
        "2026/01/31 02:00:01 ERROR : a.sql: Failed to open: the disk burns\n"
        "2026/01/31 02:00:01 NOTICE: Failed to cat with 2 errors: last error was: the smoke\n"
    )
    assert first_cause_in(said) == "a.sql: Failed to open: the disk burns"
    assert first_cause_in(said.splitlines()[2]) == "the smoke" and first_cause_in("") == ""


def test_parts_grow_with_the_database(alias: Place) -> None:
    upload: Any = alias.store.begin(KEY, False)
    upload.expect(1 << 30)
    assert upload._options == ()
    upload.expect(1 << 40)
    flags = dict(zip(upload._options[::2], upload._options[1::2]))
    for flag, parts, _usual in rclone_upload._PARTS:
        assert int(flags[flag].rstrip("M")) * MIB * parts >= 1 << 40
    upload.write([b"x"])  # rclone knows the flags
    assert upload.commit().size == 1


def test_a_name_is_never_a_flag() -> None:
    assert rclone_client.RCLONE_REMOTE.fullmatch("my remote.2:") and not rclone_client.RCLONE_REMOTE.fullmatch("--x:")
