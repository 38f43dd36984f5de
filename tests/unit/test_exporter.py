# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The exporter: what each metric says, a slow store that blocks no scrape, the status page, server and textfile."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import pytest
from _pgstream import bucket_watch, exporter, health, metrics, observer, page, page_style
from _pgstream.bucket_watch import BucketWatch, Listing, Usage
from _pgstream.errors import StorageError, UsageError
from _pgstream.ledger import FAILURE, RUNNING, SUCCESS, Ledger, View
from _pgstream.model import Storage
from _pgstream.observer import Facts
from _pgstream.store.base import StoredObject
from prometheus_client.parser import text_string_to_metric_families

from tests.support.ledger_runs import DAY, NOW, rich_facts, run, view

Values = Dict[Tuple[str, ...], float]


def samples(facts: Facts) -> Dict[str, Values]:
    """{name without pgbackup_: {label values: value}}"""
    found: Dict[str, Values] = {}
    for family in metrics.families(facts):
        for sample in family.samples:
            assert sample.name.startswith("pgbackup_")
            found.setdefault(sample.name[len("pgbackup_") :], {})[tuple(sample.labels.values())] = sample.value
    return found


def seen(*runs: Any, **more: Any) -> Facts:
    known = view(*runs)
    return Facts(NOW, True, known, health=health.judge(known, health.Policy(), NOW), **more)


# Metrics


def test_counters_begin_at_zero_with_the_first_sight_of_a_database() -> None:
    counted = samples(seen(run(), run(started=NOW), run(FAILURE, database="crm"), run(RUNNING, database="new")))
    assert counted["runs_total"] == {
        ("backup", "shop", "success"): 2,
        ("backup", "shop", "failure"): 0,
        ("backup", "crm", "success"): 0,
        ("backup", "crm", "failure"): 1,
        ("backup", "new", "success"): 0,
        ("backup", "new", "failure"): 0,
    }


def test_counters_and_histogram_come_out_of_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("_pgstream.ledger.KEPT", 2)
    book = Ledger(str(tmp_path))
    for number, seconds in enumerate((0.5, 4, 4, 100, 1e6)):
        book.finish(run(seconds=seconds, started=NOW + number))
    book.finish(run(FAILURE))
    found = samples(observer.Observer(str(tmp_path), None, 0, health.Policy()).facts())
    assert found["runs_total"] == {("backup", "shop", "success"): 5, ("backup", "shop", "failure"): 1}
    buckets = {labels[2]: value for labels, value in found["run_duration_seconds_bucket"].items()}
    assert (buckets["1.0"], buckets["5.0"], buckets["60.0"], buckets["300.0"]) == (1, 3, 3, 4)
    assert (buckets["86400.0"], buckets["+Inf"]) == (4, 5)
    assert found["run_duration_seconds_count"] == {("backup", "shop"): 5}
    assert found["run_duration_seconds_sum"] == {("backup", "shop"): 1000108.5}


def test_last_runs() -> None:
    good, idle = run(started=NOW - 9000), run(started=NOW - 500, changed=False, stored_bytes=5, seconds=1)
    failed, busy = run(FAILURE, started=NOW - 300), run(FAILURE, started=NOW - 200, exit_code=8)
    older, newer = run(RUNNING, started=NOW - 100), run(RUNNING, started=NOW - 10)
    found = samples(seen(good, idle, failed, busy, older, newer))
    group = ("backup", "shop")
    assert found["last_run_timestamp_seconds"] == {group: failed.ended}
    assert found["last_run_success"] == {group: 0}
    assert found["last_success_timestamp_seconds"] == {group: idle.ended}
    assert found["last_success_duration_seconds"] == {group: 60}
    assert found["running_since_timestamp_seconds"] == {group: older.started}
    assert found["last_backup_stored_bytes"] == {("shop",): 1000}
    assert found["last_backup_raw_bytes"] == {("shop",): 4000}
    assert (found["last_backup_rows"], found["last_backup_tables"]) == ({("shop",): 70}, {("shop",): 3})
    assert found["runs_total"]["backup", "shop", "failure"] == 2


def test_restores_and_verifications_do_not_pass_for_backups() -> None:
    found = samples(seen(run(operation="restore"), run(FAILURE, operation="verify")))
    assert "last_backup_rows" not in found
    assert found["last_verification_success"] == {("shop", "index"): 0}
    assert found["last_verification_timestamp_seconds"] == {("shop", "index"): NOW - 3540}
    assert found["last_run_success"] == {("restore", "shop"): 1, ("verify", "shop"): 0}


