"""A retry that cannot be published ends its task, whoever can say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import Reject
from celery.worker.request import Request
from celery.worker.state import task_ready
from redis import Redis

from celery_bgtask import StoreUnavailable, TaskLost
from tests.helpers import wait_until_drained


@pytest.fixture
def task(app: Celery, declare: Callable[..., Any]) -> Any:
    """A task that would come again, and could not be published."""
    app.conf.update(bgtask_lease=3.0, bgtask_sweep_interval=0.2)

    def come_again(k):
        # What Celery's retry() raises then.
        raise Reject(StoreUnavailable("redis://away", "as told"), requeue=False)

    return declare("again", come_again)


def test_it_ends_though_nobody_could_store_its_end(
    task: Any, worker: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's main process would, and the backend is away as well."""
    monkeypatch.setattr(Request, "on_failure", lambda self, *_a, **_k: task_ready(self))
    result = task.delay("k")

    with worker(), pytest.raises(TaskLost):
        result.get(timeout=60)
    wait_until_drained(redis)
