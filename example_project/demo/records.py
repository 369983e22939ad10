"""What the shop's database says about the work, whoever limited it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from example_project import shop


MOST_AT_ONCE = """
SELECT coalesce(max(at_once), 0) FROM (
    SELECT count(*) AS at_once
    FROM exports a
    JOIN exports b ON b.task = a.task AND b.customer_id = a.customer_id
        AND b.started_at <= a.started_at
        AND (b.finished_at IS NULL OR b.finished_at > a.started_at)
    WHERE a.task = 'export_month' AND a.customer_id = ?
    GROUP BY a.task_id
)
"""

LINES_ORDERED = """
SELECT count(*) FROM orders o JOIN order_lines l ON l.order_id = o.id
WHERE o.customer_id = ?
"""

FILES = """
SELECT path, sha256, lines FROM exports
WHERE task = 'export_month' AND customer_id = ? AND finished_at IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Exported:
    """What one customer's exports have come to."""

    files: int
    lines: int
    lines_ordered: int
    damaged: int


def most_exports(customer: int) -> int:
    """How many exports of *customer* ran at once at most, so far."""
    with shop.connect() as db:
        [most] = db.execute(MOST_AT_ONCE, [customer]).fetchone()
    return int(most)


def exported(customer: int) -> Exported:
    """Compare the files of *customer* with what is on record about them."""
    with shop.connect() as db:
        files = db.execute(FILES, [customer]).fetchall()
        [ordered] = db.execute(LINES_ORDERED, [customer]).fetchone()
    return Exported(
        files=len(files),
        lines=sum(lines for _, _, lines in files),
        lines_ordered=ordered,
        damaged=sum(digest(Path(path)) != sha256 for path, sha256, _ in files),
    )


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def addresses() -> list[str]:
    """Everybody who gets mail, the domains mixed."""
    with shop.connect() as db:
        rows = db.execute(
            "SELECT email FROM customers WHERE id > ? ORDER BY name",
            [len(shop.BUSINESSES)],
        )
        return [email for (email,) in rows]
