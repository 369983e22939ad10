"""Per-key concurrency limits and definite ends for Celery tasks."""

from __future__ import annotations

from .broadcast import BroadcastResult

# The operator's view
from .control.views import Block, Explanation, Finding, Holder, KeyStats
from .decorator import bgtask
from .eager import BgEagerResult
from .events import Ended, Progress

# Errors
from .exceptions import (
    AcceptTimeout,
    BgTaskError,
    FinishTimeout,
    ImproperlyConfigured,
    KeyBlocked,
    LeaseLost,
    LimitReached,
    MissingTaskKey,
    PayloadTooLarge,
    StoreUnavailable,
    TaskCancelled,
    TaskLost,
    TaskNotAvailable,
)
from .external import Work, accept_task
from .results.groups import Followed, follow
from .results.result import BgResult, Cancellation

# Signals
from .signals import (
    key_blocked,
    lease_lost,
    task_accepted,
    task_available,
    task_done,
    task_error,
    task_progress,
)
from .task import BgTask

# Tasks
from .worker.availability import IGNORE


__version__ = "0.1.0"

__all__ = [
    "IGNORE",
    "AcceptTimeout",
    "BgEagerResult",
    "BgResult",
    "BgTask",
    "BgTaskError",
    "Block",
    "BroadcastResult",
    "Cancellation",
    "Ended",
    "Explanation",
    "Finding",
    "FinishTimeout",
    "Followed",
    "Holder",
    "ImproperlyConfigured",
    "KeyBlocked",
    "KeyStats",
    "LeaseLost",
    "LimitReached",
    "MissingTaskKey",
    "PayloadTooLarge",
    "Progress",
    "StoreUnavailable",
    "TaskCancelled",
    "TaskLost",
    "TaskNotAvailable",
    "Work",
    "accept_task",
    "bgtask",
    "follow",
    "key_blocked",
    "lease_lost",
    "task_accepted",
    "task_available",
    "task_done",
    "task_error",
    "task_progress",
]
