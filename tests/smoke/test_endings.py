"""However a task ends, its slot is free: on processes and on threads."""

from __future__ import annotations

from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import VERSION
from celery.exceptions import TaskRevokedError
from celery.states import READY_STATES

from tests.helpers import PATIENCE, wait_until
from tests.smoke.endings import assert_free, wait_for_start
from tests.smoke.hearing import Heard
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, WorkerSpec


#: Whether Celery stores an end of bodies that exit or reject: since 5.7.
STORES_ALL = tuple(VERSION[:2]) >= (5, 7)


@pytest.fixture(scope="module", params=["prefork", "threads"])
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One worker; Celery's endings differ between its pools."""
    return (WorkerSpec(request.param, 3),)


@pytest.fixture
def pool(smoke_workers: tuple[WorkerSpec, ...]) -> str:
    """The pool of the module's worker."""
    return smoke_workers[0].pool


@pytest.mark.parametrize(
    ("how", "state"),
    [
        pytest.param({"how": "succeed"}, "SUCCESS", id="success"),
        pytest.param({"how": "fail"}, "FAILURE", id="exception"),
        pytest.param({"how": "retry", "countdown": 0}, "SUCCESS", id="retry"),
        pytest.param({"how": "retry", "countdown": 0.5}, "SUCCESS", id="retry-later"),
    ],
)
@pytest.mark.parametrize("task", ["ending", "late_ending"])
def test_a_task_that_returns_raises_or_retries_frees_its_slot(
    smoke: SmokeSetup, key: str, task: str, how: dict[str, Any], state: str
) -> None:
    """Acknowledged early or late."""
    result = smoke.task(task).apply_async((key,), how)

    result.get(timeout=PATIENCE, propagate=False)

    assert result.state == state
    assert smoke.ledger.starts(result.id) == (3 if how["how"] == "retry" else 1)
    assert_free(smoke, key)


def test_a_retry_without_delay_keeps_its_place(smoke: SmokeSetup, key: str) -> None:
    """What waits behind it starts after its last attempt."""
    ending = smoke.task("ending")

    first = ending.delay(key, "retry", countdown=0)
    second = ending.delay(key, "succeed")

    assert second.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.order(key) == [first.id] * 3 + [second.id]
    assert_free(smoke, key)


def test_a_retry_with_delay_gives_its_place_away(smoke: SmokeSetup, key: str) -> None:
    """What waits behind it runs meanwhile; the retry is never refused."""
    ending = smoke.task("ending")

    first = ending.delay(key, "retry", countdown=1, seconds=HELD)
    second = ending.delay(key, "succeed")
    smoke.ledger.release(first)

    assert second.get(timeout=PATIENCE) == "done"
    assert first.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.order(key)[:2] == [first.id, second.id]
    assert smoke.ledger.starts(first.id) == 3
    assert_free(smoke, key)


@pytest.mark.parametrize("how", ["ignore", "reject", "exit"])
@pytest.mark.parametrize("task", ["ending", "late_ending"])
def test_a_task_without_a_result_frees_its_slot(
    smoke: SmokeSetup, key: str, task: str, how: str, pool: str
) -> None:
    """Celery runs few hooks for these, and stores a state for some only."""
    result = smoke.task(task).delay(key, how)

    wait_for_start(smoke, result.id)
    if how == "exit" and pool == "prefork":
        # It takes its process along, and with it what Celery may have given to
        # the process in its last moment: seen with Celery 5.7 alone as well.
        (run,) = smoke.ledger.runs(task_id=result.id)
        children = smoke.workers[0].children
        wait_until(lambda: run.pid not in children(), that="it is gone")

    assert_free(smoke, key)
    assert smoke.ledger.starts(result.id) == 1


@pytest.mark.parametrize("task", ["ending", "late_ending"])
def test_a_body_that_exits_is_told_of_as_it_is_stored(
    smoke: SmokeSetup, key: str, task: str, pool: str
) -> None:
    """It has raised ``SystemExit``; Celery stores what became of the process.

    Up to 5.6 it stores nothing of it, and in a thread none does.
    """
    result = smoke.task(task).delay(key, "exit")
    heard = Heard(result)

    end = heard.end

    assert (end.state, end.error) == ("FAILURE", "WorkerLostError")
    assert end.text == "Worker exited prematurely: exitcode 3."
    if pool == "prefork" and STORES_ALL:
        stored = wait_until(
            lambda: result.ready() and result.result, that="it is known"
        )
        assert isinstance(stored, WorkerLostError)
        assert str(stored).startswith("Worker exited prematurely: ")
    assert_free(smoke, key)


