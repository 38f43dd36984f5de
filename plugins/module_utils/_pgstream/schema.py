# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The schema archive: pg_dump's custom format without data, held in memory, and what its table of contents tells."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Dict, List, Sequence, Set, Tuple

from .clients import Clients
from .errors import BackupError, IntegrityError
from .model import Filters
from .process import Processes

_PG_CLASS = 1259  # OIDs of the catalogues themselves: fixed in PostgreSQL's pg_class.h and others
_PG_ATTRDEF = 2604
_PG_EXTENSION = 3079
_ENTRY = re.compile(rb"^(\d+); (\d+) (\d+) (.*)$")
_FAILED = re.compile(r"(?ms)^Command was: (.*?;)\n+(?=pg_restore: )")
_WHOLE = re.compile(r"pg_restore: warning: errors ignored on restore: \d+\Z")
_LINE_LENGTH = 76
_FIRST_LINE = b"-- pgstream schema archive: pg_dump custom format in base64\n"


@dataclass(frozen=True)
class Entry:
    """A line of `pg_restore -l`. `text` is the rest: kind, schema, tag and owner, as bytes."""

    dump_id: int
    catalogue: int
    oid: int
    text: bytes
    line: bytes
    needs: Tuple[int, ...] = ()  # dump ids


@dataclass(frozen=True)
class Contents:
    """What of the database pg_dump took, by OID: the filters are pg_dump's to decide."""

    relations: Set[int]
    sequences: Set[int]
    extensions: Set[int]


def dump_schema(
    clients: Clients,
    processes: Processes,
    database: str,
    encoding: str,
    snapshot: str,
    filters: Filters,
    lock_timeout: int,
) -> Tuple[bytes, List[str]]:
    """Run pg_dump once, for all that is not data; the archive, and what it warned of, such as subscriptions, which it
    leaves out where the user is no superuser. Not `--schema-only`: that leaves out REFRESH MATERIALIZED VIEW.

    In UTF-8, whatever the database's encoding, but for SQL_ASCII: bytes of no known encoding may not be valid in it.
    """
    arguments = ["-Fc", "--section=pre-data", "--section=post-data", "--no-blobs", "--snapshot=" + snapshot]
    arguments.append("--lock-wait-timeout=%ds" % lock_timeout)
    for option, patterns in (
        ("--schema=", filters.schemas),
        ("--exclude-schema=", filters.exclude_schemas),
        ("--table=", filters.tables),
        ("--exclude-table=", filters.exclude_tables),
    ):
        arguments += [option + pattern for pattern in patterns]
    env = clients.environment("SQL_ASCII" if encoding == "SQL_ASCII" else "UTF8")
    try:
        process = processes.spawn(clients.argv("pg_dump", arguments, database), env, "pg_dump")
        dumped = process.output()
    except BackupError as error:
        if "due to statement timeout" in error.message:  # how pg_dump limits its wait for a lock
            error.hint = "Another session waits for a lock on a table before pg_dump: run again when it is done."
        raise
    return dumped, [line for line in process.stderr_text().splitlines() if line.startswith("pg_dump: warning: ")]


def pg_restore_text(
    clients: Clients, processes: Processes, archive: bytes, arguments: Sequence[str], pass_fds: Sequence[int] = ()
) -> bytes:
    """What pg_restore writes for an archive, without a server."""
    argv = [clients.bindir + "/pg_restore", *arguments]
    return processes.run(argv, clients.environment(), "pg_restore", data=archive, pass_fds=pass_fds)


def ended_by_deadlocks(said: str) -> List[str]:
    """The statements that a pg_restore without --exit-on-error could not run, in the order of their failures, where a
    deadlock was among the reasons. Empty where there was none, or where what it said may not be all."""
    statements = _FAILED.findall(said)
    if "deadlock detected" not in said or "\ufffd" in said or not _WHOLE.search(said):
        return []
    return statements if len(statements) == said.count("pg_restore: error: ") else []


def entries(clients: Clients, processes: Processes, archive: bytes) -> List[Entry]:
    """The table of contents, with each entry's dependencies."""
    found: List[Entry] = []
    for line in pg_restore_text(clients, processes, archive, ["-l", "--verbose"]).split(b"\n"):
        match = _ENTRY.match(line)
        if match:
            number, catalogue, oid, text = match.groups()
            found.append(Entry(int(number), int(catalogue), int(oid), text, line))
        elif line.startswith(b";\tdepends on: ") and found:
            last = found[-1]
            needs = tuple(int(number) for number in line.split(b":", 1)[1].split())
            found[-1] = Entry(last.dump_id, last.catalogue, last.oid, last.text, last.line, needs)
    return found


