"""The gate: a task starts at most once, and never without a slot.

It stands around Celery's tracer, which is the outermost thing in a pool: before
``task_prerun``, before STARTED is stored, outside every hook that a user can
override.
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, states
from celery.app.trace import TraceInfo, trace_ok_t
from celery.exceptions import Ignore
from celery.utils.log import get_logger

from .. import outbox
from ..conclusion import fail
from ..ends import End
from ..events import encode_answer, encode_end
from ..exceptions import (
    AcceptTimeout,
    BgTaskError,
    FinishTimeout,
    StoreUnavailable,
    TaskCancelled,
)
from ..extension import Extension
from ..message import Message, number_in
from ..options import Options
from ..scripts.replies import Accepted
from ..signals import task_accepted
from ..taskkey import WHOLE_TASK
from ..verdicts import state_of
from .arrival import DELIVERY, Arrival
from .run import RETRY_INTERVAL, Run


__all__ = ["Concluded", "Gate"]

logger = get_logger(__name__)


class Concluded(Ignore):
    """A copy of a message is ignored, and its task was ended on the way.

    Attributes:
        kind: Type of the event that monitors get.
        fields: Of the event.
    """

    def __init__(self, reason: str, kind: str, fields: dict[str, Any]) -> None:
        super().__init__(reason, kind, fields)
        self.kind = kind
        self.fields = fields


class Gate:
    """Celery's tracer of one task, behind the store's consent.

    Args:
        task: Whose tracer it is.
        options: Of the task.
        extension: Of the task's app.
        tracer: As built by Celery.
    """

    def __init__(
        self,
        task: Task[Any, Any],
        options: Options,
        extension: Extension,
        tracer: Callable[..., Any],
    ) -> None:
        self.task = task
        self.options = options
        self.extension = extension
        self.tracer = tracer

    def __call__(
        self, uuid: str, args: Any, kwargs: Any, request: dict[str, Any] | None = None
    ) -> Any:
        """Trace the task if it may start; else end this copy of it quietly."""
        request = request if request is not None else {"id": uuid}
        worker, *delivery = request.pop(DELIVERY, None) or ("",)
        arrival = Arrival(
            self.task, self.options, request, tuple(delivery) or None, worker
        )
        if "broadcast" in arrival.header:
            return self._take_part(arrival, args, kwargs)
        run = self._run_of(arrival, args, kwargs)
        try:
            status, end = self._decided(run, arrival, args, kwargs)
        except StoreUnavailable as exc:
            return ignored(self._put_back(arrival, args, kwargs, exc))
        except Exception as exc:  # noqa: BLE001 - a bug, or a message made up
            run.abandon()
            end = self._fail(run, arrival, args, kwargs, exc)
            return ignored(f"task {uuid} could not be accepted: {exc!r}", end)
        if status != "started":
            logger.info(
                "Task %s[%s] is not started now: %s", self.task.name, uuid, status
            )
            return ignored(f"task {uuid} is not started by this message: {status}", end)
        task_accepted.send(
            sender=self.task, task_id=run.task_id, key=run.key, attempt=run.attempt
        )
        with run.current():
            traced = self.tracer(uuid, args, kwargs, request)
            run.end = end_of(traced)
            return traced

    def _take_part(self, arrival: Arrival, args: Any, kwargs: Any) -> Any:
        """Run a broadcast: in time, once on this worker, and without a slot."""
        scripts = self.extension.scripts(self.options.scope)
        broadcast_id = str(arrival.header["broadcast"])
        until_ms = number_in(arrival.header, "until")
        worker = str(arrival.request["hostname"])
        joins = encode_answer(broadcast_id, worker, state=states.STARTED)
        try:
            if not scripts.join(broadcast_id, worker, until_ms, joins):
                return ignored(f"broadcast {broadcast_id} is over, or was run before")
        except StoreUnavailable as exc:
            logger.warning("Broadcast %s is not run: %s", broadcast_id, exc)
            return ignored(f"broadcast {broadcast_id} is not run: {exc}")
        state: str = states.FAILURE
        try:
            traced = self.tracer(arrival.task_id, args, kwargs, arrival.request)
            state, _ = end_of(traced)
        finally:
            with contextlib.suppress(StoreUnavailable):
                ends = encode_answer(broadcast_id, worker, state=state)
                scripts.answer(broadcast_id, ends)
        return traced

    def _decided(
        self, run: Run, arrival: Arrival, args: Any, kwargs: Any
    ) -> tuple[str, End | None]:
        """Return the store's decision, whatever strikes meanwhile, and the end by it.

        A soft time limit or SIGTERM may come after the store has started the
        run and before we know it: it is raised in place of the body.
        """
        interruption: BaseException | None = None
        end: End | None = None
        while True:
            try:
                status = self._admit(run, arrival, args, kwargs)
                if status == "late":
                    end = self._end_late(run, arrival, args, kwargs)
                elif status == "cancelled":
                    error = TaskCancelled(run.task_id)
                    end = self._fail(run, arrival, args, kwargs, error)
            except (SoftTimeLimitExceeded, SystemExit) as exc:
                interruption = exc
            else:
                break
        if status != "started" and isinstance(interruption, SystemExit):
            raise interruption
        run.refusal = run.refusal or interruption
        return status, end

    def _end_late(
        self, run: Run, arrival: Arrival, args: Any, kwargs: Any
    ) -> End | None:
        """End a task that arrives after its deadline; mostly somebody has before."""
        decided = run.scripts.decide(run.task_id)
        outbox.publish(self.task.app, run.scripts, decided.granted)
        if decided.verdict:
            return None  # the store knows the task, and a sweep concludes it
        times = arrival.deadlines
        error: BgTaskError = FinishTimeout(
            run.task_id, (times.finish_by - times.clock) / 1000
        )
        if times.start_by:
            timeout = (times.start_by - times.clock) / 1000
            error = AcceptTimeout(run.task_id, timeout, "worker")
        return self._fail(run, arrival, args, kwargs, error)

    def _fail(
        self, run: Run, arrival: Arrival, args: Any, kwargs: Any, error: Exception
    ) -> End:
        """End a task of which the store knows nothing, and tell who follows it."""
        request = {**arrival.request, "args": args, "kwargs": kwargs}
        fail(self.task.app, request, error)
        event = encode_end(run.task_id, run.attempt, state=state_of(error), error=error)
        with contextlib.suppress(StoreUnavailable):
            run.scripts.announce(run.task_id, event, owed=run.owed, reply=run.reply)
        end = End(self.task, request, error)
        end.send_signal()
        return end

    def _run_of(self, arrival: Arrival, args: Any, kwargs: Any) -> Run:
        key, limit, refusal = WHOLE_TASK, -1, None
        try:
            key = arrival.key(args, kwargs)
            limit = self.options.limit_of(key)
        except Exception as exc:  # noqa: BLE001 - raised where the body would be
            refusal = exc
        return Run(
            task=self.task,
            scripts=self.extension.scripts(self.options.scope),
            task_id=arrival.task_id,
            key=key,
            limit=limit,
            attempt=arrival.attempt,
            token=secrets.token_hex(8),
            worker=arrival.worker,
            patience=self.extension.settings.lease,
            deadlines=arrival.deadlines,
            remember=arrival.may_have_copies(),
            metadata=arrival.metadata,
            reply=arrival.reply,
            owed=not arrival.keeps_result(),
            refusal=refusal,
        )

    def _admit(self, run: Run, arrival: Arrival, args: Any, kwargs: Any) -> str:
        """Ask the store until it has decided, and return its status.

        Most tasks need one call. What the store does not know is looked up in
        the result backend; only what must wait is sent along as a message.
        """
        fresh = False
        message: Message | None = None
        while True:
            accepted = self._ask(run, arrival, fresh=fresh, message=message)
            if accepted.status == "unknown":
                if arrival.has_ended():
                    return "ended"
                fresh = True
            elif accepted.status == "wanted":
                message = arrival.message(args, kwargs)
            else:
                return accepted.status

    def _ask(self, run: Run, arrival: Arrival, **extra: Any) -> Accepted:
        """Run the script, for as long as a task may wait for the store."""
        give_up = time.monotonic() + self.extension.settings.store_wait
        while True:
            try:
                return run.scripts.accept(
                    run.task_id,
                    run.attempt,
                    run.key,
                    limit=run.limit,
                    token=run.token,
                    worker=run.worker,
                    rank=self.extension.rank(arrival.priority),
                    retries=arrival.retries,
                    deadlines=arrival.deadlines,
                    max_lost=self.options.max_lost,
                    keep=arrival.keep(),
                    reply=arrival.reply,
                    **extra,
                )
            except StoreUnavailable:
                if time.monotonic() > give_up:
                    raise
            time.sleep(RETRY_INTERVAL)

    def _put_back(
        self, arrival: Arrival, args: Any, kwargs: Any, exc: Exception
    ) -> str:
        """Publish the message again, so that other tasks go on meanwhile.

        Rejecting it would do for late acks only; an early ack has been sent. It
        goes back as the next attempt: if the store has started this one and we
        were not told, that one is lost, and takes no other one with it.
        """
        message = arrival.message(args, kwargs)
        while True:
            try:
                message.publish(self.task.app, attempt=arrival.attempt + 1)
            except Exception:
                logger.exception(
                    "Task %s cannot go back to the broker yet.", arrival.task_id
                )
                time.sleep(self.extension.settings.store_wait)
            else:
                break
        text = f"task {arrival.task_id} went back to the broker: {exc}"
        logger.warning("%s", text)
        return text


def end_of(traced: Any) -> tuple[str, BaseException | None]:
    """Return final state and error of what Celery's tracer returned."""
    if traced.info is None:
        return states.SUCCESS, None
    error = traced.info.retval
    return traced.info.state, error if isinstance(error, BaseException) else None


def ignored(reason: str, end: End | None = None) -> Any:
    """Return what Celery's tracer returns of a task that raised ``Ignore``.

    With the *end* that was stored of it, monitors are told by the main process.
    """
    why = Concluded(reason, *end.event()) if end else Ignore(reason)
    try:
        raise why
    except Ignore as exc:
        info = ExceptionInfo(internal=True)
        return trace_ok_t(info, TraceInfo(states.IGNORED, exc), 0.0, None)
