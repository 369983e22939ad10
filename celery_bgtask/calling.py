"""A call of a task, around the moment at which it is submitted."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from celery import Celery, states
from celery.app.task import Context

from .admission import Submission
from .conclusion import is_kept
from .events import Ended, encode_end
from .exceptions import KeyBlocked, LimitReached
from .extension import extension_of
from .message import HEADER
from .options import CALL_OPTIONS, options_of
from .running.run import current_run
from .signals import task_done, task_error, task_progress


__all__ = [
    "producer_of",
    "send_signals_of",
    "store_refusal",
    "submission_of",
    "take_own",
    "tell_end",
    "without_header",
]


def take_own(options: dict[str, Any], name: str) -> dict[str, Any]:
    """Take out of a call's *options* those that Celery does not know.

    Raises:
        ImproperlyConfigured: If one will not do.
    """
    own = {option: options.pop(option) for option in CALL_OPTIONS if option in options}
    for option, value in own.items():
        CALL_OPTIONS[option].checked(value, f"{name}.apply_async: {option}")
    return own


def without_header(headers: dict[str, Any]) -> dict[str, Any]:
    """Return *headers* without ours: Celery copies those of a run to its retry."""
    return {name: headers[name] for name in headers if name != HEADER}


def producer_of(app: Celery, given: Any, options: dict[str, Any]) -> Any:
    """Return the producer to publish by; Celery would make one of its own.

    *given* and two of Celery's options, which are taken out, are three ways to
    choose it.
    """
    connection, publisher = (
        options.pop("connection", None),
        options.pop("publisher", None),
    )
    if connection:
        producer = app.amqp.Producer(connection, auto_declare=False)
        return contextlib.nullcontext(producer)
    return app.producer_or_acquire(given or publisher)


def submission_of(
    task: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    own: Mapping[str, Any],
    producer: Any,
) -> Submission:
    """Return the submission of a call; its *own* options go before the task's."""
    options = options_of(task)
    return Submission(
        producer=producer,
        task=task,
        options=options,
        extension=extension_of(task.app),
        key=lambda: options.key.of(args, kwargs),
        wait=own.get("when_full", "wait" if options.wait else "reject") == "wait",
        token=token_of_own_run,
        reply=lambda task_id: reply_channel(task, task_id),
        metadata=own.get("metadata") or {},
        accept_timeout=own.get("accept_timeout", options.accept_timeout),
        finish_timeout=own.get("finish_timeout", options.finish_timeout),
    )


def token_of_own_run(task_id: str) -> str:
    """Return the token of the current run if it is of the task *task_id*."""
    run = current_run()
    return run.token if run is not None and run.task_id == task_id else ""


def reply_channel(task: Any, task_id: str) -> str:
    """Return where the submitter hears of a call; its retries are its own, too."""
    run = current_run()
    if run is not None and run.task_id == task_id and run.reply:
        return run.reply
    return extension_of(task.app).reply_channel


def store_refusal(
    task: Any, submission: Submission, exc: LimitReached | KeyBlocked
) -> Any:
    """Store the refusal as the result, so that a chord ends with it; return that."""
    request: Any = Context(submission.request or {}, delivery_info={})
    task.backend.mark_as_failure(
        request.id,
        exc,
        request=request,
        store_result=not request.ignore_result or task.store_errors_even_if_ignored,
    )
    event = encode_end(request.id, 0, state=states.FAILURE, error=exc)
    kept = is_kept(vars(request), task)
    scripts = extension_of(task.app).scripts(options_of(task).scope)
    scripts.announce(request.id, event, owed=not kept)
    return task.AsyncResult(request.id)


def send_signals_of(task: Any, result: Any) -> None:
    """Follow a call of this process for those who have connected to signals."""
    signals = (task_progress, task_done, task_error)
    if not any(signal.has_listeners(task) for signal in signals):
        return

    def hear(event: Any) -> None:
        if isinstance(event, Ended):
            tell_end(task, result, event)
        else:
            task_progress.send(sender=task, progress=event, result=result)

    result.follow(hear)


def tell_end(task: Any, result: Any, ended: Ended) -> None:
    """Send the signal of the end of a call."""
    signal = task_done if ended.is_success else task_error
    signal.send(sender=task, result=result, ended=ended)
