"""A worker that vanishes with its tasks: each of them gets an end, and only one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from celery import chord
from celery.exceptions import ChordError
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_bgtask import TaskLost
from tests.helpers import PATIENCE, wait_until
from tests.smoke.deadline_tasks import LEASES_LOST, MODULE
from tests.smoke.deadlines import (
    SWEEP,
    error_told,
    redis_only,
    task_of,
    told,
    wait_for_start,
)
from tests.smoke.deadlines import submit as submit_to
from tests.smoke.ledger import HELD
from tests.smoke.nodes import (
    KOMBU,
    ServerContainer,
    SmokeSetup,
    SmokeWorker,
    WorkerSpec,
)


LEASE = 3.0

#: The queue of the workers that vanish; the one that stays takes no part in it
#: unless it is told to.
DOOMED = "doomed"

#: A Redis broker that gives a message to another worker after four seconds.
REDELIVERING = {
    "broker_transport_options": {
        "visibility_timeout": 4,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
}

redelivering = pytest.mark.parametrize(
    "smoke_conf", [REDELIVERING], ids=["redelivering"], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def smoke_conf(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Short leases."""
    conf = {"bgtask_lease": LEASE, "bgtask_sweep_interval": SWEEP}
    return conf | getattr(request, "param", {})


@pytest.fixture(
    scope="module",
    params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)],
)
def smoke_broker(
    request: pytest.FixtureRequest, smoke_store: ServerContainer
) -> ServerContainer:
    """RabbitMQ delivers again what a dead worker had at once, Redis after an hour."""
    if request.param == "redis":
        return smoke_store
    amqp: ServerContainer = request.getfixturevalue("amqp")
    return amqp


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """The worker that stays."""
    return (WorkerSpec("threads", 6, tasks=MODULE),)


@pytest.fixture
def survivor(smoke: SmokeSetup) -> SmokeWorker:
    """The worker that stays."""
    return smoke.workers[0]


@pytest.fixture
def queue(smoke: SmokeSetup, key: str, survivor: SmokeWorker) -> Any:
    """A queue that the surviving worker does not consume; it is gone afterwards."""
    name = f"{DOOMED}-{key}"
    yield name
    smoke.app.control.cancel_consumer(name, destination=[survivor.hostname()])
    with smoke.app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        channel.queue_delete(name)


@pytest.fixture
def leaver(smoke: SmokeSetup, queue: str) -> Callable[..., SmokeWorker]:
    """Starts a worker that goes."""

    def start(pool: str = "prefork", concurrency: int = 3) -> SmokeWorker:
        return smoke.start_worker(
            "leaver",
            pool=pool,
            concurrency=concurrency,
            tasks=MODULE,
            options=("-Q", queue),
        )

    return start


@pytest.fixture
def submit(smoke: SmokeSetup, queue: str) -> Callable[..., Any]:
    """Submits a task to the workers that go."""
    return functools.partial(submit_to, smoke, queue=queue)


@pytest.fixture
def take_over(
    smoke: SmokeSetup, survivor: SmokeWorker, queue: str
) -> Callable[[], None]:
    """Let the surviving worker do what the others have left."""

    def told() -> bool:
        try:
            smoke.app.control.add_consumer(
                queue, destination=[survivor.hostname()], reply=True
            )
        except RedisConnectionError:  # kombu may lose the connection for the reply
            return False
        return True

    def consume() -> None:
        wait_until(told, that="the survivor consumes the queue")

    return consume


def kill(smoke: SmokeSetup, worker: SmokeWorker) -> None:
    """Kill all processes of a worker."""
    worker.container.kill("SIGKILL")
    smoke.ledger.gone(worker.hostname())


def assert_lost(result: Any) -> None:
    """The result is a TaskLost."""
    assert result.state == "FAILURE"
    with pytest.raises(TaskLost) as caught:
        result.get(timeout=PATIENCE)
    assert caught.value.task_id == result.id


