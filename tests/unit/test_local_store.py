# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A directory as a store: an object is whole or not there, and no key leads out of it."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, List

import pytest
from _pgstream.errors import BackupError, IntegrityError, NotFoundError, StorageError
from _pgstream.model import Storage
from _pgstream.store import local as module
from _pgstream.store.base import Store, open_store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEY = "p/db_2026-01-31T02:00:00Z.sql.gz"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(Storage(kind="local", directory=str(tmp_path), prefix="p"))


def put(store: Store, key: str, data: bytes, overwrite: bool = False) -> None:
    upload = store.begin(key, overwrite)
    upload.write([data])
    upload.commit()


def files(path: Path) -> List[str]:
    return sorted(str(each.relative_to(path)) for each in path.rglob("*") if each.is_file())


def listed(store: Store, prefix: str = "") -> List[str]:
    return [item.key for item in store.list(prefix)]


def test_written_and_read(store: Store, tmp_path: Path) -> None:
    upload = store.begin(KEY, False)
    upload.expect(1 << 40)
    upload.write([b"hello ", b"", b"wor"])
    upload.write([memoryview(b"ld")])
    done = upload.commit()
    assert (done.key, done.size) == (KEY, 11) and done.modified_at.endswith("Z")
    assert store.stat(KEY) == done == store.probe(KEY)
    assert store.read(KEY, 0, 11) == b"hello world" and store.read(KEY, 6, 3) == b"wor"
    assert files(tmp_path) == [KEY]
    assert os.stat(tmp_path / KEY).st_mode & 0o077 == 0  # a backup is nobody else's to read


def test_nothing_is_seen_before_the_commit(store: Store, tmp_path: Path) -> None:
    upload = store.begin(KEY, False)
    upload.write([b"x" * 100000])
    assert store.stat(KEY) is None and listed(store) == []
    assert not (tmp_path / KEY).exists()
    upload.commit()
    assert listed(store) == [KEY]


