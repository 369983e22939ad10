"""A real ``celery worker``, as a process group that can be stopped as one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .trouble import Trouble


#: One process for each slot that the demonstration can fill.
CONCURRENCY = 16

ARGUMENTS = ["-A", "example_project", "worker", f"--concurrency={CONCURRENCY}"]


@contextmanager
def running_worker(log: Path) -> Iterator[Worker]:
    """A worker for the time of a ``with`` block."""
    worker = Worker(log)
    ask = signal.SIGQUIT  # Leave now, give back what has not been begun.
    try:
        yield worker
        ask = signal.SIGTERM  # Leave when all that runs has ended.
    finally:
        worker.stop(ask)


class Worker:
    """A worker, and what it writes to its log."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "celery", *ARGUMENTS, "--loglevel=INFO"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Out of the terminal's reach: whether it stops is for us to say.
                start_new_session=True,
            )

    def stop(self, ask: signal.Signals) -> None:
        """Ask it to stop, and end what does not."""
        self._process.send_signal(ask)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait_until_ready(self, within: float = 60) -> None:
        """Return when the worker consumes tasks.

        Raises:
            Trouble: If it ends, or is not ready in time.
        """
        give_up = time.monotonic() + within
        while " ready." not in self._written():
            self.check()
            if time.monotonic() > give_up:
                raise Trouble(f"the worker is not ready after {within} s", self._tail())
            time.sleep(0.1)

    def check(self) -> None:
        """Raise `Trouble` if the worker runs no more."""
        code = self._process.poll()
        if code is not None:
            raise Trouble(f"the worker has ended with exit code {code}", self._tail())

    def _written(self) -> str:
        return self._log.read_text(errors="replace")

    def _tail(self) -> str:
        return "\n".join(self._written().splitlines()[-20:])