def test_a_task_whose_worker_was_killed_fails_in_time(
    smoke: SmokeSetup,
    key: str,
    queue: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    survivor: SmokeWorker,
) -> None:
    """Its errback is told once, its chord ends, and its slot goes to the next."""
    task, follow = task_of(smoke.app, "job"), task_of(smoke.app, "follow")
    body = follow.s(key=f"{key}-body").on_error(told(smoke))
    collected: Any = chord(
        [
            task.si(f"{key}-member", seconds=HELD).set(queue=queue),
            task.si(f"{key}-other"),
        ],
        body,
    )()
    alone = submit("job", f"{key}-alone", seconds=HELD)
    first = submit("job", key, seconds=HELD, link_error=told(smoke))
    second = task.delay(key, value="next")
    worker = leaver()
    wait_for_start(smoke, first, alone, collected.parent.results[0])
    due = smoke.lease_of(first)

    kill(smoke, worker)

    wait_until(first.ready, that="it has ended")
    assert smoke.now() >= due
    for result in (alone, collected):
        wait_until(result.ready, that=f"{result.id} has ended")
    assert second.get(timeout=PATIENCE) == "next"
    assert_lost(first)
    assert_lost(alone)
    assert_lost(collected.parent.results[0])
    assert isinstance(collected.result, ChordError)
    for lost in (first, collected):
        assert error_told(smoke, lost)["pid"] == survivor.pid
    assert smoke.ledger.peak(key) == 1
    assert not smoke.ledger.runs(key=f"{key}-body")


@pytest.mark.parametrize("name", ["again", "late"])
def test_a_task_that_may_runs_again_once(
    smoke: SmokeSetup,
    key: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    take_over: Callable[[], None],
    name: str,
) -> None:
    """From the stored message, whatever was acknowledged; in its place."""
    first = submit(name, key, seconds=HELD, value="done")
    second = submit(name, key, value="next")
    worker = leaver()
    wait_for_start(smoke, first)
    due = smoke.lease_of(first)

    kill(smoke, worker)
    smoke.ledger.release(first)
    take_over()

    assert first.get(timeout=PATIENCE) == "done"
    assert second.get(timeout=PATIENCE) == "next"
    one, other, last = smoke.ledger.runs(key=key)
    assert (one.task_id, other.task_id, last.task_id) == (first.id, first.id, second.id)
    assert other.started >= due
    assert smoke.ledger.peak(key) == 1
    assert smoke.ledger.overlaps(first.id) == 1


@pytest.mark.parametrize(
    ("smoke_broker", "name"),
    [
        ("redis", "again"),
        pytest.param("rabbitmq", "late", marks=pytest.mark.rabbitmq),
    ],
    indirect=["smoke_broker"],
)
def test_a_task_that_is_lost_twice_is_lost(
    smoke: SmokeSetup,
    key: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    take_over: Callable[[], None],
    name: str,
) -> None:
    """A task that kills its workers does not do so for ever."""
    first = submit(name, key, seconds=HELD, link_error=told(smoke))
    second = submit(name, key, value="next")
    for times in (1, 2):
        worker = leaver("threads")
        wait_for_start(smoke, first, times=times)
        assert first.state == "PENDING"
        kill(smoke, worker)

    take_over()

    wait_until(first.ready, that="it is given up")
    assert second.get(timeout=PATIENCE) == "next"
    assert_lost(first)
    assert error_told(smoke, first)["error"] == "TaskLost"
    assert smoke.ledger.starts(first.id) == 2
    assert smoke.ledger.peak(key) == 1


@redis_only
def test_a_worker_that_was_away_learns_what_it_has_lost(
    smoke: SmokeSetup,
    key: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
) -> None:
    """SIGSTOP for longer than the lease: a warning, a signal, and the checkpoint."""
    worker = leaver("threads")
    result = submit("job", key, "check-last", seconds=HELD)
    wait_for_start(smoke, result)

    worker.pause()
    wait_until(result.ready, that="it is lost")
    worker.resume()

    # Before the body ends by itself: of what has ended nobody is warned.
    wait_until(lambda: "has lost its lease" in worker.logs(), that="it is warned")
    wait_until(
        lambda: f"{result.id} {key}" in smoke.ledger.client.lrange(LEASES_LOST, 0, -1),
        that="the signal was sent",
    )
    smoke.ledger.release(result)
    wait_until(
        lambda: smoke.ledger.runs(task_id=result.id)[0].ended, that="the body has ended"
    )
    (run,) = smoke.ledger.runs(task_id=result.id)
    assert [mark.partition(":")[0] for mark in run.marks] == ["LeaseLost"]
    assert (
        smoke.ledger.client.lrange(LEASES_LOST, 0, -1).count(f"{result.id} {key}") == 1
    )
    assert_lost(result)


