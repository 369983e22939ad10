"""The machine with offers, beside what goes through the broker, under one limit.

A worker claims, gives back, ignores, starts and dies at any time. It plays by its
rules: what it does not want it does not claim.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from celery_bgtask.keys import quote
from celery_bgtask.scripts.replies import Terms
from tests.property.machine import ScriptsMachine
from tests.property.steering import SteeredMachine
from tests.property.vocabulary import (
    QUEUES,
    RANK,
    SETTINGS,
    WORKERS,
    ids,
    keys,
    limits,
    picks,
    ranks,
    retries,
)
from tests.property.world import FAR, Letter, Run, Scope, earlier


#: Mostly a deadline, as the product sets one; the message is always kept.
OFFER_TERMS = (
    Terms(accept=1500, keep=True),
    Terms(accept=7000, keep=True),
    Terms(accept=7000, finish=8000, keep=True),
    Terms(accept=7000, max_lost=1, keep=True),
    Terms(max_lost=1, keep=True),
    Terms(keep=True),
)

#: Seconds for which a worker counts as alive, off the steps of time.
TTLS = (1300, 7300)

queues = st.sampled_from(QUEUES)
workers = st.sampled_from(WORKERS)


class OfferedMachine(ScriptsMachine):
    """Clients, a broker, workers and time, and what is offered, in any order."""

    def _begin(self) -> None:
        super()._begin()
        self.claimed: list[tuple[Letter, str]] = []  # with who has claimed it
        self.ignorers: dict[str, set[str]] = {}  # of what is on offer, by id

    def look(self, *, moved: Iterable[str] = (), over: bool = False) -> Scope:
        """Compare the offers, too: who comes later, comes behind."""
        before = self.scope
        # What was claimed, or drained, and is on offer again holds its slot anew.
        claimed = {t for t in before.tasks if "offer" in before.tasks[t]}
        claimed -= set(before.on_offer())
        self.unwanted |= self._wanted_by_none()
        after = super().look(moved={*moved, *claimed}, over=over)
        self.unwanted = set()
        for queue, offers in after.offers.items():
            known = dict(before.offers.get(queue, ()))
            for task_id, score in offers:
                peers = [known[i] for i, _ in offers if i in known]
                peers = [other for other in peers if other // RANK == score // RANK]
                assert task_id in known or score > max(peers, default=0), (
                    f"[offer-order] {task_id} is before {known} in {offers}"
                )
        for task_id in [*self.ignorers]:
            was, now = before.tasks.get(task_id, {}), after.tasks.get(task_id, {})
            asked_again = was.get("again") != now.get("again")
            if now.get("state") != "dispatched" or asked_again:
                del self.ignorers[task_id]
        return after

    def _wanted_by_none(self, leaver: str = "") -> set[str]:
        """Offers that somebody could take, and all who could have ignored."""
        scope, found = self.scope, set()
        for task_id in set(scope.on_offer()) & set(self.ignorers):
            live = self._takers_of(task_id) - {leaver}
            if live and live <= self.ignorers[task_id]:
                found.add(task_id)
        return found

    def _takers_of(self, task_id: str) -> set[str]:
        """Who lives and takes offers of its queue."""
        queue = self.scope.tasks.get(task_id, {}).get("offer", "")
        takers = self.scope.takers.get(queue, {})
        return {name for name, until in takers.items() if until > self.scope.now}

    # Clients

    @rule(
        task_id=ids, key=keys, limit=limits, wait=st.booleans(), late=st.booleans(),
        rank=ranks, tries=retries, queue=queues, terms=st.sampled_from(OFFER_TERMS),
        delay=st.sampled_from((0, 0, 0, 0, 3000)),
    )  # fmt: skip
    def submit_offer(
        self,
        task_id: str,
        key: str,
        limit: int,
        wait: bool,
        late: bool,
        rank: int,
        tries: int,
        queue: str,
        terms: Terms,
        delay: int,
    ) -> None:
        """A client calls a task that is offered."""
        letter = self._letter(task_id, key, limit, rank, tries, late or bool(delay), 1)
        letter = replace(letter, keep=True, max_lost=terms.max_lost, queue=queue)
        self._submit(
            letter, wait=wait, max_waiting=100, delay=delay, token="", terms=terms
        )

    # Workers

    @rule(worker=workers, ttl=st.sampled_from(TTLS), some=st.sets(queues, min_size=1))
    def worker_enlists(self, worker: str, ttl: int, some: set[str]) -> None:
        """A worker says that it lives, and from which queues it takes offers."""
        self.scripts.enlist(worker, ttl, taker=worker, queues=sorted(some))
        after = self.look()
        for queue in some:
            until = after.takers[quote(queue)][worker]
            assert until > after.now + (ttl - 10) * 1000, "[takers] not enlisted"
        gone = [
            name
            for queue in some
            for name, until in after.takers[quote(queue)].items()
            if until <= after.now
        ]
        assert not gone, f"[takers] {gone} count as alive"
        assert worker in after.nodes, "[takers] not among the workers"

    @rule(worker=workers)
    def worker_leaves(self, worker: str) -> None:
        """A worker goes, and what it has claimed with it."""
        ends = self._wanted_by_none(leaver=worker)
        self.unwanted = set(ends)
        self.submitted = None
        self.take(self.scripts.leave(worker, taker=worker, queues=QUEUES))
        after = self.look()
        left = {i for i in ends if not after.verdict(i)}
        assert not left, f"[unwanted] nobody is left who takes {left}"
        assert not any(worker in taken for taken in after.takers.values()), "[takers]"
        assert worker not in after.nodes, "[takers] it has left"
        self.claimed = [pair for pair in self.claimed if pair[1] != worker]

    @rule(worker=workers, most=st.sampled_from((1, 2, 100)))
    def worker_looks_at_offers(self, worker: str, most: int) -> None:
        """A worker reads what it may claim."""
        expected = []
        for queue in QUEUES:
            offers = [task_id for task_id, _ in self.scope.offers.get(quote(queue), ())]
            wanted = [i for i in offers if worker not in self.ignorers.get(i, ())]
            expected += wanted[:most]
        # The reply has what was announced, which the model makes the same for all.
        found = self.scripts.offers(worker, most, QUEUES)
        assert [offer.task_id for offer in found] == expected, (
            f"[offers] {worker} is shown {found}, not {expected}"
        )
        self.unchanged("looking at the offers")

    @precondition(lambda self: self.scope.offers)
    @rule(n=picks, worker=workers)
    def worker_claims(self, n: int, worker: str) -> None:
        """A worker claims what is on offer, wanted or not."""
        offered = self.scope.on_offer()
        self._claim(offered[n % len(offered)], worker)

    @rule(task_id=ids, worker=workers)
    def worker_claims_late(self, task_id: str, worker: str) -> None:
        """A worker claims what may be gone."""
        self._claim(task_id, worker)

    def _claim(self, task_id: str, worker: str) -> None:
        before = self.scope
        record = before.tasks.get(task_id, {})
        granted = self.scripts.claim(task_id, worker)
        ignored = worker in self.ignorers.get(task_id, ())
        free = task_id in before.on_offer() and before.limit(record["key"]) > 0
        if not free or ignored:
            assert granted is None, (
                f"[ignored] {worker} got {task_id}, which it ignores"
                if ignored and free
                else f"[claim] {worker} got {task_id}, which is not to be had"
            )
            self.unchanged("a claim that comes too late")
            return
        self.submitted = None
        assert granted is not None, f"[claim] {worker} did not get {task_id}"
        assert (granted.task_id, granted.attempt) == (task_id, int(record["attempt"]))
        after = self.look()
        assert task_id not in after.on_offer(), "[claim] claimed, and still on offer"
        assert after.tasks[task_id]["claimer"] == worker, "[claim] by another one"
        due = after.now + int(SETTINGS.claim_lease * 1000)
        assert after.leases[task_id] <= due + 1000, "[claim] its lease is too long"
        letter = Letter.of(granted)
        self.claimed.append((replace(letter, claimed=True), worker))

    @precondition(lambda self: self.claimed)
    @rule(n=picks, dies=st.sampled_from((False, False, True)))
    def claimed_one_starts(self, n: int, dies: bool) -> None:
        """What was claimed reaches the pool, in time or too late, or never."""
        letter, worker = self.claimed.pop(n % len(self.claimed))
        if not dies:
            self._arrive(letter, worker)

    @precondition(lambda self: self.claimed)
    @rule(n=picks, fits=st.booleans())
    def claimer_gives_back(self, n: int, fits: bool) -> None:
        """A worker cannot start what it has claimed: others may."""
        letter, worker = self.claimed.pop(n % len(self.claimed))
        record = self.scope.tasks.get(letter.id, {})
        ignorers = {*self.ignorers.get(letter.id, ()), worker}
        ends = not fits and self._takers_of(letter.id) <= ignorers
        self.submitted = None
        self.unwanted = {letter.id} if ends else set()
        self.take(self.scripts.unclaim(letter.id, worker, ignored=not fits))
        if record.get("state") != "dispatched" or record.get("claimer") != worker:
            self.unchanged("giving back what one has not")
            return
        after = self.look()
        if ends:
            assert after.verdict(letter.id), "[unwanted] nobody takes it"
            return
        assert letter.id in after.on_offer(), "[claim] given back, not on offer"
        if not fits:
            self.ignorers[letter.id] = ignorers

    @precondition(lambda self: self._held_back())
    @rule(n=picks)
    def run_offers_its_next(self, n: int) -> None:
        """A run has stored its result; its next attempt is offered then."""
        runs = self._held_back()
        run = runs[n % len(runs)]
        self.submitted = None
        self.take(self.scripts.unclaim(run.id, run.token))
        assert run.id in self.look().on_offer(), "[claim] its next is not on offer"

    def _held_back(self) -> list[Run]:
        """Runs whose next attempt is offered by themselves."""
        tasks = self.scope.tasks
        return [
            run
            for run in self.runs
            if tasks.get(run.id, {}).get("claimer") == run.token
            and tasks[run.id]["state"] == "dispatched"
        ]

    @rule(task_id=ids, worker=workers)
    def worker_gives_back_anything(self, task_id: str, worker: str) -> None:
        """A claim is given back that another one has, or nobody."""
        if self.scope.tasks.get(task_id, {}).get("claimer") != worker:
            assert not self.scripts.unclaim(task_id, worker), "[no-op] granted"
            self.unchanged("giving back what another one has")

    @precondition(lambda self: self.scope.offers)
    @rule(n=picks, some=st.sets(workers, min_size=1))
    def workers_ignore(self, n: int, some: set[str]) -> None:
        """Workers do not want what is on offer."""
        offered = self.scope.on_offer()
        for worker in sorted(some):
            self._ignore(offered[n % len(offered)], worker)

    @precondition(lambda self: self.scope.offers and self.scope.takers)
    @rule(n=picks)
    def all_that_live_ignore(self, n: int) -> None:
        """Nobody who could take an offer wants it."""
        offered = self.scope.on_offer()
        task_id = offered[n % len(offered)]
        for worker in sorted(self._takers_of(task_id)):
            self._ignore(task_id, worker)

    def _ignore(self, task_id: str, worker: str) -> None:
        before = self.scope
        self.submitted = None
        on_offer = task_id in before.on_offer()
        ignorers = {*self.ignorers.get(task_id, ()), worker}
        left = self._takers_of(task_id)
        ends = on_offer and left <= ignorers
        self.unwanted = {task_id} if ends else set()
        self.take(self.scripts.ignore(task_id, worker))
        if not on_offer:
            self.unchanged("ignoring what is not on offer")
            return
        after = self.look()
        if ends:
            verdict = after.verdict(task_id) or ""
            assert verdict.startswith("unaccepted worker"), (
                f"[unwanted] nobody takes {task_id}, and it goes on"
            )
            assert task_id not in after.ignored, "[unwanted] remembered for nobody"
        else:
            assert not after.verdict(task_id), f"[unwanted] {left} may take {task_id}"
            assert after.ignored[task_id] == ignorers, "[ignored] not noted"
            self.ignorers[task_id] = ignorers

    # What always holds

    @invariant()
    def offers_and_records_agree(self) -> None:
        """Who is on offer is dispatched, unclaimed and in one queue, and back."""
        scope = self.scope
        places = [
            (task_id, queue)
            for queue, offers in scope.offers.items()
            for task_id, _ in offers
        ]
        expected = [
            (task_id, record["offer"])
            for task_id, record in scope.tasks.items()
            if record["state"] == "dispatched"
            and "offer" in record
            and not {"claimer", "drained"} & set(record)
        ]
        assert sorted(places) == sorted(expected), (
            f"[offer] on offer {places}, of {scope.tasks}"
        )
        for queue, offers in scope.offers.items():
            for task_id, score in offers:
                rank = int(scope.tasks[task_id].get("rank", 0))
                assert score // RANK == rank, f"[offer-order] {task_id} in {queue}"
        dispatched = {t for t in scope.tasks if scope.state(t) == "dispatched"}
        assert set(scope.ignored) <= dispatched, f"[I17] ignored: {scope.ignored}"

    def _sweep(self, worker: str) -> None:
        """What nobody wants any more ends, too."""
        before, none = self.scope, self._wanted_by_none()
        super()._sweep(worker)
        late = {i for i in none if before.unwanted.get(i, FAR) <= before.now}
        late = {i for i in late if i in self.scope.on_offer()}
        assert not late or self.last_sweep != self.now, f"[unwanted] {late} go on"

    def _pass_time(self, seconds: int) -> None:
        self.claimed = [
            (earlier(letter, seconds), worker) for letter, worker in self.claimed
        ]
        super()._pass_time(seconds)

    def take_offers(self) -> None:
        """Everything that is on offer starts on a new worker."""
        self.claimed = []
        for task_id in self.scope.on_offer():
            self._claim(task_id, "w9")
        for letter, worker in self.claimed:
            self._arrive(letter, worker)
        self.claimed = []


class SteeredOffers(OfferedMachine, SteeredMachine):
    """Offers, and an operator."""
