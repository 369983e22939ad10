"""Celery's custom state PROGRESS, for those who know Celery only.

celery-progress, Flower and ``AsyncResult.info`` read it. It never replaces a final
state: a task may be cancelled at any time, by a process that stores its end.
"""

from __future__ import annotations

from typing import Any

from celery import Task, states
from celery.backends.base import BaseKeyValueStoreBackend
from celery.backends.redis import RedisBackend
from redis.client import Pipeline


__all__ = ["PROGRESS", "can_mirror", "mirror"]

#: The custom state's name, as celery-progress and the Celery docs have it.
PROGRESS = "PROGRESS"


def can_mirror(task: Task[Any, Any], request: Any) -> bool:
    """Tell whether the state of the task that *request* runs may be mirrored.

    In a database each report would be a transaction.
    """
    ignored = request.ignore_result
    if task.ignore_result if ignored is None else ignored:
        return False
    return isinstance(task.backend, BaseKeyValueStoreBackend)


def mirror(backend: Any, request: Any, meta: dict[str, Any]) -> None:
    """Store *meta* as the state of the task, unless it has a final one."""
    if isinstance(backend, RedisBackend):
        mirror_in_redis(backend, request, meta)
    elif backend.get_state(request.id) not in states.READY_STATES:
        backend.store_result(request.id, meta, PROGRESS, request=request)


def mirror_in_redis(backend: Any, request: Any, meta: dict[str, Any]) -> None:
    """Store it as Celery's Redis backend does (5.5 to 5.7), in one transaction.

    If the state changes meanwhile, redis-py begins again and sees the new one.
    """
    key = backend.get_key_for_task(request.id)
    stored = backend._get_result_meta(  # noqa: SLF001
        result=meta, state=PROGRESS, traceback=None, request=request
    )
    value = backend.encode({**stored, "task_id": request.id})

    def store(pipe: Pipeline) -> None:
        known = pipe.get(key)
        final = known and backend.decode(known)["status"] in states.READY_STATES
        pipe.multi()
        if final:
            return
        pipe.set(key, value, ex=backend.expires or None)
        pipe.publish(key, value)

    backend.client.transaction(store, key)
