# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where an error happened, and all faults of a validation at once."""

from __future__ import annotations

from typing import List

import pytest
from _pgstream.errors import BackupError, IntegrityError, ServerError, StorageError
from _pgstream.stages import all_faults, stage


def test_an_error_is_told_where_it_happened() -> None:
    with pytest.raises(ServerError) as caught:
        with stage("table data"):
            raise ServerError("gone", hint="Look.")
    assert str(caught.value) == "Failed during table data: gone. Look."


def test_the_stage_nearest_to_the_cause_stays() -> None:
    with pytest.raises(BackupError) as caught:
        with stage("backup"):
            with stage("S3 upload"):
                raise StorageError("refused")
    assert caught.value.stage == "S3 upload"


def test_it_is_the_same_error() -> None:
    error = IntegrityError("x")
    with pytest.raises(IntegrityError) as caught:
        with stage("a"):
            raise error
    assert caught.value is error and caught.value.__cause__ is None


def test_others_pass_through() -> None:
    with pytest.raises(KeyboardInterrupt):
        with stage("a"):
            raise KeyboardInterrupt
    with stage("a"):
        pass


class Opened:
    def __init__(self, undone: List[str], name: str) -> None:
        self._undone = undone
        self._name = name

    def close(self) -> None:
        self._undone.append("close " + self._name)


class Begun(Opened):
    def abort(self) -> None:
        self._undone.append("abort " + self._name)


def fail(error: BackupError) -> None:
    raise error


def test_results_in_order() -> None:
    undone: List[str] = []
    one, two = Opened(undone, "one"), Opened(undone, "two")
    assert all_faults(lambda: one, lambda: two, lambda: None) == [one, two, None]
    assert undone == []


def test_every_fault_in_one_message_and_the_first_decides() -> None:
    done: List[int] = []
    with pytest.raises(ServerError) as caught:
        all_faults(
            lambda: done.append(1),
            lambda: fail(ServerError("server gone", hint="Start it.")),
            lambda: fail(StorageError("no bucket", stage="check", hint="Make it.")),
            lambda: fail(BackupError("third")),
            lambda: done.append(2),
        )
    assert str(caught.value) == ("server gone. Start it. Also: Failed during check: no bucket. Make it. Also: third")
    assert caught.value.exit_code == 3 and done == [1, 2]


def test_what_was_opened_is_closed_again() -> None:
    undone: List[str] = []
    with pytest.raises(StorageError):
        all_faults(
            lambda: (Opened(undone, "leader"), "5432"),
            lambda: Begun(undone, "upload"),
            lambda: fail(StorageError("no")),
            lambda: Opened(undone, "late"),
        )
    assert undone == ["close leader", "abort upload", "close upload", "close late"]


def test_an_undoing_that_fails_does_not_hide_the_first_fault() -> None:
    class Stuck:
        def abort(self) -> None:
            raise StorageError("the upload is left")

    undone: List[str] = []
    with pytest.raises(ServerError) as caught:
        all_faults(lambda: fail(ServerError("server gone")), Stuck, lambda: Opened(undone, "late"))
    assert str(caught.value) == "server gone. Also: the upload is left" and undone == ["close late"]


def test_other_errors_are_no_faults() -> None:
    with pytest.raises(ZeroDivisionError):
        all_faults(lambda: fail(BackupError("x")), lambda: 1 // 0)
