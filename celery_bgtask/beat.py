"""Celery beat: nobody is there to catch a refusal, so it is one line in the log."""

from __future__ import annotations

import threading
from typing import Any

from celery.signals import beat_init


__all__ = ["is_beat"]

_schedulers: set[int] = set()


@beat_init.connect(weak=False)
def note_scheduler(**_kwargs: Any) -> None:
    """Remember the thread that beat runs in: its process, or one of a worker's."""
    _schedulers.add(threading.get_ident())


def is_beat() -> bool:
    """Tell whether this thread is beat's, which submits what is due."""
    return threading.get_ident() in _schedulers