def test_a_body_that_rejects_its_message_is_told_of_as_rejected(
    smoke: SmokeSetup, key: str
) -> None:
    """Celery 5.7 stores a failure; before, the state stays what it was."""
    result = smoke.task("ending").delay(key, "reject")

    assert Heard(result).end.state == "REJECTED"

    if STORES_ALL:
        wait_until(lambda: result.state == "FAILURE", that="it is stored")
    else:
        assert result.state not in READY_STATES
    assert_free(smoke, key)


def test_a_task_that_rejects_its_message_once_runs_again_in_its_place(
    smoke: SmokeSetup, key: str
) -> None:
    """The broker gives the message back; the slot was kept for it."""
    late = smoke.task("late_ending")

    first = late.delay(key, "requeue")
    second = late.delay(key, "succeed")

    assert first.get(timeout=PATIENCE) == "done"
    assert second.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.order(key) == [first.id, first.id, second.id]
    assert smoke.ledger.peak(key) == 1


def test_a_task_replaced_by_another_of_its_key_needs_no_second_slot(
    smoke: SmokeSetup, key: str
) -> None:
    """Its replacement has its id and its slot."""
    result = smoke.task("ending").delay(key, "replace", by=key)

    assert result.get(timeout=PATIENCE) == "done"

    assert smoke.ledger.starts(result.id) == 2
    assert_free(smoke, key)


def test_a_task_replaced_by_one_of_another_key_frees_its_own(
    smoke: SmokeSetup, key: str
) -> None:
    """The replacement holds a slot of its own key."""
    result = smoke.task("ending").delay(key, "replace", by=f"{key}-other")

    assert result.get(timeout=PATIENCE) == "done"

    assert_free(smoke, key)
    assert_free(smoke, f"{key}-other")


def test_a_task_revoked_while_it_waits_never_starts(
    smoke: SmokeSetup, key: str
) -> None:
    """A worker that heard of it ends it when its turn comes; the next one runs."""
    ending = smoke.task("ending")
    holder = ending.delay(key, "succeed", seconds=HELD)
    revoked = ending.delay(key, "succeed")
    last = ending.delay(key, "succeed")

    (worker,) = smoke.workers
    assert smoke.app.control.revoke(
        revoked.id, [worker.hostname()], reply=True, timeout=PATIENCE
    )
    smoke.ledger.release(holder)

    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=PATIENCE)
    assert holder.get(timeout=PATIENCE) == last.get(timeout=PATIENCE) == "done"
    assert not smoke.ledger.starts(revoked.id)
    assert_free(smoke, key)


def test_a_task_that_expires_while_it_waits_never_starts(
    smoke: SmokeSetup, key: str
) -> None:
    """It is revoked as in Celery, and the next one runs."""
    ending = smoke.task("ending")
    holder = ending.delay(key, "succeed", seconds=HELD)
    expired = ending.apply_async((key, "succeed"), expires=0.5)
    last = ending.delay(key, "succeed")

    with pytest.raises(TaskRevokedError):
        expired.get(timeout=PATIENCE)
    smoke.ledger.release(holder)
    assert holder.get(timeout=PATIENCE) == last.get(timeout=PATIENCE) == "done"
    assert not smoke.ledger.starts(expired.id)
    assert_free(smoke, key)


def test_a_task_with_a_countdown_takes_its_slot_when_it_is_due(
    smoke: SmokeSetup, key: str
) -> None:
    """Others of its key run meanwhile."""
    ending = smoke.task("ending")

    later = ending.apply_async((key, "succeed"), countdown=8)
    sooner = ending.delay(key, "succeed")

    assert sooner.get(timeout=PATIENCE) == later.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.order(key) == [sooner.id, later.id]
    assert_free(smoke, key)
