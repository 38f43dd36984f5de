# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backups there are: key names, listing, finding one, reading its index."""

from __future__ import annotations

import difflib
import re
from datetime import datetime, timezone
from typing import List, Optional, Tuple
from urllib.parse import quote as percent_encode
from urllib.parse import unquote

from . import archive
from .errors import BackupError, IntegrityError, NoStoreError, NotFoundError, UsageError
from .events import Log
from .model import ENCRYPTED, EXTENSIONS, BackupInfo, Index, Storage
from .store import Store, StoredObject, open_store

_MOMENT, _ENDING = r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", r"\.sql(\.gz|\.zst)?(\.age)?"
_KEY = re.compile(r"(?P<database>.+)_" + _MOMENT + _ENDING, re.ASCII)
#: Of the server's globals. No database has such a key: in `new_key` the ending follows the time at once.
_GLOBALS_KEY = re.compile(r"globals_" + _MOMENT + r"\.cluster" + _ENDING, re.ASCII)
_TIME = "%Y-%m-%dT%H:%M:%SZ"


def new_key(storage: Storage, database: str, moment: datetime, compression: str) -> str:
    """`<prefix/><database>_2026-01-31T02:00:00Z.sql.gz`, and `.age` behind it for a backup that is encrypted; odd
    characters of the name are percent-encoded."""
    name = percent_encode(database, safe=" !+,=@()[]~")
    if name.startswith("."):
        name = "%2E" + name[1:]  # a hidden file would be in no listing
    return whole_key(storage, "%s_%s%s" % (name, moment.strftime(_TIME), _extension(storage, compression)))


def new_globals_key(storage: Storage, moment: datetime, compression: str) -> str:
    """`<prefix/>globals_2026-01-31T02:00:00Z.cluster.sql.gz`, and `.age` as above."""
    time = moment.strftime(_TIME)
    return whole_key(storage, "globals_%s.cluster%s" % (time, _extension(storage, compression)))


def _extension(storage: Storage, compression: str) -> str:
    return EXTENSIONS[compression] + (ENCRYPTED if storage.age_recipients else "")


def whole_key(storage: Storage, key: str) -> str:
    """The key with the prefix before it, unless it is there already."""
    prefix = storage.prefix.strip("/")
    if not prefix or key.startswith(prefix + "/"):
        return key
    return prefix + "/" + key


def compression_of(key: str) -> str:
    """The codec a key's extension names; empty for none of ours."""
    for compression, extension in sorted(EXTENSIONS.items(), key=lambda item: -len(item[1])):
        if key.endswith((extension, extension + ENCRYPTED)):
            return compression
    return ""


def parse_key(key: str) -> Tuple[str, str]:
    """(database, time) of a templated key, without a database for one of globals; empty strings for another."""
    name = key.rsplit("/", 1)[-1]
    match = _GLOBALS_KEY.fullmatch(name) or _KEY.fullmatch(name)
    try:
        if match and datetime.strptime(match.group("time"), _TIME):
            database = unquote(match.groupdict().get("database", ""))
            return ("", "") if "\0" in database else (database, match.group("time"))
    except ValueError:  # the 31st of February, say: looks like a time and is none
        pass
    return "", ""


def is_globals(key: str) -> bool:
    """Whether `new_globals_key` makes such keys."""
    return parse_key(key)[0] == "" and bool(parse_key(key)[1])


def is_templated(storage: Storage, key: str) -> bool:
    """Whether `new_key` or `new_globals_key` makes such keys under this prefix."""
    name = key.rsplit("/", 1)[-1]
    return bool(parse_key(name)[1]) and key == whole_key(storage, name)


def sweep(store: Store, log: Log) -> None:
    """What killed runs left unfinished would stay, and be paid for. Credentials that only write cannot look for it."""
    try:
        swept = store.sweep(lambda key: is_templated(store.storage, key))
    except BackupError as error:
        log.info("not_swept", message=error.sentence())
        return
    if swept:
        log.info("swept", keys=swept)


def parse_time(text: str) -> datetime:
    """An RFC 3339 time; without a zone it is UTC. UsageError otherwise."""
    try:
        moment = datetime.fromisoformat(text.strip().replace("Z", "+00:00").replace("z", "+00:00"))
    except ValueError:
        raise UsageError("%r is not a time such as 2026-01-31T02:00:00Z" % text) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)


