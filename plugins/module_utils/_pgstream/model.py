# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The values that flow through the engine: frozen, validated once at the edge, without behaviour of their own."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Optional, Tuple

FORMAT_VERSION = 1
ENGINE_VERSION = "0.1.0"

COMPRESSIONS = ("gzip", "zstd", "none")
LEVELS = ("index", "content", "restore")  # of a verification; each proves what the one before does, and more
CONTENTS = ("all", "data", "schema")  # of a backup, to restore
LIST_DETAILS = 100  # of the newest backups in a listing, that are looked into unless told otherwise
#: A remote that rclone's configuration names. Not `:backend,option=value:path`: arguments are for every user to read.
RCLONE_REMOTE = re.compile(r"[\w+@.][\w+@. -]*:[^\0\n]*", re.ASCII)
EXTENSIONS = {"gzip": ".sql.gz", "zstd": ".sql.zst", "none": ".sql"}
ENCRYPTED = ".age"  # follows the extension of an encrypted backup


@dataclass(frozen=True)
class Server:
    """How to reach PostgreSQL. An empty `host` is libpq's default: the local socket."""

    host: str = ""
    port: int = 5432
    user: str = ""
    password: str = field(default="", repr=False)
    maintenance_db: str = "postgres"
    ssl_mode: str = ""
    ca_cert: str = ""
    ssl_cert: str = ""
    ssl_key: str = ""
    connect_params: Tuple[Tuple[str, str], ...] = ()
    connect_timeout: int = 10  # seconds
    bindir: str = ""  # where pg_dump, pg_restore and psql are; empty: found by version


@dataclass(frozen=True)
class Storage:
    """Where backups are kept: an S3 bucket, a local directory, or a remote of rclone."""

    kind: str = "s3"  # s3, local, rclone
    bucket: str = ""
    directory: str = ""
    rclone_remote: str = ""  # "remote:" or "remote:path"
    rclone_config: str = ""  # its configuration file; empty: as rclone finds it
    rclone_path: str = ""  # the program; empty: the one on PATH
    prefix: str = ""
    endpoint_url: str = ""
    region: str = ""
    access_key: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    profile: str = ""
    validate_certs: bool = True
    aws_ca_bundle: str = ""
    addressing_style: str = "auto"  # auto, path, virtual
    checksums: str = "when_required"  # when_required, when_supported
    encryption_mode: str = ""  # "", AES256, aws:kms
    encryption_kms_key_id: str = ""
    sse_customer_key: str = field(default="", repr=False)  # 32 bytes in base64
    age_recipients: Tuple[str, ...] = ()  # age1...; what is written is encrypted for each of them
    age_identity: str = field(default="", repr=False)  # AGE-SECRET-KEY-1..., one a line; opens what is read
    stall_timeout: int = 60  # seconds without a byte, in either direction, after which a request is given up

    @property
    def root(self) -> str:
        """`s3://bucket`, `file:///directory` or `rclone:remote:path`, without the prefix."""
        if self.kind == "rclone":
            return "rclone:" + self.rclone_remote
        return "s3://" + self.bucket if self.kind == "s3" else "file://" + self.directory

    def url(self, key: str) -> str:
        return self.root + ("" if self.root.endswith((":", ":/")) else "/") + key


@dataclass(frozen=True)
class Filters:
    """What to take, as pg_dump's own patterns (`*`, `?`, double quotes). Empty: everything."""

    schemas: Tuple[str, ...] = ()
    exclude_schemas: Tuple[str, ...] = ()
    tables: Tuple[str, ...] = ()
    exclude_tables: Tuple[str, ...] = ()
    exclude_table_data: Tuple[str, ...] = ()


@dataclass(frozen=True)
class BackupRequest:
    server: Server
    database: str
    storage: Storage
    key: str = ""  # empty: <prefix/><database>_<time>.sql.gz, .part-<filters> before the ending where there are any
    overwrite: str = "never"  # never, always
    fresh_within: int = 0  # seconds; a whole backup younger than this is enough
    compression: str = "gzip"
    compression_level: Optional[int] = None
    jobs: int = 0  # 0: the smaller of 4 and the cores
    filters: Filters = Filters()
    lock_timeout: int = 60  # seconds
    timeout: int = 0  # seconds of the whole run; 0: no limit
    correlation_id: str = ""


