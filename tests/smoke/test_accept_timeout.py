"""A task that no worker starts in time ends, is told of once, and never runs."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TimeoutError  # noqa: A004 - Celery's

from celery_bgtask import AcceptTimeout, ImproperlyConfigured, bgtask
from celery_bgtask.cli import sweep_all
from celery_bgtask.results.result import BgResult
from tests.helpers import PATIENCE, let_pass, our_keys, part_of, wait_until
from tests.smoke.deadline_tasks import MODULE
from tests.smoke.deadlines import (
    CONF,
    error_told,
    errors_told,
    nobody,
    redis_only,
    started_in_time,
    submit,
    task_of,
    told,
    wait_for_start,
    wait_for_state,
)
from tests.smoke.ledger import HELD
from tests.smoke.nodes import ServerContainer, SmokeSetup, SmokeWorker, WorkerSpec


#: Seconds in which a task is started for sure, by a worker that has yet to boot.
AMPLE = 120.0

WORKER = WorkerSpec("prefork", 1, tasks=MODULE, conf={"worker_prefetch_multiplier": 4})


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Sweeps that come soon."""
    return CONF


@pytest.fixture(scope="module")
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One process, that fetches four messages ahead."""
    return getattr(request, "param", (WORKER,))


@pytest.fixture(
    scope="module",
    params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)],
)
def smoke_broker(
    request: pytest.FixtureRequest, smoke_store: ServerContainer
) -> ServerContainer:
    """What waits for a worker waits here."""
    if request.param == "redis":
        return smoke_store
    amqp: ServerContainer = request.getfixturevalue("amqp")
    return amqp


@pytest.fixture
def worker(smoke: SmokeSetup) -> SmokeWorker:
    """The module's worker."""
    (worker,) = smoke.workers
    return worker


@pytest.fixture
def busy(smoke: SmokeSetup, key: str) -> Any:
    """What the worker's only process works at, until it is released."""
    busy = submit(smoke, "job", f"{key}-busy", seconds=HELD)
    wait_for_start(smoke, busy)
    return busy


@nobody
def test_without_any_worker_the_waiting_caller_is_told_in_time(
    alone: SmokeSetup, key: str
) -> None:
    """Not before; the state is FAILURE, and the place is free."""
    prompt = task_of(alone.app, "prompt")
    begun = time.monotonic()
    result = prompt.delay(key)

    with pytest.raises(AcceptTimeout) as caught:
        result.get(timeout=PATIENCE)

    assert time.monotonic() - begun > 0.9
    error = caught.value
    assert (error.task_id, error.timeout, error.waited_for) == (result.id, 1, "worker")
    assert result.state == "FAILURE"
    assert result.phase == "ended"
    stats = prompt.control.stats(key)
    assert (stats.running, stats.dispatched, stats.waiting) == (0, 0, 0)


@nobody
def test_a_worker_that_starts_later_concludes_the_task_and_never_runs_it(
    alone: SmokeSetup, key: str
) -> None:
    """Its message is still with the broker; its errback is still to be called."""
    prompt = task_of(alone.app, "prompt")
    doomed = prompt.apply_async((key,), link_error=told(alone))
    body = task_of(alone.app, "follow").s(key=f"{key}-body")
    member = prompt.si(f"{key}-member")
    collected = chord([member, member.clone(args=(f"{key}-2",))], body)()
    with pytest.raises(AcceptTimeout):
        doomed.get(timeout=PATIENCE)
    assert not errors_told(alone, doomed), "told in the client"

    worker = alone.start_worker("later", pool="prefork", concurrency=1, tasks=MODULE)
    after = prompt.apply_async((key,), accept_timeout=AMPLE)

    after.get(timeout=PATIENCE)
    wait_for_state(collected, "FAILURE")
    assert isinstance(collected.result, ChordError)
    assert error_told(alone, doomed) == {"error": "AcceptTimeout", "pid": worker.pid}
    assert alone.ledger.order(key) == [after.id]
    assert not alone.ledger.runs(key=f"{key}-member")
    assert not alone.ledger.runs(key=f"{key}-body")
    assert len(errors_told(alone, doomed)) == 1


