"""What goes into the scripts and comes out of them, as values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from kombu.utils import json

from ..keys import unquote
from ..message import Message


__all__ = [
    "GRANT_PARTS",
    "NO_DEADLINES",
    "NO_TERMS",
    "Accepted",
    "Blocked",
    "Cancelled",
    "Deadlines",
    "Decided",
    "Granted",
    "Known",
    "Lost",
    "Owed",
    "Phase",
    "Released",
    "Standing",
    "Submitted",
    "Swept",
    "Terms",
    "granted_of",
    "known_of",
    "lost_of",
    "owed_of",
]

#: How many values of a flat reply make one of its rows.
GRANT_PARTS, KNOWN_PARTS, LOST_PARTS, OWED_PARTS = 7, 3, 4, 6


class Terms(NamedTuple):
    """What a submitted task is under, beside its limit; times in seconds.

    0 is none; *max_lost* is how often it runs again when its worker vanishes,
    *keep* whether the store keeps the message until the task has ended.
    """

    accept: float = 0.0
    finish: float = 0.0
    expires: float = 0.0
    max_lost: int = 0
    keep: bool = False


class Deadlines(NamedTuple):
    """Until when a task must have started and ended: server time in ms, 0: never.

    *clock* is what they count from: the submission, or the ETA.
    """

    clock: int = 0
    start_by: int = 0
    finish_by: int = 0


#: What a task is under of which nothing is said.
NO_TERMS, NO_DEADLINES = Terms(), Deadlines()


class Granted(NamedTuple):
    """A waiting task that has got a slot, to be published and confirmed."""

    task_id: str
    attempt: int
    deadlines: Deadlines
    message: Message


class Blocked(NamedTuple):
    """Why a key takes nothing, and for how many seconds yet; ``None``: for ever."""

    reason: str
    remaining: float | None

    @classmethod
    def of(cls, left_ms: int, facts: bytes) -> Blocked:
        """Return the block of these facts, as ``lua/includes/blocks.lua`` has them."""
        said: dict[str, str] = json.loads(facts.split(b" ", 2)[2])
        return cls(said["reason"], None if left_ms < 0 else left_ms / 1000)


class Submitted(NamedTuple):
    """What became of a submission; *status* as in ``lua/submit.lua``."""

    status: str
    attempt: int
    held: int
    waiting: int
    limit: int
    deadlines: Deadlines
    granted: list[Granted]
    block: Blocked | None = None


class Accepted(NamedTuple):
    """Whether a task starts; *status* as in ``lua/accept.lua``."""

    status: str
    attempt: int


class Released(NamedTuple):
    """What became of a run's end; *status* as in ``lua/release.lua``."""

    status: str
    granted: list[Granted]


class Lost(NamedTuple):
    """A run that was ended because nobody renewed its lease."""

    task_id: str
    key: str
    attempt: int
    worker: str


class Owed(NamedTuple):
    """A task that ended by a verdict, to be concluded; it may have no message."""

    task_id: str
    attempt: int
    verdict: str
    key: str
    message: Message | None


class Swept(NamedTuple):
    """What a sweep found, if it was this call's turn."""

    mine: bool
    lost: list[Lost]
    granted: list[Granted]
    owed: list[Owed]


class Cancelled(NamedTuple):
    """What state a task was in that somebody wants to end, and who runs it.

    Both are "" where there is nothing to say.
    """

    was: str
    worker: str
    granted: list[Granted]


class Decided(NamedTuple):
    """Whether a task has ended by a verdict, and when it may; 0: never."""

    verdict: str
    due: float
    granted: list[Granted]


class Standing(NamedTuple):
    """Whether a run is valid, and the verdict that ended it, "" for none."""

    valid: bool
    verdict: str


class Phase(NamedTuple):
    """Where a task is; all empty if the store does not know it; *due* in seconds."""

    state: str
    key: str
    due: float


class Known(NamedTuple):
    """What is known of a task that somebody follows; *due* in seconds, 0: never.

    *state* is "" if the store does not know it; *events* as they were published,
    oldest first.
    """

    state: str
    due: float
    events: list[bytes]


def granted_of(flat: Sequence[Any]) -> list[Granted]:
    """Return the granted tasks of a reply."""
    return [
        Granted(
            task_id.decode(),
            int(attempt),
            Deadlines(*map(int, times)),
            Message(body, envelope),
        )
        for task_id, attempt, *times, envelope, body in _rows(flat, GRANT_PARTS)
    ]


def known_of(flat: Sequence[Any]) -> list[Known]:
    """Return what is known of the tasks of a reply."""
    return [
        Known(state.decode(), due / 1000, events)
        for state, due, events in _rows(flat, KNOWN_PARTS)
    ]


def lost_of(flat: Sequence[bytes]) -> list[Lost]:
    """Return the lost runs of a reply."""
    return [
        Lost(task_id.decode(), unquote(key.decode()), int(attempt), worker.decode())
        for task_id, key, attempt, worker in _rows(flat, LOST_PARTS)
    ]


def owed_of(flat: Sequence[bytes]) -> list[Owed]:
    """Return the owed conclusions of a reply."""
    return [
        Owed(
            task_id.decode(),
            int(attempt),
            verdict.decode(),
            unquote(key.decode()),
            Message(body, envelope) if envelope else None,
        )
        for task_id, attempt, verdict, key, envelope, body in _rows(flat, OWED_PARTS)
    ]


def _rows(flat: Sequence[Any], width: int) -> Iterable[Sequence[Any]]:
    return (flat[i : i + width] for i in range(0, len(flat), width))
