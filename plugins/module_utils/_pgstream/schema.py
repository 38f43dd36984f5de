# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The schema archive: pg_dump's custom format without data, held in memory, and what its table of contents tells."""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from typing import Dict, List, Optional, Sequence, Set, Tuple

from .clients import Clients
from .errors import BackupError, IntegrityError
from .model import Filters
from .process import Process, Processes, memory_file
from .quoting import quote

_PG_CLASS = 1259  # OIDs of the catalogues themselves: fixed in PostgreSQL's pg_class.h and others
_PG_ATTRDEF = 2604
_PG_EXTENSION = 3079
_ENTRY = re.compile(rb"^(\d+); (\d+) (\d+) (.*)$")
_FAILED = re.compile(r"(?ms)^Command was: (.*?;)\n+(?=pg_restore: )")
#: A deadlock; a foreign key whose partitioned table had no key yet, as that of a partition was being attached.
_BESIDE = ("deadlock detected", "no unique constraint matching given keys")
_WHOLE = re.compile(r"pg_restore: warning: errors ignored on restore: \d+\Z")
_NAMED = re.compile(rb"(?m)^-- Name: (.*); Type: .*; Schema: (.*); Owner: ")
#: The settings, which come after a \\restrict of newer ones, then the statements.
_STATEMENTS = re.compile(
    rb"(?s)\A(.*?\n)((?:SET default_|--\n-- Name: ).*)\n--\n-- PostgreSQL database dump complete\n"
)
_SETTING = re.compile(rb"(?m)^(?:SET|SELECT) [^\n]*;$")
_SCHEMA = re.compile(rb"(?m)^-- Name: .*; Type: SCHEMA; ")
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


