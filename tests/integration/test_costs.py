"""What limiting costs, counted: a regression shows here, on any machine.

Times are measured by ``make bench``. Here are only numbers that the load of the
machine cannot change: commands over the network, commands inside a script, bytes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from benchmarks.rows.memory import share
from benchmarks.rows.server_time import Bench
from celery_bgtask import LimitReached
from celery_bgtask.scripts.loader import SCRIPTS
from tests.helpers import monitored


NAMES = {script.sha: script.name for script in SCRIPTS.values()}

#: The commands that each step takes inside its script, as they are now.
STEPS = {
    "submit": 15, "park": 21, "refuse": 19, "accept": 13, "hand-off": 24,
    "release": 12, "settle": 12, "confirm": 3,
}  # fmt: skip

#: Bytes of the store for a task, beside its message: measured, and some more for
#: servers that pack them otherwise.
DISPATCHED, PARKED = 1100, 950


def sent(seen: list[dict[str, Any]]) -> Counter[str]:
    """How often each command came over the network; a script by its name."""
    found: Counter[str] = Counter()
    for command in seen:
        name, _, rest = command["command"].partition(" ")
        if command["client_type"] != "lua" and name not in {"ECHO", "PING"}:
            sha = re.match(r"[0-9a-f]{40}", rest)
            found[NAMES[sha[0]] if sha else name] += 1
    return found


def inside(seen: list[dict[str, Any]]) -> int:
    """How many commands scripts have called."""
    return sum(command["client_type"] == "lua" for command in seen)


@pytest.fixture
def bench(redis: Redis, redis_url: str) -> Iterator[Bench]:
    """The scripts, without any task or worker."""
    bench = Bench(redis_url)
    yield bench
    bench.close()
    redis.flushdb()


def test_a_call_is_a_script_and_a_publish(
    declare: Callable[..., Any], redis_url: str, app: Celery
) -> None:
    """``delay()`` asks the store and the broker once each; it subscribes nothing."""
    task = declare(max_per_key=100)
    kept = [task.delay("k")]  # what is declared and loaded, is so once

    with monitored(redis_url) as seen:
        kept += [task.delay("k") for _ in range(10)]

    assert sent(seen) == {"submit": 10, "LPUSH": 10}


def test_a_refused_call_is_a_script(
    declare: Callable[..., Any], redis_url: str, app: Celery
) -> None:
    """A refusal has nothing to undo."""
    task = declare()
    kept = task.delay("k")

    with monitored(redis_url) as seen:
        for _ in range(10):
            with pytest.raises(LimitReached):
                task.delay("k")

    assert kept.id
    assert sent(seen) == {"submit": 10}


def steps_of(bench: Bench, url: str, key: str) -> dict[str, int]:
    """How many commands each step of the lives of two tasks takes, in its script."""
    counted: dict[str, int] = {}

    def count(name: str, step: Callable[..., Any], *args: Any, **options: Any) -> Any:
        with monitored(url) as seen:
            value = step(*args, **options)
            bench.settled()
        with monitored(url) as ignored:
            bench.settled()
        counted[name] = inside(seen) - inside(ignored)
        return value

    first = count("submit", bench.submit, key)
    second = count("park", bench.submit, key)
    count("refuse", bench.submit, key, wait=False)
    token = count("accept", bench.accept, first, key)
    granted = count("hand-off", bench.release, first, token)
    assert [task.task_id for task in granted] == [second]
    count("settle", bench.settle, first, token)
    count("confirm", bench.scripts.confirm, granted)
    token = bench.accept(second, key)
    count("release", bench.release, second, token)
    bench.settle(second, token)
    bench.settled()
    return counted


def test_a_script_asks_for_no_more_than_it_did(bench: Bench, redis_url: str) -> None:
    """A command is about a microsecond of the server, for every task."""
    counted = steps_of(bench, redis_url, "k")

    assert counted.keys() == STEPS.keys()
    grown = {name: n for name, n in counted.items() if n > STEPS[name]}
    assert not grown, f"more commands than {STEPS}"


def test_a_script_asks_for_the_same_however_many_keys_there_are(
    bench: Bench, redis_url: str
) -> None:
    """Nothing walks through the keys."""
    alone = steps_of(bench, redis_url, "k")
    bench.fill(500)

    assert steps_of(bench, redis_url, "k") == alone


def test_a_heartbeat_is_one_call(bench: Bench, redis_url: str) -> None:
    """However many tasks run; inside it takes three commands for each."""
    ids = [bench.submit(f"k{n}") for n in range(20)]
    for number, task_id in enumerate(ids):
        bench.accept(task_id, f"k{number}")

    bench.scripts.renew("bench/0123456789abcdef", ids)  # is loaded

    with monitored(redis_url) as seen:
        bench.scripts.renew("bench/0123456789abcdef", ids)

    assert sum(sent(seen).values()) == 1
    assert inside(seen) <= 3 * len(ids) + 2


def test_a_task_takes_no_more_memory_than_it_did(bench: Bench) -> None:
    """Beside its message: with the broker, and while it waits."""
    bench.submit("first")
    dispatched = share(bench, [f"key-{number}" for number in range(1000)])
    parked = share(bench, [f"key-{number % 100}" for number in range(1000)])

    assert dispatched <= DISPATCHED
    assert parked <= PARKED


def test_nothing_is_left_of_tasks_that_have_ended(bench: Bench) -> None:
    """Neither names nor numbers."""
    bench.round()
    bench.settled()

    assert bench.redis.dbsize() == 0
