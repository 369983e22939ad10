"""``explain``: a test for every reason why a task is not running, or is."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_bgtask import Explanation
from celery_bgtask.control.explaining import REASONS
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import wait_until, wait_until_drained


@pytest.fixture
def task(declare: Callable[..., Any]) -> Any:
    """A task with one slot per key, whose calls wait."""
    return declare(when_full="wait")


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What the names of its scope begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Holds a body until the test lets it go."""
    gate = threading.Event()
    yield gate
    gate.set()


@pytest.fixture(autouse=True)
def _nothing_is_owed(app: Celery, redis: Redis) -> Iterator[None]:
    """What a test leaves is ended."""
    yield
    for name in redis.scan_iter("{" + app.conf.bgtask_key_prefix + "*"):
        redis.delete(name)


def explained(task: Any, result: Any, reason: str, sentence: str) -> Explanation:
    """Explain a call, and check what is said."""
    found: Explanation = task.control.explain(result.id)
    assert found.reason == reason, found
    assert sentence in found.sentence, found.sentence
    assert reason in REASONS
    assert found.sentence[0].isupper()
    assert found.sentence.endswith(".")
    return found


def test_a_full_key(task: Any) -> None:
    """The next one is told who has the slots, and since when."""
    holder, waits = task.delay("k"), task.delay("k")

    found = explained(task, waits, "key-full", "the only slot of 'k' is taken")

    assert (found.key, found.state, found.position, found.waiting) == (
        "k", "waiting", 1, 1,
    )  # fmt: skip
    assert (found.limit, found.held, found.worker) == (1, 1, "")
    [held] = found.holders
    assert (held.task_id, held.state, held.worker) == (holder.id, "dispatched", "")
    assert held.since <= (found.waiting_since or 0) <= found.at
    assert (found.task, found.scope, found.attempt) == ("echo", "echo", 1)


def test_others_wait_before_it(task: Any) -> None:
    """With its place among them."""
    for _ in range(3):
        task.delay("k")

    found = explained(task, task.delay("k"), "behind-others", "and 2 wait before it")

    assert (found.position, found.waiting) == (3, 3)


def test_more_hold_the_key_than_may(task: Any) -> None:
    """After its limit was lowered, the sentence says both numbers."""
    task.control.set_limit("k", 3)
    for _ in range(3):
        task.delay("k")
    task.control.set_limit("k", 2)

    found = explained(
        task, task.delay("k"), "key-full", "3 tasks hold slots of 'k', which has 2"
    )

    assert len(found.holders) == 3


def test_a_key_with_no_slots(task: Any) -> None:
    """It says what gives it some."""
    task.control.set_limit("k", 0)

    found = explained(task, task.delay("k"), "limit-zero", "celery bgtask limit")

    assert found.limit == 0


def test_a_paused_task(task: Any) -> None:
    """Also for what is with the broker: it will be parked."""
    sent = task.delay("k")
    task.control.pause()

    explained(task, task.delay("k"), "paused", "celery bgtask resume")
    explained(task, sent, "paused", "A worker that gets its message will park it")


def test_a_blocked_key(task: Any, redis: Redis, tag: str) -> None:
    """With the reason and the time."""
    task.delay("k")
    waits = task.delay("k")
    task.control.block("k", "poison", seconds=600)

    found = explained(task, waits, "blocked", "blocked for another 10 min (poison)")

    assert found.blocked_reason == "poison"
    assert 590 < (found.blocked_until or 0) - found.at <= 600
    task.control.block("k", "poison")
    found = explained(task, waits, "blocked", "blocked until somebody unblocks it")
    assert found.blocked_until is None


def test_a_free_slot(task: Any, redis: Redis, tag: str) -> None:
    """Of a block that has ended: a sweep goes on."""
    task.control.pause()
    waits = task.delay("k")
    task.control.block("k", seconds=600)
    task.control.resume()
    redis.zincrby(f"{tag}:blocked", -601_000, "k")

    explained(task, waits, "next-sweep", "a slot of 'k' is free")


def test_a_message_that_is_not_published(
    app: Celery, task: Any, redis: Redis, tag: str
) -> None:
    """Whoever freed the slot has died before."""
    first, second = task.delay("k"), task.delay("k")
    extension_of(app).scripts(task.bgtask.scope).withdraw(first.id, 1)

    found = explained(task, second, "publishing", "a sweep does it in")

    assert found.state == "dispatched"


def test_a_message_with_the_broker(task: Any) -> None:
    """It has its slot, for a time."""
    found = explained(task, task.delay("k"), "with-broker", "loses the slot in 5 min")

    assert 290 < (found.dispatch_lease_until or 0) - found.at <= 300
    assert found.started is None


def test_deadlines_are_told(task: Any) -> None:
    """Until when it must have started and ended."""
    result = task.apply_async(("k",), accept_timeout=60, finish_timeout=90, expires=30)

    found = explained(task, result, "with-broker", "")

    assert 59 < (found.start_by or 0) - found.at <= 60
    assert 89 < (found.finish_by or 0) - found.at <= 90
    assert 29 < (found.expires_at or 0) - found.at <= 30


def test_a_countdown(task: Any) -> None:
    """It takes no slot before."""
    found = explained(task, task.apply_async(("k",), countdown=60), "delayed", "ETA")

    assert (found.held, found.dispatch_lease_until) == (0, None)


def test_a_lapsed_task(app: Celery, task: Any, redis: Redis, tag: str) -> None:
    """No worker has started it for longer than its lease."""
    result = task.delay("k")
    scripts = extension_of(app).scripts(task.bgtask.scope)
    scripts.sweep("me")
    redis.delete(f"{tag}:sweeping")
    redis.zadd(f"{tag}:leases", {result.id: 1})
    sweep(app, scripts, "me")

    explained(task, result, "lapsed", "celery bgtask redispatch")


