"""What an operator gets to see: counts, blocks, explanations, findings."""

from __future__ import annotations

from dataclasses import dataclass


__all__ = ["Block", "Explanation", "Finding", "Holder", "KeyStats"]


@dataclass(frozen=True, slots=True)
class KeyStats:
    """One key, as it is at one moment; times in seconds since the epoch.

    Attributes:
        key: The key; ``""`` for a task without keys.
        running: Tasks whose body executes.
        dispatched: Tasks that have a slot and are on their way to a worker.
        waiting: Tasks that wait for a slot.
        limit: The slots it has now: 0 while it is blocked or paused; ``None`` if
            there is no limit.
        declared: The slots that the task declares; ``None`` if there is no limit.
        override: What :meth:`.Control.set_limit` has set in place of these, -1 for
            no limit; ``None`` if nothing.
        paused: Whether the whole task is paused.
        blocked: Whether the key is blocked.
        blocked_until: When the block ends by itself; ``None`` if it does not, or if
            there is none.
        blocked_reason: Why it is blocked; ``None`` if it is not.
        waiting_since: Since when the one waits that waits longest; ``None`` if
            none does.
    """

    key: str
    running: int
    dispatched: int
    waiting: int
    limit: int | None
    declared: int | None = None
    override: int | None = None
    paused: bool = False
    blocked: bool = False
    blocked_until: float | None = None
    blocked_reason: str | None = None
    waiting_since: float | None = None

    @property
    def held(self) -> int:
        """Slots that are taken."""
        return self.running + self.dispatched

    @property
    def capacity(self) -> int | None:
        """Slots that are free; ``None`` if there is no limit."""
        return None if self.limit is None else max(0, self.limit - self.held)


@dataclass(frozen=True, slots=True)
class Block:
    """The block of a key; times in seconds since the epoch.

    Attributes:
        key: The key.
        reason: Why.
        since: When it began.
        until: When it ends by itself; ``None``: when somebody ends it.
        remaining: Seconds until then, 0 if it is over; ``None``: as above.
        by: Who has blocked it: the node or host name of the process.
    """

    key: str
    reason: str
    since: float
    until: float | None
    remaining: float | None
    by: str = ""


@dataclass(frozen=True, slots=True)
class Holder:
    """A task that holds a slot.

    Attributes:
        task_id: The task.
        state: ``dispatched``, ``running`` or ``stopping``.
        worker: The worker that runs it; ``""`` while none does.
        since: Since when it is in that state, in seconds since the epoch.
        lease_until: Until when it has the slot unless its lease is renewed; ``None``
            if there is no lease.
    """

    task_id: str
    state: str
    worker: str
    since: float
    lease_until: float | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a task is not running, or that it is; times in seconds since the epoch.

    Attributes:
        task_id: The task.
        task: Name of the task that was asked.
        scope: Its scope.
        key: Its key; ``None`` if the store does not know the task.
        state: Where it is, in the words of :mod:`.states`; ``""`` if the store does
            not know it.
        reason: One of :data:`.explaining.REASONS`.
        sentence: The same for people.
        at: The moment of all this, by the store's clock.
        attempt: The number of its attempt, 0 if that is not known.
        worker: The worker that runs it; ``""`` if none does.
        started: When its body has started; ``None`` if it has not.
        limit: The slots its key has now; ``None`` if there is no limit.
        holders: Who has them, at most 100.
        held: How many are taken.
        position: Its place among those that wait, from 1; ``None`` if it does not.
        waiting: How many wait.
        waiting_since: Since when it waits; ``None`` if it does not.
        blocked_until: When the key's block ends by itself; ``None`` if it does
            not, or if there is none.
        blocked_reason: Why the key is blocked; ``None`` if it is not.
        start_by: Until when a worker must start it; ``None``: at any time.
        finish_by: Until when it must have ended; ``None``: at any time.
        expires_at: When it is revoked unless it has started; ``None``: never.
        dispatch_lease_until: Until when it keeps its slot without a start;
            ``None`` if it has none, or has started.
    """

    task_id: str
    task: str
    scope: str
    key: str | None
    state: str
    reason: str
    sentence: str
    at: float
    attempt: int = 0
    worker: str = ""
    started: float | None = None
    limit: int | None = None
    holders: tuple[Holder, ...] = ()
    held: int = 0
    position: int | None = None
    waiting: int = 0
    waiting_since: float | None = None
    blocked_until: float | None = None
    blocked_reason: str | None = None
    start_by: float | None = None
    finish_by: float | None = None
    expires_at: float | None = None
    dispatch_lease_until: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        problem: What kind, one of :data:`.damage.PROBLEMS`.
        subject: The task or key, or the setting.
        detail: What was found, for people.
        remedy: The command that mends it.
    """

    problem: str
    subject: str
    detail: str
    remedy: str
