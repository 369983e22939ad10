"""What the body of a task may say and ask while it runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from typing import Any, TypeVar, cast

from celery import Task
from celery.exceptions import Ignore

from ..control.blocking import report
from ..events import Event, Progress, decode, encode_progress
from ..exceptions import BgTaskError
from ..extension import extension_of
from ..options import options_of
from ..signals import task_progress
from .mirror import can_mirror, mirror
from .progress import Reporter
from .run import Run, current_run


__all__ = ["TaskBody", "reporter_of", "reports_in_line"]

#: Bytes that a report may have, at most: many are kept for who comes late.
REPORT_SIZE = 64 * 1024

#: Seconds between two reports of ``track``.
TRACK_INTERVAL = 0.1

Item = TypeVar("Item")

#: What a call that runs in line has reported, for its result.
_in_line: ContextVar[list[Event] | None] = ContextVar("bgtask_reports", default=None)


@contextlib.contextmanager
def reports_in_line() -> Iterator[list[Event]]:
    """Collect what calls report that run in this thread, without a worker.

    One list for a call and those within it, of which a retry is one.
    """
    events = _in_line.get()
    if events is not None:
        yield events
        return
    events = []
    reset = _in_line.set(events)
    try:
        yield events
    finally:
        _in_line.reset(reset)


class TaskBody(Task):  # type: ignore[type-arg]  # not generic before Celery 5.7
    """The part of a task that its own body uses."""

    abstract = True

    def progress(
        self,
        current: float | None = None,
        total: float | None = None,
        description: str = "",
        **data: Any,
    ) -> None:
        """Tell who follows this call how far it has come.

        Twenty reports in a row go out at once, then twenty a second; of what comes
        faster the latest is kept and goes out when it may. The last one before the
        end always arrives. A report of more than 64 KiB, or ``max_payload_size`` if
        that is less, is dropped and logged. A thread of the body reports if it was
        started in its context: ``contextvars.copy_context().run``. While the store
        is away nothing is sent; nothing fails.

        Args:
            current: What is done, in units of your own.
            total: What there is to do.
            description: For people.
            **data: Anything else that is JSON.

        Raises:
            FinishTimeout: If the task had to end by now.
            TaskCancelled: If it was cancelled.
            LeaseLost: If its worker was away for longer than its lease.
            TypeError: If what is reported is not JSON.
            ValueError: If a number is not finite.
        """
        run = self._own_run()
        if run is None:
            self._report_in_line(current, total, description, data)
            return
        reporter = reporter_of(run, self, self.request_stack.top)
        reporter.report(current, total, description, data)

    def track(
        self,
        iterable: Iterable[Item],
        total: float | None = None,
        description: str = "",
    ) -> Iterator[Item]:
        """Yield what is in *iterable*, and report how many the body has done.

        At most ten times a second, and the last one always. As ``rich.progress.track``.

        Args:
            iterable: What the body works through.
            total: How many there are; by default ``len(iterable)``, if it has one.
            description: For people.

        Raises:
            BgTaskError: As :meth:`progress`.
        """
        if total is None and isinstance(iterable, Sized):
            total = len(iterable)
        done = told = 0
        next_at = time.monotonic() + TRACK_INTERVAL
        self.progress(done, total, description)
        try:
            for item in iterable:
                yield item
                done += 1
                if time.monotonic() >= next_at:
                    told = done
                    self.progress(done, total, description)
                    next_at = time.monotonic() + TRACK_INTERVAL
        finally:
            if told < done:
                # Whatever ends the loop is what the body gets to see.
                with contextlib.suppress(BgTaskError):
                    self.progress(done, total, description)

    def replace(self, sig: Any) -> Any:
        """Replace this task by *sig*, which goes on under its id, as in Celery."""
        try:
            return super().replace(sig)
        except Ignore:
            if (run := self._own_run()) is not None:
                run.is_replaced = True
            raise

    def checkpoint(self) -> None:
        """Ask whether this run may go on.

        Raises:
            FinishTimeout: If the task had to end by now.
            TaskCancelled: If it was cancelled.
            LeaseLost: If its worker was away for longer than its lease.
        """
        run = self._own_run()
        if run is not None:
            run.checkpoint()

    def report_bad_task(self, reason: str = "") -> bool:
        """Count a strike against the key of this run; tell if it is blocked now.

        More than ``block_threshold`` of them within ``block_interval`` seconds
        block the key for ``block_for`` seconds. Outside of a run nothing happens.
        As ``reportBadTask`` of node-background-task, by the key of the run.

        Args:
            reason: Why, for those who are refused: in :exc:`.KeyBlocked`.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        key = self.key
        return key is not None and report(self, key, reason)

    @property
    def key(self) -> str | None:
        """The key whose slot the current run holds; ``None`` without one."""
        run = self._own_run()
        return run.key if run is not None else None

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the submitter has given along by ``apply_async(metadata=...)``."""
        run = self._own_run()
        return run.metadata if run is not None else {}

    def _own_run(self) -> Run | None:
        run = current_run()
        request: Any = self.request_stack.top
        if run is None or run.task.name != self.name:
            return None
        # A thread of the body has the run by its context, and no request.
        return run if request is None or request.id == run.task_id else None

    def _report_in_line(
        self, current: float | None, total: float | None, description: str, data: Any
    ) -> None:
        """Report without a run: eager mode, or the task is called as a function."""
        events = _in_line.get()
        task_id = self.request.id or ""
        text = encode_progress(
            task_id,
            (self.request.retries or 0) + 1,
            current=current,
            total=total,
            description=description,
            data=data,
        )
        number = sum(event.task_id == task_id for event in events or ()) + 1
        event = decode(f"{number} {time.time() * 1000:.0f} {text}".encode())
        if events is not None:
            events.append(cast("Progress", event))
        task_progress.send(sender=self, progress=event, result=None)


def reporter_of(run: Run, task: Any, context: Any) -> Reporter:
    """Return what reports for *run* of *task*, whose request is *context*."""
    if run.reporter is not None:
        return run.reporter
    wanted = context is not None and extension_of(task.app).settings.progress_mirror
    # Celery makes one for each thread that asks, and a reporter's are many.
    backend = task.backend

    def mirror_it(meta: dict[str, Any]) -> None:
        mirror(backend, context, meta)

    run.reporter = Reporter(
        run.scripts,
        task_id=run.task_id,
        attempt=run.attempt,
        token=run.token,
        max_size=min(options_of(task).max_payload_size, REPORT_SIZE),
        mirror=mirror_it if wanted and can_mirror(task, context) else None,
    )
    return run.reporter
