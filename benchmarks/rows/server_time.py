"""What a script costs the server, with few keys in use and with many.

The server itself tells: its slow log, from 0 microseconds on, has the time of each
call without the network. A task of each of *size* keys runs or waits meanwhile.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from redis import Redis

from celery_bgtask.extension import extension_of
from celery_bgtask.message import Message
from celery_bgtask.scripts import Scripts

from ..row import Row, at_most
from ..tasks import make_app
from ..world import World


__all__ = ["ROWS", "Bench"]

#: Keys in use.
FEW, MANY, SHORT_MANY = 100, 100_000, 10_000

#: Calls of each script in a round.
CALLS = 100

#: Like those of a call with two short arguments.
MESSAGE = Message(b"x" * 90, b"e" * 700)

#: Runs of which a heartbeat renews the leases.
RUNS = 100


class Bench:
    """The scripts of one scope on a server without any worker.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        self.app = make_app(url)
        self.scripts: Scripts = extension_of(self.app).scripts("bench")
        self.redis = Redis.from_url(url)
        self.redis.config_set("slowlog-max-len", 100_000)
        self._count = 0

    def close(self) -> None:
        """Close the connections."""
        self.redis.close()
        extension_of(self.app).close()
        self.app.close()

    def id(self) -> str:
        """Return a new task id, as long as Celery's are."""
        self._count += 1
        return f"00000000-0000-4000-8000-{self._count:012d}"

    def submit(self, key: str, *, limit: int = 1, wait: bool = True) -> str:
        """Submit a task and return its id."""
        task_id = self.id()
        self.scripts.submit(
            task_id,
            key,
            limit=limit,
            wait=wait,
            max_waiting=1_000_000,
            rank=0,
            retries=0,
            token="",
            delay=0,
            nonce=secrets.token_hex(6),
            message=MESSAGE,
            reply="bgtask:bench@0:reply:0123456789abcdef",
            news='{"task":"bench","queue":"bench","metadata":{},"offer":0}',
        )
        return task_id

    def accept(self, task_id: str, key: str) -> str:
        """Start a task and return its token."""
        token = secrets.token_hex(8)
        self.scripts.accept(
            task_id, 1, key, limit=1, token=token, worker="bench/0123456789abcdef",
            fresh=False, rank=0, retries=0,
            reply="bgtask:bench@0:reply:0123456789abcdef",
        )  # fmt: skip
        return token

    def release(self, task_id: str, token: str) -> list[Any]:
        """End a run and return what its slot goes to."""
        return self.scripts.release(
            task_id, token=token, worker="bench/0123456789abcdef", attempt=1
        ).granted

    def settle(self, task_id: str, token: str) -> None:
        """Forget a run."""
        self.scripts.settle(
            task_id, token=token, worker="bench/0123456789abcdef", attempt=1,
            remember=False, owed=False,
            event='{"id":"00000000-0000-4000-8000-000000000000","state":"SUCCESS"}',
        )  # fmt: skip

    def timed(self, calls: Callable[[], object]) -> float:
        """Return the microseconds of the server that the middle one of *calls* took."""
        self.redis.config_set("slowlog-log-slower-than", 0)
        self.redis.slowlog_reset()
        calls()
        self.settled()
        self.redis.config_set("slowlog-log-slower-than", -1)
        entries: Any = self.redis.slowlog_get(100_000)
        times = [e["duration"] for e in entries if e["command"].startswith(b"EVALSHA")]
        times = times[1:]  # the newest comes first, and is that of the waiting
        return float(median(times))

    def settled(self) -> None:
        """Wait until the server has done what nobody waits for."""
        self.scripts.phase("none")  # over the same connection

    def fill(self, size: int, *, since: int = 0) -> None:
        """Have *size* keys in use."""
        for number in range(since, size):
            self.submit(f"busy-{number}", wait=False)

    def round(self) -> dict[str, float]:
        """Return what each step of the lives of some tasks costs."""
        first = [f"first-{n}" for n in range(CALLS)]
        ids: list[str] = []
        costs = {"submit": self.timed(lambda: ids.extend(map(self.submit, first)))}
        parked: list[str] = []
        costs["park"] = self.timed(lambda: parked.extend(map(self.submit, first)))
        tokens: list[str] = []
        costs["accept"] = self.timed(
            lambda: tokens.extend(map(self.accept, ids, first))
        )
        granted: list[Any] = []
        costs["hand-off"] = self.timed(
            lambda: granted.extend(map(self.release, ids, tokens))
        )
        costs["settle"] = self.timed(lambda: list(map(self.settle, ids, tokens)))
        costs["confirm"] = self.timed(lambda: list(map(self.scripts.confirm, granted)))
        tokens = list(map(self.accept, parked, first))
        costs["release"] = self.timed(lambda: list(map(self.release, parked, tokens)))
        for one in zip(parked, tokens, strict=True):
            self.settle(*one)
        return costs


