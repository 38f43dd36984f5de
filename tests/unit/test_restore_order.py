# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What of a backup may be made while its rows are loaded, and what the workers do when."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import Any, Dict, List, Sequence, Set, Tuple

import pytest
from _pgstream import schema
from _pgstream.errors import BackupError
from _pgstream.model import Block, Index, Table
from _pgstream.restore_order import Early, Order, Task, early_entries, large_tables
from _pgstream.schema import Entry
from _pgstream.workers import run_parallel

#: Of `pg_restore -l --verbose` 15: tables in a schema INDEX, partitions, functions before the data and after it.
LISTING = b"""\
3745; 0 0 ENCODING - ENCODING
3746; 0 0 STDSTRINGS - STDSTRINGS
3747; 0 0 SEARCHPATH - SEARCHPATH
3748; 1262 16384 DATABASE - x postgres
8; 2615 16386 SCHEMA - CONSTRAINT postgres
7; 2615 16385 SCHEMA - INDEX postgres
2; 3079 16387 EXTENSION - btree_gist
3749; 0 0 COMMENT - EXTENSION btree_gist
;\tdepends on: 2
433; 1255 17178 FUNCTION public trg() postgres
431; 1255 17037 FUNCTION public twice(integer) postgres
218; 1259 17051 TABLE INDEX ATTACH postgres
;\tdepends on: 7
220; 1259 17081 TABLE public a postgres
221; 1259 17086 TABLE public b postgres
217; 1259 17038 TABLE public customer postgres
227; 1259 17162 VIEW public grouped postgres
219; 1259 17071 TABLE public tree postgres
229; 1259 17174 TABLE public kid postgres
;\tdepends on: 219
226; 1259 17152 TABLE public of_leaf postgres
225; 1259 17136 TABLE public of_part postgres
231; 1259 17190 TABLE public ofsmall postgres
222; 1259 17101 TABLE public part postgres
223; 1259 17111 TABLE public part_1 postgres
;\tdepends on: 222
224; 1259 17119 TABLE public part_2 postgres
;\tdepends on: 222
228; 1259 17168 MATERIALIZED VIEW public seen postgres
;\tdepends on: 217
230; 1259 17180 TABLE public small postgres
3528; 0 0 TABLE ATTACH public part_1 postgres
;\tdepends on: 223 222
3529; 0 0 TABLE ATTACH public part_2 postgres
;\tdepends on: 224 222
3535; 2606 17044 CONSTRAINT public customer customer_pkey postgres
;\tdepends on: 217
3750; 0 0 COMMENT public CONSTRAINT customer_pkey ON customer postgres
;\tdepends on: 3535
432; 1255 17166 FUNCTION public grouping_(integer) postgres
;\tdepends on: 217 3535 217
3539; 2606 17057 CONSTRAINT INDEX ATTACH ATTACH_pkey postgres
;\tdepends on: 218
3541; 2606 17059 CONSTRAINT INDEX ATTACH ATTACH_span_id_excl postgres
;\tdepends on: 218 218
3546; 2606 17085 CONSTRAINT public a a_pkey postgres
;\tdepends on: 220
3548; 2606 17090 CONSTRAINT public b b_pkey postgres
;\tdepends on: 221
3533; 2606 17046 CONSTRAINT public customer customer_name_key postgres
;\tdepends on: 217
3562; 2606 17156 CONSTRAINT public of_leaf of_leaf_pkey postgres
;\tdepends on: 226
3560; 2606 17140 CONSTRAINT public of_part of_part_pkey postgres
;\tdepends on: 225
3568; 2606 17194 CONSTRAINT public ofsmall ofsmall_pkey postgres
;\tdepends on: 231
3551; 2606 17105 CONSTRAINT public part part_pkey postgres
;\tdepends on: 222 222
3555; 2606 17115 CONSTRAINT public part_1 part_1_pkey postgres
;\tdepends on: 223 223 223 3551
3558; 2606 17123 CONSTRAINT public part_2 part_2_pkey postgres
;\tdepends on: 224 3551 224 224
3566; 2606 17184 CONSTRAINT public small small_pkey postgres
;\tdepends on: 230
3544; 2606 17075 CONSTRAINT public tree tree_pkey postgres
;\tdepends on: 219
3537; 1259 17070 INDEX INDEX ATTACH_i postgres
;\tdepends on: 218
3530; 1259 17050 INDEX public customer_code postgres
;\tdepends on: 217
3531; 1259 17049 INDEX public customer_name postgres
;\tdepends on: 217 217
3751; 0 0 COMMENT public INDEX customer_name postgres
;\tdepends on: 3531
3536; 1259 17048 INDEX public customer_twice postgres
;\tdepends on: 217 217 431
3564; 1259 17177 INDEX public kid_id_idx postgres
;\tdepends on: 229
3549; 1259 17127 INDEX public part_customer postgres
;\tdepends on: 222
3552; 1259 17128 INDEX public part_1_customer_idx postgres
;\tdepends on: 3549 223 223
3553; 1259 17130 INDEX public part_1_own postgres
;\tdepends on: 223
3556; 1259 17129 INDEX public part_2_customer_idx postgres
;\tdepends on: 224 224 3549
3563; 1259 17172 INDEX public seen_id_idx postgres
;\tdepends on: 228
3542; 1259 17167 INDEX public tree_grouping postgres
;\tdepends on: 219 219 432
3569; 0 0 INDEX ATTACH public part_1_customer_idx postgres
;\tdepends on: 3552 3549 223 222
3570; 0 0 INDEX ATTACH public part_1_pkey postgres
;\tdepends on: 3555 223 3551 3551 223 222
3571; 0 0 INDEX ATTACH public part_2_customer_idx postgres
;\tdepends on: 3556 3549 224 222
3572; 0 0 INDEX ATTACH public part_2_pkey postgres
;\tdepends on: 3558 3551 224 3551 224 222
3573; 3381 17173 STATISTICS public st postgres
;\tdepends on: 217 217
3728; 2618 17165 RULE public grouped _RETURN postgres
;\tdepends on: 217 3535 217 227
3585; 2620 17179 TRIGGER public customer t postgres
;\tdepends on: 433 217
3574; 2606 17065 FK CONSTRAINT INDEX ATTACH ATTACH_code_fkey postgres
;\tdepends on: 218 3530 217
3575; 2606 17060 FK CONSTRAINT INDEX ATTACH ATTACH_customer_fkey postgres
;\tdepends on: 3535 217 218
3577; 2606 17096 FK CONSTRAINT public a a_b_fkey postgres
;\tdepends on: 221 3548 220
3578; 2606 17091 FK CONSTRAINT public b b_a_fkey postgres
;\tdepends on: 3546 220 221
3582; 2606 17157 FK CONSTRAINT public of_leaf of_leaf_p_d_fkey postgres
;\tdepends on: 226 226 3555 223 3551 223 223
3581; 2606 17141 FK CONSTRAINT public of_part of_part_p_d_fkey postgres
;\tdepends on: 3570 3572 225 225 3551 222 222
3584; 2606 17195 FK CONSTRAINT public ofsmall ofsmall_s_fkey postgres
;\tdepends on: 230 3566 231
3580; 2606 17131 FK CONSTRAINT public part_1 part_1_day_fkey postgres
;\tdepends on: 219 223 3544
3579; 2606 17106 FK CONSTRAINT public part part_customer_fkey postgres
;\tdepends on: 3535 217 222
3583; 2606 17185 FK CONSTRAINT public small small_tree_fkey postgres
;\tdepends on: 219 3544 230
3576; 2606 17076 FK CONSTRAINT public tree tree_parent_fkey postgres
;\tdepends on: 3544 219 219
3739; 0 17168 MATERIALIZED VIEW DATA public seen postgres
;\tdepends on: 228 3744
"""