def contents(toc: Sequence[Entry]) -> Contents:
    """An entry's kind is told by its catalogue's OID too: a schema may be called DATA or ATTACH."""
    relations, sequences, extensions = set(), set(), set()
    for entry in toc:
        if entry.catalogue == _PG_CLASS and entry.text.startswith(b"TABLE "):
            relations.add(entry.oid)
        elif entry.catalogue == _PG_CLASS and entry.text.startswith(b"SEQUENCE "):
            sequences.add(entry.oid)
        elif entry.catalogue == _PG_EXTENSION and entry.text.startswith(b"EXTENSION "):
            extensions.add(entry.oid)
    return Contents(relations, sequences, extensions)


def select(
    toc: Sequence[Entry], schemas: Sequence[str], tables: Sequence[Tuple[str, str]], oids: Set[int]
) -> Tuple[List[Entry], Set[int]]:
    """The entries that restore these schemas and (schema or "", relation)s, in their order, and the OIDs of the tables.

    Tables with rows are told by `oids`, exactly; other relations by the names that the archive's listing shows.

    What a chosen object needs comes along (types, functions, its schema, a parent table's definition); what hangs on
    it does too (indexes, constraints, triggers, grants), unless it also needs a table that was not chosen, as a
    foreign key may.
    """
    by_id = {entry.dump_id: entry for entry in toc}
    # "schema name owner" may hold more spaces than two: names are looked for, not cut out.
    names = [(_shown(name), _shown(table)) for name, table in tables]
    spaces = [_shown(name) for name in schemas]
    chosen: Set[int] = set()
    for entry in toc:
        kind, rest = _split(entry)
        if _is_table(entry) and entry.oid in oids:
            chosen.add(entry.dump_id)
        elif kind == b"FK CONSTRAINT":
            continue  # it may need the rows of a table in another schema
        elif any(_lies_in(kind, rest, space) for space in spaces) or any(_is(kind, rest, name) for name in names):
            chosen.add(entry.dump_id)
    tables_chosen = {by_id[number].oid for number in chosen if _is_table(by_id[number])}
    picked = set(chosen)
    _with_needs(chosen, by_id, picked)
    grown = True
    while grown:
        grown = False
        for entry in toc:
            kind = _split(entry)[0]
            if entry.dump_id in picked or kind not in _ATTACHED:
                continue
            owners = [number for number in entry.needs if number in by_id and _split(by_id[number])[0] in _OWNERS]
            # A trigger or an index brings its function along; only comments and grants hang on a function itself.
            owners = [number for number in owners if _split(by_id[number])[0] in _HOLDERS] or owners
            if kind == b"FK CONSTRAINT" and any(_is_table(by_id[number]) for number in owners if number not in chosen):
                continue  # a table that came along has its definition only, and no rows to refer to
            if owners and all(number in picked for number in owners):
                _with_needs({entry.dump_id}, by_id, picked)
                grown = True
    # Settings of the whole script (encoding, quoting) have no catalogue and no schema.
    picked |= {entry.dump_id for entry in toc if _split(entry)[0] in (b"ENCODING", b"STDSTRINGS", b"SEARCHPATH")}
    return [entry for entry in toc if entry.dump_id in picked], tables_chosen


def unknown(toc: Sequence[Entry], schemas: Sequence[str], tables: Sequence[Tuple[str, str]]) -> List[str]:
    """Which of these schemas and (schema or "", relation)s no entry is of."""
    split = [_split(entry) for entry in toc]
    missing = [name for name in schemas if not any(_lies_in(kind, rest, _shown(name)) for kind, rest in split)]
    for space, table in tables:
        shown = (_shown(space), _shown(table))
        if not any(_is(kind, rest, shown) for kind, rest in split):
            missing.append("%s.%s" % (space, table) if space else table)
    return missing


def count_indexes(dumped: bytes) -> int:
    """About how many indexes the schema archive has, by the statements that stand in it."""
    return len(_INDEX.findall(dumped))


def is_refresh(entry: Entry) -> bool:
    """Whether it fills a materialized view."""
    return _split(entry)[0] == b"MATERIALIZED VIEW DATA"


def _lies_in(kind: bytes, rest: bytes, space: bytes) -> bool:
    return rest.startswith(space) or (kind == b"SCHEMA" and rest.startswith(b"- " + space))


def _is(kind: bytes, rest: bytes, name: Tuple[bytes, bytes]) -> bool:
    """Whether it is the relation of this shown (schema or " ", name)."""
    space, table = name
    return kind in _RELATIONS and (
        rest.startswith(space + table) if space != b" " else rest.partition(b" ")[2].startswith(table)
    )


