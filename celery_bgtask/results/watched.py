"""One task as it was heard of, and what to say of it in a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..events import Ended, Event, Progress


__all__ = ["UNKNOWN", "Moved", "News", "Watched", "name_of"]

#: The phase of a task that neither the store nor the result backend knows.
UNKNOWN = "unknown"

#: Numbers from which on digits say nothing any more.
HUGE = 1e12


@dataclass(frozen=True, slots=True)
class Moved:
    """A task is somewhere else than when it was last asked for.

    Attributes:
        task_id: The task.
        phase: As :attr:`.BgResult.phase` has it, or :data:`UNKNOWN`.
    """

    task_id: str
    phase: str


News = Event | Moved


@dataclass(eq=False, slots=True)
class Watched:
    """A task, as far as it was heard of; as a text, a line of a display.

    Attributes:
        task_id: Which one it is.
        name: What to call it.
        phase: Where it was last; "" before anybody has asked.
        progress: The latest report.
        ended: Its end.
    """

    task_id: str
    name: str
    phase: str = ""
    progress: Progress | None = None
    ended: Ended | None = None

    @property
    def state(self) -> str:
        """The phase; of a task that has ended, Celery's final state."""
        return self.ended.state if self.ended else self.phase

    @property
    def is_success(self) -> bool:
        """Whether it has ended well."""
        return self.ended is not None and self.ended.is_success

    @property
    def percent(self) -> str:
        """How far it is, "" if that is not known: never 100 before it is all."""
        if self.progress is None or not self.progress.total:
            return ""
        return f"{math.floor(self.progress.percent)} %"

    @property
    def counts(self) -> str:
        """What is done, of how much."""
        if self.progress is None or self.progress.current is None:
            return ""
        done = number(self.progress.current)
        return f"{done}/{number(self.progress.total)}" if self.progress.total else done

    @property
    def about(self) -> str:
        """What the task says, or the error that has ended it."""
        if self.ended and self.ended.error:
            return printable(f"{self.ended.error}: {self.ended.text}")
        if self.progress is None:
            return ""
        text = printable(self.progress.description)
        again = self.progress.attempt > 1
        return f"{text} (attempt {self.progress.attempt})".lstrip() if again else text

    def __str__(self) -> str:
        columns = f"{self.name:<8}  {self.state:<10}  {self.percent:>5}  {self.counts}"
        return f"{columns}  {self.about}".rstrip()


def name_of(task_id: str) -> str:
    """Return the start of an id, which tells it apart; one of one's own whole."""
    is_uuid = len(task_id) == 36 and task_id.count("-") == 4  # noqa: PLR2004
    return task_id[:8] if is_uuid else printable(task_id)


def number(value: float) -> str:
    """Return a number as short as people write it."""
    if abs(value) >= HUGE:
        return f"{value:.4g}"
    return str(int(value)) if value == int(value) else f"{value:.1f}"


def printable(text: str) -> str:
    """Return *text* without anything that a terminal would act upon."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )
