"""Release before the result, settle after it; what each ending does.

A run begins when a worker accepts a task and ends when the body has returned or
raised: there its slot is given on, before Celery stores a result or starts what
follows. So a caller that waits for the result finds the slot free, and two
steps of a chain need only one.
"""

from __future__ import annotations

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, states
from celery.exceptions import Ignore, Reject
from celery.utils.log import get_logger
from kombu.exceptions import OperationalError

from .. import outbox
from ..events import REPLACED, encode_end
from ..exceptions import FinishTimeout, LeaseLost, StoreUnavailable
from ..options import options_of
from ..scripts import Scripts
from ..scripts.replies import NO_DEADLINES, Deadlines, Granted, Released
from ..verdicts import as_stored, error_of
from .progress import Reporter


__all__ = ["Run", "current_run", "guarded"]

logger = get_logger(__name__)

#: Seconds between two tries to reach a store that is away.
RETRY_INTERVAL = 0.25

#: What a pool process exits with on SIGTERM (billiard 4.2 and 4.3).
KILLED = -(256 - signal.SIGTERM)

#: Seconds between two checks of a run that asks whether it is valid all the time.
CHECK_INTERVAL = 0.5

#: How far the clocks of store and worker may differ for a soft limit, in ms.
CLOCK_MARGIN_MS = 1000

_current: ContextVar[Run | None] = ContextVar("bgtask_run", default=None)


def current_run() -> Run | None:
    """Return the run that this thread or greenlet executes, if any."""
    return _current.get()


class Stage(Enum):
    """How far a run has come."""

    ACCEPTED = "accepted"
    ENTERED = "entered"
    #: Its slot is given on; what remains is to settle.
    RELEASED = "released"
    #: Its slot is kept for the same attempt, which the broker delivers again.
    REQUEUED = "requeued"
    #: Its process was killed; the worker's main process ends it.
    LEFT = "left"


OVER = frozenset({Stage.RELEASED, Stage.REQUEUED, Stage.LEFT})


