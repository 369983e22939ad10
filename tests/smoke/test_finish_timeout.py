"""A task that has not ended in time has ended: for all but perhaps its own body."""

from __future__ import annotations

import functools
import math
import time
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from celery_bgtask import FinishTimeout
from celery_bgtask.results.result import BgResult
from tests.helpers import PATIENCE, wait_until
from tests.smoke.deadline_tasks import MODULE
from tests.smoke.deadlines import (
    CONF,
    TRIES,
    error_told,
    nobody,
    on,
    started_in_time,
    submit,
    task_of,
    told,
    wait_for_start,
    wait_for_state,
)
from tests.smoke.ledger import HELD, Run
from tests.smoke.nodes import SmokeSetup, WorkerSpec


#: Seconds after the deadline in which a pool of processes stops a body for good.
HARD = 5.0

POOLS = {"prefork": 2, "threads": 2, "gevent": 2, "solo": 1}
WORKERS = tuple(
    WorkerSpec(pool, places, tasks=MODULE, options=("-Q", pool))
    for pool, places in POOLS.items()
)


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Sweeps that come soon, and workers that fetch ahead."""
    return {**CONF, "worker_prefetch_multiplier": 2}


@pytest.fixture(scope="module")
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One of each pool, each with a queue of its own."""
    return getattr(request, "param", WORKERS)


@pytest.fixture
def job(smoke: SmokeSetup, pool: str) -> Any:
    """Submits a task to the worker that has *pool*."""
    return functools.partial(submit, smoke, "job", queue=pool)


@pytest.fixture
def begin(smoke: SmokeSetup, job: Any) -> Any:
    """Submits a task to the same worker until its body has started in its time."""

    def begin(*args: Any, **options: Any) -> tuple[Any, float]:
        return started_in_time(smoke, lambda: job(*args, **options))

    return begin


def only_run(smoke: SmokeSetup, task_id: str) -> Run:
    """The one run of a task."""
    (run,) = smoke.ledger.runs(task_id=task_id)
    return run


def assert_failed_in_time(result: Any, begun: float, timeout: float = 1.0) -> None:
    """The result is a FinishTimeout, not before *timeout* has passed since *begun*."""
    with pytest.raises(FinishTimeout) as caught:
        result.get(timeout=PATIENCE)

    assert time.monotonic() - begun > timeout - 0.1
    assert (caught.value.task_id, caught.value.timeout) == (result.id, timeout)
    assert_failed(result)


def assert_failed(result: Any) -> None:
    """The result is a FinishTimeout, wherever one asks."""
    elsewhere = BgResult(result.id, app=result.app)
    for one in (result, elsewhere):
        assert one.state == "FAILURE"
        assert isinstance(one.result, FinishTimeout)
    assert elsewhere.phase == "ended"


@nobody
def test_without_any_worker_the_waiting_caller_is_told_in_time(
    alone: SmokeSetup, key: str
) -> None:
    """A task that nobody has started has not ended either."""
    begun = time.monotonic()
    result = task_of(alone.app, "job").apply_async((key,), finish_timeout=1)

    assert_failed_in_time(result, begun)


@on("prefork")
def test_a_process_is_stopped_at_the_time(
    smoke: SmokeSetup, key: str, job: Any, begin: Any
) -> None:
    """By a soft time limit, which is told as what it stands for."""
    first, begun = begin(key, seconds=HELD, finish_timeout=1, link_error=told(smoke))
    second = job(key, value="next")

    assert_failed_in_time(first, begun)
    assert second.get(timeout=PATIENCE) == "next"
    assert only_run(smoke, first.id).marks == ["soft"]
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1
    assert error_told(smoke, first)["error"] == "FinishTimeout"
    assert_failed(first)


@on("prefork")
def test_a_body_that_takes_no_notice_is_killed_and_keeps_its_slot_until_then(
    smoke: SmokeSetup, key: str, job: Any, begin: Any
) -> None:
    """Five seconds later; its result is what it was, told once."""
    first, begun = begin(
        key, "swallow", seconds=HELD, finish_timeout=1, link_error=told(smoke)
    )
    second = job(key, value="next")

    assert_failed_in_time(first, begun)
    assert second.get(timeout=PATIENCE) == "next"

    assert time.monotonic() - begun > 1 + HARD - 0.5
    one = only_run(smoke, first.id)
    assert one.marks.count("soft") == 1
    assert one.seen <= only_run(smoke, second.id).started, "they ran at once"
    assert_failed(first)
    assert error_told(smoke, first)["error"] == "FinishTimeout"


@on("prefork")
def test_a_value_that_comes_too_late_changes_nothing(
    smoke: SmokeSetup, key: str, job: Any, begin: Any
) -> None:
    """Nothing is stored of it and nothing started; the next one waits for its end."""
    follow = task_of(smoke.app, "follow")
    first, begun = begin(
        key,
        "swallow",
        seconds=HELD,
        finish_timeout=1,
        link=follow.si(key=f"{key}-next"),
        link_error=told(smoke),
    )
    second = job(key, value="next")

    assert_failed_in_time(first, begun)
    smoke.ledger.release(first)
    assert second.get(timeout=PATIENCE) == "next"

    assert (only_run(smoke, first.id).ended or math.inf) <= only_run(
        smoke, second.id
    ).started
    assert_failed(first)
    assert not smoke.ledger.runs(key=f"{key}-next")
    error_told(smoke, first)


