"""Give a message to this worker's own consumer that no broker has delivered.

It takes the way of any other: strategy, request, pool, gate; limits, signals and
events are the usual ones.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.request import Request
from kombu.message import Message as KombuMessage

from ..message import HEADER, Message


__all__ = ["Intake", "OwnMessage", "copy_of"]

logger = get_logger(__name__)


class OwnMessage(KombuMessage):
    """A message without a broker behind it.

    Args:
        message: As it was published, or would have been.
        give_back: Called if it is to be delivered again, with whether this worker
            may have it then.
        accept: Content types that the worker accepts.
        **header: What goes into our header.

    Raises:
        Unreadable: If it is no message.
    """

    def __init__(
        self,
        message: Message,
        give_back: Callable[[bool], None],
        accept: Any,
        **header: int,
    ) -> None:
        envelope = message.opened()
        headers = envelope["headers"]
        if header:
            headers[HEADER] = {**headers.get(HEADER, {}), **header}
        super().__init__(
            body=message.body,  # type: ignore[arg-type]  # bytes, as from a broker
            content_type=envelope["content_type"],
            content_encoding=envelope["content_encoding"],
            delivery_info={
                "exchange": envelope["exchange"],
                "routing_key": envelope["routing_key"],
                "redelivered": False,
            },
            properties=envelope["properties"],
            headers=headers,
            accept=accept,
        )
        self.give_back = give_back
        #: What Celery has made of it.
        self.request: Request | None = None
        #: How many messages less the broker delivers meanwhile.
        self.lowered = 0

    @property
    def is_over(self) -> bool:
        """Whether it takes no place any more: not of the pool, nor of a rate limit."""
        request = self.request
        return self.acknowledged and (
            request is None
            or (
                request not in state.reserved_requests
                and request not in state.active_requests
            )
        )

    def on_ack(self, *_: Any, **__: Any) -> None:
        """Take note that it needs not come again: nobody would send it."""
        self._state = "ACK"

    def on_reject(self, _logger: Any, _errors: Any, requeue: bool = False) -> None:
        """Give it back if it is to come again."""
        self._state = "REQUEUED" if requeue else "REJECTED"
        if requeue:
            self.give_back(True)


class Intake:
    """The way of messages into the pool of this worker.

    Messages come from any thread; they are handed to Celery on the thread of the
    worker's event loop, which a pipe wakes at once. Pools of greenlets have no such
    loop: there the greenlet that brings a message hands it over itself.
    """

    def __init__(self) -> None:
        self._consumer: Any = None
        self._hub: Any = None
        self._lock = threading.Lock()
        self._coming: deque[OwnMessage] = deque()
        self._taken: list[OwnMessage] = []
        self._pipe: tuple[int, int] | None = None
        #: Called when a place in the pool may have become free, on any thread.
        self.on_free: Callable[[], None] = lambda: None

    def attend(self, pool: Any) -> None:
        """Hear when a place of *pool* may be free.

        Results of processes come to the event loop, which ticks. What threads and
        greenlets of this process do wakes nobody: only they know that they are done.
        """
        if pool.uses_semaphore:
            return
        apply_async = pool.apply_async

        def told(callback: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(callback)
            def call(*args: Any, **kwargs: Any) -> Any:
                try:
                    return callback(*args, **kwargs)
                finally:
                    self._look()

            return call

        def apply(*args: Any, **options: Any) -> Any:
            for name in ("callback", "timeout_callback"):
                if options.get(name):
                    options[name] = told(options[name])
            return apply_async(*args, **options)

        pool.apply_async = apply

    def open(self, consumer: Any) -> None:
        """Begin with a consumer that is connected."""
        self._consumer = consumer
        if consumer.hub is not None and self._pipe is None:
            self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def register(self, hub: Any) -> None:
        """Have the event loop wake when a message comes; after each reset again."""
        self._hub = hub
        if self._pipe is not None:
            hub.add_reader(self._pipe[0], self._on_wake)
            hub.on_tick.add(self._look)

    def shut(self) -> None:
        """Take nothing more, and give back what has not come to the consumer."""
        hub, self._hub, self._consumer = self._hub, None, None
        if hub is not None and self._pipe is not None:
            hub.on_tick.discard(self._look)
            with contextlib.suppress(Exception):  # a loop that has been reset
                hub.remove_reader(self._pipe[0])
        self._take_all()
        with self._lock:
            self._taken.clear()  # the next consumer has a prefetch of its own

    @property
    def accept(self) -> Any:
        """The content types that the worker accepts."""
        return self._consumer.task_consumer.accept if self._consumer else None

    @property
    def is_open(self) -> bool:
        """Whether the worker consumes just now, and has not been told to stop."""
        ends = (state.should_stop, state.should_terminate)
        # Not by ``in``: a warm shutdown is EX_OK, which is 0 and equals False.
        stops = any(end is not None and end is not False for end in ends)
        return self._consumer is not None and not stops

    @property
    def free(self) -> int:
        """Places in the pool that nothing has been received for."""
        consumer = self._consumer
        if not self.is_open or consumer is None or consumer.pool is None:
            return 0
        received = {*copy_of(state.reserved_requests), *copy_of(state.active_requests)}
        with self._lock:
            others = sum(message.request not in received for message in self._taken)
        return int(consumer.pool.num_processes) - len(received) - others

    def put(self, message: OwnMessage) -> None:
        """Start the task of *message* in the pool."""
        with self._lock:
            self._taken.append(message)
            self._coming.append(message)
        if self._pipe is None or self._consumer is None:
            self._take_all()
        else:
            with contextlib.suppress(BlockingIOError):  # it is full of wakes
                os.write(self._pipe[1], b"\0")

    def _on_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._pipe is not None and os.read(self._pipe[0], 4096):
                pass
        self._take_all()

    def _take_all(self) -> None:
        while True:
            with self._lock:
                if not self._coming:
                    return
                message = self._coming.popleft()
            consumer = self._consumer
            try:
                if consumer is not None:
                    self._take(consumer, message)
                    continue
                fits = True
            except Exception:
                logger.exception("This worker cannot start a task that it has taken.")
                fits = False
            self._forget(message)
            message.give_back(fits)

    def _take(self, consumer: Any, message: OwnMessage) -> None:
        strategy = consumer.strategies[message.headers["task"]]
        self._lower_prefetch(consumer, message)
        callbacks = consumer.on_task_message
        strategy(message, None, message.on_ack, message.on_reject, callbacks)

    def _lower_prefetch(self, consumer: Any, message: OwnMessage) -> None:
        """Have the broker deliver less: a place of the pool is taken."""
        qos = consumer.qos
        with qos._mutex:  # noqa: SLF001 - the only way to know what it has taken
            lowered = min(consumer.prefetch_multiplier, max(qos.value - 1, 0))
            qos.decrement_eventually(lowered)
        message.lowered = int(lowered)

    def _look(self) -> None:
        """See whose places are free again."""
        for message in [message for message in self._taken if message.is_over]:
            self._forget(message)
        self.on_free()

    def _forget(self, message: OwnMessage) -> None:
        """Have the broker deliver as before the message came."""
        with self._lock:
            if message not in self._taken:
                return
            self._taken.remove(message)
        if self._consumer is not None and message.lowered:
            self._consumer.qos.increment_eventually(message.lowered)


def copy_of(requests: Iterable[Any]) -> list[Any]:
    """Return a copy of a set that the main thread changes at any time."""
    while True:
        try:
            return list(requests)
        except RuntimeError:  # it was changed while we looked
            continue
