"""BgResult: what becomes of a call, followed from anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from celery import states
from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import AsyncResult

from .. import outbox
from ..conclusion import keeps_results
from ..events import Ended, encode_end
from ..exceptions import StoreUnavailable
from ..extension import Extension, extension_of
from ..keys import unquote
from ..scripts import Scripts
from ..scripts.replies import Deadlines
from ..states import DECIDED, ENDED, RUNNING, STOPPING
from ..verdicts import error_of, state_of
from .following import Following


__all__ = ["BgResult", "Cancellation"]

# Celery's own loggers are silent where nobody has set logging up.
logger = logging.getLogger(__name__)

#: Seconds to wait for a worker's word on a body that it was told to stop.
STOP_TIMEOUT = 2.0

#: Seconds in which the result of a task that has ended is stored, if it ever is.
STORED_TIMEOUT = 30.0

#: Seconds after which who waits looks whether the result is there: the word of it
#: that Celery waits for may be lost, with a connection or before it listens.
LOOK_AGAIN = 10.0

#: Seconds after a deadline in which a worker mostly has stored the end.
GRACE = 0.05


class Cancellation(NamedTuple):
    """What :meth:`BgResult.cancel` has done.

    Attributes:
        was: Where the task was: ``waiting``, ``dispatched``, ``running``,
            ``ended``; ``""`` if the store did not know it.
        stopped: Whether a body that ran is being stopped; its pool may not be
            able to, and then it goes on until its next ``checkpoint``.
    """

    was: str
    stopped: bool


class BgResult(Following, AsyncResult):  # type: ignore[type-arg]  # not generic before 5.7
    """The result of a task, from the process that submitted it or any other.

    All that an :class:`~celery.result.AsyncResult` does works. Who waits in
    :meth:`get` also keeps the task's deadlines: without any worker the task
    still ends in time.
    """

    #: As the submission has set them; ``None`` if it was elsewhere.
    deadlines: Deadlines | None = None

    #: Before that time, monotonic, the task need not have ended; 0: unknown.
    first_due = 0.0

    #: Where the store has the task; ``None``: it is looked for.
    scope: str | None = None

    #: Whether the task's result is stored at all.
    is_wanted = True

    #: The channel on which the process hears of the task that has submitted it;
    #: ``None`` if that was elsewhere.
    reply: str | None = None

    #: How the task has ended, once this result was told.
    ended: Ended | None = None

    def get(
        self,
        timeout: float | None = None,
        propagate: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Wait for the result and return it.

        Args:
            timeout: Seconds to wait; the task goes on afterwards. ``None``: to the end.
            propagate: Whether an error of the task is raised, or returned.
            *args: As in Celery.
            **kwargs: As in Celery.

        Raises:
            AcceptTimeout: If no worker has started the task in time.
            FinishTimeout: If it has not ended in time.
            TaskLost: If its worker has vanished.
            TaskCancelled: If it was cancelled.
            celery.exceptions.TimeoutError: After *timeout* seconds without it.
        """
        if self.ended is not None:
            if self.ended.state == states.IGNORED:
                return None  # Celery stores nothing of it
            timeout = min(
                STORED_TIMEOUT, STORED_TIMEOUT if timeout is None else timeout
            )
        give_up = None if timeout is None else time.monotonic() + timeout
        while True:
            begun = time.monotonic()
            left = None if give_up is None else give_up - begun
            due = self._until_due()
            pause = LOOK_AGAIN if due is None else min(due + GRACE, LOOK_AGAIN)
            if left is not None and left <= min(LOOK_AGAIN, due or LOOK_AGAIN):
                return super().get(left, propagate, *args, **kwargs)
            try:
                return super().get(pause, propagate, *args, **kwargs)
            except ResultTimeout:
                if time.monotonic() < begun + pause:
                    raise  # the task's own
                if due is not None and due <= pause:
                    for result in self._chain():
                        result.end_if_due()

    def cancel(
        self, reason: str | None = None, terminate: bool = False
    ) -> Cancellation:
        """End the task; what waits never runs, what runs is stopped if asked.

        The state is REVOKED at once, also without any worker; chords and chains
        are concluded by one. A run that is not stopped goes on as if nothing
        had happened.

        Args:
            reason: Why, for who waits: in :exc:`.TaskCancelled`.
            terminate: Whether a body that runs is stopped as well, where its pool can.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        scripts = self._scripts()
        if scripts is None:
            super().revoke()
            return Cancellation("", stopped=False)
        if not scripts.phase(self.id).state and self.ready():
            return Cancellation("ended", stopped=False)
        cancelled = scripts.cancel(self.id, reason=reason or "", terminate=terminate)
        outbox.publish(self.app, scripts, cancelled.granted)
        if cancelled.was in {ENDED, DECIDED, STOPPING}:
            return Cancellation("ended", stopped=False)
        if not cancelled.was and self.ready():  # it has ended just now
            return Cancellation("ended", stopped=False)
        if cancelled.was == RUNNING and not terminate:
            return Cancellation(cancelled.was, stopped=False)
        self._store(scripts, f"cancelled {reason or ''}".rstrip())
        stopped = cancelled.was == RUNNING and self._stop(cancelled.worker)
        return Cancellation(cancelled.was, stopped=stopped)

    def revoke(  # type: ignore[override]
        self,
        connection: Any = None,
        terminate: bool = False,
        signal: Any = None,
        **_: Any,
    ) -> Cancellation:
        """End the task, by Celery's name for it.

        Args:
            connection: Not needed.
            terminate: As of :meth:`cancel`.
            signal: Not asked for: the pool chooses.
        """
        return self.cancel(terminate=terminate)

    @property
    def phase(self) -> str:
        """Tell where the task is.

        One of ``waiting``, ``dispatched``, ``offered``, ``running``, ``ended``.

        A task that the store does not know is ended or with the broker; then
        Celery's ``state`` tells.
        """
        scripts = self._scripts()
        state = scripts.phase(self.id).state if scripts else ""
        if state in {"lapsed", "delayed"}:
            return "dispatched"
        if state in {STOPPING, DECIDED} or (not state and self.ready()):
            return "ended"
        return state or "dispatched"

    @property
    def key(self) -> str | None:
        """The key of the call, while the store knows it."""
        scripts = self._scripts()
        return scripts.phase(self.id).key if scripts else None

    def stored_end(self) -> Ended | None:
        """Return the end of the task if the result backend has it."""
        # Who has replaced an ignored task may keep its result.
        if not keeps_results(self.backend) or not self.ready():
            return None
        error = self.result if isinstance(self.result, Exception) else None
        return Ended.of(self.id, state=self.state, error=error)

    @property
    def _is_kept(self) -> bool:
        """Whether the end of the task can be looked up."""
        return self.is_wanted and not self.ignored and keeps_results(self.backend)

    def _until_due(self) -> float | None:
        """Return the seconds until a deadline of this task, or of one before it."""
        dues = [due for result in self._chain() if (due := result._due())]  # noqa: SLF001
        return min(dues, default=None)

    def _due(self) -> float:
        """Return the seconds until the task's next deadline, 0 without one."""
        if self.deadlines is not None and not any(self.deadlines):
            return 0.0
        left = self.first_due - time.monotonic()
        if left > 0:
            return left
        scripts = self._scripts()
        try:
            return scripts.phase(self.id).due if scripts else 0.0
        except StoreUnavailable:
            return 0.0

    def end_if_due(self) -> float:
        """End the task if its deadline has passed; return the seconds to the next.

        0 is none. What waits for a result calls this; nobody else needs to.
        """
        scripts = self._scripts()
        if scripts is None:
            return 0.0
        decided = scripts.decide(self.id)
        outbox.publish(self.app, scripts, decided.granted)
        if decided.verdict:
            self._store(scripts, decided.verdict)
        return decided.due

    def _chain(self) -> Iterator[BgResult]:
        """Return this result and those of the steps that must end before it."""
        result: Any = self
        while result is not None:
            if isinstance(result, BgResult):
                yield result
            result = result.parent

    def _store(self, scripts: Scripts, verdict: str) -> None:
        """Store and tell the end; what follows from it is a worker's to conclude."""
        error = error_of(self.id, verdict)
        state = state_of(error)
        if self._is_kept:
            if not self.ready():
                self.backend.store_result(self.id, error, state)
        elif self.is_wanted and not self.ignored:
            # Of RPC, only a worker can send a result: who asks here is told at once.
            meta = {"status": state, "result": error, "traceback": None}
            self._set_cache(meta)  # type: ignore[attr-defined]  # 5.5 to 5.7
        event = encode_end(self.id, 0, state=state, error=error)
        scripts.announce(self.id, event, owed=not self._is_kept)

    def _stop(self, worker: str) -> bool:
        """Have *worker* stop the body; tell whether its pool can."""
        hostname = unquote(worker).rpartition("/")[0]
        try:
            replies = self.app.control.broadcast(
                "bgtask_stop",
                arguments={"task_id": self.id},
                destination=[hostname],
                reply=True,
                limit=1,
                timeout=STOP_TIMEOUT,
            )
        except Exception:  # the task has ended all the same
            logger.warning(
                "%s was not told to stop %s.", hostname, self.id, exc_info=True
            )
            return False
        answers = [answer for reply in replies or () for answer in reply.values()]
        return any(isinstance(a, dict) and a.get("stopped") for a in answers)

    def _scripts(self) -> Scripts | None:
        """Return the scripts of the task's scope, ``None`` if none knows it."""
        extension: Extension = extension_of(self.app)
        if self.scope is not None:
            return extension.scripts(self.scope)
        for scope in extension.scopes:
            if extension.scripts(scope).phase(self.id).state:
                self.scope = scope
                return extension.scripts(scope)
        return None
