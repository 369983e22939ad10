"""BgTask: a Celery task whose calls take slots of a key."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from celery import Celery, Task
from celery.utils.log import get_logger

from .beat import is_beat
from .broadcast import BroadcastResult, call_all
from .calling import (
    producer_of,
    send_signals_of,
    store_refusal,
    submission_of,
    take_own,
    tell_end,
    without_header,
)
from .config import read_settings
from .control.control import Control
from .eager import BgEagerResult
from .events import Ended
from .exceptions import KeyBlocked, LimitReached
from .extension import extension_of
from .options import Options, complete_options
from .packing import Unsent
from .results.result import BgResult
from .running.acceptance import Gate
from .running.body import TaskBody, reports_in_line
from .running.run import guarded
from .subscribing import subscribe_late
from .taskclass import call_of, lift_options
from .worker.request import request_class
from .worker.steps import install


__all__ = ["BgTask"]

logger = get_logger(__name__)

#: What only Celery's canvas passes: nobody is there to catch an exception.
CANVAS_OPTIONS = frozenset({"chain", "chord", "group_id", "parent_id", "root_id"})


class GatedTracer:
    """The attribute where Celery puts a task's tracer: it puts a gate there.

    ``celery.app.trace`` assigns ``task.__trace__`` in every process that runs
    tasks, and every pool calls what it finds there (Celery 5.5 to 5.7).
    """

    def __get__(self, task: Task[Any, Any] | None, owner: type) -> Any:
        return None if task is None else vars(task).get("__trace__")

    def __set__(self, task: BgTask, tracer: Any) -> None:
        gate = tracer and Gate(task, task.bgtask, extension_of(task.app), tracer)
        vars(task)["__trace__"] = gate


class BgTask(TaskBody):
    """A task that runs at most ``max_per_key`` times at once per task key.

    The limit holds over all workers and clients of the app. A slot is taken
    when the task is submitted and given on when its body has ended, to the task
    that waits longest. It is a lease: a worker that dies gives it back after
    ``bgtask_lease`` seconds, and a worker that was away for so long may run on
    beside its successor until it notices.

    Use it by :func:`.bgtask`, or as ``@app.task(base=BgTask, task_key=...)``,
    or as a base of own task classes; those may override any of Celery's hooks.
    """

    abstract = True
    __trace__ = GatedTracer()

    #: The options as declared, lifted off the class: a callable among them would
    #: turn into a method there.
    bgtask_declared: ClassVar[dict[str, Any]] = {}
    _bgtask: ClassVar[Options | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        lift_options(cls)
        call = call_of(cls, BgTask)
        if not getattr(call, "is_guarded", False):
            cls.__call__ = guarded(call)  # type: ignore[method-assign]

    @guarded
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the task as a function: it takes no slot."""
        request: Any = self.request_stack.top  # None outside of any call
        if request and not request.called_directly and not request._protected:  # noqa: SLF001
            # Celery's tracer calls. Its own guard against a second request on
            # the stack (_protected, Celery 5.5 to 5.7) is in place in workers
            # only, not in eager mode.
            request._protected = 1  # noqa: SLF001
            return self.run(*args, **kwargs)
        return super().__call__(*args, **kwargs)

    @classmethod
    def bind(cls, app: Celery) -> Celery:
        """Bind to *app* and let its workers take care of the slots.

        Raises:
            ImproperlyConfigured: If the options do not fit the task or its scope.
        """
        bound = super().bind(app)
        lift_options(cls)  # task_annotations may have set some
        cls.Request = request_class(cls.Request)  # type: ignore[assignment]  # or a name
        if cls.name:
            cls._complete(app, cls.name)
        install(app)
        return bound

    @property
    def bgtask(self) -> Options:
        """The options of this task, complete."""
        # Of a class that was registered without a name, only the instance has one.
        return self._bgtask or self._complete(self.app, self.name)

    @classmethod
    def _complete(cls, app: Celery, name: str) -> Options:
        options = complete_options(cls, name, cls.bgtask_declared, read_settings(app))
        extension_of(app).declare(name, options.scope, options.max_per_key)
        cls._bgtask = options
        return options

    @property
    def control(self) -> Control:
        """The operator's view of this task's keys."""
        return Control(self)

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Submit a call of the task, with any of Celery's options and these.

        Args:
            args: Positional arguments of the call.
            kwargs: Named arguments.
            task_id: The id of the call. While a task of this id waits, is with the
                broker or runs, nothing is sent, and its result is returned.
            producer: Celery's, to publish by.
            *more: Celery's ``link``, ``link_error`` and ``shadow``, by place.
            **options: ``accept_timeout`` and ``finish_timeout``, in seconds, and
                ``when_full``, of this call alone; ``metadata``, a small dict of
                JSON for receivers of :data:`.task_available`; and Celery's.

        Returns:
            A :class:`.BgResult`, also of a call that waits for a slot.

        Raises:
            ImproperlyConfigured: If one of our options will not do.
            KeyBlocked: If its key is blocked; a canvas gets a stored failure.
            LimitReached: If its key is full; a canvas likewise.
            MissingTaskKey: If the call has no usable key.
            PayloadTooLarge: If its message is larger than the task allows.
            StoreUnavailable: If the store does not answer.
        """
        options |= zip(("link", "link_error", "shadow"), more, strict=False)
        own = take_own(options, self.name)
        if self.app.conf.task_always_eager:
            return super().apply_async(
                args, kwargs, task_id=task_id, producer=producer, **options
            )
        if options.get("headers"):
            options["headers"] = without_header(options["headers"])
        subscribe_late(self.app.backend)
        with producer_of(self.app, producer, options) as real:
            submission = submission_of(self, tuple(args or ()), kwargs or {}, own, real)
            try:
                result = super().apply_async(
                    args,
                    kwargs,
                    task_id=task_id,
                    producer=submission,  # type: ignore[arg-type]  # acts as one
                    **options,
                )
            except Exception as exc:
                if isinstance(exc, (LimitReached, KeyBlocked)):
                    if is_beat():
                        logger.warning("%s is not sent by beat: %s", self.name, exc)
                        return self.AsyncResult(submission.task_id)
                    if not CANVAS_OPTIONS.isdisjoint(options):
                        return store_refusal(self, submission, exc)
                raise
        if isinstance(result, BgResult):
            result.deadlines = submission.deadlines
            if submission.is_own:
                result.first_due = time.monotonic() + submission.due_in
                result.reply = submission.reply(result.id)
                send_signals_of(self, result)
        return result

    def apply(
        self, *args: Any, throw: bool | None = None, **kwargs: Any
    ) -> BgEagerResult:
        """Run a call in line: it takes no slot, and its reports come at once.

        Args:
            *args: As Celery's ``apply``.
            throw: Raise a failure; by default the setting ``task_eager_propagates``.
            **kwargs: As Celery's ``apply``.
        """
        with reports_in_line() as events:
            # When Celery raises what a body raises, a retry comes out as an error.
            done = super().apply(*args, throw=False, **kwargs)  # type: ignore[misc]
        result = BgEagerResult(
            done.id,
            done.result,
            done.state,
            done.traceback,  # type: ignore[arg-type]  # it is a text
            name=self.name,
        )
        error = done.result if isinstance(done.result, Exception) else None
        end = Ended.of(done.id, state=done.state, error=error)
        own = [event for event in events if event.task_id == done.id]
        result.events = (*own, end)
        tell_end(self, result, end)
        throws = self.app.either("task_eager_propagates", throw)
        if error is not None and done.failed() and throws:
            raise error
        return result

    def broadcast(
        self, args: Any = None, kwargs: Any = None, *, expires: float = 5.0
    ) -> BroadcastResult:
        """Run the task once on every live worker that knows it.

        It takes no slot, has no key and is not queued: a worker that starts it does
        so within *expires* seconds, or never. As ``broadcast`` of node-background-task,
        with answers.

        Args:
            args: Positional arguments.
            kwargs: Named arguments.
            expires: Seconds in which a worker must begin.

        Raises:
            PayloadTooLarge: If its message is larger than the task allows.
            StoreUnavailable: If the store does not answer.
        """
        subscribe_late(self.app.backend)
        with producer_of(self.app, None, {}) as real:
            unsent = Unsent(real, self.name, self.bgtask.max_payload_size)
            super().apply_async(
                args,
                kwargs,
                producer=unsent,  # type: ignore[arg-type]  # acts as one
            )
        assert unsent.message is not None  # noqa: S101 - Celery has published
        return call_all(self, unsent.message, expires)

    def AsyncResult(  # noqa: N802 - as Celery calls it
        self, task_id: str, **kwargs: Any
    ) -> BgResult:
        """Return the result of a call, in any process.

        Args:
            task_id: The call.
            **kwargs: As of a :class:`.BgResult`.
        """
        result = BgResult(
            task_id, **{"backend": self.backend, "app": self.app, **kwargs}
        )
        result.scope = self.bgtask.scope
        result.is_wanted = not self.ignore_result
        return result