@dataclass(slots=True)
class Run:
    """One run of a task: from its acceptance to its settlement.

    Attributes:
        task: That runs.
        scripts: Of its scope.
        task_id: Of this call.
        key: Whose slot it holds.
        limit: Slots of that key, as this worker would have it.
        attempt: The number of this attempt.
        token: Names the run in the store.
        worker: That runs it.
        patience: Seconds that ending it may wait for the store.
        deadlines: Until when it must have ended.
        remember: Whether a copy of the message may be left when it has ended.
        metadata: What the submitter wanted to travel along.
        reply: The channel on which the submitter hears of it.
        owed: Whether nobody can look its result up.
        refusal: Raised in place of the body, for a call that cannot run.
        stage: How far it has come.
        checked: When it was last asked whether it is valid.
        next: Its own next attempt, to be started after the result is stored.
        reporter: Reports its progress, if it does.
        forgotten: Whether the store has lost its memory of it.
        is_replaced: Whether another task goes on under its id.
        is_unsure: Whether nobody may have stored its end.
        end: Its final state, and the error if there is one.
    """

    task: Task[Any, Any]
    scripts: Scripts
    task_id: str
    key: str
    limit: int
    attempt: int
    token: str
    worker: str
    patience: float
    deadlines: Deadlines = NO_DEADLINES
    remember: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    reply: str = ""
    owed: bool = False
    refusal: BaseException | None = None
    stage: Stage = Stage.ACCEPTED
    checked: float = 0.0
    next: list[Granted] = field(default_factory=list)
    reporter: Reporter | None = None
    forgotten: bool = False
    is_replaced: bool = False
    is_unsure: bool = False
    end: tuple[str, BaseException | None] = (states.FAILURE, None)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make this the current run, and settle it at the end."""
        reset = _current.set(self)
        try:
            yield
        except BaseException as exc:
            self.end = states.FAILURE, as_stored(exc)
            raise
        finally:
            _current.reset(reset)
            self.finish()

    def is_call_of(self, task: Task[Any, Any]) -> bool:
        """Tell whether *task* is being called as the body of this run."""
        request = task.request
        return (
            self.stage is Stage.ACCEPTED
            and task.name == self.task.name
            and request.id == self.task_id
            and not request.called_directly
        )

    def execute(self, body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the body and release the slot.

        Raises:
            Ignore: If the run had been ended before: nothing may be stored or
                started of it.
        """
        self.stage = Stage.ENTERED
        try:
            if self.refusal:
                raise self.refusal  # noqa: TRY301 - as the body would
            value = self._in_time(body, *args, **kwargs)
        except Exception as exc:
            self.is_unsure = is_unpublished(exc)
            if not self.release(requeue=self._comes_again(exc)):
                raise self._stale() from exc
            raise
        except SystemExit as exc:
            # The worker has killed this process and knows why: it ends the run
            # when the process is gone. Without an agent there nobody would.
            if exc.code == KILLED and self.worker:
                self.stage = Stage.LEFT
            else:
                self.release()
            raise
        except BaseException:
            self.release()
            raise
        if not self.release():
            raise self._stale()
        return value

    def checkpoint(self) -> None:
        """Ask whether this run is still valid, at most twice a second.

        Raises:
            FinishTimeout: If the task had to end by now.
            TaskCancelled: If it was cancelled.
            LeaseLost: If its worker was away for longer than its lease.
        """
        now = time.monotonic()
        if now - self.checked < CHECK_INTERVAL:
            return
        self.checked = now
        try:
            standing = self.scripts.standing(self.task_id, self.token)
        except StoreUnavailable:
            return  # the heartbeat is in the same place, and sweeps are too
        if standing.verdict:
            raise error_of(self.task_id, standing.verdict)
        if not standing.valid:
            raise LeaseLost(self.task_id)

    def _in_time(self, body: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the body; a soft limit that stands for the deadline is the deadline's."""
        try:
            return body(*args, **kwargs)
        except SoftTimeLimitExceeded as exc:
            clock, _, finish_by = self.deadlines
            if finish_by and time.time() * 1000 >= finish_by - CLOCK_MARGIN_MS:
                raise FinishTimeout(self.task_id, (finish_by - clock) / 1000) from exc
            raise

    def _comes_again(self, exc: Exception) -> bool:
        """Tell whether the broker delivers the message again: not once it is acked."""
        if not isinstance(exc, Reject) or not self.task.acks_late:
            return False
        return bool(exc.requeue)  # type: ignore[attr-defined]  # not in the stub

    def release(self, *, requeue: bool = False) -> bool:
        """Give the slot on; return whether the run was still valid.

        A soft time limit or SIGTERM that strikes here is raised afterwards.
        """
        interruption: BaseException | None = None
        valid = True
        while self.stage not in OVER:
            try:
                valid = self._release(requeue)
            except (SoftTimeLimitExceeded, SystemExit) as exc:
                interruption = exc
        if interruption is not None:
            raise interruption
        return valid

    def abandon(self) -> None:
        """Give back what the store may have given to a run that does not begin."""
        named: dict[str, Any] = {"worker": self.worker, "attempt": self.attempt}
        with contextlib.suppress(StoreUnavailable):
            reply = self.scripts.release(self.task_id, token=self.token, **named)
            granted = list(reply.granted)
            if reply.status != "released":
                granted += self.scripts.withdraw(self.task_id, self.attempt)
            outbox.publish(self.task.app, self.scripts, granted)
            self.scripts.settle(
                self.task_id,
                token=self.token,
                remember=True,
                event=self._last_event(),
                owed=self.owed,
                **named,
            )

    def finish(self) -> None:
        """Start the next attempt, if there is one, and forget the run."""
        if self.stage not in OVER:  # the body was never reached
            self.release()
        if self.next:
            outbox.publish(self.task.app, self.scripts, self.next)
        elif self.stage is Stage.RELEASED and not self.is_unsure:
            try:
                if self.end[0] not in states.READY_STATES:
                    self._offer_next()
                self._settle()
            except StoreUnavailable as exc:
                logger.debug("%s was not settled, a sweep will: %s", self.task_id, exc)

    def _offer_next(self) -> None:
        """Offer the next attempt of an offered task, now that this one has said so."""
        if options_of(self.task).offered:
            granted = self.scripts.unclaim(self.task_id, self.token)
            outbox.publish(self.task.app, self.scripts, granted)

    def _settle(self) -> None:
        # Celery stores nothing of what was ignored or rejected: nothing but what is
        # remembered here tells a copy that the task has ended.
        owed = self.owed or self.end[0] not in states.READY_STATES
        if self.forgotten:
            self.scripts.announce(
                self.task_id, self._last_event(), owed=owed, reply=self.reply
            )
            return
        self.scripts.settle(
            self.task_id,
            token=self.token,
            worker=self.worker,
            attempt=self.attempt,
            remember=self.remember and owed,
            event=self._last_event(),
            owed=owed,
        )

    def _release(self, requeue: bool) -> bool:
        reply = self._reach_store(requeue)
        self.stage = Stage.REQUEUED if requeue else Stage.RELEASED
        if reply is None or reply.status == "unknown":
            self.forgotten = reply is not None
            return True
        self.next = [task for task in reply.granted if task.task_id == self.task_id]
        outbox.publish(
            self.task.app,
            self.scripts,
            [task for task in reply.granted if task.task_id != self.task_id],
        )
        return reply.status == "released"

    def _reach_store(self, requeue: bool) -> Released | None:
        """Return the reply, or ``None`` if the store was away for too long."""
        give_up = time.monotonic() + self.patience
        while True:
            try:
                if self.reporter is not None:
                    self.reporter.close()
                return self.scripts.release(
                    self.task_id,
                    token=self.token,
                    worker=self.worker,
                    attempt=self.attempt,
                    requeue=requeue,
                )
            except StoreUnavailable as exc:
                if time.monotonic() > give_up:
                    logger.error(  # noqa: TRY400 - that it is away says all
                        "The slot of %r was not released by task %s; "
                        "its lease frees it: %s",
                        self.key or self.task.name,
                        self.task_id,
                        exc,
                    )
                    return None
            time.sleep(RETRY_INTERVAL)

    def _last_event(self) -> str:
        state, error = self.end
        if self.is_replaced:
            state, error = REPLACED, None
        return encode_end(self.task_id, self.attempt, state=state, error=error)

    def _stale(self) -> Ignore:
        """Say why this run is not valid any more; nothing of it is stored."""
        why = "it had lost its lease"
        with contextlib.suppress(StoreUnavailable):
            verdict = self.scripts.standing(self.task_id, self.token).verdict
            if verdict:
                why = str(error_of(self.task_id, verdict))
        logger.warning(
            "What task %s[%s] returned or raised is dropped: %s",
            self.task.name,
            self.task_id,
            why,
            extra={"bgtask_event": "run_dropped", "bgtask_key": self.key},
        )
        return Ignore(f"task {self.task_id} is dropped: {why}")


def is_unpublished(exc: Exception) -> bool:
    """Tell whether *exc* stands for a retry that could not be published.

    Celery may store an end of it in another process, or none: the run is not settled,
    and when its lease runs out a sweep looks the end up, or makes one.
    """
    return isinstance(exc, Reject) and isinstance(exc.reason, OperationalError)  # type: ignore[attr-defined]  # not in the stub


def guarded(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``__call__`` that ends the run when the body *call* has ended."""

    @functools.wraps(call)
    def execute(self: Task[Any, Any], *args: Any, **kwargs: Any) -> Any:
        run = current_run()
        if run is None or not run.is_call_of(self):
            return call(self, *args, **kwargs)
        return run.execute(call, self, *args, **kwargs)

    execute.is_guarded = True  # type: ignore[attr-defined]  # read by BgTask
    return execute
