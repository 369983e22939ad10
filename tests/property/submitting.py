"""The machine's clients."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from celery_bgtask.keys import quote
from celery_bgtask.scripts.replies import Terms
from tests.property.arriving import Arriving
from tests.property.vocabulary import (
    KEYS,
    NO_TERMS,
    SETTINGS,
    all_terms,
    ids,
    keys,
    limits,
    picks,
    ranks,
    retries,
)
from tests.property.world import Letter, Scope, Submit


#: What becomes of a call that the store has taken.
TAKEN = frozenset({"parked", "dispatched", "offered"})

#: What workers are told of an offer.
NEWS = '{"task": "t", "queue": "q", "metadata": {}, "offered": true}'


class Submitting(Arriving):
    """Calls, at any time and of any kind."""

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
        letter = replace(letter, keep=old.keep, max_lost=old.max_lost, queue=old.queue)
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
            "offer": letter.queue,
            "news": NEWS if letter.queue else "",
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
        if letter.id in after.tasks and answer.status in TAKEN:
            self.submitted = Submit(letter, arguments, answer[:2])
        if answer.status in {*TAKEN, "deferred"}:
            self.promise(letter.id, letter.attempt)
        if answer.status in TAKEN and (
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
        elif status in {"dispatched", "offered"}:
            assert (status == "offered") == bool(letter.queue), f"[offer] {status}"
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
