# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Name patterns as psql and pg_dump read them."""

from __future__ import annotations

import pytest
from _pgstream.errors import UsageError
from _pgstream.patterns import matches, pattern_to_regex
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=500, deadline=None)
#: Anything a name can hold, and often what is special in a pattern or a regular expression.
NAMES = st.text(
    st.one_of(st.characters(exclude_characters="\0"), st.sampled_from('."*?$^|[](){}+\\\n aA-')), min_size=1
)


def quoted(name: str) -> str:
    return '"%s"' % name.replace('"', '""')


@MANY
@given(NAMES, NAMES, NAMES, NAMES)
def test_a_quoted_name_is_exactly_itself(schema: str, name: str, other_schema: str, other: str) -> None:
    assert matches([quoted(name)], schema, name)
    assert matches([quoted(schema) + "." + quoted(name)], schema, name)
    assert matches([quoted(name)], schema, other) == (name == other)
    assert matches([quoted(schema) + "." + quoted(name)], other_schema, name) == (schema == other_schema)


@MANY
@given(NAMES)
def test_near_names_are_other_names(name: str) -> None:
    for other in (name + "\n", "\n" + name, name + name, name[1:], name + "x"):
        if other != name:
            assert not matches([quoted(name)], "s", other)


@MANY
@given(NAMES, NAMES)
def test_a_star_is_any_text(schema: str, name: str) -> None:
    assert matches(["*"], schema, name) and matches(["*.*"], schema, name)
    assert matches([quoted(name) + "*"], schema, name + schema)
    assert matches(["*" + quoted(name)], schema, schema + name)
    assert matches([quoted(schema) + ".*"], schema, name)


@MANY
@given(st.text(max_size=20))
def test_any_text_is_a_pattern_or_a_fault(pattern: str) -> None:
    try:
        matches([pattern], "s", "t")
    except UsageError as error:
        assert pattern.split()[:1] == [] or "pattern" in str(error)


@pytest.mark.parametrize("pattern,schema,name,expected", [
    ("foo", "any", "foo", True),
    ("FOO", "any", "foo", True),  # unquoted letters fold
    ("FOO", "any", "FOO", False),
    ('"FOO"', "any", "FOO", True),
    ('F"OO"bar', "any", "fOObar", True),
    ("foo", "any", "foobar", False),
    ("foo*", "any", "foobar", True),
    ("f?o", "any", "fxo", True),
    ("f?o", "any", "fo", False),
    ("f?o", "any", "f\no", True),
    ('"f?o"', "any", "fxo", False),
    ('"f*"', "any", "f*", True),
    ("public.foo", "public", "foo", True),
    ("public.foo", "other", "foo", False),
    ("pub*.f*", "public", "foo", True),
    ('"a.b"', "any", "a.b", True),
    ('"a.b".c', "a.b", "c", True),
    ('"a""b"', "any", 'a"b', True),
    ("a$b", "any", "a$b", True),  # a dollar is always itself
    ("t[0-9]", "any", "t7", True),  # the rest of regular expressions works unquoted
    ("t[0-9]", "any", "tx", False),
    ('"t[0-9]"', "any", "t7", False),
    ("a|b", "any", "b", True),
    ("a|b", "any", "ab", False),
    ("t[]", "any", "t[]", True),  # an array type's name
    ("(ab)+", "any", "abab", True),
    ("\u00c9", "any", "\u00c9", True),  # only ASCII folds
    ("*.foo", "x", "foo", True),
    ("foo.*", "foo", "x", True),
    ("", "any", "", True),
    ("", "any", "x", False),
])  # fmt: skip
def test_rules(pattern: str, schema: str, name: str, expected: bool) -> None:
    assert matches([pattern], schema, name) is expected


def test_any_of_several() -> None:
    assert matches(["a", "b.c", "d"], "b", "c")
    assert not matches(["a", "b.c", "d"], "x", "c")
    assert not matches([], "b", "c")


def test_regex_for_the_server() -> None:
    assert pattern_to_regex('Pub*."T.?"') == ("^(pub.*)$", "^(T\\.\\?)$")
    assert pattern_to_regex("t") == ("", "^(t)$")


@pytest.mark.parametrize("pattern,said", [
    ('"foo', "unclosed double quote"),
    ("a.b.c", "too many dots"),
    ("a[", "not a regular expression"),
    ("+", "not a regular expression"),
])  # fmt: skip
def test_faults(pattern: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        matches([pattern], "a", "b")