@nobody
@redis_only
def test_a_parked_task_has_waited_for_a_slot(alone: SmokeSetup, key: str) -> None:
    """The time that it is parked counts."""
    holder = task_of(alone.app, "prompt").apply_async((key,), accept_timeout=None)
    parked = task_of(alone.app, "prompt").delay(key)

    with pytest.raises(AcceptTimeout) as caught:
        parked.get(timeout=PATIENCE)

    assert caught.value.waited_for == "slot"
    assert holder.phase == "dispatched"
    assert task_of(alone.app, "prompt").control.stats(key).waiting == 0


@nobody
def test_the_slot_of_a_task_in_vain_goes_to_the_next(
    alone: SmokeSetup, key: str
) -> None:
    """Who decides publishes the next task of the key, without any worker."""
    job = task_of(alone.app, "job")
    first = job.apply_async((key,), accept_timeout=0.5)
    second = job.apply_async((key,), accept_timeout=AMPLE)
    assert second.phase == "waiting"

    with pytest.raises(AcceptTimeout):
        first.get(timeout=PATIENCE)

    assert second.phase == "dispatched"
    alone.start_worker("later", pool="threads", concurrency=1, tasks=MODULE)
    second.get(timeout=PATIENCE)
    assert alone.ledger.order(key) == [second.id]


@nobody
@redis_only
@pytest.mark.parametrize("typed", [True, False], ids=["BgResult", "AsyncResult"])
def test_who_has_only_the_id_keeps_the_deadline_too(
    alone: SmokeSetup, key: str, typed: bool
) -> None:
    """Of a task that was submitted elsewhere."""
    prompt = task_of(alone.app, "prompt")
    task_id = prompt.delay(key).id
    result = BgResult(task_id, app=alone.app) if typed else prompt.AsyncResult(task_id)

    with pytest.raises(AcceptTimeout):
        result.get(timeout=PATIENCE)


@nobody
@redis_only
def test_an_operators_sweep_ends_it_where_nobody_waits_and_no_worker_is(
    alone: SmokeSetup, key: str
) -> None:
    """``celery bgtask sweep``: the result is stored; the errback is a worker's."""
    begun = time.monotonic()
    doomed = submit(alone, "prompt", key, link_error=told(alone))

    wait_until(lambda: sweep_all(alone.app)["ended"], that="it is ended")

    assert time.monotonic() - begun > 0.9
    assert doomed.state == "FAILURE"
    assert isinstance(doomed.result, AcceptTimeout)
    assert not errors_told(alone, doomed)
    worker = alone.start_worker("later", pool="threads", concurrency=1, tasks=MODULE)
    assert error_told(alone, doomed)["pid"] == worker.pid


@nobody
@redis_only
def test_all_who_wait_are_told(alone: SmokeSetup, key: str) -> None:
    """One of them decides; none waits in vain."""
    result = task_of(alone.app, "prompt").delay(key)

    def wait(_: int) -> BaseException | None:
        mine = BgResult(result.id, app=alone.app)
        mine.get(timeout=PATIENCE, propagate=False)
        return mine.result

    with ThreadPoolExecutor(4) as pool:
        errors = list(pool.map(wait, range(4)))

    assert [type(error) for error in errors] == [AcceptTimeout] * 4


@nobody
@redis_only
def test_who_waits_for_a_chain_keeps_the_deadlines_of_its_tasks(
    alone: SmokeSetup, key: str
) -> None:
    """It waits for the last of them, and the first one ends in time."""
    result = chain(
        task_of(alone.app, "prompt").si(f"{key}-first"),
        task_of(alone.app, "job").si(key),
    )()

    with pytest.raises(AcceptTimeout):
        result.get(timeout=PATIENCE)


