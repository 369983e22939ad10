"""A key's wait while another key has thousands of tasks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from ..row import Row, at_most
from ..workers import PATIENCE
from ..world import World


__all__ = ["ROWS"]

#: Tasks that wait for the other key.
CROWD, SHORT_CROWD = 10_000, 2_000

#: Calls of the quiet key in a round.
CALLS = 25


def wait_of(task: Any) -> float:
    """Return the seconds from call to begin of the middle one of some calls."""
    waits: list[float] = []
    for _ in range(CALLS):
        called = time.monotonic_ns()
        begun, _ = task.delay("quiet").get(PATIENCE)
        waits.append((begun - called) / 1e9)
    return median(waits)


def measure(world: World, rounds: int) -> Iterator[float]:
    """Yield a quiet key's wait beside a crowd by its wait alone.

    The crowd comes and goes once: before it and after it the key is alone.
    """
    task = world.tasks.job
    alone = [wait_of(task) for _ in range(rounds)]
    for _ in range(SHORT_CROWD if world.short else CROWD):
        task.delay("crowd", 0.2)
    beside = [wait_of(task) for _ in range(rounds)]
    task.control.purge("crowd")
    again = [wait_of(task) for _ in range(rounds)]
    for before, crowded, after in zip(alone, beside, again, strict=True):
        yield 2 * crowded / (before + after)


ROWS = (
    Row(
        "quiet-key",
        "a quiet key's wait while another key has 10,000 tasks, p50",
        "its wait alone",
        at_most(1.2),
        measure,
        rounds=(9, 5),
    ),
)
