"""What does not agree in the store: of one task, and of one key."""

from __future__ import annotations

from collections.abc import Iterator

from ..keys import unquote
from ..scripts.readings import EVERYWHERE, AuditRow, KeyRow
from ..states import DELAYED, DISPATCHED, ENDED, LAPSED, RUNNING, STOPPING, WAITING


__all__ = ["PROBLEMS", "damage_of", "is_stalled", "key_damage_of"]

#: All kinds of findings, and what each means.
PROBLEMS = {
    "slot-without-task": "a slot is held by a task that does not have it",
    "task-without-slot": "a task should hold a slot and does not",
    "lease-without-slot": "a lease is of a task that holds nothing",
    "slot-without-lease": "a slot would never be freed: its lease is gone",
    "entry-without-task": "a queue has a task that does not wait",
    "task-without-entry": "a task waits and is in no queue",
    "not-on-offer": "a task is offered to nobody, and no worker has claimed it",
    "message-gone": "a task waits and its message is gone",
    "outbox-without-message": "a task is to be published that has no message",
    "wrong-deadline": "a deadline is missing, or of nobody",
    "wrong-debt": "what follows from a task's end is owed to nobody, or of nobody",
    "run-not-listed": "a run is not in its worker's list, which renews its lease",
    "key-without-limit": "a key is in use and has no limit: nothing of it starts",
    "idle-key": "a limit is kept of a key that is not in use",
    "stalled-key": "tasks wait for a key of which nothing runs",
    "bytes-drift": "the count of the bytes that wait is wrong",
    "not-published": "a task has its slot and nobody has published it",
    "not-swept": "what ran out of time is not ended: nobody sweeps",
    "message-lost": "a task is with the broker, and the broker does not have it",
    "eviction": "the store may drop what it has when its memory is full",
}

HOLDING = frozenset({DISPATCHED, RUNNING, STOPPING})
AWAY = frozenset({DISPATCHED, LAPSED, DELAYED})


def damage_of(row: AuditRow) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a task: the problem, and what was found."""
    state = row.state or "not in the store"
    for problem, detail in (*slot_damage(row), *queue_damage(row), *debt_damage(row)):
        yield problem, f"it is {state}, {detail}"


def slot_damage(row: AuditRow) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the slot of a task, and its lease."""
    key = unquote(key_of(row))
    holds = is_home(row) and row.state in HOLDING
    leased = row.state in HOLDING or row.state == ENDED
    if row.slot is not None and not holds:
        yield "slot-without-task", f"and has a slot of {key!r}"
    if holds and row.slot is None:
        yield "task-without-slot", f"and has no slot of {key!r}"
    if row.lease is not None and not leased:
        yield "lease-without-slot", "and has a lease"
    if row.lease is None and leased:
        yield "slot-without-lease", "and has no lease"
    if row.state == RUNNING and not row.run.startswith(row.token + " "):
        yield "run-not-listed", f"and not in the list of {unquote(row.worker)}"


def queue_damage(row: AuditRow) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the place where a task waits."""
    key = unquote(key_of(row))
    waits = is_home(row) and row.state == WAITING
    if row.place is not None and not waits:
        yield "entry-without-task", f"and in the queue of {key!r}"
    if waits and row.place is None:
        yield "task-without-entry", f"and not in the queue of {key!r}"
    if waits and not row.size:
        yield "message-gone", f"for {key!r}, and has no message"
    if row.offer == "missing":
        yield "not-on-offer", "and not in the offers of its queue"
    if row.outbox is not None and not (row.size and row.state in AWAY):
        yield "outbox-without-message", "and is to be published"


def debt_damage(row: AuditRow) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the time when a task ends, and what follows."""
    if row.deadline != deadline_of(row):
        yield "wrong-deadline", "and its deadline is missing or another one"
    owed = row.owed is not None
    concluded = row.state == STOPPING and not owed  # the body still runs
    if owed != bool(row.verdict) and not concluded:
        yield "wrong-debt", f"and {'' if owed else 'not '}to be concluded"


def deadline_of(row: AuditRow) -> int | None:
    """Return when the task ends though nobody ends it."""
    if row.verdict or not row.state or row.state == ENDED:
        return None
    times = [row.finish_by]
    if row.state != RUNNING:
        times += [row.start_by, row.expires_at]
    return min((at for at in times if at is not None), default=None)


def key_damage_of(row: KeyRow) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with a key: the problem, and what was found."""
    used = row.held or row.waiting
    if used and row.declared is None:
        yield "key-without-limit", f"{row.held} hold it, {row.waiting} wait for it"
    if not used and row.declared is not None:
        yield "idle-key", "nothing holds it or waits for it"
    if is_stalled(row):
        yield "stalled-key", f"{row.waiting} wait for it, and nothing holds it"


def is_stalled(row: KeyRow) -> bool:
    """Tell whether nobody goes on with what waits for a key that has slots."""
    swept = row.last_block is None or row.block is not None
    return bool(row.waiting and not row.held and row.slots and swept)


def key_of(row: AuditRow) -> str:
    """Return the key whose slots and queue were looked at."""
    return row.key or "" if row.found == EVERYWHERE else row.found


def is_home(row: AuditRow) -> bool:
    """Tell whether that is the key of its record."""
    return row.found in {EVERYWHERE, row.key}