@nobody
@redis_only
def test_a_shorter_wait_ends_first(alone: SmokeSetup, key: str) -> None:
    """Celery's own TimeoutError; the task may start until its time."""
    result = submit(alone, "prompt", key, accept_timeout=8)

    with pytest.raises(TimeoutError):
        result.get(timeout=0.3)
    assert result.state == "PENDING"
    with pytest.raises(AcceptTimeout):
        result.get(timeout=PATIENCE)


@nobody
@redis_only
def test_with_an_eta_the_time_begins_there(alone: SmokeSetup, key: str) -> None:
    """Not at the submission."""
    begun = time.monotonic()
    result = task_of(alone.app, "prompt").apply_async((key,), countdown=1.0)

    with pytest.raises(AcceptTimeout) as caught:
        result.get(timeout=PATIENCE)

    assert time.monotonic() - begun > 1.9
    assert caught.value.timeout == 1


BAD = [
    pytest.param(value, id=repr(value))
    for value in (0, -1, -0.5, math.nan, math.inf, "1", True)
]


@nobody
@redis_only
@pytest.mark.parametrize("option", ["accept_timeout", "finish_timeout"])
@pytest.mark.parametrize("value", BAD)
def test_a_call_with_a_wrong_time_is_refused(
    alone: SmokeSetup, key: str, option: str, value: Any
) -> None:
    """The error names the option and the value; nothing was submitted."""
    with pytest.raises(ImproperlyConfigured, match=option):
        task_of(alone.app, "job").apply_async((key,), **{option: value})

    left = {part_of(name) for name in our_keys(alone.store, alone.prefix)}
    assert left <= {"swept", "sweeping", "tombstone", "worker"}
    assert not alone.store.llen(alone.conf["task_default_queue"])


@pytest.mark.parametrize("option", ["accept_timeout", "finish_timeout"])
@pytest.mark.parametrize("value", BAD)
def test_a_task_with_a_wrong_time_is_refused(option: str, value: Any) -> None:
    """At its declaration."""
    with pytest.raises(ImproperlyConfigured, match=option):
        bgtask(**{option: value})(lambda: None)


def test_a_busy_worker_that_has_fetched_the_message_never_runs_it(
    smoke: SmokeSetup, key: str, worker: SmokeWorker, busy: Any
) -> None:
    """Fetched is not started; nobody waits: the worker's sweep stores the end."""
    begun = time.monotonic()
    doomed = task_of(smoke.app, "prompt").delay(key)
    wait_until(lambda: worker.reserved() == [doomed.id], that="it is fetched")

    wait_for_state(doomed, "FAILURE")

    assert time.monotonic() - begun > 0.9
    smoke.ledger.release(busy)
    with pytest.raises(AcceptTimeout) as caught:
        doomed.get(timeout=PATIENCE)
    assert caught.value.waited_for == "worker"
    after = task_of(smoke.app, "job").delay(key)
    after.get(timeout=PATIENCE)
    assert smoke.ledger.order(key) == [after.id]


def test_errbacks_chords_and_chains_are_concluded_once_by_a_worker(
    smoke: SmokeSetup, key: str, worker: SmokeWorker, busy: Any
) -> None:
    """Though it is the caller that decides, or all of them at once."""
    prompt, follow = task_of(smoke.app, "prompt"), task_of(smoke.app, "follow")
    doomed = prompt.apply_async((f"{key}-1",), link_error=told(smoke))
    member = prompt.si(f"{key}-2").on_error(told(smoke))
    body = follow.s(key=f"{key}-body").on_error(told(smoke))
    collected: Any = chord([member], body)()
    chained = chain(
        prompt.si(f"{key}-3").on_error(told(smoke)),
        follow.s(key=f"{key}-next"),
    )()

    with pytest.raises(AcceptTimeout):
        doomed.get(timeout=PATIENCE)
    wait_for_state(collected, "FAILURE")
    assert isinstance(collected.result, ChordError)
    with pytest.raises(AcceptTimeout):
        chained.get(timeout=PATIENCE)

    failed = (doomed, collected.parent.results[0], chained.parent, collected)
    for result in failed:
        assert error_told(smoke, result)["pid"] == worker.pid != os.getpid()
    # What waits for the busy process comes after all that could tell it twice.
    after = prompt.apply_async((key,), accept_timeout=AMPLE)
    smoke.ledger.release(busy)
    after.get(timeout=PATIENCE)
    assert [len(errors_told(smoke, result)) for result in failed] == [1] * 4
    for name in ("1", "2", "3", "body", "next"):
        assert not smoke.ledger.runs(key=f"{key}-{name}")


