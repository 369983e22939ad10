"""An offered task that comes again: its attempts store what they have in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, states
from celery.backends.redis import RedisBackend
from redis import Redis

from celery_bgtask.keys import quote, scope_tag
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import wait_until, wait_until_drained
from tests.integration.acting import Acted


@pytest.fixture
def task(app: Celery, declare: Callable[..., Any]) -> Any:
    """An offered task that comes again at once, twice."""
    app.conf.bgtask_publish_grace = 0.2

    def come_again(self, k):
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return "done"

    return declare("again", come_again, delivery="offer", bind=True)


@pytest.fixture
def on_offer(app: Celery, redis: Redis, task: Any) -> Callable[[], list[str]]:
    """The ids of what workers may take."""
    tag = scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)
    name = f"{tag}:offers:{quote(app.conf.task_default_queue)}"
    return lambda: [str(task_id) for task_id in redis.zrange(name, 0, -1)]


def test_the_next_attempt_is_on_offer_when_this_one_has_said_so(
    task: Any, on_offer: Any, worker: Any, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next one's end could be replaced by this one's RETRY, and be lost."""
    stored: list[tuple[str, list[str]]] = []
    store: Any = RedisBackend._set_with_state  # type: ignore[attr-defined]

    def note(self: Any, key: Any, value: Any, state: str) -> Any:
        stored.append((state, on_offer()))
        return store(self, key, value, state)

    monkeypatch.setattr(RedisBackend, "_set_with_state", note)
    result = task.delay("k")
    with worker():
        assert result.get(timeout=30) == "done"
        wait_until_drained(redis)

    assert stored == [(states.RETRY, []), (states.RETRY, []), (states.SUCCESS, [])]


def test_who_dies_before_offering_the_next_attempt_is_replaced_by_a_sweep(
    app: Celery, task: Any, on_offer: Any, redis: Redis
) -> None:
    """When the grace is over, as with what is not published."""
    result = task.delay("k")
    run = Acted(task, result.id)
    scripts = run.scripts
    sweep(app, scripts, "me")  # the first one after a silence takes nobody for dead
    task.apply_async(("k",), task_id=result.id, retries=1)
    scripts.release(result.id, token=run.token, worker="w", attempt=1)
    assert not on_offer()

    def swept() -> bool:
        sweep(app, scripts, "me")
        return on_offer() == [result.id]

    wait_until(swept)
    end = Acted(task, result.id, attempt=2)
    end.end("done")
    wait_until_drained(redis)
