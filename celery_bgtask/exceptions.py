"""Everything this package raises.

- :exc:`BgTaskError`
    - :exc:`AcceptTimeout`
    - :exc:`FinishTimeout`
    - :exc:`KeyBlocked`
    - :exc:`LeaseLost`
    - :exc:`LimitReached`
    - :exc:`MissingTaskKey`
    - :exc:`PayloadTooLarge`
    - :exc:`StoreUnavailable` (also kombu's :exc:`~kombu.exceptions.OperationalError`)
    - :exc:`TaskCancelled` (also Celery's :exc:`~celery.exceptions.TaskRevokedError`)
    - :exc:`TaskLost`
    - :exc:`TaskNotAvailable`
- :exc:`~celery.exceptions.ImproperlyConfigured` (Celery's own): wrong options
"""

from __future__ import annotations

from celery.exceptions import ImproperlyConfigured, TaskRevokedError
from kombu.exceptions import OperationalError


__all__ = [
    "AcceptTimeout",
    "BgTaskError",
    "FinishTimeout",
    "ImproperlyConfigured",
    "KeyBlocked",
    "LeaseLost",
    "LimitReached",
    "MissingTaskKey",
    "PayloadTooLarge",
    "StoreUnavailable",
    "TaskCancelled",
    "TaskLost",
    "TaskNotAvailable",
]


class BgTaskError(Exception):
    """Base of all errors of this package."""


class AcceptTimeout(BgTaskError):
    """No worker has started a task in time; it will not run any more.

    Attributes:
        task_id: The task.
        timeout: Its ``accept_timeout``, in seconds.
        waited_for: ``"slot"``: its key was full; ``"worker"``: it had a slot,
            and no worker was free for it.
    """

    def __init__(self, task_id: str, timeout: float, waited_for: str) -> None:
        super().__init__(task_id, timeout, waited_for)
        self.task_id = task_id
        self.timeout = timeout
        self.waited_for = waited_for

    def __str__(self) -> str:
        return (
            f"task {self.task_id} did not start within {self.timeout:g} s: "
            f"it waited for a {self.waited_for}"
        )


class FinishTimeout(BgTaskError):
    """A task has not ended in time; what it still does is not stored.

    Attributes:
        task_id: The task.
        timeout: Its ``finish_timeout``, in seconds.
    """

    def __init__(self, task_id: str, timeout: float) -> None:
        super().__init__(task_id, timeout)
        self.task_id = task_id
        self.timeout = timeout

    def __str__(self) -> str:
        return f"task {self.task_id} did not end within {self.timeout:g} s"


class LeaseLost(BgTaskError):
    """A run is not valid any more: its worker was away for too long.

    Attributes:
        task_id: The task.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"task {self.task_id} has lost its lease: what it does is not stored"


class TaskLost(BgTaskError):
    """The worker of a running task has vanished: killed, cut off, unplugged.

    Attributes:
        task_id: The task.
    """

    def __init__(self, task_id: str) -> None:
        super().__init__(task_id)
        self.task_id = task_id

    def __str__(self) -> str:
        return f"task {self.task_id} was lost with its worker"


class TaskNotAvailable(BgTaskError):
    """What was asked for cannot be done with a task.

    Attributes:
        task_id: The task.
        reason: Why not.
    """

    def __init__(self, task_id: str, reason: str) -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id}: {self.reason}"


class TaskCancelled(BgTaskError, TaskRevokedError):
    """A task was cancelled.

    Attributes:
        task_id: The task.
        reason: Why, if whoever did it has said.
    """

    def __init__(self, task_id: str, reason: str | None = None) -> None:
        super().__init__(task_id, reason)
        self.task_id = task_id
        self.reason = reason

    def __str__(self) -> str:
        return f"task {self.task_id} was cancelled" + (
            f": {self.reason}" if self.reason else ""
        )


class KeyBlocked(BgTaskError):
    """A key is blocked: nothing new is taken for it.

    Attributes:
        key: The key; the task's name if it has no keys.
        reason: Why it was blocked.
        remaining: Seconds until the block ends by itself; ``None`` if it does not.
    """

    def __init__(self, key: str, reason: str, remaining: float | None) -> None:
        super().__init__(key, reason, remaining)
        self.key = key
        self.reason = reason
        self.remaining = remaining

    def __str__(self) -> str:
        left = "" if self.remaining is None else f" for another {self.remaining:.0f} s"
        why = f": {self.reason}" if self.reason else ""
        return f"{self.key!r} is blocked{left}{why}"


class LimitReached(BgTaskError):
    """All slots of a key are taken, or too many tasks wait for one.

    Attributes:
        key: The key that is full; the task's name if it has no keys.
        limit: The slots it has.
        running: Tasks that hold one, running or on their way to a worker.
        waiting: Tasks that wait for one.
    """

    def __init__(self, key: str, limit: int, running: int, waiting: int) -> None:
        super().__init__(key, limit, running, waiting)
        self.key = key
        self.limit = limit
        self.running = running
        self.waiting = waiting

    def __str__(self) -> str:
        if self.limit == 0:
            return f"{self.key!r} is paused: it has no slots"
        taken = "the only slot" if self.limit == 1 else f"all {self.limit} slots"
        text = f"{taken} of {self.key!r} {'is' if self.limit == 1 else 'are'} taken"
        return (
            f"{text}, and {self.waiting} tasks wait for one" if self.waiting else text
        )


class MissingTaskKey(BgTaskError):
    """A call has no usable task key.

    Attributes:
        task: Name of the task.
        reason: What is wrong, and what to pass instead.
    """

    def __init__(self, task: str, reason: str) -> None:
        super().__init__(task, reason)
        self.task = task
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.task}: {self.reason}"


class PayloadTooLarge(BgTaskError):
    """A message is larger than ``max_payload_size``; nothing was sent.

    Attributes:
        task: Name of the task.
        size: Bytes of the message body as serialized.
        limit: Bytes it may have.
    """

    def __init__(self, task: str, size: int, limit: int) -> None:
        super().__init__(task, size, limit)
        self.task = task
        self.size = size
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.task}: the message has {self.size} bytes, max_payload_size is "
            f"{self.limit}: pass a reference to the data, or raise the option"
        )


class StoreUnavailable(BgTaskError, OperationalError):
    """The Redis or Valkey server that holds the slots does not answer.

    Who handles a broker that is away, by kombu's error, handles this too.

    Attributes:
        url: The server, without its password.
        reason: What it or the network said.
    """

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url = url
        self.reason = reason

    def __str__(self) -> str:
        return f"the store at {self.url} is unavailable: {self.reason}"
