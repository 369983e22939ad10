"""The machine's broker, and what becomes of a message that arrives."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.property.running import Running
from tests.property.vocabulary import (
    HALF,
    NOT_STARTED,
    RANK,
    SETTINGS,
    WORKERS,
    ids,
    keys,
    limits,
    numbers,
    picks,
    ranks,
    retries,
)
from tests.property.world import Letter, Run, Scope


class Arriving(Running):
    """Messages that are published, lost, delivered, and delivered again."""

    def _withdraw(self, letter: Letter) -> None:
        record = self.scope.tasks.get(letter.id, {})
        self.submitted = None
        self.take(self.scripts.withdraw(letter.id, letter.attempt))
        if record.get("state") in NOT_STARTED and record["attempt"] == str(
            letter.attempt
        ):
            after = self.look(moved=[letter.id])
            assert letter.id not in after.tasks, (
                "[I17] withdrawn, yet there is a record"
            )
            self.excuse(letter.id)
        else:
            self.unchanged("withdrawing what has started, or is of another attempt")
            if self.promised.get(letter.id) == letter.attempt:
                self.excuse(letter.id)

    @precondition(lambda self: self.granted)
    @rule(n=picks, fate=st.sampled_from(("confirmed", "confirmed", "sent", "died")))
    def publisher_publishes(self, n: int, fate: str) -> None:
        """Who has freed a slot publishes and confirms, or dies on the way."""
        granted = self.granted.pop(n % len(self.granted))
        if fate != "died":
            self.broker.append(Letter.of(granted))
        if fate == "confirmed":
            self.scripts.confirm([granted])
            after = self.look()
            record = after.tasks.get(granted.task_id, {})
            if record.get("attempt") == str(granted.attempt):
                assert granted.task_id not in after.outbox, "[outbox] not confirmed"
                if record["state"] == "dispatched":
                    assert "body" in record, "[sent] the message was not kept"

    @precondition(lambda self: self.broker)
    @rule(n=picks)
    def broker_loses(self, n: int) -> None:
        """A message is purged."""
        self.excuse(self.broker.pop(n % len(self.broker)).id)

    @precondition(lambda self: self.redeliverable())
    @rule(n=picks)
    def broker_redelivers(self, n: int) -> None:
        """A message whose late ack has not come is delivered again."""
        late = self.redeliverable()
        self.broker.append(replace(late[n % len(late)], copy=True))

    def redeliverable(self) -> list[Letter]:
        """Messages that the broker has until their run ends."""
        letters = [run.letter for run in self.runs]
        return [letter for letter in letters if letter.late and not letter.claimed]

    @rule(task_id=ids, key=keys, limit=limits, rank=ranks, tries=retries)
    def foreigner_sends(
        self, task_id: str, key: str, limit: int, rank: int, tries: int
    ) -> None:
        """A message is sent by name, without a submission."""
        letter = self._letter(task_id, key, limit, rank, tries, late=False, size=1)
        self.broker.append(replace(letter, attempt=tries + 1))

    @precondition(lambda self: self.broker)
    @rule(n=picks)
    def worker_revokes(self, n: int) -> None:
        """A message is met by a worker that knows it as revoked."""
        self._withdraw(self.broker.pop(n % len(self.broker)))

    @precondition(lambda self: self.broker)
    @rule(n=picks, worker=st.sampled_from(WORKERS))
    def message_arrives(self, n: int, worker: str) -> None:
        """A worker takes a message to its pool and asks whether it starts."""
        self._arrive(self.broker.pop(n % len(self.broker)), worker)

    def _arrive(self, letter: Letter, worker: str) -> None:
        before = self.scope
        self.submitted = None
        run = Run(letter, f"k{next(numbers)}", worker, self.now + int(SETTINGS.lease))
        status = self._ask(run, fresh=False, with_message=False)
        if status == "unknown":
            self.unchanged("asking about what the store does not know")
            stone = before.tombstones.get(letter.id, 0)
            assert stone < letter.attempt, f"[I3] the end of {letter} is forgotten"
            status = self._ask(run, fresh=True, with_message=False)
        if status == "wanted":
            status = self._ask(run, fresh=True, with_message=True)
        known = before.tasks.get(letter.id, {})
        attempt = int(known.get("attempt", 0))
        after = self.look(moved=[letter.id])
        if status == "started":
            self._check_start(run, before, after)
        elif status == "parked":
            self._check_parked(letter, known, after)
            self._replace_ended(letter.id)
        elif status == "stored":
            assert known["state"] == "running", "[I5] stored without a run"
            assert letter.attempt >= attempt
            if letter.attempt > attempt:
                self.promise(letter.id, attempt + 1)
        elif status == "late":
            self._decide(letter.id)
            verdict = self.scope.verdict(letter.id)
            assert verdict or letter.id not in self.scope.tasks, "[I13] late, not ended"
            self.excuse(letter.id)
        elif status == "cancelled":
            assert not known, "[I13] cancelled, yet there is a record"
            assert before.tombstones[letter.id] > 1000, "[I13] nobody cancelled it"
            assert after.same(before)
        elif status == "ended" and known.get("state") in {"decided", "stopping"}:
            assert after.same(before)
        else:
            assert status == "ended", f"[I5] {status}"
            ended = max(before.tombstones.get(letter.id, 0), attempt)
            assert letter.attempt <= ended, "[I5] a new message was dropped"
            assert (
                known.get("state") == "ended" or letter.attempt < attempt or not known
            )

    def _check_parked(
        self, letter: Letter, known: dict[str, str], after: Scope
    ) -> None:
        """It waits, with a reason, and in front if it has had a slot."""
        key = after.tasks[letter.id]["key"]
        assert letter.id in after.queue(key), "[I5] parked nowhere"
        assert after.room(key) <= 0, "[I6] parked, yet there is room"
        if known.get("state") != "dispatched" or known["attempt"] != str(
            letter.attempt
        ):
            return
        assert "drained" not in known, "[drain] parked, yet it was drained"
        assert after.limit(key) == 0, "[closed] parked, yet it had a slot"
        place = dict(after.waiting[key])[letter.id]
        assert place % RANK < HALF, "[front] it had a slot and waits behind"

    def _ask(self, run: Run, *, fresh: bool, with_message: bool) -> str:
        letter = run.letter
        return self.scripts.accept(
            letter.id,
            letter.attempt,
            letter.key,
            limit=letter.limit,
            token=run.token,
            worker=run.worker,
            fresh=fresh,
            rank=letter.rank,
            retries=letter.retries,
            deadlines=letter.deadlines,
            max_lost=letter.max_lost,
            keep=letter.keep,
            message=letter.message if with_message else None,
        ).status

    def _check_start(self, run: Run, before: Scope, after: Scope) -> None:
        letter = run.letter
        record = after.tasks[letter.id]
        due = before.deadlines.get(letter.id, after.now + 1)
        assert (
            due > after.now or before.tasks[letter.id]["attempt"] < record["attempt"]
        ), f"[I13] {letter} has started too late"
        assert not before.verdict(letter.id), (
            f"[I13] {letter} has started after its end"
        )
        others = [r for r in self.valid_runs(letter.id) if r.phase == "running"]
        assert not others, f"[I2] {letter.id} runs twice: {others} and {run}"
        assert record["state"] == "running"
        assert record["token"] == run.token
        assert letter.id in after.slots[record["key"]], "[I4] it runs without a slot"
        drained = "drained" in before.tasks.get(letter.id, {})
        assert drained or after.limit(record["key"]) > 0, (
            f"[closed] {letter} has started, and its key has no slots"
        )
        if before.limits.get(record["key"]) is not None and (
            before.held(record["key"]) or before.queue(record["key"])
        ):
            waited = {letter.id} == {*before.slots.get(record["key"], ()),
                                     *before.queue(record["key"])}  # fmt: skip
            same = after.limits[record["key"]] == before.limits[record["key"]]
            assert waited or same, "[I10] a worker changed the limit of a key in use"
        self.starts[letter.serial] += 1
        assert self.starts[letter.serial] == 1, f"[I3] {letter} has started before"
        self._replace_ended(letter.id)
        assert self._ask(run, fresh=False, with_message=False) == "started"
        self.unchanged("the same start, repeated")
        self.runs = [r for r in self.runs if r.is_valid or r in self.runs[-5:]] + [run]
        if self.promised.get(letter.id, 0) <= letter.attempt:
            self.promised.pop(letter.id, None)

    @precondition(lambda self: self.requeueable_runs())
    @rule(n=picks, worker=st.sampled_from((None, *WORKERS)))
    def body_is_requeued(self, n: int, worker: str | None) -> None:
        """A late ack is rejected: the broker has the message again."""
        runs = self.requeueable_runs()
        self.submitted = None
        run = runs[n % len(runs)]
        answer = self.scripts.release(run.id, requeue=True, **run.named)
        self.take(answer.granted)
        after = self.look()
        assert answer.status == "released"
        assert after.state(run.id) == "dispatched", "[I5] requeued, yet not expected"
        run.phase = "over"
        self.starts[run.letter.serial] -= 1
        if run.letter.claimed:
            assert run.id in after.on_offer(), "[offer] requeued, yet not on offer"
        elif worker:  # it is quick
            self._arrive(run.letter, worker)
        else:
            self.broker.append(run.letter)
