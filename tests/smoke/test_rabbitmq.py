"""RabbitMQ carries the messages, Redis holds the slots."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain

from tests.helpers import PATIENCE, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import AmqpContainer, SmokeSetup, WorkerSpec


pytestmark = pytest.mark.rabbitmq

LEASE = 3.0


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {"bgtask_lease": LEASE, "bgtask_sweep_interval": 0.25}


@pytest.fixture(scope="module")
def smoke_broker(amqp: AmqpContainer) -> AmqpContainer:
    """RabbitMQ."""
    return amqp


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Each test starts its own."""
    return ()


@pytest.fixture
def _two_workers(smoke: SmokeSetup) -> None:
    """Two of different kinds, each with as many places as the limit."""
    smoke.start_worker("prefork", concurrency=5, wait=False)
    smoke.start_worker("threads", pool="threads", concurrency=5)


@pytest.mark.usefixtures("_two_workers")
def test_a_burst_over_rabbitmq_runs_exactly_as_many_as_its_limit(
    smoke: SmokeSetup, key: str
) -> None:
    """A hundred tasks of one key: always five, all once."""
    five = smoke.task("five")

    first = [five.delay(key, HELD) for _ in range(5)]
    results = first + [five.delay(key, 0.05) for _ in range(95)]
    wait_until(lambda: smoke.ledger.running(key) == 5, that="all slots are used")
    smoke.ledger.release(*first)
    for result in results:
        result.get(timeout=PATIENCE)

    assert smoke.ledger.peak(key) == 5
    assert len(smoke.ledger.runs(key=key)) == 100


@pytest.mark.usefixtures("_two_workers")
def test_a_freed_slot_goes_to_the_next_task_over_rabbitmq(
    smoke: SmokeSetup, key: str
) -> None:
    """In the order of submission, and soon."""
    single = smoke.task("single")

    results = [single.delay(key) for _ in range(20)]
    for result in results:
        result.get(timeout=PATIENCE)

    assert smoke.ledger.order(key) == [result.id for result in results]
    assert chain(single.si(key), single.si(key))().get(timeout=PATIENCE) == key


def test_a_task_delivered_again_at_once_does_not_run_before_its_lease_has_ended(
    smoke: SmokeSetup, key: str
) -> None:
    """RabbitMQ gives a dead worker's messages to another within moments."""
    late = smoke.task("late")
    survivor = smoke.start_worker("survivor", pool="threads", idle=True, wait=False)
    leaver = smoke.start_worker("leaver", concurrency=1)
    survivor.ready()
    first = late.delay(key, HELD)
    wait_until(lambda: smoke.ledger.starts(first.id), that="it runs")
    second = late.delay(key)
    survivor.consume()
    due = smoke.lease_of(first)

    leaver.kill("SIGKILL", reload_container=False)
    smoke.ledger.gone(leaver.hostname())
    smoke.ledger.release(first)

    second.get(timeout=PATIENCE)
    assert smoke.ledger.runs(key=key)[1].started >= due
    assert smoke.ledger.peak(key) == 1
    assert smoke.ledger.overlaps(first.id) == 1
