# Copyright (c) 2026 the pgstream.backup authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The databases that are measured, each at any scale: 1.0 is about 1.9 GB of rows as text for `mixed`.

Values come from PostgreSQL's random() after setseed(); but for request numbers a database is the same at each run.
"""

from __future__ import annotations

from typing import Callable, Dict

# Prose: 20,000 sentences of random words, of which a text has some.
_PROSE = """
SELECT setseed(0.5);
CREATE TEMP TABLE sentence AS SELECT line AS id, string_agg((ARRAY['order','customer','shipment','returned','the','of',
    'and','warehouse','delivered','invoice','was','Hamburg','Rotterdam','because','late','on','time','with','paid','by',
    'transfer','amount','reduced','agreed','price','after','inspection','damaged','package','replaced','quickly','again',
    'to','a','in','note','please','call','before','noon','door','code','fragile','insured','value','declared','net'])
    [1 + floor(random() * 47)::int], ' ') || '. ' AS text
    FROM generate_series(1, 20000) line, generate_series(1, 12) word GROUP BY line;
ALTER TABLE sentence ADD PRIMARY KEY (id);
ANALYZE sentence;
"""


def mixed(scale: float) -> str:
    """What an application has: narrow rows, JSON, prose, some bytes, keys, indexes, and small tables beside them."""
    n = int(1000000 * scale)
    small = "\n".join(
        "CREATE TABLE setting_%d AS SELECT g AS id, md5(g::text) AS value FROM generate_series(1, 100) g;" % one
        for one in range(40)
    )
    return _PROSE + f"""
CREATE TABLE customer (id int PRIMARY KEY, name text, mail text, born date, balance numeric(12,2), active bool);
INSERT INTO customer SELECT g, 'Customer ' || g, md5(g::text) || '@example.com', date '1950-01-01' + g % 18000,
    (random() * 10000)::numeric(12,2), g % 7 > 0 FROM generate_series(1, {n}) g;
CREATE TABLE purchase (id bigint PRIMARY KEY, customer int, at timestamptz, amount numeric(12,2), state text,
    store int);
INSERT INTO purchase SELECT g, 1 + floor(random() * {n})::int, timestamptz '2020-01-01' + g * interval '11 s',
    (random() * 500)::numeric(12,2), (ARRAY['new','paid','sent','returned'])[1 + g % 4], g % 331
    FROM generate_series(1, {5 * n}) g;
CREATE TABLE event (id bigint PRIMARY KEY, at timestamptz, document jsonb);
INSERT INTO event SELECT g, timestamptz '2024-01-01' + g * interval '3 s', jsonb_build_object('kind', g % 17,
    'request', gen_random_uuid(), 'session', md5(random()::text), 'path', '/shop/article/' || floor(random() * 50000),
    'agent', 'Browser/' || g % 90, 'address', '10.' || g % 250 || '.' || floor(random() * 250) || '.7',
    'tags', ARRAY['web', 'v' || g % 9], 'ms', (random() * 900)::int) FROM generate_series(1, {int(2.5 * n)}) g;
CREATE TABLE token (id bigint PRIMARY KEY, customer int, value text, hash bytea);
INSERT INTO token SELECT g, 1 + floor(random() * {n})::int, md5(random()::text) || md5(random()::text),
    sha256(random()::text::bytea) FROM generate_series(1, {n}) g;
CREATE TABLE note (id int PRIMARY KEY, customer int, body text);
INSERT INTO note SELECT g, min(id), string_agg(text, '') FROM (SELECT g, 1 + floor(random() * 20000)::int AS id
    FROM generate_series(1, {n // 2}) g, generate_series(1, 7) part) pick JOIN sentence USING (id) GROUP BY g;
CREATE TABLE picture (id int PRIMARY KEY, bytes bytea);
INSERT INTO picture SELECT g, decode(string_agg(md5(random()::text), ''), 'hex')
    FROM generate_series(1, {n // 100}) g, generate_series(1, 256) part GROUP BY g;
{small}
CREATE INDEX ON purchase (customer);
CREATE INDEX ON purchase (at);
CREATE INDEX ON event (at);
CREATE INDEX ON note (customer);
ALTER TABLE purchase ADD FOREIGN KEY (customer) REFERENCES customer;
"""


def huge(scale: float) -> str:
    """One table that is all there is."""
    n = int(1000000 * scale)
    return f"""SELECT setseed(0.5);
CREATE TABLE measurement (id bigint, sensor int, at timestamptz, value float8, unit text, quality int);
INSERT INTO measurement SELECT g, g % 5000, timestamptz '2024-01-01' + g * interval '1 s', random() * 100,
    (ARRAY['kWh','bar','m3','C'])[1 + g % 4], g % 3 FROM generate_series(1, {16 * n}) g;
CREATE INDEX ON measurement (at);
"""


def many(scale: float) -> str:
    """Tables of a few rows, 5,000 at scale 1: what costs is the catalogue."""
    return f"""SELECT setseed(0.5);
SELECT format('CREATE TABLE tenant_%s (id int PRIMARY KEY, name text NOT NULL, at timestamptz DEFAULT now()); '
    'INSERT INTO tenant_%s SELECT g, md5(g::text), timestamptz ''2024-01-01'' FROM generate_series(1, 50) g', n, n)
    FROM generate_series(1, {max(1, int(5000 * scale))}) n
\\gexec
"""


def wide(scale: float) -> str:
    """Rows of tens of kilobytes, out of line."""
    n = int(30000 * scale)
    return _PROSE + f"""
CREATE TABLE document (id int PRIMARY KEY, title text, body text, revision jsonb);
INSERT INTO document SELECT g, 'Document ' || g, string_agg(text, ''), jsonb_build_object('r', g)
    FROM (SELECT g, 1 + floor(random() * 20000)::int AS id FROM generate_series(1, {n}) g, generate_series(1, 400) part)
    pick JOIN sentence USING (id) GROUP BY g;
"""


def incompressible(scale: float) -> str:
    """Bytes that no compressor can do anything about: pictures, archives, ciphertext."""
    n = int(60000 * scale)
    return f"""SELECT setseed(0.5);
CREATE TABLE archive (id int PRIMARY KEY, bytes bytea);
ALTER TABLE archive ALTER bytes SET STORAGE EXTERNAL;
INSERT INTO archive SELECT g, decode(string_agg(md5(random()::text), ''), 'hex')
    FROM generate_series(1, {n}) g, generate_series(1, 512) part GROUP BY g;
"""


def small(scale: float) -> str:
    """A few megabytes, whatever the scale: what costs is the start."""
    return mixed(0.002)


DATABASES: Dict[str, Callable[[float], str]] = {
    each.__name__: each for each in (mixed, huge, many, wide, incompressible, small)
}