def start_dump(
    clients: Clients,
    processes: Processes,
    database: str,
    encoding: str,
    snapshot: str,
    filters: Filters,
    lock_timeout: int,
) -> Process:
    """Start pg_dump, which runs once, for all that is not data. Not `--schema-only`: that leaves out REFRESH
    MATERIALIZED VIEW.

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
    # `*` means the system's too, whose tables nobody may restore
    if filters.schemas:
        arguments += ["--exclude-schema=pg_*", "--exclude-schema=information_schema"]
    if filters.tables:
        arguments += ["--exclude-table=pg_*.*", "--exclude-table=information_schema.*"]
    env = clients.environment("SQL_ASCII" if encoding == "SQL_ASCII" else "UTF8")
    return processes.spawn(clients.argv("pg_dump", arguments, database), env, "pg_dump")


def dumped_by(process: Process) -> Tuple[bytes, List[str]]:
    """The archive that a pg_dump wrote, at its end, and what it warned of, such as subscriptions, which it leaves out
    where the user is no superuser."""
    try:
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


def failed_beside_others(said: str) -> List[str]:
    """The statements that a pg_restore without --exit-on-error could not run, in the order of their failures, where its
    own jobs may have been among the reasons. Empty where not, or where what it said may not be all."""
    statements = _FAILED.findall(said)
    if not any(reason in said for reason in _BESIDE) or "\ufffd" in said or not _WHOLE.search(said):
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


def listed(clients: Clients, processes: Processes, archive: bytes, schema: str, *tables: str) -> Set[int]:
    """The dump ids of what lies in a schema, or of relations in it ("": in any), by pg_restore's own choice, which
    takes names as they are: its listing, "schema name owner" with spaces in any of them, does not tell them apart."""
    arguments = ["-l"] + (["--schema=" + schema] if schema else []) + ["--table=" + table for table in tables]
    lines = pg_restore_text(clients, processes, archive, arguments).split(b"\n")
    return {int(match.group(1)) for match in map(_ENTRY.match, lines) if match}


def empty_schema(clients: Clients, processes: Processes, archive: bytes, toc: Sequence[Entry], name: str) -> Set[int]:
    """The dump id of a schema itself, where nothing lies in it: by the statement that makes it."""
    statements = [b"CREATE SCHEMA %s;" % each.encode() for each in (quote(name), name)]
    found = set()
    for entry in toc:
        if entry.text.startswith(b"SCHEMA - " + _shown(name)):
            script = _script_of(clients, processes, archive, [entry])
            if any(b"\n" + statement + b"\n" in script for statement in statements):
                found.add(entry.dump_id)
    return found


def sequences(
    clients: Clients, processes: Processes, archive: bytes, entries: Sequence[Entry]
) -> Set[Tuple[bytes, bytes]]:
    """(schema, name) of the sequences among these entries, by the statements that make them."""
    wanted = [entry for entry in entries if _split(entry)[0] == b"SEQUENCE"]
    if not wanted:
        return set()
    script = _script_of(clients, processes, archive, wanted)
    return {(_unquoted(match.group(1)), _unquoted(match.group(2))) for match in _SEQUENCE.finditer(script)}


def _script_of(
    clients: Clients, processes: Processes, archive: bytes, entries: Sequence[Entry], options: Sequence[str] = ()
) -> bytes:
    file = memory_file(b"".join(entry.line + b"\n" for entry in entries))
    try:
        arguments = ["-f", "-", "--use-list=/dev/fd/%d" % file, *options]
        return pg_restore_text(clients, processes, archive, arguments, [file])
    finally:
        os.close(file)


def statements(
    clients: Clients, processes: Processes, archive: bytes, entries: Sequence[Entry], options: Sequence[str], major: int
) -> bytes:
    """What pg_restore would tell a server of this major version for these entries, the settings in one message."""
    script = _script_of(clients, processes, archive, entries, options)
    found = _STATEMENTS.search(for_server(script, major))
    if not found:
        raise BackupError("pg_restore wrote a script that does not look like one of it")
    settings, rest = found.groups()
    return in_one_message(b"\n".join(_SETTING.findall(settings)) + b"\n") + rest + b"\n"


def names(clients: Clients, processes: Processes, archive: bytes, entries: Optional[Sequence[Entry]]) -> Set[bytes]:
    """`schema name` of these entries (None: all), by the comments before their statements; "-" is no schema."""
    if entries is None:
        script = pg_restore_text(clients, processes, archive, ["-f", "-"])
    else:
        script = _script_of(clients, processes, archive, entries)
    script = with_schemas(script)
    return {match.group(2) + b" " + match.group(1) for match in _NAMED.finditer(script)}


def with_schemas(script: bytes) -> bytes:
    """Definitions without those of a schema, with the schemas that they lie in before them: where tables are chosen,
    pg_dump takes no schema along."""
    spaces = {match.group(2) for match in _NAMED.finditer(script)} - {b"-", b"public", b"pg_catalog"}
    if not spaces or _SCHEMA.search(script):
        return script
    start = script.index(b"-- Name: ")
    made = [
        b'-- Name: %s; Type: SCHEMA; Schema: -; Owner: -\n--\n\nCREATE SCHEMA IF NOT EXISTS "%s";\n\n\n--\n'
        % (space, space.replace(b'"', b'""'))
        for space in sorted(spaces)
    ]
    return script[:start] + b"".join(made) + script[start:]


def with_partitions(toc: Sequence[Entry], chosen: Set[int]) -> Set[int]:
    """These dump ids, and those of the partitions of the tables among them, and of theirs."""
    # An attachment needs the partition, then its parent (flagInhTables in pg_dump's common.c).
    pairs = [entry.needs[:2] for entry in toc if _split(entry)[0] == b"TABLE ATTACH" and len(entry.needs) > 1]
    found, size = set(chosen), 0
    while len(found) > size:
        size = len(found)
        found |= {partition for partition, parent in pairs if parent in found}
    return found


def relations(toc: Sequence[Entry], chosen: Set[int]) -> Tuple[Set[int], Set[int]]:
    """OIDs of the tables and of the sequences among these dump ids."""
    found = contents([entry for entry in toc if entry.dump_id in chosen])
    return found.relations, found.sequences


def select(toc: Sequence[Entry], named: Set[int]) -> Tuple[List[Entry], Set[int]]:
    """The entries that restore what these dump ids name, in their order, and the OIDs of the tables.

    The partitions of a table come along, children that inherit from it do not. What a chosen object needs comes along
    (types, functions, its schema, a parent table's definition); what hangs on it does too (indexes, constraints,
    triggers, grants), unless it also needs a table that was not chosen, as a foreign key may.
    """
    by_id = {entry.dump_id: entry for entry in toc}
    # A foreign key may need the rows of a table in another schema.
    chosen = {number for number in named if number in by_id and _split(by_id[number])[0] != b"FK CONSTRAINT"}
    chosen = with_partitions(toc, chosen)
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
            holders = [number for number in owners if _split(by_id[number])[0] in _HOLDERS]
            owners = holders if kind == b"SEQUENCE" else holders or owners  # one of its own only lies in its schema
            if kind == b"FK CONSTRAINT" and any(_is_table(by_id[number]) for number in owners if number not in chosen):
                continue  # a table that came along has its definition only, and no rows to refer to
            if owners and all(number in picked for number in owners):
                _with_needs({entry.dump_id}, by_id, picked)
                grown = True
    # Settings of the whole script (encoding, quoting) have no catalogue and no schema.
    picked |= {entry.dump_id for entry in toc if _split(entry)[0] in (b"ENCODING", b"STDSTRINGS", b"SEARCHPATH")}
    return [entry for entry in toc if entry.dump_id in picked], tables_chosen


def whole(toc: Sequence[Entry]) -> Tuple[List[Entry], List[Entry]]:
    """The entries of a filtered backup, and those of them that refer to a relation which is not in it: foreign keys,
    attachments of partitions and of their indexes. pg_dump writes them all the same, without that dependency."""
    kinds = {entry.dump_id: _split(entry)[0] for entry in toc}
    keys = (b"CONSTRAINT", b"INDEX")
    lost: Set[int] = set()
    for entry in toc:
        kind = kinds[entry.dump_id]
        indexes = sum(kinds.get(number) in keys for number in set(entry.needs))
        if (
            (kind == b"FK CONSTRAINT" and not indexes)  # that of the table it refers to
            or (kind == b"TABLE ATTACH" and len(set(entry.needs)) < 2)  # the partition, and its parent
            or (kind == b"INDEX ATTACH" and indexes < 2)
        ):
            lost.add(entry.dump_id)
    lost |= {entry.dump_id for entry in toc if kinds[entry.dump_id] == b"COMMENT" and lost & set(entry.needs)}
    return [entry for entry in toc if entry.dump_id not in lost], [entry for entry in toc if entry.dump_id in lost]


def count_relations(toc: Sequence[Entry], chosen: Set[int]) -> int:
    """How many of these dump ids are relations, as pg_restore's --table takes them."""
    return sum(entry.dump_id in chosen and _split(entry)[0] in _RELATIONS for entry in toc)