@contextmanager
def filled(world: World, size: int) -> Iterator[Bench]:
    """A server with *size* keys in use."""
    with world.server() as server:
        bench = Bench(server.url)
        bench.round()  # loads the scripts
        bench.fill(size)
        yield bench
        bench.close()


def few(world: World) -> Bench:
    """Return the scripts of a server with few keys, the same each time."""
    return world.keep("few", lambda: filled(world, FEW))


def many(world: World) -> Bench:
    """Return the scripts of a server with many keys, the same each time."""
    size = SHORT_MANY if world.short else MANY
    return world.keep("many", lambda: filled(world, size))


def flat(step: str) -> Callable[[World, int], Iterator[float]]:
    """Return what measures a step with many keys beside the same with few."""

    def measure(world: World, rounds: int) -> Iterator[float]:
        one, other = few(world), many(world)
        for _ in range(rounds):
            small, large = one.round(), other.round()
            yield large[step] / small[step]

    return measure


def cost(step: str) -> Callable[[World, int], Iterator[float]]:
    """Return what measures a step alone, with few keys."""

    def measure(world: World, rounds: int) -> Iterator[float]:
        bench = few(world)
        for _ in range(rounds):
            costs = bench.round()
            world.note("server-time", **costs)
            yield costs[step]

    return measure


def heartbeat(world: World, rounds: int) -> Iterator[float]:
    """Yield what it takes to renew the leases of many runs, in one call."""
    bench = few(world)
    ids = [bench.submit(f"run-{number}") for number in range(RUNS)]
    tokens = [bench.accept(task_id, "run") for task_id in ids]

    def renew() -> None:
        bench.scripts.renew("bench/0123456789abcdef", ids)

    renew()
    for _ in range(rounds):
        yield bench.timed(renew)
    for one in zip(ids, tokens, strict=True):
        bench.release(*one)
        bench.settle(*one)


ROWS = (
    Row(
        "submit-flat",
        "server time of a submission, 100,000 keys in use",
        "100 keys",
        at_most(1.2),
        flat("submit"),
        rounds=(9, 5),
    ),
    Row(
        "hand-off-flat",
        "server time of a release with hand-off, 100,000 keys",
        "100 keys",
        at_most(1.2),
        flat("hand-off"),
        rounds=(9, 5),
    ),
    Row(
        "submit-time",
        "server time of a submission",
        "",
        at_most(50),
        cost("submit"),
        rounds=(15, 7),
        unit="µs",
    ),
    Row(
        "hand-off-time",
        "server time of a release with hand-off",
        "",
        at_most(65),
        cost("hand-off"),
        rounds=(15, 7),
        unit="µs",
    ),
    Row(
        "heartbeat",
        "server time of the heartbeat of 100 running tasks",
        "",
        at_most(1500),
        heartbeat,
        rounds=(15, 7),
        unit="µs",
    ),
)
