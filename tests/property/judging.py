"""The machine's verdicts: cancelled, late, and what follows from that."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from celery_bgtask.scripts.replies import Owed
from tests.property.seeing import Seeing
from tests.property.vocabulary import END, NOT_STARTED, ids, picks


class Judging(Seeing):
    """Who cancels, who looks at the clock, and who concludes."""

    @rule(task_id=ids, terminate=st.booleans())
    def somebody_cancels(self, task_id: str, terminate: bool) -> None:
        """A task is cancelled, wherever it is."""
        self._cancel(task_id, terminate=terminate)

    def _cancel(self, task_id: str, *, terminate: bool) -> None:
        before = self.scope
        was = before.state(task_id)
        self.submitted = None
        answer = self.scripts.cancel(task_id, reason="why", terminate=terminate)
        self.take(answer.granted)
        if not was and task_id in before.tombstones:
            assert answer.was == "decided", "[I13] it had ended"
            self.unchanged("cancelling what has ended")
            return
        assert answer.was == (was or ""), f"[I13] {answer} of a task that is {was}"
        if was in NOT_STARTED or (was == "running" and terminate):
            after = self.look()
            assert after.verdict(task_id) == "cancelled why", "[I13] not cancelled"
        elif was:
            self.unchanged("cancelling what runs, or has ended")
        else:
            after = self.look()
            assert after.tombstones[task_id] > 1000, "[I13] it may start"
            self.excuse(task_id)

    @precondition(lambda self: self.scope.deadlines)
    @rule(task_id=ids)
    def a_client_looks_at_the_clock(self, task_id: str) -> None:
        """Who waits for a task ends it when it is due."""
        self._decide(task_id)

    def _decide(self, task_id: str) -> None:
        before = self.scope
        due = before.deadlines.get(task_id)
        decided = self.scripts.decide(task_id)
        self.take(decided.granted)
        if due is None or due > before.now:
            self.unchanged("looking at the clock too early")
            assert decided.verdict == (before.verdict(task_id) or "")
        else:
            self.submitted = None
            assert self.look().verdict(task_id) == decided.verdict, "[I13] not decided"

    @precondition(lambda self: self.conclusions)
    @rule(n=picks, fate=st.sampled_from(("concluded", "again", "died")))
    def worker_concludes(self, n: int, fate: str) -> None:
        """What follows from a verdict is done, or its worker dies before."""
        owed = self.conclusions.pop(n % len(self.conclusions))
        if fate == "again" and owed.verdict == "unsettled again":
            self._run_again(owed)
        elif fate != "died":
            self._conclude(owed)

    def _run_again(self, owed: Owed) -> None:
        """A body had ended and its result was not stored: it runs once more."""
        record = self.scope.tasks.get(owed.task_id, {})
        open_ = record.get("attempt") == str(owed.attempt) and "verdict" in record
        self.submitted = None
        self.take(self.scripts.again(owed.task_id, owed.attempt, limit=1))
        if not open_:
            self.unchanged("running again what was concluded")
            return
        after = self.look(moved=[owed.task_id])
        assert after.state(owed.task_id) in {"waiting", "dispatched"}, "[owed] lost"
        assert owed.task_id not in after.owed, "[owed] it runs again, yet it is owed"
        self.starts[record["body"]] -= 1
        self.promise(owed.task_id, owed.attempt + 1)

    def _conclude(self, owed: Owed) -> None:
        before = self.scope
        record = before.tasks.get(owed.task_id, {})
        same = (
            record.get("attempt") == str(owed.attempt) and owed.task_id in before.owed
        )
        self.submitted = None
        self.scripts.conclude(owed.task_id, owed.attempt, END, owed=False)
        if not same:
            self.unchanged("concluding what was concluded")
            return
        after = self.look()
        assert owed.task_id not in after.owed, "[owed] concluded, yet owed"
        if record["state"] == "decided":
            assert owed.task_id not in after.tasks, (
                "[I17] concluded, yet there is a record"
            )
            assert after.tombstones[owed.task_id] >= owed.attempt, "[I13] it may start"
