# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The status page: one HTML document with its style inside, no script, nothing from elsewhere.

It reads without colours, without style and by ear; every text that is not from this file is escaped by `_e`. Charts are
inline SVG with a sentence beside each bar. Light or dark as the reader's system has it.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import datetime, timezone
from html import escape
from typing import Dict, List, Optional, Sequence, Tuple
from urllib.parse import quote

from .bucket_watch import Usage
from .errors import given
from .health import FAILING, OK, STARTING, Verdict
from .ledger import RUNNING, SUCCESS, Run, proves
from .model import ENGINE_VERSION, LEVELS
from .observer import Facts
from .page_style import STYLE
from .progress import amount, printable

CARDS = 200  # databases shown
BARS = 30  # runs in a chart
ROWS = 40  # runs in the table
SENTENCE = 320  # characters of a message outside the table
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-%s'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
) % base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
_WORDS = {OK: "OK", STARTING: "Starting", FAILING: "Failing", RUNNING: "Running", SUCCESS: "Succeeded"}
_ORDER = (FAILING, STARTING, "", OK)


def render(facts: Facts) -> str:
    """The whole document."""
    state, title, sentences = _overall(facts)
    parts = [
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        "<meta name='color-scheme' content='light dark'><title>%s · pgbackup</title>" % _e(title),
        "<link rel='icon' href='%s'><style>%s</style></head><body>" % (_icon(state), STYLE),
        "<header><h1>pgbackup</h1><p>%s</p></header><main>" % (_e(facts.store) or "no store is configured"),
        "<section class='state %s' aria-labelledby='state'><div class='mark' aria-hidden='true'>%s</div><div>"
        "<h2 id='state'>%s</h2>%s</div></section>"
        % (state, _MARKS[state], _e(title), "".join("<p>%s</p>" % sentence for sentence in sentences)),
        _databases(facts),
        _runs(facts),
        "</main><footer>%s</footer></body></html>\n" % _footer(facts),
    ]
    return "\n".join(part for part in parts if part)


_MARKS = {
    "good": "<svg viewBox='0 0 24 24'><path d='M5 12.5l4.5 4.5L19 7.5'/></svg>",
    "bad": "<svg viewBox='0 0 24 24'><path d='M12 5v9M12 18.4v.2'/></svg>",
    "wait": "<svg viewBox='0 0 24 24'><path d='M12 6v6.5l4 2.5'/></svg>",
}


def _overall(facts: Facts) -> Tuple[str, str, List[str]]:
    """(style class, sentence, HTML of further sentences)"""
    faults = []
    if facts.ledger_error:
        faults.append(_e(_sentence(facts.ledger_error)))
    if facts.listing is not None and facts.listing.error:
        faults.append("The store cannot be listed: " + _e(_sentence(facts.listing.error)))
    found = facts.health
    if found is None:
        if faults:
            return "bad", "The state of the backups is not known", faults
        return "wait", "No run ledger is configured", ["What is shown is what the store holds."]
    notes = _when(facts)
    if found.state == FAILING:
        bad = [one for one in found.databases if one.state == FAILING]
        title = "The backup needs attention"
        if len(found.databases) > 1:
            title = "%d of %d databases need attention" % (len(bad), len(found.databases))
        elif bad and bad[0].database:
            title = "The backup of %s needs attention" % printable(bad[0].database)
        causes = [_e(_sentence(text)) for text in [one.message for one in bad[:3]] or [found.message]]
        if len(bad) > 3:
            causes.append("And %d more, below." % (len(bad) - 3))
        return "bad", title, causes + faults + notes
    if faults:
        return "bad", "The store cannot be reached", faults + notes
    if found.state == STARTING:
        return "wait", "Waiting for the first backup", notes
    if len(found.databases) > 1:
        return "good", "All %d databases are backed up" % len(found.databases), notes
    return "good", "%s is backed up" % (printable(found.databases[0].database) or "The database"), notes


