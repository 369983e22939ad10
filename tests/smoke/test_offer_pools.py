"""Offers in every pool, over each broker: taken at once, and no more than fit."""

from __future__ import annotations

import time
from typing import Any

import pytest
from celery import chain
from celery.exceptions import TaskRevokedError

from celery_bgtask import AcceptTimeout
from tests.helpers import wait_until
from tests.smoke.nodes import ServerContainer, SmokeSetup, WorkerSpec
from tests.smoke.offer_tasks import MODULE, task_of
from tests.smoke.test_offers import SOON, prefetch_counts


#: Seconds after which a worker looks at offers by itself.
LOOK = 5.0

POOLS = {"prefork": 2, "threads": 2, "gevent": 2, "solo": 1}


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """A worker that were not told would be seen to be late."""
    return {"bgtask_lease": 60.0, "bgtask_sweep_interval": LOOK}


@pytest.fixture(
    scope="module",
    params=[
        *(pytest.param(("redis", pool), id=pool) for pool in POOLS),
        *(
            pytest.param(
                ("rabbitmq", pool), id=f"{pool}-rabbitmq", marks=pytest.mark.rabbitmq
            )
            for pool in ("prefork", "gevent")
        ),
    ],
)
def setting(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Broker and pool."""
    if request.param[1] == "gevent":
        pytest.importorskip("gevent")
    broker, pool = request.param
    return broker, pool


@pytest.fixture(scope="module")
def smoke_broker(
    setting: tuple[str, str],
    request: pytest.FixtureRequest,
    smoke_store: ServerContainer,
) -> ServerContainer:
    """Redis, which is the store as well, or RabbitMQ."""
    if setting[0] == "redis":
        return smoke_store
    amqp: ServerContainer = request.getfixturevalue("amqp")
    return amqp


@pytest.fixture(scope="module")
def smoke_workers(setting: tuple[str, str]) -> tuple[WorkerSpec, ...]:
    """One worker."""
    return (WorkerSpec(setting[1], POOLS[setting[1]], tasks=MODULE),)


@pytest.fixture
def places(setting: tuple[str, str]) -> int:
    """Tasks that the worker can run at once."""
    return POOLS[setting[1]]


@pytest.fixture
def job(smoke: SmokeSetup) -> Any:
    """A task that is offered, without a limit."""
    return task_of(smoke.app, "job")


def test_an_offer_wakes_the_worker(smoke: SmokeSetup, job: Any, key: str) -> None:
    """It waits neither for a timer of its event loop nor for a look at the offers."""
    wait_until(lambda: heard_by(smoke, "job"), within=SOON, that="it listens")
    begun = time.monotonic()

    for number in range(20):
        assert job.delay(key, value=number).get(SOON) == number

    assert time.monotonic() - begun < 4 * LOOK


def heard_by(smoke: SmokeSetup, name: str) -> int:
    """How many workers hear what is offered of a task."""
    channel = "{" + f"{smoke.prefix}:{MODULE}.{name}" + "}@0:available"
    count: int = smoke.store.pubsub_numsub(channel)[0][1]
    return count


def test_a_freed_place_is_taken_at_once(
    smoke: SmokeSetup, job: Any, key: str, places: int
) -> None:
    """Forty offers in a row need no look at the offers between them."""
    begun = time.monotonic()

    results = [job.delay(key, value=number) for number in range(40)]

    assert [result.get(SOON) for result in results] == list(range(40))
    assert time.monotonic() - begun < 4 * LOOK
    assert smoke.ledger.peak(key) <= places
    assert len(smoke.ledger.runs(key=key)) == 40


def test_a_place_that_a_message_had_is_taken_at_once(
    smoke: SmokeSetup, job: Any, key: str, places: int
) -> None:
    """What the broker delivers goes first, and keeps offers waiting while it runs."""
    plain = task_of(smoke.app, "plain")
    messages = [plain.delay(key, seconds=1) for _ in range(places)]
    wait_until(lambda: smoke.ledger.running(key) == places, within=SOON, that="it runs")

    offers = [job.delay(f"offer-{key}") for _ in range(3)]
    for result in [*messages, *offers]:
        result.get(SOON)

    ended = min(run.ended or 0 for run in smoke.ledger.runs(key=key))
    runs = smoke.ledger.runs(key=f"offer-{key}")
    assert min(run.started for run in runs) >= ended
    assert max(run.started for run in runs) - ended < LOOK


def test_it_takes_no_more_than_it_can_start(
    smoke: SmokeSetup, job: Any, key: str, places: int
) -> None:
    """What is left stays on offer; and the broker delivers less meanwhile."""
    [before] = prefetch_counts(smoke)
    results = [job.delay(key, seconds=1.5) for _ in range(places + 2)]
    wait_until(lambda: smoke.ledger.running(key) == places, within=SOON, that="it runs")

    phases = [result.phase for result in results]
    still = smoke.ledger.running(key) == places
    lowered = prefetch_counts(smoke) if places > 1 else [before]
    for result in results:
        result.get(SOON)

    assert not still or sorted(phases) == ["offered"] * 2 + ["running"] * places
    assert smoke.ledger.peak(key) == places
    assert places == 1 or lowered[0] < before
    wait_until(
        lambda: prefetch_counts(smoke) == [before], within=SOON, that="as before"
    )


def test_endings_are_as_ever(smoke: SmokeSetup, job: Any, key: str) -> None:
    """A retry, a chain, an error, an offer that nobody takes, one that is cancelled."""
    assert job.delay(key, "retry", times=2, pause=0).get(SOON) == "done"
    assert chain(job.si(key, value=1), job.si(key, value=2))().get(SOON) == 2
    with pytest.raises(ValueError, match="as asked for"):
        job.delay(key, "fail").get(SOON)
    with pytest.raises(AcceptTimeout):
        job.apply_async((key,), queue=f"nobody-{key}", accept_timeout=0.5).get(SOON)
    pending = job.apply_async((key,), queue=f"nobody-{key}")
    pending.cancel("enough")
    with pytest.raises(TaskRevokedError, match="enough"):
        pending.get(SOON)
    assert task_of(smoke.app, "late").delay(key, "requeue").get(SOON) == "done"


def test_offers_and_messages_of_a_key_share_one_limit(
    smoke: SmokeSetup, key: str, places: int
) -> None:
    """However they come."""
    offered, queued = task_of(smoke.app, "offered"), task_of(smoke.app, "queued")

    results = [
        (offered, queued)[number % 2].delay(key, seconds=0.02) for number in range(20)
    ]
    for result in results:
        result.get(SOON)

    assert smoke.ledger.peak(key) <= min(2, places)
    assert len(smoke.ledger.runs(key=key)) == 20


def test_a_warm_shutdown_ends_what_runs(smoke: SmokeSetup, job: Any, key: str) -> None:
    """Nothing is lost, nothing runs twice."""
    spec = smoke.workers[0].container.spec
    worker = smoke.start_worker(
        "leaver",
        pool=spec.pool,
        concurrency=spec.concurrency,
        tasks=MODULE,
        options=("-Q", f"own-{key}"),
    )
    options = {"queue": f"own-{key}"}
    running = [
        job.apply_async((key,), {"seconds": 1, "value": "done"}, **options)
        for _ in range(spec.concurrency)
    ]
    wait_until(
        lambda: smoke.ledger.running(key) == spec.concurrency,
        within=SOON,
        that="it runs",
    )
    pending = job.apply_async((key,), **options)

    worker.kill("SIGTERM", reload_container=False)

    assert [result.get(SOON) for result in running] == ["done"] * spec.concurrency
    worker.wait()
    assert pending.phase == "offered"
    pending.cancel()
    assert len(smoke.ledger.runs(key=key)) == spec.concurrency
