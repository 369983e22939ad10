"""Offers whose worker, push or server is lost: each still ends, and only once."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from celery_bgtask import TaskLost
from celery_bgtask.scripts import base
from celery_bgtask.scripts.loader import assemble, load_sources
from celery_bgtask.testing import EmbeddedServer
from tests.helpers import wait_until
from tests.smoke.nodes import ServerContainer, SmokeSetup, SmokeWorker, WorkerSpec
from tests.smoke.offer_tasks import MODULE, task_of, told
from tests.smoke.test_offers import SOON, claimer_of


CLAIM = 1.5


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {
        "bgtask_lease": 3.0,
        "bgtask_sweep_interval": 0.25,
        "bgtask_claim_lease": CLAIM,
    }


@pytest.fixture(scope="module")
def smoke_store(store: EmbeddedServer) -> ServerContainer:
    """A server that may be restarted; it is the broker, too."""
    return ServerContainer(store)


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """A worker that stays; it consumes no queue that it is not told to."""
    return (WorkerSpec("threads", 2, tasks=MODULE, options=("-Q", "none")),)


@pytest.fixture
def job(smoke: SmokeSetup) -> Any:
    """A task that is offered, without a limit."""
    return task_of(smoke.app, "job")


@pytest.fixture
def survivor(smoke: SmokeSetup) -> Any:
    """The worker that stays, once it takes the offers of the app's queue."""
    [worker] = smoke.workers
    yield worker
    # By a connection that no test has cut.
    with smoke.app.connection_for_write() as connection:
        smoke.app.control.cancel_consumer(
            worker.worker_queue,
            destination=[worker.hostname()],
            reply=True,
            connection=connection,
        )


def leaver(smoke: SmokeSetup, *, concurrency: int = 1, **spec: Any) -> SmokeWorker:
    """Start a worker that goes."""
    return smoke.start_worker("leaver", concurrency=concurrency, tasks=MODULE, **spec)


def test_an_offer_whose_claimer_dies_before_the_start_is_offered_again(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker
) -> None:
    """Another worker starts it when the claim has run out."""
    worker = leaver(smoke)
    stop_children(worker)
    result = job.delay(key)
    wait_until(lambda: claimer_of(smoke, result.id), within=SOON, that="it is claimed")

    worker.kill("SIGKILL", reload_container=False)
    survivor.consume()

    result.get(SOON)
    assert [run.worker for run in smoke.ledger.runs(key=key)] == [survivor.hostname()]


def stop_children(worker: SmokeWorker) -> None:
    """Keep a worker's pool from starting what it is given."""
    for pid in worker.children():
        os.kill(pid, signal.SIGSTOP)


def test_a_claimer_that_comes_too_late_does_not_run_it_again(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker
) -> None:
    """Its claim has run out, another worker runs it; then its pool wakes up."""
    worker = leaver(smoke)
    stop_children(worker)
    result = job.delay(key)
    wait_until(lambda: claimer_of(smoke, result.id), within=SOON, that="it is claimed")
    survivor.consume()
    result.get(SOON)

    for pid in worker.children():
        os.kill(pid, signal.SIGCONT)
    wait_until(lambda: "not started" in worker.logs(), within=SOON, that="it is told")

    assert [run.worker for run in smoke.ledger.runs(key=key)] == [survivor.hostname()]