def _when(facts: Facts) -> List[str]:
    """Of the last success and the next due time, where these are known."""
    health, view = given(facts.health), given(facts.view)
    good = [run.ended for run in view.runs if run.operation == "backup" and run.status == SUCCESS]
    words = ["Last success %s." % _time(max(good), facts.now) if good else "No backup has succeeded yet."]
    if health.next_due:
        due = datetime.strptime(health.next_due, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc).timestamp()
        words.append("The next is due %s." % _time(due, facts.now))
    else:
        words.append("No schedule is configured.")
    return [" ".join(words)]


def _databases(facts: Facts) -> str:
    runs: Dict[str, List[Run]] = {}
    verified: Dict[str, List[Run]] = {}
    for run in facts.view.runs if facts.view else ():
        if run.operation == "backup":
            runs.setdefault(run.database, []).append(run)
        elif run.operation == "verify" and run.status != RUNNING:
            verified.setdefault(run.database, []).append(run)
    stored = dict(facts.listing.databases) if facts.listing else {}
    stored.pop("", None)
    verdicts = {one.database: one for one in (facts.health.databases if facts.health else ())}

    def order(name: str) -> Tuple[int, str]:
        return _ORDER.index(verdicts[name].state if name in verdicts else ""), name.lower()

    names = sorted({*runs, *stored, *verdicts}, key=order)
    if not names:
        return ""
    cards = "".join(
        _card(facts.now, name, verdicts.get(name), runs.get(name, []), stored.get(name), verified.get(name, []))
        for name in names[:CARDS]
    )
    more = "<p>And %d more.</p>" % (len(names) - CARDS) if len(names) > CARDS else ""
    head = "<section aria-labelledby='databases'><h2 id='databases'>Databases</h2><div class='cards'>"
    return head + cards + "</div>" + more + "</section>"


def _card(
    now: float, name: str, verdict: Optional[Verdict], runs: List[Run], stored: Optional[Usage], verified: List[Run]
) -> str:
    success = next((run for run in runs if run.status == SUCCESS), None)
    worked = next((run for run in runs if run.worked), None)
    running = next((run for run in runs if run.status == RUNNING), None)
    state = verdict.state if verdict else ""
    pill = {OK: "good", FAILING: "bad", STARTING: "wait"}.get(state, "none")
    rows = []
    if running:
        rows.append(("Running since", _time(running.started, now)))
    if worked:
        size = "%s <small>from %s</small>" % (_e(amount(worked.stored_bytes)), _e(amount(worked.raw_bytes)))
        rows += [("Last size", size), ("Rows", "{:,}".format(worked.rows)), ("Took", _e(span(worked.seconds)))]
    if stored:
        rows.append(("In the store", "%s, %s" % (_count(stored.objects, "backup"), _e(amount(stored.bytes)))))
        if stored.newest and runs:
            rows.append(("Newest there", _time(stored.newest, now)))
    rows += _verified(now, verified)
    head = (_time(success.ended, now) if success else "never", "last successful backup")
    if not runs and stored and stored.newest:  # backed up from elsewhere, or before there was a ledger
        head = _time(stored.newest, now), "newest backup in the store"
    label = _WORDS[state] if state else "Not watched"
    parts = [
        "<article class='card %s'><h3>%s</h3><span class='pill %s'>%s</span>"
        % (pill, _e(name) or "<i>no name given</i>", pill, label),
        "<p class='big'>%s</p><p class='sub'>%s</p>" % head,
        "<p class='why'>%s</p>" % _e(_sentence(verdict.message)) if verdict and state == FAILING else "",
        _charts(runs),
        "<dl>%s</dl></article>" % "".join("<div><dt>%s</dt><dd>%s</dd></div>" % row for row in rows),
    ]
    return "".join(parts)


def _verified(now: float, runs: List[Run]) -> List[Tuple[str, str]]:
    """The last verification, and the last of each level that proves more: one of the index says nothing of a drill."""
    shown: List[Run] = []
    for level in LEVELS:
        found = next((run for run in runs if proves(run, level)), None)
        if found is not None and found not in shown:
            shown.append(found)
    rows = []
    for run in shown:
        text = "passed" if run.status == SUCCESS else "<b class='bad'>failed</b>"
        level = " <small>%s</small>" % _e(run.level) if run.level else ""
        rows.append(("Verified", "%s%s %s" % (text, level, _time(run.ended, now))))
    return rows or [("Verified", "never")]


