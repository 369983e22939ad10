"""The worker's heartbeat and sweep, with a worker in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import VERSION, Celery
from redis import Redis

from celery_bgtask import lease_lost
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.worker.agent import agent_of
from tests.helpers import PATIENCE, wait_until, wait_until_drained


#: What the threads of an agent are called.
AGENT_THREADS = {"bgtask heartbeat", "bgtask sweep"}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a body until the test lets it go."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture
def task(app: Celery, declare: Callable[..., Any], gate: threading.Event) -> Any:
    """A task that runs until the gate opens; leases are short."""
    app.conf.update(bgtask_lease=1.5, bgtask_sweep_interval=0.1)

    def body(k, value=None):
        assert gate.wait(2 * PATIENCE)
        return value

    return declare("held", body, when_full="wait")


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What the names of its scope begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


def running(task: Any) -> int:
    """Bodies that execute."""
    return task.control.stats("k").running


def test_a_lease_is_renewed_as_long_as_the_body_runs(
    task: Any, worker: Any, redis: Redis, tag: str, gate: threading.Event
) -> None:
    """A body that takes longer than its lease keeps its slot."""
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    deadlines = set()

    def renewed() -> bool:
        deadlines.add(redis.zscore(f"{tag}:leases", first.id))
        return len(deadlines - {None}) > 4  # more than a lease: it is renewed thrice

    with worker("threads", concurrency=2):
        wait_until(lambda: running(task) == 1, that="it runs")
        wait_until(renewed, that="it was renewed four times")
        assert (running(task), task.control.stats("k").waiting) == (1, 1)
        gate.set()
        assert [first.get(timeout=PATIENCE), second.get(timeout=PATIENCE)] == [1, 2]
    wait_until_drained(redis)


def test_a_lease_that_is_lost_is_told_and_its_result_is_dropped(
    task: Any,
    worker: Any,
    redis: Redis,
    tag: str,
    gate: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The worker hears that its run is not its own any more; so do receivers."""
    heard: list[tuple[str, str, str]] = []

    def receiver(sender: Any, task_id: str, key: str, **_: Any) -> None:
        heard.append((sender.name, task_id, key))

    lease_lost.connect(receiver)
    try:
        result = task.delay("k", value="too late")
        with worker("threads"):
            wait_until(lambda: running(task) == 1, that="it runs")
            wait_until(lambda: lose(redis, tag, result.id), that="it is lost")
            wait_until(lambda: heard, that="the worker is told")
            gate.set()
            wait_until(lambda: "is dropped" in caplog.text, that="its result is")
    finally:
        lease_lost.disconnect(receiver)

    assert heard == [("held", result.id, "k")]
    assert result.state != "SUCCESS"
    wait_until_drained(redis)


def lose(redis: Redis, tag: str, task_id: str) -> bool:
    """Let a lease run out between two renewals; true when a sweep has seen it."""
    redis.zadd(f"{tag}:leases", {task_id: 1}, xx=True)
    return redis.zscore(f"{tag}:leases", task_id) is None


def test_a_worker_that_stops_waits_for_its_runs_and_keeps_their_leases(
    task: Any, worker: Any, redis: Redis, gate: threading.Event
) -> None:
    """A warm shutdown longer than the lease loses nothing."""
    result = task.delay("k", value=1)
    with worker("threads"):
        wait_until(lambda: running(task) == 1, that="it runs")
        threading.Timer(2.0, gate.set).start()  # longer than the lease

    assert result.get(timeout=PATIENCE) == 1
    wait_until_drained(redis)


def test_the_agent_ends_with_its_worker(task: Any, worker: Any, app: Any) -> None:
    """No thread is left behind, and a new worker has a new name."""
    names = []
    others = set(threading.enumerate())

    def ours() -> list[threading.Thread]:
        """The threads of agents that this test has started."""
        begun = set(threading.enumerate()) - others
        return [thread for thread in begun if thread.name in AGENT_THREADS]

    for _ in range(2):
        with worker():
            agent = agent_of(app)
            assert agent is not None
            names.append(agent.worker_id)
            wait_until(ours, that="the agent works")
        wait_until(lambda: not ours(), that="its threads have ended")

    assert names[0] != names[1]


