"""The same tasks in an app that has a bgtask, too."""

from __future__ import annotations

from celery_bgtask import bgtask
from tests.compat import plain


__all__ = ["limited", "plain"]


@bgtask(max_per_key=1)
def limited() -> None:
    """A task with a limit."""
