"""Offered tasks that are done outside of any worker: in a script, in a service."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import chain, chord, states
from celery.exceptions import ChordError, TaskRevokedError

from celery_bgtask import (
    AcceptTimeout,
    BgTaskError,
    LeaseLost,
    TaskCancelled,
    TaskLost,
    TaskNotAvailable,
    Work,
    accept_task,
)
from tests.helpers import wait_until
from tests.smoke.nodes import SmokeSetup, WorkerSpec
from tests.smoke.offer_tasks import MODULE, task_of
from tests.smoke.test_offers import SOON, claimer_of, error_of


LEASE = 1.5


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Leases that a test can outlive."""
    return {
        "bgtask_lease": LEASE,
        "bgtask_sweep_interval": 0.1,
        "bgtask_claim_lease": 2.0,
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """A worker for what follows from the tasks that others do."""
    return (WorkerSpec("threads", 2, tasks=MODULE),)


@pytest.fixture
def offer(smoke: SmokeSetup, key: str) -> Callable[..., Any]:
    """Makes a call that no worker takes."""
    job = task_of(smoke.app, "job")

    def make(*args: Any, **options: Any) -> Any:
        options = {"queue": f"nobody-{key}", **options}
        return job.apply_async((key, *args), **options)

    return make


@pytest.fixture
def accept(smoke: SmokeSetup) -> Callable[[str], Work]:
    """Does a task in this process."""

    def make(task_id: str) -> Work:
        return accept_task(task_id, app=smoke.app)

    return make


Offer = Callable[..., Any]
Accept = Callable[[str], Work]


def test_a_task_is_completed(
    smoke: SmokeSetup, offer: Offer, accept: Accept, key: str
) -> None:
    """What the block completes it with is its result."""
    result = offer("sleep", metadata={"size": 3})

    with accept(result.id) as work:
        assert result.phase == "running"
        assert work.task_id == result.id
        assert work.task.name == f"{MODULE}.job"
        assert (work.args, work.kwargs) == ([key, "sleep"], {})
        assert work.payload == {"key": key, "how": "sleep"}
        assert (work.key, dict(work.metadata)) == (key, {"size": 3})
        work.complete({"done": [1, 2]})

    assert result.get(SOON) == {"done": [1, 2]}
    assert result.state == states.SUCCESS
    assert not smoke.ledger.runs(key=key)
    assert task_of(smoke.app, "job").control.stats(key).held == 0


def test_the_payload_of_a_call_with_one_argument_is_that(
    offer: Offer, accept: Accept, key: str
) -> None:
    """Else it is all arguments by name."""
    result = offer()

    with accept(result.id) as work:
        assert work.payload == key

    assert result.get(SOON) is None


def test_who_leaves_without_a_word_has_completed_it(
    offer: Offer, accept: Accept
) -> None:
    """With nothing."""
    result = offer()

    with accept(result.id):
        pass

    assert result.get(SOON) is None
    assert result.phase == "ended"


def test_an_exception_in_the_block_fails_the_task(offer: Offer, accept: Accept) -> None:
    """And goes on to whoever runs the block."""
    result = offer()

    with pytest.raises(ValueError, match="as it happened"), accept(result.id):
        raise ValueError("as it happened")

    with pytest.raises(ValueError, match="as it happened"):
        result.get(SOON)


def test_an_interrupted_block_fails_the_task(offer: Offer, accept: Accept) -> None:
    """Ctrl-C is nothing that could be stored; what is says so."""
    result = offer()

    with pytest.raises(KeyboardInterrupt), accept(result.id):
        raise KeyboardInterrupt

    with pytest.raises(RuntimeError, match="KeyboardInterrupt"):
        result.get(SOON)


def test_a_task_is_failed(offer: Offer, accept: Accept) -> None:
    """``fail`` raises nothing here."""
    result = offer()

    with accept(result.id) as work:
        work.fail(KeyError("of the block"))

    with pytest.raises(KeyError, match="of the block"):
        result.get(SOON)


@pytest.mark.parametrize(
    "what", ["an id that nobody knows", "ended", "running", "taken", "queued"]
)
def test_what_is_not_on_offer_cannot_be_accepted(
    smoke: SmokeSetup, offer: Offer, accept: Accept, key: str, what: str
) -> None:
    """The error says why."""
    result = offer()
    why = {
        "an id that nobody knows": "the store does not know it",
        "ended": "",
        "running": "it is running",
        "taken": "it is running",
        "queued": "it is dispatched",
    }[what]
    task_id, after = result.id, result.cancel
    if what == "an id that nobody knows":
        task_id = "no-such-task"
    elif what == "queued":
        queued = task_of(smoke.app, "queued").apply_async((key,), queue="nobody")
        task_id = queued.id
        smoke.app.control.purge()
    elif what == "ended":
        with accept(result.id) as work:
            work.complete()
        result.get(SOON)
    elif what == "running":
        result.cancel()
        job = task_of(smoke.app, "job")
        result = job.delay(key, seconds=1)
        task_id, after = result.id, lambda: result.get(SOON)
        wait_until(lambda: smoke.ledger.starts(task_id), within=SOON, that="it runs")
    else:
        block = accept(result.id)
        block.__enter__()
        after = block.complete

    with pytest.raises(TaskNotAvailable) as caught, accept(task_id):
        pytest.fail("it was accepted")

    assert caught.value.task_id == task_id
    assert why in str(caught.value)
    if what == "queued":
        queued.cancel()
    after()


def test_exactly_one_of_many_gets_it(offer: Offer, accept: Accept) -> None:
    """Threads that race for one offer."""
    result = offer()
    begin = threading.Barrier(8)
    got: list[str] = []

    def race(number: int) -> None:
        begin.wait(10)
        try:
            with accept(result.id) as work:
                got.append("accepted")
                work.complete(number)
        except TaskNotAvailable:
            got.append("refused")

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)

    assert sorted(got) == ["accepted"] + ["refused"] * 7
    assert result.get(SOON) in range(8)


@pytest.mark.parametrize("again", ["complete", "fail", "progress", "checkpoint"])
def test_a_task_ends_once(offer: Offer, accept: Accept, again: str) -> None:
    """What comes after its end is an error of the block, and changes nothing."""
    result = offer()

    with accept(result.id) as work:
        work.complete("first")
        with pytest.raises(TaskNotAvailable, match="it has been completed"):
            getattr(work, again)(*[ValueError()] * (again == "fail"))

    assert result.get(SOON) == "first"
    with pytest.raises(TaskNotAvailable):
        work.complete("later")


def test_what_was_not_accepted_cannot_be_completed(
    offer: Offer, accept: Accept
) -> None:
    """Without the ``with`` nothing is accepted."""
    result = offer()
    work = accept(result.id)

    with pytest.raises(TaskNotAvailable, match="not accepted"):
        work.complete("x")
    with pytest.raises(TaskNotAvailable, match="not accepted"):
        work.progress(1)

    assert result.phase == "offered"
    result.cancel()


def test_the_lease_is_kept_for_as_long_as_the_block_lasts(
    offer: Offer, accept: Accept
) -> None:
    """Over several leases."""
    result = offer()

    with accept(result.id) as work:
        until = time.monotonic() + 3 * LEASE
        while time.monotonic() < until:
            assert result.phase == "running"
            work.checkpoint()
            time.sleep(0.1)  # the time that the work takes
        work.complete("late")

    assert result.get(SOON) == "late"


def test_a_task_that_is_cancelled_meanwhile_drops_the_value(
    offer: Offer, accept: Accept
) -> None:
    """Whoever completes it is told."""
    result = offer()

    with accept(result.id) as work:
        result.cancel("enough", terminate=True)
        with pytest.raises(TaskCancelled, match="enough"):
            work.checkpoint()
        with pytest.raises(TaskCancelled, match="enough"):
            work.complete("dropped")

    with pytest.raises(TaskRevokedError, match="enough"):
        result.get(SOON)


def test_leaving_the_block_of_a_cancelled_task_raises(
    offer: Offer, accept: Accept
) -> None:
    """What was done is not stored: that must not go unnoticed."""
    result = offer()

    with pytest.raises(TaskCancelled), accept(result.id):
        result.cancel("enough", terminate=True)


def test_progress_is_pushed(offer: Offer, accept: Accept) -> None:
    """As from a body."""
    result = offer()
    seen: list[float] = []
    result.on_progress(lambda progress: seen.append(progress.percent))

    with accept(result.id) as work:
        for number in range(4):
            work.progress(number + 1, 4, "working", row=number)
        wait_until(lambda: seen == [25, 50, 75, 100], within=SOON, that="it is heard")
        assert result.state == "PROGRESS"

    last = result.last_progress
    assert last is None or last.data == {"row": 3}
    result.get(SOON)


def test_a_lease_that_is_lost_is_told_and_the_value_dropped(
    smoke: SmokeSetup,
    offer: Offer,
    client_process: Callable[[str], subprocess.Popen[str]],
) -> None:
    """The process was stopped for longer than its lease."""
    result = offer()
    process = client_process(BLOCK.format(task_id=result.id))
    wait_until(lambda: result.phase == "running", within=SOON, that="it is accepted")

    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TaskLost):
            result.get(SOON)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    smoke.ledger.client.rpush("ledger:go-on", 1)

    out, _ = process.communicate(timeout=SOON)
    assert out.strip() in {"LeaseLost", "TaskLost"}
    assert result.state == states.FAILURE


BLOCK = """
from tests.smoke import offer_tasks
from redis import Redis
from celery_bgtask import BgTaskError, accept_task
from tests.helpers import wait_until
ledger = Redis.from_url(app.conf.smoke_ledger_url)
with accept_task({task_id!r}, app=app) as work:
    ledger.delete("ledger:go-on")
    wait_until(lambda: ledger.lpop("ledger:go-on"), within=60)
    try:
        work.complete("dropped")
    except BgTaskError as exc:
        print(type(exc).__name__)
    else:
        print("completed")
"""


def test_a_process_that_dies_loses_its_task(
    smoke: SmokeSetup,
    offer: Offer,
    client_process: Callable[[str], subprocess.Popen[str]],
) -> None:
    """As a worker would."""
    result = offer()
    process = client_process(BLOCK.format(task_id=result.id))
    wait_until(lambda: result.phase == "running", within=SOON, that="it is accepted")

    process.kill()

    with pytest.raises(TaskLost):
        result.get(SOON)


def test_a_lost_task_may_run_again(
    smoke: SmokeSetup,
    key: str,
    client_process: Callable[[str], subprocess.Popen[str]],
) -> None:
    """With ``acks_late`` it is on offer once more."""
    late = task_of(smoke.app, "late")
    result = late.apply_async((key,), queue=f"nobody-{key}")
    process = client_process(BLOCK.format(task_id=result.id))
    wait_until(lambda: result.phase == "running", within=SOON, that="it is accepted")

    process.kill()
    wait_until(lambda: result.phase == "offered", within=SOON, that="it is offered")

    with accept_task(result.id, app=smoke.app) as work:
        work.complete("again")
    assert result.get(SOON) == "again"


def test_what_follows_goes_on(
    smoke: SmokeSetup, offer: Offer, accept: Accept, key: str
) -> None:
    """A chain, a chord, an errback: workers do what comes next."""
    job, gather = task_of(smoke.app, "job"), task_of(smoke.app, "gather")
    mine = job.si(key).set(queue=f"nobody-{key}")
    errback = task_of(smoke.app, "errback").s(
        url=smoke.conf["smoke_ledger_url"], name=key
    )

    last = chain(mine, gather.s(key))()
    with accept(last.parent.id) as work:
        work.complete("first")
    assert last.get(SOON) == "first"

    body: Any = chord([mine.clone(), job.si(key, value=2)])(gather.s(key))
    with accept(body.parent.results[0].id) as work:
        work.complete(1)
    assert body.get(SOON) == [1, 2]

    body = chord([mine.clone(), job.si(key)])(gather.s(key))
    with accept(body.parent.results[0].id) as work:
        work.fail(ValueError("of a member"))
    assert isinstance(error_of(body), ChordError)

    result = offer(link_error=errback)
    with accept(result.id) as work:
        work.fail(OSError("of the block"))
    told = f"ledger:errors:{key}"
    wait_until(
        lambda: smoke.ledger.client.lrange(told, 0, -1) == ["OSError"], within=SOON
    )


def test_it_holds_a_slot_of_its_key(
    smoke: SmokeSetup, accept: Accept, key: str
) -> None:
    """The next one starts when the block has ended."""
    single = task_of(smoke.app, "single")
    first = single.apply_async((key,), queue=f"nobody-{key}")

    with accept(first.id) as work:
        second = single.delay(key)
        assert second.phase == "waiting"
        work.complete()

    second.get(SOON)
    assert smoke.ledger.order(key) == [second.id]


def test_its_deadlines_hold(offer: Offer, accept: Accept) -> None:
    """An offer that is over cannot be accepted; a run that lasts too long ends."""
    early = offer(accept_timeout=0.5)
    with pytest.raises(AcceptTimeout):
        early.get(SOON)
    with pytest.raises(TaskNotAvailable), accept(early.id):
        pytest.fail("it was accepted")

    result = offer(finish_timeout=1)
    with pytest.raises(BgTaskError, match="did not end within"), accept(result.id):
        wait_until(result.ready, within=SOON, that="it has ended")


def test_an_asyncio_service_does_it(offer: Offer, accept: Accept, key: str) -> None:
    """Blocking calls by ``to_thread``, and the loop goes on meanwhile."""
    results = [offer() for _ in range(3)]

    async def do(task_id: str) -> None:
        block = accept(task_id)
        work = await asyncio.to_thread(block.__enter__)
        try:
            await asyncio.sleep(0.05)
            await asyncio.to_thread(work.progress, 1, 2)
            await asyncio.to_thread(work.complete, task_id)
        finally:
            await asyncio.to_thread(block.__exit__, None, None, None)

    async def serve() -> None:
        await asyncio.gather(*(do(result.id) for result in results))

    asyncio.run(serve())

    assert [r.get(SOON) for r in results] == [r.id for r in results]


def test_an_accepted_offer_shows_who_has_it(
    smoke: SmokeSetup, offer: Offer, accept: Accept
) -> None:
    """For an operator who asks why."""
    result = offer()
    job = task_of(smoke.app, "job")

    with accept(result.id):
        explanation = job.control.explain(result.id)
        assert claimer_of(smoke, result.id) is None
        assert explanation.reason == "running"
        assert f"/{os.getpid()}-" in (explanation.worker or "")

    result.get(SOON)


def test_a_value_that_cannot_be_stored_fails_the_task(
    offer: Offer, accept: Accept
) -> None:
    """As in a worker: the error of the serializer is the result."""
    result = offer()

    with accept(result.id) as work:
        work.complete(object())

    error = error_of(result)
    assert "serializable" in str(error) or "Encode" in type(error).__name__


def test_errors_of_the_lease_are_ours() -> None:
    """One ``except`` catches what a block may meet."""
    assert issubclass(LeaseLost, BgTaskError)
    assert issubclass(TaskNotAvailable, BgTaskError)
