# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The plan: every page of every table exactly once, bounded batches, sizes that never run out of parts."""

from __future__ import annotations

import re
from typing import Dict, List, Tuple

import pytest
from _pgstream import plan
from _pgstream.plan import MIB, CopyItem
from _pgstream.postgres import TableFacts
from hypothesis import given, settings
from hypothesis import strategies as st

MANY = settings(max_examples=400, deadline=None)
PAGE = 8192


def facts(name: str = "t", pages: int = 1, toast: int = 0, splittable: bool = True, **more: object) -> TableFacts:
    columns = more.pop("columns", ('"a"', '"b c"'))
    return TableFacts(1, "s", name, columns, pages, pages * PAGE + toast, splittable, **more)  # type: ignore[arg-type]


TABLES = st.lists(
    st.builds(
        facts,
        pages=st.one_of(st.integers(0, 3), st.integers(0, 40000)),
        toast=st.one_of(st.just(0), st.integers(0, 1 << 31)),
        splittable=st.booleans(),
    ),
    max_size=30,
).map(lambda found: list(enumerate(found)))


def covered(tasks: List[plan.CopyTask]) -> Dict[int, List[CopyItem]]:
    items: Dict[int, List[CopyItem]] = {}
    for task in tasks:
        for item in task.items:
            items.setdefault(item.table, []).append(item)
    return items


@MANY
@given(TABLES, st.integers(1, 16), st.sampled_from([0, 0, MIB, 100 * MIB]))
def test_every_page_exactly_once(tables: List[Tuple[int, TableFacts]], jobs: int, task_size: int) -> None:
    items = covered(plan.plan_copies(tables, jobs, task_size))
    assert sorted(items) == [number for number, _facts in tables]
    for number, table in tables:
        pieces = sorted(items[number], key=lambda item: item.first_page)
        assert all(piece.facts is table for piece in pieces)
        # The first begins at page 0 and the last goes on to the end, pages that were added meanwhile included.
        assert pieces[0].first_page == 0 and pieces[-1].end_page is None
        for one, two in zip(pieces, pieces[1:]):
            assert one.end_page == two.first_page and two.first_page > one.first_page
        if len(pieces) > 1:
            assert table.splittable and jobs > 1 and pieces[-1].first_page < table.pages


@MANY
@given(TABLES, st.integers(1, 16))
def test_deterministic_and_largest_first(tables: List[Tuple[int, TableFacts]], jobs: int) -> None:
    tasks = plan.plan_copies(tables, jobs)
    assert tasks == plan.plan_copies(tables, jobs)
    sizes = [task.size for task in tasks]
    assert sizes == sorted(sizes, reverse=True)
    assert all(task.items for task in tasks)


