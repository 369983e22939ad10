"""Export a customer's orders to files: at most two at a time per customer."""

from __future__ import annotations

import csv
import gzip
import hashlib
import time
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from celery_bgtask import BgTask, bgtask

from . import shop


ORDER_LINES = """
SELECT o.id, o.day, p.name, l.quantity, p.cents
FROM orders o
JOIN order_lines l ON l.order_id = o.id
JOIN products p ON p.id = l.product_id
WHERE o.customer_id = ? AND o.day GLOB ?
ORDER BY o.day, o.id, p.name
"""

COUNT = """
SELECT count(*) FROM orders o JOIN order_lines l ON l.order_id = o.id
WHERE o.customer_id = ? AND o.day GLOB ?
"""

COLUMNS = ["order", "day", "product", "quantity", "price", "net", "tax", "sum"]

TAX = Decimal("0.19")
CENT = Decimal("0.01")


@bgtask(task_key="customer_id", max_per_key=2, when_full="wait")
def export_month(self: BgTask, customer_id: int, month: str) -> str:
    """Export one month; a third one for the same customer waits for its turn."""
    return export(self, customer_id, month)


@bgtask(task_key="customer_id", max_per_key=1, when_full="reject")
def export_year(self: BgTask, customer_id: int, year: str) -> str:
    """Export a year, for the button "Download now".

    While it runs, another click raises ``LimitReached`` where ``delay`` is called.
    """
    return export(self, customer_id, year)


def export(task: BgTask, customer_id: int, period: str) -> str:
    """Write the order lines of a period to a file, and on record when it was done.

    Whoever follows the call sees how many lines are written.
    """
    name = task.name.rpartition(".")[2]
    path = shop.home() / "exports" / name / f"{customer_id}-{period}.csv.gz"
    with shop.connect() as db:
        db.execute(
            "INSERT INTO exports (task_id, task, customer_id, period, started_at)"
            " VALUES (?, ?, ?, ?, ?)",
            (task.request.id, name, customer_id, period, time.time()),
        )
        wanted = (customer_id, f"{period}*")
        [count] = db.execute(COUNT, wanted).fetchone()
        rows = task.track(db.execute(ORDER_LINES, wanted), count, period)
        lines = write_csv(path, rows)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        db.execute(
            "UPDATE exports SET finished_at = ?, lines = ?, path = ?, sha256 = ?"
            " WHERE task_id = ?",
            (time.time(), lines, str(path), digest, task.request.id),
        )
    return str(path)


def write_csv(path: Path, rows: Iterable[Any]) -> int:
    """Write *rows* to a compressed file that appears when it is complete.

    Returns:
        The rows written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    with gzip.open(unfinished, "wt", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        lines = 0
        for order, day, product, quantity, cents in rows:
            price = Decimal(cents).scaleb(-2)
            net = price * quantity
            tax = (net * TAX).quantize(CENT)
            writer.writerow([order, day, product, quantity, price, net, tax, net + tax])
            lines += 1
    unfinished.replace(path)
    return lines