def _charts(runs: Sequence[Run]) -> str:
    """Size and duration of the last runs, oldest first: a bar each, a failure as a red stub."""
    shown = [run for run in runs if run.worked or run.status not in (SUCCESS, RUNNING)][:BARS][::-1]
    good = [run for run in shown if run.worked]
    if len(shown) < 2 or not good:
        return ""
    failed = len(shown) - len(good)
    ending = ", %d failed" % failed if failed else ""
    sizes = [amount(run.stored_bytes) for run in good]
    times = [span(run.seconds) for run in good]
    text = "%s of the last %d backups%s: from %s to %s"
    return "<div class='charts'>%s%s</div>" % (
        _chart(
            "Size",
            "last %d" % len(shown),
            text % ("Stored size", len(shown), ending, sizes[0], sizes[-1]),
            [(run.stored_bytes if run.worked else None, _bar_title(run)) for run in shown],
        ),
        _chart(
            "Duration",
            "%d failed" % failed if failed else "",
            text % ("Duration", len(shown), ending, times[0], times[-1]),
            [(run.seconds if run.worked else None, _bar_title(run)) for run in shown],
        ),
    )


def _bar_title(run: Run) -> str:
    what = "%s in %s" % (amount(run.stored_bytes), span(run.seconds)) if run.worked else "failed"
    return "%s: %s" % (_absolute(run.started), what)


def _chart(name: str, note: str, label: str, values: Sequence[Tuple[Optional[float], str]]) -> str:
    highest = max([value for value, _title in values if value is not None] + [1e-9])
    step = 300.0 / max(len(values), 12)  # few runs make no wide blocks
    start = 300.0 - step * len(values)
    bars = []
    for number, (value, title) in enumerate(values):
        height = 7.0 if value is None else max(2.0, 40.0 * value / highest)
        bars.append(
            "<rect %sx='%.1f' y='%.1f' width='%.1f' height='%.1f' rx='1'><title>%s</title></rect>"
            % (
                "class='f' " if value is None else "",
                start + number * step + step * 0.12,
                42 - height,
                step * 0.76,
                height,
                _e(title),
            )
        )
    return (
        "<figure class='%s'><svg viewBox='0 0 300 42' preserveAspectRatio='none' role='img' aria-label='%s'>%s</svg>"
        "<figcaption>%s <span>%s</span></figcaption></figure>"
    ) % (name.lower(), _e(label), "".join(bars), name, _e(note))


def _runs(facts: Facts) -> str:
    runs = facts.view.runs if facts.view else ()
    if facts.view is None:
        return ""
    head = "<section aria-labelledby='runs'><h2 id='runs'>Last runs</h2>"
    if not runs:
        text = "Nothing has run yet. Backups, restores and verifications will show here."
        return head + "<p class='empty'>%s</p></section>" % text
    names = ("Status", "Run", "When", "Took", "Stored", "Rows", "What it says")
    # The roles are said aloud because the narrow layout takes a table's look away, and browsers then its sense too.
    columns = "".join("<th role='columnheader' scope='col'>%s</th>" % name for name in names)
    ordered = sorted(runs, key=lambda run: (run.status != RUNNING, -run.ended))[:ROWS]
    body = "".join(_row(run, facts.now, names) for run in ordered)
    note = "<p class='note'>The last %d of %d known runs.</p>" % (ROWS, len(runs)) if len(runs) > ROWS else ""
    return (
        head + "<table role='table'><thead role='rowgroup'><tr role='row'>%s</tr></thead>"
        "<tbody role='rowgroup'>%s</tbody></table>%s</section>"
    ) % (columns, body, note)


