"""How a task ends that no worker has finished: the verdict, as an error.

A verdict is decided once, by a script. Its wire form is a word and what belongs
to it; :func:`error_of` turns that into what a caller gets to see.
"""

from __future__ import annotations

from billiard.common import human_status
from billiard.exceptions import WorkerLostError
from celery import states

from .exceptions import (
    AcceptTimeout,
    BgTaskError,
    FinishTimeout,
    TaskCancelled,
    TaskLost,
)


__all__ = ["as_stored", "error_of", "is_expiry", "state_of"]

#: The reason of a task whose ``expires`` has passed.
EXPIRED = "expired"


def error_of(task_id: str, verdict: str) -> BgTaskError:
    """Return the error that *verdict* means for a task."""
    word, _, rest = verdict.partition(" ")
    if word == "unaccepted":
        waited_for, _, timeout_ms = rest.partition(" ")
        return AcceptTimeout(task_id, seconds_of(timeout_ms), waited_for)
    if word == "unfinished":
        return FinishTimeout(task_id, seconds_of(rest))
    if word == "expired":
        return TaskCancelled(task_id, EXPIRED)
    if word == "cancelled":
        return TaskCancelled(task_id, rest or None)
    return TaskLost(task_id)


def seconds_of(ms: str) -> float:
    """Return a number of ms in seconds, 0 if somebody has written something else."""
    return int(ms) / 1000 if ms.isdecimal() and ms.isascii() else 0.0


def state_of(error: Exception) -> str:
    """Return Celery's state for a task that ended by *error*."""
    return states.REVOKED if isinstance(error, TaskCancelled) else states.FAILURE


def is_expiry(error: Exception) -> bool:
    """Tell whether a task has ended by *error* because its ``expires`` has passed."""
    return isinstance(error, TaskCancelled) and error.reason == EXPIRED


def as_stored(error: BaseException) -> BaseException:
    """Return what Celery stores of a body that has raised *error*.

    Of a ``SystemExit`` it is what became of the process, as the worker sees it.
    """
    if not isinstance(error, SystemExit):
        return error
    code = error.code or 0
    status = human_status(code if isinstance(code, int) else 1)
    return WorkerLostError(f"Worker exited prematurely: {status}.")
