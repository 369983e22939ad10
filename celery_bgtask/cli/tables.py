"""Keys as rows of a table: what `keys` and `top` show of each.

Numbers first, the key last: columns stay where they are, however long a key is.
"""

from __future__ import annotations

import heapq
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from ..control.views import KeyStats
from .output import ago, table, word
from .targets import Target


__all__ = [
    "COLORS", "ORDERS", "STATE_AT", "Picture", "Totals",
    "cells", "columns", "first", "lines", "rows", "state", "take", "task_column",
]  # fmt: skip

#: A key and whose it is.
Row = tuple[Target, KeyStats]

#: Keys that are read for one picture: a store of a million is left in peace.
MOST_KEYS = 10_000

LEGEND = "* this limit was set by hand: see `celery bgtask limit`"

#: Titles and widths of the columns before the task and the key.
COLUMNS = (
    ("SLOTS", 7), ("RUNNING", 7), ("WAITING", 7), ("OLDEST", 6), ("STATE", -7)
)  # fmt: skip

#: Which of them is the state.
STATE_AT = 4

NOTHING = "No key is in use, blocked, or has a limit set by hand."

#: What needs a look is not white.
COLORS = {"blocked": "red", "paused": "yellow", "limit 0": "yellow", "full": "cyan"}

#: By what keys may be sorted, the first comes first.
ORDERS: dict[str, Callable[[KeyStats], Any]] = {
    "waiting": lambda stats: (-stats.waiting, -stats.held, stats.key),
    "oldest": lambda stats: (stats.waiting_since or float("inf"), stats.key),
    "held": lambda stats: (-stats.held, -stats.waiting, stats.key),
    "key": lambda stats: stats.key,
}


class Totals:
    """Counts what passes by."""

    def __init__(self) -> None:
        self.keys = self.running = self.dispatched = self.waiting = self.blocked = 0

    def count(self, counted: Iterable[Row]) -> Iterator[Row]:
        """Yield the rows that come, and count them."""
        for target, stats in counted:
            self.keys += 1
            self.running += stats.running
            self.dispatched += stats.dispatched
            self.waiting += stats.waiting
            self.blocked += stats.blocked
            yield target, stats

    def __str__(self) -> str:
        return (
            f"{self.keys} key{'s' * (self.keys != 1)}: {self.running} running, "
            f"{self.dispatched} dispatched, {self.waiting} waiting"
            + (f"; {self.blocked} blocked" if self.blocked else "")
        )


@dataclass(frozen=True)
class Picture:
    """What there is to see at one moment.

    Attributes:
        at: The moment, by this machine's clock.
        totals: Counts of all keys that were read.
        rows: The busiest.
        is_all: Whether all keys were read.
    """

    at: float
    totals: Totals
    rows: list[Row]
    is_all: bool

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.at))
        most = "" if self.is_all else f" (the first {MOST_KEYS:,} that were read)"
        return f"{clock}  {self.totals}{most}"


def rows(targets: Iterable[Target]) -> Iterator[Row]:
    """Yield the keys of *targets* as the store gives them, a page at a time."""
    for target in targets:
        for stats in target.control.keys():  # noqa: SIM118 - a method of its own
            yield target, stats


def first(found: Iterable[Row], order: str, count: int | None) -> list[Row]:
    """Return the *count* first of *found* in an order, all of them without one."""

    def place(row: Row) -> tuple[Any, str]:
        return ORDERS[order](row[1]), row[0].scope

    if count is None:
        return sorted(found, key=place)
    return heapq.nsmallest(count, found, key=place)


def take(targets: list[Target], sort: str, height: int) -> Picture:
    """Read the keys and keep the *height* busiest."""
    totals = Totals()
    found = rows(targets)
    counted = totals.count(itertools.islice(found, MOST_KEYS))
    kept = first(counted, sort, height)
    is_all = totals.keys < MOST_KEYS or next(found, None) is None
    return Picture(time.time(), totals, kept, is_all)


def task_column(targets: list[Target]) -> list[tuple[str, int]]:
    """Return the column of the task, none if there is only one."""
    if len(targets) == 1:
        return []
    return [("TASK", -max(4, *(len(word(target.title)) for target in targets)))]


def columns(targets: list[Target]) -> list[tuple[str, int]]:
    """Return titles and widths of the columns, to the left if below 0."""
    return [*COLUMNS, *task_column(targets), ("KEY", 0)]


def cells(row: Row, targets: list[Target], now: float) -> list[str]:
    """Return the texts of a row, in the order of the columns."""
    target, stats = row
    limit = own_limit(stats)
    mark = "" if stats.override is None else "*"
    return [
        f"{stats.held}/{'-' if limit is None else limit}{mark}",
        str(stats.running),
        str(stats.waiting),
        ago(stats.waiting_since, now),
        state(stats),
        *([word(target.title)] if len(targets) > 1 else []),
        word(stats.key),
    ]


def state(stats: KeyStats) -> str:
    """Return why nothing more of a key starts, ``-`` if it does."""
    if stats.blocked:
        return "blocked"
    if stats.paused:
        return "paused"
    if own_limit(stats) == 0:
        return "limit 0"
    return "full" if stats.capacity == 0 else "-"


def own_limit(stats: KeyStats) -> int | None:
    """Return the limit of a key without its block and pause, ``None`` for none."""
    limit = stats.declared if stats.override is None else stats.override
    return None if limit == -1 else limit


def lines(found: Iterable[Row], targets: list[Target]) -> Iterator[str]:
    """Yield a table of keys, as they come."""
    now = time.time()
    marked: list[bool] = []

    def painted() -> Iterator[list[str]]:
        for row in found:
            marked.append(row[1].override is not None)
            texts = cells(row, targets, now)
            texts[STATE_AT] = click.style(
                texts[STATE_AT], fg=COLORS.get(texts[STATE_AT])
            )
            yield texts

    yield from table(columns(targets), painted(), NOTHING)
    if any(marked):
        yield LEGEND
