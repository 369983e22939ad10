"""What the machine sees of a step: what it may change and what not."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Iterable

from hypothesis.stateful import RuleBasedStateMachine, initialize

from celery_bgtask.keys import scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.replies import Granted, Owed
from celery_bgtask.store import Link
from tests.property.vocabulary import FOR_EVER, HALF, SETTINGS, numbers
from tests.property.world import Letter, Run, Scope, Submit


class Seeing(RuleBasedStateMachine):
    """A scope, and what clients, a broker and workers know of it."""

    link: Link

    @initialize()
    def begin(self) -> None:
        """Every example has a scope of its own."""
        self._begin()

    def _begin(self) -> None:
        self.outer = sys.exc_info()[1]
        number = next(numbers)
        self.scripts = Scripts(
            self.link, prefix="p", scope=f"s{number}", settings=SETTINGS
        )
        self.tag = scope_tag("p", f"s{number}")
        self.now = 0
        self.last_sweep = -FOR_EVER
        self.serials = itertools.count()
        self.broker: list[Letter] = []
        self.direct: list[Letter] = []  # admitted, not yet published by the client
        self.granted: list[Granted] = []  # in the hands of whoever got them
        self.runs: list[Run] = []
        self.dead: set[str] = set()
        self.starts: Counter[str] = Counter()  # by serial
        self.conclusions: list[Owed] = []
        self.promised: dict[str, int] = {}  # by id: the attempt that must start
        self.excused: set[str] = set()
        self.unwanted: set[str] = set()  # offers that no live worker takes
        self.submitted: Submit | None = None
        self.scope = Scope.read(self.link, self.tag)

    # What a step may and may not do

    def look(self, *, moved: Iterable[str] = (), over: bool = False) -> Scope:
        """Read the scope after a step and compare it with the one before.

        *moved* are the ids that the step was about: they may leave a queue from
        its middle. *over* says that the step does not care for limits.
        """
        before, self.scope = self.scope, Scope.read(self.link, self.tag)
        after = self.scope
        judged = {t for t in after.tasks if after.verdict(t) and not before.verdict(t)}
        for task_id in judged:
            self._check_verdict(task_id, before, after)
        moved = {*moved, *judged}
        for key in after.slots:
            taken = set(after.slots[key]) - set(before.slots.get(key, ()))
            assert not taken or over or after.room(key) >= 0, (
                f"[I1] {taken} got slots of {key!r}: {after.held(key)} are held of "
                f"{after.limit(key)}"
            )
            for task_id, since in before.slots.get(key, {}).items():
                now = after.slots[key].get(task_id, since)
                same = (now < 0) == (since < 0)
                assert now == since or not same or task_id in moved, (
                    f"[since] {task_id} holds its slot of {key!r} since another time"
                )
        for key in {*before.waiting, *after.waiting}:
            self._compare_queues(key, before, after, moved)
        return after

    def _compare_queues(
        self, key: str, before: Scope, after: Scope, moved: set[str]
    ) -> None:
        was = [task_id for task_id in before.queue(key) if task_id not in moved]
        now = [task_id for task_id in after.queue(key) if task_id not in moved]
        gone = [task_id for task_id in was if task_id not in now]
        assert gone == was[: len(gone)], (
            f"[FIFO] {gone} left the queue {was} of {key!r} before others"
        )
        assert [task_id for task_id in now if task_id in was] == was[len(gone) :], (
            f"[FIFO] the queue of {key!r} was {was} and is {now}"
        )
        known = dict(before.waiting.get(key, ()))
        for task_id, score in after.waiting.get(key, ()):
            if task_id not in known:
                half = score // HALF
                peers = [
                    known[t] for t in now if t in known and known[t] // HALF == half
                ]
                assert score > max(peers, default=0), (
                    f"[FIFO] {task_id} went before those that wait already in {key!r}"
                )

    def _check_verdict(self, task_id: str, before: Scope, after: Scope) -> None:
        """A verdict comes when it is due, and before the start or not at all."""
        record = before.tasks[task_id]
        word = after.tasks[task_id]["verdict"].split()[0]
        started = record["state"] == "running"
        due = {
            "unaccepted": "start_by",
            "unfinished": "finish_by",
            "expired": "expires_at",
        }
        if word in due:
            unwanted = task_id in self.unwanted
            passed = unwanted or int(record[due[word]]) <= after.now
            assert passed, f"[I13] {word} too early: {record}"
            assert not started or word == "unfinished", f"[I13] {word}, but started"
        elif word in {"lost", "unsettled"}:
            assert (word == "lost") == started, f"[lost] {word}: {record}"
            assert before.leases[task_id] <= after.now, (
                "[lost] the lease had not run out"
            )
        else:
            assert word == "cancelled"
        if not started:
            assert after.state(task_id) == "decided"
        self.excuse(task_id)
        for run in self.valid_runs(task_id):
            run.phase = "over" if after.state(task_id) == "decided" else "stopping"

    def unchanged(self, why: str) -> None:
        """The step has changed nothing."""
        before = self.scope
        after = self.look()
        assert after.same(before), f"[no-op] {why} changed\n{before}\ninto\n{after}"

    def take(self, granted: list[Granted]) -> None:
        """Somebody has got granted tasks to publish."""
        for task in granted:
            assert task.message.body, f"[I5] {task.task_id} was granted without message"
        self.granted += sorted(granted, key=lambda task: task.task_id)

    def valid_runs(self, task_id: str | None = None) -> list[Run]:
        """Runs that nobody has ended from outside."""
        runs = (run for run in self.runs if run.is_valid)
        return [run for run in runs if task_id is None or run.id == task_id]

    def promise(self, task_id: str, attempt: int) -> None:
        """What is admitted must start."""
        self.promised[task_id] = attempt
        self.excused.discard(task_id)

    def excuse(self, task_id: str) -> None:
        """Its message is gone: no step of ours can start it."""
        self.excused.add(task_id)

    def _letter(
        self,
        task_id: str,
        key: str,
        limit: int,
        rank: int,
        tries: int,
        late: bool,
        size: int,
    ) -> Letter:
        serial = str(next(self.serials)).rjust(size, ".")
        return Letter(task_id, 0, key, tries, rank, limit, serial, late)
