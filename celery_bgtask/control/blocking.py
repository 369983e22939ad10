"""Refuse the key that misbehaves, and no other."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from celery import Task
from celery.utils.log import get_logger
from celery.utils.nodenames import anon_nodename

from ..extension import extension_of
from ..options import options_of
from ..scripts import Scripts
from ..scripts.readings import BlockRow
from ..signals import key_blocked
from ..validity import is_seconds
from .views import Block


__all__ = ["block", "block_log", "blocks", "report"]

logger = get_logger(__name__)


def report(task: Task[Any, Any], key: str, reason: str) -> bool:
    """Count a strike against *key*; tell whether it is blocked now.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    options = options_of(task)
    why = checked_reason(reason) or "too many bad tasks"
    answer = scripts_of(task).strike(
        key,
        threshold=options.block_threshold,
        interval=options.block_interval,
        reason=why,
        by=anon_nodename(),
        seconds=options.block_for,
        log_keep=extension_of(task.app).settings.log_blocks,
    )
    if answer == "blocked":
        tell(task, key, why, options.block_for)
    return answer != "counted"


def block(task: Task[Any, Any], key: str, reason: str, seconds: float | None) -> bool:
    """Block *key* for *seconds*, for ever if that is ``None``; tell if that is news.

    Raises:
        StoreUnavailable: If the store does not answer.
        ValueError: If *seconds* is no time above 0.
    """
    if seconds is not None and not is_seconds(seconds):
        raise ValueError(
            "a block is for a number of seconds above 0, or for None: until it is "
            f"ended by hand; not for {seconds!r}"
        )
    is_new = scripts_of(task).block(
        key,
        reason=checked_reason(reason),
        by=anon_nodename(),
        seconds=seconds,
        log_keep=extension_of(task.app).settings.log_blocks,
    )
    tell(task, key, reason, seconds)
    return is_new


def blocks(task: Task[Any, Any]) -> Iterator[Block]:
    """Yield all blocks of the task's scope, each once.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    seen: set[str] = set()
    for now, key, row in scripts_of(task).blocks():
        if key not in seen:
            seen.add(key)
            yield block_of(now, key, row)


def block_log(task: Task[Any, Any], key: str) -> list[Block]:
    """Return the latest blocks of *key*, newest first.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    now, log = scripts_of(task).block_log(key)
    return [block_of(now, key, row) for row in log]


def block_of(now: int, key: str, row: BlockRow) -> Block:
    """Return a block as an operator sees it."""
    if math.isinf(row.until):
        return Block(key, row.reason, row.since / 1000, None, None, row.by)
    left = max(0.0, (row.until - now) / 1000)
    return Block(key, row.reason, row.since / 1000, row.until / 1000, left, row.by)


def checked_reason(reason: str) -> str:
    """Return *reason*.

    Raises:
        TypeError: If it is no text.
    """
    if not isinstance(reason, str):
        raise TypeError(f"a reason is a text, not {reason!r}")
    return reason


def tell(task: Task[Any, Any], key: str, reason: str, seconds: float | None) -> None:
    """Say that *key* is blocked, by this call."""
    logger.warning(
        "The key %r of %s is blocked %s: %s",
        key or task.name,
        task.name,
        "until it is unblocked" if seconds is None else f"for {seconds:g} s",
        reason,
        extra={"bgtask_event": "key_blocked", "bgtask_key": key},
    )
    key_blocked.send(sender=task, key=key, reason=reason, seconds=seconds)


def scripts_of(task: Task[Any, Any]) -> Scripts:
    """Return the scripts of the task's scope."""
    return extension_of(task.app).scripts(options_of(task).scope)