_INDEX = re.compile(rb"CREATE (?:UNIQUE )?INDEX |ADD CONSTRAINT [^\n]+ (?:PRIMARY KEY|UNIQUE|EXCLUDE) ")
_RELATIONS = (b"TABLE", b"VIEW", b"MATERIALIZED VIEW", b"FOREIGN TABLE", b"SEQUENCE")
_ATTACHED = (
    b"INDEX", b"CONSTRAINT", b"CHECK CONSTRAINT", b"FK CONSTRAINT", b"TRIGGER", b"DEFAULT", b"SEQUENCE",
    b"SEQUENCE OWNED BY", b"COMMENT", b"ACL", b"RULE", b"POLICY", b"ROW SECURITY", b"STATISTICS", b"TABLE ATTACH",
    b"INDEX ATTACH", b"SECURITY LABEL", b"MATERIALIZED VIEW DATA",
)  # fmt: skip
_HOLDERS = _RELATIONS + (b"INDEX", b"CONSTRAINT")
_OWNERS = _HOLDERS + (b"SCHEMA", b"TYPE", b"DOMAIN", b"FUNCTION")
_KINDS = sorted(
    set(
        _RELATIONS
        + _ATTACHED
        + _OWNERS
        + (b"TABLE DATA", b"SEQUENCE SET", b"EVENT TRIGGER", b"DEFAULT ACL", b"PUBLICATION TABLE")
    ),
    key=len,
    reverse=True,
)


_KINDS_OF = {_PG_CLASS: (b"MATERIALIZED VIEW", b"FOREIGN TABLE", b"SEQUENCE", b"INDEX", b"TABLE", b"VIEW"),
             _PG_ATTRDEF: (b"DEFAULT",)}  # fmt: skip


def _split(entry: Entry) -> Tuple[bytes, bytes]:
    """(kind, the rest: schema or "-", name, owner) of an entry. Kinds may be of several words, longest first; "TABLE
    ATTACH t" is a table in the schema ATTACH where the catalogue is that of tables, which no attaching has."""
    for kind in _KINDS_OF.get(entry.catalogue, _KINDS):
        if entry.text.startswith(kind + b" "):
            break
    else:
        kind = entry.text.split(b" ", 1)[0]
    return kind, entry.text[len(kind) + 1 :]


def _shown(name: str) -> bytes:
    """A name as the archive's listing shows it, where newlines are spaces, and the space after it."""
    return name.replace("\n", " ").replace("\r", " ").encode() + b" "


def _is_table(entry: Entry) -> bool:
    return entry.catalogue == _PG_CLASS and entry.text.startswith(b"TABLE ")


def _with_needs(numbers: Set[int], by_id: Dict[int, Entry], picked: Set[int]) -> None:
    todo = list(numbers)
    while todo:
        number = todo.pop()
        if number in by_id and (number not in picked or number in numbers):
            picked.add(number)
            todo += [need for need in by_id[number].needs if need not in picked]


_SETVAL = re.compile(rb"""^SELECT pg_catalog\.setval\((E?)'((?:[^'\\]|''|\\.)*)', """)


def sequence_of(line: bytes) -> bytes:
    """`schema name` of the sequence that a setval line sets, as the archive's listing shows it; else empty."""
    match = _SETVAL.match(line)
    if not match:
        return b""
    name = match.group(2).replace(b"''", b"'")
    if match.group(1):
        # Left to right: the second backslash of an escaped one begins nothing.
        name = re.sub(rb"\\(.)", lambda escape: b" " if escape.group(1) in b"nr" else escape.group(1), name)
    parts = re.fullmatch(rb'"((?:[^"]|"")*)"\."((?:[^"]|"")*)"', name)
    return b" ".join(part.replace(b'""', b'"') for part in parts.groups()) if parts else b""


def as_comments(archive: bytes) -> bytes:
    """The archive as SQL comment lines."""
    text = base64.b64encode(archive)
    lines = [b"-- " + text[start : start + _LINE_LENGTH] for start in range(0, len(text), _LINE_LENGTH)]
    return _FIRST_LINE + b"\n".join(lines) + b"\n"


def from_comments(sql: bytes) -> bytes:
    """The reverse of `as_comments`; IntegrityError for anything else."""
    if not (sql.startswith(_FIRST_LINE + b"-- ") and sql.endswith(b"\n")):
        raise IntegrityError("the backup's schema block is not a schema archive")
    try:
        return base64.b64decode(sql[len(_FIRST_LINE) + 3 : -1].replace(b"\n-- ", b""), validate=True)
    except ValueError as error:
        raise IntegrityError("the backup's schema archive is damaged: %s" % error) from error


def for_server(script: bytes, major: int) -> bytes:
    """The script without what servers of this major do not know: pg_restore 17 sets transaction_timeout for all."""
    return script.replace(b"SET transaction_timeout = 0;\n", b"", 1) if major < 17 else script