class Clients:
    """pg_restore, which prints `LISTING`."""

    bindir = ""

    def environment(self) -> Dict[str, str]:
        return {}

    def run(self, *_arguments: Any, **_options: Any) -> bytes:
        return LISTING


def toc() -> List[Entry]:
    return schema.entries(Clients(), Clients(), b"")  # type: ignore[arg-type]


def index_of(tables: Sequence[Tuple[int, int]], blocks: Sequence[Block] = ()) -> Index:
    """`tables`: OID and size."""
    made = tuple(Table(number, oid, "s", "t", 1, size) for number, (oid, size) in enumerate(tables))
    return Index(**{**{name: None for name in Index.__dataclass_fields__}, "tables": made, "blocks": tuple(blocks)})


#: The OIDs of the tables with rows of their own: all but the partitioned `part`.
OIDS = (17051, 17081, 17086, 17038, 17071, 17174, 17152, 17136, 17190, 17111, 17119, 17180)


def chosen(large: Set[int], without: Set[int] = frozenset(), blocks: Sequence[Block] = ()) -> Dict[bytes, Early]:  # type: ignore[assignment]
    """What is early where the tables of these OIDs are large, by name."""
    index = index_of([(oid, oid in large) for oid in OIDS if oid not in without], blocks)
    numbers = {table.number for table in index.tables if table.raw_bytes}
    found = early_entries(toc(), index, numbers)
    texts = [early.entries[0].text for early in found]
    return {text.rpartition(b" ")[0].partition(b" public ")[2] or text: early for text, early in zip(texts, found)}


