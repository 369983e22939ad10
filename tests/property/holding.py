"""What always holds, after each step of the machine."""

from __future__ import annotations

from hypothesis.stateful import invariant, precondition, rule

from celery_bgtask.keys import quote
from tests.property.seeing import Seeing
from tests.property.vocabulary import HOLDING, NOT_STARTED, RANK, keys
from tests.property.world import FAR


#: What has a lifetime, whatever it is of.
MORTAL = frozenset(
    {"worker", "tombstone", "swept", "sweeping", "ignored", "takers", "workers"}
)


class Holding(Seeing):
    """All parts of a scope agree."""

    @invariant()
    def slots_leases_and_records_agree(self) -> None:
        """Who holds a slot has a lease and a record that says so, and back."""
        scope = self.scope
        by_state: dict[str, set[str]] = {}
        for task_id, record in scope.tasks.items():
            by_state.setdefault(record["state"], set()).add(task_id)
        holding = {t for state in HOLDING for t in by_state.get(state, ())}
        slots = {(t, key) for key, held in scope.slots.items() for t in held}
        assert slots == {(t, scope.tasks[t]["key"]) for t in holding}, (
            f"[I4] slots {slots}, records {scope.tasks}"
        )
        assert set(scope.leases) == holding | by_state.get("ended", set()), (
            f"[I4] leases {scope.leases}, records {scope.tasks}"
        )

    @invariant()
    def every_task_is_in_one_place(self) -> None:
        """Who waits has a record that says so, and holds nothing."""
        scope = self.scope
        waiting = [(t, key) for key in scope.waiting for t in scope.queue(key)]
        parked = {
            (task_id, record["key"])
            for task_id, record in scope.tasks.items()
            if record["state"] == "waiting"
        }
        assert len(waiting) == len(parked), f"[I5] {waiting} and {parked}"
        assert set(waiting) == parked, f"[I5] {waiting} and {parked}"
        for task_id, key in waiting:
            score = dict(scope.waiting[key])[task_id]
            assert int(scope.tasks[task_id]["since"]) <= scope.now + 1000, "[since]"
            assert score // RANK == int(scope.tasks[task_id]["rank"]), "[FIFO] rank"

    @invariant()
    def a_valid_run_is_the_one_in_the_store(self) -> None:
        """One run per task, known by its token, listed for its worker."""
        for run in self.valid_runs():
            record = self.scope.tasks.get(run.id, {})
            assert record.get("token") == run.token, f"[I2] {run} and {record}"
            assert record["state"] == run.phase, f"[I2] {run} and {record}"
            entry = self.scope.workers[run.worker][run.id]
            assert entry.split(" ")[:2] == [run.token, str(run.letter.attempt)], "[I2]"
        tokens = {
            record["token"]
            for record in self.scope.tasks.values()
            if "token" in record and record["state"] != "decided"
        }
        assert tokens == {run.token for run in self.valid_runs()}, "[I2] a foreign run"

    @invariant()
    def no_slot_is_idle_while_one_waits(self) -> None:
        """Who waits, waits for a slot that is taken, or for the next sweep."""
        for key in self.scope.waiting:
            if self.scope.blocked.get(key, FAR) <= self.scope.now:
                continue
            assert self.scope.room(key) <= 0, (
                f"[I6] {self.scope.queue(key)} wait for {key!r}, which has "
                f"{self.scope.held(key)} of {self.scope.limits.get(key)}"
            )

    @invariant()
    def limits_are_kept_while_in_use(self) -> None:
        """A key that nobody uses has no limit in the store, others have one."""
        used = {*self.scope.slots, *self.scope.waiting}
        assert set(self.scope.limits) == used, f"[I17] {self.scope.limits}, {used}"

    @invariant()
    def waiting_bytes_are_the_sum(self) -> None:
        """The count of bytes is what the waiting messages have."""
        parked = [r for r in self.scope.tasks.values() if r["state"] == "waiting"]
        size = sum(len(r["envelope"]) + len(r["body"]) for r in parked)
        assert self.scope.waiting_bytes == size, "[bytes]"
        assert ("waiting-bytes" in self.scope.immortal) == bool(size), "[bytes]"

    @invariant()
    def messages_are_kept_while_owed(self) -> None:
        """A record has its message while it waits or is to be published."""
        scope = self.scope
        for task_id, record in scope.tasks.items():
            owed = record["state"] == "waiting" or task_id in scope.outbox
            owed = owed or "keep" in record
            if record["state"] in {"dispatched", "lapsed"} and not owed:
                continue  # it may have it, to be published again
            copied = record["state"] in {"running", "ended"} and "copies" in record
            if owed or not ("verdict" in record or copied):
                assert ("body" in record) == owed, (
                    f"[I5] {record}, outbox {scope.outbox}"
                )
                assert ("envelope" in record) == owed
        for task_id in scope.outbox:
            state = scope.state(task_id)
            assert state in {"dispatched", "lapsed", "delayed"}, (
                f"[outbox] {task_id} is {state}"
            )

    @invariant()
    def verdicts_are_owed(self) -> None:
        """A task that was ended by a verdict has no slot, and somebody concludes it."""
        scope = self.scope
        decided = {t for t, r in scope.tasks.items() if r["state"] == "decided"}
        stopping = {t for t, r in scope.tasks.items() if r["state"] == "stopping"}
        assert decided <= set(scope.owed) <= decided | stopping, f"[owed] {scope.owed}"
        assert {t for t in scope.tasks if scope.verdict(t)} == decided | stopping
        for task_id, due in scope.deadlines.items():
            record = scope.tasks[task_id]
            times = [record.get("finish_by")]
            if record["state"] != "running":
                times += [record.get("start_by"), record.get("expires_at")]
            assert due == min(int(at) for at in times if at), f"[I13] {due}: {record}"
        timed = {
            task_id
            for task_id, record in scope.tasks.items()
            if ("finish_by" in record and record["state"] in {"running", *NOT_STARTED})
            or (
                {"start_by", "expires_at"} & set(record)
                and record["state"] in NOT_STARTED
            )
        }
        assert set(scope.deadlines) == timed, f"[I13] {scope.deadlines}, {timed}"

    @invariant()
    def what_stays_is_owed(self) -> None:
        """A key without a lifetime belongs to something that is owed."""
        lapsed = {
            task_id
            for task_id, record in self.scope.tasks.items()
            if task_id not in self.scope.deadlines
            and record["state"] in {"delayed", "lapsed"}
        }
        for name in self.scope.immortal:
            part, _, rest = name.partition(":")
            assert part not in MORTAL, f"[I17] {name} would stay for ever"
            if part == "task":
                assert rest not in lapsed, f"[I17] {name} would stay for ever"
        for task_id in set(self.scope.tasks) - lapsed:
            assert f"task:{task_id}" in self.scope.immortal, (
                f"[I5] {task_id} may expire"
            )

    @precondition(lambda self: self.scope.tasks)
    @rule(key=keys)
    def counts_are_what_is_there(self, key: str) -> None:
        """``stats`` counts what the store has."""
        name = quote(key)
        held = self.scope.slots.get(name, {})
        executing = {"running", "stopping"}
        running = sum(self.scope.state(task_id) in executing for task_id in held)
        waiting = self.scope.queue(name)
        row = self.scripts.stats(key)
        assert (row.running, row.held, row.waiting, row.declared) == (
            running,
            len(held),
            len(waiting),
            self.scope.limits.get(name),
        ), "[counts]"
        assert row.slots == self.scope.limit(name), "[counts]"
        since = [int(self.scope.tasks[task_id]["since"]) for task_id in waiting]
        assert row.since == min(since, default=None), "[counts]"
