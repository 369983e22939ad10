"""Hear what is available, ask the receivers, and take what this worker can start.

An announcement is a hint: the store decides who gets an offer. What was not heard
is found by a look at the offers, once a sweep interval and whenever a place in the
pool becomes free.
"""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from celery import Celery
from celery.utils.log import get_logger

from .. import outbox
from ..events import Announcement, decode_announcement
from ..exceptions import StoreUnavailable
from ..extension import Extension
from ..keys import unquote
from ..options import Options, options_of
from ..periodic import Periodic
from ..results.listener import listener_of
from ..scripts import Scripts
from ..scripts.replies import Granted
from ..signals import task_available
from .intake import Intake, OwnMessage


__all__ = ["IGNORE", "Availability"]

logger = get_logger(__name__)


class _Ignore:
    """What a receiver of ``task_available`` returns to leave a task to others."""

    def __repr__(self) -> str:
        return "IGNORE"


#: Returned by a receiver of :data:`.task_available`: not on this worker.
IGNORE = _Ignore()

#: Offers whose answer by the receivers is remembered.
REMEMBERED = 10_000

#: Offers that one call reads.
BATCH = 100


class Availability:
    """A worker's part in what is announced and offered.

    Args:
        extension: Of the worker's app.
        worker_id: The worker's id in the store.
        intake: The way into its pool.
    """

    def __init__(self, extension: Extension, worker_id: str, intake: Intake) -> None:
        self._extension = extension
        self._worker_id = worker_id
        self._intake = intake
        self._heard: deque[Announcement] = deque()
        self._answers: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._watched: set[str] = set()
        self._look_at = 0.0
        self._short = False
        self._thread = Periodic("bgtask offers", self._step, lambda: True)

    def start(self) -> None:
        """Begin to listen, if there is anything to listen for."""
        self._intake.on_free = self._on_free
        self._thread.start()

    def leave(self) -> None:
        """Take nothing more."""
        self._thread.leave()
        listener = listener_of(self._extension.app)
        for channel in self._watched:
            listener.unwatch(channel)

    def queues(self) -> dict[str, list[str]]:
        """Return the queues from which this worker takes offers, by scope."""
        return {
            scope: self._consumed if is_offered(tasks) else []
            for scope, tasks in self._scopes().items()
        }

    @property
    def _consumed(self) -> list[str]:
        return list(self._app.amqp.queues.consume_from)

    @property
    def _app(self) -> Celery:
        return self._extension.app

    def _step(self) -> float:
        while self._heard:
            self._consider(self._heard.popleft())
        now = time.monotonic()
        if now >= self._look_at or (self._short and self._intake.free > 0):
            scopes = self._scopes()
            self._watch(scopes)
            self._look(scopes)
            self._look_at = now + self._extension.settings.sweep_interval
        return max(self._look_at - time.monotonic(), 0.01)

    def _watch(self, scopes: Mapping[str, Sequence[Any]]) -> None:
        """Subscribe where a receiver or an offer may want to know; else nowhere."""
        for scope, tasks in scopes.items():
            wanted = is_offered(tasks) or any(
                task_available.has_listeners(task) for task in tasks
            )
            channel = self._extension.scripts(scope).available_channel
            if wanted and channel not in self._watched:
                self._watched.add(channel)
                listener_of(self._app).watch(channel, self._hear, self._look_soon)

    def _hear(self, raw: bytes) -> None:
        try:
            announcement = decode_announcement(raw)
        except Exception:  # noqa: BLE001 - another version's, or somebody else's
            logger.warning("What was announced cannot be read: %.200r", raw)
            return
        if not self._thread.between(lambda: self._take_at_once(announcement)):
            self._heard.append(announcement)
            self._thread.wake()

    def _take_at_once(self, announcement: Announcement) -> bool:
        """Take an offer that no receiver is asked about, on the thread that hears."""
        task = self._app.tasks.get(announcement.task)
        if task is None or not self._is_for_us(announcement):
            return False
        others_first = self._heard or self._short or self._intake.free <= 0
        if others_first or task_available.has_listeners(task):
            return False
        with contextlib.suppress(StoreUnavailable):
            self._take(self._scripts_of(task), announcement.task_id)
            return True
        return False

    def _look_soon(self) -> None:
        """Look at the offers: what was announced meanwhile was not heard."""
        self._look_at = 0.0
        self._thread.wake()

    def _on_free(self) -> None:
        if self._short and self._intake.free > 0:
            self._thread.wake()

    def _look(self, scopes: Mapping[str, Sequence[Any]]) -> None:
        """Consider what is on offer, the oldest first, while there is a free place."""
        self._short = False
        for scope, tasks in scopes.items():
            if not is_offered(tasks) or not self._intake.is_open:
                continue
            scripts = self._extension.scripts(scope)
            for announcement in scripts.offers(self._worker_id, BATCH, self._consumed):
                if self._short:
                    return
                self._consider(announcement)

    def _consider(self, announcement: Announcement) -> None:
        task = self._app.tasks.get(announcement.task)
        if task is None:
            return
        if not announcement.offered:
            self._tell(task, announcement)
        elif self._is_for_us(announcement):
            self._answer(task, announcement)

    def _is_for_us(self, announcement: Announcement) -> bool:
        return announcement.offered and announcement.queue in self._consumed

    def _answer(self, task: Any, announcement: Announcement) -> None:
        scripts, task_id = self._scripts_of(task), announcement.task_id
        if not self._wants(task, announcement):
            outbox.publish(self._app, scripts, scripts.ignore(task_id, self._worker_id))
        elif self._intake.free <= 0:
            self._short = True
        else:
            self._take(scripts, task_id)

    def _wants(self, task: Any, announcement: Announcement) -> bool:
        """Tell the receivers, once each time it is available; return their answer."""
        which = (announcement.task_id, announcement.round)
        if which not in self._answers:
            self._answers[which] = self._tell(task, announcement)
            if len(self._answers) > REMEMBERED:
                self._answers.popitem(last=False)
        return self._answers[which]

    def _tell(self, task: Any, announcement: Announcement) -> bool:
        """Tell the receivers; return whether none of them says ``IGNORE``."""
        answers = task_available.send(
            sender=task,
            task_id=announcement.task_id,
            key=unquote(announcement.key),
            metadata=announcement.metadata,
            queue=announcement.queue,
        )
        return all(answer is not IGNORE for _, answer in answers)

    def _scripts_of(self, task: Any) -> Scripts:
        return self._extension.scripts(options_of(task).scope)

    def _take(self, scripts: Scripts, task_id: str) -> None:
        offer = scripts.claim(task_id, self._worker_id)
        if offer is None:
            return  # another one was faster

        def give_back(fits: bool) -> None:
            """Offer it again; not to this worker if it does not fit."""
            with contextlib.suppress(StoreUnavailable):  # then the claim runs out
                granted = scripts.unclaim(task_id, self._worker_id, ignored=not fits)
                outbox.publish(self._app, scripts, granted)

        try:
            self._intake.put(self._message_of(offer, give_back))
        except Exception:
            logger.exception("Task %s was claimed and cannot be started.", task_id)
            give_back(False)

    def _message_of(
        self, offer: Granted, give_back: Callable[[bool], None]
    ) -> OwnMessage:
        return OwnMessage(
            offer.message,
            give_back,
            self._intake.accept,
            attempt=offer.attempt,
            **offer.deadlines._asdict(),
        )

    def _scopes(self) -> dict[str, list[Any]]:
        """Return the tasks of each scope that this worker knows."""
        scopes: dict[str, list[Any]] = defaultdict(list)
        for task in list(self._app.tasks.values()):
            options = getattr(task, "bgtask", None)
            if isinstance(options, Options):
                scopes[options.scope].append(task)
        return scopes


def is_offered(tasks: Iterable[Any]) -> bool:
    """Tell whether one of *tasks* is offered."""
    return any(options_of(task).offered for task in tasks)