@pytest.mark.parametrize("pool", ["threads"])
def test_a_run(
    pool: str, declare: Any, worker: Any, gate: threading.Event, redis: Redis
) -> None:
    """Where, since when; then that it has ended, by its result."""

    def body(k):
        assert gate.wait(20)

    task = declare("held", body)
    with worker(pool, concurrency=2):
        result = task.delay("k")
        wait_until(lambda: task.control.stats("k").running == 1, that="it runs")
        found = explained(task, result, "running", "It runs on ")
        assert found.worker
        assert found.at - 10 < (found.started or 0) <= found.at
        [holder] = found.holders
        assert (holder.state, holder.worker) == ("running", found.worker)

        result.cancel("enough", terminate=True)
        found = explained(task, result, "stopping", "was cancelled: enough")
        assert "its body still runs on" in found.sentence
        gate.set()
        wait_until_drained(redis)
    explained(task, result, "ended", "It has ended")


def test_an_end_that_is_not_concluded(task: Any) -> None:
    """What follows from it is a worker's to do."""
    result = task.delay("k")
    result.cancel("enough")

    found = explained(task, result, "ended", "was cancelled: enough")

    assert found.state == "decided"


def test_an_end_of_which_only_the_result_is_left(app: Celery, task: Any) -> None:
    """The backend knows."""
    app.backend.store_result("gone", 7, "SUCCESS")

    explained(task, app.AsyncResult("gone"), "ended", "It has ended")


def test_an_id_that_nobody_knows(task: Any, app: Celery) -> None:
    """It says what that may mean."""
    found = explained(task, app.AsyncResult("nobody"), "unknown", "does not know it")

    assert (found.key, found.state, found.holders) == (None, "", ())


@pytest.fixture
def offered(app: Celery, declare: Callable[..., Any]) -> Any:
    """A task that is offered to the workers of a queue."""
    app.conf.task_default_queue = "somewhere"
    return declare("offered", delivery="offer", when_full="wait")


def test_an_offer(app: Celery, offered: Any) -> None:
    """How many workers were told, how many do not want it, and until when."""
    scripts = extension_of(app).scripts(offered.bgtask.scope)
    result = offered.delay("k")
    explained(offered, result, "offered", "no worker takes offers from queue 'some")

    for name in ("a", "b", "c"):
        queues = ["elsewhere" if name == "c" else "somewhere"]
        scripts.enlist(f"{name}@host", 60, taker=name, queues=queues)
    scripts.ignore(result.id, "b")

    found = explained(
        offered, result, "offered",
        "2 workers were told, 1 ignored it; nobody has claimed it. It ends in",
    )  # fmt: skip
    assert (found.state, found.dispatch_lease_until) == ("dispatched", None)


def test_an_offer_that_is_claimed(app: Celery, offered: Any) -> None:
    """By whom; it is on offer again unless that one starts it."""
    scripts = extension_of(app).scripts(offered.bgtask.scope)
    result = offered.delay("k")
    scripts.claim(result.id, "w%40host/1")

    explained(offered, result, "claimed", "Worker w@host/1 has claimed it")


def test_an_offer_of_a_paused_task(offered: Any) -> None:
    """Nobody may claim it."""
    result = offered.delay("k")
    offered.control.pause()

    explained(offered, result, "paused", "It is on offer, and no worker may claim it")


def test_an_offer_that_was_drained(offered: Any) -> None:
    """It went to the broker, for workers that know nothing of offers."""
    offered.delay("k")
    waits = offered.delay("k")
    offered.control.drain()

    explained(offered, waits, "with-broker", "its message is with the broker")


def test_every_reason_has_a_test() -> None:
    """The set of reasons is closed."""
    text = Path(__file__).read_text(encoding="utf-8")

    assert [reason for reason in REASONS if f'"{reason}"' not in text] == []


def test_a_thousand_holders_are_counted_and_some_are_named(declare: Any) -> None:
    """Whoever reads it at night does not want all of them."""
    task = declare(max_per_key=150, when_full="wait")
    for _ in range(150):
        task.delay("k")

    found = explained(
        task, task.delay("k"), "key-full", "all 150 slots of 'k' are taken"
    )

    assert (len(found.holders), found.held) == (100, 150)


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        (1, "the only slot of 'k' is taken, and it is the next"),
        (2, "both slots of 'k' are taken, and it is the next"),
        (3, "all 3 slots of 'k' are taken, and it is the next"),
    ],
)
def test_slots_are_counted_as_people_do(
    declare: Any, slots: int, sentence: str
) -> None:
    """One, two, many; and more than there are, after the limit was lowered."""
    task = declare(max_per_key=slots, when_full="wait")
    for _ in range(slots):
        task.delay("k")
    waiting = task.delay("k")

    explained(task, waiting, "key-full", sentence)

    task.control.set_limit("k", 5)
    for _ in range(5):
        task.delay("k")
    task.control.set_limit("k", slots)
    last = task.delay("k")
    explained(
        task, last, "behind-others", f"5 tasks hold slots of 'k', which has {slots} now"
    )


def test_who_holds_a_slot_is_told_with_what_is_left_of_its_lease(task: Any) -> None:
    """Of a key, and of the key of a task."""
    holder, waiting = task.delay("k"), task.delay("k")

    (found,) = task.control.holders("k")

    assert (found.task_id, found.state, found.worker) == (holder.id, "dispatched", "")
    lease = extension_of(task.app).settings.dispatch_lease
    assert found.lease_until == pytest.approx(found.since + lease, abs=0.1)
    assert task.control.explain(waiting.id).holders == (found,)
    assert task.control.holders("another") == []
