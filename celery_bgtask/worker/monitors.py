"""Tell Celery's receivers and monitors of ends that no pool of this worker has seen.

A signal is sent where the end is concluded. An event goes by the dispatcher of the
worker's consumer, on the thread that it belongs to: who concludes does not wait for
a broker, and what the worker sends arrives in order.
"""

from __future__ import annotations

import contextlib
from collections import deque
from typing import Any

from celery.utils.log import get_logger

from ..ends import End


__all__ = ["Monitors"]

logger = get_logger(__name__)

#: Events kept while the broker is away; the oldest are dropped.
MOST_UNSENT = 1000


class Monitors:
    """The way of this worker to those who watch it."""

    def __init__(self) -> None:
        self._consumer: Any = None
        self._unsent: deque[End] = deque(maxlen=MOST_UNSENT)

    def open(self, consumer: Any) -> None:
        """Begin with a consumer that is connected."""
        self._consumer = consumer
        self._send_soon()

    def shut(self) -> None:
        """Keep what comes from now on until there is a consumer again."""
        self._consumer = None

    def tell(self, end: End) -> None:
        """Tell of *end*, from any thread."""
        if getattr(end.task, "send_events", True) and self._are_wanted():
            self._unsent.append(end)
        end.send_signal()
        self._send_soon()

    def _are_wanted(self) -> bool:
        """Tell whether this worker sends events of tasks, as far as is known."""
        dispatcher = getattr(self._consumer, "event_dispatcher", None)
        if dispatcher is None:
            return True  # it is not connected: who sends them knows
        groups = dispatcher.groups
        return bool(dispatcher.enabled and (not groups or "task" in groups))

    def _send_soon(self) -> None:
        consumer = self._consumer
        if consumer is not None and self._unsent:
            consumer.call_soon(self._send)

    def _send(self) -> None:
        """Send what is kept; nobody is harmed if that fails."""
        dispatcher = getattr(self._consumer, "event_dispatcher", None)
        if dispatcher is None:
            return
        with contextlib.suppress(IndexError):  # all are sent
            while True:
                end = self._unsent.popleft()
                kind, fields = end.event()
                try:
                    dispatcher.send(kind, uuid=end.task_id, **fields)
                except Exception:
                    logger.debug("No event is sent of %s.", fields, exc_info=True)
