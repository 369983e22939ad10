"""The shop's database: customers, products, orders, and what was exported.

``python -m example_project.shop`` makes one, with some 900,000 order lines.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


#: Customers with so many orders that exporting them takes a while.
BUSINESSES = {1: "Anvil & Daughters", 2: "Bolt Brothers", 3: "Cogwheel Works"}

#: Where everybody else has a mailbox, and how many of them do.
MAILBOXES = {"bigmail.example": 36, "post.example": 30, "uni.example": 24}

MONTHS = [f"2025-{month:02}" for month in range(1, 13)]

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, email TEXT);
CREATE TABLE products (id INTEGER PRIMARY KEY, name TEXT, cents INTEGER);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, day TEXT);
CREATE TABLE order_lines (
    order_id INTEGER, product_id INTEGER, quantity INTEGER,
    PRIMARY KEY (order_id, product_id)
) WITHOUT ROWID;
CREATE TABLE exports (
    task_id TEXT, task TEXT, customer_id INTEGER, period TEXT,
    started_at REAL, finished_at REAL, lines INTEGER, path TEXT, sha256 TEXT
);
"""


def home() -> Path:
    """The directory of the database and of the exported files."""
    return Path(os.environ.get("SHOP_HOME", "shop"))


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """A connection to the shop's database, for the length of a ``with`` block.

    Raises:
        FileNotFoundError: If there is no shop yet.
    """
    path = home() / "shop.sqlite3"
    if not path.exists():
        msg = f"{path}: make it with `python -m example_project.shop`"
        raise FileNotFoundError(msg)
    connection = sqlite3.connect(path, timeout=30, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def create(orders_per_month: int = 4000) -> None:
    """Make a shop that has been open for a year, unless there is one."""
    path = home() / "shop.sqlite3"
    if path.exists():
        return
    home().mkdir(parents=True, exist_ok=True)
    path.touch()
    with connect() as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(SCHEMA)
        db.execute("BEGIN")
        _add_products(db)
        _add_customers(db)
        _add_orders(db, orders_per_month)
        db.execute("CREATE INDEX orders_by_day ON orders (customer_id, day)")
        db.execute("COMMIT")


def count_lines() -> int:
    """How many order lines there are."""
    with connect() as db:
        [lines] = db.execute("SELECT count(*) FROM order_lines").fetchone()
    return int(lines)


def _add_products(db: sqlite3.Connection) -> None:
    things = ["kettle", "lamp", "chair", "clock", "teapot", "ladder", "mirror", "rug"]
    colours = ["red", "green", "blue", "white", "brass"]
    names = [f"{colour} {thing}" for thing in things for colour in colours]
    db.executemany(
        "INSERT INTO products (name, cents) VALUES (?, ?)",
        [(name, 995 + 350 * number) for number, name in enumerate(names)],
    )


def _add_customers(db: sqlite3.Connection) -> None:
    for name in BUSINESSES.values():
        address = f"orders@{name.split()[0].lower()}.example"
        db.execute("INSERT INTO customers (name, email) VALUES (?, ?)", (name, address))
    for domain, people in MAILBOXES.items():
        db.executemany(
            "INSERT INTO customers (name, email) VALUES (?, ?)",
            [(f"Customer {n}", f"customer{n}@{domain}") for n in range(people)],
        )


def _add_orders(db: sqlite3.Connection, orders_per_month: int) -> None:
    """Businesses order all the time, people once a month; each order has 6 lines."""
    db.execute(
        """
        WITH RECURSIVE
          months (month) AS (SELECT 1 UNION ALL SELECT month + 1 FROM months LIMIT 12),
          nth (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM nth LIMIT :orders)
        INSERT INTO orders (customer_id, day)
        SELECT c.id, printf('2025-%02d-%02d', month, 1 + n % 28)
        FROM months JOIN customers c JOIN nth ON n = 0 OR c.id <= :businesses
        """,
        {"orders": orders_per_month, "businesses": len(BUSINESSES)},
    )
    db.execute(
        """
        WITH RECURSIVE line (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM line LIMIT 6)
        INSERT INTO order_lines
        SELECT o.id, 1 + (o.id * 13 + n * 7) % 40, 1 + (o.id + n) % 5
        FROM orders o JOIN line
        """,
    )


if __name__ == "__main__":
    create()
    print(f"the shop is in {home() / 'shop.sqlite3'}")
