"""What the operator's scripts read, as values; times in ms of the store's clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from kombu.utils import json

from ..keys import unquote


__all__ = [
    "EVERYWHERE",
    "AuditRow",
    "BlockRow",
    "HolderRow",
    "KeyRow",
    "OfferRow",
    "Situation",
    "audit_of",
    "holders_of",
    "situation_of",
]

#: In place of a key: the one of the task's record. No key is quoted like that.
EVERYWHERE = "*"


class BlockRow(NamedTuple):
    """The block of a key; *until* is infinite if it does not end by itself."""

    reason: str
    by: str
    since: float
    until: float

    @classmethod
    def of(cls, facts: bytes, ends: bytes | None = None) -> BlockRow:
        """Return the block of these facts, as ``lua/includes/blocks.lua`` has them.

        It ends at *ends*, or as it was to end when it began.
        """
        since, until, said = facts.split(b" ", 2)
        known: dict[str, str] = json.loads(said)
        return cls(known["reason"], known["by"], float(since), float(ends or until))


class KeyRow(NamedTuple):
    """A key as ``lua/stats.lua`` describes it, at the moment *now*."""

    now: int
    key: str
    running: int
    held: int
    waiting: int
    declared: int | None
    override: int | None
    paused: bool
    last_block: BlockRow | None
    since: int | None

    @classmethod
    def of(cls, now: int, row: Sequence[Any]) -> KeyRow:
        """Return the key of a row."""
        key, running, held, waiting, declared, override, paused, *rest = row
        block, ends, since = rest
        return cls(
            now,
            unquote(key.decode()),
            running,
            held,
            waiting,
            number_of(declared),
            number_of(override),
            bool(paused),
            BlockRow.of(block, ends) if block and ends else None,
            number_of(since),
        )

    @property
    def dispatched(self) -> int:
        """Slots of tasks that are on their way to a worker."""
        return self.held - self.running

    @property
    def block(self) -> BlockRow | None:
        """The block that has not ended."""
        block = self.last_block
        return block if block is not None and block.until > self.now else None

    @property
    def slots(self) -> float:
        """How many slots it has now, infinite for no limit."""
        if self.paused or self.block:
            return 0
        limit = self.declared if self.override is None else self.override
        return math.inf if limit is not None and limit < 0 else limit or 0


class OfferRow(NamedTuple):
    """An offer: of how many live workers to how many it means nothing.

    *claimer* is the worker that is about to start it, "" for none.
    """

    queue: str
    told: int
    ignored: int
    claimer: str


class HolderRow(NamedTuple):
    """A task that holds a slot; *lease* is ``None`` if it has none."""

    task_id: str
    state: str
    worker: str
    since: int
    lease: int | None


class Situation(NamedTuple):
    """A task and its key, as ``lua/explain.lua`` reads them; ``None``: nothing."""

    now: int
    tombstone: int | None
    state: str
    attempt: int
    worker: str
    verdict: str
    started: int | None
    since: int | None
    start_by: int | None
    finish_by: int | None
    expires_at: int | None
    lease: int | None = None
    outbox: int | None = None
    place: int | None = None
    key: KeyRow | None = None
    holders: tuple[HolderRow, ...] = ()
    offer: OfferRow | None = None


class AuditRow(NamedTuple):
    """All that the store has of a task, as ``lua/audit.lua`` reads it.

    *found* is the key in whose slots or queue it was found, quoted, or "*"; *key*
    that of its record. ``None`` or "" where there is nothing.
    """

    now: int
    task_id: str
    found: str
    state: str
    key: str | None
    attempt: int
    worker: str
    token: str
    verdict: str
    start_by: int | None
    finish_by: int | None
    expires_at: int | None
    size: int
    slot: int | None
    place: int | None
    lease: int | None
    outbox: int | None
    deadline: int | None
    owed: int | None
    run: str
    envelope: bytes
    offer: str = ""


def situation_of(reply: Sequence[Any]) -> Situation:
    """Return the situation of a reply."""
    now, tombstone, record, *rest = reply
    state, attempt, _, worker, verdict, *times = record
    values: list[Any] = [now, number_of(tombstone), text_of(state)]
    values += [number_of(attempt) or 0, text_of(worker), text_of(verdict)]
    values += map(number_of, times)
    if rest:
        lease, outbox, place, key, flat, offer = rest
        values += [number_of(lease), number_of(outbox), place, KeyRow.of(now, key)]
        values.append(tuple(holders_of(flat)))
        values.append(offer_of(offer) if offer else None)
    return Situation(*values)


def offer_of(row: Sequence[Any]) -> OfferRow:
    """Return the offer of a row; without a claimer that is missing."""
    queue, told, ignored, *claimer = row
    return OfferRow(
        unquote(text_of(queue)),
        told,
        ignored,
        unquote(text_of(claimer[0])) if claimer else "",
    )


def audit_of(now: int, row: Sequence[Any]) -> AuditRow:
    """Return the task of a row."""
    task_id, found, state, key, attempt, worker, token, verdict, *rest = row
    *numbers, run, envelope, offer = rest
    values: list[Any] = [now, *map(text_of, (task_id, found, state))]
    values += [None if key is None else text_of(key), number_of(attempt) or 0]
    values += map(text_of, (worker, token, verdict))
    values += map(number_of, numbers)
    values += [text_of(run), envelope or b"", text_of(offer)]
    return AuditRow(*values)


def holders_of(flat: Sequence[Any]) -> list[HolderRow]:
    """Return the holders of a reply, as ``lua/includes/describe.lua`` lists them."""
    size = len(HolderRow._fields)
    rows = (flat[i : i + size] for i in range(0, len(flat), size))
    return [
        HolderRow(
            text_of(task_id), text_of(state), text_of(worker), since,
            number_of(lease or None),
        )
        for task_id, state, worker, since, lease in rows
    ]  # fmt: skip


def number_of(value: Any) -> int | None:
    """Return a number, of a text or a score, or ``None``."""
    return None if value is None else int(float(value))


def text_of(value: bytes | None) -> str:
    """Return a text, "" for none."""
    return (value or b"").decode()