@redis_only
@pytest.mark.parametrize(("pool", "how"), [("prefork", "sleep"), ("threads", "fail")])
def test_the_late_end_of_a_lost_run_changes_nothing(
    smoke: SmokeSetup,
    key: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    pool: str,
    how: str,
) -> None:
    """Neither state nor value; nothing is started; no other's slot is freed."""
    follow = task_of(smoke.app, "follow")
    worker = leaver(pool, 1)
    first = submit(
        "job",
        key,
        how,
        seconds=HELD,
        link=follow.si(key=f"{key}-next"),
        link_error=told(smoke),
    )
    wait_for_start(smoke, first)
    worker.pause()
    wait_until(first.ready, that="it is lost")
    second = task_of(smoke.app, "job").delay(key, seconds=HELD, value="second")
    wait_for_start(smoke, second)
    third = task_of(smoke.app, "job").delay(key, value="third")

    worker.resume()
    smoke.ledger.release(first)

    wait_until(lambda: "is dropped" in worker.logs(), that="it has ended")
    assert third.phase == "waiting", "the slot of another run was freed"
    smoke.ledger.release(second)
    assert second.get(timeout=PATIENCE) == "second"
    assert third.get(timeout=PATIENCE) == "third"
    assert_lost(first)
    error_told(smoke, first)
    assert not smoke.ledger.runs(key=f"{key}-next")
    assert smoke.ledger.starts(first.id) == 1


@redis_only
def test_a_lost_run_that_comes_back_does_not_end_its_rerun(
    smoke: SmokeSetup,
    key: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    take_over: Callable[[], None],
) -> None:
    """The value is that of the run that is valid."""
    worker = leaver("threads", 1)
    result = submit("again", key, "check", seconds=HELD)
    wait_for_start(smoke, result)
    worker.pause()
    take_over()
    wait_for_start(smoke, result, times=2)

    worker.resume()

    wait_until(
        lambda: smoke.ledger.runs(task_id=result.id)[0].ended, that="it has noticed"
    )
    assert result.state == "PENDING"
    smoke.ledger.release(result)
    assert result.get(timeout=PATIENCE) == "late"
    one, other = smoke.ledger.runs(task_id=result.id)
    assert [mark.partition(":")[0] for mark in one.marks] == ["LeaseLost"]
    assert not other.marks
    assert (one.ended or 0) < (other.ended or 0)


@redelivering
@redis_only
@pytest.mark.skipif(
    KOMBU < (5, 7), reason="this kombu delivers again after 100 s at least"
)
def test_a_task_longer_than_the_visibility_timeout_runs_once(
    smoke: SmokeSetup,
    key: str,
    queue: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    take_over: Callable[[], None],
) -> None:
    """Its copies are stored beside it, and dropped when it has ended."""
    leaver("prefork", 2)
    take_over()
    first = submit("late", key, seconds=HELD, value="done")
    second = submit("late", key, value="next")
    wait_until(lambda: smoke.received(first) > 1, that="it is delivered again")

    smoke.ledger.release(first)
    assert first.get(timeout=PATIENCE) == "done"
    assert second.get(timeout=PATIENCE) == "next"

    wait_until(lambda: not smoke.store.llen(queue), that="the queue is empty")
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1


@redelivering
@redis_only
def test_a_copy_does_not_save_a_task_from_its_end(
    smoke: SmokeSetup,
    key: str,
    queue: str,
    leaver: Callable[..., SmokeWorker],
    submit: Callable[..., Any],
    take_over: Callable[[], None],
) -> None:
    """What ``when_lost`` says holds for redelivered tasks too: again, but once."""
    worker = leaver("prefork", 1)
    first = submit("late", key, seconds=HELD, value="done")
    wait_for_start(smoke, first)
    kill(smoke, worker)
    take_over()
    wait_for_start(smoke, first, times=2)
    if KOMBU >= (5, 7):
        wait_until(lambda: smoke.received(first) > 2, that="the copy has come")
    smoke.ledger.release(first)

    assert first.get(timeout=PATIENCE) == "done"

    wait_until(lambda: not smoke.store.llen(queue), that="the queue is empty")
    assert smoke.ledger.starts(first.id) == 2
    assert smoke.ledger.overlaps(first.id) == 1
