-- Copyright (c) 2026 the pgstream.backup authors
-- GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
-- SPDX-License-Identifier: GPL-3.0-or-later
--
-- A small shop: a table that the manual checklist names, keys, an index, a view, a sequence, odd text.
CREATE TABLE backup_test (id SERIAL);
INSERT INTO backup_test SELECT FROM generate_series(1, 1000);
CREATE TABLE customers (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    notes text,
    joined timestamptz NOT NULL
);
INSERT INTO customers (name, notes, joined)
SELECT 'Zoë ' || n, CASE WHEN n % 3 = 0 THEN E'tab\there\nline\\.' END, timestamptz '2026-01-01 00:00Z' + n * interval '1 min'
FROM generate_series(1, 20000) n;
CREATE TABLE orders (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    customer bigint NOT NULL REFERENCES customers,
    total numeric(12, 2) CHECK (total >= 0)
);
INSERT INTO orders (customer, total) SELECT n % 20000 + 1, n / 7.0 FROM generate_series(1, 40000) n;
CREATE INDEX orders_of_customer ON orders (customer);
CREATE VIEW best AS SELECT customer, sum(total) AS total FROM orders GROUP BY customer;
