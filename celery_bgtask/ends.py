"""What Celery's receivers and monitors hear of an end that no tracer has told.

A task that ends by a verdict was mostly met by no pool: Celery's own code, which
tells of a failure or a revocation, never sees it. Here is the same, in its words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billiard.einfo import ExceptionInfo
from celery import states
from celery.app.task import Context
from celery.signals import task_failure, task_revoked
from kombu.utils.encoding import safe_repr

from .verdicts import is_expiry, state_of


__all__ = ["End"]

#: What a request calls the facts that an event carries, by the event's name: a
#: monitor that has never met the task knows it by these.
FACTS = {
    "name": "task",
    "args": "argsrepr",
    "kwargs": "kwargsrepr",
    "root_id": "root_id",
    "parent_id": "parent_id",
    "retries": "retries",
}


@dataclass(frozen=True, slots=True)
class End:
    """The end of a call that a verdict has brought.

    Attributes:
        task: That was called; ``None`` if it is not known.
        request: The call, as far as it is known.
        error: What it has ended with.
    """

    task: Any
    request: Mapping[str, Any]
    error: Exception

    @property
    def task_id(self) -> str:
        """The call."""
        return str(self.request["id"])

    def send_signal(self) -> None:
        """Send Celery's ``task_failure`` or ``task_revoked`` in this process.

        A receiver that raises is logged by Celery and harms nobody.
        """
        if self.task is None:
            return
        request = dict(self.request)
        if state_of(self.error) == states.REVOKED:
            task_revoked.send(
                sender=self.task,
                request=Context({"delivery_info": {}, **request}),
                terminated=False,
                signum=None,
                expired=is_expiry(self.error),
            )
            return
        info = info_of(self.error)
        task_failure.send(
            sender=self.task,
            task_id=self.task_id,
            exception=self.error,
            args=request.get("args") or (),
            kwargs=request.get("kwargs") or {},
            traceback=self.error.__traceback__,
            einfo=info,
        )

    def event(self) -> tuple[str, dict[str, Any]]:
        """Return the type of the event that monitors get, and its fields but uuid."""
        request = self.request
        facts = {
            field: request[name]
            for field, name in FACTS.items()
            if request.get(name) is not None
        }
        if self.task is not None:
            facts.setdefault("name", self.task.name)
        if state_of(self.error) == states.REVOKED:
            how = {"terminated": False, "signum": None}
            return "task-revoked", facts | how | {"expired": is_expiry(self.error)}
        why = {"exception": safe_repr(self.error), "traceback": str(self.error)}
        return "task-failed", facts | why


def info_of(error: Exception) -> Any:
    """Return *error* as Celery hands it to receivers."""
    try:
        raise error  # noqa: TRY301 - the info is of what is being handled
    except Exception:  # noqa: BLE001 - it is the one above
        return ExceptionInfo()
