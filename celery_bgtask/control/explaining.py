"""Why a task is not running: one reason, and what belongs to it."""

from __future__ import annotations

import math
from typing import Any

from celery import Task

from ..conclusion import has_result
from ..extension import extension_of
from ..options import Options, options_of
from ..scripts.readings import HolderRow, KeyRow, Situation
from ..states import DECIDED, DELAYED, DISPATCHED, ENDED, LAPSED, RUNNING, STOPPING
from .views import Explanation, Holder, KeyStats
from .wording import Wording


__all__ = ["REASONS", "explain", "holder_of", "stats_of"]

#: All reasons, and what each means.
REASONS = {
    "running": "its body executes",
    "stopping": "it has ended by a verdict, and its body executes yet",
    "ended": "it has ended, or its result is about to be stored",
    "key-full": "all slots of its key are taken, and it is the next to get one",
    "behind-others": "all slots of its key are taken, and others wait before it",
    "next-sweep": "a slot is free; what waits gets it at the next sweep or release",
    "limit-zero": "its key has been given no slots",
    "paused": "its task is paused",
    "blocked": "its key is blocked",
    "publishing": "it has a slot, and its message is about to be published",
    "with-broker": "it has a slot, its message is with the broker, no worker has "
    "started it",
    "offered": "it has a slot and is on offer, no worker has claimed it",
    "claimed": "a worker has claimed it and is about to start it",
    "delayed": "its message is with the broker, its ETA or countdown has not passed "
    "or no worker has met it since",
    "lapsed": "no worker has started it for so long that it has lost its slot",
    "unknown": "the store does not know it, and there is no result",
}


def stats_of(row: KeyRow, options: Options) -> KeyStats:
    """Return a key as an operator sees it."""
    row = with_limit(row, options)
    block = row.block
    until = None if block is None or math.isinf(block.until) else block.until / 1000
    return KeyStats(
        row.key,
        row.running,
        row.dispatched,
        row.waiting,
        limit=finite(row.slots),
        declared=None if row.declared == -1 else row.declared,
        override=row.override,
        paused=row.paused,
        blocked=block is not None,
        blocked_until=until,
        blocked_reason=block.reason if block else None,
        waiting_since=seconds(row.since),
    )


def holder_of(row: HolderRow) -> Holder:
    """Return who holds a slot, as an operator sees it."""
    since, lease = row.since / 1000, seconds(row.lease)
    return Holder(row.task_id, row.state, row.worker, since, lease)


def explain(task: Task[Any, Any], task_id: str) -> Explanation:
    """Say why a task is not running, or that it is.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    options = options_of(task)
    found = extension_of(task.app).scripts(options.scope).explain(task_id)
    if found.key is None:
        return explain_absent(task, task_id, found)
    key = with_limit(found.key, options)
    stats = stats_of(key, options)
    reason = reason_of(found, key)
    return Explanation(
        task_id,
        task.name,
        options.scope,
        key=key.key,
        state=found.state,
        reason=reason,
        sentence=Wording(found, key, task_id, task.name).sentence(reason),
        at=found.now / 1000,
        attempt=found.attempt,
        worker=found.worker,
        started=seconds(found.started) if found.worker else None,
        limit=stats.limit,
        holders=tuple(map(holder_of, found.holders)),
        held=key.held,
        position=None if found.place is None else found.place + 1,
        waiting=key.waiting,
        waiting_since=seconds(found.since),
        blocked_until=stats.blocked_until,
        blocked_reason=stats.blocked_reason,
        start_by=seconds(found.start_by),
        finish_by=seconds(found.finish_by),
        expires_at=seconds(found.expires_at),
        dispatch_lease_until=(
            seconds(found.lease)
            if found.state == DISPATCHED and found.offer is None
            else None
        ),
    )


def explain_absent(task: Task[Any, Any], task_id: str, found: Situation) -> Explanation:
    """Explain a task that the store does not have."""
    ended = found.tombstone is not None or has_result(task.backend, task_id)
    return Explanation(
        task_id,
        task.name,
        options_of(task).scope,
        key=None,
        state="",
        reason="ended" if ended else "unknown",
        sentence=(
            "It has ended."
            if ended
            else "The store does not know it, and there is no result of it: it was "
            "never submitted, its result has expired, or it was sent without a "
            "submission and no worker has met its message yet."
        ),
        at=found.now / 1000,
    )


def with_limit(row: KeyRow, options: Options) -> KeyRow:
    """Return *row* with the limit that *options* declare, if it is out of use."""
    if row.declared is None:
        return row._replace(declared=options.limit_of(row.key))
    return row


def reason_of(found: Situation, key: KeyRow) -> str:
    """Return the reason, one of :data:`REASONS`."""
    if found.state in {RUNNING, STOPPING}:
        return found.state
    if found.state in {ENDED, DECIDED}:
        return "ended"
    away = {DISPATCHED: "with-broker", LAPSED: "lapsed", DELAYED: "delayed"}
    if found.state in away and found.outbox is not None:
        return "publishing"
    if found.offer is not None:
        away[DISPATCHED] = "claimed" if found.offer.claimer else "offered"
    if key.slots == 0 and found.state != DELAYED and "claimed" not in away.values():
        return reason_of_closed(key)
    return away.get(found.state) or reason_of_waiting(found, key)


def reason_of_waiting(found: Situation, key: KeyRow) -> str:
    """Return why a task waits for a slot."""
    if key.held < key.slots:
        return "next-sweep"
    return "behind-others" if found.place else "key-full"


def reason_of_closed(key: KeyRow) -> str:
    """Return why nothing of *key* may start."""
    if key.paused:
        return "paused"
    return "blocked" if key.block else "limit-zero"


def seconds(at_ms: float | None) -> float | None:
    """Return a time of the store in seconds."""
    return None if at_ms is None else at_ms / 1000


def finite(slots: float) -> int | None:
    """Return a number of slots, ``None`` for no limit."""
    return None if math.isinf(slots) else int(slots)
