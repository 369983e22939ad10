"""Jobs of one key, one at a time: beside the ideal, and beside doing it by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..row import Row, at_most
from ..workers import PATIENCE
from ..world import World


__all__ = ["ROWS"]

#: How long a job takes, and how many there are.
SECONDS = 0.2
JOBS, SHORT_JOBS = 60, 15


def by_us(world: World, rounds: int) -> Iterator[float]:
    """Yield the time of all jobs by that of their bodies alone."""
    count = SHORT_JOBS if world.short else JOBS
    task = world.tasks.job
    for number in range(rounds):
        key = f"jobs-{number}"
        spans = finish([task.delay(key, SECONDS) for _ in range(count)])
        if spans != sorted(spans):
            raise AssertionError("the jobs have not run in order")
        yield took(spans) / (count * SECONDS)


def by_hand(world: World, rounds: int) -> Iterator[float]:
    """Yield the same, where each job looks for itself and comes again in a second."""
    count = SHORT_JOBS if world.short else JOBS
    task = world.tasks.retried
    for number in range(rounds):
        key = f"by-hand-{number}"
        spans = finish([task.delay(key, SECONDS) for _ in range(count)])
        with world.redis() as redis:
            executions: Any = redis.getdel(f"executions:{key}")
        world.note("by-hand", executions=int(executions), jobs=count)
        yield took(spans) / (count * SECONDS)


def finish(results: list[Any]) -> list[tuple[int, int]]:
    """Return when each of the jobs began and ended, in ns."""
    return [tuple(result.get(PATIENCE)) for result in results]


def took(spans: list[tuple[int, int]]) -> float:
    """Return the seconds from the first begin to the last end."""
    return (max(end for _, end in spans) - min(begin for begin, _ in spans)) / 1e9


ROWS = (
    Row(
        "jobs",
        "60 jobs of 0.2 s on one key, limit 1, one after the other",
        "the ideal 12 s",
        at_most(1.05),
        by_us,
        rounds=(3, 1),
    ),
    Row(
        "jobs-by-hand",
        "... by hand: a lock, else retry(countdown=1)",
        "the ideal 12 s",
        None,
        by_hand,
        rounds=(1, 1),
    ),
)
