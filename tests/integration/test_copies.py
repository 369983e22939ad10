"""Of a message that the broker delivers twice only the first starts its attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Ignore, Reject
from kombu import Message
from redis import Redis

from tests.helpers import wait_until, wait_until_drained


def put_back(app: Celery, message: Message) -> None:
    """Let the broker have it again, as if it was never acknowledged."""
    with app.producer_or_acquire() as producer:
        producer.publish(
            message.body,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            routing_key=app.conf.task_default_queue,
            correlation_id=message.properties["correlation_id"],
            reply_to=message.properties["reply_to"],
        )


@pytest.mark.parametrize("end", [None, Ignore(), Reject("no", requeue=False)], ids=str)
def test_a_copy_that_comes_after_the_end_does_not_run(
    end: Any,
    app: Celery,
    declare: Callable[..., Any],
    queued: Callable[[], list[Message]],
    worker: Any,
    redis: Redis,
) -> None:
    """Also of a task of which Celery stores no result: it is remembered."""
    runs = []

    def note(k):
        runs.append(k)
        if end is not None:
            raise end

    task = declare("note", note, acks_late=True)
    task.delay("k")
    [message] = queued()
    put_back(app, message)
    with worker():
        wait_until(lambda: runs)
        wait_until_drained(redis)
        put_back(app, message)
        wait_until(lambda: not redis.llen(app.conf.task_default_queue))
    wait_until_drained(redis)

    assert runs == ["k"]