def test_what_is_large_enough() -> None:
    index = index_of([(1, 16 << 20), (2, (16 << 20) - 1), (3, 80 << 20)])
    assert large_tables(index, 1 << 20) == {0, 2}
    assert large_tables(index, 4 << 20) == {2}
    assert large_tables(index, 8 << 20) == set()


def test_what_may_be_early() -> None:
    """Nothing of partitions or a materialized view, nor what calls a function (`customer_twice`, `tree_grouping`)."""
    found = chosen(set(OIDS))
    assert set(found) == {
        b"customer customer_pkey", b"customer customer_name_key", b"customer_code", b"customer_name",
        b"CONSTRAINT INDEX ATTACH ATTACH_pkey postgres", b"CONSTRAINT INDEX ATTACH ATTACH_span_id_excl postgres",
        b"INDEX INDEX ATTACH_i postgres", b"FK CONSTRAINT INDEX ATTACH ATTACH_code_fkey postgres",
        b"FK CONSTRAINT INDEX ATTACH ATTACH_customer_fkey postgres",
        b"a a_pkey", b"b b_pkey", b"a a_b_fkey", b"b b_a_fkey", b"tree tree_pkey", b"tree tree_parent_fkey",
        b"of_leaf of_leaf_pkey", b"of_part of_part_pkey", b"ofsmall ofsmall_pkey", b"ofsmall ofsmall_s_fkey",
        b"small small_pkey", b"small small_tree_fkey", b"kid_id_idx",
    }  # fmt: skip
    assert [name for name, early in found.items() if not early.alone] == [
        b"INDEX INDEX ATTACH_i postgres", b"customer_code", b"customer_name", b"kid_id_idx",
    ]  # fmt: skip
    assert {name for name, early in found.items() if early.foreign} == {name for name in found if b"fkey" in name}
    both, itself = found[b"a a_b_fkey"], found[b"tree tree_parent_fkey"]
    assert both.tables == {1, 2} and both.keys == {3548}
    assert itself.tables == {4} and itself.keys == {3544}


def test_a_comment_goes_with_what_it_is_on() -> None:
    """pg_restore takes a comment for part of the section before it in its list, and leaves it out of another."""
    found = chosen(set(OIDS))
    assert [entry.dump_id for entry in found[b"customer customer_pkey"].entries] == [3535, 3750]
    assert [entry.dump_id for entry in found[b"customer_name"].entries] == [3531, 3751]
    assert [entry.dump_id for entry in found[b"customer_code"].entries] == [3530]


