"""How long one call takes to its result, when a worker is free."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from ..row import Row, at_most
from ..workers import PATIENCE
from ..world import World


__all__ = ["ROWS", "to_result"]

#: Calls in a row of one kind.
BLOCK = 25


def to_result(task: Any, count: int = BLOCK) -> float:
    """Return the seconds that the middle one of *count* calls took."""
    times = []
    for _ in range(count):
        called = time.monotonic()
        task.delay().get(PATIENCE)
        times.append(time.monotonic() - called)
    return median(times)


def by_the_broker(world: World, rounds: int) -> Iterator[float]:
    """Yield our time by that of Celery's own task."""
    tasks = world.tasks
    for _ in range(rounds):
        plain = to_result(tasks.plain)
        yield to_result(tasks.limited) / plain


def offered(world: World, rounds: int) -> Iterator[float]:
    """Yield the time of an offered task by that of Celery's own."""
    tasks = world.tasks
    for _ in range(rounds):
        plain = to_result(tasks.plain)
        yield to_result(tasks.offered) / plain


ROWS = (
    Row(
        "latency",
        "submit to result, one at a time, p50",
        "plain Celery",
        at_most(0.9),
        by_the_broker,
        rounds=(25, 9),
    ),
    Row(
        "offer-latency",
        'the same with delivery="offer"',
        "plain Celery",
        at_most(0.5),
        offered,
        rounds=(25, 9),
    ),
)
