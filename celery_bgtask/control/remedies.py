"""What an operator does with tasks that do not go on by themselves."""

from __future__ import annotations

from typing import Any

from celery import Task
from celery.utils.log import get_logger

from .. import outbox
from ..exceptions import TaskNotAvailable
from ..extension import extension_of
from ..options import options_of
from ..scripts import Scripts
from ..scripts.replies import Granted


__all__ = ["Remedies"]

logger = get_logger(__name__)

#: How tasks end that are purged, and runs whose slot was forced free.
PURGED, RELEASED = "cancelled purged", "cancelled released"

#: What of a task is away from the store: its message is with the broker.
AWAY = frozenset({"dispatched", "lapsed", "delayed"})


class Remedies:
    """What can be done about the tasks of one scope.

    All methods raise :exc:`.StoreUnavailable` if the store does not answer.

    Args:
        task: A task of the scope.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task

    def set_limit(self, key: str, limit: int | None) -> None:
        """Set the limit of *key*, -1 for none, ``None`` for the declared one."""
        self._scripts.set_limit(key, limit, self._publish)

    def resume(self) -> bool:
        """End a pause of the scope; tell whether there was one."""
        return self._scripts.resume(self._publish)

    def unblock(self, key: str) -> bool:
        """End the block of *key*; tell whether there was one."""
        return self._scripts.unblock(key, self._publish)

    def release(self, key: str, task_id: str) -> bool:
        """Force the slot free that *task_id* holds of *key*."""
        was, granted = self._scripts.free(key, task_id, RELEASED)
        self._publish(granted)
        if was == "running":
            self._end(task_id, RELEASED)
        return bool(was)

    def redispatch(self, task_id: str) -> bool:
        """Publish a task again that is with the broker.

        Raises:
            TaskNotAvailable: If there is no such task, or no message of it.
        """
        key = self._scripts.phase(task_id).key
        limit = options_of(self._task).limit_of(key)
        was, granted = self._scripts.redispatch(task_id, limit)
        self._publish(granted)
        if was == "unknown":
            raise TaskNotAvailable(task_id, "the store does not know it")
        if was == "empty":
            raise TaskNotAvailable(
                task_id,
                "the store has no message of it: bgtask_keep_dispatched is off, its "
                "key has no limit, or it was sent without a submission",
            )
        return was in AWAY

    def purge(self, key: str) -> int:
        """End all that waits for *key*; return how many tasks that were."""
        count = 0
        while True:
            purged, granted = self._scripts.purge(key, PURGED)
            self._publish(granted)
            for task_id in purged:
                self._end(task_id, PURGED)
            count += len(purged)
            if not purged:
                return count

    def drain(self) -> int:
        """Publish all that waits; return how many tasks that were."""
        return self._scripts.drain(self._publish)

    @property
    def _scripts(self) -> Scripts:
        return extension_of(self._task.app).scripts(options_of(self._task).scope)

    def _publish(self, granted: list[Granted]) -> None:
        outbox.publish(self._task.app, self._scripts, granted)

    def _end(self, task_id: str, verdict: str) -> None:
        """Store the end of a task, for who waits; a worker concludes the rest."""
        result: Any = self._task.AsyncResult(task_id)
        try:
            result._store(self._scripts, verdict)  # noqa: SLF001 - a friend
        except Exception:
            logger.warning("The end of %s is not stored yet.", task_id, exc_info=True)
