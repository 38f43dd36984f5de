# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whole backups without a server, for the tests of what is done with many of them: small, and sound to the last sum."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, List

from _pgstream import archive, catalog
from _pgstream.events import rfc3339
from _pgstream.model import FORMAT_VERSION, DatabaseInfo, Filters, Index, Table
from _pgstream.store.base import Store

EVERYTHING = Filters()
FOREIGN = b"-- PostgreSQL database dump\n"  # what another tool might have stored


def backup_bytes(
    moment: datetime,
    database: str = "shop",
    compression: str = "gzip",
    rows: int = 3,
    seconds: int = 90,
    tables: int = 1,
    filters: Filters = EVERYTHING,
    passwords: bool = False,
) -> bytes:
    """A backup begun at `moment` that took so many seconds; each of its tables has so many rows."""
    pieces: List[bytes] = []
    writer = archive.ArchiveWriter(pieces.extend, compression)
    writer.text("schema", b"-- schema\n")
    writer.text("pre", b"CREATE TABLE t (a int);\n")
    for number in range(tables):
        encoder = writer.encoder("data")
        encoder.write(b"COPY t FROM stdin;\n" + b"1\n" * rows + b"\\.\n")
        encoder.count(number, rows)
        writer.append(encoder.finish())
    writer.text("post", b"-- end\n")
    ended = rfc3339(moment + timedelta(seconds=seconds))
    index = Index(
        format_version=FORMAT_VERSION, engine_version="0", correlation_id="c", compression=compression,
        database=DatabaseInfo(database, "UTF8", "C", "C", "owner"), server_version=150004, pg_dump_version=15,
        snapshot_at=rfc3339(moment), started_at=rfc3339(moment), finished_at=ended,
        raw_bytes=writer.raw_bytes, stored_bytes=writer.offset, rows=rows * tables,
        tables=tuple(Table(n, 16384 + n, "public", "t%d" % n, rows) for n in range(tables)),
        blocks=tuple(writer.blocks), filtered=filters != EVERYTHING, passwords=passwords,
    )  # fmt: skip
    writer.finish(index)
    return b"".join(pieces)


def put(store: Store, key: str, data: bytes) -> str:
    upload = store.begin(key, True)
    upload.write([data])
    upload.commit()
    return key


def put_backup(store: Store, moment: datetime, database: str = "shop", **how: Any) -> str:
    """A backup under the template's key; the key."""
    compression = how.get("compression", "gzip")
    part = catalog.part_of(how.get("filters", EVERYTHING))
    key = catalog.new_key(store.storage, database, moment, compression, part)
    return put(store, key, backup_bytes(moment, database, **how))
