"""Why a task is not running, in a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..keys import unquote
from ..scripts.readings import KeyRow, OfferRow, Situation
from ..states import WAITING
from ..verdicts import error_of


__all__ = ["Wording"]


class Wording:
    """Says a reason in a sentence, for somebody who has just been woken.

    Args:
        found: What the store has of the task.
        key: Of its key, with its limit.
        task_id: The task.
        task: Its name.
    """

    def __init__(self, found: Situation, key: KeyRow, task_id: str, task: str) -> None:
        self._found = found
        self._key = key
        self._task_id = task_id
        self._name = repr(key.key) if key.key else f"task {task}"

    def sentence(self, reason: str) -> str:
        """Return the sentence of *reason*."""
        texts: dict[str, Callable[[], str]] = {
            "running": lambda: f"It runs on {self._worker} for {self._ran}.",
            "stopping": lambda: (
                f"It has ended{self._verdict}, but its body still runs on "
                f"{self._worker} and keeps its slot until it returns."
            ),
            "ended": lambda: (
                f"It has ended{self._verdict}; what follows from that is about to be "
                "done by a worker."
            ),
            "key-full": lambda: f"{self._waits}: {self._taken}, and it is the next.",
            "behind-others": lambda: (
                f"{self._waits}: {self._taken}, and {self._found.place} wait before it."
            ),
            "next-sweep": lambda: (
                f"{self._waits}: a slot of {self._name} is free, and a sweep or the "
                "next release gives it on. If it stays so: celery bgtask check."
            ),
            "limit-zero": lambda: (
                f"{self._parked}: {self._name} has been given 0 slots. "
                "celery bgtask limit gives it others."
            ),
            "paused": lambda: (
                f"{self._parked}: the task is paused. celery bgtask resume ends that."
            ),
            "blocked": lambda: f"{self._parked}: {self._name} is {self._block}.",
            "publishing": lambda: (
                "Its turn has come, and its message is about to be published; else "
                f"a sweep does it in {age(self._found.outbox, self._found.now)}."
            ),
            "with-broker": lambda: (
                f"It has a slot of {self._name}, its message is with the broker, and "
                "no worker has been free to start it. It loses the slot in "
                f"{age(self._found.lease, self._found.now)}."
            ),
            "offered": lambda: (
                f"It has a slot of {self._name} and is on offer: {self._told}; nobody "
                f"has claimed it. {self._ends_unclaimed}."
            ),
            "claimed": lambda: (
                f"Worker {self._offer.claimer} has claimed it and is about to start "
                "it; else it is on offer again in "
                f"{age(self._found.lease, self._found.now)}."
            ),
            "delayed": lambda: (
                "Its message is with the broker or a worker until its ETA or "
                "countdown; it has no slot yet."
            ),
            "lapsed": lambda: (
                "No worker has started it within bgtask_dispatch_lease, so it has lost "
                "its slot; it starts where its message arrives. If that is lost: "
                "celery bgtask redispatch."
            ),
        }
        return texts[reason]()

    @property
    def _waits(self) -> str:
        return f"It has waited for {age(self._found.now, self._found.since)}"

    @property
    def _parked(self) -> str:
        if self._found.state == WAITING:
            return self._waits
        if self._found.offer:
            return "It is on offer, and no worker may claim it"
        return "A worker that gets its message will park it"

    @property
    def _offer(self) -> OfferRow:
        return self._found.offer or OfferRow("", 0, 0, "")

    @property
    def _told(self) -> str:
        queue, told, ignored, _ = self._offer
        if not told:
            return f"no worker takes offers from queue {queue!r}"
        workers = "1 worker was" if told == 1 else f"{told} workers were"
        return f"{workers} told, {ignored} ignored it"

    @property
    def _ends_unclaimed(self) -> str:
        if self._found.start_by is None:
            return "It stays so until one does"
        return f"It ends in {age(self._found.start_by, self._found.now)}"

    @property
    def _taken(self) -> str:
        slots, held = int(self._key.slots), self._key.held
        if held > slots:
            return f"{held} tasks hold slots of {self._name}, which has {slots} now"
        if slots == 1:
            return f"the only slot of {self._name} is taken"
        all_of_them = "both" if slots == 2 else f"all {slots}"  # noqa: PLR2004
        return f"{all_of_them} slots of {self._name} are taken"

    @property
    def _block(self) -> str:
        block = self._key.block
        if block is None or math.isinf(block.until):
            ends = "blocked until somebody unblocks it"
        else:
            ends = f"blocked for another {age(block.until, self._found.now)}"
        return f"{ends} ({block.reason})" if block and block.reason else ends

    @property
    def _verdict(self) -> str:
        if not self._found.verdict:
            return ""
        return f" ({error_of(self._task_id, self._found.verdict)})"

    @property
    def _worker(self) -> str:
        return unquote(self._found.worker) or "a worker"

    @property
    def _ran(self) -> str:
        return age(self._found.now, self._found.started)


def age(later: float | None, earlier: float | None) -> str:
    """Return the time between two moments in ms, for people."""
    if later is None or earlier is None:
        return "some time"
    passed = max(0.0, (later - earlier) / 1000)
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60)):
        if passed >= 2 * size:
            return f"{passed / size:.0f} {unit}"
    return f"{passed:.0f} s"
