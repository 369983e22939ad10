"""Publish handed-on tasks, surely and once.

The script that frees a slot writes the next task to the outbox; whoever called
it publishes the message and confirms. What nobody confirms in time, a sweep
publishes: a process may die on any line here and the task still starts. Its
message may then exist twice, and only one of the two starts (:mod:`.acceptance`).
"""

from __future__ import annotations

from collections.abc import Iterable

from celery import Celery
from celery.utils.log import get_logger
from kombu import Producer

from .exceptions import StoreUnavailable
from .message import Unreadable
from .scripts import Scripts
from .scripts.replies import Granted


__all__ = ["publish"]

logger = get_logger(__name__)


def publish(
    app: Celery,
    scripts: Scripts,
    granted: Iterable[Granted],
    *,
    by: Producer | None = None,
) -> None:
    """Send the messages of *granted* and confirm them; a failure is logged.

    Who holds a producer of the app's pool passes it *by*: to wait for another
    one could take for ever. What could not be sent or confirmed stays in the
    outbox for a sweep.
    """
    sent = []
    for task in granted:
        try:
            task.message.publish(
                app, by=by, attempt=task.attempt, **task.deadlines._asdict()
            )
        except Unreadable as exc:
            logger.error(  # noqa: TRY400 - what is wrong is in the store
                "Task %s has got its slot and cannot be published, ever: %s",
                task.task_id,
                exc,
            )
            end_unreadable(app, scripts, task)
        except Exception:
            logger.warning(
                "Task %s has got its slot but could not be published; "
                "a worker tries again after bgtask_publish_grace.",
                task.task_id,
                exc_info=True,
            )
        else:
            sent.append(task)
    if sent:
        try:
            scripts.confirm(sent)
        except StoreUnavailable as exc:
            logger.debug("%d published tasks were not confirmed: %s", len(sent), exc)


def end_unreadable(app: Celery, scripts: Scripts, task: Granted) -> None:
    """End a task whose stored message nobody can read; its slot goes to the next."""
    try:
        reason = "its stored message cannot be read"
        ended = scripts.cancel(task.task_id, reason=reason, terminate=False)
    except StoreUnavailable:
        return  # it is in the outbox: a sweep comes here again
    publish(app, scripts, ended.granted)
