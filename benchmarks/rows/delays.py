"""How many calls a client makes in a second, when nobody runs them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from redis import Redis

from ..row import Row, at_least
from ..tasks import make_app, tasks_of
from ..world import World


__all__ = ["ROWS"]

#: Calls in a row.
CALLS = 100


def calls_per_second(task: Any, redis: Redis) -> float:
    """Return the rate of ``delay()``; what was sent is dropped."""
    begun = time.monotonic()
    results = [task.delay() for _ in range(CALLS)]
    taken = time.monotonic() - begun
    results.clear()  # they unsubscribe
    redis.flushdb()
    return CALLS / taken


def measure(world: World, rounds: int) -> Iterator[float]:
    """Yield our rate by that of Celery's own task."""
    with world.server() as server, Redis.from_url(server.url) as redis:
        app = make_app(server.url)
        tasks = tasks_of(app)
        for task in (tasks.plain, tasks.limited):  # connections are made
            calls_per_second(task, redis)
        for _ in range(rounds):
            plain = calls_per_second(tasks.plain, redis)
            yield calls_per_second(tasks.limited, redis) / plain
        world.close(app)


ROWS = (
    Row(
        "delay",
        "delay() calls per second",
        "plain Celery",
        at_least(1.0),
        measure,
        rounds=(40, 15),
    ),
)
