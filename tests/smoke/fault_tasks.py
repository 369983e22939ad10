"""The smoke tests' tasks in a worker that can be killed between any two steps.

Each window has a name. A test arms one for one task, by a key in the ledger's
server; the process that comes to that point then kills itself. The package knows
nothing of it: the methods are wrapped here, in the worker that a test starts.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from typing import Any

from celery import current_app

from celery_bgtask.scripts import Scripts
from tests.smoke import tasks
from tests.smoke.tasks import client_of


__all__ = ["MODULE", "WINDOWS", "arm", "has_struck"]

MODULE = "tests.smoke.fault_tasks"

ARMED = "ledger:fault:"


def accepted_as(*statuses: str) -> Callable[[Any], bool]:
    """Tell whether the store has answered so."""
    return lambda reply: reply.status in statuses


def hands_on(reply: Any) -> bool:
    """Tell whether the slot has gone to a waiting task."""
    return bool(reply.granted)


#: By name: the script, and whether its process dies before or after it, and then of
#: which answers.
WINDOWS: dict[str, tuple[str, Callable[[Any], bool] | None]] = {
    "arrival and acceptance": ("accept", None),
    "acceptance and body": ("accept", accepted_as("started")),
    "parking and ack": ("accept", accepted_as("parked")),
    "release and publishing": ("release", hands_on),
    "publishing and confirmation": ("confirm", None),
    "release and result": ("release", lambda reply: not reply.granted),
    "result and settlement": ("settle", None),
}


def arm(smoke: Any, window: str, task_id: str) -> None:
    """Have the process that comes to *window* with this task kill itself, once."""
    assert window in WINDOWS
    smoke.ledger.client.set(f"{ARMED}{window}", task_id)


def has_struck(smoke: Any, window: str) -> bool:
    """Tell whether a process has died there."""
    return not smoke.ledger.client.exists(f"{ARMED}{window}")


def is_hit(window: str, subject: Any) -> bool:
    """Tell whether this is the task that is waited for; disarm it then."""
    client = client_of(current_app.tasks[tasks.single.name])
    granted = subject if isinstance(subject, list) else []
    ids = [subject, *(task.task_id for task in granted)]
    if client.get(f"{ARMED}{window}") not in ids:
        return False
    return bool(client.delete(f"{ARMED}{window}"))


def with_window(
    method: Callable[..., Any], window: str, dies_after: Callable[[Any], bool] | None
) -> Callable[..., Any]:
    """Return *method* with a place to die before it or after it."""

    @functools.wraps(method)
    def wrapped(self: Any, subject: Any, *args: Any, **kwargs: Any) -> Any:
        if dies_after is None and is_hit(window, subject):
            os.kill(os.getpid(), signal.SIGKILL)
        reply = method(self, subject, *args, **kwargs)
        if dies_after is not None and dies_after(reply) and is_hit(window, subject):
            os.kill(os.getpid(), signal.SIGKILL)
        return reply

    return wrapped


if "SMOKE_PARENT" in os.environ:  # this is a worker
    for _window, (_name, _dies_after) in WINDOWS.items():
        _wrapped = with_window(getattr(Scripts, _name), _window, _dies_after)
        setattr(Scripts, _name, _wrapped)
