# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Where a module meets the engine: libraries are looked for, errors become fail_json, results become dicts."""

from __future__ import annotations

import traceback
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any, Callable, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule, missing_required_lib
from ansible.module_utils.common.parameters import remove_values

from ._args import receivers
from ._pgstream.cluster_model import ClusterResult, part
from ._pgstream.errors import BackupError, Interrupted, PartialError, UnexpectedError
from ._pgstream.events import Log
from ._pgstream.interrupts import Signals
from ._pgstream.model import BackupInfo, BackupResult, Index, PruneResult, RestoreResult, Storage
from ._pgstream.notify import Notifier, of_all, of_each

Answer = Dict[str, Any]


class ModuleLog(Log):
    """The engine's warnings become the task's; what else it has to say is in the result."""

    def __init__(self, module: AnsibleModule, operation: str) -> None:
        database = module.params.get("login_db") or module.params.get("source_db") or ""
        super().__init__(module.params.get("correlation_id") or "", operation, database)
        self._warnings: List[str] = []  # the engine warns from several threads, AnsibleModule expects one

    def write(self, level: str, event: str, fields: dict) -> None:
        if level != "INFO":
            details = ", ".join("%s=%s" % item for item in fields.items())
            self._warnings.append("%s: %s" % (event, details) if details else event)

    def hand_over(self, module: AnsibleModule) -> None:
        for warning in self._warnings:
            module.warn(warning)


def run_module(module: AnsibleModule, operation: str, work: Callable[[AnsibleModule, Log], Answer]) -> None:
    """Do the module's work and end the program: the one place where an engine error becomes a failed task."""
    log = ModuleLog(module, operation)
    tell: Optional[Notifier] = None
    answer: Answer = {}
    failure: Optional[BaseException] = None
    with Signals() as signals:
        try:
            if module.params.get("notify") and not module.check_mode:
                wanted = receivers(module.params)
                several = module.params.get("databases") or module.params.get("globals")
                tell = Notifier(of_all(wanted) if several else wanted, log, hider(module))
                tell.started()
            answer = work(module, log)
            signals.ignore()  # what is done is done: the result shall be told
        except (Exception, KeyboardInterrupt, Interrupted) as caught:
            signals.ignore()
            failure = signals.received or caught
        if failure is not None:
            _fail(module, log, tell, failure)
    if tell is not None:
        tell.succeeded(answer)
    log.hand_over(module)
    if not module._diff:
        answer.pop("diff", None)
    module.exit_json(**answer)


def _fail(module: AnsibleModule, log: ModuleLog, tell: Optional[Notifier], error: BaseException) -> None:
    facts: Answer = {"exit_code": BackupError.exit_code}
    if isinstance(error, (BackupError, Interrupted)):
        message = error.sentence()
        facts.update(stage=error.stage, exit_code=error.exit_code)
    else:
        message = "Unexpected %s: %s" % (type(error).__name__, error)
    if tell is not None:
        told = message if isinstance(error, (BackupError, Interrupted)) else "Unexpected " + type(error).__name__
        tell.failed({**facts, "message": told}, interrupted=isinstance(error, Interrupted))
    log.hand_over(module)
    if isinstance(error, PartialError):
        facts.update({**asdict(error.result), **facts, "message": message})
    if isinstance(error, BackupError):
        facts.update(hint=error.hint)
    if isinstance(error, UnexpectedError) or not isinstance(error, (BackupError, Interrupted)):
        # A bug: fail_json masks secrets in its traceback, Python itself would not.
        facts.update(exception="".join(traceback.format_exception(type(error), error, error.__traceback__)))
    module.fail_json(msg=message, **{**facts, "correlation_id": log.correlation_id})


def hider(module: AnsibleModule) -> Callable[[str], str]:
    """What takes the task's secrets out of a text."""
    secrets = module.no_log_values
    return lambda text: str(remove_values(text, secrets))


