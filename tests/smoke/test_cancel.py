"""Who cancels a task ends it, wherever it is; what expires ends at its time."""

from __future__ import annotations

import functools
import json
import math
import time
from typing import Any

import pytest
from celery import chain, chord
from celery.exceptions import ChordError, TaskRevokedError

from celery_bgtask import TaskCancelled
from celery_bgtask.results.result import BgResult
from tests.helpers import PATIENCE, let_pass, wait_until
from tests.smoke.deadline_tasks import MODULE
from tests.smoke.deadlines import (
    CONF,
    error_told,
    errors_told,
    nobody,
    on,
    started_in_time,
    submit,
    task_of,
    told,
    wait_for_start,
    wait_for_state,
)
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, WorkerSpec


POOLS = ("prefork", "threads", "gevent")

#: Of each pool one; who answers first when a body is to be stopped is not known.
WORKERS = tuple(
    WorkerSpec(pool, 2, tasks=MODULE, options=("-Q", pool)) for pool in POOLS
)

#: Where a pool makes a difference, these two do.
both = pytest.mark.parametrize("pool", ["prefork", "threads"])


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Sweeps that come soon."""
    return CONF


@pytest.fixture(scope="module")
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One of each pool, each with a queue of its own."""
    return getattr(request, "param", WORKERS)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who cancels waits for a worker's word that a body stops, however late it is."""
    monkeypatch.setattr("celery_bgtask.results.result.STOP_TIMEOUT", PATIENCE)


@pytest.fixture
def job(smoke: SmokeSetup, pool: str) -> Any:
    """Submits a task to the worker that has *pool*, all of it."""
    worker = smoke.workers[POOLS.index(pool)]
    if pool == "prefork":
        # One that was killed is replaced after a while.
        wait_until(lambda: len(worker.children()) == 2, that="the pool is complete")

    return functools.partial(submit, smoke, "job", queue=pool)


def assert_cancelled(result: Any, reason: str | None = None) -> None:
    """The result is a cancellation, wherever one asks."""
    for one in (result, BgResult(result.id, app=result.app)):
        assert one.state == "REVOKED"
        with pytest.raises(TaskCancelled) as caught:
            one.get(timeout=PATIENCE)
        assert (caught.value.task_id, caught.value.reason) == (result.id, reason)
        assert isinstance(caught.value, TaskRevokedError)
        assert one.phase == "ended"


@nobody
def test_a_dispatched_task_ends_at_once_without_any_worker(
    alone: SmokeSetup, key: str
) -> None:
    """Its slot goes to the next; a worker that starts later runs only that."""
    job = task_of(alone.app, "job")
    first = job.delay(key)
    second = job.delay(key, value="next")
    assert (first.phase, second.phase) == ("dispatched", "waiting")

    assert first.cancel("not needed") == ("dispatched", False)

    assert_cancelled(first, "not needed")
    assert second.phase == "dispatched"
    alone.start_worker("later", pool="threads", concurrency=2, tasks=MODULE)
    assert second.get(timeout=PATIENCE) == "next"
    assert alone.ledger.order(key) == [second.id]
    assert_cancelled(first, "not needed")


@nobody
def test_a_waiting_task_ends_at_once_without_any_worker(
    alone: SmokeSetup, key: str
) -> None:
    """The others of its key keep their places."""
    job = task_of(alone.app, "job")
    first, second, third = job.delay(key), job.delay(key), job.delay(key)

    assert second.cancel() == ("waiting", False)

    assert_cancelled(second)
    assert (first.phase, third.phase) == ("dispatched", "waiting")
    assert job.control.stats(key).waiting == 1


@nobody
def test_a_chord_and_a_chain_are_concluded_once_a_worker_appears(
    alone: SmokeSetup, key: str
) -> None:
    """The caller of ``cancel`` runs nothing of what follows."""
    job, follow = task_of(alone.app, "job"), task_of(alone.app, "follow")
    body = follow.s(key=f"{key}-body").on_error(told(alone))
    members = [job.si(f"{key}-{number}") for number in range(2)]
    collected: Any = chord(members, body)()
    chained = chain(job.si(f"{key}-first"), follow.s(key=f"{key}-next"))()
    collected.parent.results[0].cancel("enough")
    chained.parent.cancel("enough")
    assert collected.state == chained.state == "PENDING"

    worker = alone.start_worker("later", pool="prefork", concurrency=2, tasks=MODULE)

    wait_until(lambda: collected.ready() and chained.ready(), that="both have ended")
    assert isinstance(collected.result, ChordError)
    assert_cancelled_chain(chained)
    assert error_told(alone, collected)["pid"] in {worker.pid, *worker.children()}
    assert len(alone.ledger.runs(key=f"{key}-1")) == 1
    for name in ("0", "first", "body", "next"):
        assert not alone.ledger.runs(key=f"{key}-{name}")


