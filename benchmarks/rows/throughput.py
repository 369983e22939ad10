"""How many tasks of no length get through in a second, from submit to ``get()``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ..row import Row, at_least
from ..workers import PATIENCE
from ..world import World


__all__ = ["ROWS", "rate"]

#: Tasks in a burst.
BURST, SHORT_BURST = 300, 100


def rate(task: Any, count: int) -> float:
    """Return how many of *count* tasks were done in a second."""
    begun = time.monotonic()
    for result in [task.delay() for _ in range(count)]:
        result.get(PATIENCE)
    return count / (time.monotonic() - begun)


def limited(world: World, rounds: int) -> Iterator[float]:
    """Yield our rate beside that of Celery's own task."""
    tasks, count = world.tasks, SHORT_BURST if world.short else BURST
    for _ in range(rounds):
        plain = rate(tasks.plain, count)
        yield rate(tasks.limited, count) / plain


def unlimited(world: World, rounds: int) -> Iterator[float]:
    """Yield the rate of a plain task beside ours, by that in an app without us."""
    tasks, bare, count = world.tasks, world.bare, SHORT_BURST if world.short else BURST
    for number in range(rounds):
        if number % 2:  # who comes second meets a warmer machine
            without = rate(bare, count)
            beside = rate(tasks.plain, count)
        else:
            beside = rate(tasks.plain, count)
            without = rate(bare, count)
        yield beside / without


ROWS = (
    Row(
        "throughput",
        "no-op tasks per second, submit to get()",
        "plain Celery",
        at_least(1.0),
        limited,
        rounds=(15, 5),
    ),
    Row(
        "plain-tasks",
        "plain tasks in an app that has limited ones, per second",
        "an app without",
        at_least(1.0),
        unlimited,
        rounds=(15, 5),
    ),
)
