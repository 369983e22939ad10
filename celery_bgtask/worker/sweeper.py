"""Free what dead workers held; end what ran out of time; publish what was left.

Every worker sweeps every scope it knows; the script lets one of them do it at a
time. A sweep that finds nothing is one short call.
"""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from celery.utils.log import get_logger

from .. import outbox
from ..conclusion import Outcome, conclude, task_of
from ..ends import End
from ..exceptions import StoreUnavailable
from ..options import options_of
from ..scripts import Scripts
from ..scripts.replies import Owed, Swept


__all__ = ["sweep"]

logger = get_logger(__name__)

#: What is called with each end by a verdict that was concluded here, once.
Tell = Callable[[End], None]


def sweep(
    app: Celery,
    scripts: Scripts,
    worker: str,
    *,
    tell: Tell | None = None,
    follow: bool = True,
) -> Swept:
    """Sweep one scope: publish what was left, conclude what is owed.

    Args:
        app: The app of the scope's tasks.
        scripts: Of the scope.
        worker: Who sweeps.
        tell: Is called with each end that was concluded, for monitors.
        follow: Whether to start what follows from a concluded task, too: only
            in a worker; else that stays owed to one.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    swept = scripts.sweep(worker)
    for lost in swept.lost:
        logger.warning(
            "Task %s on %r was lost with worker %s: its lease ran out and its slot "
            "is free.",
            lost.task_id,
            lost.key,
            lost.worker,
            extra={"bgtask_event": "task_lost", "bgtask_key": lost.key},
        )
    if swept.granted:
        outbox.publish(app, scripts, swept.granted)
    for owed in swept.owed:
        try:
            finish(app, scripts, owed, tell=tell, follow=follow)
        except StoreUnavailable:
            raise
        except Exception:
            logger.exception(
                "Task %s could not be concluded; tried again later.", owed.task_id
            )
    return swept


def finish(
    app: Celery, scripts: Scripts, owed: Owed, *, tell: Tell | None, follow: bool
) -> None:
    """Conclude one task and note that it is done.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    outcome, event, kept, end = conclude(app, owed, scripts.scope, follow=follow)
    if outcome is Outcome.DONE:
        first = scripts.conclude(owed.task_id, owed.attempt, event, owed=not kept)
        if first and end is not None and tell is not None:
            tell(end)
    elif outcome is Outcome.OWED:
        scripts.announce(owed.task_id, event, owed=not kept)
    else:
        task = task_of(app, scripts.scope)
        limit = options_of(task).limit_of(owed.key) if task else -1
        granted = scripts.again(owed.task_id, owed.attempt, limit=limit)
        outbox.publish(app, scripts, granted)