@MANY
@given(TABLES, st.integers(1, 16))
def test_tasks_are_bounded(tables: List[Tuple[int, TableFacts]], jobs: int) -> None:
    total = sum(table.size for _number, table in tables)
    target = min(plan.TASK_SIZE, max(plan.SMALLEST_TASK, total // (jobs * 4)))
    for task in plan.plan_copies(tables, jobs):
        if len(task.items) > 1:
            assert task.size <= target and len(task.items) <= plan.TABLES_PER_TASK
            assert task.size == sum(item.facts.size + plan.TASK_OVERHEAD for item in task.items)
            assert all(item.whole for item in task.items)
        elif jobs > 1 and task.items[0].facts.splittable and task.items[0].facts.pages > 1:
            (item,), pages = task.items, task.items[0].facts.pages
            if item.whole:
                assert task.size <= 2 * target
            else:  # a table of few pages and much TOAST cannot be cut finer than its pages
                assert task.size <= max(target + plan.TASK_OVERHEAD, -(-item.facts.size // pages))


@MANY
@given(TABLES)
def test_one_job_never_splits(tables: List[Tuple[int, TableFacts]]) -> None:
    items = [item for task in plan.plan_copies(tables, 1) for item in task.items]
    assert all(item.whole for item in items) and len(items) == len(tables)


def test_many_empty_tables_share_tasks() -> None:
    tables = [(number, facts("t%d" % number, 0)) for number in range(10000)]
    tasks = plan.plan_copies(tables, 4)
    # 4 MiB hold 128 times the overhead of an empty table.
    assert len(tasks) == -(-10000 // 128)
    tasks = plan.plan_copies(tables, 4, task_size=1 << 40)
    assert [len(task.items) for task in tasks] == [250] * 40


def test_a_large_table_is_split_for_all_jobs() -> None:
    tasks = plan.plan_copies([(0, facts(pages=40000))], 4)
    assert len(tasks) == 16 and max(task.size for task in tasks) <= plan.TASK_SIZE
    assert len(plan.plan_copies([(0, facts(pages=40000, splittable=False))], 4)) == 1


def test_statement_of_a_whole_table() -> None:
    item = CopyItem(0, facts('odd "t"'))
    assert item.out_statement() == 'COPY "s"."odd ""t""" ("a", "b c") TO STDOUT'
    assert item.in_statement() == 'COPY "s"."odd ""t""" ("a", "b c") FROM stdin;\n'


def test_statements_of_ranges() -> None:
    head = 'COPY (SELECT "a", "b c" FROM ONLY "s"."t" WHERE '
    assert CopyItem(0, facts(), 0, 5).out_statement() == head + "ctid < '(5,0)') TO STDOUT"
    assert CopyItem(0, facts(), 5, 9).out_statement() == head + "ctid >= '(5,0)' AND ctid < '(9,0)') TO STDOUT"
    assert CopyItem(0, facts(), 9, None).out_statement() == head + "ctid >= '(9,0)') TO STDOUT"
    assert CopyItem(0, facts(), 9, None).in_statement() == 'COPY "s"."t" ("a", "b c") FROM stdin;\n'


def test_statements_without_columns() -> None:
    assert CopyItem(0, facts(columns=())).out_statement() == 'COPY "s"."t" TO STDOUT'
    assert CopyItem(0, facts(columns=())).out_command() == '\\copy "s"."t" to pstdout'
    assert CopyItem(0, facts(columns=())).in_statement() == 'COPY "s"."t" FROM stdin;\n'
    ranged = CopyItem(0, facts(columns=()), 1, None).out_statement()
    assert ranged == 'COPY (SELECT  FROM ONLY "s"."t" WHERE ctid >= \'(1,0)\') TO STDOUT'


def test_rows_go_in_by_way_of_the_parent() -> None:
    item = CopyItem(0, facts(load_via='"s"."parent"'))
    assert item.in_statement() == 'COPY "s"."parent" ("a", "b c") FROM stdin;\n'
    assert '"s"."t"' in item.out_statement()


@pytest.mark.parametrize("name", ["a\nb", "a;b", "\\.", "t\u00e9"])
def test_odd_names_stay_quoted(name: str) -> None:
    assert re.match(r'COPY "s"\."', CopyItem(0, facts(name)).in_statement())
    assert '"%s"' % name in CopyItem(0, facts(name), 1, 2).out_statement()


def test_psql_s_own_copy_is_one_line() -> None:
    assert CopyItem(0, facts()).out_command() == '\\copy "s"."t" ("a", "b c") to pstdout'
    assert CopyItem(0, facts(), 1, 2).out_command().startswith('\\copy (SELECT "a", "b c" FROM ONLY "s"."t" WHERE ctid')
    assert CopyItem(0, facts("a\nb")).out_command() == CopyItem(0, facts("a\nb"), 1, 2).out_command() == ""


SIZES = st.one_of(
    st.integers(0, 1 << 50),
    # Around the multiples at which the next part size begins.
    st.builds(lambda parts, off: parts * 5000 * MIB + off, st.integers(0, 100000), st.integers(-3, 3)),
).filter(lambda size: size >= 0)


@MANY
@given(SIZES, st.sampled_from([5 * MIB, 8 * MIB, 64 * MIB]), st.sampled_from([10000, 1000, 9999]))
def test_twice_the_estimate_fits_the_parts(estimated: int, smallest: int, most: int) -> None:
    size = plan.part_size(estimated, smallest, most)
    assert size >= smallest and size % MIB == 0
    assert -(-2 * estimated // size) <= most
    assert size == smallest or -(-2 * estimated // (size - MIB)) > most  # no larger than need be


@MANY
@given(SIZES)
def test_blocks_of_four_times_the_estimate_fit_the_index(estimated: int) -> None:
    size = plan.block_size(estimated)
    assert size >= 8 * MIB and size % MIB == 0
    assert -(-4 * estimated // size) <= plan.MAX_BLOCKS


def test_sizes_as_documented() -> None:
    assert plan.block_size(10 << 30) == 8 * MIB
    assert plan.part_size(40 * 10**9, 8 * MIB, 10000) == 8 * MIB
    assert plan.part_size(300 * 10**9, 8 * MIB, 10000) == 58 * MIB