def test_one_of_many_workers_sweeps(
    app: Celery, declare: Callable[..., Any], redis: Redis
) -> None:
    """While one's turn lasts, others find nothing to do."""
    app.conf.update(bgtask_lease=1200, bgtask_sweep_interval=100)
    task = declare()
    tag = scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)
    scripts = extension_of(app).scripts(task.bgtask.scope)

    turns = [scripts.sweep(f"w{number}").mine for number in range(3)]
    assert turns == [True, False, False]
    assert 0 < redis.pttl(f"{tag}:sweeping") <= 100_000


def test_a_run_of_a_dead_worker_is_handed_on(
    app: Celery, task: Any, worker: Any, redis: Redis, tag: str, gate: threading.Event
) -> None:
    """Within lease and sweep interval the next task runs."""
    gate.set()
    scripts = extension_of(app).scripts(task.bgtask.scope)
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    accepted = scripts.accept(
        first.id, 1, "k", limit=1, token="t0", worker="dead", fresh=False, rank=0,
        retries=0,
    )  # fmt: skip
    assert accepted.status == "started"
    redis.delete(app.conf.task_default_queue)  # the dead worker had taken it

    with worker():
        assert second.get(timeout=PATIENCE) == 2

    wait_until_drained(redis)


def test_a_store_that_was_away_costs_no_lease(
    app: Celery, task: Any, worker: Any, redis: Redis, tag: str, gate: threading.Event
) -> None:
    """A silence of all sweeps extends what nobody could renew."""
    result = task.delay("k", value=1)
    with worker("threads"):
        wait_until(lambda: running(task) == 1, that="it runs")
        # As if nobody had been able to reach the store for longer than the lease.
        pipe = redis.pipeline()
        pipe.set(f"{tag}:swept", 1)
        pipe.zadd(f"{tag}:leases", {result.id: 1})
        pipe.delete(f"{tag}:sweeping")
        pipe.execute()
        wait_until(
            lambda: redis.zscore(f"{tag}:leases", result.id) != 1, that="it is extended"
        )
        assert running(task) == 1
        gate.set()
        assert result.get(timeout=PATIENCE) == 1
    wait_until_drained(redis)


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_limit_of_one_never_meets_its_own_slot(
    pool: str, declare: Callable[..., Any], worker: Any, redis: Redis
) -> None:
    """The slot is free before the result can be read."""
    task = declare()

    with worker(pool):
        values = [task.delay("k", value=n).get(timeout=PATIENCE) for n in range(30)]

    assert values == list(range(30))
    wait_until_drained(redis)


def test_two_steps_of_a_chain_need_one_slot(
    declare: Callable[..., Any], worker: Any, redis: Redis
) -> None:
    """What follows is submitted when the slot is free."""
    task = declare()

    with worker():
        result = (task.si("k", value=1) | task.si("k", value=2)).apply_async()
        assert result.get(timeout=PATIENCE) == 2

    wait_until_drained(redis)


#: The timer of a second worker in one process is deaf, in Celery 5.5 alone; the
#: smoke tests retry with a delay on all releases.
DEAF_TIMER = pytest.mark.skipif(VERSION < (5, 6), reason="Celery 5.5: ETA in a thread")


@pytest.mark.parametrize("countdown", [None, pytest.param(0.1, marks=DEAF_TIMER)])
def test_a_retry_keeps_or_regains_its_slot(
    countdown: float | None, declare: Callable[..., Any], worker: Any, redis: Redis
) -> None:
    """At once it keeps the slot; with a delay it comes back to the queue of its key."""
    tries: list[int] = []

    def flaky(self, k):
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry(countdown=countdown or 0)
        return "done"

    task = declare("flaky", flaky, bind=True)

    with worker("threads"):
        assert task.delay("k").get(timeout=PATIENCE) == "done"

    assert tries == [0, 1, 2]
    wait_until_drained(redis)
