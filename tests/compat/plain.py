"""Tasks of an app that has never heard of this package."""

from __future__ import annotations

from typing import Any

from celery import chain, shared_task
from celery.canvas import Signature


@shared_task
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


@shared_task
def fail() -> None:
    """Raise."""
    raise ValueError("as asked for")


@shared_task(bind=True)
def retry(self: Any) -> int:
    """Retry once."""
    if not self.request.retries:
        raise self.retry(countdown=0)
    return int(self.request.retries)


def steps() -> Signature:
    """A chain of two."""
    return chain(add.s(1, 2), add.s(3))
