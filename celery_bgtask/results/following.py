"""Follow a task from anywhere: its progress and its end, by callback or await."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from celery.exceptions import TimeoutError as ResultTimeout

from ..events import Ended, Event, Progress, decode
from ..extension import extension_of
from .follower import Follower
from .listener import listener_of


if TYPE_CHECKING:
    from typing_extensions import Self


__all__ = ["Following"]

#: Seconds to fetch a result of which the end has been told: it is stored by then.
FETCH_TIMEOUT = 30.0


class Following:
    """What a result tells while its task is on its way.

    Callbacks run on the one listener thread of the process, in the order of the
    events, each event once. One that raises is logged and harms nobody; one that
    takes long delays all others.
    """

    if TYPE_CHECKING:
        # What a result has besides.
        id: str
        app: Any
        scope: str | None
        reply: str | None
        is_wanted: bool
        parent: Any
        ended: Ended | None
        get: Callable[..., Any]
        ready: Callable[[], bool]

        @property
        def _is_kept(self) -> bool: ...

        def end_if_due(self) -> float: ...  # noqa: D102
        def stored_end(self) -> Ended | None: ...  # noqa: D102

    def on_progress(self, callback: Callable[[Progress], Any]) -> Self:
        """Call *callback* with each report, from what the log still has.

        Returns:
            The result itself.
        """

        def hear(event: Event) -> None:
            if isinstance(event, Progress):
                callback(event)

        self.follow(hear)
        return self

    def on_done(self, callback: Callable[[Self], Any]) -> Self:
        """Call *callback* with the result when the task has ended, however.

        Its ``get()`` does not wait then. The deadlines of the task are kept: it is
        called in time, also without any worker.

        Returns:
            The result itself.
        """

        def hear(event: Event) -> None:
            if isinstance(event, Ended):
                self.ended = event
                self._have_value_at_hand()
                callback(self)

        self.follow(hear)
        return self

    def _have_value_at_hand(self) -> None:
        """Look the value up, so that ``get`` need not wait."""
        if self._is_kept:  # asking RPC would take what a ``get`` waits for
            with contextlib.suppress(Exception):  # a backend may be away
                self.ready()

    def follow(
        self, hear: Callable[[Event], None], *, parents: bool = True
    ) -> Follower:
        """Call *hear* with each :class:`.Progress` and, last, the :class:`.Ended`.

        Args:
            hear: Is called on the listener thread.
            parents: Whether to hear of the steps before this one, too: if one fails,
                this one has ended.
        """
        extension = extension_of(self.app)
        scopes = extension.scopes if self.scope is None else [self.scope]
        scripts = tuple(extension.scripts(scope) for scope in scopes)
        channels = (
            (extension.reply_channel,)
            if self.reply == extension.reply_channel
            else tuple(one.channel(self.id) for one in scripts)
        )
        follower = Follower(
            self.id, scripts=scripts, channels=channels, result=self, hear=hear
        )
        listener_of(self.app).follow(follower)
        if parents:
            self._follow_parents(follower)
        return follower

    def _follow_parents(self, follower: Follower) -> None:
        """Hear when a step before this one fails: then this one ends without a run.

        Celery has stored that by then: the end of a chain with the failure of a
        step, that of a chord's body with the last of the failed group.
        """
        parents = getattr(self.parent, "results", None) or [self.parent]
        waited_for = {parent.id for parent in parents if isinstance(parent, Following)}
        failures: list[Ended] = []

        def hear(event: Event) -> None:
            if not isinstance(event, Ended):
                return
            waited_for.discard(event.task_id)
            if not event.is_success:
                failures.append(event)
            if failures and not waited_for:
                end = self.stored_end() or replace(failures[0], task_id=self.id)
                listener_of(self.app).tell(follower, end)

        for parent in parents:
            if isinstance(parent, Following):
                follower.others.append(parent.follow(hear))

    @property
    def last_progress(self) -> Progress | None:
        """The latest report that the log still has; one round trip."""
        extension = extension_of(self.app)
        scopes = extension.scopes if self.scope is None else [self.scope]
        for scope in scopes:
            (known,) = extension.scripts(scope).history([self.id])
            for event in map(decode, reversed(known.events)):
                if isinstance(event, Progress):
                    return event
        return None

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """Wait for the result and return it, as ``get`` does, without blocking.

        Who is cancelled while it waits follows the task no more; the task goes on.

        Args:
            timeout: Seconds to wait; ``None``: to the end.
            propagate: Whether an error of the task is raised, or returned.

        Raises:
            celery.exceptions.TimeoutError: After *timeout* seconds without it.
        """
        with self._heard() as events:

            async def end() -> Ended:
                while not isinstance(event := await events.get(), Ended):
                    pass
                return event

            try:
                self.ended = await asyncio.wait_for(end(), timeout)
            except asyncio.TimeoutError as exc:
                raise ResultTimeout("The operation timed out.") from exc
        if not self.is_wanted:
            return None
        return await asyncio.to_thread(self._fetched, propagate)

    def _fetched(self, propagate: bool) -> Any:
        """Return the value of a task that has ended."""
        with contextlib.suppress(Exception):  # a backend may be away
            self.ready()  # then Celery asks without its one subscriber for all threads
        return self.get(FETCH_TIMEOUT, propagate)

    async def aprogress(self) -> AsyncIterator[Progress]:
        """Yield each report, from what the log still has, until the task has ended."""
        with self._heard() as events:
            while isinstance(event := await events.get(), Progress):
                yield event

    @contextlib.contextmanager
    def _heard(self) -> Any:
        """Hear of the task in the running event loop, for as long as one is in here."""
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()

        def hear(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(events.put_nowait, event)

        follower = self.follow(hear)
        try:
            yield events
        finally:
            listener_of(self.app).unfollow(follower)