def assert_cancelled_chain(chained: Any) -> None:
    """What comes after a cancelled task is revoked too, as in Celery."""
    assert chained.state == "REVOKED"
    assert isinstance(chained.result, TaskCancelled)
    assert chained.result.task_id == chained.parent.id


@nobody
def test_revoke_is_another_name_for_it(alone: SmokeSetup, key: str) -> None:
    """A program that knows Celery only gets the same."""
    result = task_of(alone.app, "job").delay(key)

    result.revoke()

    assert_cancelled(result)
    assert not task_of(alone.app, "job").control.stats(key).dispatched


@nobody
def test_who_has_only_the_id_may_cancel(alone: SmokeSetup, key: str) -> None:
    """From any process that knows the app."""
    result = task_of(alone.app, "job").delay(key)

    cancelled = BgResult(result.id, app=alone.app).cancel("elsewhere")

    assert cancelled == ("dispatched", False)
    assert_cancelled(result, "elsewhere")


@nobody
def test_to_cancel_twice_changes_nothing(alone: SmokeSetup, key: str) -> None:
    """The first reason stays."""
    result = task_of(alone.app, "job").delay(key)

    result.cancel("first")

    assert result.cancel("second") == ("ended", False)
    assert_cancelled(result, "first")


@nobody
def test_the_operator_may_cancel_by_id(alone: SmokeSetup, key: str) -> None:
    """``control.cancel`` does the same."""
    job = task_of(alone.app, "job")
    result = job.delay(key)

    job.control.cancel(result.id)

    assert_cancelled(result)


@nobody
def test_a_task_with_an_eta_ends_at_once(alone: SmokeSetup, key: str) -> None:
    """Its message stays with the broker, or with a worker, and starts nothing."""
    result = task_of(alone.app, "job").apply_async((key,), countdown=1)

    result.cancel("not any more")

    assert_cancelled(result, "not any more")
    alone.start_worker("later", pool="threads", concurrency=2, tasks=MODULE)
    after = task_of(alone.app, "job").apply_async((key,), countdown=1.2)
    after.get(timeout=PATIENCE)
    assert alone.ledger.order(key) == [after.id]


@nobody
def test_an_id_that_nobody_knows_ends_before_it_comes(
    alone: SmokeSetup, key: str
) -> None:
    """It may be on its way: sent by name, or by a program in another language."""
    job = task_of(alone.app, "job")

    assert job.AsyncResult(f"{key}-id").cancel("early") == ("", False)

    assert_cancelled(job.AsyncResult(f"{key}-id"), "early")
    alone.app.send_task(job.name, (key,), task_id=f"{key}-id")
    alone.start_worker("later", pool="threads", concurrency=2, tasks=MODULE)
    job.delay(key).get(timeout=PATIENCE)
    assert not alone.ledger.starts(f"{key}-id")


