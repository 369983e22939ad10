"""A broker that delivers again does not make a task run beside itself."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import PATIENCE, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import KOMBU, SmokeSetup, WorkerSpec


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Redis gives a message to another worker after two seconds."""
    return {
        "broker_transport_options": {
            "visibility_timeout": 2,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        }
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Two, each with room for what is delivered again."""
    return WorkerSpec("prefork", 4), WorkerSpec("threads", 4)


def test_a_task_longer_than_the_visibility_timeout_runs_once(
    smoke: SmokeSetup, key: str
) -> None:
    """Its copies are kept beside it and dropped when it has ended."""
    late = smoke.task("late")
    first = late.delay(key, HELD)
    second = late.delay(key, 0.1)
    others = [late.delay(f"{key}-{number}", HELD) for number in range(3)]
    held = (first, *others)
    wait_until(
        lambda: all(smoke.received(result) > (KOMBU >= (5, 7)) for result in held),
        that="all are delivered again",
    )
    smoke.ledger.release(*held)

    for result in (first, second, *others):
        result.get(timeout=PATIENCE)

    wait_until(
        lambda: not smoke.ledger.client.llen(smoke.conf["task_default_queue"]),
        that="the queue is empty",
    )
    for result in (first, second, *others):
        assert smoke.ledger.starts(result.id) == 1
        assert smoke.ledger.overlaps(result.id) == 1
    assert smoke.ledger.peak(key) == 1


def test_a_task_with_a_countdown_longer_than_the_visibility_timeout_runs_once(
    smoke: SmokeSetup, key: str
) -> None:
    """Celery alone runs all copies at the same instant."""
    single = smoke.task("single")

    result = single.apply_async((key, 0.5), countdown=5)

    assert result.get(timeout=PATIENCE) == key
    wait_until(
        lambda: not smoke.ledger.client.llen(smoke.conf["task_default_queue"]),
        that="the queue is empty",
    )
    assert smoke.ledger.starts(result.id) == 1
