"""From the end of a body to the begin of the next one that waits for its slot."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median

from ..row import Row, at_most
from ..workers import PATIENCE
from ..world import World


__all__ = ["ROWS"]

#: Tasks in a row; seconds that each takes, in which the one before is done with.
BLOCK, LENGTH = 30, 0.02


def measure(world: World, rounds: int) -> Iterator[float]:
    """Yield the time of a hand-off by that of Celery from publish to start."""
    tasks = world.tasks
    for number in range(rounds):
        starts = []
        for _ in range(BLOCK):
            called = time.monotonic_ns()
            starts.append(tasks.plain.delay().get(PATIENCE) - called)
        key = f"hand-off-{number}"
        first = tasks.job.delay(key, 0.5)  # until all others wait
        results = [first, *(tasks.job.delay(key, LENGTH) for _ in range(BLOCK))]
        spans = [result.get(PATIENCE) for result in results]
        gaps = [begun - ended for (_, ended), (begun, _) in pairwise(spans)]
        yield median(gaps) / median(starts)


ROWS = (
    Row(
        "hand-off",
        "slot freed to next task started, p50",
        "plain Celery, publish to start",
        at_most(1.3),
        measure,
        rounds=(15, 5),
    ),
)
