"""The endings a pool child cannot report, seen from the worker's main process.

A child that was killed ran no ``finally``; a task that was revoked before its
start never reached a pool. Celery's request object hears of both.
"""

from __future__ import annotations

import math
import time
from datetime import datetime, timezone
from typing import Any

from billiard.common import TERM_SIGNAME
from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import states
from celery.exceptions import TaskRevokedError
from celery.platforms import signals
from celery.utils.imports import symbol_by_name
from celery.worker.request import Request
from celery.worker.state import task_ready

from .. import outbox
from ..conclusion import is_kept
from ..exceptions import StoreUnavailable
from ..extension import extension_of
from ..message import HEADER, number_in
from ..options import options_of
from ..running.acceptance import Concluded
from ..running.arrival import DELIVERY
from ..states import DECIDED
from ..verdicts import as_stored
from .agent import Agent, agent_of
from .endings import Ending, Kind
from .intake import OwnMessage


__all__ = ["BgRequest", "request_class"]

#: Failures after which the process that ran the body goes away.
PROCESS_ENDS = (SystemExit, Terminated, TimeLimitExceeded, WorkerLostError)

#: Seconds between the soft limit at a deadline and the hard one.
HARD_LIMIT_AFTER = 5.0


class BgRequest(Request):
    """A request of a bgtask: carries its message along, reports its ending."""

    #: The stub says ``str``: it is the number of a process.
    worker_pid: int | None  # type: ignore[assignment]

    #: How it has ended, if another process than its own has to say so.
    bgtask_kind = Kind.OVER
    _bgtask_limits: tuple[float | None, float | None] = (None, None)

    def __init__(self, message: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(message, *args, **kwargs)
        agent = self._bgtask_agent()
        body = message.body
        self.request_dict[DELIVERY] = (
            agent.worker_id if agent else "",
            as_received(message.headers),
            body if isinstance(body, (str, bytes)) else bytes(body),
            message.content_type,
            message.content_encoding,
        )
        if isinstance(message, OwnMessage):
            message.request = self
        header = (message.headers or {}).get(HEADER)
        self.bgtask_header: dict[str, Any] = header if isinstance(header, dict) else {}

    @property
    def time_limits(self) -> tuple[float | None, float | None]:
        """Hard and soft limit, with the task's deadline among them.

        Celery asks when it hands the task to the pool.
        """
        hard, soft = self._bgtask_limits
        finish_by = number_in(self.bgtask_header, "finish_by")
        if not finish_by:
            return hard, soft
        left = max(finish_by / 1000 - time.time(), 0.01)
        return (
            min(hard or self.task.time_limit or math.inf, left + HARD_LIMIT_AFTER),
            min(soft or self.task.soft_time_limit or math.inf, left),
        )

    @time_limits.setter
    def time_limits(  # pyright: ignore[reportIncompatibleVariableOverride]
        self, limits: tuple[float | None, float | None]
    ) -> None:
        self._bgtask_limits = limits

    def stop(self, pool: Any, signal: Any = None) -> bool:
        """Stop the body of a task that has been ended; tell whether the pool can."""
        if self.worker_pid is None:
            return False
        try:
            pool.terminate_job(self.worker_pid, signals.signum(signal or TERM_SIGNAME))
        except NotImplementedError:
            return False
        # Our verdict is concluded from the store: Celery must not do it again.
        # Who concludes it tells monitors, too.
        self._already_revoked = True
        self.acknowledge()
        self._report()
        return True

    def revoked(self) -> bool:
        """Report a task that was revoked or expired before its start."""
        if self._has_expired() or super().revoked():
            self._report(
                Kind.REVOKED, end=(states.REVOKED, TaskRevokedError("revoked"))
            )
            return True
        return False

    def _has_expired(self) -> bool:
        """Tell whether the store has ended the task at its time: then it is concluded.

        Celery would store its own end beside that.
        """
        expires: datetime | None = self.expires  # the stub knows no task without
        if expires is None or self._already_revoked:
            return False
        now = datetime.now(timezone.utc if expires.tzinfo else None)
        if now < expires or "attempt" not in self.bgtask_header:
            return False
        try:
            scripts = extension_of(self.task.app).scripts(options_of(self.task).scope)
            decided = scripts.decide(self.id)
            outbox.publish(self.task.app, scripts, decided.granted)
            ended = decided.verdict or scripts.phase(self.id).state == DECIDED
        except StoreUnavailable:
            return False
        if not ended:
            return False
        self._already_revoked = True
        task_ready(self)
        self.acknowledge()
        return True

    def reject(self, requeue: bool = False) -> None:
        """Note whether the broker delivers the message again."""
        if requeue and not self.acknowledged:
            self.bgtask_kind = Kind.REQUEUED
        super().reject(requeue)

    def cancel(self, pool: Any, signal: Any = None, *args: Any, **kwargs: Any) -> None:
        """Report a body that is stopped with its worker or its connection."""
        # Of an early ack nothing comes again: when_lost decides.
        self.bgtask_kind = Kind.LOST if self.acknowledged else Kind.REQUEUED
        super().cancel(pool, signal, *args, **kwargs)
        self._report()

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Report a body that is stopped because the task was revoked."""
        super().terminate(pool, signal)
        self._report(end=(states.REVOKED, TaskRevokedError("terminated")))

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Report a body that exceeded its hard time limit."""
        if not soft and self._is_overdue():
            task_ready(self)
            if self.task.acks_late:
                self.acknowledge()
        else:
            super().on_timeout(soft, timeout)
        if not soft:
            self._report(end=(states.FAILURE, TimeLimitExceeded(timeout)))

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Report a body whose process is gone; others report themselves."""
        if not return_ok and self._is_overdue():
            task_ready(self)  # its verdict is concluded from the store
        else:
            super().on_failure(exc_info, send_failed_event, return_ok)
        cause = cause_of(exc_info)
        if isinstance(cause, Concluded):
            self.send_event(cause.kind, **cause.fields)
        if not return_ok:
            dies = isinstance(cause, PROCESS_ENDS)
            self._report(process_ends=dies, end=(states.FAILURE, as_stored(cause)))

    def _is_overdue(self) -> bool:
        """Tell whether the deadline has passed so long ago that a sweep has seen it."""
        finish_by = number_in(self.bgtask_header, "finish_by")
        if not finish_by:
            return False
        return bool(time.time() * 1000 > finish_by + HARD_LIMIT_AFTER * 500)

    def _bgtask_broadcast(self) -> tuple[str, str] | None:
        broadcast_id = self.bgtask_header.get("broadcast")
        if not isinstance(broadcast_id, str):
            return None
        return broadcast_id, self.hostname

    def _bgtask_agent(self) -> Agent | None:
        return agent_of(self.app)  # type: ignore[arg-type]  # a request has an app

    def _report(
        self,
        kind: Kind | None = None,
        *,
        process_ends: bool = True,
        end: tuple[str, BaseException | None] = (states.FAILURE, None),
    ) -> None:
        agent = self._bgtask_agent()
        if agent is None:
            return
        agent.report(
            Ending(
                task=self.task,
                task_id=self.id,
                attempt=number_in(self.bgtask_header, "attempt")
                or number_in(self.request_dict, "retries") + 1,
                kind=kind or self.bgtask_kind,
                pid=self.worker_pid if process_ends else None,
                end=end,
                kept=is_kept(self.request_dict, self.task),
                broadcast=self._bgtask_broadcast(),
            )
        )


def as_received(headers: Any) -> Any:
    """Return the headers of a message that kombu has received: it is decompressed."""
    if not headers or "compression" not in headers:
        return headers
    return {name: headers[name] for name in headers if name != "compression"}


def cause_of(exc_info: Any) -> BaseException:
    """Return the exception in *exc_info*, without what billiard wraps it in."""
    exc = exc_info.exception
    return exc.exc if isinstance(exc, ExceptionWithTraceback) else exc  # type: ignore[no-any-return]


def request_class(declared: Any) -> type[BgRequest]:
    """Return the request class *declared* for a task, with this one in front."""
    base = symbol_by_name(declared)
    if issubclass(base, BgRequest):
        return base  # type: ignore[no-any-return]
    if base is Request:
        return BgRequest
    return type(base.__name__, (BgRequest, base), {})
