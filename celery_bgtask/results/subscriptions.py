"""The channels that one connection hears, and those that somebody wants heard."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from typing import Any

from redis.exceptions import RedisError


__all__ = ["Subscriptions"]


class Subscriptions:
    """What a process has subscribed to, over all connections that it makes for it.

    Any thread may want a channel; one thread reads. What cannot be sent is no error:
    the reader notices the loss, connects anew, and all that is wanted is subscribed.

    Args:
        lock: Held by whoever calls a method, where it says so.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._wanted: Counter[str] = Counter()
        self._acknowledged: set[str] = set()
        self._unanswered = 0
        self._own = ""
        self.connection: Any = None

    def begin(self, connection: Any, own: str) -> None:
        """Subscribe all that is wanted by a new connection, and *own* always."""
        with self._lock:
            self._own = own
            self._acknowledged.clear()
            self._unanswered = 0
            self.connection = connection
            self._subscribe(own, *(self._wanted.keys() - {own}))

    def end(self, connection: Any) -> None:
        """Forget a connection that is lost."""
        with self._lock:
            if self.connection is connection:
                self.connection = None

    def close(self) -> None:
        """Want nothing more; the reader is woken to notice."""
        with self._lock:
            self._wanted.clear()
            self.wake()
            self.connection = None

    def want(self, channels: Iterable[str], *, anew: bool = False) -> None:
        """Hear *channels*, and wake the reader: it has news of some or is to look.

        With *anew* the server acknowledges even those that are heard already.
        """
        with self._lock:
            channels = list(channels)
            self._wanted.update(channels)
            missing = set(channels) - (set() if anew else self._acknowledged)
            if missing:
                self._subscribe(*missing)
            else:
                self.wake()

    def leave(self, channels: Iterable[str]) -> None:
        """Hear *channels* no more, but for others who want them."""
        with self._lock:
            for channel in channels:
                self._wanted[channel] -= 1
                self._leave_unused(channel)

    def acknowledge(self, channel: str) -> None:
        """Note that the server has subscribed *channel*."""
        with self._lock:
            self._unanswered -= 1
            self._acknowledged.add(channel)
            self._leave_unused(channel)

    def hear_all(self, channels: Iterable[str]) -> bool:
        """Tell whether the server has acknowledged all *channels*."""
        return self._acknowledged.issuperset(channels)

    @property
    def all_answered(self) -> bool:
        """Whether the server owes no acknowledgement."""
        return not self._unanswered

    def wake(self) -> None:
        """Let the reader have something to read."""
        self._send("PING")

    def _subscribe(self, *channels: str) -> None:
        self._unanswered += len(channels)
        self._send("SUBSCRIBE", *channels)

    def _leave_unused(self, channel: str) -> None:
        if self._wanted[channel] > 0 or channel == self._own:
            return
        del self._wanted[channel]
        if channel in self._acknowledged:
            self._acknowledged.remove(channel)
            self._send("UNSUBSCRIBE", channel)

    def _send(self, *command: Any) -> None:
        """Send a command whose answer the reader reads."""
        with self._lock:
            connection = self.connection
            if connection is None:
                return  # all is subscribed with the next one
            try:
                connection.send_command(*command)
            except (RedisError, OSError):
                self.connection = None
                connection.disconnect()
