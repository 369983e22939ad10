"""One connection and one thread that hear of all tasks this process follows.

Subscribe, then read what the log has, then live: nothing falls between. A follower
knows what it has seen, so nothing comes twice; after a loss of the connection all
of it is done again.

::

    follow ──▶ SUBSCRIBE ──▶ (acknowledged) ──▶ history ──▶ live … ──▶ the end
                   ▲                                          │
                   └────────── connection lost ◀──────────────┘
"""

from __future__ import annotations

import atexit
import logging
import math
import os
import threading
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from celery import Celery
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from ..events import Told, decode
from ..exceptions import StoreUnavailable
from ..extension import Extension, extension_of
from ..scripts import Scripts
from .follower import Follower
from .subscriptions import Subscriptions


__all__ = ["Listener", "listener_of"]

# Celery's own loggers are silent where nobody has set logging up.
logger = logging.getLogger(__name__)

#: Seconds of silence after which the connection is tried; twice that, and it is lost.
PING_INTERVAL = 15.0

#: Seconds between two tries to connect.
RETRY_INTERVAL = 0.25

#: Seconds that closing waits for a callback that is running.
CLOSE_TIMEOUT = 2.0

#: Tasks that one call asks about.
BATCH = 100


Watcher = tuple[Callable[[bytes], None], Callable[[], None]]


