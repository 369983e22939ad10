"""Time limits, kills and revokes that end a body: its slot is free when it is gone."""

from __future__ import annotations

import pytest
from celery.exceptions import (
    SoftTimeLimitExceeded,
    TaskRevokedError,
    TimeLimitExceeded,
    WorkerLostError,
)

from tests.helpers import PATIENCE
from tests.smoke.endings import assert_free, wait_for_start
from tests.smoke.nodes import SmokeSetup, WorkerSpec


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Processes: nothing else can be ended."""
    return (WorkerSpec("prefork", 3),)


def test_a_hard_time_limit_frees_the_slot_when_the_process_is_gone(
    smoke: SmokeSetup, key: str
) -> None:
    """Celery reports the failure while ``finally`` still runs: the slot is held."""
    marks: list[str] = []
    for _ in range(5):
        marks += run_into_hard_limit(smoke, key)
        if marks:
            break  # else it was killed before its ``finally`` could begin

    assert marks, "it never came to its end"
    assert_free(smoke, key)


def run_into_hard_limit(smoke: SmokeSetup, key: str) -> list[str]:
    """Let a body run into its limit, and return what it has written at its end.

    Celery asks its process to end and kills it a tenth of a second later.
    """
    ending = smoke.task("ending")
    first = ending.apply_async(
        (key, "stubborn"), {"seconds": 60}, time_limit=1, soft_time_limit=None
    )
    second = ending.delay(key, "succeed")

    with pytest.raises(TimeLimitExceeded):
        first.get(timeout=PATIENCE)
    assert second.get(timeout=PATIENCE) == "done"
    one, other = smoke.ledger.runs(key=key)
    assert (one.task_id, other.task_id) == (first.id, second.id)
    assert one.seen <= other.started, "the next one ran beside it"
    smoke.ledger.clear()
    return one.marks


def test_a_soft_time_limit_is_an_exception_like_others(
    smoke: SmokeSetup, key: str
) -> None:
    """The body may take its time to clean up, in its slot."""
    ending = smoke.task("ending")

    first = ending.apply_async((key, "stubborn"), {"seconds": 60}, soft_time_limit=1)
    second = ending.delay(key, "succeed")

    with pytest.raises(SoftTimeLimitExceeded):
        first.get(timeout=PATIENCE)
    assert second.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.peak(key) == 1
    assert_free(smoke, key)


@pytest.mark.parametrize("how", ["kill", "die"])
def test_a_killed_pool_process_frees_the_slot(
    smoke: SmokeSetup, key: str, how: str
) -> None:
    """Out of memory, or ``os._exit``: no hook ran in the child."""
    ending = smoke.task("ending")

    first = ending.delay(key, how)
    second = ending.delay(key, "succeed")

    with pytest.raises(WorkerLostError):
        first.get(timeout=PATIENCE)
    assert second.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.starts(first.id) == 1
    assert_free(smoke, key)


@pytest.mark.parametrize("signal", ["SIGTERM", "SIGKILL"])
def test_a_terminated_body_keeps_its_slot_until_it_is_gone(
    smoke: SmokeSetup, key: str, signal: str
) -> None:
    """A ``finally`` that takes a second is still running: nobody runs beside it."""
    ending = smoke.task("ending")
    first = ending.delay(key, "stubborn", seconds=60)
    second = ending.delay(key, "succeed")
    wait_for_start(smoke, first.id)

    smoke.app.control.revoke(first.id, terminate=True, signal=signal)

    with pytest.raises(TaskRevokedError):
        first.get(timeout=PATIENCE)
    assert second.get(timeout=PATIENCE) == "done"
    one, other = smoke.ledger.runs(key=key)
    assert len(one.marks) == (50 if signal == "SIGTERM" else 0)
    assert one.seen <= other.started, "the next one ran beside it"
    smoke.ledger.clear()
    assert_free(smoke, key)