def test_a_verification_counts_for_the_levels_that_prove_less_and_for_no_other() -> None:
    def told(*levels: Any) -> Any:
        ages = range(len(levels))
        runs = [run(status, operation="verify", level=level, started=NOW - 60 - age)
                for age, (level, status) in zip(ages, levels)]  # fmt: skip
        return {labels[1]: value for labels, value in samples(seen(*runs))["last_verification_success"].items()}

    # The newest comes first. A drill that failed stays failed until another one succeeds.
    assert told(("index", SUCCESS), ("restore", FAILURE)) == {"index": 1, "content": 0, "restore": 0}
    assert told(("restore", SUCCESS), ("index", FAILURE)) == {"index": 1, "content": 1, "restore": 1}
    nameless = seen(run(FAILURE, operation="verify", database=""), run())
    assert "last_verification_success" not in samples(nameless)
    assert told(("content", FAILURE), ("restore", SUCCESS)) == {"index": 0, "content": 0, "restore": 1}


def test_judgement() -> None:
    known = view(run(FAILURE), run(database="crm", started=NOW - 5 * DAY), schedule=("none", NOW - 9 * DAY))
    facts = Facts(NOW, True, known, health=health.judge(known, health.Policy(None, 86400), NOW))
    found = samples(facts)
    assert found["healthy"] == {(): 0}
    assert found["database_healthy"] == {("shop",): 0}  # crm has not been backed up for long: dropped
    assert found["backup_overdue"] == {("shop",): 1}
    assert "backup_overdue" not in samples(seen(run()))  # nothing is expected by any time
    assert samples(seen(run()))["healthy"] == {(): 1}


def test_store() -> None:
    listing = Listing(NOW - 5, 0.25, {"shop": Usage(2, 300, NOW - 60), "": Usage(1, 5)})
    found = samples(seen(store="s3://b", listing=listing))
    assert found["bucket_up"] == {(): 1}
    assert found["bucket_objects"] == {("shop",): 2, ("",): 1}
    assert found["bucket_bytes"] == {("shop",): 300, ("",): 5}
    assert found["newest_backup_timestamp_seconds"] == {("shop",): NOW - 60}
    assert found["newest_backup_age_seconds"] == {("shop",): 60}
    assert (found["bucket_listing_timestamp_seconds"], found["bucket_listing_duration_seconds"]) == (
        {(): NOW - 5},
        {(): 0.25},
    )
    down = samples(seen(store="s3://b", listing=replace(listing, error="no")))
    assert down["bucket_up"] == {(): 0} and down["bucket_bytes"] == found["bucket_bytes"]
    never = samples(seen(store="s3://b", listing=Listing(0.0, error="no")))
    assert never["bucket_up"] == {(): 0} and "bucket_listing_timestamp_seconds" not in never
    assert "bucket_up" not in samples(seen(store="s3://b"))  # not known yet
    assert "bucket_up" not in samples(seen())


def test_a_ledger_that_cannot_be_read() -> None:
    found = samples(Facts(NOW, True, None, "broken"))
    assert found["ledger_up"] == {(): 0} and "healthy" not in found and "runs_total" not in found
    assert samples(seen())["ledger_up"] == {(): 1}
    assert "ledger_up" not in samples(Facts(NOW, store="s3://b"))


def test_names_follow_the_conventions() -> None:
    for family in metrics.families(rich_facts()):
        assert re.fullmatch(r"pgbackup_[a-z_]+", family.name) and family.documentation.endswith(".")
        assert family.samples, family.name
        assert (family.type == "counter") == any(sample.name.endswith("_total") for sample in family.samples)
        assert not re.search(r"_(ms|minutes|hours|mb|kb|percent)(_|$)", family.name)


# A slow store