class Listener:
    """What this process hears of the tasks it follows.

    The thread starts with the first follower. Callbacks run on it, one after the
    other: a slow one delays the others. What comes meanwhile is buffered by the
    network and by the server, which cuts the connection beyond its
    ``client-output-buffer-limit pubsub``; then the logs of the tasks are read again.

    Args:
        extension: Of the app.
    """

    def __init__(self, extension: Extension) -> None:
        self._extension = extension
        self.reset()

    def reset(self) -> None:
        """Know nothing, without touching the connection: it belongs to the parent."""
        self._lock = threading.RLock()
        self._followers: dict[str, list[Follower]] = {}
        self._fresh: list[Follower] = []
        self._watchers: dict[str, Watcher] = {}
        self._channels = Subscriptions(self._lock)
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._due = math.inf

    def follow(self, follower: Follower) -> None:
        """Tell *follower* all of its task, from what the log has to the end."""
        with self._lock:
            self._followers.setdefault(follower.task_id, []).append(follower)
            self._fresh.append(follower)
            self._channels.want(follower.channels)
            self._ensure_thread()

    def unfollow(self, follower: Follower) -> None:
        """Tell it nothing more."""
        for other in follower.others:
            self.unfollow(other)
        with self._lock:
            followers = self._followers.get(follower.task_id, [])
            if follower not in followers:
                return
            followers.remove(follower)
            if follower in self._fresh:
                self._fresh.remove(follower)
            if not followers:
                del self._followers[follower.task_id]
            self._channels.leave(follower.channels)

    def watch(
        self, channel: str, hear: Callable[[bytes], None], begin: Callable[[], None]
    ) -> None:
        """Call *hear* with each message of *channel*.

        *begin* is called whenever it is subscribed anew: what came before was lost.
        Both must be quick: they keep the thread from all others.
        """
        with self._lock:
            self._watchers[channel] = (hear, begin)
            self._channels.want([channel], anew=True)
            self._ensure_thread()

    def unwatch(self, channel: str) -> None:
        """Hear no more of *channel*."""
        with self._lock:
            if self._watchers.pop(channel, None) is not None:
                self._channels.leave([channel])

    def look_up(self, followers: Iterable[Follower]) -> None:
        """Look up their tasks now: one before them has failed."""
        with self._lock:
            for follower in followers:
                follower.look_up_soon()
                self._due = min(self._due, follower.look_up_at)

    def tell(self, follower: Follower, event: Told) -> None:
        """Tell *follower* of an event; the end is the last it hears."""
        if follower.tell(event):
            self.unfollow(follower)
        else:
            self._due = min(self._due, follower.look_up_at)

    def close(self) -> None:
        """Follow nothing any more, and close the connection."""
        with self._lock:
            thread = self._thread
            self._followers.clear()
            self._fresh.clear()
            self._watchers.clear()
            self._stop.set()
            self._channels.close()
            self._thread = None
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT)

    def _ensure_thread(self) -> None:
        """Start the thread if there is none."""
        if self._thread is not None:
            return
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._listen,
            args=(self._stop,),
            name="bgtask listener",
            daemon=True,
        )
        self._thread.start()

    def _listen(self, stop: threading.Event) -> None:
        # Callbacks may submit shared tasks; an app is current in its own thread only.
        self._extension.app.set_current()
        away = False
        while not stop.is_set():
            connection = None
            try:
                connection = self._connect(stop)
                if away:
                    logger.info("The store is back: followed tasks are heard again.")
                away = False
                self._hear(connection, stop)
            except (RedisError, OSError, StoreUnavailable) as exc:
                if (
                    not away
                    and not stop.is_set()
                    and (self._followers or self._watchers)
                ):
                    logger.warning("Followed tasks are not heard of: %s", exc)
                away = True
            except Exception:
                # redis-py raises anything where another thread has disconnected.
                if connection is self._channels.connection:
                    logger.exception("The listener begins again after an error.")
            self._drop(connection)
            if self._is_done(stop):
                return
            stop.wait(RETRY_INTERVAL)

    @property
    def _is_used(self) -> bool:
        return bool(self._followers or self._watchers)

    def _is_done(self, stop: threading.Event) -> bool:
        """Whether nobody is left to be told; the next follower starts a thread."""
        with self._lock:
            if self._is_used or stop is not self._stop:
                return False
            self._thread = None
            return True

    def _connect(self, stop: threading.Event) -> Any:
        """Connect, subscribe all that is followed, and begin with all anew."""
        connection = self._extension.link.connect()
        with self._lock:
            if stop.is_set():  # another thread may have taken over
                return connection
            self._fresh = list(self._all())
            for follower in self._fresh:
                follower.caught_up = False
            self._channels.begin(connection, self._extension.reply_channel)
        return connection

    def _drop(self, connection: Any) -> None:
        if connection is None:
            return
        self._channels.end(connection)
        connection.disconnect()

    def _hear(self, connection: Any, stop: threading.Event) -> None:
        heard = time.monotonic()
        asked = False
        while not stop.is_set() and self._channels.connection is connection:
            if self._due <= time.monotonic():
                self._keep_deadlines()
            # All that were subscribed together are caught up together.
            if self._fresh and self._channels.all_answered and self._catch_up():
                heard, asked = time.monotonic(), False  # callbacks may take long
            pause = min(max(self._due - time.monotonic(), 0), PING_INTERVAL)
            if connection.can_read(pause):
                self._take(connection.read_response())
                heard, asked = time.monotonic(), False
            elif time.monotonic() - heard > 2 * PING_INTERVAL:
                raise RedisConnectionError("the store does not answer")
            elif time.monotonic() - heard >= PING_INTERVAL and not asked:
                self._channels.wake()
                asked = True

    def _take(self, message: Any) -> None:
        if not isinstance(message, list):
            return
        kind, channel, *rest = message
        if kind == b"subscribe":
            self._channels.acknowledge(channel.decode())
            if watcher := self._watchers.get(channel.decode()):
                watcher[1]()
        elif kind == b"message" and (watcher := self._watchers.get(channel.decode())):
            watcher[0](rest[0])
        elif kind == b"message":
            for event in events_of(rest):
                for follower in self._of(event.task_id):
                    if follower.caught_up:
                        self.tell(follower, event)

    def _catch_up(self) -> bool:
        """Tell new followers what the logs have, if their channels are heard by now."""
        with self._lock:
            ready: list[Follower] = []
            later: list[Follower] = []
            for follower in self._fresh:
                heard = self._channels.hear_all(follower.channels)
                (ready if heard else later).append(follower)
            self._fresh = later
        by_scope: dict[Scripts, list[Follower]] = defaultdict(list)
        for follower in ready:
            for scripts in follower.scripts:
                by_scope[scripts].append(follower)
        for scripts, followers in by_scope.items():
            for at in range(0, len(followers), BATCH):
                batch = followers[at : at + BATCH]
                known = scripts.history([follower.task_id for follower in batch])
                for follower, facts in zip(batch, known, strict=True):
                    follower.note(facts)
                    self._due = min(self._due, follower.due)
                    for event in events_of(facts.events):
                        self.tell(follower, event)
        for follower in ready:
            follower.caught_up = True
            if follower.may_have_ended and (end := follower.look_up()):
                self.tell(follower, end)
            self._due = min(self._due, follower.look_up_at)
        return bool(ready)

    def _keep_deadlines(self) -> None:
        """End what is due, look up what the store does not know; note when again."""
        now = time.monotonic()
        self._due = math.inf
        for follower in self._all():
            if follower.due <= now:
                follower.decide()
            if follower.look_up_at <= now:
                follower.look_up_at = math.inf
                with self._lock:
                    if follower in self._followers.get(follower.task_id, ()):
                        self._fresh.append(follower)
            self._due = min(self._due, follower.due, follower.look_up_at)

    def _of(self, task_id: str) -> list[Follower]:
        with self._lock:
            return list(self._followers.get(task_id, ()))

    def _all(self) -> list[Follower]:
        with self._lock:
            return [one for some in self._followers.values() for one in some]


def events_of(raw: Iterable[bytes]) -> Iterator[Told]:
    """Return the events in *raw*; what cannot be read is left out."""
    for one in raw:
        try:
            yield decode(one)
        except Exception:  # noqa: BLE001 - another version's, or somebody else's
            logger.warning("What was told of a task cannot be read: %.200r", one)


_listeners: weakref.WeakKeyDictionary[Celery, Listener] = weakref.WeakKeyDictionary()


def listener_of(app: Celery) -> Listener:
    """Return the listener of *app* in this process."""
    listener = _listeners.get(app)
    if listener is None:
        extension = extension_of(app)
        listener = _listeners.setdefault(app, Listener(extension))
        extension.on_close(listener.close)
    return listener


def _forget_listeners() -> None:
    for listener in list(_listeners.values()):
        listener.reset()


@atexit.register
def _close_listeners() -> None:
    for listener in list(_listeners.values()):
        listener.close()


os.register_at_fork(after_in_child=_forget_listeners)