def test_of_small_tables_the_keys_that_large_ones_refer_to() -> None:
    assert set(chosen({17190})) == {b"ofsmall ofsmall_pkey", b"ofsmall ofsmall_s_fkey", b"small small_pkey"}
    assert set(chosen({17111})) == set()


def test_no_foreign_key_to_a_table_without_rows_in_the_backup() -> None:
    found = chosen(set(OIDS), without={17180})
    assert b"ofsmall ofsmall_pkey" in found and b"ofsmall ofsmall_s_fkey" not in found


def test_nothing_before_rows_that_an_extension_may_read() -> None:
    rest = Block("rest", 0, 1, 1, "", tables=((0, 0),))
    assert chosen(set(OIDS), blocks=[rest])
    rest = Block("rest", 0, 1, 1, "", rows=1, tables=((0, 1),))
    assert not chosen(set(OIDS), blocks=[rest])


# --- the order --------------------------------------------------------------------------------------------------------


def run_of(*tables: int) -> List[Block]:
    return [Block("data", 0, 1, 1, "", tables=tuple((table, 1) for table in tables))]


def early(number: int, kind: str, *tables: int, keys: Sequence[int] = ()) -> Early:
    entry = Entry(number, 0, 0, kind.encode() + b" s t n owner", b"")
    return Early((entry,), frozenset(tables), frozenset(keys), kind != "INDEX")


def in_turn(order: Order) -> List[Any]:
    """By one worker: the tables of runs, the dump ids of entries."""
    did: List[Any] = []
    for task in order:
        did.append(task.entries[0].dump_id if isinstance(task, Early) else tuple(n for n, _rows in task[0].tables))
        order.done(task)
    return did


def test_rows_alone_come_as_they_are_stored() -> None:
    runs = [run_of(2), run_of(0, 1), run_of(1), run_of()]
    assert in_turn(Order(runs, [], index_of([(1, 9), (2, 8), (3, 7)]))) == [(2,), (0, 1), (1,), ()]
    assert in_turn(Order([], [], index_of([]))) == []


def test_what_has_most_to_be_made_comes_first_with_what_it_refers_to() -> None:
    index = index_of([(1, 100), (2, 90), (3, 1), (4, 500)])
    made = [early(10, "INDEX", 0), early(11, "CONSTRAINT", 1), early(12, "CONSTRAINT", 2),
            early(13, "FK CONSTRAINT", 1, 2, keys=[12])]  # fmt: skip
    runs = [run_of(3), run_of(0), run_of(1), run_of(0), run_of(2), run_of(1, 3)]
    assert in_turn(Order(runs, made, index)) == [(1,), (1, 3), 11, (2,), 12, 13, (0,), (0,), 10, (3,)]


def test_one_lock_at_a_time() -> None:
    index = index_of([(1, 9), (2, 8), (3, 7)])
    made = [early(10, "CONSTRAINT", 0), early(11, "INDEX", 0), early(12, "INDEX", 0), early(13, "INDEX", 1),
            early(14, "FK CONSTRAINT", 1, 2), early(15, "FK CONSTRAINT", 2)]  # fmt: skip
    order = Order([run_of(2)], made, index)
    rows = [next(order), next(order), next(order)]
    assert rows[0] is made[0] and rows[1] is made[3] and isinstance(rows[2], list)
    order.done(made[0])
    assert next(order) is made[1] and next(order) is made[2]
    order.done(rows[2])
    assert next(order) is made[5]  # not the other, beside the index of table 1
    order.done(made[3])
    with pytest.raises(StopIteration):
        next(order)
    assert order.made == {10, 13}
    order.done(made[5])
    assert order.made == {10, 13, 15}
    with pytest.raises(StopIteration):  # the rest is left, once somebody had nothing to do
        next(order)


