"""See and steer a task's keys at run time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from celery import Task

from ..extension import extension_of
from ..options import Options, options_of
from ..results.result import BgResult, Cancellation
from ..scripts import Scripts
from ..taskkey import WHOLE_TASK, key_text
from . import blocking
from .check import check, repair
from .explaining import explain, holder_of, stats_of
from .remedies import Remedies
from .views import Block, Explanation, Finding, Holder, KeyStats


__all__ = ["Control"]


class Control:
    """The operator's view of one task, from any process.

    What is said of a key holds for all tasks of the scope. Every method is one
    step of the store at a time, may be repeated, and raises
    :exc:`.StoreUnavailable` if the store does not answer and
    :exc:`.MissingTaskKey` if what it is given cannot be a key. A task without
    keys has one, ``None``.

    Args:
        task: The task.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task
        self._remedies = Remedies(task)

    def stats(self, key: object = None) -> KeyStats:
        """Count what runs and waits of *key*."""
        return stats_of(self._scripts.stats(self._key(key)), self._options)

    def keys(self, page: int = 100) -> Iterator[KeyStats]:
        """Yield every key that is in use, blocked or has a limit of its own.

        Each comes once; *page* of them are read at a time.
        """
        for row in self._scripts.all_keys(page):
            yield stats_of(row, self._options)

    def set_limit(self, key: object, limit: int | None) -> KeyStats:
        """Give *key* another limit from now on, until :meth:`reset_limit`.

        0 pauses it, ``None`` or -1 is no limit. A lower one kills nothing: slots
        that become free stay so until the count fits. A higher one starts what
        waits at once.

        Raises:
            ValueError: If *limit* is anything else.
        """
        self._remedies.set_limit(self._key(key), checked_limit(limit))
        return self.stats(key)

    def reset_limit(self, key: object) -> KeyStats:
        """Give *key* the limit again that the task declares."""
        self._remedies.set_limit(self._key(key), None)
        return self.stats(key)

    def holders(self, key: object = None) -> list[Holder]:
        """Return who holds the slots of *key*, at most 100 of them."""
        return [holder_of(row) for row in self._scripts.holders(self._key(key))[1]]

    def pause(self) -> bool:
        """Start nothing more of any key, of all tasks of the scope; what runs goes on.

        What is submitted waits, or is refused if the task rejects.

        Returns:
            Whether that is new: ``False`` if they were paused already.
        """
        return self._scripts.pause()

    def resume(self) -> bool:
        """End a pause: what waits goes on at once. Tell whether there was one."""
        return self._remedies.resume()

    def block(
        self, key: object, reason: str = "", seconds: float | None = None
    ) -> bool:
        """Refuse *key* from now on: submissions raise :exc:`.KeyBlocked`.

        What waits or arrives stays parked, what runs goes on. A key that is
        blocked gets the new reason and time.

        Args:
            key: The key.
            reason: Why, for those who are refused.
            seconds: For how long; ``None``: until :meth:`unblock`.

        Returns:
            Whether it was not blocked before.

        Raises:
            ValueError: If *seconds* is no time above 0.
        """
        return blocking.block(self._task, self._key(key), reason, seconds)

    def unblock(self, key: object) -> bool:
        """End the block of *key*; what waits goes on. Tell whether there was one."""
        return self._remedies.unblock(self._key(key))

    def blocked(self) -> Iterator[Block]:
        """Yield all keys that are blocked."""
        return blocking.blocks(self._task)

    def block_log(self, key: object) -> list[Block]:
        """Return the latest blocks of *key*, newest first, as ``bgtask_log_blocks``."""
        return blocking.block_log(self._task, self._key(key))

    def report_bad_task(self, key: object, reason: str = "") -> bool:
        """Count a strike against *key*; tell whether it is blocked now.

        More than ``block_threshold`` of them within ``block_interval`` seconds
        block it for ``block_for`` seconds. *reason* is told to who is refused.
        """
        return blocking.report(self._task, self._key(key), reason)

    def cancel(
        self, task_id: str, reason: str | None = None, terminate: bool = False
    ) -> Cancellation:
        """End the call *task_id*; see :meth:`.BgResult.cancel`.

        Args:
            task_id: The call.
            reason: Why, for who waits for the result.
            terminate: Whether a body that runs is stopped as well.
        """
        result = cast("BgResult", self._task.AsyncResult(task_id))
        return result.cancel(reason, terminate)

    def release(self, key: object, task_id: str) -> bool:
        """Force the slot free that *task_id* holds of *key*; tell if it held one.

        A run is void from now on and the task ends as REVOKED; a body that goes
        on executes beside the limit. What is with the broker only loses its slot.
        """
        return self._remedies.release(self._key(key), task_id)

    def redispatch(self, task_id: str) -> bool:
        """Publish *task_id* again that is with the broker; it starts once all the same.

        Returns:
            Whether it was; a task that waits, runs or has ended needs it not.

        Raises:
            TaskNotAvailable: If the store does not know it, or has no message of it.
        """
        return self._remedies.redispatch(task_id)

    def purge(self, key: object) -> int:
        """End all tasks that wait for *key* as REVOKED, and count them."""
        return self._remedies.purge(self._key(key))

    def drain(self) -> int:
        """Publish all that waits, whatever the limits, and count it.

        For the time before workers that know no limits take over.
        """
        return self._remedies.drain()

    def explain(self, task_id: str) -> Explanation:
        """Say why the task *task_id* is not running, or that it is."""
        return explain(self._task, task_id)

    def check(self) -> list[Finding]:
        """Compare all that the store has of the scope; of a healthy one, nothing."""
        return check(self._task)

    def repair(self) -> list[Finding]:
        """Mend what :meth:`check` finds wrong in the store; return what was mended.

        Those of its findings whose remedy is ``celery bgtask repair``.
        """
        return repair(self._task)

    @property
    def _options(self) -> Options:
        return options_of(self._task)

    @property
    def _scripts(self) -> Scripts:
        return extension_of(self._task.app).scripts(self._options.scope)

    def _key(self, key: object) -> str:
        """Return *key* as text.

        Raises:
            MissingTaskKey: If it cannot be a key.
        """
        if key is None and self._options.key.declared is None:
            return WHOLE_TASK
        return key_text(key, task=self._task.name)


def checked_limit(limit: Any) -> int:
    """Return *limit* as the store has it.

    Raises:
        ValueError: If it is no limit.
    """
    if limit is None:
        return -1
    if isinstance(limit, int) and not isinstance(limit, bool) and limit >= -1:
        return limit
    raise ValueError(
        "a limit is a whole number: 0 to pause the key, -1 or None for no limit; "
        f"not {limit!r}"
    )
