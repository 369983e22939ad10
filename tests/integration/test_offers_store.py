"""What the store does with offers: who is told, who has said no, when one ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_bgtask.events import Announcement, decode_announcement
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.scripts import Scripts


QUEUE = "somewhere"

#: Long enough for a worker that does nothing meanwhile.
LEASE = 600.0


@pytest.fixture
def task(app: Celery, declare: Callable[..., Any]) -> Any:
    """An offered task, of which no worker runs."""
    app.conf.task_default_queue = QUEUE
    return declare(delivery="offer", max_per_key=None)


@pytest.fixture
def scripts(app: Celery, task: Any) -> Scripts:
    """The scripts of its scope."""
    return extension_of(app).scripts(task.bgtask.scope)


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What its names begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


@pytest.fixture(autouse=True)
def _nothing_is_owed(app: Celery, redis: Redis) -> Iterator[None]:
    """What a test leaves is forgotten: no worker concludes it."""
    yield
    for name in redis.scan_iter("{" + app.conf.bgtask_key_prefix + "*"):
        redis.delete(name)


@pytest.fixture
def heard(redis: Redis, scripts: Scripts) -> Iterator[Callable[[], Announcement]]:
    """Returns the next announcement."""
    with redis.pubsub(ignore_subscribe_messages=True) as channel:
        channel.subscribe(scripts.available_channel)
        channel.get_message(timeout=20)

        def heard() -> Announcement:
            message: Any = channel.get_message(timeout=20)
            data = message["data"]
            return decode_announcement(data.encode() if isinstance(data, str) else data)

        yield heard


@pytest.fixture
def sweep(redis: Redis, scripts: Scripts, tag: str) -> Callable[[], Any]:
    """Sweeps, whoever did so before, and not after a silence."""

    def sweep() -> Any:
        for _ in range(2):
            redis.delete(f"{tag}:sweeping")
            swept = scripts.sweep("sweeper")
        return swept

    return sweep


def enlist(scripts: Scripts, *workers: str, queue: str = QUEUE) -> None:
    """Have workers take the offers of a queue."""
    for worker in workers:
        scripts.enlist(f"{worker}@host", LEASE, taker=worker, queues=[queue])


def leave(scripts: Scripts, worker: str) -> None:
    """Have a worker leave in good order."""
    scripts.leave(f"{worker}@host", taker=worker, queues=[QUEUE])


def on_offer(scripts: Scripts, worker: str) -> list[str]:
    """What a worker finds on offer."""
    return [one.task_id for one in scripts.offers(worker, 10, [QUEUE])]


def start(scripts: Scripts, task_id: str, worker: str, attempt: int = 1) -> str:
    """Claim and start a task; return what the store says."""
    offer = scripts.claim(task_id, worker)
    assert offer is not None
    assert offer.attempt == attempt
    return scripts.accept(
        task_id, attempt, "k", limit=-1, token=f"t{attempt}", worker=worker,
        fresh=True, rank=0, retries=0,
    ).status  # fmt: skip


def verdict(scripts: Scripts, task_id: str) -> str:
    """How a task has ended, "" if it has not."""
    return scripts.explain(task_id).verdict


def test_what_the_last_but_one_ignores_is_left_to_the_last(
    task: Any, scripts: Scripts
) -> None:
    """It ends when both do not want it, and not before."""
    enlist(scripts, "a", "b")
    result = task.delay("k")

    scripts.ignore(result.id, "a")
    assert not verdict(scripts, result.id)
    assert (on_offer(scripts, "a"), on_offer(scripts, "b")) == ([], [result.id])

    scripts.ignore(result.id, "b")
    assert verdict(scripts, result.id).startswith("unaccepted worker")


def test_an_offer_ends_when_the_last_that_could_want_it_leaves(
    task: Any, scripts: Scripts
) -> None:
    """At once, by the script that says so; what nobody has ignored stays."""
    enlist(scripts, "a", "b", "c")
    ignored, other = task.delay("k"), task.delay("k")
    for worker in ("a", "b"):
        scripts.ignore(ignored.id, worker)

    leave(scripts, "b")
    assert not verdict(scripts, ignored.id)
    leave(scripts, "c")

    assert verdict(scripts, ignored.id).startswith("unaccepted worker")
    assert not verdict(scripts, other.id)


def test_an_offer_ends_when_the_last_that_could_want_it_dies(
    task: Any, scripts: Scripts, redis: Redis, tag: str, sweep: Callable[[], Any]
) -> None:
    """With the first sweep after its lease has run out, while another one lives."""
    enlist(scripts, "a", "b")
    result = task.delay("k")
    scripts.ignore(result.id, "a")
    redis.zadd(f"{tag}:unwanted", {result.id: 1})
    sweep()
    assert not verdict(scripts, result.id)

    redis.zadd(f"{tag}:takers:{QUEUE}", {"b": 1})
    redis.zadd(f"{tag}:unwanted", {result.id: 1})
    sweep()

    assert verdict(scripts, result.id).startswith("unaccepted worker")


def test_an_offer_without_any_worker_waits_for_one(
    task: Any, scripts: Scripts, redis: Redis, tag: str, sweep: Callable[[], Any]
) -> None:
    """Who has ignored it has gone, too: the next one may want it."""
    enlist(scripts, "a", "b")
    result = task.delay("k")
    scripts.ignore(result.id, "a")
    leave(scripts, "a")
    leave(scripts, "b")
    redis.zadd(f"{tag}:unwanted", {result.id: 1})
    sweep()

    assert not verdict(scripts, result.id)
    enlist(scripts, "c")
    assert on_offer(scripts, "c") == [result.id]


def test_what_starts_is_looked_after_no_more(
    task: Any, scripts: Scripts, redis: Redis, tag: str
) -> None:
    """No name is left of who has ignored it."""
    enlist(scripts, "a", "b")
    result = task.delay("k")
    scripts.ignore(result.id, "a")

    assert start(scripts, result.id, "b") == "started"

    assert redis.exists(f"{tag}:unwanted", f"{tag}:ignored:{result.id}") == 0


def test_a_worker_that_cannot_start_it_does_not_claim_it_again(
    task: Any, scripts: Scripts, heard: Callable[[], Announcement]
) -> None:
    """It says so in the step that gives the offer back; alone, it ends it."""
    enlist(scripts, "a", "b")
    result = task.delay("k")
    first = heard()
    assert scripts.claim(result.id, "a") is not None
    scripts.unclaim(result.id, "a", ignored=True)

    assert heard() == first
    assert scripts.claim(result.id, "a") is None
    assert scripts.claim(result.id, "b") is not None
    scripts.unclaim(result.id, "b", ignored=True)
    assert verdict(scripts, result.id).startswith("unaccepted worker")


def test_each_time_that_it_is_available_is_told_apart(
    task: Any, scripts: Scripts, heard: Callable[[], Announcement]
) -> None:
    """A claim that was given back is the same; a requeued run and a rerun are not."""
    enlist(scripts, "a", "b")
    result = task.delay("k")
    rounds = [heard().round]
    scripts.claim(result.id, "a")
    scripts.unclaim(result.id, "a")
    assert heard().round == rounds[0]
    [found] = scripts.offers("b", 10, [QUEUE])
    assert found.round == rounds[0]

    scripts.ignore(result.id, "b")
    start(scripts, result.id, "a")
    scripts.release(result.id, token="t1", worker="a", attempt=1, requeue=True)
    rounds.append(heard().round)
    assert on_offer(scripts, "b") == [result.id]

    assert task.control.redispatch(result.id)
    rounds.append(heard().round)
    assert [one.round for one in scripts.offers("b", 10, [QUEUE])] == rounds[-1:]

    assert len(set(rounds)) >= 2
    assert rounds[0] == "1"
    assert all(one.startswith("1-") for one in rounds[1:])


def test_redispatch_asks_all_workers_again(
    task: Any, scripts: Scripts, heard: Callable[[], Announcement]
) -> None:
    """Those that have ignored it, too; it keeps its place."""
    enlist(scripts, "a", "b")
    first, second = task.delay("k"), task.delay("k")
    heard(), heard()
    scripts.ignore(first.id, "a")
    assert on_offer(scripts, "a") == [second.id]

    assert task.control.redispatch(first.id)

    again = heard()
    assert (again.task_id, again.offered) == (first.id, True)
    assert on_offer(scripts, "a") == [first.id, second.id]


def test_redispatch_leaves_a_claimer_alone(
    task: Any, scripts: Scripts, heard: Callable[[], Announcement]
) -> None:
    """It is about to start the task."""
    enlist(scripts, "a")
    result = task.delay("k")
    heard()
    scripts.claim(result.id, "a")

    assert task.control.redispatch(result.id)

    assert on_offer(scripts, "b") == []
    assert task.control.explain(result.id).reason == "claimed"


def test_what_is_gone_is_taken_out_of_the_offers(
    task: Any, scripts: Scripts, redis: Redis, tag: str
) -> None:
    """A look at them leaves nothing behind that nobody could claim."""
    redis.zadd(f"{tag}:offers:{QUEUE}", {"gone": 1})

    assert on_offer(scripts, "a") == []

    assert redis.exists(f"{tag}:offers:{QUEUE}") == 0
