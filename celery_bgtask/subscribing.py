"""A result is subscribed to by who waits for it, not by who submits the task.

Celery's Redis backend subscribes to the result of each call before it publishes the
call (Celery 5.5 to 5.7), and once more, if it has not, when somebody waits for it;
then it also looks whether the result is there. So the first subscription is of no
use to a call that nobody waits for, and costs it as much as our script does.
"""

from __future__ import annotations

from typing import Any

from celery.backends.base import Backend
from celery.backends.redis import RedisBackend


__all__ = ["Quiet", "subscribe_late"]


class Quiet:
    """Marks producers of calls for which the backend subscribes late."""

    __slots__ = ()


def subscribe_late(backend: Backend) -> None:
    """Have *backend* leave the calls of our producers to who waits for them."""
    if not isinstance(backend, RedisBackend) or "on_task_call" in vars(backend):
        return
    subscribe = backend.on_task_call

    def on_task_call(producer: Any, task_id: str) -> Any:
        return None if isinstance(producer, Quiet) else subscribe(producer, task_id)

    vars(backend)["on_task_call"] = on_task_call