class Checked(Order):
    """Takes note of what runs beside what."""

    def __init__(self, runs: List[List[Block]], made: List[Early], index: Index) -> None:
        super().__init__(runs, made, index)
        self.lock = threading.Lock()
        self.all = made
        self.running: List[Task] = []
        self.loaded: List[int] = []  # by id
        self.begun: List[int] = []
        self.left = [set(n for block in run for n, _rows in block.tables) for run in runs]

    def work(self, task: Task) -> None:
        with self.lock:
            if isinstance(task, Early):
                self.begun.append(task.entries[0].dump_id)
                assert task.keys <= self.made
                assert not any(task.tables & tables for tables in self.left)
                for other in self.running:
                    if isinstance(other, Early):
                        assert not (task.foreign and other.foreign)
                        assert not (task.tables & other.tables) or not (task.alone or other.alone)
            self.running.append(task)
        if random.random() < 0.3:
            threading.Event().wait(random.random() / 1000)
        with self.lock:
            self.running.remove(task)
            if not isinstance(task, Early):
                self.loaded.append(id(task))
                self.left.remove(set(n for block in task for n, _rows in block.tables))
        self.done(task)


@pytest.mark.parametrize("seed", range(60))
def test_random_databases(seed: int) -> None:
    """Every run once, every entry at most once, and by one worker all of them; locks and needs as they must be."""
    draw = random.Random(seed)
    tables = draw.randint(1, 8)
    index = index_of([(n, draw.randint(0, 99)) for n in range(tables)])
    runs = [run_of(*draw.sample(range(tables), draw.randint(1, min(3, tables)))) for _run in range(draw.randint(0, 40))]
    made = [early(n, draw.choice(["INDEX", "CONSTRAINT"]), draw.randrange(tables)) for n in range(draw.randint(0, 20))]
    for number in range(100, 100 + draw.randint(0, 8) if made else 100):
        key = draw.choice(made[:20])
        if not key.foreign:
            of = draw.randrange(tables), *key.tables
            made.append(early(number, "FK CONSTRAINT", *of, keys=[key.entries[0].dump_id]))
    jobs = draw.randint(1, 5)
    order = Checked(runs, made, index)
    run_parallel(order, order.work, jobs, order.close)
    assert sorted(order.loaded) == sorted(map(id, runs))
    assert sorted(order.begun) == sorted(order.made) and not order.running
    if jobs == 1:
        assert order.made == {each.entries[0].dump_id for each in made}


def waiting() -> Tuple[Order, threading.Event]:
    """One worker loads rows, the other waits for them: it has an index to make. Set once it does."""
    waits = threading.Event()
    order = Order([run_of(0)], [early(1, "INDEX", 0)], index_of([(1, 1)]))
    wait = order._changed.wait

    def told(timeout: Any = None) -> bool:
        waits.set()
        return wait(timeout)

    order._changed.wait = told  # type: ignore[method-assign]
    return order, waits


def test_a_failure_wakes_who_waits() -> None:
    order, waits = waiting()

    def work(task: Task) -> None:
        assert waits.wait(60)
        raise BackupError("no rows")

    with pytest.raises(BackupError, match="no rows"):
        run_parallel(order, work, 3, order.close)
    assert order.made == set()


def test_so_does_an_interrupt() -> None:
    order, waits = waiting()
    stopped = threading.Event()

    def work(task: Task) -> None:
        assert waits.wait(60)
        os.kill(os.getpid(), signal.SIGINT)
        assert stopped.wait(60)

    def stop() -> None:
        order.close()
        stopped.set()

    with pytest.raises(KeyboardInterrupt):
        run_parallel(order, work, 3, stop)
        signal.pause()  # pragma: no cover
    assert order.made == set()


def test_who_waits_goes_on_when_rows_are_there() -> None:
    order, waits = waiting()
    did: List[Task] = []

    def work(task: Task) -> None:
        if not isinstance(task, Early):
            assert waits.wait(60)
        did.append(task)
        order.done(task)

    run_parallel(order, work, 3, order.close)
    assert len(did) == 2 and order.made == {1}
