"""Start and deadline, end and deadline meet at the same moment: one side wins."""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from redis import Redis

from celery_bgtask.config import read_settings
from celery_bgtask.message import Message
from celery_bgtask.scripts import Scripts
from celery_bgtask.scripts.replies import Deadlines, Terms
from celery_bgtask.store import Link


KEY = "42"

#: Tasks that are raced in all, and so many at a time.
TASKS, BATCH = 2000, 100

#: Milliseconds around its deadline in which a task is tried.
AROUND = 1.5

MESSAGE = Message(b"body", b"{}")


@pytest.fixture
def connect(app: Celery, redis_url: str) -> Iterator[Callable[[], Scripts]]:
    """Make scripts with a connection of their own, as another process has them."""
    app.conf.bgtask_lease = 600  # of a run that nobody renews
    links: list[Link] = []

    def make() -> Scripts:
        links.append(Link(app, redis_url))
        settings = read_settings(app)
        return Scripts(links[-1], prefix="bgtask:race", scope="race", settings=settings)

    yield make
    for link in links:
        link.close()


def submit(scripts: Scripts, task_id: str, terms: Terms) -> Deadlines:
    """Submit a task that gets a slot at once."""
    submitted = scripts.submit(
        task_id,
        KEY,
        limit=-1,
        wait=True,
        max_waiting=10,
        rank=0,
        retries=0,
        token="",
        delay=0.0,
        nonce=task_id,
        message=MESSAGE,
        terms=terms,
    )
    assert submitted.status == "dispatched"
    return submitted.deadlines


def accept(scripts: Scripts, task_id: str, deadlines: Deadlines) -> str:
    """Start the task, as a worker does."""
    return scripts.accept(
        task_id,
        1,
        KEY,
        limit=-1,
        token=f"token{task_id}",
        worker="w",
        fresh=False,
        rank=0,
        retries=0,
        deadlines=deadlines,
    ).status


def sleep_until(due_ms: float, spread_ms: float = AROUND) -> None:
    """Come to a moment near *due_ms* of the server's clock, which is ours too."""
    until = due_ms / 1000 + random.uniform(-spread_ms, spread_ms) / 1000  # noqa: S311
    while time.time() < until:
        time.sleep(0.0001)  # to be there at the moment, not to wait for something


def race(
    raced: dict[str, Deadlines],
    first: Callable[[str, Deadlines], Any],
    second: Callable[[str, Deadlines], Any],
) -> list[tuple[str, Any, Any]]:
    """Let two threads go through all tasks at once; return what each was told."""
    with ThreadPoolExecutor(2) as pool:
        told = [
            pool.submit(list, itertools.starmap(do, raced.items()))
            for do in (first, second)
        ]
        return list(zip(raced, *(answers.result() for answers in told), strict=True))


def decided(scripts: Scripts, task_id: str, due_ms: int) -> str:
    """Decide as a waiting client does: when it is due, and again when told so."""
    sleep_until(due_ms)
    while True:
        answer = scripts.decide(task_id)
        if answer.verdict or not answer.due:
            return answer.verdict
        time.sleep(answer.due)  # it has said so


