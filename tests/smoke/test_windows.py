"""Every window between two steps, with the process killed right there."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from celery.exceptions import WorkerLostError

from tests.helpers import PATIENCE, value_of, wait_until
from tests.smoke.endings import wait_for_start
from tests.smoke.fault_tasks import MODULE, arm, has_struck
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, WorkerSpec


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {
        "bgtask_lease": 3.0,
        "bgtask_publish_grace": 1.0,
        "bgtask_sweep_interval": 0.25,
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Processes that can be killed, one by one."""
    return (WorkerSpec("prefork", 3, tasks=MODULE),)


@pytest.mark.parametrize(
    ("window", "starts"),
    [
        ("arrival and acceptance", 0),
        ("acceptance and body", 0),
        ("release and result", 1),
    ],
)
def test_a_process_that_dies_around_its_body_gives_the_slot_on(
    smoke: SmokeSetup, key: str, window: str, starts: int
) -> None:
    """The task has failed, as of any process that dies; it does not run later."""
    single, task_id = smoke.task("single"), str(uuid.uuid4())
    arm(smoke, window, task_id)
    first = single.apply_async((key,), task_id=task_id)

    with pytest.raises(WorkerLostError):
        first.get(timeout=PATIENCE)

    assert has_struck(smoke, window)
    assert single.delay(key).get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(first.id) == starts


def test_a_process_that_dies_before_it_publishes_is_replaced(
    smoke: SmokeSetup, key: str
) -> None:
    """Its slot has gone to the next one already, which a sweep publishes."""
    single = smoke.task("single")
    first = single.delay(key, seconds=HELD)
    second = single.delay(key)
    wait_for_start(smoke, first.id)
    arm(smoke, "release and publishing", first.id)

    smoke.ledger.release(first)

    with pytest.raises(WorkerLostError):
        first.get(timeout=PATIENCE)
    assert has_struck(smoke, "release and publishing")
    assert second.get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(second.id) == 1


def test_a_process_that_dies_before_it_confirms_starts_nothing_twice(
    smoke: SmokeSetup, key: str
) -> None:
    """The next one is published by it, and by a sweep."""
    single = smoke.task("single")
    first = single.delay(key, seconds=HELD)
    second = single.delay(key)
    wait_for_start(smoke, first.id)
    arm(smoke, "publishing and confirmation", second.id)

    smoke.ledger.release(first)

    with pytest.raises(WorkerLostError):
        first.get(timeout=PATIENCE)
    assert has_struck(smoke, "publishing and confirmation")
    assert second.get(timeout=PATIENCE) == key
    assert single.delay(key).get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(second.id) == 1


def test_a_process_that_dies_before_it_settles_keeps_its_result(
    smoke: SmokeSetup, key: str
) -> None:
    """The result is stored: that nobody has said so changes nothing."""
    single, task_id = smoke.task("single"), str(uuid.uuid4())
    arm(smoke, "result and settlement", task_id)

    first = single.apply_async((key,), task_id=task_id)

    assert value_of(first) == key
    wait_until(
        lambda: has_struck(smoke, "result and settlement"), that="its process is killed"
    )
    assert single.delay(key).get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(first.id) == 1


def test_a_process_that_dies_when_it_has_parked_what_has_arrived(
    smoke: SmokeSetup, key: str
) -> None:
    """Celery has told that it failed: it must not run when its turn comes."""
    single, task_id = smoke.task("single"), str(uuid.uuid4())
    first = single.delay(key, seconds=HELD)
    wait_for_start(smoke, first.id)
    arm(smoke, "parking and ack", task_id)

    second = smoke.app.send_task(single.name, (key,), task_id=task_id)

    with pytest.raises(WorkerLostError):
        second.get(timeout=PATIENCE)
    assert has_struck(smoke, "parking and ack")
    wait_until(
        lambda: not single.control.stats(key).waiting, that="it does not wait any more"
    )
    smoke.ledger.release(first)
    assert first.get(timeout=PATIENCE) == key
    assert single.delay(key).get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(second.id) == 0


def test_a_client_that_dies_before_it_publishes_costs_a_dispatch_lease(
    smoke: SmokeSetup, key: str, client_process: Any
) -> None:
    """Its task has no message: who waits for the slot gets it then."""
    code = f"""
import os, signal
from kombu import Producer
app.conf.bgtask_dispatch_lease = 4
Producer.publish = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
app.tasks["{smoke.task("single").name}"].delay("{key}")
"""
    dead = client_process(code)
    dead.wait(PATIENCE)
    single = smoke.task("single")
    wait_until(lambda: single.control.stats(key).dispatched == 1, that="it has a slot")

    assert single.delay(key).get(timeout=2 * PATIENCE) == key
    [lapsed] = lapsed_of(smoke)
    smoke.store.delete(lapsed)  # it would be kept for a day


def lapsed_of(smoke: SmokeSetup) -> list[str]:
    """The records of tasks whose message has never come."""
    pattern = "{" + smoke.prefix.replace("[", "\\[") + "*}:task:*"
    return [
        name
        for name in smoke.store.scan_iter(pattern)
        if smoke.store.hget(name, "state") == "lapsed"
    ]
