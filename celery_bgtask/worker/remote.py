"""What a worker can be asked to do by Celery's remote control."""

from __future__ import annotations

import base64
from typing import Any

from celery.worker.control import control_command
from celery.worker.state import requests

from ..message import Message
from .agent import agent_of
from .intake import OwnMessage


__all__ = ["bgtask_broadcast", "bgtask_stop"]


@control_command(signature="<task> <broadcast_id> <until_ms> <body> <envelope>")
def bgtask_broadcast(
    state: Any, *, task: str, broadcast_id: str, until_ms: int, body: str, envelope: str
) -> None:
    """Run a task once on this worker, if it knows it."""
    agent = agent_of(state.app)
    if agent is None or task not in state.app.tasks:
        return
    message = Message(base64.b64decode(body), envelope.encode()).readdressed(
        f"{broadcast_id}@{state.hostname}",
        {"broadcast": broadcast_id, "until": until_ms},
    )
    agent.intake.put(OwnMessage(message, lambda _: None, agent.intake.accept))


@control_command(args=[("task_id", str)], signature="<task_id>")
def bgtask_stop(state: Any, task_id: str, signal: str | None = None, **_: Any) -> Any:
    """Stop the body of a task that has been ended, if this worker runs it."""
    request = requests.get(task_id)
    if request is None or not hasattr(request, "stop"):
        return None
    return {"stopped": request.stop(state.consumer.pool, signal)}
