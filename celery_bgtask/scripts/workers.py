"""The scripts of workers as such: who lives, and what all of them run at once."""

from __future__ import annotations

from collections.abc import Iterable

from celery.utils.log import get_logger

from ..events import Announcement
from ..keys import quote
from .base import ScopedScripts, ms
from .replies import Granted, granted_of


__all__ = ["WorkerScripts"]

logger = get_logger(__name__)

#: Events of a broadcast that are kept: two of each worker.
KEEP = 10_000


class WorkerScripts(ScopedScripts):
    """From a worker's first sign of life to its answers."""

    def enlist(
        self, worker: str, ttl: float, *, taker: str, queues: Iterable[str]
    ) -> None:
        """Note that *worker* lives for *ttl* seconds more.

        By the id *taker* it takes offers from *queues*.
        """
        self._run("enlist", worker, ms(ttl), taker, *map(quote, queues))

    def leave(self, worker: str, *, taker: str, queues: Iterable[str]) -> list[Granted]:
        """Note that *worker* has gone; what all others ignore ends."""
        args = (worker, taker, self._dispatch, self._grace)
        return granted_of(self._run("leave", *args, *map(quote, queues)))

    def workers(self) -> tuple[int, list[str]]:
        """Return the server's time in ms, and the workers that live."""
        now, *workers = self._run("enlist", "", 0, "")
        return now, [worker.decode() for worker in workers]

    def offers(
        self, worker: str, most: int, queues: Iterable[str]
    ) -> list[Announcement]:
        """Read what is on offer to *worker*, the oldest first."""
        flat = self._run("offers", worker, most, *map(quote, queues))
        found = []
        for row in zip(*[iter(flat)] * 4, strict=True):
            try:
                found.append(Announcement.of(*row))
            except ValueError as exc:  # what somebody else has written hides nothing
                logger.warning("An offer cannot be read: %s", exc)
        return found

    def claim(self, task_id: str, worker: str) -> Granted | None:
        """Take an offer, if it is still there."""
        granted = granted_of(self._run("claim", task_id, worker, self._claim))
        return granted[0] if granted else None

    def unclaim(
        self, task_id: str, worker: str, *, ignored: bool = False
    ) -> list[Granted]:
        """Offer a task again that cannot be started; not to *worker*, if *ignored*."""
        args = (task_id, worker, self._dispatch, self._grace)
        for_ms = self._tombstone if ignored else 0
        return granted_of(self._run("unclaim", *args, for_ms))

    def ignore(self, task_id: str, worker: str) -> list[Granted]:
        """Note that *worker* does not want an offer; if no live one does, it ends."""
        args = (task_id, worker, self._tombstone, self._dispatch, self._grace)
        return granted_of(self._run("ignore", *args))

    @property
    def available_channel(self) -> str:
        """The channel on which workers hear of what is available."""
        return f"{self._channels}:available"

    def join(self, broadcast_id: str, worker: str, until_ms: int, event: str) -> bool:
        """Tell whether *worker* takes part in a broadcast: in time, and once."""
        ttl_ms = self._log[1]
        args = (broadcast_id, worker, until_ms, event, KEEP, ttl_ms)
        return bool(self._run("join", *args))

    def answer(self, broadcast_id: str, event: str) -> None:
        """Tell how a worker's run of a broadcast has ended."""
        self._run("answer", broadcast_id, event, KEEP, self._log[1])
