"""A freed slot reaches the next task, on whatever line its giver dies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from kombu import Producer
from kombu.exceptions import OperationalError
from redis import Redis

from celery_bgtask import outbox
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.replies import Granted
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import PATIENCE, wait_until, wait_until_drained


Queued = Callable[[], list[Any]]


@pytest.fixture
def task(app: Celery, declare: Callable[..., Any]) -> Any:
    """A task whose calls wait; its time passes only where a test moves it."""
    app.conf.bgtask_publish_grace = 500
    return declare(when_full="wait")


@pytest.fixture
def scripts(app: Celery, task: Any) -> Scripts:
    """The scripts of its scope."""
    return extension_of(app).scripts(task.bgtask.scope)


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What its names begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


@pytest.fixture
def grace_passes(redis: Redis, tag: str) -> Callable[[], None]:
    """Moves what is in the outbox past its grace, and ends the turn of a sweep."""

    def grace_passes() -> None:
        names: Any = redis.zrange(f"{tag}:outbox", 0, -1)
        for name in names:
            redis.zincrby(f"{tag}:outbox", -600_000, name)
        redis.delete(f"{tag}:sweeping")

    return grace_passes


def hand_off(task: Any, scripts: Scripts) -> tuple[Any, list[Granted]]:
    """Free the slot of a first call; return the second's result and the grant."""
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    granted = scripts.withdraw(first.id, 1)
    assert [one.task_id for one in granted] == [second.id]
    return second, granted


def run_all(task: Any, worker: Any, *results: Any) -> list[Any]:
    """Let a worker run what is queued."""
    with worker():
        values = [result.get(timeout=PATIENCE) for result in results]
        wait_until(
            lambda: not task.control.stats("k").dispatched, that="the key is idle"
        )
    return values


def test_who_dies_before_publishing_is_replaced_by_a_sweep(
    app: Celery, task: Any, scripts: Scripts, queued: Queued, grace_passes: Any
) -> None:
    """After the grace one sweep publishes; the next ones do not."""
    second, _ = hand_off(task, scripts)
    queued()

    sweep(app, scripts, "w")
    assert queued() == [], "the giver has time to publish"

    grace_passes()
    sweep(app, scripts, "w")
    assert [message.headers["id"] for message in queued()] == [second.id]

    grace_passes()
    sweep(app, scripts, "w")
    assert queued() == [], "it was confirmed"
    outbox.publish(app, scripts, scripts.withdraw(second.id, 1))


def test_who_dies_before_confirming_makes_a_copy_that_does_not_run(
    app: Celery,
    task: Any,
    scripts: Scripts,
    redis: Redis,
    tag: str,
    grace_passes: Any,
    worker: Any,
) -> None:
    """Two messages, one run; a tombstone remembers it for the second."""
    ran = []
    task.run = lambda k, value: ran.append(value)
    second, [granted] = hand_off(task, scripts)
    granted.message.publish(app, attempt=granted.attempt)  # and dies

    grace_passes()
    sweep(app, scripts, "w")

    run_all(task, worker, second)
    queue = app.conf.task_default_queue
    wait_until(lambda: redis.llen(queue) == 0, that="all messages were taken")
    assert ran.count(2) == 1
    assert redis.get(f"{tag}:tombstone:{second.id}") == "1"
    assert 0 < redis.ttl(f"{tag}:tombstone:{second.id}") <= 86_400
    wait_until_drained(redis)


def test_a_published_and_confirmed_task_is_not_published_again(
    app: Celery, task: Any, scripts: Scripts, queued: Queued, grace_passes: Any
) -> None:
    """A confirmed message may wait in the broker for as long as it likes."""
    second, granted = hand_off(task, scripts)
    queued()

    outbox.publish(app, scripts, granted)
    grace_passes()
    sweep(app, scripts, "w")

    assert len(queued()) == 1
    scripts.withdraw(second.id, 1)


def test_a_broker_that_is_away_leaves_it_to_a_sweep(
    app: Celery,
    task: Any,
    scripts: Scripts,
    queued: Queued,
    grace_passes: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The releaser goes on, with a warning; nothing is lost."""
    second, granted = hand_off(task, scripts)
    queued()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "publish", refuse)
        outbox.publish(app, scripts, granted)
    said = f"Task {second.id} has got its slot but could not be published"
    assert said in caplog.text

    grace_passes()
    sweep(app, scripts, "w")
    assert [message.headers["id"] for message in queued()] == [second.id]
    scripts.withdraw(second.id, 1)


def test_a_started_task_is_not_in_the_outbox(
    task: Any, scripts: Scripts, redis: Redis, tag: str, app: Celery, worker: Any
) -> None:
    """Whoever starts it settles the question whether it was published."""
    second, [granted] = hand_off(task, scripts)
    granted.message.publish(app, attempt=granted.attempt)

    assert run_all(task, worker, second) == [2]

    assert redis.zcard(f"{tag}:outbox") == 0
    wait_until_drained(redis)


def test_a_slot_whose_message_is_lost_is_free_after_the_dispatch_lease(
    app: Celery, task: Any, scripts: Scripts, redis: Redis, tag: str, queued: Queued
) -> None:
    """The slot is handed on; the task stays valid, should its message come."""
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    [message] = queued()  # lost
    sweep(app, scripts, "w")
    redis.zincrby(f"{tag}:leases", -301_000, first.id)
    redis.delete(f"{tag}:sweeping")

    sweep(app, scripts, "w")

    assert [one.headers["id"] for one in queued()] == [second.id]
    assert redis.hget(f"{tag}:task:{first.id}", "state") == "lapsed"
    assert redis.ttl(f"{tag}:task:{first.id}") > 0
    assert message.headers["id"] == first.id
    scripts.withdraw(second.id, 1)


def test_a_full_key_frees_its_own_lapsed_slots(
    task: Any, redis: Redis, tag: str, queued: Queued, scripts: Scripts
) -> None:
    """``delay()`` needs no sweep to find a slot whose lease has run out."""
    first = task.apply_async(("k",), when_full="reject")
    redis.zincrby(f"{tag}:leases", -301_000, first.id)

    second = task.apply_async(("k",), when_full="reject")

    assert task.control.stats("k").dispatched == 1
    assert [message.headers["id"] for message in queued()] == [first.id, second.id]
    scripts.withdraw(second.id, 1)