class SlowStore:
    """Its listing waits until it is let go; counts how often it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let_go, self.asked = threading.Event(), 0
        self.errors: List[Exception] = []
        self.started = threading.Event()
        monkeypatch.setattr(bucket_watch, "open_store", lambda _storage: self)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.asked += 1
        self.started.set()
        assert self.let_go.wait(60)
        for error in self.errors:
            raise error
        yield StoredObject(prefix + "shop_2026-01-31T02:00:00Z.sql.gz", 100)
        yield StoredObject(prefix + "notes.txt", 7)
        yield StoredObject(prefix + "shop_2026-01-30T02:00:00Z.sql.gz", 50)
        yield StoredObject(prefix + "shop_2026-99-99T02:00:00Z.sql.gz", 1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowStore]:
    store = SlowStore(monkeypatch)
    yield store
    store.let_go.set()


STORAGE = Storage(kind="local", directory="/b", prefix="p")


def test_a_slow_store_blocks_nobody_and_is_asked_once(slow: SlowStore) -> None:
    watch = BucketWatch(STORAGE, interval=3600)
    assert [watch.look(), watch.look(0.0)] == [None, None]  # this returns though the store does not
    assert slow.asked == 1
    slow.let_go.set()
    listing = watch.look(60)
    assert listing is not None and not listing.error and listing.taken > NOW
    assert listing.databases == {"shop": Usage(2, 150, NOW), "": Usage(2, 8)}  # no month is the 99th
    watch.look()
    assert slow.asked == 1  # within the interval


def test_the_time_a_scrape_may_wait_is_below_a_second() -> None:
    assert bucket_watch.PATIENCE + observer.LEDGER_PATIENCE < 1


def test_an_old_listing_serves_until_there_is_a_new_one(slow: SlowStore) -> None:
    watch = BucketWatch(STORAGE, interval=0)
    slow.let_go.set()
    first = watch.look(60)
    assert first is not None
    slow.let_go.clear()
    assert watch.look(0.0) is first
    slow.let_go.set()
    assert watch.look(60) is not first


def test_a_store_that_fails_keeps_what_was_known(slow: SlowStore) -> None:
    slow.let_go.set()
    watch = BucketWatch(STORAGE, interval=0)
    first = watch.look(60)
    assert first is not None
    for error, words in ((StorageError("no bucket"), "no bucket"), (KeyError("x"), "unexpected KeyError")):
        slow.errors = [error]
        found = watch.look(60)
        assert found is not None and words in found.error
        assert (found.taken, found.databases) == (first.taken, first.databases)
    slow.errors = []
    assert watch.look(60).error == ""  # type: ignore[union-attr]


def test_a_store_that_never_answers_is_down(slow: SlowStore, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = BucketWatch(STORAGE, interval=3600)
    assert watch.look(0.0) is None
    monkeypatch.setattr(bucket_watch, "STUCK", -1.0)
    found = watch.look(0.0)
    assert found is not None and "no answer" in found.error and found.taken == 0


def test_secrets_are_taken_out_of_what_the_store_says(slow: SlowStore) -> None:
    slow.errors = [StorageError("key AKIA is unknown")]
    slow.let_go.set()
    watch = observer.Observer("", STORAGE, 3600, health.Policy(), lambda text: text.replace("AKIA", "***"))
    facts = watch.facts(60)
    assert facts.listing is not None and facts.listing.error == "key *** is unknown"


# The page


class Document(HTMLParser):
    """Checks that every element is closed where it should be, and collects what there is."""

    VOID = ("meta", "link", "rect", "path", "circle")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: List[str] = []
        self.elements: List[Tuple[str, Dict[str, Optional[str]]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID or (tag == "rect" and not self.get_starttag_text().endswith("/>")):  # type: ignore[union-attr]
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "title"):
            self.text += data

    def all(self, tag: str) -> List[Dict[str, Optional[str]]]:
        return [attributes for name, attributes in self.elements if name == tag]


EVIL = "<script>alert(1)</script>'\"&amp;\u202e\x1b[2J"


def evil_facts() -> Facts:
    hurt = {"database": EVIL, "message": EVIL, "stage": EVIL, "key": EVIL}
    runs = [run(FAILURE, **hurt), *[run(started=NOW - day * DAY, **hurt) for day in range(1, 5)]]
    runs += [run(RUNNING, database=EVIL, operation="restore"), run(operation="verify", **hurt)]
    known = view(*runs)
    judged = health.judge(known, health.Policy(databases=(EVIL,)), NOW)
    listing = Listing(NOW, 0.1, {EVIL: Usage(3, 30, NOW)}, EVIL)
    return Facts(NOW, True, known, EVIL, judged, "s3://" + EVIL, listing)


PAGES = {
    "rich": rich_facts(),
    "evil": evil_facts(),
    "evil ledger": Facts(NOW, True, None, EVIL, None, EVIL, Listing(0.0, error=EVIL)),
    "empty": seen(),
    "store only": Facts(NOW, store="s3://b", listing=Listing(NOW, 1.0, {"shop": Usage(2, 9, NOW - DAY)})),
    "nothing": Facts(NOW),
}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_is_whole_and_takes_nothing_from_elsewhere(name: str) -> None:
    text = page.render(PAGES[name])
    document = Document(text)
    assert "script" not in {tag for tag, _attributes in document.elements}
    for _tag, attributes in document.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset", "style", "action")]
        assert (attributes.get("href") or "/").startswith(("/", "data:"))
    assert "url(" not in text and "@import" not in text and "http:" not in re.sub(r"data:[^']*", "", text)
    assert not set("\x1b\u202e") & set(text)
    levels = [int(tag[1]) for tag, _attributes in document.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and all(after - before <= 1 for before, after in zip(levels, levels[1:]))
    assert document.all("html") == [{"lang": "en"}] and len(document.all("main")) == 1
    silent = [image for image in document.all("svg") if not image.get("aria-label")]
    assert len(silent) == text.count("aria-hidden='true'><svg")  # decoration, beside words
    ids = [attributes["id"] for _tag, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for section in document.all("section"):
        assert section["aria-labelledby"] in ids


def test_texts_are_shown_as_they_are() -> None:
    document = Document(page.render(PAGES["evil"]))
    shown = "<script>alert(1)</script>'\"&amp;\\u202e\\x1b[2J"
    assert document.text.count(shown) >= 8
    assert [label for image in document.all("svg") for label in [image.get("aria-label")] if label]


def test_the_style_is_allowed_and_nothing_else() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", page.render(PAGES["rich"]), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = page.CONTENT_SECURITY_POLICY
    assert "style-src 'sha256-%s'" % digest in policy and policy.startswith("default-src 'none'")


def facts_of(*runs: Any, databases: Tuple[str, ...] = ("shop",), **more: Any) -> Facts:
    known = view(*runs)
    return Facts(NOW, True, known, health=health.judge(known, health.Policy(databases=databases), NOW), **more)


@pytest.mark.parametrize(
    "facts, words",
    [
        (facts_of(run()), "shop is backed up"),
        (facts_of(run(), run(database="crm"), databases=("shop", "crm")), "All 2 databases are backed up"),
        (facts_of(run(FAILURE)), "The backup of shop needs attention"),
        (facts_of(run(FAILURE), run(database="crm"), databases=("shop", "crm")), "1 of 2 databases need attention"),
        (facts_of(), "Waiting for the first backup"),
        (facts_of(run(), store="s3://b", listing=Listing(0.0, error="no route")), "The store cannot be reached"),
        (PAGES["evil ledger"], "The state of the backups is not known"),
        (PAGES["store only"], "No run ledger is configured"),
    ],
)
def test_the_state_is_said_in_words(facts: Facts, words: str) -> None:
    text = page.render(facts)
    assert "<h2 id='state'>%s</h2>" % words in text and "<title>%s " % words in text


def test_the_page_says_why_and_what_is_stored() -> None:
    facts = facts_of(run(FAILURE), run(started=NOW - 3 * DAY - 200, stored_bytes=1_200_000_000, seconds=200))
    text = Document(page.render(facts)).text
    assert "Failed during S3 upload: no such bucket" in text and "exit code 4" in text
    assert "3 days ago 2026-01-28 02:00 UTC" in text and "1.2 GB" in text and "3 min 20 s" in text
    rows = re.findall(r"<tr role='row'>(.*?)</tr>", page.render(facts))[1:]
    assert [Document(row.replace("</td>", "</td>|")).text.split("|")[3:6] for row in rows] == [
        ["1 min 0 s", "", ""],
        ["3 min 20 s", "1.2 GB", "70"],
    ]
    assert "Nothing has run yet" in Document(page.render(facts_of())).text


def test_the_page_shows_the_last_verification_and_those_that_prove_more() -> None:
    def shown(*levels: Any) -> List[str]:
        runs = [run(status, operation="verify", level=level, started=NOW - 60 - DAY * age)
                for age, (level, status) in enumerate(levels)]  # fmt: skip
        card = page.render(facts_of(run(), *runs)).partition("<article")[2].partition("</article>")[0]
        return re.findall(r"Verified</dt><dd>(?:<b class='bad'>)?(\w+)(?:</b>)? <small>(\w+)<", card)

    assert shown(("index", SUCCESS), ("restore", FAILURE), ("index", FAILURE)) == [
        ("passed", "index"),
        ("failed", "restore"),
    ]
    assert shown(("restore", SUCCESS), ("content", FAILURE)) == [("passed", "restore")]
    assert shown() == [] and "<dt>Verified</dt><dd>never" in page.render(facts_of(run()))


def test_many_databases_and_runs_are_cut_with_a_word() -> None:
    names = tuple("db%03d" % number for number in range(page.CARDS + 5))
    text = Document(page.render(facts_of(*[run(database=name) for name in names], databases=names))).text
    assert "And 5 more." in text and "The last %d of %d known runs" % (page.ROWS, len(names)) in text


def test_failing_databases_come_first() -> None:
    facts = facts_of(run(database="a"), run(FAILURE, database="z"), databases=("a", "z"))
    cards = re.findall(r"<h3>(.*?)</h3>", page.render(facts))
    assert cards == ["z", "a"]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "just now"),
        (-59, "just now"),
        (-60, "1 minute ago"),
        (-7199, "119 minutes ago"),
        (-7200, "2 hours ago"),
        (-172799, "47 hours ago"),
        (-172800, "2 days ago"),
        (30, "in a moment"),
        (3 * 3600, "in 3 hours"),
    ],
)
def test_relative_times(seconds: int, text: str) -> None:
    assert page.relative(seconds) == text


@pytest.mark.parametrize(
    "seconds, text", [(-1, "0.0 s"), (0.44, "0.4 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3900, "1 h 5 min")]
)
def test_spans(seconds: float, text: str) -> None:
    assert page.span(seconds) == text


def _luminance(colour: str) -> float:
    """https://www.w3.org/TR/WCAG22/#dfn-relative-luminance"""
    text = "".join(digit * 2 for digit in colour) if len(colour) == 3 else colour
    parts = [int(text[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_in_light_and_dark(scheme: int) -> None:
    block = re.findall(r":root\{([^}]*)\}", page_style.STYLE)[scheme]
    colours = dict(re.findall(r"--([\w-]+):#([0-9a-f]+)", block))
    pairs = [("text", "page"), ("text", "card"), ("dim", "page"), ("dim", "card"), ("dim", "none-soft")]
    pairs += [(name, name + "-soft") for name in ("good", "bad", "wait")]
    pairs += [("text", name + "-soft") for name in ("good", "bad", "wait")] + [("bad", "card")]
    for front, back in pairs:
        bright, dark = sorted((_luminance(colours[front]), _luminance(colours[back])), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) >= 4.5, (front, back)


# Settings


def test_settings() -> None:
    found = exporter.settings({"BACKUP_STATE_DIR": "/s"}, {})
    assert (found.host, found.port, found.directory, found.storage, found.interval) == (
        "0.0.0.0",
        9187,
        "/s",
        None,
        300,
    )
    environ = {"BACKUP_STORE": "file:///b", "BACKUP_METRICS_LISTEN": "[::1]:1", "BACKUP_METRICS_BUCKET_INTERVAL": "9s"}
    found = exporter.settings(environ, {"BACKUP_PREFIX": "p"})
    assert (found.host, found.port, found.interval) == ("::1", 1, 9)
    assert found.storage == Storage(kind="local", directory="/b", prefix="p")
    assert exporter.settings(environ, {}, "localhost:2").host == "localhost"
    assert exporter.settings(environ, {}, ":2").host == ""


@pytest.mark.parametrize(
    "environ, listen, word",
    [
        ({}, "", "nothing to tell"),
        ({"BACKUP_STATE_DIR": "/s"}, "9187", "listen"),
        ({"BACKUP_STATE_DIR": "/s"}, "::1:9187", "listen"),
        ({"BACKUP_STATE_DIR": "/s"}, "h:99999", "listen"),
        ({"BACKUP_STATE_DIR": "/s", "BACKUP_STORE": "nowhere"}, "", "BACKUP_STORE"),
        ({"BACKUP_STATE_DIR": "/s", "BACKUP_METRICS_BUCKET_INTERVAL": "5"}, "", "BACKUP_METRICS_BUCKET_INTERVAL"),
        ({"BACKUP_STATE_DIR": "/s", "BACKUP_SCHEDULE": "x"}, "", "BACKUP_SCHEDULE"),
    ],
)
def test_settings_that_are_wrong(environ: Dict[str, str], listen: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        exporter.settings(environ, {}, listen)


# The command


@pytest.fixture
def setting(tmp_path: Path, engine_env: Dict[str, str]) -> Dict[str, str]:
    """A state directory and a store, both with a backup of shop."""
    (tmp_path / "state").mkdir()
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "shop_2026-01-31T02:00:00Z.sql.gz").write_bytes(b"x" * 100)
    Ledger(str(tmp_path / "state")).finish(run())
    return {
        **engine_env,
        "BACKUP_STATE_DIR": str(tmp_path / "state"),
        "BACKUP_STORE": "file://%s" % (tmp_path / "store"),
        "BACKUP_METRICS_BUCKET_INTERVAL": "0s",
    }


@contextmanager
def served(environ: Dict[str, str], listen: str = "127.0.0.1:0") -> Iterator[str]:
    """The address of a server; ends it by SIGTERM, which is no error."""
    argv = [sys.executable, "-m", "_pgstream.main", "metrics", "--listen", listen]
    child = subprocess.Popen(argv, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        line = json.loads(child.stdout.readline())
        assert line["event"] == "listening"
        yield "http://" + line["address"]
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=60)
        assert (child.returncode, err) == (0, "")
        assert json.loads(out.splitlines()[-1])["event"] == "result" and len(out.splitlines()) == 1
    finally:
        child.kill()
        child.communicate()


def get(url: str, method: str = "GET", **headers: str) -> Tuple[int, Any, str]:
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def parsed(text: str) -> Dict[str, Values]:
    found: Dict[str, Values] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.values()))] = sample.value
    return found


