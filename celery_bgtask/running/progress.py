"""Report progress from a run: at a bounded rate, and the last report always.

Twenty reports go out at once, then twenty a second; of what comes faster the latest
is kept, and goes out as soon as it may, or at the end of the body. Celery's custom
state is written at most once a second.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery.utils.log import get_logger

from ..events import encode_progress
from ..exceptions import BgTaskError, LeaseLost, StoreUnavailable
from ..scripts import Scripts
from ..verdicts import error_of


__all__ = ["Reporter", "mirrored"]

logger = get_logger(__name__)

#: Reports that go out in a second, and at once after a silence.
RATE = 20.0

#: Seconds between two writes of Celery's custom state.
MIRROR_INTERVAL = 1.0

#: Seconds after which a report is tried again that the store did not take.
RETRY_INTERVAL = 1.0

Meta = dict[str, Any]


class Reporter:
    """The reports of one run; threads of its body may share it.

    Args:
        scripts: Of the task's scope.
        task_id: The task.
        attempt: That runs.
        token: Of the run.
        max_size: Bytes that a report may have.
        mirror: Writes Celery's custom state, if that is wanted.
    """

    def __init__(
        self,
        scripts: Scripts,
        *,
        task_id: str,
        attempt: int,
        token: str,
        max_size: int,
        mirror: Callable[[Meta], None] | None,
    ) -> None:
        self._scripts = scripts
        self._task_id = task_id
        self._attempt = attempt
        self._token = token
        self._max_size = max_size
        self._mirror = mirror
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None
        self._due = 0.0
        self._closed = False
        self._ended: BgTaskError | None = None
        self._event: str | None = None
        self._meta: Meta | None = None
        self._tokens, self._filled = RATE, time.monotonic()
        self._mirrored = -MIRROR_INTERVAL

    def report(
        self,
        current: float | None,
        total: float | None,
        description: str,
        data: Mapping[str, Any],
    ) -> None:
        """Report, now or soon.

        Raises:
            BgTaskError: If the run has been ended; by which verdict.
            TypeError: If something in it is not JSON.
            ValueError: If a number in it is not finite.
        """
        event = encode_progress(
            self._task_id,
            self._attempt,
            current=current,
            total=total,
            description=description,
            data=data,
        )
        size = len(event.encode())
        if size > self._max_size:
            logger.error(
                "A progress report of task %s is dropped: it has %d bytes, "
                "at most %d are sent. The task goes on.",
                self._task_id,
                size,
                self._max_size,
            )
            return
        with self._lock:
            if self._ended is not None:
                raise self._ended
            if self._closed:
                return
            self._event = event
            if self._mirror is not None:
                self._meta = mirrored(current, total, description, data)
            self._send_what_may_go()

    def close(self) -> None:
        """Send what was held back; nothing is reported any more.

        Raises:
            StoreUnavailable: If it was not sent; to be called again.
        """
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.cancel()
            if self._event is None or self._ended is not None:
                return
            try:
                self._send()
            except StoreUnavailable:
                raise
            except BgTaskError:
                pass  # the run has been ended: nobody waits for it

    def _send_what_may_go(self) -> None:
        """Send the latest report if the rate allows it, else at its time."""
        pause = 0.0
        if self._event is not None:
            pause = self._until_next()
            if pause <= 0:
                try:
                    self._send()
                except StoreUnavailable as exc:
                    logger.debug("%s could not report: %s", self._task_id, exc)
                    pause = RETRY_INTERVAL
        if self._event is None and self._meta is not None:
            pause = self._mirrored + MIRROR_INTERVAL - time.monotonic()
            if pause <= 0:
                self._write_mirror()
        if pause > 0:
            self._wake_in(pause)

    def _wake_in(self, pause: float) -> None:
        due = time.monotonic() + pause
        if self._timer is not None and self._timer.is_alive():
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = threading.Timer(pause, self._on_time)
        self._timer.daemon = True
        self._timer.start()

    def _on_time(self) -> None:
        with self._lock:
            self._timer = None
            if self._closed or self._ended is not None:
                return
            try:
                self._send_what_may_go()
            except BgTaskError:
                pass  # the next call of the body raises it
            except Exception:
                logger.exception("Task %s could not report.", self._task_id)

    def _until_next(self) -> float:
        """Return the seconds until the next report may go, and count it if now."""
        now = time.monotonic()
        self._tokens = min(RATE, self._tokens + (now - self._filled) * RATE)
        self._filled = now
        if self._tokens < 1:
            return (1 - self._tokens) / RATE
        self._tokens -= 1
        return 0.0

    def _send(self) -> None:
        event = self._event
        assert event is not None  # noqa: S101 - who calls has looked
        standing = self._scripts.report(self._task_id, self._token, event)
        self._event = None
        if standing.verdict:
            self._ended = error_of(self._task_id, standing.verdict)
        elif not standing.valid:
            self._ended = LeaseLost(self._task_id)
        if self._ended is not None:
            raise self._ended

    def _write_mirror(self) -> None:
        meta, self._meta = self._meta, None
        self._mirrored = time.monotonic()
        try:
            if self._mirror is not None and meta is not None:
                self._mirror(meta)
        except Exception:  # the report itself has gone out
            logger.warning(
                "The state PROGRESS of task %s was not stored.",
                self._task_id,
                exc_info=True,
            )


def mirrored(
    current: float | None,
    total: float | None,
    description: str,
    data: Mapping[str, Any],
) -> Meta:
    """Return what Celery's custom state says, as celery-progress has it."""
    percent = 100.0 * (current or 0) / total if total else 0.0
    return {
        **data,
        "pending": False,
        "current": current or 0,
        "total": total or 0,
        "percent": round(percent, 2),
        "description": description,
    }