@pytest.mark.parametrize("party", ["client", "sweep"])
def test_a_start_at_the_deadline_wins_or_the_timeout_does_never_both(
    connect: Callable[[], Scripts], redis: Redis, party: str
) -> None:
    """Thousands of times; the store knows one winner, and it is who was told so."""
    submitter, worker, other = connect(), connect(), connect()
    won: Counter[str] = Counter()
    owed: list[str] = []

    def start(task_id: str, times: Deadlines) -> str:
        sleep_until(times.start_by)
        return accept(worker, task_id, times)

    def decide(task_id: str, times: Deadlines) -> str:
        return decided(other, task_id, times.start_by)

    def sweep(task_id: str, times: Deadlines) -> str:
        sleep_until(times.start_by)
        while other.phase(task_id).state == "dispatched":
            redis.delete("{bgtask:race:race}:sweeping")
            owed.extend(task.task_id for task in other.sweep("sweeper").owed)
        return other.decide(task_id).verdict

    for batch in range(TASKS // BATCH):
        raced = {
            f"{batch}-{number}": submit(
                submitter, f"{batch}-{number}", Terms(accept=0.03 + number * 0.001)
            )
            for number in range(BATCH)
        }
        ends = race(raced, start, decide if party == "client" else sweep)
        for task_id, started, verdict in ends:
            state = submitter.phase(task_id).state
            if started == "started":
                assert (verdict, state) == ("", "running")
                won["start"] += 1
            else:
                assert started in {"late", "ended"}
                assert verdict.startswith("unaccepted worker ")
                assert state == "decided"
                won["timeout"] += 1

    assert min(won.values()) > TASKS / 200, f"this was no race: {won}"
    assert len(won) == 2, f"this was no race: {won}"
    assert submitter.stats(KEY).running == won["start"]
    redis.delete("{bgtask:race:race}:sweeping")
    while swept := other.sweep("sweeper").owed:
        owed.extend(task.task_id for task in swept)
        redis.delete("{bgtask:race:race}:sweeping")
    assert len(owed) == len(set(owed)) == won["timeout"], "concluded twice, or never"


def test_an_end_at_the_deadline_wins_or_the_timeout_does_never_both(
    connect: Callable[[], Scripts], redis: Redis
) -> None:
    """A run that is told that it is valid has a result, and no other one does."""
    submitter, worker, client = connect(), connect(), connect()
    won: Counter[str] = Counter()

    def end(task_id: str, times: Deadlines) -> str:
        sleep_until(times.finish_by)
        token = f"token{task_id}"
        return worker.release(task_id, token=token, worker="w", attempt=1).status

    def decide(task_id: str, times: Deadlines) -> str:
        return decided(client, task_id, times.finish_by)

    for batch in range(TASKS // BATCH):
        raced = {}
        for number in range(BATCH):
            task_id = f"{batch}-{number}"
            terms = Terms(finish=0.06 + number * 0.001)
            deadlines = submit(submitter, task_id, terms)
            if accept(submitter, task_id, deadlines) == "started":
                raced[task_id] = deadlines  # else the machine stood still
        for task_id, released, verdict in race(raced, end, decide):
            if released == "released":
                assert not verdict
                won["end"] += 1
            else:
                assert released == "stale"
                assert verdict.startswith("unfinished ")
                won["timeout"] += 1
            assert submitter.phase(task_id).state == ("decided" if verdict else "ended")

    assert len(won) == 2, f"this was no race: {won}"
    assert min(won.values()) > TASKS / 200, f"this was no race: {won}"
    assert submitter.stats(KEY).running == 0
    assert redis.zcard("{bgtask:race:race}:owed") == won["timeout"]


def test_a_start_and_a_cancellation_at_once_have_one_winner(
    connect: Callable[[], Scripts], redis: Redis
) -> None:
    """Who cancels is told whether it was in time."""
    submitter, worker, client = connect(), connect(), connect()
    won: Counter[str] = Counter()

    def start(task_id: str, times: Deadlines) -> str:
        sleep_until(times.start_by)
        return accept(worker, task_id, Deadlines())

    def cancel(task_id: str, times: Deadlines) -> str:
        sleep_until(times.start_by)
        return client.cancel(task_id, reason="", terminate=False).was

    for batch in range(TASKS // BATCH):
        begin = int(time.time() * 1000) + 60
        raced = {}
        for number in range(BATCH):
            task_id = f"{batch}-{number}"
            submit(submitter, task_id, Terms())
            raced[task_id] = Deadlines(0, begin + number, 0)
        for task_id, started, was in race(raced, start, cancel):
            phase = submitter.phase(task_id).state
            if started == "started":
                assert (was, phase) == ("running", "running")
            else:
                assert (started, was, phase) == ("ended", "dispatched", "decided")
            won[started] += 1

    assert len(won) == 2, f"this was no race: {won}"
    assert min(won.values()) > TASKS / 200, f"this was no race: {won}"
    assert redis.zcard("{bgtask:race:race}:owed") == won["ended"]