@both
def test_a_running_task_goes_on_unless_it_is_to_be_terminated(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """As if nothing had happened."""
    result = job(key, "check", seconds=HELD)
    wait_for_start(smoke, result)

    assert result.cancel("not needed") == ("running", False)
    smoke.ledger.release(result)

    assert result.get(timeout=PATIENCE) == "late"
    assert not smoke.ledger.runs(task_id=result.id)[0].marks


@on("prefork", "gevent")
@pytest.mark.parametrize("how", ["sleep", "swallow", "check"])
def test_a_running_body_is_stopped_where_the_pool_can(
    smoke: SmokeSetup, key: str, job: Any, how: str
) -> None:
    """The result ends at once, the slot when the process is gone, or the greenlet."""
    first = job(key, how, seconds=HELD, link_error=told(smoke))
    second = job(key, value="next")
    wait_for_start(smoke, first)

    assert first.cancel("too slow", terminate=True) == ("running", True)

    assert_cancelled(first, "too slow")
    assert second.get(timeout=PATIENCE) == "next"
    one, other = smoke.ledger.runs(key=key)
    assert (one.task_id, other.task_id) == (first.id, second.id)
    assert one.seen <= other.started, "they ran at once"
    assert_cancelled(first, "too slow")
    assert not errors_told(smoke, first), "revoked is no failure"


@on("prefork")
def test_a_stopped_process_tells_its_chord(
    smoke: SmokeSetup, key: str, job: Any, pool: str
) -> None:
    """Once: Celery's own end of the process says nothing on top."""
    member = task_of(smoke.app, "job").si(f"{key}-member", seconds=HELD)
    body = task_of(smoke.app, "follow").s(key=f"{key}-body")
    collected: Any = chord(
        [member.set(queue=pool)], body.set(queue=pool).on_error(told(smoke))
    )()
    first = collected.parent.results[0]
    wait_for_start(smoke, first)

    first.cancel("too slow", terminate=True)

    wait_until(collected.ready, that="the chord has ended")
    assert isinstance(collected.result, ChordError)
    job(f"{key}-member").get(timeout=PATIENCE)
    assert_cancelled(first, "too slow")
    error_told(smoke, collected)
    assert not smoke.ledger.runs(key=f"{key}-body")


@on("threads")
def test_a_running_thread_learns_it_at_its_next_checkpoint(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """Nobody can stop it from outside, and the caller is told so."""
    first = job(key, "check", seconds=HELD)
    second = job(key, value="next")
    wait_for_start(smoke, first)

    assert first.cancel("too slow", terminate=True) == ("running", False)

    assert_cancelled(first, "too slow")
    assert second.get(timeout=PATIENCE) == "next"
    one = smoke.ledger.runs(task_id=first.id)[0]
    assert one.marks == [f"TaskCancelled: task {first.id} was cancelled: too slow"]
    assert smoke.ledger.peak(key) == 1
    assert_cancelled(first, "too slow")


@on("threads")
def test_a_running_thread_without_checkpoints_keeps_its_slot(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """Until it returns; its value is dropped."""
    first = job(key, seconds=HELD, value="late")
    second = job(key, value="next")
    wait_for_start(smoke, first)

    first.cancel(terminate=True)

    assert_cancelled(first)
    assert second.phase == "waiting"
    smoke.ledger.release(first)
    assert second.get(timeout=PATIENCE) == "next"
    one, other = smoke.ledger.runs(key=key)
    assert (one.ended or math.inf) <= other.started
    assert_cancelled(first)


@both
def test_revoke_with_terminate_ends_a_running_task(
    smoke: SmokeSetup, key: str, job: Any, pool: str
) -> None:
    """Also by Celery's own name and arguments."""
    result = job(key, "check", seconds=HELD)
    wait_for_start(smoke, result)

    result.revoke(terminate=True, signal="SIGKILL")

    assert_cancelled(result)
    job(key).get(timeout=PATIENCE)


@both
def test_a_waiting_task_never_runs_though_its_turn_comes(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """What waits behind it does."""
    holder = job(key, seconds=HELD, value="held")
    waiting = job(key)
    last = job(key, value="last")

    assert waiting.cancel("enough") == ("waiting", False)
    smoke.ledger.release(holder)

    assert holder.get(timeout=PATIENCE) == "held"
    assert last.get(timeout=PATIENCE) == "last"
    assert smoke.ledger.order(key) == [holder.id, last.id]
    assert_cancelled(waiting, "enough")


@both
@pytest.mark.parametrize("ignored", [False, True], ids=["kept", "ignored"])
def test_a_task_that_has_ended_stays_as_it_was(
    smoke: SmokeSetup, key: str, job: Any, ignored: bool
) -> None:
    """The caller is told that it was too late."""
    result = job(key, value="done", ignore_result=ignored)
    wait_for_start(smoke, result)
    wait_until(lambda: result.phase != "running", that="it has ended")

    cancelled = result.cancel("too late")

    if not ignored:
        assert cancelled == ("ended", False)
        assert result.get(timeout=PATIENCE) == "done"
    assert not cancelled.stopped
    assert result.state == ("PENDING" if ignored else "SUCCESS")


@nobody
def test_a_parked_task_expires_at_its_time(alone: SmokeSetup, key: str) -> None:
    """Not when its turn comes; who waits for it is told."""
    job = task_of(alone.app, "job")
    job.delay(key)
    begun = time.monotonic()
    parked = job.apply_async((key,), expires=1)

    with pytest.raises(TaskCancelled, match="expired"):
        parked.get(timeout=PATIENCE)

    assert time.monotonic() - begun > 0.9
    assert_cancelled(parked, "expired")
    assert not job.control.stats(key).waiting


@nobody
def test_a_dispatched_task_expires_at_its_time(alone: SmokeSetup, key: str) -> None:
    """Its slot goes to the next."""
    job = task_of(alone.app, "job")
    begun = time.monotonic()
    first = job.apply_async((key,), expires=1)
    second = job.delay(key)

    with pytest.raises(TaskCancelled, match="expired"):
        first.get(timeout=PATIENCE)

    assert time.monotonic() - begun > 0.9
    assert_cancelled(first, "expired")
    assert second.phase == "dispatched"


@nobody
def test_a_handed_on_task_is_published_with_what_remains_of_its_time(
    alone: SmokeSetup, key: str
) -> None:
    """A broker that counts for itself would count from the hand-off."""
    job = task_of(alone.app, "job")
    first = job.delay(key)
    second = job.apply_async((key,), expires=300)
    let_pass(0.5)

    first.cancel()

    queue = alone.conf["task_default_queue"]
    messages = [json.loads(text) for text in alone.store.lrange(queue, 0, -1)]
    (message,) = [m for m in messages if m["headers"]["id"] == second.id]
    assert 200_000 < int(message["properties"]["expiration"]) <= 299_500


@both
def test_tasks_expire_though_nobody_waits_for_them(
    smoke: SmokeSetup, key: str, job: Any, pool: str
) -> None:
    """Parked, and fetched by a worker that is busy; what expires never runs."""
    holders = [job(f"{key}-{number}", seconds=HELD) for number in range(2)]
    wait_for_start(smoke, *holders)
    begun = time.monotonic()
    parked = job(f"{key}-0", expires=1)
    fetched = job(key, expires=1)

    for expiring in (parked, fetched):
        wait_for_state(expiring, "REVOKED")

    assert time.monotonic() - begun > 0.9
    smoke.ledger.release(*holders)
    for holder in holders:
        holder.get(timeout=PATIENCE)
    for after in (job(key), job(f"{key}-0")):
        after.get(timeout=PATIENCE)
    assert not smoke.ledger.starts(parked.id)
    assert not smoke.ledger.starts(fetched.id)
    assert_cancelled(parked, "expired")
    assert_cancelled(fetched, "expired")


@both
def test_what_expires_in_a_busy_worker_counts_once_for_its_chord(
    smoke: SmokeSetup, key: str, job: Any, pool: str
) -> None:
    """Celery ends it as well when the worker comes to it; the chord waits for all."""
    task, follow = task_of(smoke.app, "job"), task_of(smoke.app, "follow")
    holders = [job(f"{key}-{number}", seconds=HELD) for number in range(2)]
    wait_for_start(smoke, *holders)
    expiring = task.si(key).set(queue=pool, expires=1)
    other = task.si(f"{key}-0", seconds=HELD).set(queue=pool)
    body = follow.s(key=f"{key}-body").set(queue=pool).on_error(told(smoke))
    collected: Any = chord([expiring, other], body)()
    first, second = collected.parent.results
    wait_for_state(first, "REVOKED")

    smoke.ledger.release(*holders)

    wait_for_start(smoke, second)
    job(key).get(timeout=PATIENCE)  # by then its worker has come to the expired one
    assert not collected.ready(), "the chord has not waited for the other"
    smoke.ledger.release(second)
    wait_until(collected.ready, that="the chord has ended")
    assert isinstance(collected.result, ChordError)
    assert_cancelled(first, "expired")
    job(f"{key}-0").get(timeout=PATIENCE)
    error_told(smoke, collected)
    assert not smoke.ledger.runs(key=f"{key}-body")


@both
def test_a_task_that_has_started_does_not_expire(
    smoke: SmokeSetup, key: str, job: Any
) -> None:
    """The time is for its start."""
    result, begun = started_in_time(
        smoke, lambda: job(key, seconds=HELD, value="done", expires=1)
    )

    let_pass(1.5, since=begun)

    smoke.ledger.release(result)
    assert result.get(timeout=PATIENCE) == "done"
