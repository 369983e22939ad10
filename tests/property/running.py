"""The machine's runs, from their start to their end, and their workers."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.property.judging import Judging
from tests.property.vocabulary import END, SETTINGS, WORKERS, picks
from tests.property.world import Run, Scope


class Running(Judging):
    """Bodies that end, are requeued or lost; results; heartbeats."""

    def _replace_ended(self, task_id: str) -> None:
        """A run that has ended and not settled gives way to a newer attempt."""
        for run in self.valid_runs(task_id):
            assert run.phase == "ended", f"[I2] {run} is replaced while it runs"
            run.phase = "over"

    @precondition(lambda self: self.runs)
    @rule(n=picks, by_token=st.booleans())
    def body_ends(self, n: int, by_token: bool) -> None:
        """A run is released, by itself or by the worker; or again, or too late."""
        self._release(self.runs[n % len(self.runs)], by_token=by_token)

    def _release(self, run: Run, *, by_token: bool) -> None:
        before, was = self.scope, run.phase
        self.submitted = None
        if self._hidden_by_successor(run):
            by_token = True
        named = {**run.named, **({} if by_token else {"token": ""})}
        answer = self.scripts.release(run.id, **named)
        self.take(answer.granted)
        if was == "running":
            after = self.look(moved=[run.id])
            assert answer.status == "released", f"[I3] {run} is {answer.status}"
            self._follow(run, before, after)
        elif was == "ended":
            assert answer.status == "released", f"[I3] {run} is {answer.status}"
            self.unchanged("releasing twice")
        elif was == "stopping":
            after = self.look()
            assert answer.status == "stale", f"[I13] {run} is {answer.status}"
            assert run.id not in after.slots.get(before.tasks[run.id]["key"], ())
            run.phase = "over"
        elif before.tasks.get(run.id, {}).get("past") == run.token and by_token:
            assert answer.status == "released", f"[I3] {run} is {answer.status}"
            again = {task.task_id for task in answer.granted}
            assert again == {run.id} & set(before.outbox), "[outbox] granted once only"
            assert replace(self.look(), outbox={}).same(replace(before, outbox={}))
        else:
            assert answer.status in {"stale", "unknown"}, f"[I3] {run}: {answer.status}"
            self.unchanged("a stale release")

    def _hidden_by_successor(self, run: Run) -> bool:
        """By worker and attempt alone, it cannot be told from a later run."""
        return any(
            other is not run
            and (other.id, other.worker) == (run.id, run.worker)
            and other.letter.attempt == run.letter.attempt
            for other in self.runs
        )

    def _follow(self, run: Run, before: Scope, after: Scope) -> None:
        """A run is over; what was submitted meanwhile takes over."""
        record = before.tasks[run.id]
        if "next_key" not in record:
            assert after.state(run.id) == "ended", "[I4] released, yet not ended"
            assert run.id not in after.slots.get(record["key"], ()), (
                "[I3] kept its slot"
            )
            run.phase = "ended"
            return
        run.phase = "over"
        now = after.tasks[run.id]
        assert int(now["attempt"]) == run.letter.attempt + 1, "[I5] no next attempt"
        assert now["key"] == record["next_key"]
        if record["next_key"] == record["key"] and record["next_delay_ms"] == "0":
            assert run.id in after.slots[record["key"]], "[I5] the next lost the slot"

    @precondition(lambda self: self.replaced_runs())
    @rule(n=picks, settles=st.booleans())
    def a_replaced_run_ends(self, n: int, settles: bool) -> None:
        """A run that was lost, or gave way, ends while its successor runs."""
        runs = self.replaced_runs()
        run = runs[n % len(runs)]
        if settles:
            self._settle(run)
        else:
            self._release(run, by_token=True)

    def replaced_runs(self) -> list[Run]:
        """Runs that are over, of tasks that run again."""
        running = {run.id for run in self.valid_runs()}
        return [run for run in self.runs if not run.is_valid and run.id in running]

    def requeueable_runs(self) -> list[Run]:
        """Runs of messages that the broker has until they end."""
        runs = self.valid_runs()
        return [run for run in runs if run.phase == "running" and run.letter.late]

    @precondition(lambda self: self.runs)
    @rule(n=picks)
    def result_is_stored(self, n: int) -> None:
        """A run is settled; or again, or too late."""
        self._settle(self.runs[n % len(self.runs)])

    def _settle(self, run: Run) -> None:
        letter = run.letter
        remember = letter.late or letter.copy
        record = self.scope.tasks.get(run.id, {})
        self.submitted = None
        self.scripts.settle(
            run.id, remember=remember, event=END, owed=False, **run.named
        )
        if run.phase == "ended":
            after = self.look()
            assert run.id not in after.tasks, "[I17] settled, yet there is a record"
            copies = remember or "copies" in record
            stone = after.tombstones.get(run.id, 0) >= letter.attempt
            assert stone or not copies, "[I17] forgotten, yet there are copies"
            run.phase = "over"
        else:
            self.unchanged("settling what has not ended, or has settled")

    @rule(worker=st.sampled_from(WORKERS))
    def worker_dies(self, worker: str) -> None:
        """A worker renews no more; what it ran may still try to end."""
        self.dead ^= {worker}

    @rule(worker=st.sampled_from(WORKERS))
    def worker_renews(self, worker: str) -> None:
        """A heartbeat: whatever was lost is told, the rest gets a lease."""
        self._renew(worker)

    @precondition(lambda self: self.lost_runs())
    @rule(n=picks)
    def worker_comes_back(self, n: int) -> None:
        """A worker that has lost a run renews again."""
        runs = self.lost_runs()
        self._renew(runs[n % len(runs)].worker)

    def lost_runs(self) -> list[Run]:
        """Runs that are over and whose worker has not been told."""
        listed = self.scope.workers
        return [
            run
            for run in self.runs
            if not run.is_valid and run.id in listed.get(run.worker, ())
        ]

    def _renew(self, worker: str) -> None:
        mine = [run for run in self.runs if run.worker == worker]
        latest = {run.id: run for run in mine}
        entries = self.scope.workers.get(worker, {})
        expected = {i for i, run in latest.items() if not run.is_valid and i in entries}
        lost = self.scripts.renew(worker, latest)
        after = self.look()
        told = {row.task_id for row in lost}
        assert told == expected, f"[lost] told {told}, but {expected} were lost"
        for run in latest.values():
            if run.is_valid:
                run.leased_until = self.now + int(SETTINGS.lease)
                assert after.leases[run.id] > after.now + SETTINGS.lease * 990, (
                    f"[lost] the lease of {run} was not renewed"
                )
            else:
                assert run.id not in after.workers.get(worker, {}), "[lost] told again"
