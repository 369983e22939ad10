"""Without its store a worker waits for a time, and a client is told."""

from __future__ import annotations

import time
from typing import Any

import pytest

from celery_bgtask import StoreUnavailable
from celery_bgtask.testing import EmbeddedServer
from tests.helpers import PATIENCE, value_of, wait_until
from tests.smoke.nodes import ServerContainer, SmokeSetup, WorkerSpec, held


# redis-py leaves a connection that its server has closed to the collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """A worker and a client that do not wait for long."""
    return {
        "bgtask_store_wait": 1.0,
        "task_publish_retry_policy": {"max_retries": 1, "interval_start": 0.1},
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One with two places."""
    return (WorkerSpec("prefork", 2),)


@pytest.fixture(scope="module")
def smoke_store(store: EmbeddedServer) -> ServerContainer:
    """The server that goes away."""
    return ServerContainer(store)


@pytest.fixture(
    scope="module",
    params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)],
)
def smoke_broker(
    request: pytest.FixtureRequest, server: EmbeddedServer, redis_url: str
) -> ServerContainer:
    """A broker that stays."""
    if request.param == "redis":
        return ServerContainer(server, url=redis_url)
    amqp: ServerContainer = request.getfixturevalue("amqp")
    return amqp


def test_a_task_that_cannot_be_accepted_goes_back_and_others_go_on(
    smoke: SmokeSetup, key: str, store: EmbeddedServer
) -> None:
    """The worker waits for a time, not for ever; afterwards the task runs."""
    single, unlimited = smoke.task("single"), smoke.task("unlimited")
    with held(*smoke.workers):
        limited = [single.delay(f"{key}-{number}") for number in range(6)]
        store.stop()

    unlimited.delay(f"{key}-unlimited")
    wait_until(lambda: smoke.ledger.runs(key=f"{key}-unlimited"), that="it has run")
    assert not smoke.ledger.runs(key=f"{key}-0")
    store.start()

    for result in limited:
        value_of(result)
        assert smoke.ledger.starts(result.id) == 1


def test_a_client_is_told_that_the_store_is_away(
    smoke: SmokeSetup, key: str, store: EmbeddedServer
) -> None:
    """Soon, and nothing was sent; when the store is back all is as before."""
    single = smoke.task("single")
    single.delay(key).get(timeout=PATIENCE)
    store.stop()

    try:
        begun = time.monotonic()
        with pytest.raises(StoreUnavailable):
            single.delay(key)
        assert time.monotonic() - begun < PATIENCE
    finally:
        store.start()

    assert value_of(single.delay(key)) == key
    assert len(smoke.ledger.runs(key=key)) == 2
