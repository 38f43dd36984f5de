# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Names and texts as SQL writes them."""

from __future__ import annotations


def quote(name: str) -> str:
    """A quoted identifier."""
    return '"%s"' % name.replace('"', '""')


def qualified(schema: str, name: str) -> str:
    return quote(schema) + "." + quote(name)


def literal(text: str) -> str:
    """A string literal on one line that any server reads the same, whatever standard_conforming_strings says."""
    escaped = text.replace("'", "''")
    special = escaped.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    return "'%s'" % escaped if special == escaped else "E'%s'" % special
