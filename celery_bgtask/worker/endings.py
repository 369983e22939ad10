"""Endings that a pool process cannot report: it was killed, or never began.

A killed task keeps its slot until its process is gone: a ``finally`` that
outlives SIGTERM is still running.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from celery import Task, states
from celery.utils.log import get_logger

from .. import outbox
from ..events import encode_answer, encode_end
from ..exceptions import StoreUnavailable
from ..extension import Extension
from ..options import options_of
from ..scripts.replies import Granted


__all__ = ["Ending", "Endings", "Kind"]

logger = get_logger(__name__)


#: What release answers of what is not a run of this worker (any more).
STALE = "stale"


class Kind(Enum):
    """How a task ended that could not say so."""

    #: It never started.
    REVOKED = "revoked"
    #: Celery has stored its result.
    OVER = "over"
    #: The broker delivers its message again.
    REQUEUED = "requeued"
    #: Neither: it is lost, as if its worker had vanished.
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a task that its own process cannot report.

    Attributes:
        task: That ended.
        task_id: Of the call.
        attempt: That ended.
        kind: How it ended.
        pid: The process that ran it, if that goes away; else ``None``.
        end: Its final state, and the error if there is one.
        kept: Whether its result can be looked up.
        broadcast: The broadcast that it is part of, and the worker's node name.
    """

    task: Task[Any, Any]
    task_id: str
    attempt: int
    kind: Kind
    pid: int | None
    end: tuple[str, BaseException | None] = field(
        default=(states.FAILURE, None), compare=False
    )
    kept: bool = True
    broadcast: tuple[str, str] | None = None


class Endings:
    """The endings that a worker has heard of and not yet seen through.

    Args:
        extension: Of the worker's app.
        worker_id: The worker's id in the store.
    """

    def __init__(self, extension: Extension, worker_id: str) -> None:
        self._extension = extension
        self._worker_id = worker_id
        self._open: list[Ending] = []

    def __bool__(self) -> bool:
        return bool(self._open)

    def add(self, ending: Ending) -> None:
        """Note *ending*, once."""
        if ending not in self._open:
            self._open.append(ending)

    def tasks(self) -> dict[str, Task[Any, Any]]:
        """Return the tasks that are ending, by id: they still hold their slots."""
        return {ending.task_id: ending.task for ending in list(self._open)}

    def see_through(self) -> None:
        """Free the slots of those whose process is gone.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        for ending in list(self._open):
            if ending.pid is not None and not is_gone(ending.pid):
                continue
            try:
                self._end(ending)
            except StoreUnavailable:
                raise
            except Exception:
                logger.exception("The end of task %s is lost.", ending.task_id)
            self._open.remove(ending)

    def _end(self, ending: Ending) -> None:
        scripts = self._extension.scripts(options_of(ending.task).scope)
        task_id, attempt = ending.task_id, ending.attempt
        run: dict[str, Any] = {"worker": self._worker_id, "attempt": attempt}
        state, error = ending.end
        if ending.broadcast:
            broadcast_id, worker = ending.broadcast
            scripts.answer(
                broadcast_id, encode_answer(broadcast_id, worker, state=state)
            )
            return
        event = encode_end(task_id, attempt, state=state, error=error)
        granted: list[Granted] = []
        if ending.kind is Kind.REVOKED:
            granted = scripts.withdraw(task_id, attempt, event, owed=not ending.kept)
        elif ending.kind is Kind.LOST:
            scripts.forfeit(task_id, **run)
        elif ending.kind is Kind.REQUEUED:
            granted = scripts.release(task_id, token="", requeue=True, **run).granted
        else:
            released = scripts.release(task_id, token="", **run)
            granted = released.granted
            if released.status == STALE:  # its process died before it could start
                granted += scripts.withdraw(
                    task_id, attempt, event, owed=not ending.kept
                )
            scripts.settle(
                task_id,
                token="",
                remember=False,
                event=event,
                owed=not ending.kept,
                **run,
            )
        outbox.publish(self._extension.app, scripts, granted)


def is_gone(pid: int) -> bool:
    """Tell whether a child process has ended, without taking its exit status.

    Pools of threads and greenlets name other things than a child by *pid*;
    what they have killed is gone.
    """
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except (ChildProcessError, OverflowError):  # or the pool has taken it
        return True
    return found is not None
