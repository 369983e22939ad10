"""Retries: states, counts and results as with plain tasks; never refused."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_bgtask import LimitReached
from tests.compat.conftest import PATIENCE, Compared, ending_of, value_of
from tests.compat.tasks import MODULE
from tests.helpers import wait_until
from tests.smoke.nodes import WorkerSpec


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Results tell how often their task was retried."""
    return {"result_extended": True}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One process, and more for what runs beside a retry.

    With more of them Celery may store the RETRY of a plain task's attempt after the
    end of the next one: it publishes the retry first.
    """
    return (
        WorkerSpec("prefork", 1, tasks=MODULE),
        WorkerSpec("threads", 3, tasks=MODULE, options=("-Q", "more")),
    )


def noted(both: Compared, result: AsyncResult, *, count: int) -> list[str]:
    """What the attempts of a task have noted, once it has ended."""
    return both.notes(str(result.id), count=count)


@pytest.mark.parametrize("countdown", [0.0, 0.3])
def test_a_retry_counts_as_with_celery(both: Compared, countdown: float) -> None:
    """``self.retry``: the result, and ``request.retries`` of each attempt."""

    def see(result: Any) -> Any:
        return value_of(result), noted(both, result, count=3)

    assert both(lambda t: t.retry.delay(2, countdown), see) == (2, ["0", "1", "2"])


def test_a_result_tells_of_the_retries(both: Compared) -> None:
    """What ``result_extended`` stores with it."""

    def see(result: Any) -> Any:
        value_of(result)
        return result.retries, result.state

    assert both(lambda t: t.retry.delay(2), see) == (2, "SUCCESS")


def test_a_task_that_waits_for_its_retry_is_in_state_retry(both: Compared) -> None:
    """With the error that it gave as the reason, as Celery stores it."""

    def see(result: Any) -> Any:
        wait_until(
            lambda: result.state not in {"PENDING", "STARTED"},
            within=PATIENCE,
            that="it has ended its first attempt",
        )
        seen = result.state, str(result.result)
        result.revoke()
        return seen

    state, reason = both(lambda t: t.retry.delay(1, 60.0), see)

    assert state == "RETRY"
    assert reason == "None"


def test_a_task_out_of_retries_fails_as_with_celery(both: Compared) -> None:
    """``MaxRetriesExceededError``, which names the call."""

    def see(result: Any) -> Any:
        state, kind, text = ending_of(result)
        return state, kind, text.replace(result.id, "id").partition(".")[2]

    state, kind, _ = both(lambda t: t.retry.delay(9), see)

    assert (state, kind) == ("FAILURE", "MaxRetriesExceededError")


def test_a_task_out_of_retries_fails_with_its_own_error(both: Compared) -> None:
    """``retry(exc=...)``: after one retry it is that."""

    def see(result: Any) -> Any:
        return ending_of(result), noted(both, result, count=2)

    assert both(lambda t: t.retry_with_cause.delay(), see) == (
        ("FAILURE", "KeyError", "'the cause'"),
        ["0", "1"],
    )


AUTORETRIES = {
    "until-it-works": ("autoretry", "value", 2, ("SUCCESS", "int", "2"), 3),
    "too-often": ("autoretry", "value", 9, ("FAILURE", "ValueError", "value"), 3),
    "operational-error": (
        "autoretry",
        "operational",
        9,
        ("FAILURE", "OperationalError", "operational"),
        3,
    ),
    "other-error": ("autoretry", "key", 9, ("FAILURE", "KeyError", "'key'"), 1),
    "excepted": ("autoretry_but", "key", 9, ("FAILURE", "KeyError", "'key'"), 1),
    "throws": ("throwing", "value", 9, ("FAILURE", "ValueError", "value"), 1),
}


@pytest.mark.parametrize("name", AUTORETRIES)
def test_autoretry_is_as_with_celery(both: Compared, name: str) -> None:
    """Errors that are retried, and those that are not; how often; how it ends."""
    task, error, until, ending, attempts = AUTORETRIES[name]

    def see(result: Any) -> Any:
        return ending_of(result), len(noted(both, result, count=attempts))

    seen = both(lambda t: getattr(t, task).delay(error, until=until), see)

    assert seen == (ending, attempts)


def test_a_backoff_grows_as_with_celery(both: Compared) -> None:
    """One second, then two: not sooner, and the slot is free meanwhile."""

    def see(result: Any) -> Any:
        ending = ending_of(result)
        notes = [note.split() for note in noted(both, result, count=3)]
        times = [float(at) for _, at in notes]
        pauses = [then - now for now, then in itertools.pairwise(times)]
        assert pauses[0] >= 1
        assert pauses[1] >= 2
        return ending, [attempt for attempt, _ in notes]

    def submit(t: SimpleNamespace) -> Any:
        return t.backoff.delay("value", until=2)

    assert both(submit, see) == (("SUCCESS", "int", "2"), ["0", "1", "2"])


def test_a_jitter_is_as_with_celery(both: Compared) -> None:
    """Somewhere between nothing and the backoff; the count is what it is."""

    def see(result: Any) -> Any:
        return ending_of(result), len(noted(both, result, count=2))

    assert both(lambda t: t.jitter.delay("value", until=1), see) == (
        ("SUCCESS", "int", "1"),
        2,
    )


def test_a_retry_may_change_its_arguments(both: Compared) -> None:
    """``retry(args=, kwargs=)``."""
    assert both(lambda t: t.retry_elsewise.delay(1)) == 20


def test_a_retry_may_change_its_key(both: Compared, key: str) -> None:
    """Its next attempt holds a slot of the other key, and both are free at the end."""
    assert both(lambda t: t.retry_as.delay(key, f"{key}-other")) == f"{key}-other"

    control = both.limited.retry_as.control
    for name in (key, f"{key}-other"):
        stats = control.stats(name)
        assert (stats.running, stats.dispatched, stats.waiting) == (0, 0, 0)


def test_a_body_may_go_on_after_it_has_asked_for_a_retry(both: Compared) -> None:
    """``retry(throw=False)``: both of its runs happen; the first success stays."""

    def see(result: Any) -> Any:
        runs = noted(both, result, count=2)
        return sorted(runs), value_of(result) in {"first", "second"}

    assert both(lambda t: t.retry_and_go_on.delay(), see) == (["0", "1"], True)


def test_a_retry_exception_by_hand_leaves_no_slot_taken(both: Compared) -> None:
    """Celery stores RETRY, and nothing comes again."""

    def see(result: Any) -> Any:
        wait_until(
            lambda: result.state != "PENDING", within=PATIENCE, that="it has ended"
        )
        return result.state

    assert both(lambda t: t.retry_by_hand.delay(), see) == "RETRY"
    assert both.limited.retry_by_hand.delay().id  # not refused: this one waits


def test_a_retry_with_countdown_is_never_refused(both: Compared, key: str) -> None:
    """Its slot goes to another meanwhile; then it waits, though others are refused."""
    task = both.limited.strict_retry
    first = task.apply_async((0.3,), {"until": key}, queue="more")
    wait_until(lambda: first.state == "RETRY", within=PATIENCE, that="it waits")
    second = task.apply_async((0.3,), {"until": key, "retries": 0}, queue="more")
    wait_until(lambda: task.control.stats().waiting, within=PATIENCE, that="it is back")
    with pytest.raises(LimitReached):
        task.delay(0.0)

    both.setup.ledger.client.rpush(f"ledger:go:{key}", "go", "go")

    assert value_of(second) == 0
    assert value_of(first) == 1
    assert both.setup.ledger.peak(task.name) == 1


def test_a_retried_task_whose_result_nobody_wants(both: Compared, key: str) -> None:
    """``ignore_result`` of a call; a retry has forgotten it up to Celery 5.6."""

    def submit(t: SimpleNamespace) -> Any:
        return t.retry.apply_async((1,), ignore_result=True)

    def see(result: Any) -> Any:
        attempts = noted(both, result, count=2)
        value_of(both.kinds["plain"].echo.delay())  # by the same process, later
        return attempts, result.state

    attempts, _ = both(submit, see)

    assert attempts == ["0", "1"]


def test_a_retry_keeps_what_the_call_said(both: Compared) -> None:
    """Priority, headers, expiry and stamps of the call go on to its retries."""

    def submit(t: SimpleNamespace) -> Any:
        return t.retried_facts.apply_async(
            (1, 2), {"z": 3}, priority=7, expires=300, headers={"x-tenant": "blue"}
        )

    facts: Any = both(submit)

    assert facts["retries"] == 1
    assert facts["expires"]
    assert facts["headers"] == ["x-tenant"]


@pytest.mark.parametrize("how", ["link", "link_error"])
def test_what_hangs_on_a_task_is_called_once(
    both: Compared, key: str, how: str
) -> None:
    """After the last attempt, not after each."""

    def submit(t: SimpleNamespace) -> Any:
        name = f"{key}-{t.kind}"
        if how == "link":
            t.retry.apply_async((2,), link=t.remember.s(name=name))
        else:
            t.retry_with_cause.apply_async(link_error=t.sent_errback.s(name=name))
        return name

    def see(name: str) -> Any:
        first = both.notes(name)
        # What comes after it in the same queue has run: so would a second one have.
        for t in both.kinds.values():
            value_of(t.echo.delay())
        return len(first), len(both.notes(name))

    assert both(submit, see) == (1, 1)
