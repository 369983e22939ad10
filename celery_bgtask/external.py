"""Run an offered task outside of any Celery worker: in a service, in a script.

::

    with accept_task(task_id) as work:
        work.progress(1, 2)
        work.complete(do(work.payload))

The lease is kept while one is in the block. The result, errbacks, chord and chain
are Celery's own: the value goes through the tracer that a worker would use.
"""

from __future__ import annotations

import os
import secrets
from types import TracebackType
from typing import TYPE_CHECKING, Any

from celery import Celery, Task, states
from celery.app import app_or_default
from celery.app.task import Context
from celery.app.trace import build_tracer
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname

from .exceptions import LeaseLost, TaskNotAvailable
from .extension import Extension, extension_of
from .keys import quote
from .message import HEADER
from .options import Options, options_of
from .periodic import Periodic
from .running.acceptance import end_of
from .running.arrival import Arrival
from .running.body import reporter_of
from .running.run import Run
from .scripts import Scripts
from .scripts.replies import Granted
from .verdicts import error_of


if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Work", "accept_task"]

logger = get_logger(__name__)

#: Two renewals may fail before the lease is lost.
RENEWALS_PER_LEASE = 3


class Work:
    """An offered task that this process does; made by :func:`accept_task`.

    Who leaves the block with an exception fails the task with it; who leaves it
    without a word completes it with ``None``.

    Attributes:
        task_id: The call.
        task: That is called.
        args: Positional arguments of the call.
        kwargs: Named arguments.
        metadata: What the submitter has given along.
        key: Whose slot the task holds.
    """

    def __init__(self, app: Celery, task_id: str) -> None:
        self.task_id = task_id
        self._app = app
        self._over: str | None = "it was not accepted: use `with accept_task(...)`"
        self._run: Run | None = None
        self._keeper: Periodic | None = None

    def __enter__(self) -> Self:
        """Claim the offer and start.

        Raises:
            TaskNotAvailable: If it is not on offer (any more).
            StoreUnavailable: If the store does not answer.
        """
        extension = extension_of(self._app)
        worker = quote(f"external@{gethostname()}/{os.getpid()}-{secrets.token_hex(4)}")
        scripts, offer = self._claim(extension, worker)
        try:
            self._begin(extension, scripts, offer, worker)
        except BaseException:
            scripts.unclaim(self.task_id, worker)
            raise
        pause = extension.settings.lease / RENEWALS_PER_LEASE

        def keep() -> float:
            for lost in scripts.renew(worker, [self.task_id]):
                logger.warning("Task %s has lost its lease.", lost.task_id)
            return pause

        self._over = None
        self._keeper = Periodic(f"bgtask lease of {self.task_id}", keep, lambda: True)
        self._keeper.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the task, if that has not been said."""
        try:
            if self._over is None and exc is not None:
                self.fail(
                    exc if isinstance(exc, Exception) else RuntimeError(repr(exc))
                )
            elif self._over is None:
                self.complete()
        finally:
            self._over = self._over or "its block has been left"
            if self._keeper is not None:
                self._keeper.leave()

    @property
    def payload(self) -> Any:
        """The call's only argument, if that is all; else its arguments by name."""
        if len(self.args) == 1 and not self.kwargs:
            return self.args[0]
        return options_of(self.task).key.bind(tuple(self.args), self.kwargs)

    def progress(
        self,
        current: float | None = None,
        total: float | None = None,
        description: str = "",
        **data: Any,
    ) -> None:
        """Report, as ``self.progress`` does in a task's body.

        Args:
            current: What is done, in units of your own.
            total: What there is to do.
            description: For people.
            **data: Anything else that is JSON.

        Raises:
            TaskNotAvailable: If the task is not this block's (any more).
            BgTaskError: If the run has been ended; by which verdict.
        """
        reporter = reporter_of(self._mine(), self.task, self._context)
        reporter.report(current, total, description, data)

    def checkpoint(self) -> None:
        """Ask whether the task is still this block's; raises as in a body."""
        self._mine().checkpoint()

    def complete(self, value: Any = None) -> None:
        """End the task with *value* as its result.

        Raises:
            TaskNotAvailable: If it has been completed or failed, or is not accepted.
            BgTaskError: If it was ended meanwhile: the value is dropped.
        """

        def run(*_: Any, **__: Any) -> Any:
            return value

        self._trace(run, "it has been completed")

    def fail(self, exc: Exception) -> None:
        """End the task with *exc*.

        Raises:
            TaskNotAvailable: If it has been completed or failed, or is not accepted.
            BgTaskError: If it was ended meanwhile.
        """

        def run(*_: Any, **__: Any) -> Any:
            raise exc

        self._trace(run, "it has failed")

    def _mine(self) -> Run:
        if self._over is not None or self._run is None:
            raise TaskNotAvailable(self.task_id, self._over or "it was not accepted")
        return self._run

    def _trace(self, body: Any, over: str) -> None:
        """End the run as if a worker had run *body*."""
        run = self._mine()
        self._over = over
        standing = run.scripts.standing(self.task_id, run.token)
        task = with_body(self.task, body)
        tracer = build_tracer(task.name, task, app=self._app)
        with run.current():
            traced = tracer(self.task_id, self.args, self.kwargs, self._request)
            run.end = end_of(traced)
        if run.end[0] == states.IGNORED:
            # What has been concluded is forgotten when the run is released.
            if standing.valid:
                standing = run.scripts.standing(self.task_id, run.token)
            if standing.verdict:
                raise error_of(self.task_id, standing.verdict)
            raise LeaseLost(self.task_id)

    def _claim(self, extension: Extension, worker: str) -> tuple[Scripts, Granted]:
        _ = self._app.tasks  # declared, and made only when somebody asks
        for scope in extension.scopes:
            scripts = extension.scripts(scope)
            phase = scripts.phase(self.task_id).state
            if not phase:
                continue
            offer = scripts.claim(self.task_id, worker) if phase == "offered" else None
            if offer is None:
                why = (
                    "another one has taken it"
                    if phase == "offered"
                    else f"it is {phase}"
                )
                raise TaskNotAvailable(self.task_id, f"it is not on offer: {why}")
            return scripts, offer
        raise TaskNotAvailable(self.task_id, "the store does not know it")

    def _begin(
        self, extension: Extension, scripts: Scripts, offer: Granted, worker: str
    ) -> None:
        request = offer.message.request(self._app)
        header = {**request.get(HEADER, {}), "attempt": offer.attempt}
        request[HEADER] = header | offer.deadlines._asdict()
        request |= {"hostname": worker, "delivery_info": {}, "is_eager": False}
        self.task = self._app.tasks[request["task"]]
        self.args, self.kwargs = request.pop("args"), request.pop("kwargs")
        self._request = request
        self._context = Context(request, args=self.args, kwargs=self.kwargs)
        options: Options = options_of(self.task)
        arrival = Arrival(self.task, options, request, None, worker)
        self.metadata, self.key = arrival.metadata, arrival.key(self.args, self.kwargs)
        run = Run(
            task=self.task,
            scripts=scripts,
            task_id=self.task_id,
            key=self.key,
            limit=options.limit_of(self.key),
            attempt=offer.attempt,
            token=secrets.token_hex(8),
            worker="",
            patience=extension.settings.lease,
            deadlines=offer.deadlines,
            metadata=arrival.metadata,
            reply=arrival.reply,
            owed=not arrival.keeps_result(),
        )
        accepted = scripts.accept(
            self.task_id,
            offer.attempt,
            self.key,
            limit=run.limit,
            token=run.token,
            worker=worker,
            fresh=False,
            rank=extension.rank(None),
            retries=arrival.retries,
            deadlines=offer.deadlines,
            max_lost=options.max_lost,
            keep=True,
            reply=arrival.reply,
        )
        if accepted.status != "started":
            raise TaskNotAvailable(self.task_id, f"it is {accepted.status}")
        self._run = run


def with_body(task: Task[Any, Any], body: Any) -> Task[Any, Any]:
    """Return *task* with another body; the one that is registered stays as it is.

    Celery's ``copy.copy(task)`` is no copy: it is the current app's task.
    """
    other = type(task).__new__(type(task))
    vars(other).update(vars(task))
    other.run = body  # type: ignore[method-assign]  # of this one alone
    return other


def accept_task(task_id: str, *, app: Celery | None = None) -> Work:
    """Do an offered task in this process, in a ``with`` block.

    As ``acceptTask`` of node-background-task, and with a lease.

    Args:
        task_id: The task, as ``task_available`` has told of it, or as a result's id.
        app: The app whose task it is; by default Celery's current one.
    """
    return Work(app or app_or_default(), task_id)