def test_the_bytes_are_on_disk_before_the_name_is(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: List[str] = []
    for name in ("fsync", "link"):
        monkeypatch.setattr(os, name, _noted(steps, name, getattr(os, name)))
    put(store, KEY, b"x")
    assert steps == ["fsync", "link", "fsync"]  # the file, its name, the directory that holds the name


def _noted(steps: List[str], name: str, real: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        steps.append(name)
        return real(*arguments, **named)

    return call


def test_abort_leaves_nothing(store: Store, tmp_path: Path) -> None:
    upload = store.begin(KEY, False)
    upload.write([b"x"])
    upload.abort()
    upload.abort()
    assert files(tmp_path) == [] and store.stat(KEY) is None


def test_abort_after_a_commit_takes_nothing_back(store: Store) -> None:
    upload = store.begin(KEY, False)
    upload.write([b"x"])
    upload.commit()
    upload.abort()
    assert store.read(KEY, 0, 1) == b"x"


def test_a_taken_key_is_not_overwritten(store: Store, tmp_path: Path) -> None:
    """Two writers began before either was done: the second to commit loses."""
    first, second = store.begin(KEY, False), store.begin(KEY, False)
    first.write([b"first"])
    second.write([b"second"])
    first.commit()
    with pytest.raises(StorageError, match="exists already.*Another run"):
        second.commit()
    second.abort()
    assert store.read(KEY, 0, 5) == b"first" and files(tmp_path) == [KEY]


def test_of_many_writers_one_wins(store: Store, tmp_path: Path) -> None:
    uploads = [store.begin(KEY, False) for _unused in range(8)]
    gate = threading.Barrier(8)
    won: List[int] = []

    def commit(number: int) -> None:
        uploads[number].write([b"%d" % number])
        gate.wait(60)
        try:
            uploads[number].commit()
            won.append(number)
        except StorageError:
            uploads[number].abort()

    threads = [threading.Thread(target=commit, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.read(KEY, 0, 1) == b"%d" % won[0] and files(tmp_path) == [KEY]


def test_overwrite_where_it_is_asked(store: Store, tmp_path: Path) -> None:
    put(store, KEY, b"old and longer")
    put(store, KEY, b"new", overwrite=True)
    assert store.read(KEY, 0, 3) == b"new" and files(tmp_path) == [KEY]


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_links(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def link(*_arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    put(store, KEY, b"x")
    upload = store.begin(KEY, False)
    with pytest.raises(StorageError, match="exists already"):
        upload.commit()
    upload.abort()
    assert store.read(KEY, 0, 1) == b"x" and files(tmp_path) == [KEY]


def test_sweep_removes_what_a_dead_writer_left(store: Store, tmp_path: Path) -> None:
    """A writer in another process dies by SIGKILL; one in this process lives, and so does its file."""
    code = (
        "import os, signal; from _pgstream.store.base import open_store; from _pgstream.model import Storage;"
        "u = open_store(Storage(kind='local', directory=%r)).begin(%r, False); u.write([b'x']);"
        "os.kill(os.getpid(), signal.SIGKILL)" % (str(tmp_path), KEY)
    )
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run([sys.executable, "-c", code], env=env, check=False)
    assert done.returncode == -9
    (left,) = files(tmp_path)
    live = store.begin(KEY, False)
    live.write([b"live"])
    assert store.sweep(lambda key: key != KEY) == [] and len(files(tmp_path)) == 2  # not ours
    assert store.sweep(lambda key: key == KEY) == [KEY]
    assert left not in files(tmp_path) and len(files(tmp_path)) == 1  # the living one's is still there
    assert store.sweep(lambda key: True) == []
    live.commit()
    assert files(tmp_path) == [KEY]


def test_sweep_leaves_other_files(store: Store, tmp_path: Path) -> None:
    names = ["p/.hidden", "p/x.pgstream-partial", "p/.x.pgstream-partial.bak", "p/plain"]
    (tmp_path / "p").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert store.sweep(lambda key: True) == []
    assert files(tmp_path) == sorted(names)


def test_sweep_before_the_first_backup(store: Store) -> None:
    assert store.sweep(lambda key: True) == []


@pytest.mark.parametrize("key", [
    "../x", "a/../../x", "/etc/x", "..", ".", "", "a/..", "p/../../../x", "/", "//x",
])  # fmt: skip
def test_keys_that_lead_out_are_refused(store: Store, tmp_path: Path, key: str) -> None:
    outside = sorted(os.listdir(tmp_path.parent))
    for use in (
        lambda: store.begin(key, True),
        lambda: store.stat(key),
        lambda: store.read(key, 0, 1),
        lambda: store.delete(key),
    ):
        with pytest.raises(StorageError, match="leads out of the directory"):
            use()
    assert sorted(os.listdir(tmp_path.parent)) == outside and files(tmp_path) == []


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a", "..", ".", "", "b c", "\u00e9"]), max_size=8).map("/".join))
def test_any_key_stays_inside(tmp_path: Path, key: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir(exist_ok=True)
    try:
        put(open_store(Storage(kind="local", directory=str(inside))), key, b"x", overwrite=True)
    except StorageError:
        pass
    assert sorted(os.listdir(tmp_path)) == ["inside"]


def test_listing(store: Store, tmp_path: Path) -> None:
    for name in ("p/b.sql.gz", "p/a.sql.gz", "q/a.sql.gz", "p2/a", "p/.hidden.sql.gz", "p/deep/c.sql"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    assert listed(store, "p/") == ["p/a.sql.gz", "p/b.sql.gz", "p/deep/c.sql"]
    assert len(listed(store)) == 5 and ".hidden" not in str(listed(store))
    assert [item.size for item in store.list("q/")] == [2]


def test_reading_what_is_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="Backup not found: file://.*p/none"):
        store.read("p/none", 0, 1)
    assert store.stat("p/none") is None and store.stat("p") is None
    store.delete("p/none")
    put(store, KEY, b"12345")
    assert store.stat(KEY + "/below") is None
    with pytest.raises(IntegrityError, match="ended 3 bytes early"):
        store.read(KEY, 3, 5)
    assert b"".join(store.stream(KEY, 1, 3)) == b"234"
    store.delete(KEY)
    assert files(tmp_path) == []


def test_pieces_are_small(store: Store) -> None:
    put(store, KEY, bytes(5 << 20))
    sizes = [len(piece) for piece in store.stream(KEY, 10, 4 << 20)]
    assert sum(sizes) == 4 << 20 and max(sizes) <= module.PIECE


def test_no_room(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk fills up in the middle of a piece; what was written of it goes away with the upload."""
    real, room = os.write, [1000]

    def write(descriptor: int, data: bytes) -> int:
        taken = min(len(data), room[0])
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= taken
        return real(descriptor, bytes(data)[:taken])

    monkeypatch.setattr(os, "write", write)
    upload = store.begin(KEY, False)
    upload.write([b"x" * 600])
    with pytest.raises(StorageError, match="No space left.*Free some space"):
        upload.write([b"y" * 600])
    upload.abort()
    monkeypatch.undo()
    assert files(tmp_path) == [] and listed(store) == []


def test_short_writes_lose_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))
    put(store, KEY, bytes(range(256)))
    monkeypatch.undo()
    assert store.read(KEY, 0, 256) == bytes(range(256))


def test_a_failing_sync_is_a_failed_backup(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    upload = store.begin(KEY, False)
    upload.write([b"x"])
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match="Input/output error"):
        upload.commit()
    upload.abort()
    assert files(tmp_path) == []


def _no_sync_of_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_path: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "_sync_directory", fail)


@pytest.mark.parametrize("links", [True, False])
def test_a_name_that_does_not_last_is_taken_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    _no_sync_of_directories(monkeypatch)
    if not links:
        monkeypatch.setattr(module._LocalUpload, "_linked", lambda _upload: False)
    for overwrite in (False, True):
        upload = store.begin(KEY, overwrite)
        upload.write([b"x"])
        with pytest.raises(StorageError, match="Input/output error"):
            upload.commit()
        assert upload.abort() is None and upload.abort() is None
        assert files(tmp_path) == []


def test_what_replaced_another_is_better_than_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, KEY, b"old")
    _no_sync_of_directories(monkeypatch)
    upload = store.begin(KEY, True)
    upload.write([b"new"])
    with pytest.raises(StorageError, match="Input/output error"):
        upload.commit()
    assert upload.abort() is None and store.read(KEY, 0, 3) == b"new" and files(tmp_path) == [KEY]


@pytest.mark.parametrize("overwrite", [True, False])
def test_where_open_files_live_on_under_another_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    """As NFS has it. What failed or was interrupted before it had its name is never told for made, nor taken for what
    stands under that name."""
    if overwrite:
        put(store, KEY, b"old")
    monkeypatch.setattr(module, "_unlink", lambda path: os.rename(path, os.path.join(os.path.dirname(path), ".nfs01")))
    for error in (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), KeyboardInterrupt()):
        with monkeypatch.context() as patch:
            upload = store.begin(KEY, overwrite)
            upload.write([b"new"])

            def fail(_descriptor: int, error: BaseException = error) -> None:
                raise error

            patch.setattr(os, "fsync", fail)
            with pytest.raises((StorageError, KeyboardInterrupt)):
                upload.commit()
            assert upload.abort() is None
            assert (listed(store), overwrite and store.read(KEY, 0, 3)) == ([KEY], b"old") if overwrite else ([], False)


def test_the_longest_name_of_a_database_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1 << 22)  # the largest that Linux gives
    store = module.LocalStore(Storage(kind="local", directory=str(tmp_path), prefix="p"))
    key = "p/" + "%C3%BC" * 31 + "%2A_2026-01-31T02:00:00Z.sql.zst.age"
    upload = store.begin(key, False)
    (temporary,) = files(tmp_path)
    assert len(os.path.basename(key)) > 220 and len(os.path.basename(temporary)) <= 255
    upload.abort()
    (tmp_path / temporary).write_bytes(b"")
    assert store.sweep(lambda found: found == key) == [key]


def test_bytes_that_someone_else_cut_off(store: Store, tmp_path: Path) -> None:
    upload = store.begin(KEY, False)
    upload.write([b"12345"])
    os.truncate(tmp_path / files(tmp_path)[0], 3)
    with pytest.raises(IntegrityError, match="has 3 bytes, 5 were written"):
        upload.commit()
    upload.abort()
    assert files(tmp_path) == []


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    store = open_store(Storage(kind="local", directory=str(tmp_path / "none")))
    with pytest.raises(StorageError, match="does not exist.*Create it"):
        store.begin(KEY, False)
    with pytest.raises(StorageError, match="does not exist"):
        list(store.list(""))
    assert [each.ok for each in store.check()] == [False]
    assert files(tmp_path) == [] and not (tmp_path / "none").exists()  # an unmounted disk is not written beside


def test_a_path_that_is_a_file(store: Store, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"")
    with pytest.raises(StorageError):
        store.begin(KEY, False)


def test_check(store: Store, tmp_path: Path) -> None:
    findings = store.check()
    assert [(each.name, each.ok) for each in findings] == [
        ("store writable", True), ("store readable", True), ("store space", True)
    ]  # fmt: skip
    assert files(tmp_path) == []


def test_the_lock_is_held_while_it_is_written(store: Store, tmp_path: Path) -> None:
    upload = store.begin(KEY, False)
    with open(tmp_path / files(tmp_path)[0]) as file:
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    upload.abort()


def test_unknown_store() -> None:
    with pytest.raises(BackupError, match="unknown store 'ftp'"):
        open_store(Storage(kind="ftp"))
