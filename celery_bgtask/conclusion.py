"""Store the result of a task that no worker finished, and start what follows.

Always in a worker: errbacks are a user's code, and the rest of a chord or chain
is published with a worker's rights.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, NamedTuple

from celery import Celery, states
from celery.app.task import Context
from celery.backends.base import DisabledBackend
from celery.backends.rpc import RPCBackend
from celery.utils.log import get_logger

from .ends import End
from .events import encode_end
from .message import FOLLOWERS, has_followers
from .scripts.replies import Owed
from .verdicts import error_of, state_of


__all__ = [
    "Conclusion",
    "Outcome",
    "conclude",
    "fail",
    "has_result",
    "ignores_result",
    "is_kept",
    "keeps_results",
]

logger = get_logger(__name__)


class Outcome(Enum):
    """What remains to be done when a task was concluded."""

    DONE = "done"
    OWED = "owed"
    AGAIN = "again"


class Conclusion(NamedTuple):
    """What has become of a task that was concluded.

    Attributes:
        outcome: What remains to be done.
        event: Its end, for those who follow it.
        kept: Whether its result can be looked up.
        end: Its end by a verdict, for Celery's receivers and monitors; ``None`` if
            it ended otherwise.
    """

    outcome: Outcome
    event: str
    kept: bool
    end: End | None = None


def conclude(app: Celery, owed: Owed, scope: str, *, follow: bool = True) -> Conclusion:
    """Store the result of a task that ended by a verdict, and start what follows.

    Errbacks, the chord's part and the rest of a chain come from the stored
    message; a task without any of these may have none.

    Args:
        app: The app of the task.
        owed: What is to be concluded.
        scope: Of the task.
        follow: Whether to start what follows, too: only in a worker.
    """
    request = request_of(app, owed)
    task = app.tasks.get(request.get("task") or "") or task_of(app, scope)
    backend = task.backend if task else app.backend
    kept = not ignores_result(request, task) and keeps_results(backend)
    state: str = states.SUCCESS
    error: Exception | None = None

    def concluded(outcome: Outcome) -> Conclusion:
        event = encode_end(owed.task_id, owed.attempt, state=state, error=error)
        return Conclusion(outcome, event, kept)

    if owed.verdict.startswith("unsettled"):
        # The body has ended; mostly its result is stored, and only that was lost
        # which says so. Where no result can be looked up, it counts as stored.
        if not kept or has_result(backend, owed.task_id):
            if kept:
                state, error = stored_end(backend, owed.task_id)
            return concluded(Outcome.DONE)
        if owed.verdict == "unsettled again":
            return concluded(Outcome.AGAIN)
    verdict = error_of(owed.task_id, owed.verdict)
    state, error = state_of(verdict), verdict
    end = End(task, request, verdict)
    if follow:
        fail(app, request, verdict, task)
        return concluded(Outcome.DONE)._replace(end=end)
    fail(app, {n: v for n, v in request.items() if n not in FOLLOWERS}, verdict, task)
    if has_followers(request):
        return concluded(Outcome.OWED)
    return concluded(Outcome.DONE)._replace(end=end)


def stored_end(backend: Any, task_id: str) -> tuple[str, Exception | None]:
    """Return final state and error of a task whose result is stored."""
    meta = backend.get_task_meta(task_id)
    value = meta["result"]
    return meta["status"], value if isinstance(value, Exception) else None


def task_of(app: Celery, scope: str) -> Any:
    """Return a task of *scope*, for a call whose own is not known."""
    for task in app.tasks.values():
        if getattr(getattr(task, "bgtask", None), "scope", None) == scope:
            return task
    return None


def is_kept(request: Mapping[str, Any], task: Any) -> bool:
    """Tell whether a final state of *request*, a call of *task*, can be looked up."""
    return not ignores_result(request, task) and keeps_results(task.backend)


def ignores_result(request: Mapping[str, Any], task: Any) -> bool:
    """Tell whether nobody wants the result of *request*."""
    ignored = request.get("ignore_result")
    return bool(task and task.ignore_result) if ignored is None else bool(ignored)


def request_of(app: Celery, owed: Owed) -> dict[str, Any]:
    """Return the stored message as a request, as much of it as can be read."""
    request: dict[str, Any] = {"id": owed.task_id}
    try:
        return request | (owed.message.request(app) if owed.message else {})
    except Exception:
        logger.exception(
            "The stored message of task %s cannot be read: it ends without what "
            "follows from it.",
            owed.task_id,
        )
        return request


def fail(
    app: Celery, request: dict[str, Any], error: Exception, task: Any = None
) -> None:
    """Store *error* as the result of *request*, and start what follows from it."""
    task = app.tasks.get(request.get("task") or "") or task
    name = request.get("task") or (task.name if task else "?")
    backend = task.backend if task else app.backend
    wanted = not ignores_result(request, task)
    logger.warning("Task %s[%s] ends: %s", name, request["id"], error)
    state = state_of(error)
    backend.mark_as_failure(
        request["id"],
        error,
        request=Context({"delivery_info": {}, **request}),
        store_result=wanted or bool(task and task.store_errors_even_if_ignored),
        state=state,
        call_errbacks=state == states.FAILURE,
    )


def has_result(backend: Any, task_id: str) -> bool:
    """Tell whether *backend* has a final state of a task."""
    if not keeps_results(backend):
        return False
    try:
        return backend.get_state(task_id) in states.READY_STATES
    except Exception:
        logger.warning("The state of task %s is unknown.", task_id, exc_info=True)
        return False


def keeps_results(backend: Any) -> bool:
    """Tell whether anybody can look up a result in *backend*, at any time."""
    kept = bool(getattr(backend, "persistent", False))
    return kept and not isinstance(backend, (DisabledBackend, RPCBackend))