def test_the_server_answers_and_a_restart_changes_no_counter(setting: Dict[str, str]) -> None:
    with served(setting) as address:
        status, headers, text = get(address + "/metrics")
        assert status == 200 and headers["Content-Type"].startswith("text/plain")
        first = parsed(text)
        assert first["pgbackup_runs_total"]["backup", "shop", "success"] == 1
        assert first["pgbackup_bucket_bytes"]["shop",] == 100
        assert first["pgbackup_build_info"]
        status, headers, text = get(address + "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert "openmetrics" in headers["Content-Type"] and text.endswith("# EOF\n")
        Ledger(setting["BACKUP_STATE_DIR"]).finish(run(FAILURE))
        assert parsed(get(address + "/metrics")[2])["pgbackup_runs_total"]["backup", "failure", "shop"] == 1
    with served(setting) as address:
        again = parsed(get(address + "/metrics")[2])
        assert again["pgbackup_runs_total"] == {("backup", "shop", "success"): 1, ("backup", "failure", "shop"): 1}
        assert again["pgbackup_run_duration_seconds_sum"] == first["pgbackup_run_duration_seconds_sum"]


def test_page_health_and_what_is_not_there(setting: Dict[str, str]) -> None:
    with served(setting) as address:
        status, headers, text = get(address + "/?x=1")
        assert status == 200 and headers["Content-Type"] == "text/html; charset=utf-8"
        assert headers["Content-Security-Policy"] == page.CONTENT_SECURITY_POLICY
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]
        assert "shop is backed up" in Document(text).text
        status, headers, body = get(address + "/", "HEAD")
        assert (status, body) == (200, "") and int(headers["Content-Length"]) > 1000
        assert get(address + "/healthz")[::2] == (200, "ok\n")
        assert get(address + "/etc/passwd")[0] == 404
        assert get(address + "/metrics", "POST")[0] == 501
        ledger_file = Path(setting["BACKUP_STATE_DIR"]) / "ledger.sqlite"
        ledger_file.write_bytes(b"garbage" * 1000)
        status, _headers, body = get(address + "/healthz")
        assert status == 503 and "run ledger" in body
        assert parsed(get(address + "/metrics")[2])["pgbackup_ledger_up"] == {(): 0}
        assert "The state of the backups is not known" in get(address + "/")[2]


