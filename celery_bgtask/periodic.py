"""A thread that takes a step again and again, whatever goes wrong in between."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from celery.utils.log import get_logger

from .exceptions import StoreUnavailable


__all__ = ["Periodic"]

logger = get_logger(__name__)

#: Seconds after which a step that failed is tried again.
RETRY_INTERVAL = 0.25

#: Seconds that a fork waits for a step: one that takes longer waits for a
#: network, and holds no lock that a child could miss.
FORK_PATIENCE = 1.0

_threads: weakref.WeakSet[Periodic] = weakref.WeakSet()


class Periodic(threading.Thread):
    """Takes *step*, waits for as long as it said, and so on until it is *done*.

    No process is forked in the middle of a step: a child would inherit the
    locks of whatever the step does just then, such as an import, for ever.

    Args:
        name: Of the thread, and of what it does, for the log.
        step: Returns the seconds until it is to be taken again.
        done: Tells whether a thread that was told to leave may do so.
    """

    def __init__(
        self, name: str, step: Callable[[], float], done: Callable[[], bool]
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._step = step
        self._done = done
        self._wake = threading.Event()
        self._stepping = threading.Lock()
        self._held_for_fork = False
        self._leaving = False
        self._away = False
        _threads.add(self)

    def wake(self) -> None:
        """Take the next step now."""
        self._wake.set()

    def leave(self) -> None:
        """End as soon as it is done."""
        self._leaving = True
        self._wake.set()

    def run(self) -> None:
        """Take steps; a store that is away is logged once, not each time."""
        while not (self._leaving and self._done()):
            self._wake.clear()
            with self._stepping:
                pause = self._try()
            self._wake.wait(pause)

    def between(self, action: Callable[[], bool]) -> bool:
        """Return what *action* does between two steps; ``False`` within one or a fork.

        It is taken by the thread that calls: that spares waking this one.
        """
        if not self._stepping.acquire(blocking=False):
            return False
        try:
            return action()
        finally:
            self._stepping.release()

    def hold(self) -> None:
        """Let no step be taken while this process forks."""
        self._held_for_fork = self._stepping.acquire(timeout=FORK_PATIENCE)

    def go_on(self) -> None:
        """Take steps again."""
        if self._held_for_fork:
            self._held_for_fork = False
            self._stepping.release()

    def _try(self) -> float:
        try:
            pause = self._step()
        except StoreUnavailable as exc:
            if not self._away:
                logger.warning("The %s waits for the store: %s", self.name, exc)
            self._away = True
            return RETRY_INTERVAL
        except Exception:
            logger.exception("The %s goes on after an error.", self.name)
            return RETRY_INTERVAL
        if self._away:
            logger.info("The store is back; the %s goes on.", self.name)
        self._away = False
        # Who leaves looks more often whether it is done.
        return min(pause, RETRY_INTERVAL) if self._leaving else pause


def _hold_all() -> None:
    for thread in list(_threads):
        if thread.is_alive() and thread is not threading.current_thread():
            thread.hold()


def _go_on_all() -> None:
    for thread in list(_threads):
        thread.go_on()


os.register_at_fork(
    before=_hold_all, after_in_parent=_go_on_all, after_in_child=_threads.clear
)
