"""Where the messages of tasks are: what the broker and the workers say."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from celery import Celery
from celery.utils.log import get_logger

from ..message import Message, Unreadable


__all__ = ["Whereabouts"]

logger = get_logger(__name__)

#: Seconds to wait for what workers say.
REPLY_TIMEOUT = 1.0

#: Tasks to ask the workers about at a time.
BATCH = 100


class Whereabouts:
    """Looks for messages that nobody seems to have.

    Args:
        app: The app of the tasks.
        task: The name of one, for those whose message is not known.
    """

    def __init__(self, app: Celery, task: str) -> None:
        self._app = app
        self._task = task
        self._depths: dict[str, int | None] = {}

    def without_message(self, envelopes: Mapping[str, bytes]) -> Iterator[str]:
        """Yield the tasks whose queue is empty and which no worker has received.

        A queue whose depth cannot be told counts as full: nothing is lost for sure.

        Args:
            envelopes: Of their messages, by task id; empty if unknown.
        """
        ids = [i for i, env in envelopes.items() if self._depth(self._queue(env)) == 0]
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            received = self._received(batch)
            # A message may have moved from the queue to a worker in between.
            yield from (task_id for task_id in batch if task_id not in received)

    def _queue(self, envelope: bytes) -> str:
        """Return the queue of a message."""
        app = self._app
        if not envelope:
            queue = app.amqp.router.route({}, self._task)["queue"]
            return str(getattr(queue, "name", queue))
        try:
            parts = Message(b"", envelope).opened()
        except Unreadable:  # nobody can publish it
            return ""
        exchange, routing_key = parts["exchange"], parts["routing_key"]
        for name, queue in app.amqp.queues.items():
            if exchange and queue.exchange.name == exchange:
                return str(name)
        return str(routing_key)

    def _depth(self, queue: str) -> int | None:
        """Return how many messages a queue has, ``None`` if that cannot be told."""
        if queue not in self._depths:
            self._depths[queue] = self._count(queue)
        return self._depths[queue]

    def _count(self, queue: str) -> int | None:
        try:
            with self._app.connection_for_read() as connection:
                channel: Any = connection.default_channel
                with contextlib.suppress(*connection.channel_errors):  # there is none
                    declared = channel.queue_declare(queue, passive=True)
                    return int(declared.message_count)
                return 0
        except Exception:
            logger.warning("The depth of queue %s is unknown.", queue, exc_info=True)
            return None

    def _received(self, ids: list[str]) -> set[str]:
        """Return which tasks a worker has in hand."""
        try:
            inspect = self._app.control.inspect(timeout=REPLY_TIMEOUT)
            answers = inspect.query_task(*ids) or {}
        except Exception:  # then nothing is lost for sure
            logger.warning("The workers could not be asked.", exc_info=True)
            return set(ids)
        return {task_id for answer in answers.values() for task_id in answer}