def test_a_bucket_that_never_answers_holds_up_neither_scrape_nor_end(setting: Dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        endpoint = "http://127.0.0.1:%d" % mute.getsockname()[1]
        keys = {"RCLONE_S3_ACCESS_KEY_ID": "a", "RCLONE_S3_SECRET_ACCESS_KEY": "s", "RCLONE_S3_REGION": "r"}
        s3 = {**keys, "BACKUP_STORE": "s3://b", "RCLONE_S3_ENDPOINT": endpoint}
        with served({**setting, **s3}) as address:
            for _time in range(2):
                found = parsed(get(address + "/metrics")[2])
                assert found["pgbackup_ledger_up"] == {(): 1} and "pgbackup_bucket_up" not in found
            assert "The store has not answered yet." in get(address + "/")[2]


def test_an_error_inside_is_a_500_and_a_log_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: List[Tuple[str, Dict[str, Any]]] = []

    class Log:
        def error(self, event: str, **fields: Any) -> None:
            lines.append((event, fields))

    def broken(_facts: Facts) -> str:
        raise KeyError("nonsense")

    monkeypatch.setattr(page, "render", broken)
    found = exporter.settings({"BACKUP_STATE_DIR": "/none"}, {}, "127.0.0.1:0")
    server = exporter._Server(found, Log())  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        status, _headers, body = get("http://%s/" % server.address)
    finally:
        server.shutdown()
        server.server_close()
    assert status == 500 and "nonsense" not in body
    assert lines == [("request_failed", {"message": "unexpected KeyError: 'nonsense'"})]


def command(environ: Dict[str, str], *argv: str) -> Tuple[int, List[Any], List[Any]]:
    argv = (sys.executable, *argv)
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=120, check=False)
    lines = [[json.loads(line) for line in text.splitlines()] for text in (done.stdout, done.stderr)]
    return done.returncode, lines[0], lines[1]


