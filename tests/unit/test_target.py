# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The target's pure parts: names that fit, settings as ALTER DATABASE takes them."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import List

import pytest
from _pgstream import target
from _pgstream.target import DatabaseObject, Target
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=400, deadline=None)
MOMENT = datetime(2026, 1, 31, 2, 3, 4, tzinfo=timezone.utc)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=63)


@MANY
@given(NAMES)
def test_names_fit_the_server(name: str) -> None:
    """63 bytes, not letters; the server would cut the end, which is what tells the names apart."""
    for made in (target.beside(name), target.kept_name(name, MOMENT)):
        suffix = re.search(r"_(pgstream_[0-9a-f]{12}|before_20260131T020304Z)\Z", made).group()  # type: ignore[union-attr]
        assert len(made.encode()) <= 63 and made.endswith(suffix)
        kept = made[: -len(suffix)]
        assert name.startswith(kept) and made != name
        if len((name + suffix).encode()) <= 63:
            assert kept == name
        else:
            longer = name[: len(kept) + 1]
            assert len((longer + suffix).encode()) > 63  # no letter less than need be


def test_names() -> None:
    assert target.kept_name("shop", MOMENT) == "shop_before_20260131T020304Z"
    assert re.fullmatch("shop_pgstream_[0-9a-f]{12}", target.beside("shop"))
    assert target.beside("shop") != target.beside("shop")
    assert target.kept_name("\u00e9" * 63, MOMENT, "iso8859_1") == "\u00e9" * 39 + "_before_20260131T020304Z"
    wide = "\U00020000" * 12 + "\u4e02" * 10  # four bytes each in GB18030, the second three in UTF-8
    for codec in ("utf-8", "gb18030"):
        assert len(target.beside(wide, codec).encode(codec)) <= 63
    assert target.kept_name("\u00e9" * 31, MOMENT) == "\u00e9" * 19 + "_before_20260131T020304Z"


@pytest.mark.parametrize("value,expected", [
    ('"$user", public', "'$user', 'public'"),
    ("public", "'public'"),
    ('"my schema", "a,b", "c""d", x', "'my schema', 'a,b', 'c\"d', 'x'"),
    ('""', "''"),
    ("a,b", "'a', 'b'"),
    ("it's", "'it''s'"),
])  # fmt: skip
def test_lists_of_names_are_set_name_by_name(value: str, expected: str) -> None:
    """As one literal, `a, b` would be one schema of that name."""
    assert target._setting_value("search_path", value) == expected
    assert target._setting_value("Search_Path", value) == expected


@pytest.mark.parametrize("name,value,expected", [
    ("work_mem", "64MB", "'64MB'"),
    ("DateStyle", "ISO, DMY", "'ISO, DMY'"),
    ("my.setting", "a'b\\c\n", "E'a''b\\\\c\\n'"),
    ("application_name", "", "''"),
])  # fmt: skip
def test_other_settings_are_one_literal(name: str, value: str, expected: str) -> None:
    assert target._setting_value(name, value) == expected


def stored(names: List[str]) -> str:
    """As the server keeps a list in pg_db_role_setting: quoted where a name needs it."""
    plain = re.compile(r"[a-z_][a-z0-9_]*\Z")
    return ", ".join(name if plain.match(name) else '"%s"' % name.replace('"', '""') for name in names)


def literals(text: str) -> List[str]:
    """The list of literals read back as the server's lexer would."""
    found, rest = [], text
    while rest:
        match = re.match(r"(E?)'((?:[^'\\]|''|\\.|\\)*?)'(?:, |\Z)", rest, re.DOTALL)
        assert match is not None, rest
        value = match.group(2).replace("''", "'")
        if match.group(1):
            value = re.sub(r"\\(.)", lambda escape: {"n": "\n", "r": "\r"}.get(escape.group(1), escape.group(1)), value)
        found.append(value)
        rest = rest[match.end() :]
    return found


@MANY
@given(st.lists(st.text(st.sampled_from("ab,\"' \n\u00e9$_A"), max_size=6), min_size=1, max_size=4))
def test_any_list_of_names_comes_back(names: List[str]) -> None:
    assert literals(target._setting_value("search_path", stored(names))) == names


def test_names_of_settings() -> None:
    assert target._setting_name("work_mem") == '"work_mem"'
    assert target._setting_name("my.own") == '"my"."own"'


def test_what_a_target_is() -> None:
    extension = DatabaseObject(3079, 16384, "extension", "hstore")
    tables = tuple(DatabaseObject(1259, 16385 + number, "table", "public.t%d" % number) for number in range(5))
    assert Target("x", False).described() == "absent"
    assert Target("x", True).described() == Target("x", True, (extension,)).described() == "empty"
    full = Target("x", True, (extension, *tables))
    assert full.content == list(tables)
    assert full.described() == "has 5 objects, such as table public.t0, table public.t1, table public.t2"
