"""The machine's time, and what a sweep finds."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import rule

from tests.property.submitting import Submitting
from tests.property.vocabulary import SETTINGS, STEP, WORKERS
from tests.property.world import PASS_TIME, Scope, earlier


class Passing(Submitting):
    """Time passes, and somebody sweeps, or nobody does."""

    @rule(steps=st.sampled_from((1, 1, 1, 2, 5, 10)))
    def nobody_cares_for_a_while(self, steps: int) -> None:
        """Time passes in which nobody renews or sweeps."""
        self._pass_time(steps * STEP)

    @rule(steps=st.integers(1, 6), worker=st.sampled_from(WORKERS))
    def time_passes(self, steps: int, worker: str) -> None:
        """Time passes; who lives renews, somebody sweeps."""
        for _ in range(steps):
            self._pass_time(STEP)
            for alive in set(WORKERS) - self.dead:
                self._renew(alive)
            self._sweep(worker)

    @rule(worker=st.sampled_from(WORKERS))
    def somebody_sweeps(self, worker: str) -> None:
        """A sweep, at any time."""
        self._sweep(worker)

    def _pass_time(self, seconds: int) -> None:
        self.link.run(PASS_TIME, (self.tag,), (seconds * 1000,))
        self.now += seconds
        self.submitted = None
        self.broker = [earlier(letter, seconds) for letter in self.broker]
        self.direct = [earlier(letter, seconds) for letter in self.direct]
        self.granted = [earlier(granted, seconds) for granted in self.granted]
        for run in self.runs:
            run.letter = earlier(run.letter, seconds)
        self.look()

    def _sweep(self, worker: str) -> None:
        before = self.scope
        mine = self.now - self.last_sweep >= SETTINGS.sweep_interval
        silent = self.now - self.last_sweep > SETTINGS.lease / 3
        swept = self.scripts.sweep(worker)
        self.take(swept.granted)
        after = self.look()
        assert swept.mine == mine, "[sweep] two at a time"
        if not mine:
            assert after.same(before), "[sweep] two at a time"
            return
        self.submitted = None
        self.last_sweep = self.now
        if silent:
            assert not swept.lost, "[silence] a task was lost by the store's silence"
            for task_id, until in after.leases.items():
                assert until > after.now + SETTINGS.lease * 990, f"[silence] {task_id}"
                for run in self.valid_runs(task_id):
                    low = self.now + int(SETTINGS.lease)
                    run.leased_until = max(run.leased_until, low)
        else:
            late = [i for i, until in after.leases.items() if until <= after.now]
            assert not late, f"[I7] a sweep has left the leases of {late}"
        ended = [key for key, until in after.blocked.items() if until <= after.now]
        assert not ended, f"[block] a sweep has left the blocks of {ended}"
        assert set(after.blocks) == set(after.blocked), "[block] facts of no block"
        self.conclusions += sorted(swept.owed)
        self._end_lost(before, after)
        late = [i for i, due in after.deadlines.items() if due <= after.now]
        assert not late, f"[I13] a sweep has left {late} undecided"
        late = [i for i, due in after.outbox.items() if due <= after.now]
        assert not late, f"[outbox] a sweep has left {late} unpublished"
        due = {i for i, due in before.outbox.items() if due <= before.now}
        given = {task.task_id for task in swept.granted}
        stuck = {i for i in due & set(after.tasks) if i not in given}
        assert not stuck & set(after.outbox), f"[outbox] {stuck} were not published"

    def _end_lost(self, before: Scope, after: Scope) -> None:
        """Runs that a sweep has ended had outlived their lease."""
        for run in self.valid_runs():
            record = after.tasks.get(run.id, {})
            if record.get("token") == run.token and record["state"] != "decided":
                continue
            assert run.leased_until < self.now, f"[lost] {run} was renewed in time"
            run.phase = "over"
            if record and int(record["attempt"]) > run.letter.attempt:
                self.promise(run.id, int(record["attempt"]))
                if record.get("body") == run.letter.serial:  # it runs again
                    self.starts[run.letter.serial] -= 1
