"""Broadcasts: every live worker runs the task once, and says how it went."""

from __future__ import annotations

import time
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeoutError as ResultTimeout

from celery_bgtask import BroadcastResult, PayloadTooLarge
from tests.helpers import wait_until
from tests.smoke import deadline_tasks
from tests.smoke.nodes import ServerContainer, SmokeSetup, SmokeWorker, WorkerSpec
from tests.smoke.offer_tasks import MODULE, task_of


#: Seconds in which a worker begins, however slow the machine is just now.
LONG = 15.0

#: Longer than that.
SOON = 30.0


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {"bgtask_lease": 6.0, "bgtask_sweep_interval": 0.5}


@pytest.fixture(
    scope="module",
    params=["redis", pytest.param("rabbitmq", marks=pytest.mark.rabbitmq)],
)
def smoke_broker(
    request: pytest.FixtureRequest, smoke_store: ServerContainer
) -> ServerContainer:
    """What carries the call to the workers; answers come over the store."""
    if request.param == "redis":
        return smoke_store
    amqp: ServerContainer = request.getfixturevalue("amqp")
    return amqp


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Workers of two kinds, one of which consumes another queue."""
    return (
        WorkerSpec("prefork", 2, tasks=MODULE),
        WorkerSpec("threads", 2, tasks=MODULE, options=("-Q", "another")),
    )


@pytest.fixture
def plain(smoke: SmokeSetup) -> Any:
    """A task to broadcast."""
    return task_of(smoke.app, "plain")


@pytest.fixture
def names(smoke: SmokeSetup) -> list[str]:
    """The names of the workers."""
    return sorted(worker.hostname() for worker in smoke.workers)


def test_every_worker_runs_it_once(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Whatever queues they consume."""
    result = plain.broadcast((key,), {"value": 7}, expires=LONG)

    assert isinstance(result, BroadcastResult)
    assert result.get(SOON) == dict.fromkeys(names, 7)
    assert sorted(result.workers) == names
    assert result.missing == []
    assert result.errors == {}
    assert sorted(run.worker for run in smoke.ledger.runs(key=key)) == names


