"""The store goes away and comes back: its silence is not a worker's death."""

from __future__ import annotations

from typing import Any

import pytest

from celery_bgtask.testing import EmbeddedServer
from tests.helpers import let_pass, value_of, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import (
    KOMBU,
    AmqpContainer,
    ServerContainer,
    SmokeSetup,
    WorkerSpec,
)


# redis-py leaves a connection that its server has closed to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)

#: A run that ends while the store is away tells it for so long.
LEASE = 6.0
AWAY = LEASE + 1


@pytest.fixture(scope="module")
def smoke_conf(smoke_broker: ServerContainer) -> dict[str, Any]:
    """Short leases.

    What a worker has fetched when it loses Redis as its broker comes back after
    the visibility timeout only.
    """
    soon = {
        "visibility_timeout": 4,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    return {
        "broker_transport_options": (
            {} if isinstance(smoke_broker, AmqpContainer) else soon
        ),
        "bgtask_lease": LEASE,
        "bgtask_sweep_interval": 0.25,
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Two, so that one could take the other for dead."""
    return WorkerSpec("prefork", 2), WorkerSpec("threads", 2)


@pytest.fixture(scope="module")
def smoke_store(store: EmbeddedServer) -> ServerContainer:
    """The server that goes away."""
    return ServerContainer(store)


@pytest.fixture(
    scope="module",
    params=["same", "redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)],
)
def smoke_broker(
    request: pytest.FixtureRequest,
    smoke_store: ServerContainer,
    server: EmbeddedServer,
    redis_url: str,
) -> ServerContainer:
    """The broker: goes away with the store, or stays."""
    if request.param == "same":
        return smoke_store
    if request.param == "redis":
        return ServerContainer(server, url=redis_url)
    amqp: AmqpContainer = request.getfixturevalue("amqp")
    return amqp


def wait_for_start(smoke: SmokeSetup, key: str, number: int = 1) -> None:
    """Wait until so many bodies of a key have started."""
    wait_until(lambda: len(smoke.ledger.runs(key=key)) >= number, that="started")


def test_a_task_that_runs_through_an_outage_keeps_its_slot(
    smoke: SmokeSetup, key: str, store: EmbeddedServer
) -> None:
    """The store is away for longer than the lease: nobody is taken for dead."""
    single = smoke.task("single")
    first = single.delay(key, HELD)
    second = single.delay(key)
    wait_for_start(smoke, key)

    store.restart(after=AWAY)
    let_pass(LEASE + 1)
    smoke.ledger.release(first)

    assert value_of(second) == value_of(first) == key
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1
    for worker in smoke.workers:
        for line in worker.logs().splitlines():
            assert not ("lease" in line and key in line), line


def test_a_task_that_ends_during_an_outage_gives_its_slot_on_after_it(
    smoke: SmokeSetup, key: str, store: EmbeddedServer
) -> None:
    """The end is told when the store is back; the next task runs once, after it."""
    single = smoke.task("single")
    first = single.delay(key, HELD)
    second = single.delay(key)
    wait_for_start(smoke, key)

    store.stop()
    smoke.ledger.release(first)
    wait_until(lambda: not smoke.ledger.running(key), that="it has ended")
    let_pass(0.5)
    store.start()

    assert value_of(second) == value_of(first) == key
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1


def test_many_tasks_survive_a_restart(
    smoke: SmokeSetup,
    key: str,
    store: EmbeddedServer,
    smoke_broker: ServerContainer,
    smoke_store: ServerContainer,
) -> None:
    """Forty tasks of two keys, a restart in their middle: each runs once.

    A worker of kombu 5.7 may end when its Redis goes away just when it looks for
    messages to restore; a supervisor starts it again. What such a broker itself loses
    in its restart is sent again from the store.
    """
    if smoke_broker is smoke_store and KOMBU < (5, 7):
        pytest.skip("this kombu gives back what was fetched after 100 s at least")
    five = smoke.task("five")
    results = [five.delay(f"{key}-{n % 2}", 0.2) for n in range(40)]
    wait_for_start(smoke, f"{key}-0", 5)

    store.restart()

    def not_run() -> list[str]:
        for worker in smoke.workers:
            if worker.container.status == "exited":
                worker.container.start()
        ran = {run.task_id for run in smoke.ledger.runs()}
        return [result.id for result in results if result.id not in ran]

    try:
        wait_until(lambda: not not_run(), that="all have run")
    except AssertionError:
        # Redis as broker: what was on its way to a worker just then is lost with it.
        if smoke_broker is not smoke_store:
            raise
        for task_id in not_run():
            five.control.redispatch(task_id)
        wait_until(lambda: not not_run(), that="all have run, some sent again")
    assert smoke.ledger.peak(f"{key}-0") <= 5
    assert smoke.ledger.peak(f"{key}-1") <= 5
    assert all(smoke.ledger.starts(result.id) == 1 for result in results)
