"""The machine with an operator: limits, blocks, pauses, remedies at any time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from celery_bgtask.control.damage import damage_of, key_damage_of
from celery_bgtask.keys import quote, unquote
from tests.property.machine import ScriptsMachine
from tests.property.vocabulary import KEYS, STEP, WORKERS, ids, keys, picks


#: Seconds, off the steps of time.
BLOCK, INTERVAL = 900, 1000

#: More strikes than these within the interval block a key.
THRESHOLD = 2

#: Entries in the log of a key.
LOG = 2

AWAY = {"dispatched", "lapsed", "delayed"}


class SteeredMachine(ScriptsMachine):
    """Clients, a broker, workers, time, and an operator, in any order."""

    @rule(key=keys, limit=st.sampled_from((0, 1, 2, 4, -1, None)))
    def operator_sets_a_limit(self, key: str, limit: int | None) -> None:
        """A limit is set, or as declared again."""
        self.submitted = None
        self.scripts.set_limit(key, limit, self.take)
        assert self.look().overrides.get(quote(key)) == limit, "[limit] not set"

    @rule(resume=st.sampled_from((False, True, True)))
    def operator_pauses(self, resume: bool) -> None:
        """The scope is paused, or goes on."""
        self.submitted = None
        if resume:
            self.scripts.resume(self.take)
        else:
            was = "*" in self.scope.overrides
            assert self.scripts.pause() is not was, "[pause] it was paused before"
        assert ("*" in self.look().overrides) is not resume, "[pause]"

    @rule(key=keys, seconds=st.sampled_from((BLOCK, None)))
    def operator_blocks(self, key: str, seconds: int | None) -> None:
        """A key is blocked, for a time or for ever."""
        self.submitted = None
        self.scripts.block(key, reason="why", by="me", seconds=seconds, log_keep=LOG)
        after = self.look()
        assert after.is_blocked(quote(key)), "[block] not blocked"
        assert len(after.logs[quote(key)]) <= LOG, "[block] the log grows"

    @precondition(lambda self: self.broker)
    @rule(n=picks, worker=st.sampled_from(WORKERS))
    def message_arrives_in_a_pause(self, n: int, worker: str) -> None:
        """A worker takes a message while nothing may start."""
        self.operator_pauses(resume=False)
        self.message_arrives(n, worker)

    @precondition(lambda self: not self.scope.tasks)
    @rule(key=keys, task_id=ids)
    def operator_blocks_what_waits(self, key: str, task_id: str) -> None:
        """A key is blocked for a time, and has free slots for what waits."""
        if self.scripts.pause():
            self.look()
            letter = self._letter(task_id, key, 1, 0, 0, late=False, size=1)
            self._submit(letter, wait=True, max_waiting=9, delay=0, token="")
        self.operator_blocks(key, BLOCK)
        self.operator_pauses(resume=True)

    @precondition(lambda self: self.scope.blocked)
    @rule(key=keys)
    def operator_unblocks(self, key: str) -> None:
        """A block ends by hand."""
        self.submitted = None
        was = self.scope.is_blocked(quote(key))
        assert self.scripts.unblock(key, self.take) is was, "[block] another answer"
        after = self.look()
        assert quote(key) not in {*after.blocked, *after.blocks}, "[block] not ended"

    @rule(key=keys)
    def somebody_reports(self, key: str) -> None:
        """A bad task is reported."""
        before, name = self.scope, quote(key)
        self.submitted = None
        answer = self.scripts.strike(
            key,
            threshold=THRESHOLD,
            interval=INTERVAL,
            reason="why",
            by="me",
            seconds=BLOCK,
            log_keep=LOG,
        )
        after = self.look()
        young = before.now - INTERVAL * 1000
        strikes = [at for at in before.strikes.get(name, {}).values() if at > young]
        if before.is_blocked(name):
            assert answer == "already", f"[strike] {answer}"
            assert after.same(before), "[strike] counted, though it is blocked"
        elif len(strikes) >= THRESHOLD:
            assert answer == "blocked", f"[strike] {answer} after {strikes}"
            assert after.is_blocked(name), "[strike] not blocked"
            assert name not in after.strikes, "[strike] it begins with strikes"
        else:
            assert answer == "counted", f"[strike] {answer} after {strikes}"
            assert len(after.strikes[name]) == len(strikes) + 1, "[strike] not counted"

    @rule(key=keys)
    def strikes_come_and_go(self, key: str) -> None:
        """Bad tasks are reported, too seldom to block the key."""
        for _ in range(THRESHOLD + 1):
            self.somebody_reports(key)
            self._pass_time(STEP)

    @precondition(lambda self: self.scope.waiting)
    @rule(key=keys)
    def operator_purges(self, key: str) -> None:
        """All that waits for a key ends."""
        before = self.scope
        self.submitted = None
        queue = before.queue(quote(key))
        purged = self._purge(key)
        after = self.scope
        assert not after.queue(quote(key)), "[purge] one waits yet"
        started = [t for t in queue if after.state(t) == "dispatched"]
        assert sorted(purged + started) == sorted(queue), "[purge] others were ended"
        assert all(after.verdict(t) == "cancelled purged" for t in purged), "[purge]"

    def _purge(self, key: str) -> list[str]:
        purged: list[str] = []
        while True:
            some, granted = self.scripts.purge(key, "cancelled purged")
            self.take(granted)
            self.look(moved=some)
            purged += some
            if not some:
                return purged

    @precondition(lambda self: self.scope.waiting)
    @rule()
    def operator_drains(self) -> None:
        """All that waits is published."""
        self.submitted = None
        waiting = {t for key in self.scope.waiting for t in self.scope.queue(key)}
        assert self.scripts.drain(self.take) == len(waiting), "[drain] another count"
        after = self.look(over=True)
        assert not after.waiting, "[drain] one waits yet"
        assert all("drained" in after.tasks[task_id] for task_id in waiting), "[drain]"

    @precondition(lambda self: self.scope.slots)
    @rule(n=picks)
    def operator_releases_a_holder(self, n: int) -> None:
        """A slot is forced free that is held."""
        held = [(k, t) for k, slots in self.scope.slots.items() for t in slots]
        key, task_id = sorted(held)[n % len(held)]
        self.operator_releases(unquote(key), task_id)

    @rule(key=keys, task_id=ids)
    def operator_releases(self, key: str, task_id: str) -> None:
        """A slot is forced free, held or not."""
        before, name = self.scope, quote(key)
        state = before.state(task_id)
        self.submitted = None
        was, granted = self.scripts.free(key, task_id, "cancelled released")
        self.take(granted)
        if task_id not in before.slots.get(name, {}):
            assert was == "", f"[free] {was}, and it had no slot"
            self.unchanged("forcing a slot free that nobody has")
            return
        assert was == state, f"[free] {was}, and it is {state}"
        after = self.look(moved=[task_id])
        offered = "offer" in before.tasks[task_id]
        offered = offered and "drained" not in before.tasks[task_id]
        if state == "dispatched" and offered:
            place = after.state(task_id)
            assert place in {"waiting", "dispatched"}, f"[free] the offer is {place}"
            return
        assert task_id not in after.slots.get(name, {}), "[free] it has its slot yet"
        if state == "running":
            assert after.verdict(task_id) == "cancelled released", "[free] not ended"
        elif state == "dispatched":
            assert after.state(task_id) == "lapsed", "[free] it is not valid any more"
        else:
            assert after.state(task_id) in {"decided", None}, "[free] it goes on"
            for run in self.valid_runs(task_id):
                run.phase = "over"

    @precondition(
        lambda self: any(t["state"] in AWAY for t in self.scope.tasks.values())
    )
    @rule(task_id=ids)
    def operator_redispatches(self, task_id: str) -> None:
        """What is with the broker is published again."""
        before = self.scope
        record = before.tasks.get(task_id, {})
        self.submitted = None
        was, granted = self.scripts.redispatch(task_id, 1)
        self.take(granted)
        if record.get("state") not in AWAY or "body" not in record:
            empty = "empty" if record.get("state") in AWAY else record.get("state")
            assert was == (empty or "unknown"), f"[again] {was} of {record}"
            self.unchanged("publishing again what is not with the broker")
            return
        assert was == record["state"], f"[again] {was} of {record}"
        after = self.look(moved=[task_id])
        if was == "dispatched" and "offer" in record:
            return  # it has no message, or is announced once more
        assert "copies" in after.tasks[task_id], "[again] two messages may arrive"
        given = task_id in {grant.task_id for grant in granted}
        if was == "lapsed":
            assert after.state(task_id) == ("dispatched" if given else "waiting")
        else:
            assert given or "offer" in record, "[again] it was not published"
        self.promise(task_id, int(record["attempt"]))

    @precondition(lambda self: self.scope.tasks)
    @rule(key=st.sampled_from((*KEYS, None)), task_id=ids)
    def operator_repairs(self, key: str | None, task_id: str) -> None:
        """Where nothing is damaged, a repair changes nothing."""
        before = self.scope
        place = "*" if key is None else quote(key)
        ended = [k for k, until in before.blocked.items() if until <= before.now]
        self.take(self.scripts.repair(place, task_id, 1))
        if not ended:  # or it does the work of a sweep
            self.unchanged("a repair")
        else:
            self.submitted = None
            self.look()

    @invariant()
    def nothing_is_damaged(self) -> None:
        """Whatever has happened, a check finds nothing."""
        scope = self.scope
        if not scope.tasks:
            return
        places = [("*", task_id) for task_id in scope.tasks]
        for index in (scope.leases, scope.outbox, scope.deadlines, scope.owed):
            places += [
                ("*", task_id) for task_id in index if task_id not in scope.tasks
            ]
        for parts in (scope.slots, scope.waiting):
            for key, part in parts.items():
                places += [(key, str(entry)) for entry in dict(part)]
        for row in self.scripts.audit(places):
            damage = list(damage_of(row))
            assert not damage, f"[damage] {damage} of {row}"
        for stats in self.scripts.stats_of(KEYS):
            damage = list(key_damage_of(stats))
            assert not damage, f"[damage] {damage} of {stats}"

    def leave_alone(self) -> None:
        """All limits are as declared, no key is blocked."""
        self.submitted = None
        for key in KEYS:
            self.scripts.unblock(key, self.take)
            self.look()
            self.scripts.set_limit(key, None, self.take)
            self.look()
        self.scripts.resume(self.take)
        self.look()