def test_answers_come_one_by_one(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """The iteration ends when all have answered, long before ``expires``."""
    begun = time.monotonic()
    result = plain.broadcast((key,), {"value": "x"}, expires=60)

    assert sorted(result) == [(name, "x") for name in names]
    assert time.monotonic() - begun < SOON
    assert list(result) == list(result.get().items())


def test_an_error_is_of_the_worker_that_raised_it(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """The others have their values."""
    result = plain.broadcast((key, "fail_on"), {"worker": "prefork"}, expires=LONG)

    values = result.get(SOON)

    [prefork, threads] = names
    assert values == {threads: "done"}
    assert list(result.errors) == [prefork]
    assert isinstance(result.errors[prefork], ValueError)


def test_a_killed_process_answers_too(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Its worker says what has become of it."""
    result = plain.broadcast((key, "die"), {"worker": "prefork"}, expires=LONG)

    values = result.get(SOON)

    [prefork, threads] = names
    assert values == {threads: "survived"}
    assert isinstance(result.errors[prefork], WorkerLostError)


def test_a_worker_that_is_away_is_missing_and_does_not_run_it_later(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """It was stopped, and goes on after ``expires``."""
    prefork, threads = smoke.workers
    prefork.pause()
    try:
        result = plain.broadcast((key,), expires=1)
        values = result.get(SOON)
    finally:
        prefork.resume()

    assert values == {threads.hostname(): None}
    assert result.missing == [prefork.hostname()]
    again = plain.broadcast((f"again-{key}",), expires=LONG)
    assert sorted(again.get(SOON)) == names
    assert [run.worker for run in smoke.ledger.runs(key=key)] == [threads.hostname()]


def test_a_worker_that_starts_later_does_not_run_it(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Nothing is kept for it; and it takes part in the next one."""
    plain.broadcast((key,), expires=LONG).get(SOON)

    late = smoke.start_worker("late", pool="solo", tasks=MODULE)

    again = plain.broadcast((f"again-{key}",), expires=LONG)
    assert sorted(again.get(SOON)) == sorted([*names, late.hostname()])
    assert late.hostname() not in {run.worker for run in smoke.ledger.runs(key=key)}


def test_a_worker_that_has_left_is_not_waited_for(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """It says so when it goes."""
    leaver = smoke.start_worker("leaver", pool="solo", tasks=MODULE)
    wait_until(
        lambda: leaver.hostname() in plain.broadcast((key,), expires=LONG).get(SOON),
        that="it has said that it lives",
    )
    leaver.kill("SIGTERM", reload_container=False)
    leaver.wait()

    result = plain.broadcast((f"again-{key}",), expires=60)

    assert sorted(result.workers) == names
    assert sorted(result.get(SOON)) == names


def test_a_worker_that_does_not_know_the_task_takes_no_part(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """It neither runs it nor is missed."""
    smoke.start_worker("foreign", pool="solo", tasks="tests.smoke.tasks")

    result = plain.broadcast((key,), expires=LONG)

    assert sorted(result.workers) == names
    assert sorted(result.get(SOON)) == names


def test_keys_and_limits_do_not_apply(
    smoke: SmokeSetup, key: str, names: list[str]
) -> None:
    """One of a key at a time, that is taken: all run it beside that, at once."""
    queued = task_of(smoke.app, "queued")
    holders = [queued.apply_async((key,), queue=f"nobody-{key}") for _ in range(2)]
    waits = queued.apply_async((key,), queue=f"nobody-{key}")

    results = [queued.broadcast((key,), {"value": 1}, expires=LONG) for _ in range(3)]

    assert [sorted(result.get(SOON)) for result in results] == [names] * 3
    assert queued.control.stats(key).held == 2
    assert waits.phase == "waiting"
    for result in [waits, *holders]:
        result.cancel()


def test_a_broadcast_waits_for_a_busy_pool(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Who cannot begin before ``expires`` does not; ``get`` waits for who has begun."""
    prefork = smoke.workers[0]
    busy = [
        plain.apply_async((f"busy-{key}",), {"seconds": 4}, queue=prefork.worker_queue)
        for _ in range(2)
    ]
    wait_until(
        lambda: smoke.ledger.running(f"busy-{key}") == 2, within=SOON, that="it is busy"
    )

    begun = time.monotonic()
    result = plain.broadcast((key,), {"seconds": 2, "value": 1}, expires=1)

    with pytest.raises(ResultTimeout):
        result.get(0.2)
    assert result.get(SOON) == {smoke.workers[1].hostname(): 1}
    assert time.monotonic() - begun >= 2
    assert result.missing == [prefork.hostname()]
    for other in busy:
        other.get(SOON)
    assert len(smoke.ledger.runs(key=key)) == 1


def test_a_task_without_results_answers(
    smoke: SmokeSetup, key: str, names: list[str]
) -> None:
    """Its value is not kept; that it has run is told."""
    tell = task_of(smoke.app, "tell")

    assert tell.broadcast((key,), expires=LONG).get(SOON) == dict.fromkeys(names)


def test_a_broadcast_is_seen_by_monitors_as_a_task(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Its id says where it ran; its result is kept as any other."""
    result = plain.broadcast((key,), {"value": 3}, expires=LONG)
    result.get(SOON)

    for name in names:
        assert plain.AsyncResult(f"{result.id}@{name}").get(SOON) == 3
    assert sorted(smoke.ledger.order(key)) == [f"{result.id}@{name}" for name in names]


def test_nobody_lives(smoke: SmokeSetup, key: str) -> None:
    """A task that no worker knows is over at once."""
    unknown = smoke.app.tasks[f"{deadline_tasks.MODULE}.job"]

    result = unknown.broadcast((key,), expires=LONG)

    assert result.get(SOON) == {}
    assert (result.workers, result.missing) == ((), [])


def test_what_is_too_large_is_not_sent(smoke: SmokeSetup, plain: Any, key: str) -> None:
    """As for any call."""
    with pytest.raises(PayloadTooLarge):
        plain.broadcast((key,), {"value": "x" * 2_000_000})


def test_two_broadcasts_do_not_mix(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """Each has the answers to it."""
    results = [plain.broadcast((key,), {"value": n}, expires=LONG) for n in range(8)]

    values = [result.get(SOON) for result in results]

    assert values == [dict.fromkeys(names, n) for n in range(8)]


def test_a_process_that_has_broadcast_forgets_it(
    smoke: SmokeSetup, plain: Any, key: str
) -> None:
    """No subscription is left of a result that was read."""
    result = plain.broadcast((key,), expires=LONG)
    result.get(SOON)

    pattern = f"*{result.id}*"
    wait_until(
        lambda: smoke.store.pubsub_channels(pattern) == [],
        within=SOON,
        that="it has left the channel",
    )


def test_a_worker_runs_a_call_once_though_it_hears_it_twice(
    smoke: SmokeSetup, plain: Any, key: str, names: list[str]
) -> None:
    """The second copy of the call ends quietly."""
    calls: list[dict[str, Any]] = []
    send = smoke.app.control.broadcast

    def keep(command: str, arguments: dict[str, Any]) -> Any:
        calls.append(arguments)
        return send(command, arguments=arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(smoke.app.control, "broadcast", keep)
        result = plain.broadcast((key,), expires=LONG)
        result.get(SOON)
    send("bgtask_broadcast", arguments=calls[0])
    for worker in smoke.workers:
        came = f"{result.id}@{worker.hostname()}] received"
        wait_for_log(worker, came, times=2)
    assert sorted(plain.broadcast((f"again-{key}",), expires=LONG).get(SOON)) == names

    assert sorted(run.worker for run in smoke.ledger.runs(key=key)) == names


def wait_for_log(worker: SmokeWorker, text: str, *, times: int) -> None:
    """Wait until a worker has written *text* so often."""
    wait_until(lambda: worker.logs().count(text) == times, within=SOON, that=text)