def _row(run: Run, now: float, names: Sequence[str]) -> str:
    style, word = {RUNNING: ("wait", "Running"), SUCCESS: ("good", "OK")}.get(run.status, ("bad", "Failed"))
    if run.status == SUCCESS and not run.worked:
        style, word = "none", "Nothing to do"
    small = "exit code %d" % run.exit_code if style == "bad" and run.exit_code is not None else run.key
    numbers = ("", "", "")
    if run.worked:
        stored = amount(run.stored_bytes) if run.stored_bytes else ""
        numbers = span(run.seconds), stored, "{:,}".format(run.rows) if run.rows else ""
    elif run.status != RUNNING and run.finished is not None:
        numbers = span(run.seconds), "", ""
    elif run.status == RUNNING:
        numbers = span(now - run.started) + " so far", "", ""
    cells = [
        "<span class='pill %s'>%s</span>" % (style, word),
        "<span><b>%s</b> %s</span>" % (_e(run.operation), _e(run.database)),
        _time(run.started, now),
        *(_e(number) for number in numbers),
        _e(run.message) + ("<code>%s</code>" % _e(small) if small else ""),
    ]
    kinds = ("", "", "", "num", "num", "num", "said")
    return "<tr role='row'>%s</tr>" % "".join(
        "<td role='cell' class='%s' data-name='%s'>%s</td>" % (kind + ("" if cell else " void"), name, cell)
        for kind, name, cell in zip(kinds, names, cells)
    )


def _footer(facts: Facts) -> str:
    parts = ["<p>As of %s. Reload for the newest.</p>" % _time(facts.now, facts.now, only_absolute=True)]
    if facts.store and facts.listing is None:
        parts.append("<p>The store has not answered yet.</p>")
    elif facts.listing is not None and facts.listing.taken:
        usage = facts.listing.databases.values()
        objects, size = sum(one.objects for one in usage), sum(one.bytes for one in usage)
        total = "%s, %s" % (_count(objects, "object"), amount(size))
        parts.append("<p>Store: %s, listed %s.</p>" % (_e(total), _time(facts.listing.taken, facts.now)))
    parts.append("<p>pgbackup %s · <a href='/metrics'>metrics for Prometheus</a></p>" % _e(ENGINE_VERSION))
    return "".join(parts)


def _time(moment: float, now: float, only_absolute: bool = False) -> str:
    """Relative, with the absolute time beside it."""
    machine = datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    exact = _absolute(moment)
    if only_absolute:
        return "<time datetime='%s'>%s</time>" % (machine, exact)
    return "<time datetime='%s'>%s <small>%s</small></time>" % (machine, relative(moment - now), exact)


def _absolute(moment: float) -> str:
    return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def relative(seconds: float) -> str:
    """`3 hours ago`, `in 5 minutes`: one unit, rounded down, as people say it."""
    size = abs(seconds)
    if size < 60:
        return "just now" if seconds <= 0 else "in a moment"
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        # Up to two of a unit say too little: 36 hours, 90 minutes.
        if size >= 2 * unit or unit == 60:
            text = _count(int(size // unit), name)
            return text + " ago" if seconds < 0 else "in " + text
    raise AssertionError(seconds)


def span(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `1 h 5 min`."""
    if seconds < 10:
        return "%.1f s" % max(0.0, seconds)
    whole = int(seconds + 0.5)
    if whole < 60:
        return "%d s" % whole
    if whole < 3600:
        return "%d min %d s" % (whole // 60, whole % 60)
    return "%d h %d min" % (whole // 3600, whole % 3600 // 60)


def _count(number: int, noun: str) -> str:
    return "{:,} {}{}".format(number, noun, "" if number == 1 else "s")


def _sentence(text: str) -> str:
    """From a capital to a full stop, and not so long that it hides the rest: the table of runs has all of it."""
    text = text.strip()
    if len(text) > SENTENCE:
        return text[: SENTENCE - 1].rstrip() + "…"
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _e(text: object) -> str:
    """Text for HTML, also inside single quotes; control characters and direction marks are spelt out."""
    return escape(printable(text), quote=True)


def _icon(state: str) -> str:
    colour = {"good": "#1a7f4b", "bad": "#c62828", "wait": "#b7791f"}[state]
    circle = "<circle cx='4' cy='4' r='4' fill='%s'/>" % colour
    return "data:image/svg+xml," + quote("<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'>%s</svg>" % circle)
