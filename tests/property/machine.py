"""The scripts, driven at random, against a model that knows what must hold.

The model is what clients, a broker and workers know: messages in flight, runs with
their tokens, what was admitted and has not started. After each step the whole scope
is read and compared. Time passes by moving deadlines; all of them are hundreds of
seconds apart, so none falls near *now*.

Every check has a name in brackets; ``test_mutants.py`` shows that none is vacuous.
"""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from celery import Celery
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from celery_bgtask.config import SETTINGS as ALL_SETTINGS
from celery_bgtask.config import Settings
from celery_bgtask.keys import quote, scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.replies import Granted, Owed, Terms
from celery_bgtask.store import Link
from tests.property.world import FAR, PASS_TIME, Letter, Run, Scope, Submit, earlier


#: Seconds. A step of time is 600: it ends one sweep's turn and one grace, two of
#: them are a silence, five outlast a lease, ten a dispatch lease.
SETTINGS = Settings(
    **{
        **{setting.name: setting.default for setting in ALL_SETTINGS},
        "max_waiting_bytes": 600,
        "lease": 2900,
        "dispatch_lease": 5900,
        "sweep_interval": 240,
        "publish_grace": 500,
        "tombstone_ttl": 10**8,
    }
)
STEP = 600
FOR_EVER = 10**9

RANK = 2**42
HALF = RANK // 2
KEYS = ("a", "c {d}\n")
IDS = tuple(f"t{number}" for number in range(5))
WORKERS = ("w0", "w1", "w2")

NO_TERMS = Terms()
END = '{"id": "t", "attempt": 1, "state": "SUCCESS"}'

#: Nothing more than a limit, mostly; else deadlines off the steps of time.
TERMS = (
    NO_TERMS,
    NO_TERMS,
    Terms(max_lost=1, keep=True),
    Terms(accept=1500),
    Terms(accept=1500, finish=4000, keep=True),
    Terms(finish=4000),
    Terms(expires=2200),
)

HOLDING = {"dispatched", "running", "stopping"}
NOT_STARTED = {"waiting", "dispatched", "lapsed", "delayed"}

ids = st.sampled_from(IDS)
keys = st.sampled_from(KEYS)
limits = st.sampled_from((1, 1, 2, 3, -1))
ranks = st.sampled_from((0, 0, 0, 3, 9))
picks = st.integers(0, 30)
retries = st.sampled_from((0, 0, 0, 1, 2))
all_terms = st.sampled_from(TERMS)

_numbers = itertools.count()


