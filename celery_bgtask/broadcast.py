"""Run a task once on every live worker: no slot, no key, no queue.

::

    caller                      every worker that knows the task
    who lives? ── follow ── pidbox ──▶ join: in time, and once ──▶ pool
       ▲                                   │ STARTED                 │ the end
       └───────────── events ◀─────────────┴─────────────────────────┘
"""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from typing import Any

from celery import Celery, states
from celery.exceptions import TimeoutError as ResultTimeout
from kombu.utils.uuid import uuid

from .events import Answer, Ended, Event
from .extension import extension_of
from .message import Message
from .results.follower import Follower
from .results.listener import listener_of


__all__ = ["BroadcastResult", "call_all", "id_on"]

#: Seconds to fetch a result of which the end has been told: it is stored by then.
FETCH_TIMEOUT = 30.0


class BroadcastResult:
    """What the workers make of a broadcast; iterate over it as the answers come.

    Attributes:
        id: Of the broadcast.
        workers: Node names of those that lived when it was sent.
        errors: What the task has raised, by worker; of those that have answered.
    """

    def __init__(
        self, task: Any, broadcast_id: str, workers: list[str], expires: float
    ) -> None:
        self.id = broadcast_id
        self.workers = tuple(workers)
        self.errors: dict[str, Exception] = {}
        self._task = task
        self._until = time.monotonic() + expires
        self._changed = threading.Condition()
        self._joined: set[str] = set()
        self._ended: list[str] = []
        self._values: dict[str, Any] = {}
        scripts = extension_of(task.app).scripts(task.bgtask.scope)
        self._follower = Follower(
            broadcast_id,
            scripts=(scripts,),
            channels=(scripts.channel(broadcast_id),),
            result=self,
            hear=self._hear,
        )
        listener_of(task.app).follow(self._follower)

    @property
    def missing(self) -> list[str]:
        """The workers that have not begun; after ``expires`` they never will."""
        with self._changed:
            return [name for name in self.workers if name not in self._joined]

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield ``(worker, value)`` as they come; who raised is in ``errors``."""
        yield from self._answers(None)

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for all that have begun in time; return the values by worker.

        Raises:
            celery.exceptions.TimeoutError: If some of them take longer than
                *timeout* seconds.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        for _ in self._answers(give_up):
            pass
        return dict(self._values)

    def close(self) -> None:
        """Hear no more of it."""
        listener_of(self._task.app).unfollow(self._follower)

    def _answers(self, give_up: float | None) -> Iterator[tuple[str, Any]]:
        at = 0
        while self._wait_for(at, give_up):
            worker = self._ended[at]
            at += 1
            if worker not in self._values and worker not in self.errors:
                self._fetch(worker)
            if worker in self._values:
                yield worker, self._values[worker]
        self.close()

    def _wait_for(self, at: int, give_up: float | None) -> bool:
        """Wait until one more has answered; return whether one has."""
        with self._changed:
            while len(self._ended) <= at:
                now = time.monotonic()
                expected = set(self.workers) if now < self._until else set()
                if (expected | self._joined) <= set(self._ended):
                    return False
                if give_up is not None and now >= give_up:
                    raise ResultTimeout("The operation timed out.")
                ends = [self._until] if now < self._until else []
                ends += [] if give_up is None else [give_up]
                self._changed.wait(min(ends) - now if ends else None)
            return True

    def _fetch(self, worker: str) -> None:
        if self._task.ignore_result:
            self._values[worker] = None
            return
        result = self._task.app.AsyncResult(id_on(worker, self.id))
        try:
            self._values[worker] = result.get(FETCH_TIMEOUT)
        except Exception as exc:  # noqa: BLE001 - whatever the task has raised
            self.errors[worker] = exc

    def _hear(self, event: Event) -> None:
        if not isinstance(event, Answer):
            return
        with self._changed:
            self._joined.add(event.worker)
            if event.state != states.STARTED:
                self._ended.append(event.worker)
            self._changed.notify_all()

    def end_if_due(self) -> float:
        """Have no deadline that the store knows."""
        return 0.0

    def stored_end(self) -> Ended | None:
        """Have no single end."""
        return None


def call_all(task: Any, message: Message, expires: float) -> BroadcastResult:
    """Send *message* to every worker that lives; it runs there within *expires*."""
    app: Celery = task.app
    scripts = extension_of(app).scripts(task.bgtask.scope)
    broadcast_id = uuid()
    now_ms, workers = scripts.workers()
    result = BroadcastResult(task, broadcast_id, workers, expires)
    app.control.broadcast(
        "bgtask_broadcast",
        arguments={
            "task": task.name,
            "broadcast_id": broadcast_id,
            "until_ms": now_ms + int(expires * 1000),
            "body": base64.b64encode(message.body).decode(),
            "envelope": message.envelope.decode(),
        },
    )
    return result


def id_on(worker: str, broadcast_id: str) -> str:
    """Return the task id of the run of a broadcast on one worker."""
    return f"{broadcast_id}@{worker}"
