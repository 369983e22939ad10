"""``check`` names each kind of damage, and the command that it names mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_bgtask import Finding
from celery_bgtask.control.damage import PROBLEMS
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import quote, scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.worker.sweeper import sweep


REPAIR = "celery bgtask repair"

Queued = Callable[[], list[Any]]


class Store:
    """The store of one task's scope, to be damaged."""

    def __init__(self, app: Celery, task: Any, redis: Redis) -> None:
        self.tag = scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)
        self.redis = redis
        self.task = task
        self.app = app
        self.scripts: Scripts = extension_of(app).scripts(task.bgtask.scope)

    def __call__(self, name: str) -> str:
        """The name in Redis."""
        return f"{self.tag}:{name}"

    def run(self, key: str) -> str:
        """Submit a task and let it start; return its id."""
        result = self.task.delay(key)
        answer = self.scripts.accept(
            result.id, 1, key, limit=1, token="t1", worker="w", fresh=True, rank=0,
            retries=0,
        )  # fmt: skip
        assert answer.status == "started"
        return str(result.id)

    def sweep(self) -> None:
        """Sweep now, and not after a silence."""
        for _ in range(2):
            self.redis.delete(self("sweeping"))
            sweep(self.app, self.scripts, "me")


@pytest.fixture
def task(declare: Callable[..., Any]) -> Any:
    """A task with one slot per key, whose calls wait."""
    return declare(when_full="wait", acks_late=True)


@pytest.fixture
def store(app: Celery, task: Any, redis: Redis) -> Iterator[Store]:
    """The store of its scope; what a test leaves there is forgotten."""
    store = Store(app, task, redis)
    yield store
    for name in redis.scan_iter("{" + app.conf.bgtask_key_prefix + "*"):
        redis.delete(name)


def problems(task: Any) -> set[tuple[str, str]]:
    """What check finds: problem and subject."""
    return {(finding.problem, finding.subject) for finding in task.control.check()}


def mended(task: Any, *expected: tuple[str, str]) -> list[Finding]:
    """Check that exactly this is found, repaired by what it says, and gone."""
    found: list[Finding] = task.control.check()
    assert {(f.problem, f.subject) for f in found} == set(expected), found
    assert {f.remedy for f in found} == {REPAIR}
    assert all(f.detail and f.problem in PROBLEMS for f in found)
    again = {(f.problem, f.subject) for f in task.control.repair()}
    assert again >= set(expected)
    assert task.control.check() == []
    assert task.control.repair() == []
    return found


def test_a_healthy_scope_has_no_findings(task: Any, store: Store) -> None:
    """In any state that a task may be in."""
    store.run("a")
    task.delay("b")
    task.apply_async(("b",), accept_timeout=60)
    task.apply_async(("c",), countdown=60, expires=90)
    cancelled = task.delay("d")
    cancelled.cancel()
    task.control.set_limit("e", 3)
    task.control.block("f", "why")
    task.control.block("b", "why", seconds=60)
    task.control.pause()
    task.delay("g")

    assert task.control.check() == []
    assert task.control.repair() == []


def test_a_slot_of_nobody(task: Any, store: Store, queued: Queued) -> None:
    """The key would be smaller by one for ever; the next task gets it."""
    store.redis.zadd(store("slots:k"), {"ghost": 1})
    store.redis.hset(store("limits"), "k", "1")
    waits = task.delay("k")
    assert queued() == []

    [finding] = mended(task, ("slot-without-task", "ghost"))

    assert "not in the store, and has a slot of 'k'" in finding.detail
    [message] = queued()
    assert message.headers["id"] == waits.id


def test_a_slot_of_a_task_of_another_key(task: Any, store: Store) -> None:
    """A task has one key."""
    task_id = store.run("k")
    store.redis.zadd(store(f"slots:{quote('other {}')}"), {task_id: -1})

    mended(task, ("slot-without-task", task_id), ("key-without-limit", "other {}"))

    assert task.control.stats("k").running == 1


@pytest.mark.parametrize("state", ["dispatched", "running"])
def test_a_task_without_its_slot(task: Any, store: Store, state: str) -> None:
    """More could run than may."""
    task_id = store.run("k") if state == "running" else task.delay("k").id
    store.redis.delete(store("slots:k"))

    mended(task, ("task-without-slot", task_id), ("idle-key", "k"))

    stats = task.control.stats("k")
    assert (stats.running, stats.dispatched) == (
        (1, 0) if state == "running" else (0, 1)
    )


def test_a_slot_without_a_lease(task: Any, store: Store) -> None:
    """It would never be freed."""
    task_id = store.run("k")
    store.redis.delete(store("leases"))

    mended(task, ("slot-without-lease", task_id))

    assert store.redis.zscore(store("leases"), task_id)


