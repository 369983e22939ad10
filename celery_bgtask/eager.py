"""The result of a call that ran in line: all that it tells has happened."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from celery.result import EagerResult

from .events import Event, Progress


__all__ = ["BgEagerResult"]


class BgEagerResult(EagerResult):  # type: ignore[type-arg]  # not generic before 5.7
    """What ``apply()`` and eager mode return: as :class:`.BgResult`, at once.

    It needs no store, no broker and no result backend.
    """

    #: What the body has reported, oldest first.
    events: tuple[Event, ...] = ()

    #: Eager calls take no slot.
    key = None
    phase = "ended"

    def on_progress(self, callback: Callable[[Progress], Any]) -> BgEagerResult:
        """Call *callback* with each report."""
        for event in self.events:
            if isinstance(event, Progress):
                callback(event)
        return self

    def on_done(self, callback: Callable[[BgEagerResult], Any]) -> BgEagerResult:
        """Call *callback* with the result."""
        callback(self)
        return self

    @property
    def last_progress(self) -> Progress | None:
        """The latest report."""
        reports = [event for event in self.events if isinstance(event, Progress)]
        return reports[-1] if reports else None

    async def aget(self, timeout: float | None = None, propagate: bool = True) -> Any:
        """Return the result as ``get`` does: *timeout* and *propagate* are its own."""
        return self.get(timeout, propagate)

    async def aprogress(self) -> AsyncIterator[Progress]:
        """Yield each report."""
        for event in self.events:
            if isinstance(event, Progress):
                yield event
