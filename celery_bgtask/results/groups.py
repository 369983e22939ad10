"""One view of all members of a group, a chord or a chain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from celery.exceptions import TimeoutError as ResultTimeout
from celery.result import GroupResult, ResultBase

from ..events import Event, Progress
from .follower import Follower
from .listener import listener_of
from .result import BgResult


if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Followed", "follow"]

# Celery's own loggers are silent where nobody has set logging up.
logger = logging.getLogger(__name__)

#: Seconds to fetch results of which the end has been told: they are stored by then.
FETCH_TIMEOUT = 30.0


class Followed:
    """All tasks of a group, chord or chain; made by :func:`follow`.

    Only limited tasks tell: others of the canvas are left out.

    Attributes:
        result: What was given to :func:`follow`.
        members: The tasks, in the order of the canvas.
    """

    def __init__(self, result: Any) -> None:
        self.result = result
        self.members = tuple(members_of(result))
        self._percent = dict.fromkeys((member.id for member in self.members), 0.0)
        self._ended: set[str] = set()
        self._all_ended = threading.Event()
        self._callbacks: list[Callable[[Any], Any]] = []
        self._lock = threading.Lock()
        # Each hears of those before it by the others: not once more for each.
        self._followers: list[Follower] = []
        for member in self.members:
            self._followers.append(member.follow(self._hear, parents=False))
        if not self.members:
            self._all_ended.set()

    def on_progress(self, callback: Callable[[Progress], Any]) -> Self:
        """Call *callback* with each report of each member.

        Returns:
            The view itself.
        """

        def hear(event: Event) -> None:
            if isinstance(event, Progress):
                callback(event)

        for member in self.members:
            self._followers.append(member.follow(hear, parents=False))
        return self

    def on_done(self, callback: Callable[[Any], Any]) -> Self:
        """Call *callback* with the result once all members have ended, however.

        Returns:
            The view itself.
        """
        with self._lock:
            over = self._all_ended.is_set()
            if not over:
                self._callbacks.append(callback)
        if over:
            self._call(callback)
        return self

    @property
    def percent(self) -> float:
        """How far the whole is, each member counted alike; as far as was heard."""
        known = self._percent.values()
        return sum(known) / len(known) if known else 100.0

    def get(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """Wait until all have ended, keeping their deadlines; return the value.

        Args:
            timeout: Seconds to wait; ``None``: to the end.
            propagate: Whether an error is raised, or returned in its place.

        Raises:
            celery.exceptions.TimeoutError: After *timeout* seconds without it.
        """
        if not self._all_ended.wait(timeout):
            raise ResultTimeout("The operation timed out.")
        return self._value(propagate)

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """Wait as :meth:`get` does, without blocking.

        Args:
            timeout: Seconds to wait; ``None``: to the end.
            propagate: Whether an error is raised, or returned in its place.

        Raises:
            celery.exceptions.TimeoutError: After *timeout* seconds without it.
        """
        loop = asyncio.get_running_loop()
        over = asyncio.Event()

        def tell(_: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(over.set)

        self.on_done(tell)
        try:
            await asyncio.wait_for(over.wait(), timeout)
        except asyncio.TimeoutError as exc:
            raise ResultTimeout("The operation timed out.") from exc
        return await asyncio.to_thread(self._value, propagate)

    def _value(self, propagate: bool) -> Any:
        """Return the value; all of it is stored, or will be in a moment."""
        if not isinstance(self.result, GroupResult):
            return self.result.get(FETCH_TIMEOUT, propagate)
        # get() of a group waits for Celery's consumer of results, and in vain in
        # another thread than the one that submitted it (Celery 5.7).
        with contextlib.suppress(Exception):  # a backend may be away
            self.result.ready()  # has the values at hand
        return self.result.join(FETCH_TIMEOUT, propagate)

    def close(self) -> None:
        """Follow no more; the tasks go on."""
        for follower in self._followers:
            listener_of(self.members[0].app).unfollow(follower)

    def _hear(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._percent[event.task_id] = event.percent
            return
        self._percent[event.task_id] = 100.0
        self._ended.add(event.task_id)
        if len(self._ended) < len(self._percent):
            if not event.is_success:
                self._look_up_the_others()
            return
        with self._lock:
            self._all_ended.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Any], Any]) -> None:
        try:
            callback(self.result)
        except BaseException:  # the others are told all the same
            logger.exception("A callback for %s raised.", self.result)

    def _look_up_the_others(self) -> None:
        """A step has failed: Celery has ended those after it, and tells nobody."""
        left = [one for one in self._followers if one.task_id not in self._ended]
        listener_of(self.members[0].app).look_up(left)


def follow(result: ResultBase) -> Followed:
    """Follow all members of a group, a chord or a chain as one.

    Args:
        result: What ``group(...)()``, ``chord(...)()`` or ``chain(...)()`` returned,
            or the result of one task.
    """
    return Followed(result)


def members_of(result: Any) -> list[BgResult]:
    """Return the results of all limited tasks in *result*, first steps first."""
    members: list[BgResult] = []
    while result is not None:
        step: list[BgResult] = []
        if isinstance(result, GroupResult):
            step = [one for child in result.results or () for one in members_of(child)]
        elif isinstance(result, BgResult):
            step = [result]
        members = step + members
        result = getattr(result, "parent", None)
    return list({member.id: member for member in members}.values())
