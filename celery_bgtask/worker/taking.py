"""Take an offer for this worker: by a claim, or without one where nobody else could."""

from __future__ import annotations

import contextlib

from celery.utils.log import get_logger

from .. import outbox
from ..events import Announcement
from ..exceptions import StoreUnavailable
from ..extension import Extension
from ..scripts import Scripts
from ..scripts.replies import Granted, granted_of
from .intake import Intake, OwnMessage


__all__ = ["Taker"]

logger = get_logger(__name__)


class Taker:
    """Takes what is on offer into the pool of this worker.

    Args:
        extension: Of the worker's app.
        worker_id: The worker's id in the store.
        intake: The way into its pool.
    """

    def __init__(self, extension: Extension, worker_id: str, intake: Intake) -> None:
        self._extension = extension
        self._worker_id = worker_id
        self._intake = intake

    def take(self, scripts: Scripts, announcement: Announcement) -> None:
        """Start a task, unless another worker was faster.

        What was handed to this worker, the only one, is on offer until it starts: so
        it may be found again meanwhile.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        which = f"{announcement.task_id} {announcement.round}"
        if self._intake.has(which):
            return
        handed = announcement.handed
        if handed is not None and handed[0] == self._worker_id:
            [offer] = granted_of([announcement.task_id.encode(), *handed[1]])
            self._start(scripts, offer, which)
        else:
            claimed = scripts.claim(announcement.task_id, self._worker_id)
            if claimed is not None:
                self._start(scripts, claimed)

    def _start(self, scripts: Scripts, offer: Granted, which: str = "") -> None:
        def give_back(fits: bool) -> None:
            with contextlib.suppress(StoreUnavailable):  # then the claim runs out
                self._give_back(scripts, offer.task_id, claimed=not which, fits=fits)

        try:
            message = OwnMessage(
                offer.message,
                give_back,
                self._intake.accept,
                attempt=offer.attempt,
                **offer.deadlines._asdict(),
            )
            self._intake.put(message, which)
        except Exception:
            logger.exception("Task %s cannot be started here.", offer.task_id)
            give_back(False)

    def _give_back(
        self, scripts: Scripts, task_id: str, *, claimed: bool, fits: bool
    ) -> None:
        """Offer a task again; not to this worker if it does not fit."""
        if claimed:
            granted = scripts.unclaim(task_id, self._worker_id, ignored=not fits)
        elif fits:
            return  # it has been on offer all the time
        else:
            granted = scripts.ignore(task_id, self._worker_id)
        outbox.publish(self._extension.app, scripts, granted)