def telling_of_each(module: AnsibleModule, log: Log) -> Callable[[str, Callable[[], BackupResult]], BackupResult]:
    """What is done around each of several backups: a monitor that has a check for each database is told of it."""
    wanted = of_each(receivers(module.params))

    def around(database: str, work: Callable[[], BackupResult]) -> BackupResult:
        log.operation, log.database = ("backup", database) if database else ("globals", "")
        tell = Notifier(wanted, log, hider(module))
        tell.started()
        try:
            result = work()
        except (BackupError, Interrupted) as error:
            fields = {"message": error.sentence(), "stage": error.stage, "exit_code": error.exit_code}
            tell.failed(fields, interrupted=isinstance(error, Interrupted))
            raise
        tell.succeeded(asdict(result))
        return result

    return around


def require(module: AnsibleModule, storage: Storage, postgres: bool = True) -> None:
    """Fail with one message that names every library this task needs and the target's Python lacks."""
    encrypted = bool(storage.age_recipients or storage.age_identity)
    needed = {"psycopg2": postgres, "boto3": storage.kind == "s3", "cryptography": encrypted}
    missing, trace = [], ""
    for library in [name for name, wanted in needed.items() if wanted]:
        try:
            import_module(library)
        except ImportError:
            missing.append(library)
            trace = traceback.format_exc()
    if missing:
        module.fail_json(msg=missing_required_lib(" and ".join(missing)), exception=trace)


def noted(directory: str, log: Log, work: Callable[[], Answer]) -> Answer:
    """Do the work and note it in the run ledger of `directory`; empty: in none."""
    if not directory:
        return work()
    from ._pgstream.recorder import Recorder  # it takes Python's sqlite3, which not every target has

    record = Recorder(directory, log.operation, log)
    record.begin()
    try:
        answer = work()
    except BackupError as error:
        record.fail(error.exit_code, error.stage, error.sentence())
        raise
    except BaseException as error:
        record.fail(BackupError.exit_code, "", "unexpected " + type(error).__name__)
        raise
    record.succeed(answer)
    return answer


def backup_answer(result: BackupResult) -> Answer:
    before = {} if result.changed else {"key": result.key}
    after = {"key": result.key}
    if result.changed:
        after.update(database=result.database, tables=result.tables, estimated_bytes=result.estimated_bytes)
    return _with_diff({**asdict(result), "backups": [asdict(part(result))]}, result.url, before, after)


def cluster_answer(result: ClusterResult) -> Answer:
    """The difference is in the keys."""
    before = [one.key for one in result.backups if not one.changed]
    after = [one.key for one in result.backups]
    return _with_diff(asdict(result), "backups", {"backups": before}, {"backups": after})


def restore_answer(result: RestoreResult) -> Answer:
    """The old database is the difference that matters: whether one is replaced, and where it goes."""
    after = {"database": result.database, "restored_from": result.key, "strategy": result.strategy}
    if result.old_database:
        after["old_database"] = result.old_database
    before = {"database": result.database if result.strategy != "create" else None}
    return _with_diff(asdict(result), result.database, before, after if result.changed else before)


def prune_answer(result: PruneResult) -> Answer:
    """The difference is in the keys, newest first."""
    after = [one.key for one in result.kept]
    before = sorted(after + [one.key for one in result.removed], reverse=True)
    return _with_diff(asdict(result), result.database, {"backups": before}, {"backups": sorted(after, reverse=True)})


def info_answer(backups: List[BackupInfo], key: str = "", url: str = "", index: Optional[Index] = None) -> Answer:
    answer: Answer = {"changed": False, "backups": [asdict(backup) for backup in backups]}
    if index is not None:
        # A backup can have 50,000 blocks: their number is of use to a playbook, they are not.
        facts = {**asdict(replace(index, blocks=())), "blocks": len(index.blocks)}
        answer["backup"] = {"key": key, "url": url, **facts}
    return answer


def _with_diff(answer: Answer, name: str, before: Answer, after: Answer) -> Answer:
    diff = {"before_header": name, "after_header": name, "before": before, "after": after}
    return {**answer, "diff": diff}
