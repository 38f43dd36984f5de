# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which backups there are: key names, listing, finding one, reading its index."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from typing import List, NamedTuple, Optional, Tuple, Union
from urllib.parse import quote as percent_encode
from urllib.parse import unquote

from . import archive
from .errors import BackupError, IntegrityError, NoStoreError, NotFoundError, UsageError
from .events import Log, utc_now
from .model import ENCRYPTED, EXTENSIONS, BackupInfo, Filters, Index, Storage
from .store.base import Store, StoredObject, open_store

_MOMENT, _ENDING = r"(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)", r"\.sql(\.gz|\.zst)?(\.age)?"
_PART_LENGTH = 8  # hexadecimal digits
_KEY = re.compile(r"(?P<database>.+)_" + _MOMENT + r"(\.part-(?P<part>[0-9a-f]{8}))?" + _ENDING, re.ASCII)
#: Of the server's globals. No database has such a key: in `new_key` the ending or a part follows the time at once.
_GLOBALS_KEY = re.compile(r"globals_" + _MOMENT + r"\.cluster" + _ENDING, re.ASCII)
_TIME = "%Y-%m-%dT%H:%M:%SZ"
CLOCK_TOLERANCE = timedelta(minutes=5)  # the backup's host and this one need not agree to the second


class Named(NamedTuple):
    """What a templated key says: no database for one of globals, no part for a whole one. Of another key nothing."""

    database: str = ""
    time: str = ""  # RFC 3339, UTC
    part: str = ""  # see `part_of`


def part_of(filters: Filters) -> str:
    """Which part of a database these filters take, as 8 hexadecimal digits; empty for all of it. The order of the
    patterns is no matter."""
    given = {name: sorted(set(patterns)) for name, patterns in asdict(filters).items() if patterns}
    text = json.dumps(given, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:_PART_LENGTH] if given else ""


def new_key(storage: Storage, database: str, moment: datetime, compression: str, part: str = "") -> str:
    """`<prefix/><database>_2026-01-31T02:00:00Z.sql.gz`, `.part-<part>` before its ending for a filtered backup, and
    `.age` behind it for one that is encrypted; odd characters of the name are percent-encoded."""
    name = percent_encode(database, safe=" !+,=@()[]~")
    if name.startswith("."):
        name = "%2E" + name[1:]  # a hidden file would be in no listing
    extension = (".part-" + part if part else "") + _extension(storage, compression)
    return whole_key(storage, "%s_%s%s" % (name, moment.strftime(_TIME), extension))


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


def parse_key(key: str) -> Named:
    """What the key says of its object."""
    name = key.rsplit("/", 1)[-1]
    match = _GLOBALS_KEY.fullmatch(name) or _KEY.fullmatch(name)
    try:
        if match and datetime.strptime(match.group("time"), _TIME):
            groups = match.groupdict("")
            database = unquote(groups.get("database", ""))
            return Named() if "\0" in database else Named(database, match.group("time"), groups.get("part", ""))
    except ValueError:  # the 31st of February, say: looks like a time and is none
        pass
    return Named()


def is_globals(key: str) -> bool:
    """Whether `new_globals_key` makes such keys."""
    named = parse_key(key)
    return bool(named.time) and not named.database


def check_key(key: str, database: str, part: str) -> None:
    """UsageError for a key of our template that is another backup's: who lists it would take this one for that."""
    named = parse_key(key)
    if named.time and (named.database, named.part) != (database, part):
        raise UsageError(
            "the key %s is that of a backup of %s, and this is one of %s"
            % (key, _called(named.database, named.part), _called(database, part)),
            hint="Leave the key out, or choose one without a time of this form.",
        )


def _called(database: str, part: str) -> str:
    what = "database " + database if database else "globals"
    return "part %s of %s" % (part, what) if part else what


def filtered_note(key: str) -> str:
    """What a message says behind the name of a filtered backup; empty for a whole one."""
    return " (a filtered backup, not the whole database)" if parse_key(key).part else ""


def is_templated(storage: Storage, key: str) -> bool:
    """Whether `new_key` or `new_globals_key` makes such keys under this prefix."""
    name = key.rsplit("/", 1)[-1]
    return bool(parse_key(name).time) and key == whole_key(storage, name)


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


def is_future(time: str, now: datetime) -> bool:
    """Whether a key's time is later than clocks that differ a little explain: one of them was wrong."""
    return parse_time(time) > now + CLOCK_TOLERANCE


def standing(named: Union[Named, BackupInfo], now: datetime) -> Tuple[bool, bool, datetime]:
    """Of one that has a time: the greatest is a database's `latest`. The whole comes before a part, and what may be
    before one of the future."""
    return not named.part, not is_future(named.time, now), parse_time(named.time)


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
    named = parse_key(item.key)
    return BackupInfo(
        key=item.key,
        url=storage.url(item.key),
        size=item.size,
        modified_at=item.modified_at,
        database=named.database,
        globals=is_globals(item.key),
        part=named.part,
        filtered=bool(named.part),
        time=named.time,
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


def resolve(
    store: Store, key: str, database: str, log: Log, before: str = "", of_globals: bool = False
) -> StoredObject:
    """The object that is asked for: by its key, or by `latest` the newest backup of a database or of the globals. The
    log warns where that is a filtered one."""
    if key != "latest":
        return find(store, key)
    item = latest(store, database, before, of_globals)
    if parse_key(item.key).part:
        said = "There is no backup of the whole database%s: this is a filtered one."
        log.warning("filtered_backup", key=item.key, message=said % (" before " + before if before else ""))
    return item


def latest(store: Store, database: str, before: str = "", of_globals: bool = False) -> StoredObject:
    """The newest backup of a whole database or of the globals, by the time in its key, older than `before` when that is
    given. A filtered one only where there is no whole one; one of the future only where there is no other."""
    moment, now = parse_time(before) if before else None, utc_now()
    found = candidates(store, "" if of_globals else database, direct=True, only_globals=of_globals)
    found = [info for info in found if info.time and (moment is None or parse_time(info.time) < moment)]
    for info in sorted(found, key=lambda one: standing(one, now), reverse=True):
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


def is_sound(store: Store, item: StoredObject, passwords: bool = False) -> bool:
    """Whether it is ours and its index agrees with it and with its key; IntegrityError where not. Where it is encrypted
    and no identity here opens it, its header is all that can be looked at. `passwords`: whether it also says that
    hashes of passwords are in it."""
    header = store.sealed(item.key, item.size)
    if header is not None:
        return header.marked and not passwords
    index = read_index(store, item)
    if index is None:
        return False
    check_named(item.key, index)
    return index.passwords or not passwords


def check_named(key: str, index: Index) -> None:
    """IntegrityError where a templated key says that the backup is of something else than its index does."""
    named = parse_key(key)
    if named.time and (named.database, bool(named.part)) != (index.database.name, index.filtered):
        what = ("a part of " if index.filtered else "") + _called(index.database.name, "")
        raise IntegrityError(
            "%s is a backup of %s, which is not what its key says" % (key, what),
            hint="It was stored under another's key: give it a name of its own.",
        )


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