def count_indexes(dumped: bytes) -> int:
    """About how many indexes the schema archive has, by the statements that stand in it."""
    return len(_INDEX.findall(dumped))


def is_refresh(entry: Entry) -> bool:
    """Whether it fills a materialized view."""
    return _split(entry)[0] == b"MATERIALIZED VIEW DATA"


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
_ESCAPES = {b"n": b"\n", b"r": b"\r"}
_IDENTIFIER = rb'("(?:[^"]|"")*"|[^".\s]+)'
_QUALIFIED = re.compile(_IDENTIFIER + rb"\." + _IDENTIFIER)
#: How pg_dump makes a sequence, and that of an identity column.
_SEQUENCE = re.compile(
    rb"(?m)^(?:CREATE (?:UNLOGGED )?SEQUENCE|    SEQUENCE NAME) " + _IDENTIFIER + rb"\." + _IDENTIFIER + rb"$"
)


def sequence_of(line: bytes) -> Optional[Tuple[bytes, bytes]]:
    """(schema, name) of the sequence that a setval line sets."""
    match = _SETVAL.match(line)
    if not match:
        return None
    name = match.group(2).replace(b"''", b"'")
    if match.group(1):
        # Left to right: the second backslash of an escaped one begins nothing.
        name = re.sub(rb"\\(.)", lambda escape: _ESCAPES.get(escape.group(1), escape.group(1)), name)
    parts = _QUALIFIED.fullmatch(name)
    return (_unquoted(parts.group(1)), _unquoted(parts.group(2))) if parts else None


def _unquoted(name: bytes) -> bytes:
    return name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name


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


def in_one_message(statements: bytes) -> bytes:
    """For psql: lines that are a statement each, in one round trip."""
    return statements.rstrip().replace(b";\n", b"\\; ") + b"\n"


def for_server(script: bytes, major: int) -> bytes:
    """The script without what servers of this major do not know: pg_restore 17 sets transaction_timeout for all."""
    return script.replace(b"SET transaction_timeout = 0;\n", b"", 1) if major < 17 else script
