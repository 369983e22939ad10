"""The pools that are neither processes nor threads: gevent and solo."""

from __future__ import annotations

import pytest
from celery import chain

from tests.helpers import PATIENCE, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, WorkerSpec


@pytest.fixture(scope="module", params=["gevent", "solo"])
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One worker."""
    if request.param == "gevent":
        pytest.importorskip("gevent")
    return (WorkerSpec(request.param, 10 if request.param == "gevent" else 1),)


def test_a_burst_stays_within_its_limit(
    smoke: SmokeSetup, key: str, smoke_workers: tuple[WorkerSpec, ...]
) -> None:
    """Forty tasks of one key; gevent uses all five slots, solo can use one."""
    five = smoke.task("five")

    places = 5 if smoke_workers[0].pool == "gevent" else 1
    first = [five.delay(key, HELD) for _ in range(5)]
    results = first + [five.delay(key, 0.05) for _ in range(35)]
    wait_until(lambda: smoke.ledger.running(key) == places, that="all places are used")
    smoke.ledger.release(*first)
    for result in results:
        assert result.get(timeout=PATIENCE) == key

    assert smoke.ledger.peak(key) == places
    assert len(smoke.ledger.runs(key=key)) == 40


def test_a_loop_and_a_chain_need_one_slot(smoke: SmokeSetup, key: str) -> None:
    """The slot is free before the result can be seen or the next step starts."""
    strict = smoke.task("strict")

    for _ in range(20):
        assert strict.delay(key).get(timeout=PATIENCE) == key
    assert chain(strict.si(key), strict.si(key))().get(timeout=PATIENCE) == key

    assert smoke.ledger.peak(key) == 1


@pytest.mark.parametrize("how", ["fail", "ignore", "reject"])
def test_a_task_that_does_not_succeed_frees_its_slot(
    smoke: SmokeSetup, key: str, how: str
) -> None:
    """And the next one runs."""
    ending = smoke.task("ending")

    first = ending.delay(key, how)
    wait_until(lambda: smoke.ledger.starts(first.id), that="it has started")

    assert ending.delay(key, "succeed").get(timeout=PATIENCE) == "done"
    assert smoke.ledger.peak(key) == 1


def test_a_retry_keeps_its_place(smoke: SmokeSetup, key: str) -> None:
    """What waits behind it starts after its last attempt."""
    ending = smoke.task("ending")

    first = ending.delay(key, "retry", countdown=0)
    second = ending.delay(key, "succeed")

    assert second.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.order(key) == [first.id] * 3 + [second.id]