@dataclass(frozen=True)
class RestoreRequest:
    server: Server
    storage: Storage
    key: str  # a key, or "latest"
    database: str = ""  # the target; empty: the name in the backup
    source_database: str = ""  # whose latest backup; empty: the target's name
    latest_before: str = ""  # RFC 3339; only with key "latest"
    globals: bool = False  # of the server's globals, not of a database
    create: bool = False
    strategy: str = "auto"  # auto, swap, in_place
    keep_old: bool = True  # swap: keep the replaced database under another name
    schemas: Tuple[str, ...] = ()
    tables: Tuple[str, ...] = ()  # "table" or "schema.table"
    content: str = "all"  # one of CONTENTS
    no_owner: bool = False
    no_privileges: bool = False
    role: str = ""
    jobs: int = 0
    analyze: bool = True
    timeout: int = 0  # seconds of the whole run; 0: no limit
    correlation_id: str = ""
    mark: str = ""  # a drill's: the comment of the database, from the beginning, in place of its own


@dataclass(frozen=True)
class Retention:
    """Which backups of a database are kept: the union of what each rule keeps. A rule of 0 keeps none.

    `keep_daily`: the newest backup of each of that many newest days that have one, and so on; UTC, ISO weeks.
    """

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0
    keep_yearly: int = 0
    keep_within: int = 0  # seconds; everything younger
    min_keep: int = 1  # so many newest good ones stay, whatever the rules say


@dataclass(frozen=True)
class PruneRequest:
    storage: Storage
    database: str
    retention: Retention = Retention()
    state_dir: str = ""  # of the run ledger, which knows whether the last backup failed; empty: the caller does
    correlation_id: str = ""
    globals: bool = False  # those of the server's globals; then `database` is empty


@dataclass(frozen=True)
class VerifyRequest:
    storage: Storage
    key: str  # a key, or "latest"
    level: str = "content"  # one of LEVELS
    source_database: str = ""  # with key "latest": whose
    latest_before: str = ""  # RFC 3339; only with key "latest"
    globals: bool = False  # with key "latest": of the server's globals, not of a database
    server: Server = Server()  # where level "restore" makes its scratch database
    compare_source: bool = False  # only with level "restore": the original is on the same server
    no_owner: bool = False
    no_privileges: bool = False
    role: str = ""
    jobs: int = 0
    correlation_id: str = ""


@dataclass(frozen=True)
class Block:
    """One self-contained piece of the object. Offsets and lengths in bytes."""

    section: str  # schema, pre, data, rest, post, index
    offset: int
    length: int
    raw_length: int
    sha256: str
    table: int = -1  # number in the index; -1: none or several
    rows: int = 0
    tables: Tuple[Tuple[int, int], ...] = ()  # (table number, rows) in the order of the COPYs inside


@dataclass(frozen=True)
class Table:
    """A table whose rows are in the backup. `oid` is that of the source, as in the schema archive."""

    number: int
    oid: int
    schema: str
    name: str
    rows: int = 0
    raw_bytes: int = 0


@dataclass(frozen=True)
class DatabaseInfo:
    """What `pg_dump` without `-C` does not carry: what the database itself was like."""

    name: str
    encoding: str
    collate: str
    ctype: str
    owner: str
    locale_provider: str = "c"  # c, i, b as in pg_database.datlocprovider
    locale: str = ""
    icu_rules: str = ""
    connection_limit: int = -1
    comment: str = ""
    acl: Tuple[Tuple[str, str, bool], ...] = ()  # (grantee or "", privilege, grantable)
    default_acl: bool = True
    settings: Tuple[Tuple[str, str, str], ...] = ()  # (role or "", name, value as SQL)


@dataclass(frozen=True)
class Index:
    """What the object says of itself: read from its end by two small requests."""

    format_version: int
    engine_version: str
    correlation_id: str
    compression: str
    database: DatabaseInfo
    server_version: int  # server_version_num, such as 150018
    pg_dump_version: int  # major
    snapshot_at: str  # RFC 3339, UTC
    started_at: str
    finished_at: str
    raw_bytes: int
    stored_bytes: int  # of the blocks before the index
    rows: int
    tables: Tuple[Table, ...]
    blocks: Tuple[Block, ...]
    filtered: bool = False
    passwords: bool = False  # of globals: with the hashes of the roles' passwords

    @property
    def is_globals(self) -> bool:
        """Whether it is of the server's globals: no database is without a name."""
        return not self.database.name


