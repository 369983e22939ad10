"""Who waits for a result gets it, whatever becomes of the word of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as ResultTimeout
from redis import Redis

from celery_bgtask.results import result as module
from tests.helpers import PATIENCE, wait_until


def subscribers(redis: Redis, app: Celery, task_id: str) -> int:
    """How many listen for the result of a task."""
    backend: Any = app.backend
    counts: Any = redis.pubsub_numsub(backend.get_key_for_task(task_id))
    return int(counts[0][1])


def store(redis: Redis, app: Celery, task_id: str, value: Any, state: str) -> None:
    """Store a result without a word of it."""
    backend: Any = app.backend
    meta = backend._get_result_meta(
        result=backend.prepare_value(value) if state == "SUCCESS" else value,
        state=state,
        traceback=None,
        request=None,
    )
    redis.set(
        backend.get_key_for_task(task_id), backend.encode({**meta, "task_id": task_id})
    )


def test_only_who_waits_subscribes(
    declare: Callable[..., Any], app: Celery, redis: Redis
) -> None:
    """Not the call; and not any more who has it."""
    task = declare()
    result = task.delay("k")
    assert subscribers(redis, app, result.id) == 0
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(result.get(PATIENCE)))

    waiter.start()
    wait_until(lambda: subscribers(redis, app, result.id), that="it subscribes")
    app.backend.store_result(result.id, 7, "SUCCESS")
    waiter.join(PATIENCE)

    assert got == [7]
    wait_until(lambda: not subscribers(redis, app, result.id), that="it has left")


def test_a_result_whose_word_was_lost_is_found(
    declare: Callable[..., Any],
    app: Celery,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is looked for again and again, seldom; without a timeout, too."""
    monkeypatch.setattr(module, "LOOK_AGAIN", 0.3)
    result = declare().delay("k")
    got: list[Any] = []
    waiter = threading.Thread(target=lambda: got.append(result.get()), daemon=True)

    waiter.start()
    wait_until(lambda: subscribers(redis, app, result.id), that="it waits")
    store(redis, app, result.id, 7, "SUCCESS")
    waiter.join(PATIENCE)

    assert got == [7]


def test_an_error_of_the_task_that_is_a_timeout_is_raised_at_once(
    declare: Callable[..., Any], app: Celery
) -> None:
    """It is not taken for the end of the wait."""
    result = declare().delay("k")
    app.backend.store_result(result.id, ResultTimeout("of the task"), "FAILURE")

    with pytest.raises(ResultTimeout, match="of the task"):
        result.get()


def test_a_wait_ends_when_it_was_to_end(declare: Callable[..., Any]) -> None:
    """Looking again makes it no longer."""
    result = declare().delay("k")

    with pytest.raises(ResultTimeout, match="timed out"):
        result.get(timeout=0.2)
