"""Offers: workers are told, one takes it, and it runs as any other task."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import chain, chord, group
from celery.exceptions import ChordError, ImproperlyConfigured, TaskRevokedError

from celery_bgtask import AcceptTimeout
from tests.helpers import wait_until
from tests.smoke.nodes import SmokeSetup, SmokeWorker, WorkerSpec
from tests.smoke.offer_tasks import MODULE, accepted, task_of, told


#: Longer than the machine may stall, shorter than any deadline that is not meant.
SOON = 20.0


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases, and receivers that say no where they are asked to."""
    return {
        "bgtask_lease": 3.0,
        "bgtask_sweep_interval": 0.25,
        "smoke_receiver": "choosy",
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Two workers of two processes each."""
    spec = WorkerSpec("prefork", 2, tasks=MODULE, options=("-E",))
    return (spec, spec)


@pytest.fixture
def job(smoke: SmokeSetup) -> Any:
    """A task that is offered, without a limit."""
    return task_of(smoke.app, "job")


def names_of(smoke: SmokeSetup) -> list[str]:
    """The names of the workers that the tests share."""
    return [worker.hostname() for worker in smoke.workers]


def doers(smoke: SmokeSetup, key: str) -> list[str]:
    """Which worker has run each task of a key."""
    return [run.worker for run in smoke.ledger.runs(key=key)]


# Who runs it


def test_each_offer_runs_once_though_workers_race(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """Both workers are told of all of them at once."""
    results = [job.delay(key, value=number) for number in range(100)]

    assert [result.get(SOON) for result in results] == list(range(100))
    ran = smoke.ledger.order(key)
    assert sorted(ran) == sorted(result.id for result in results)
    assert set(doers(smoke, key)) == set(names_of(smoke))


def test_a_worker_takes_no_more_than_it_can_start(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """Two workers with two places each share four; what is left stays on offer."""
    results = [job.delay(key, seconds=2) for _ in range(6)]
    wait_until(lambda: smoke.ledger.running(key) == 4, within=SOON, that="four run")

    one, two = names_of(smoke)
    assert sorted(doers(smoke, key)) == sorted([one, one, two, two])
    assert [result.phase for result in results].count("running") == 4
    left = [result for result in results if result.phase == "offered"]
    assert [claimer_of(smoke, result.id) for result in left] == [None, None]
    for result in results:
        result.get(SOON)
    assert len(smoke.ledger.runs(key=key)) == 6


def claimer_of(smoke: SmokeSetup, task_id: str, task: str = "job") -> str | None:
    """The worker that has claimed an offer and not started it."""
    name = "{" + f"{smoke.prefix}:{MODULE}.{task}" + "}:task:" + task_id
    claimer: Any = smoke.store.hget(name, "claimer")
    return claimer


def test_a_worker_that_ignores_an_offer_never_runs_it(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """A receiver says no to some: the other worker runs them."""
    one, two = names_of(smoke)

    results = [
        job.apply_async((key,), metadata={"not": (one, two)[number % 2]})
        for number in range(40)
    ]
    for result in results:
        result.get(SOON)

    ran_on = {run.task_id: run.worker for run in smoke.ledger.runs(key=key)}
    assert [ran_on[result.id] for result in results] == [two, one] * 20
    assert len(doers(smoke, key)) == 40


def test_what_all_workers_ignore_ends_at_once(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """It does not wait for the end of the offer, which is a minute away."""
    begun = time.monotonic()
    result = job.apply_async((key,), metadata={"not": "anybody"})

    with pytest.raises(AcceptTimeout) as caught:
        result.get(SOON)

    assert time.monotonic() - begun < SOON
    assert (caught.value.task_id, caught.value.waited_for) == (result.id, "worker")
    assert not smoke.ledger.starts(result.id)


def test_what_all_ignore_ends_with_the_last_that_might_not(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """A worker that says nothing is waited for, until it is taken for dead."""
    silent = smoke.start_worker("silent", tasks=MODULE)
    silent.pause()
    result = job.apply_async((key,), metadata={"not": "anybody"})
    for worker in smoke.workers[:2]:
        wait_for_news(smoke, worker, result.id)

    silent.container.kill("SIGKILL")

    with pytest.raises(AcceptTimeout):
        result.get(SOON)


def test_what_nobody_takes_ends_after_its_accept_timeout(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """As a task that no worker gets from the broker."""
    begun = time.monotonic()
    result = job.apply_async((key,), queue=f"nobody-{key}", accept_timeout=1)

    with pytest.raises(AcceptTimeout, match="worker") as caught:
        result.get(SOON)

    assert time.monotonic() - begun >= 1
    assert caught.value.timeout == 1


def test_an_offer_expires(smoke: SmokeSetup, job: Any, key: str) -> None:
    """At its time, without any worker that takes it."""
    result = job.apply_async((key,), queue=f"nobody-{key}", expires=1)

    with pytest.raises(TaskRevokedError, match="expired"):
        result.get(SOON)


def test_a_worker_takes_offers_of_its_queues_alone(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """And one that starts late takes them in their order."""
    queue = f"own-{key}"
    later = job.apply_async((key,), queue=queue, priority=9)
    results = [job.apply_async((key,), queue=queue, priority=3) for _ in range(4)]
    first = job.apply_async((key,), queue=queue, priority=0)
    for _ in range(20):
        job.delay(f"other-{key}").get(SOON)
    assert not smoke.ledger.runs(key=key)
    assert smoke.store.llen(queue) == 0

    own = smoke.start_worker(
        "own", concurrency=1, tasks=MODULE, options=("-Q", queue), wait=False
    )
    later.get(SOON)

    expected = [first.id, *(result.id for result in results), later.id]
    assert smoke.ledger.order(key) == expected
    assert set(doers(smoke, key)) == {own.hostname()}


# What workers are told


def test_workers_are_told_what_is_available(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """Once each, in the main process, with what the submitter has given along."""
    metadata = {"size": 3, "tags": ["ä", None]}
    result = job.apply_async((key, "metadata"), metadata=metadata)

    assert result.get(SOON) == metadata
    for worker in smoke.workers:
        [fact] = wait_for_news(smoke, worker, result.id)
        assert fact == {
            "task": job.name,
            "pid": worker.pid,
            "task_id": result.id,
            "key": key,
            "metadata": metadata,
            "queue": smoke.app.conf.task_default_queue,
        }


def about(smoke: SmokeSetup, worker: SmokeWorker, task_id: str) -> list[Any]:
    """What a worker's receivers were told of a task."""
    facts = told(smoke.ledger.client, worker.hostname())
    return [fact for fact in facts if fact["task_id"] == task_id]


def wait_for_news(
    smoke: SmokeSetup, worker: SmokeWorker, task_id: str, *, times: int = 1
) -> list[Any]:
    """Wait until a worker's receivers were told of a task; return what."""
    wait_until(lambda: len(about(smoke, worker, task_id)) >= times, within=SOON)
    return about(smoke, worker, task_id)


def test_workers_are_asked_again_for_each_attempt(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """A retry is another chance to take it, or not to."""
    result = job.delay(key, "retry", times=2, pause=0)

    assert result.get(SOON) == "done"
    for worker in smoke.workers:
        wait_for_news(smoke, worker, result.id, times=3)


def test_workers_are_not_told_of_what_is_offered_to_others(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """They do not consume its queue, and could not take it."""
    foreign = job.apply_async((key,), queue=f"nobody-{key}")
    own = job.delay(key)
    own.get(SOON)

    for worker in smoke.workers:
        wait_for_news(smoke, worker, own.id)
        assert not about(smoke, worker, foreign.id)
    foreign.cancel()


def test_workers_are_told_of_what_the_broker_delivers(
    smoke: SmokeSetup, key: str
) -> None:
    """Their IGNORE means nothing: the broker picks the worker."""
    plain = task_of(smoke.app, "plain")

    result = plain.apply_async(
        (key, "metadata"),
        metadata={"not": "anybody"},
        queue=smoke.conf["task_default_queue"],
    )

    assert result.get(SOON) == {"not": "anybody"}
    for worker in smoke.workers:
        wait_for_news(smoke, worker, result.id)


def test_workers_are_told_of_what_gets_a_slot(smoke: SmokeSetup, key: str) -> None:
    """What waits is announced when it is its turn, not before."""
    queued = task_of(smoke.app, "queued")
    first = [queued.delay(key, seconds=1) for _ in range(2)]
    third = queued.delay(key)
    worker = smoke.workers[0]
    wait_until(lambda: about(smoke, worker, first[1].id), within=SOON)

    waits = third.phase == "waiting"
    assert not waits or not about(smoke, worker, third.id) or third.phase != "waiting"
    assert third.get(SOON) is None
    assert len(wait_until(lambda: about(smoke, worker, third.id), within=SOON)) == 1


def test_a_start_is_told_where_it_runs(smoke: SmokeSetup, job: Any, key: str) -> None:
    """``task_accepted``, in the process that runs the body."""
    result = job.delay(key)
    result.get(SOON)

    [run] = smoke.ledger.runs(key=key)
    starts = accepted(smoke.ledger.client, run.pid)
    assert {"task_id": result.id, "key": key, "attempt": 1} in starts


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        (["list"], ImproperlyConfigured),
        ("text", ImproperlyConfigured),
        ({"long": "x" * 5000}, ImproperlyConfigured),
        ({"set": {1}}, TypeError),
        ({"nan": float("nan")}, ValueError),
    ],
    ids=["list", "text", "large", "set", "nan"],
)
def test_metadata_that_cannot_travel_is_refused(
    smoke: SmokeSetup, job: Any, metadata: Any, error: type[Exception], key: str
) -> None:
    """Nothing is submitted."""
    with pytest.raises(error, match="metadata"):
        job.apply_async((key,), metadata=metadata)

    assert job.control.stats(key).held == 0


def test_no_metadata_is_an_empty_dict(smoke: SmokeSetup, job: Any, key: str) -> None:
    """In the body, and in eager mode."""
    assert job.delay(key, "metadata").get(SOON) == {}


# As any other task


def test_a_phase_says_where_an_offer_is(smoke: SmokeSetup, job: Any, key: str) -> None:
    """On offer, running, ended; and what is on offer can be cancelled."""
    pending = job.apply_async((key,), queue=f"nobody-{key}")
    running = job.delay(key, seconds=1)
    wait_until(lambda: running.phase == "running", within=SOON)

    assert pending.phase == "offered"
    assert pending.key == key
    assert pending.cancel("enough").was == "dispatched"
    with pytest.raises(TaskRevokedError, match="enough"):
        pending.get(SOON)
    running.get(SOON)
    assert running.phase == "ended"


def test_offers_and_messages_of_a_key_share_one_limit(
    smoke: SmokeSetup, key: str
) -> None:
    """Two tasks of one scope, one offered and one by the broker."""
    offered, queued = task_of(smoke.app, "offered"), task_of(smoke.app, "queued")

    results = [
        (offered, queued)[number % 2].delay(key, seconds=0.05) for number in range(30)
    ]
    for result in results:
        result.get(SOON)

    assert smoke.ledger.peak(key) == 2
    assert smoke.ledger.order(key)[4:26] != []
    assert sorted(smoke.ledger.order(key)) == sorted(result.id for result in results)


def test_what_waits_is_offered_in_its_order(smoke: SmokeSetup, key: str) -> None:
    """One of a key at a time: the next is offered when the one before has ended."""
    single = task_of(smoke.app, "single")

    results = [single.delay(key) for _ in range(15)]
    for result in results:
        result.get(SOON)

    assert smoke.ledger.peak(key) == 1
    assert smoke.ledger.order(key) == [result.id for result in results]


@pytest.mark.parametrize("pause", [0, 1])
def test_a_retry_runs_again(smoke: SmokeSetup, job: Any, key: str, pause: int) -> None:
    """At once by an offer, later by the broker."""
    assert job.delay(key, "retry", times=2, pause=pause).get(SOON) == "done"

    runs = smoke.ledger.runs(key=key)
    assert [run.attempt for run in runs] == [0, 1, 2]
    gaps = [b.started - (a.ended or 0) for a, b in itertools.pairwise(runs)]
    assert min(gaps) >= pause * 0.9


def test_a_rejected_task_is_offered_again(smoke: SmokeSetup, key: str) -> None:
    """``Reject(requeue=True)`` of a task that is acknowledged late."""
    late = task_of(smoke.app, "late")

    result = late.delay(key, "requeue")

    assert result.get(SOON) == "done"
    assert smoke.ledger.starts(result.id) == 2


def test_a_task_that_replaces_itself_goes_on(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """The replacement is offered, under the same id."""
    assert job.delay(key, "replace", by=key).get(SOON) == "replaced"


def test_canvases_of_offers_go_on(smoke: SmokeSetup, job: Any, key: str) -> None:
    """A chain, a group, a chord, and an errback."""
    gather = task_of(smoke.app, "gather")
    name = smoke.conf["smoke_ledger_url"]
    errback = task_of(smoke.app, "errback").s(url=name, name=key)

    assert chain(job.si(key, value=1), job.si(key, value=2))().get(SOON) == 2
    members = group(job.si(key, value=number) for number in range(4))
    assert members.delay().get(SOON) == [0, 1, 2, 3]
    header = [job.si(key, value=number) for number in range(4)]
    assert chord(header)(gather.s(key)).get(SOON) == [0, 1, 2, 3]
    failing = chord([job.si(key), job.si(key, "fail")])(gather.s(key))
    assert isinstance(error_of(failing), ChordError)
    with pytest.raises(ValueError, match="as asked for"):
        job.apply_async((key, "fail"), link_error=errback).get(SOON)
    wait_until(
        lambda: (
            smoke.ledger.client.lrange(f"ledger:errors:{key}", 0, -1) == ["ValueError"]
        ),
        within=SOON,
    )


def error_of(result: Any) -> Any:
    """The error of a result itself; ``get()`` would raise a member's first."""
    wait_until(result.failed, within=SOON, that="it has failed")
    return result.result


def test_a_member_that_nobody_takes_ends_its_chord(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """What follows is concluded by a worker."""
    gather = task_of(smoke.app, "gather")
    header = [job.si(key), job.si(key).set(metadata={"not": "anybody"})]

    error = error_of(chord(header)(gather.s(key)))

    assert isinstance(error, ChordError)
    assert "AcceptTimeout" in str(error)


def test_time_limits_hold(smoke: SmokeSetup, job: Any, key: str) -> None:
    """The pool kills what takes too long, and its place is taken again."""
    result = job.apply_async((key,), {"seconds": 30}, time_limit=1)

    with pytest.raises(TimeLimitExceeded):
        result.get(SOON)
    results = [job.delay(key, seconds=0.1) for _ in range(8)]
    for after in results:
        after.get(SOON)


def test_a_run_can_be_terminated(smoke: SmokeSetup, job: Any, key: str) -> None:
    """Its process is stopped, wherever it is."""
    result = job.delay(key, seconds=60)
    wait_until(lambda: smoke.ledger.starts(result.id), within=SOON, that="it runs")

    assert result.cancel("enough", terminate=True).was == "running"
    with pytest.raises(TaskRevokedError, match="enough"):
        result.get(SOON)


def test_what_workers_have_been_told_to_revoke_is_revoked(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """``app.control.revoke`` of an offer: when a worker that heard it meets it."""
    task_id = f"revoked-{key}"
    smoke.app.control.revoke(task_id, reply=True, timeout=SOON, limit=2)

    result = job.apply_async((key,), task_id=task_id)

    with pytest.raises(TaskRevokedError):
        result.get(SOON)
    assert not smoke.ledger.starts(task_id)


def test_a_killed_process_fails_its_task(smoke: SmokeSetup, job: Any, key: str) -> None:
    """As Celery says it; and the worker takes more."""
    with pytest.raises(WorkerLostError):
        job.delay(key, "die").get(SOON)

    results = [job.delay(key) for _ in range(8)]
    for result in results:
        result.get(SOON)


def test_a_task_whose_process_dies_may_come_back(smoke: SmokeSetup, key: str) -> None:
    """With ``reject_on_worker_lost`` it is offered again."""
    requeued = task_of(smoke.app, "requeued")

    result = requeued.delay(key, "die", times=1)

    assert result.get(SOON) == "survived"
    assert smoke.ledger.starts(result.id) == 2


def test_a_rate_limit_holds(smoke: SmokeSetup, key: str) -> None:
    """Each worker starts one a second; none runs twice, none is lost."""
    rated = task_of(smoke.app, "rated")

    results = [rated.delay(key) for _ in range(6)]
    for result in results:
        result.get(SOON)

    by_worker: dict[str, list[float]] = {}
    for run in smoke.ledger.runs(key=key):
        by_worker.setdefault(run.worker, []).append(run.started)
    for starts in by_worker.values():
        # One start may have been held up; what comes after it keeps its time.
        assert max(starts) - min(starts) >= 0.8 * (len(starts) - 2)
    assert len(smoke.ledger.runs(key=key)) == 6


def test_progress_of_an_offer_is_pushed(smoke: SmokeSetup, job: Any, key: str) -> None:
    """To whoever follows it."""
    seen: list[float | None] = []
    result = job.delay(key, "report", reports=5)
    result.on_progress(lambda progress: seen.append(progress.current))

    assert result.get(SOON) == "reported"
    wait_until(lambda: seen == [1, 2, 3, 4, 5], within=SOON, that="all was heard")


def test_an_offer_without_a_result_leaves_nothing(smoke: SmokeSetup, key: str) -> None:
    """``ignore_result``: nobody asks."""
    silent = task_of(smoke.app, "silent")

    result = silent.delay(key)

    wait_until(lambda: smoke.ledger.starts(result.id), within=SOON, that="it runs")


def test_a_call_with_a_countdown_comes_by_the_broker(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """And not before its time."""
    result = job.apply_async((key,), countdown=1)
    submitted = time.time()

    result.get(SOON)
    [run] = smoke.ledger.runs(key=key)
    assert run.started - submitted >= 0.9


def test_what_shows_tasks_shows_offers(smoke: SmokeSetup, job: Any, key: str) -> None:
    """The events that Flower lives on: received, started, succeeded."""
    with captured_events(smoke.app) as events:
        result = job.delay(key)
        result.get(SOON)
        wait_until(
            lambda: "task-succeeded" in kinds(events, result.id),
            within=SOON,
            that="it was told",
        )

    assert kinds(events, result.id) == [
        "task-received",
        "task-started",
        "task-succeeded",
    ]
    [received] = [e for e in events if e.get("uuid") == result.id][:1]
    assert received["name"] == job.name
    assert key in received["args"]
    assert received["hostname"] in names_of(smoke)


def kinds(events: list[dict[str, Any]], task_id: str) -> list[str]:
    """The types of the events of a task, in order, but for what its client says."""
    types = [event["type"] for event in events if event.get("uuid") == task_id]
    return [kind for kind in types if kind != "task-sent"]


@contextmanager
def captured_events(app: Any) -> Iterator[list[dict[str, Any]]]:
    """What workers tell monitors during a block."""
    events: list[dict[str, Any]] = []
    ready = threading.Event()
    connection = app.connection_for_read()
    receiver = app.events.Receiver(connection, handlers={"*": events.append})
    receiver.on_consume_ready = lambda *_, **__: ready.set()
    thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
    thread.start()
    assert ready.wait(10)
    # Only what is heard tells that the server has the subscription: a heartbeat.
    wait_until(lambda: events, within=SOON, that="workers are heard")
    try:
        yield events
    finally:
        receiver.should_stop = True
        thread.join(10)
        connection.close()


def test_prefetch_is_lower_while_offers_run(
    smoke: SmokeSetup, job: Any, key: str
) -> None:
    """The broker delivers less meanwhile, and as much as before afterwards."""
    # A process that a test before has killed is replaced within five seconds.
    wait_until(
        lambda: all(len(worker.children()) == 2 for worker in smoke.workers),
        within=SOON,
        that="both pools are whole",
    )
    before = prefetch_counts(smoke)
    assert before == [2, 2]

    results = [job.delay(key, seconds=2) for _ in range(4)]
    wait_until(lambda: smoke.ledger.running(key) == 4, within=SOON, that="four run")
    lowered = prefetch_counts(smoke)
    for result in results:
        result.get(SOON)

    assert all(count < 2 for count in lowered), lowered
    wait_until(lambda: prefetch_counts(smoke) == before, within=SOON, that="as before")


def prefetch_counts(smoke: SmokeSetup) -> list[int]:
    """How many messages each of the shared workers lets the broker deliver."""
    names = names_of(smoke)
    stats = smoke.app.control.inspect(names, timeout=SOON, limit=len(names)).stats()
    return [stats[name]["prefetch_count"] for name in names]