def test_a_claimer_that_comes_late_may_run_it_if_nobody_else_has(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """Its claim has run out and it is on offer again: it starts, once."""
    worker = leaver(smoke)
    stop_children(worker)
    result = job.delay(key)
    wait_until(lambda: claimer_of(smoke, result.id), within=SOON, that="it is claimed")
    wait_until(
        lambda: claimer_of(smoke, result.id) is None, within=SOON, that="it is offered"
    )

    for pid in worker.children():
        os.kill(pid, signal.SIGCONT)

    result.get(SOON)
    assert smoke.ledger.starts(result.id) == 1


@pytest.mark.parametrize("name", ["job", "late"])
def test_a_run_whose_worker_dies_ends_as_a_lost_task(
    smoke: SmokeSetup, name: str, key: str, survivor: SmokeWorker
) -> None:
    """With ``acks_late`` it is offered again, else it fails."""
    worker = leaver(smoke)
    result = task_of(smoke.app, name).delay(key, seconds=2, value="done")
    wait_until(lambda: smoke.ledger.starts(result.id), within=SOON, that="it runs")
    survivor.consume()

    worker.kill("SIGKILL", reload_container=False)
    smoke.ledger.gone(worker.hostname())

    if name == "late":
        assert result.get(SOON) == "done"
        assert smoke.ledger.starts(result.id) == 2
        assert smoke.ledger.overlaps(result.id) == 1
    else:
        with pytest.raises(TaskLost):
            result.get(SOON)
        assert smoke.ledger.starts(result.id) == 1


def test_an_offer_that_was_not_announced_is_found(
    smoke: SmokeSetup,
    job: Any,
    key: str,
    survivor: SmokeWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look at the offers, once a sweep interval, stands behind the push."""
    survivor.consume()
    sources = load_sources()
    push = 'redis.call("PUBLISH", channels .. ":available", text)'
    assert push in sources["includes/dispatch"]
    sources["includes/dispatch"] = sources["includes/dispatch"].replace(push, "")
    monkeypatch.setattr(base, "SCRIPTS", assemble(sources))

    for _ in range(3):
        job.delay(key).get(SOON)

    assert len(smoke.ledger.runs(key=key)) == 3


def test_a_lost_subscription_is_made_again(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker
) -> None:
    """Whatever is offered while it is gone, and after."""
    survivor.consume()

    results = []
    for _ in range(10):
        smoke.store.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        results += [job.delay(key) for _ in range(2)]
    for result in results:
        result.get(SOON)

    assert len(smoke.ledger.runs(key=key)) == 20


def test_offers_outlive_a_restart_of_the_server(
    smoke: SmokeSetup,
    job: Any,
    key: str,
    survivor: SmokeWorker,
    smoke_store: ServerContainer,
) -> None:
    """What is on offer is taken afterwards, and so is what comes then."""
    pending = [job.delay(key) for _ in range(3)]
    survivor.consume()
    for result in pending:
        result.get(SOON)
    waiting = job.apply_async((key,), queue=f"own-{key}")

    smoke_store.restart()

    wait_until(smoke.store.ping, within=SOON)
    after = job.delay(key)
    after.get(2 * SOON)
    own = smoke.start_worker("own", tasks=MODULE, options=("-Q", f"own-{key}"))
    waiting.get(SOON)
    assert own.hostname() in {run.worker for run in smoke.ledger.runs(key=key)}
    assert len(smoke.ledger.runs(key=key)) == 5


def test_a_worker_that_has_lost_its_broker_takes_offers_again(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker
) -> None:
    """When it is connected; what runs meanwhile keeps its place."""
    survivor.consume()
    long = job.delay(key, seconds=2)
    wait_until(lambda: smoke.ledger.starts(long.id), within=SOON, that="it runs")

    smoke.store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    results = [job.delay(key, seconds=0.2) for _ in range(6)]
    for result in [long, *results]:
        result.get(2 * SOON)
    assert smoke.ledger.peak(key) <= 2
    assert len(smoke.ledger.runs(key=key)) == 7


def test_a_warm_shutdown_claims_nothing_more(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker
) -> None:
    """What runs is ended, what is on offer is left to others."""
    worker = leaver(smoke, concurrency=2)
    running = [job.delay(key, seconds=3, value="done") for _ in range(2)]
    wait_until(lambda: smoke.ledger.running(key) == 2, within=SOON, that="two run")
    pending = [job.delay(key) for _ in range(2)]

    worker.kill("SIGTERM", reload_container=False)

    assert [result.get(SOON) for result in running] == ["done", "done"]
    assert worker.wait() == 0
    assert [result.phase for result in pending] == ["offered", "offered"]
    assert [claimer_of(smoke, result.id) for result in pending] == [None, None]
    survivor.consume()
    for result in pending:
        result.get(SOON)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_stream_of_offers_outlives_a_warm_shutdown(
    smoke: SmokeSetup, job: Any, key: str, survivor: SmokeWorker, pool: str
) -> None:
    """Whatever the worker had claimed and not begun is taken by another, soon."""
    worker = leaver(smoke, concurrency=2, pool=pool)
    survivor.consume()

    results = []
    for number in range(60):
        results.append(job.delay(key, seconds=0.02))
        if number == 20:
            worker.kill("SIGTERM", reload_container=False)
    for result in results:
        result.get(SOON)

    assert worker.wait() == 0
    assert sorted(smoke.ledger.order(key)) == sorted(result.id for result in results)


@pytest.mark.parametrize("name", ["job", "late"])
def test_a_cold_shutdown_gives_back_what_it_has_cancelled(
    smoke: SmokeSetup, name: str, key: str, survivor: SmokeWorker
) -> None:
    """With ``acks_late`` it is offered again, else it is lost."""
    worker = leaver(smoke)
    result = task_of(smoke.app, name).delay(key, seconds=2, value="done")
    wait_until(lambda: smoke.ledger.starts(result.id), within=SOON, that="it runs")
    survivor.consume()

    worker.kill("SIGQUIT", reload_container=False)

    if name == "late":
        assert result.get(SOON) == "done"
        assert smoke.ledger.runs(key=key)[-1].worker == survivor.hostname()
    else:
        with pytest.raises((TaskLost, TaskRevokedError)):
            result.get(SOON)
    worker.wait()


def test_a_slow_receiver_harms_nobody(smoke: SmokeSetup, job: Any, key: str) -> None:
    """It delays the offers of its worker; messages, leases and control go on."""
    plain = task_of(smoke.app, "plain")
    worker = smoke.start_worker(
        "slow",
        concurrency=2,
        tasks=MODULE,
        conf={"smoke_receiver": "slow"},
        options=("-Q", f"own-{key}"),
    )

    begun = time.monotonic()
    offer = job.apply_async((key,), queue=f"own-{key}")
    first = plain.apply_async((key,), {"seconds": 0.2}, queue=f"own-{key}")
    first.get(SOON)
    asked = smoke.app.control.ping([worker.hostname()], timeout=SOON, limit=1)
    assert asked == [{worker.hostname(): {"ok": "pong"}}]
    assert first.id in smoke.ledger.order(key)[:1]
    offer.get(2 * SOON)

    assert time.monotonic() - begun >= 5
    assert len(told(smoke.ledger.client, worker.hostname())) >= 2


def test_a_receiver_that_raises_harms_nobody(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """What it cannot say counts as nothing said: the worker takes the task."""
    worker = smoke.start_worker(
        "raising",
        tasks=MODULE,
        conf={"smoke_receiver": "raising"},
        options=("-Q", f"own-{key}"),
    )

    for _ in range(3):
        job.apply_async((key,), queue=f"own-{key}").get(SOON)

    assert len(told(smoke.ledger.client, worker.hostname())) == 3
    assert "as asked for" in worker.logs()


def test_who_has_nothing_to_hear_subscribes_to_nothing(
    smoke: SmokeSetup, key: str
) -> None:
    """No offers and no receivers: no subscription; with offers, of their scopes."""
    mine = "{" + smoke.prefix
    pattern = mine.replace("[", "\\[") + "*:available"
    before = set(smoke.store.pubsub_channels(pattern))
    assert before == {
        f"{mine}:{scope.replace(':', '%3A')}" + "}@0:available"
        for scope in (
            *(f"{MODULE}.{name}" for name in OFFERED),
            "tests.smoke.offers.shared",
        )
    }

    worker = smoke.start_worker("quiet", tasks="tests.smoke.tasks")
    smoke.task("five").apply_async((key,), queue=worker.worker_queue).get(SOON)

    assert set(smoke.store.pubsub_channels(pattern)) == before
    counts = {c: smoke.store.pubsub_numsub(c)[0][1] for c in before}
    assert set(counts.values()) == {1}


OFFERED = ("job", "late", "requeued", "rated", "silent", "single")
