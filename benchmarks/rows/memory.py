"""What the store needs for a task beside its payload, and what is left after it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..row import Row, at_most
from ..world import World
from .server_time import MESSAGE, Bench


__all__ = ["ROWS"]

#: Tasks of which the share of each is measured.
TASKS, SHORT_TASKS = 10_000, 2_000

PAYLOAD = len(MESSAGE.body) + len(MESSAGE.envelope)


def share(bench: Bench, keys: Sequence[str]) -> float:
    """Return the bytes that the server has for each of some tasks of these *keys*."""
    before = used(bench)
    for key in keys:
        bench.submit(key)
    return (used(bench) - before) / len(keys) - PAYLOAD


def used(bench: Bench) -> int:
    """Return the bytes that the server has in use."""
    memory: Any = bench.redis.info("memory")
    return int(memory["used_memory"])


def dispatched(world: World, rounds: int) -> Iterator[float]:
    """Yield the bytes of a task that is with the broker, each of another key."""
    count = SHORT_TASKS if world.short else TASKS
    with world.server() as server:
        for _ in range(rounds):
            bench = Bench(server.url)
            bench.submit("first")
            yield share(bench, [f"key-{number}" for number in range(count)])
            bench.redis.flushdb()
            bench.close()


def parked(world: World, rounds: int) -> Iterator[float]:
    """Yield the bytes of a task that waits, ten for each key."""
    count = SHORT_TASKS if world.short else TASKS
    with world.server() as server:
        for _ in range(rounds):
            bench = Bench(server.url)
            keys = [f"key-{number}" for number in range(count // 10)]
            for key in keys:
                bench.submit(key)
            yield share(bench, keys * 10)
            bench.redis.flushdb()
            bench.close()


def left(world: World, rounds: int) -> Iterator[float]:
    """Yield how many names are left of tasks that have run."""
    with world.server() as server:
        for _ in range(rounds):
            bench = Bench(server.url)
            bench.round()
            bench.settled()
            names: Any = bench.redis.dbsize()
            yield float(names)
            bench.close()


ROWS = (
    Row(
        "memory-dispatched",
        "memory per dispatched task, its payload aside",
        "",
        at_most(800),
        dispatched,
        rounds=(2, 1),
        unit="B",
    ),
    Row(
        "memory-parked",
        "memory per parked task, its payload aside",
        "",
        at_most(650),
        parked,
        rounds=(2, 1),
        unit="B",
    ),
    Row(
        "left",
        "names left in the store when all tasks have ended",
        "",
        at_most(0),
        left,
        rounds=(1, 1),
        unit="",
    ),
)