@on("prefork")
@pytest.mark.parametrize("how", ["sleep", "swallow"])
def test_a_message_acknowledged_late_does_not_come_again(
    smoke: SmokeSetup, key: str, pool: str, how: str
) -> None:
    """Neither after the soft limit nor after the hard one."""
    late = functools.partial(submit, smoke, "late", key, queue=pool)
    result, _ = started_in_time(
        smoke, lambda: late(how, seconds=HELD, finish_timeout=1)
    )

    with pytest.raises(FinishTimeout):
        result.get(timeout=PATIENCE)
    after = late()
    after.get(timeout=PATIENCE)

    for one in (result, after):
        assert smoke.ledger.starts(one.id) == 1
    assert_failed(result)


@on("prefork")
def test_a_soft_time_limit_of_the_task_stays_what_it_is(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """It comes long before the deadline."""
    result = job(key, seconds=HELD, soft_time_limit=1, finish_timeout=120)

    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=PATIENCE)


@on("prefork", "threads", "gevent", "solo")
def test_who_ends_in_time_has_its_value(smoke: SmokeSetup, key: str, job: Any) -> None:
    """And its slot is free at once."""
    result = job(key, seconds=0.5, value=42, finish_timeout=120)

    assert result.get(timeout=PATIENCE) == 42
    assert job(key, value="next").get(timeout=PATIENCE) == "next"


@on("prefork", "threads", "gevent", "solo")
def test_a_body_learns_at_its_next_checkpoint_that_its_time_is_over(
    smoke: SmokeSetup, key: str, job: Any, begin: Any, pool: str
) -> None:
    """Where the pool cannot stop it, and where it can."""
    first, begun = begin(key, "check", seconds=HELD, finish_timeout=1)
    second = job(key, value="next")

    assert_failed_in_time(first, begun)
    assert second.get(timeout=PATIENCE) == "next"

    one = only_run(smoke, first.id)
    assert smoke.ledger.peak(key) == 1
    (how,) = (mark.partition(":")[0] for mark in one.marks)
    assert how == "FinishTimeout" or (how, pool) == ("soft", "prefork")
    assert_failed(first)


@on("threads", "gevent", "solo")
def test_a_body_that_cannot_be_stopped_keeps_its_slot_until_it_returns(
    smoke: SmokeSetup, key: str, job: Any, begin: Any
) -> None:
    """Its result has ended long before, and its value is dropped."""
    first, begun = begin(
        key, "swallow", seconds=HELD, finish_timeout=1, link_error=told(smoke)
    )
    second = job(key, value="next")

    assert_failed_in_time(first, begun)
    assert second.phase == "waiting"
    stats = task_of(smoke.app, "job").control.stats(key)
    assert (stats.running, stats.dispatched, stats.waiting) == (1, 0, 1)
    smoke.ledger.release(first)
    assert second.get(timeout=PATIENCE) == "next"

    one = only_run(smoke, first.id)
    assert (one.ended or math.inf) <= only_run(smoke, second.id).started
    assert_failed(first)
    assert error_told(smoke, first)["error"] == "FinishTimeout"


@on("prefork", "threads")
def test_a_task_that_waits_for_its_slot_for_too_long_never_starts(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """Nobody waits for it: a sweep ends it."""
    holder = job(key, seconds=HELD, value="held")
    waiting = job(key, finish_timeout=1)
    last = job(key, value="last")

    wait_for_state(waiting, "FAILURE")

    assert_failed(waiting)
    smoke.ledger.release(holder)
    assert holder.get(timeout=PATIENCE) == "held"
    assert last.get(timeout=PATIENCE) == "last"
    assert smoke.ledger.order(key) == [holder.id, last.id]


@on("prefork", "threads")
def test_a_task_that_a_busy_worker_has_fetched_for_too_long_never_starts(
    smoke: SmokeSetup, key: str, job: Any, pool: str
) -> None:
    """Fetched is not started, and not ended either."""
    holders = [job(f"{key}-{number}", seconds=HELD) for number in range(2)]
    wait_for_start(smoke, *holders)
    begun = time.monotonic()
    fetched = job(key, finish_timeout=1)
    worker = smoke.workers[list(POOLS).index(pool)]
    wait_until(lambda: fetched.id in worker.reserved(), that="it is fetched")

    assert_failed_in_time(fetched, begun)

    smoke.ledger.release(*holders)
    for holder in holders:
        holder.get(timeout=PATIENCE)
    job(key).get(timeout=PATIENCE)
    assert not smoke.ledger.starts(fetched.id)


@on("prefork", "threads")
def test_the_time_goes_on_over_retries(smoke: SmokeSetup, key: str, job: Any) -> None:
    """It is the task's, not an attempt's; a retry that waits for its ETA ends too."""
    for _ in range(TRIES):
        begun = time.monotonic()
        result = job(key, "retry", times=9, pause=0.7, finish_timeout=2)
        assert_failed_in_time(result, begun, timeout=2)
        starts = smoke.ledger.starts(result.id)
        assert starts <= 3
        if starts > 1:
            break  # else the machine has taken the time for itself

    assert starts > 1
    after = job(key, countdown=1)
    after.get(timeout=PATIENCE)
    assert smoke.ledger.starts(result.id) == starts
    assert_failed(result)


@on("prefork")
def test_with_an_eta_the_time_begins_there(
    smoke: SmokeSetup, key: str, begin: Any
) -> None:
    """Not at the submission."""
    result, begun = begin(key, seconds=HELD, countdown=1, finish_timeout=1)

    with pytest.raises(FinishTimeout):
        result.get(timeout=PATIENCE)

    assert time.monotonic() - begun > 1.9
    assert smoke.ledger.starts(result.id) == 1
