"""Several tasks as they go: the news of all of them, told to one thread."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from queue import Empty, SimpleQueue

from ..events import Ended, Event, Progress
from .listener import listener_of
from .result import BgResult
from .watched import UNKNOWN, Moved, News, Watched, name_of


__all__ = ["Watching"]

#: Seconds between two questions where the tasks are. Reports and ends are pushed;
#: that a task waits, starts or is tried again later is asked for.
ASK_INTERVAL = 1.0


class Watching:
    """What becomes of several tasks, seen from any process.

    The thread that takes the news is the only one that changes `tasks`.

    Args:
        results: The tasks.
        names: What to call them, by id; others are called by the start of it.

    Attributes:
        tasks: In the order of *results*.
    """

    def __init__(
        self, results: Iterable[BgResult], names: Mapping[str, str] | None = None
    ) -> None:
        known = names or {}
        self._results = {
            Watched(result.id, known.get(result.id) or name_of(result.id)): result
            for result in results
        }
        self.tasks = tuple(self._results)
        self._heard: SimpleQueue[tuple[Watched, Event]] = SimpleQueue()
        self._followers = [
            (result.app, result.follow(partial(self._hear, task)))
            for task, result in self._results.items()
        ]

    @property
    def is_over(self) -> bool:
        """Whether all have ended, as far as was heard."""
        return all(task.ended for task in self.tasks)

    def news(self, until: float = math.inf) -> Iterator[tuple[Watched, News]]:
        """Yield what happens, until all have ended or *until*: monotonic time.

        Raises:
            StoreUnavailable: If the store does not answer at first; later it is
                waited for.
        """
        yield from self.ask()
        ask_at = time.monotonic() + ASK_INTERVAL
        while not self.is_over and (now := time.monotonic()) < until:
            yield from self.take(max(0.0, min(ask_at, until) - now))
            if time.monotonic() >= ask_at:
                # Whatever does not answer now is asked again in a second.
                with contextlib.suppress(Exception):
                    yield from self.ask()
                ask_at = time.monotonic() + ASK_INTERVAL

    def take(self, timeout: float = 0.0) -> Iterator[tuple[Watched, Event]]:
        """Yield what was heard; wait for it, but not longer than *timeout* seconds."""
        with contextlib.suppress(Empty):
            task, event = self._heard.get(timeout=timeout)
            while True:
                if task.ended is None:
                    note(task, event)
                    yield task, event
                task, event = self._heard.get_nowait()

    def ask(self) -> Iterator[tuple[Watched, News]]:
        """Ask where the tasks are that have not ended; yield what has changed.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        for task, result in self._results.items():
            if task.ended is not None:
                continue
            phase = phase_of(result)
            if phase != task.phase:
                task.phase = phase
                yield task, Moved(task.task_id, phase)
            # The end is mostly heard by the next time, and behind the last report;
            # of a task that is not limited nobody tells it.
            elif phase == "ended" and (end := result.stored_end()):
                note(task, end)
                yield task, end

    def close(self) -> None:
        """Hear nothing more and let go of the results; the tasks go on."""
        for app, follower in self._followers:
            listener_of(app).unfollow(follower)
        self._followers.clear()
        self._results.clear()

    def _hear(self, task: Watched, event: Event) -> None:
        self._heard.put((task, event))


def note(task: Watched, event: Event) -> None:
    """Note what was heard of *task*."""
    if isinstance(event, Ended):
        task.ended = event
    elif isinstance(event, Progress):
        task.progress = event
        if task.phase != "ended":
            task.phase = "running"


def phase_of(result: BgResult) -> str:
    """Return where a task is, or that nobody knows it."""
    phase = result.phase
    # Which scope it is in is known as soon as one has it.
    return UNKNOWN if phase == "dispatched" and result.scope is None else phase