def test_a_task_whose_result_nobody_wants_ends_as_well(
    smoke: SmokeSetup, key: str, busy: Any
) -> None:
    """Its errback is told; no result is stored; it never runs."""
    silent = task_of(smoke.app, "silent")
    doomed = silent.apply_async((key,), link_error=told(smoke))
    without = silent.delay(f"{key}-without")

    assert error_told(smoke, doomed)["error"] == "AcceptTimeout"
    wait_until(
        lambda: "owed" not in map(part_of, our_keys(smoke.store, smoke.prefix)),
        that="all is concluded",
    )
    assert doomed.state == "PENDING"
    assert without.state == "PENDING"
    assert not smoke.ledger.starts(without.id)
    after = silent.apply_async((key,), accept_timeout=AMPLE)
    smoke.ledger.release(busy)
    wait_for_start(smoke, after)
    assert smoke.ledger.order(key) == [after.id]
    assert not smoke.ledger.starts(without.id)


def test_the_next_task_of_the_key_runs(smoke: SmokeSetup, key: str, busy: Any) -> None:
    """A sweep hands the slot on."""
    job = task_of(smoke.app, "job")
    first = job.apply_async((key,), accept_timeout=1)
    second = job.delay(key, value="second")
    wait_for_state(first, "FAILURE")
    smoke.ledger.release(busy)

    assert second.get(timeout=PATIENCE) == "second"
    assert smoke.ledger.order(key) == [second.id]


@redis_only
@pytest.mark.parametrize("timeout", [AMPLE, None])
def test_a_call_may_say_another_time_than_its_task(
    smoke: SmokeSetup, key: str, busy: Any, timeout: float | None
) -> None:
    """A longer one, or none."""
    result = submit(smoke, "prompt", key, value="late", accept_timeout=timeout)

    let_pass(2.0)

    assert not smoke.ledger.starts(result.id)
    smoke.ledger.release(busy)
    assert result.get(timeout=PATIENCE) == "late"


@redis_only
def test_a_task_that_has_started_may_take_its_time(smoke: SmokeSetup, key: str) -> None:
    """The time is for its start."""
    result, begun = started_in_time(
        smoke, lambda: submit(smoke, "prompt", key, seconds=HELD, value="done")
    )

    let_pass(1.8, since=begun)

    smoke.ledger.release(result)
    assert result.get(timeout=PATIENCE) == "done"


def test_retries_are_not_under_it(smoke: SmokeSetup, key: str) -> None:
    """Only the first start is."""
    result, _ = started_in_time(
        smoke, lambda: submit(smoke, "prompt", key, "retry", times=1, pause=1.5)
    )

    assert result.get(timeout=PATIENCE) == "done"
    assert smoke.ledger.starts(result.id) == 2


def test_a_task_with_an_eta_that_starts_in_time_after_it_runs(
    smoke: SmokeSetup, key: str
) -> None:
    """Its time would be over if it had begun at the submission."""
    result, _ = started_in_time(
        smoke, lambda: submit(smoke, "prompt", key, value="due", countdown=1.5)
    )

    assert result.get(timeout=PATIENCE) == "due"
    assert smoke.ledger.starts(result.id) == 1