def candidates(store: Store, database: str = "", direct: bool = False, only_globals: bool = False) -> List[BackupInfo]:
    """The listing alone, newest first: nothing is read, so `foreign` is not known yet.

    Of one database, of the globals, or of everything.
    `direct`: right under the prefix only. Deeper keys may be another host's, whose database has the same name.
    """
    prefix = store.storage.prefix.strip("/")
    found = [
        _info(store.storage, item) for item in store.list(prefix + "/" if prefix else "") if compression_of(item.key)
    ]
    found = [info for info in found if not database or info.database == database]
    found = [info for info in found if info.globals or not only_globals]
    if direct:
        found = [info for info in found if is_direct(store.storage, info)]
    return sorted(found, key=lambda info: (info.time or info.modified_at, info.key), reverse=True)


def is_direct(storage: Storage, info: BackupInfo) -> bool:
    return info.key == whole_key(storage, info.key.rsplit("/", 1)[-1])


def _info(storage: Storage, item: StoredObject) -> BackupInfo:
    database, time = parse_key(item.key)
    return BackupInfo(
        key=item.key,
        url=storage.url(item.key),
        size=item.size,
        modified_at=item.modified_at,
        database=database,
        globals=is_globals(item.key),
        time=time,
        compression=compression_of(item.key),
        encrypted=item.key.endswith(ENCRYPTED),
        etag=item.etag,
    )


def is_ours(store: Store, info: BackupInfo) -> bool:
    """Whether this engine wrote the object: one small request. By its footer, or of an encrypted one that no identity
    here opens, by its header: a host that can only encrypt must be able to tell its own backups too."""
    try:
        header = store.sealed(info.key, info.size)
        if header is not None:
            return header.marked
        size = store.contents_size(info.key, info.size)
        return archive.has_footer(lambda offset, length: store.read(info.key, offset, length), size)
    except (IntegrityError, NotFoundError):
        return False  # damaged, or removed meanwhile: nothing that we would vouch for


def find(store: Store, key: str) -> StoredObject:
    """The object of a key given with or without the prefix. NotFoundError names the nearest keys."""
    for name in dict.fromkeys([whole_key(store.storage, key), key]):
        item = store.stat(name)
        if item is not None:
            return item
    raise NotFoundError(
        "Backup not found: %s" % store.storage.url(whole_key(store.storage, key)), hint=_nearest(store, key)
    )


def _nearest(store: Store, key: str) -> str:
    try:
        keys = [info.key for info in candidates(store)]
    except NoStoreError:
        raise  # to look for a backup is too early then
    except BackupError:
        return ""
    if not keys:
        return "There are no backups under %s." % store.storage.url(store.storage.prefix)
    near = difflib.get_close_matches(key, keys, 3, 0.4) or keys[:3]
    return "There are %d others, such as %s." % (len(keys), ", ".join(near))


def resolve(store: Store, key: str, database: str, before: str = "", of_globals: bool = False) -> StoredObject:
    """The object that is asked for: by its key, or by `latest` the newest backup of a database or of the globals."""
    return latest(store, database, before, of_globals) if key == "latest" else find(store, key)


def latest(store: Store, database: str, before: str = "", of_globals: bool = False) -> StoredObject:
    """The newest backup of a database or of the globals, by the time in its key, older than `before` when that is
    given."""
    moment = parse_time(before) if before else None
    for info in candidates(store, "" if of_globals else database, direct=True, only_globals=of_globals):
        if not info.time or (moment is not None and parse_time(info.time) >= moment):
            continue
        item = store.stat(info.key)
        if item is not None:
            return item
    raise NotFoundError(
        "Backup not found: no backup of %s%s in %s"
        % (
            "the globals" if of_globals else "database " + database,
            " before " + before if before else "",
            store.storage.url(store.storage.prefix),
        )
    )


def read_index(store: Store, item: StoredObject) -> Optional[Index]:
    """What the object says of itself; None for a foreign one. UsageError where it is encrypted and cannot be opened."""
    size = store.contents_size(item.key, item.size)
    return archive.read_index(lambda offset, length: store.read(item.key, offset, length), size)


def is_sound(store: Store, item: StoredObject) -> bool:
    """Whether it is ours and its index agrees with it; IntegrityError for a damaged one. Where it is encrypted and no
    identity here opens it, its header is all that can be looked at."""
    header = store.sealed(item.key, item.size)
    return header.marked if header is not None else read_index(store, item) is not None


def describe(storage: Storage, key: str) -> Index:
    """The index of one backup. NotFoundError, or IntegrityError for an object that has none."""
    store = open_store(storage)
    item = find(store, key)
    index = read_index(store, item)
    if index is None:
        raise IntegrityError(
            "%s has no index: it was not written by this engine, or is cut off" % storage.url(item.key),
            hint="It can still be restored, as one serial stream.",
        )
    return index