@dataclass(frozen=True)
class BackupInfo:
    """One object in the store. What None stands for was not looked at, or nothing says it.

    `foreign`: not written by this engine, restorable as one serial stream. `why`: what keeps it under the retention
    policy that was asked for; empty if nothing does; None without a policy, and for what pruning leaves alone.
    """

    key: str
    url: str
    size: int
    modified_at: str
    database: str = ""
    time: str = ""  # RFC 3339, from the key
    compression: str = ""
    encrypted: bool = False  # by its name
    foreign: Optional[bool] = None
    etag: str = ""
    age: Optional[int] = None  # seconds
    raw_bytes: Optional[int] = None
    ratio: Optional[float] = None  # raw bytes a stored byte
    rows: Optional[int] = None
    seconds: Optional[float] = None  # that the backup took
    why: Optional[Tuple[str, ...]] = None
    verified_at: str = ""  # RFC 3339; the last verification that found no fault, as the run ledger has it
    verified_level: str = ""  # one of LEVELS
    globals: bool = False  # roles and tablespaces of a server, by its name
    filtered: bool = False  # not the whole database, by its name or its index
    part: str = ""  # which part, by its name: 8 hexadecimal digits of the filters


@dataclass(frozen=True)
class TableResult:
    schema: str
    name: str
    rows: int
    raw_bytes: int = 0


@dataclass(frozen=True)
class BackupResult:
    changed: bool
    database: str
    key: str
    url: str
    correlation_id: str
    version_id: str = ""
    etag: str = ""
    compression: str = ""
    raw_bytes: int = 0
    stored_bytes: int = 0
    rows: int = 0
    tables: int = 0
    seconds: float = 0.0
    mb_per_second: float = 0.0  # raw bytes, 10^6 a second
    snapshot_at: str = ""
    started_at: str = ""
    finished_at: str = ""
    server_version: int = 0
    jobs: int = 0
    table_rows: Tuple[TableResult, ...] = ()
    estimated_bytes: int = 0  # the tables on the server's disk, TOAST included
    message: str = ""
    operation: str = "backup"


@dataclass(frozen=True)
class RestoreResult:
    changed: bool
    database: str
    key: str
    url: str
    correlation_id: str
    source_database: str = ""
    strategy: str = ""  # what was done: create, swap, in_place
    old_database: str = ""  # where the replaced database is kept
    foreign: bool = False
    content: str = ""  # one of CONTENTS
    stored_bytes: int = 0  # size of the object
    bytes_read: int = 0  # from the store; of a prediction, that would be at the most, as they are before encryption
    raw_bytes: int = 0  # of SQL that was loaded
    rows: int = 0
    tables: int = 0
    seconds: float = 0.0
    mb_per_second: float = 0.0
    snapshot_at: str = ""
    started_at: str = ""
    finished_at: str = ""
    jobs: int = 0
    table_rows: Tuple[TableResult, ...] = ()
    message: str = ""
    operation: str = "restore"


@dataclass(frozen=True)
class KeptBackup:
    """`why`: rules of the policy, such as `last 1` and `daily 2026-01-31`; or `no policy`, `foreign`, `failed run`,
    `locked`."""

    key: str
    size: int
    time: str
    why: Tuple[str, ...]


@dataclass(frozen=True)
class RemovedBackup:
    key: str
    size: int
    time: str


@dataclass(frozen=True)
class PruneResult:
    """`kept` newest first, `removed` in the order in which they went: oldest first."""

    changed: bool
    database: str
    correlation_id: str
    kept: Tuple[KeptBackup, ...] = ()
    removed: Tuple[RemovedBackup, ...] = ()
    freed_bytes: int = 0
    seconds: float = 0.0
    message: str = ""
    operation: str = "prune"


@dataclass(frozen=True)
class VerifyResult:
    verified: bool
    level: str
    database: str  # that was backed up
    key: str
    url: str
    correlation_id: str
    foreign: bool = False
    stored_bytes: int = 0  # size of the object
    raw_bytes: int = 0  # of SQL that was decompressed
    bytes_read: int = 0
    blocks: int = 0
    rows: int = 0
    tables: int = 0
    compared_tables: int = 0  # whose contents are those of the source
    seconds: float = 0.0
    mb_per_second: float = 0.0  # bytes read, 10^6 a second
    snapshot_at: str = ""
    started_at: str = ""
    finished_at: str = ""
    jobs: int = 0
    message: str = ""
    operation: str = "verify"
    changed: bool = False


@dataclass(frozen=True)
class Finding:
    """One line of a check: what was looked at, whether it is good (None: not tried), and what was seen."""

    name: str
    ok: Optional[bool]
    detail: str
    needed: bool = True  # without it a backup fails
    follows: str = ""  # what does not work without it


@dataclass(frozen=True)
class CheckResult:
    ok: bool
    findings: Tuple[Finding, ...]
    conclusions: Tuple[str, ...] = ()  # sentences: what works, and what follows from what does not
    exit_code: int = 0
    correlation_id: str = ""
    operation: str = "check"
    changed: bool = False
