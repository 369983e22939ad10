"""Ctrl-C, at any time, without leaving anything half started behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


class Interrupts:
    """Turns a signal to stop into `SystemExit`, so that ``with`` blocks clean up.

    What must not be cut short, starting and cleaning up, says so.
    """

    def __init__(self) -> None:
        self._holding = False
        self._pending: int | None = None
        for number in SIGNALS:
            signal.signal(number, self._handle)

    @contextmanager
    def held(self) -> Iterator[None]:
        """While something is being started: let a signal wait until it is."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        if self._pending is not None:
            raise SystemExit(128 + self._pending)

    def ignore(self) -> None:
        """From now on no signal disturbs."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def default(self) -> None:
        """From now on a signal just ends the process: all is cleaned up."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if not self._holding:
            raise SystemExit(128 + number)
        self._pending = number