class ScriptsMachine(RuleBasedStateMachine):
    """Clients, a broker, workers and time, in any order."""

    link: Link

    @initialize()
    def begin(self) -> None:
        """Every example has a scope of its own."""
        self.outer = sys.exc_info()[1]
        number = next(_numbers)
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
            passed = int(record[due[word]]) <= after.now
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

    # Clients

    @rule(
        task_id=ids, key=keys, limit=limits, wait=st.booleans(), late=st.booleans(),
        rank=ranks, tries=retries, max_waiting=st.sampled_from((1, 3, 100)),
        size=st.sampled_from((1, 1, 100)), terms=all_terms,
        delay=st.sampled_from((0, 0, 0, 3000)),
    )  # fmt: skip
    def submit(
        self,
        task_id: str,
        key: str,
        limit: int,
        wait: bool,
        late: bool,
        rank: int,
        tries: int,
        max_waiting: int,
        size: int,
        terms: Terms,
        delay: int,
    ) -> None:
        """A client calls ``apply_async``."""
        late = late or bool(delay) or terms.keep
        letter = self._letter(task_id, key, limit, rank, tries, late, size)
        letter = replace(letter, keep=terms.keep, max_lost=terms.max_lost)
        self._submit(
            letter,
            wait=wait,
            max_waiting=max_waiting,
            delay=delay,
            token="",
            terms=terms,
        )

    @rule(task_id=ids, limit=st.sampled_from((1, 1, 2)), rank=ranks)
    def submit_to_a_busy_key(self, task_id: str, limit: int, rank: int) -> None:
        """A client calls ``apply_async`` with the key of many others, and waits."""
        letter = self._letter(task_id, KEYS[0], limit, rank, 0, late=False, size=1)
        self._submit(letter, wait=True, max_waiting=100, delay=0, token="")

    @precondition(lambda self: self.runs)
    @rule(n=picks, key=keys, limit=limits, delay=st.sampled_from((0, 0, 3000)))
    def submit_from_run(self, n: int, key: str, limit: int, delay: int) -> None:
        """A task retries or replaces itself."""
        run = self.runs[n % len(self.runs)]
        old = run.letter
        letter = self._letter(
            old.id, key, limit, old.rank, old.retries + 1, old.late or bool(delay), 1
        )
        letter = replace(letter, keep=old.keep, max_lost=old.max_lost)
        self._submit(letter, wait=False, max_waiting=1, delay=delay, token=run.token)

    @precondition(lambda self: self.submitted)
    @rule()
    def submit_again(self) -> None:
        """The reply of a submission was lost, so it is made once more."""
        assert self.submitted
        past = self.submitted
        answer = self.scripts.submit(past.letter.id, past.letter.key, **past.arguments)
        assert (answer.status, answer.attempt) == past.answer, (
            f"[repeat] the same submission was {past.answer} and is {answer[:2]}"
        )
        self.take(answer.granted)
        self.unchanged("a repeated submission")

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

    def _submit(
        self,
        letter: Letter,
        *,
        wait: bool,
        max_waiting: int,
        delay: int,
        token: str,
        terms: Terms = NO_TERMS,
    ) -> None:
        before = self.scope
        arguments: dict[str, Any] = {
            "limit": letter.limit,
            "wait": wait,
            "max_waiting": max_waiting,
            "rank": letter.rank,
            "retries": letter.retries,
            "token": token,
            "delay": delay,
            "nonce": f"n{letter.serial}",
            "message": letter.message,
            "terms": terms,
        }
        answer = self.scripts.submit(letter.id, letter.key, **arguments)
        letter = replace(letter, attempt=answer.attempt, deadlines=answer.deadlines)
        self.take(answer.granted)
        after = self.look(moved=[letter.id])
        key = quote(letter.key)
        limit = after.limit(key, letter.limit)
        refused = answer.status in {"refused", "crowded"} and limit < float("inf")
        assert (answer.held, answer.waiting, answer.limit) == (
            after.held(key),
            len(after.queue(key)),
            limit if refused else letter.limit,
        ), f"[counts] {answer} is not what the store has"
        self._check_answer(letter, answer.status, before, after, delay, token)
        self.submitted = None
        if letter.id in after.tasks and answer.status in {"parked", "dispatched"}:
            self.submitted = Submit(letter, arguments, answer[:2])
        if answer.status in {"parked", "dispatched", "deferred"}:
            self.promise(letter.id, letter.attempt)
        if answer.status in {"parked", "dispatched"} and (
            not delay or after.state(letter.id) == "delayed"
        ):
            self._replace_ended(letter.id)
        if answer.status == "dispatched":
            self.direct.append(letter)
        if answer.status == "crowded":
            size = len(letter.message.body) + len(letter.message.envelope)
            over = after.waiting_bytes + size > SETTINGS.max_waiting_bytes
            assert over or len(after.queue(key)) >= max_waiting, "[I6] not crowded"
        if answer.status == "parked":
            assert after.waiting_bytes <= SETTINGS.max_waiting_bytes, "[bytes] too many"
            assert len(after.queue(key)) <= max_waiting, "[bytes] too many wait"

    def _check_answer(
        self,
        letter: Letter,
        status: str,
        before: Scope,
        after: Scope,
        delay: int,
        token: str,
    ) -> None:
        """The status fits what the store knew before and knows now."""
        task_id, key = letter.id, quote(letter.key)
        known = before.state(task_id)
        record = before.tasks.get(task_id, {})
        if known and known not in {"lapsed", "ended"}:
            next_one = known == "running" and (
                record["token"] == token or letter.retries > int(record["retries"])
            )
            assert status == ("deferred" if next_one else "known"), f"[I11] {status}"
            assert replace(after, tasks={}).same(replace(before, tasks={})), "[I11]"
        elif before.is_blocked(key) and not letter.retries and not token:
            assert status == "blocked", f"[block] {status}, yet {key!r} is blocked"
            assert after.same(before), "[block] refused, yet something has changed"
        elif delay:
            assert status == "dispatched"
            assert after.state(task_id) == "delayed"
            assert task_id not in after.leases, "[I11] a delayed task takes no slot"
        elif status == "dispatched":
            assert task_id in after.slots[key], "[I4] dispatched without a slot"
            assert after.limits[key] == letter.limit, "[I10] the limit was not stored"
            if letter.limit != -1:
                kept = after.tasks[task_id].get("body")
                assert kept == letter.serial, "[sent] the message was not kept"
        elif status == "parked":
            assert task_id in after.queue(key), "[I5] parked nowhere"
            assert after.limits[key] == letter.limit, "[I10] the limit was not stored"
        else:
            assert status in {"refused", "crowded"}
            assert after.tasks.get(task_id) == before.tasks.get(task_id)
            assert after.room(key) <= 0 or after.queue(key), (
                "[I6] refused, yet there is room"
            )
        if status == "parked" or (status == "refused" and not after.queue(key)):
            assert after.room(key) <= 0, f"[I6] {status}, yet there is room"

    @precondition(lambda self: self.direct)
    @rule(n=picks, fate=st.sampled_from(("published", "published", "refused", "died")))
    def client_publishes(self, n: int, fate: str) -> None:
        """A client sends what has got a slot, or cannot, or dies before."""
        letter = self.direct.pop(n % len(self.direct))
        if fate == "published":
            self.broker.append(letter)
        elif fate == "died":
            self.excuse(letter.id)
        else:
            self._withdraw(letter)

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

    # The broker

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

    @precondition(lambda self: any(run.letter.late for run in self.runs))
    @rule(n=picks)
    def broker_redelivers(self, n: int) -> None:
        """A message whose late ack has not come is delivered again."""
        late = [run.letter for run in self.runs if run.letter.late]
        self.broker.append(replace(late[n % len(late)], copy=True))

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

    # Workers

    @precondition(lambda self: self.broker)
    @rule(n=picks, worker=st.sampled_from(WORKERS))
    def message_arrives(self, n: int, worker: str) -> None:
        """A worker takes a message to its pool and asks whether it starts."""
        self._arrive(self.broker.pop(n % len(self.broker)), worker)

    def _arrive(self, letter: Letter, worker: str) -> None:
        before = self.scope
        self.submitted = None
        run = Run(letter, f"k{next(_numbers)}", worker, self.now + int(SETTINGS.lease))
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
        if worker:  # it is quick
            self._arrive(run.letter, worker)
        else:
            self.broker.append(run.letter)

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

    # Time

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

    # Verdicts

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

    # What always holds

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
            assert part not in {"worker", "tombstone", "swept", "sweeping"}, (
                f"[I17] {name}"
            )
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

    # The end

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
