"""Who wants to hear of a task, and what it has heard so far."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..events import REPLACED, Ended, Told
from ..exceptions import StoreUnavailable
from ..scripts import Scripts
from ..scripts.replies import Known


__all__ = ["Followable", "Follower"]

# Celery's own loggers are silent where nobody has set logging up.
logger = logging.getLogger(__name__)

#: Seconds after a deadline in which a worker mostly has noticed it.
GRACE = 0.05

#: Seconds until a task is looked up again of which the store knows no more: at first,
#: and at most; each time twice as long.
LOOK_UP_AFTER, LOOK_UP_INTERVAL = 0.5, 15.0

#: What the store says of a task whose end it will publish. That of others may have
#: been published, or is stored by Celery alone: of the rest of a chain that failed,
#: of what has expired, of a name that the worker does not know.
IN_HAND = {"waiting", "running", "ended"}

#: What it says of one that is with the broker, and mostly will be in hand soon.
ON_ITS_WAY = {"dispatched", "delayed", "lapsed"}


class Followable(Protocol):
    """What a follower asks of the result of its task."""

    def end_if_due(self) -> float:
        """End the task if its deadline has passed; return the seconds to the next."""
        ...

    def stored_end(self) -> Ended | None:
        """Return the end of the task if the result backend has it."""
        ...


class Follower:
    """One who is told the events of a task, each once and in order.

    Args:
        task_id: The task.
        scripts: Of its scope; of all scopes, if it is not known in which it is.
        channels: On which its events are published.
        result: Of the task.
        hear: Is called with each event, and with nothing after an :class:`.Ended`.

    Attributes:
        due: When the task ends unless it did: monotonic time.
        look_up_at: When to look it up again: monotonic time.
        caught_up: Whether it has heard all that the logs had; before that, what
            comes live would hide it.
        others: That follow for this one the tasks before its own.
    """

    def __init__(
        self,
        task_id: str,
        *,
        scripts: tuple[Scripts, ...],
        channels: tuple[str, ...],
        result: Followable,
        hear: Callable[[Any], None],
    ) -> None:
        self.task_id = task_id
        self.scripts = scripts
        self.channels = channels
        self.due = self.look_up_at = math.inf
        self._pause = LOOK_UP_AFTER
        self.caught_up = False
        self.others: list[Follower] = []
        self._result = result
        self._hear = hear
        self._known: set[str] = set()
        self._seen = (0, 0)
        self._over = False

    def note(self, known: Known) -> None:
        """Note what one scope knows of the task."""
        self._known.add(known.state)
        if known.due:
            self.due = time.monotonic() + known.due + GRACE

    @property
    def may_have_ended(self) -> bool:
        """Whether nobody may be left who would publish the end."""
        known, self._known = self._known, set()
        if self._over or known & IN_HAND:
            return False
        if known & ON_ITS_WAY and self._pause < LOOK_UP_INTERVAL:
            self._pause = LOOK_UP_INTERVAL
            self.look_up_at = math.ceil(time.monotonic() + self._pause)
            return False
        return True

    def look_up_soon(self) -> None:
        """Look the task up at once, and again at intervals that grow anew."""
        self.look_up_at, self._pause = time.monotonic(), LOOK_UP_AFTER

    def look_up(self) -> Ended | None:
        """Return the end of the task if the result backend has it, else try later."""
        # Whole seconds: many are looked up together.
        self.look_up_at = math.ceil(time.monotonic() + self._pause)
        self._pause = min(2 * self._pause, LOOK_UP_INTERVAL)
        try:
            return self._result.stored_end()
        except Exception as exc:  # noqa: BLE001 - any backend's
            logger.warning("The state of %s is unknown: %r", self.task_id, exc)
            return None

    def decide(self) -> None:
        """End the task if its deadline has passed and nobody has noticed."""
        self.due = math.inf
        try:
            left = self._result.end_if_due()
        except StoreUnavailable:
            raise
        except Exception as exc:  # noqa: BLE001 - any backend's, or the broker's
            logger.warning("%s could not be ended yet: %r", self.task_id, exc)
            left = LOOK_UP_INTERVAL
        if left:
            self.due = time.monotonic() + left + GRACE

    def tell(self, event: Told) -> bool:
        """Tell of *event* unless it was told; return whether it is the last one."""
        if self._over:
            return True
        if isinstance(event, Ended) and event.state == REPLACED:
            self.look_up_soon()
            return False
        self._over = isinstance(event, Ended)
        number = (event.attempt, event.seq)
        if number > self._seen or self._over:
            self._seen = max(number, self._seen)
            try:
                self._hear(event)
            except BaseException:  # also sys.exit(): the thread is everybody's
                logger.exception("A callback for task %s raised.", self.task_id)
        return self._over