def test_a_lease_without_a_slot(task: Any, store: Store) -> None:
    """Of a task that nobody knows."""
    store.redis.zadd(store("leases"), {"ghost": 10**13})

    mended(task, ("lease-without-slot", "ghost"))

    assert not store.redis.exists(store("leases"))


def test_a_queue_with_a_task_that_is_gone(
    task: Any, store: Store, queued: Queued
) -> None:
    """Others go on before it and after it."""
    holder, waits = task.delay("k"), task.delay("k")
    store.redis.zadd(store("waiting:k"), {"ghost": 1})

    mended(task, ("entry-without-task", "ghost"))

    queued()
    holder.cancel()
    [message] = queued()
    assert message.headers["id"] == waits.id


def test_a_ghost_in_a_queue_keeps_nobody_waiting(
    task: Any, store: Store, queued: Queued
) -> None:
    """A freed slot goes to the first that can start."""
    holder, waits = task.delay("k"), task.delay("k")
    store.redis.zadd(store("waiting:k"), {"ghost": 1})
    queued()

    holder.cancel()

    [message] = queued()
    assert message.headers["id"] == waits.id


def test_a_task_that_is_in_no_queue(task: Any, store: Store, queued: Queued) -> None:
    """It would wait for ever."""
    holder, waits = task.delay("k"), task.delay("k")
    store.redis.delete(store("waiting:k"))

    mended(task, ("task-without-entry", waits.id))

    queued()
    holder.cancel()
    [message] = queued()
    assert message.headers["id"] == waits.id


def test_a_task_whose_message_is_gone(task: Any, store: Store) -> None:
    """It cannot start any more: it ends."""
    _, waits = task.delay("k"), task.delay("k")
    store.redis.hdel(store(f"task:{waits.id}"), "envelope", "body")

    found = {f.problem: f for f in task.control.check()}
    assert set(found) == {"message-gone", "bytes-drift"}
    task.control.repair()
    assert task.control.check() == []

    assert task.control.explain(waits.id).reason == "ended"
    assert task.control.stats("k").waiting == 0


def test_an_outbox_with_nothing_to_publish(task: Any, store: Store) -> None:
    """A sweep would look at it again and again."""
    task_id = store.run("k")
    store.redis.zadd(store("outbox"), {task_id: 10**13, "ghost": 10**13})

    mended(
        task, ("outbox-without-message", task_id), ("outbox-without-message", "ghost")
    )


def test_a_deadline_that_is_missing(task: Any, store: Store) -> None:
    """The task would not end in time."""
    result = task.apply_async(("k",), finish_timeout=60)
    store.redis.delete(store("deadlines"))

    mended(task, ("wrong-deadline", result.id))

    assert store.redis.zscore(store("deadlines"), result.id)


def test_a_deadline_of_nobody(task: Any, store: Store) -> None:
    """It is forgotten."""
    store.redis.zadd(store("deadlines"), {"ghost": 10**13})

    mended(task, ("wrong-deadline", "ghost"))


def test_a_conclusion_that_nobody_would_draw(task: Any, store: Store) -> None:
    """Errbacks and chords would never hear of the end."""
    result = task.delay("k")
    result.cancel()
    store.redis.delete(store("owed"))
    store.redis.zadd(store("owed"), {"ghost": 10**13})

    mended(task, ("wrong-debt", result.id), ("wrong-debt", "ghost"))

    assert store.redis.zscore(store("owed"), result.id)


def test_a_run_that_its_worker_would_not_renew(task: Any, store: Store) -> None:
    """It would be taken for lost while it runs."""
    task_id = store.run("k")
    store.redis.delete(store("worker:w"))

    mended(task, ("run-not-listed", task_id))

    assert store.scripts.renew("w", [task_id]) == []
    assert store.redis.hget(store("worker:w"), task_id) == "t1 1 k"


def test_a_key_without_a_limit(task: Any, store: Store, queued: Queued) -> None:
    """Nothing of it would start."""
    holder, waits = task.delay("k"), task.delay("k")
    store.redis.delete(store("limits"))

    mended(task, ("key-without-limit", "k"))

    queued()
    holder.cancel()
    assert [m.headers["id"] for m in queued()] == [waits.id]


def test_an_idle_key(task: Any, store: Store, keys: Any) -> None:
    """A limit of nothing is forgotten."""
    store.redis.hset(store("limits"), "k", "1")

    mended(task, ("idle-key", "k"))

    assert keys() == []


def test_a_stalled_key(task: Any, store: Store, queued: Queued) -> None:
    """Nobody would go on with what waits."""
    task.control.pause()
    waits = task.delay("k")
    store.redis.delete(store("overrides"))

    mended(task, ("stalled-key", "k"))

    assert [m.headers["id"] for m in queued()] == [waits.id]