def test_an_address_in_use_is_a_sentence(setting: Dict[str, str]) -> None:
    with served(setting) as address:
        taken = address[len("http://") :]
        status, _out, err = command(setting, "-m", "_pgstream.main", "metrics", "--listen", taken)
    assert status == 2 and "cannot listen on " + taken in err[-1]["message"]


def test_the_textfile(setting: Dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "pgbackup.prom"
    status, out, err = command(setting, "-m", "_pgstream.main", "metrics", "--textfile", str(path))
    assert (status, err, out[-1]["textfile"]) == (0, [], str(path))
    found = parsed(path.read_text())
    assert found["pgbackup_runs_total"]["backup", "shop", "success"] == 1
    assert found["pgbackup_bucket_up"] == {(): 1}  # it has waited for the store
    assert [each.name for each in tmp_path.glob("*.prom*")] == ["pgbackup.prom"]
    nowhere = str(tmp_path / "no" / "x.prom")
    status, _out, err = command(setting, "-m", "_pgstream.main", "metrics", "--textfile", nowhere)
    assert status == 2 and "cannot write" in err[-1]["message"]


def test_without_prometheus_client_it_says_what_to_install(setting: Dict[str, str]) -> None:
    code = "import sys; sys.modules['prometheus_client'] = None\n"
    code += "from _pgstream import cli; raise SystemExit(cli.main(['metrics']))"
    status, out, err = command(setting, "-c", code)
    assert (status, out) == (2, [])
    assert err[-1]["message"].startswith("the Python package prometheus-client is not installed")


def test_the_ledger_alone_needs_no_library_but_pythons_own(engine_env: Dict[str, str]) -> None:
    code = "import sys; from _pgstream import cli, health, ledger, recorder\n"
    code += "assert not {'boto3', 'psycopg2', 'prometheus_client', 'rich'} & set(sys.modules)"
    assert command(engine_env, "-c", code) == (0, [], [])


def test_an_observer_without_anything_is_quiet() -> None:
    facts = observer.Observer("", None, 0, health.Policy()).facts()
    assert (facts.view, facts.listing, facts.health, facts.has_ledger) == (None, None, None, False)
    assert View().groups() == {}


def test_the_newest_in_the_store_is_the_one_that_latest_means(tmp_path: Path) -> None:
    def store(*keys: str) -> float:
        for key in keys:
            (tmp_path / key).write_bytes(b"x")
        return bucket_watch.count(Storage(kind="local", directory=str(tmp_path)))["shop"].newest

    part = store("shop_2026-01-31T03:00:00Z.part-01234567.sql.gz")
    assert part == datetime(2026, 1, 31, 3, tzinfo=timezone.utc).timestamp()
    assert store("shop_2999-01-31T02:00:00Z.sql.gz") > part
    assert store("shop_2026-01-31T02:00:00Z.sql.gz") == part - 3600
    assert bucket_watch.count(Storage(kind="local", directory=str(tmp_path)))["shop"].objects == 3
