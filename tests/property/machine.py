"""The scripts, driven at random, against a model that knows what must hold.

The model is what clients, a broker and workers know: messages in flight, runs with
their tokens, what was admitted and has not started. After each step the whole scope
is read and compared. Time passes by moving deadlines; all of them are hundreds of
seconds apart, so none falls near *now*.

Every check has a name in brackets; ``test_mutants.py`` shows that none is vacuous.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from celery import Celery

from celery_bgtask.store import Link
from tests.property.holding import Holding
from tests.property.passing import Passing
from tests.property.vocabulary import FOR_EVER, STEP, WORKERS
from tests.property.world import Letter, Scope


class ScriptsMachine(Passing, Holding):
    """Clients, a broker, workers and time, in any order."""

    def teardown(self) -> None:
        """All goes well from now on: everything starts and ends, nothing is left."""
        if not hasattr(self, "tag") or sys.exc_info()[1] is not self.outer:
            return  # a step has failed: its error is the one to see
        checks: list[Callable[[], None]] = [
            self.slots_leases_and_records_agree,
            self.every_task_is_in_one_place,
            self.a_valid_run_is_the_one_in_the_store,
            self.no_slot_is_idle_while_one_waits,
            self.limits_are_kept_while_in_use,
            self.waiting_bytes_are_the_sum,
            self.messages_are_kept_while_owed,
            self.verdicts_are_owed,
            self.what_stays_is_owed,
        ]
        self.dead = set(WORKERS)
        self.leave_alone()
        for _ in range(60):
            self._drain_once()
            for check in checks:
                check()
            scope = self.scope
            if (
                scope.leases
                or scope.waiting
                or scope.outbox
                or scope.owed
                or self.broker
            ):
                continue
            kept = [t for t in scope.tasks if f"task:{t}" in scope.immortal]
            if not kept:
                break
            for task_id in kept:  # their messages were lost
                assert task_id in self.excused, f"[I5] {task_id} never started"
                self._cancel(task_id, terminate=True)
        left = set(self.promised) - self.excused
        assert not left, f"[I5] {left} never started"
        assert not self.scope.slots, f"[I17] {self.scope}"
        assert not self.scope.waiting, f"[I7] {self.scope}"
        assert not self.scope.immortal, f"[I17] {self.scope.immortal} stay for ever"
        self._pass_time(FOR_EVER)
        assert Scope.read(self.link, self.tag).same(Scope(0)), "[I17] something is left"

    def take_offers(self) -> None:
        """Nothing is on offer."""

    def leave_alone(self) -> None:
        """Nobody steers any more."""

    def _drain_once(self) -> None:
        """Publish, deliver, run, store; then time passes and somebody sweeps."""
        self.broker += self.direct
        self.direct = []
        granted, self.granted = self.granted, []
        self.broker += map(Letter.of, granted)
        if granted:
            self.scripts.confirm(granted)
            self.look()
        self.take_offers()
        while self.broker:
            self._arrive(self.broker.pop(0), "w0")
        for run in self.runs:
            if run.phase in {"running", "stopping"}:
                self._release(run, by_token=True)
            if run.phase == "ended":
                self._settle(run)
        self._pass_time(STEP)
        self._sweep("w0")
        for owed in self.conclusions:
            self._conclude(owed)
        self.conclusions = []


def machine_on(
    url: str, machine: type[ScriptsMachine] = ScriptsMachine
) -> type[ScriptsMachine]:
    """A machine on the server at *url*."""
    app = Celery("machine", set_as_current=False)
    return type("Machine", (machine,), {"link": Link(app, url)})