@pytest.mark.parametrize("drift", [1000, -7])
def test_a_wrong_count_of_bytes(task: Any, store: Store, drift: int) -> None:
    """Calls would be refused too early, or too late."""
    for _ in range(3):
        task.delay("k")
    before = store.redis.get(store("waiting-bytes"))
    store.redis.incrby(store("waiting-bytes"), drift)

    [finding] = mended(task, ("bytes-drift", "echo"))

    assert f"{abs(drift)} bytes too {'high' if drift > 0 else 'low'}" in finding.detail
    assert store.redis.get(store("waiting-bytes")) == before


def test_what_nobody_publishes(
    app: Celery, task: Any, store: Store, queued: Queued
) -> None:
    """Who had freed the slot has died, and nobody sweeps: a sweep does it."""
    first, second = task.delay("k"), task.delay("k")
    store.scripts.withdraw(first.id, 1)
    queued()
    store.redis.zincrby(store("outbox"), -60_000, second.id)

    [finding] = task.control.check()

    assert (finding.problem, finding.subject) == ("not-published", second.id)
    assert finding.remedy == "celery bgtask sweep"
    store.sweep()
    assert task.control.check() == []
    assert len(queued()) == 1


def test_what_nobody_ends(task: Any, store: Store) -> None:
    """A lease ran out long ago: nobody sweeps."""
    store.run("k")
    task_id = task.delay("b").id
    store.redis.zadd(store("leases"), {task_id: 1})

    [finding] = task.control.check()

    assert (finding.problem, finding.subject) == ("not-swept", "echo")
    assert "1 tasks ran out of time" in finding.detail
    assert finding.remedy == "celery bgtask sweep --every 1"
    store.sweep()
    assert not [f for f in task.control.check() if f.problem == "not-swept"]


@pytest.mark.parametrize("where", ["queue", "nowhere"])
def test_a_message_that_is_lost(
    where: str, task: Any, store: Store, queued: Queued
) -> None:
    """It is looked for in its queue before anybody says so."""
    result = task.delay("k")
    store.redis.zincrby(store("slots:k"), -20_000, result.id)
    if where == "queue":
        assert task.control.check() == []
        return
    queued()

    [finding] = task.control.check()

    assert (finding.problem, finding.subject) == ("message-lost", result.id)
    assert finding.detail.startswith("probably its message is lost: it is dispatched")
    assert "That is a guess" in finding.detail
    assert finding.detail.endswith("publish it again: should both arrive, one starts")
    assert finding.remedy == f"celery bgtask redispatch {result.id}"
    assert task.control.redispatch(result.id)
    assert task.control.check() == []
    assert len(queued()) == 1


def test_a_lost_message_that_was_not_kept(
    declare: Any, app: Celery, redis: Redis, queued: Queued
) -> None:
    """It cannot be published again: its task can be ended."""
    task = declare("free", max_per_key=None)
    store = Store(app, task, redis)
    result = task.delay("k")
    redis.zincrby(store("slots:k"), -20_000, result.id)
    queued()

    [finding] = task.control.check()

    assert finding.remedy == f"celery bgtask cancel {result.id}"
    result.cancel()
    store.sweep()
    assert task.control.check() == []


def test_a_server_that_drops_keys(task: Any, store: Store, redis: Redis) -> None:
    """It may drop slots, and the command for it is named."""
    redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        [finding] = task.control.check()
    finally:
        redis.config_set("maxmemory-policy", "noeviction")

    assert finding.problem == "eviction"
    assert finding.remedy == "redis-cli CONFIG SET maxmemory-policy noeviction"
    assert task.control.check() == []


def test_an_offer_is_no_lost_message(
    declare: Any, app: Celery, redis: Redis, store: Store
) -> None:
    """However long nobody takes it, whoever has claimed it: no queue has it."""
    task = declare("offered", delivery="offer", max_per_key=None)
    offers = Store(app, task, redis)
    results = [task.delay("k") for _ in range(2)]
    offers.scripts.claim(results[0].id, "w")
    for result in results:
        redis.zincrby(offers("slots:k"), -20_000, result.id)

    assert task.control.check() == []


def test_an_offer_to_nobody(
    declare: Any, app: Celery, redis: Redis, store: Store
) -> None:
    """It is in no queue's offers, and no worker has claimed it."""
    task = declare("offered", delivery="offer", max_per_key=None)
    offers = Store(app, task, redis)
    result = task.delay("k")
    redis.delete(offers(f"offers:{app.conf.task_default_queue}"))

    mended(task, ("not-on-offer", result.id))

    assert offers.scripts.claim(result.id, "w") is not None


def test_every_problem_has_a_test() -> None:
    """The set of problems is closed."""
    text = Path(__file__).read_text(encoding="utf-8")

    assert [problem for problem in PROBLEMS if f'"{problem}"' not in text] == []
