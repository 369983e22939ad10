"""Limits hold, and are used up, from many clients over several workers."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from celery_bgtask import LimitReached
from tests.helpers import PATIENCE, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, WorkerSpec, held


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Two of different kinds, each with more places than the limit.

    So a task that has its slot also starts, whichever worker has fetched it.
    """
    return WorkerSpec("prefork", 6), WorkerSpec("threads", 8)


@pytest.fixture
def both(smoke: SmokeSetup) -> list[Any]:
    """The module's two workers."""
    return smoke.workers


def test_a_burst_from_many_clients_runs_exactly_as_many_as_its_limit(
    smoke: SmokeSetup, key: str, client_process: Any
) -> None:
    """200 tasks of one key from 4 threads and 2 processes: always 5, all once.

    Five more that wait for each other then show that no slot was lost.
    """
    five = smoke.task("five")
    ids: list[str] = []

    def submit() -> None:
        for _ in range(25):
            ids.append(five.delay(key, 0.03).id)

    threads = [threading.Thread(target=submit) for _ in range(4)]
    code = f"print(*[tasks.five.delay({key!r}, 0.03).id for _ in range(50)])"
    processes = [client_process(code) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in processes:
        ids += process.communicate(timeout=2 * PATIENCE)[0].split()
    last = [five.delay(key, HELD) for _ in range(5)]
    ids += [result.id for result in last]
    wait_until(
        lambda: all(smoke.ledger.starts(result.id) for result in last),
        within=2 * PATIENCE,
        that="five run at once",
    )
    smoke.ledger.release(*last)

    wait_until(
        lambda: sum(r.ended is not None for r in smoke.ledger.runs(key=key)) >= 205,
        that="all have run",
    )
    assert len(set(ids)) == 205
    assert sorted(smoke.ledger.order(key)) == sorted(ids)
    assert smoke.ledger.peak(key) == 5


def test_keys_do_not_wait_for_each_other(smoke: SmokeSetup, key: str) -> None:
    """What one key has waiting does not hold up another key's only task."""
    five = smoke.task("five")
    crowd = [five.delay(key, HELD) for _ in range(60)]

    alone = five.delay(f"{key}-other").get(timeout=PATIENCE)

    assert alone == f"{key}-other"
    assert len(smoke.ledger.runs(key=key)) <= 5
    smoke.ledger.release(*crowd)
    for result in crowd:
        result.get(timeout=PATIENCE)
    assert smoke.ledger.peak(key) == 5


def test_many_keys_use_all_workers(smoke: SmokeSetup, key: str) -> None:
    """Keys of limit 1 run beside each other, each one at a time, in order."""
    single = smoke.task("single")
    # More than one worker can run and fetch ahead, so that both have some.
    keys = [f"{key}-{number}" for number in range(18)]

    results = {name: [single.delay(name, HELD)] for name in keys}
    for _ in range(2):
        for name in keys:
            results[name].append(single.delay(name, 0.02))
    wait_until(
        lambda: (
            {run.worker for run in smoke.ledger.runs()}
            == {worker.hostname() for worker in smoke.workers}
        ),
        that="both workers run some",
    )
    wait_until(lambda: smoke.ledger.peak() > 5, that="more run than one key may")
    smoke.ledger.release(*(first for first, *_ in results.values()))
    for result in itertools.chain(*results.values()):
        result.get(timeout=PATIENCE)

    for name in keys:
        assert smoke.ledger.peak(name) == 1
        assert smoke.ledger.order(name) == [result.id for result in results[name]]


def test_a_loop_that_waits_for_each_result_never_meets_its_own_slot(
    smoke: SmokeSetup, key: str
) -> None:
    """The slot is free before the result can be seen, a hundred times in a row."""
    strict = smoke.task("strict")

    for _ in range(100):
        assert strict.delay(key).get(timeout=PATIENCE) == key

    assert smoke.ledger.peak(key) == 1
    assert len(smoke.ledger.runs(key=key)) == 100


def test_a_full_key_refuses_and_says_why(smoke: SmokeSetup, key: str) -> None:
    """The second is told the key and what it has; the first is not disturbed."""
    strict = smoke.task("strict")
    first = strict.delay(key, HELD)

    with pytest.raises(LimitReached) as refusal:
        strict.delay(key)

    smoke.ledger.release(first)
    assert (refusal.value.key, refusal.value.limit) == (key, 1)
    assert first.get(timeout=PATIENCE) == key
    assert strict.delay(key).get(timeout=PATIENCE) == key


def test_two_steps_of_a_chain_share_one_slot(smoke: SmokeSetup, key: str) -> None:
    """A step's slot is free before the next step is submitted."""
    for task in (smoke.task("single"), smoke.task("strict")):
        for _ in range(10):
            result = chain(task.si(key), task.si(key), task.si(key))()
            assert result.get(timeout=PATIENCE) == key

    assert smoke.ledger.peak(key) == 1


def test_the_result_of_a_step_is_the_key_of_the_next(
    smoke: SmokeSetup, key: str
) -> None:
    """The key of a later step is computed when its arguments are known."""
    single = smoke.task("single")

    assert (
        chain(single.s(key), single.s(), single.s(0.1))().get(timeout=PATIENCE) == key
    )

    assert len(smoke.ledger.runs(key=key)) == 3


def test_a_chord_of_members_that_wait_for_each_other_ends(
    smoke: SmokeSetup, key: str
) -> None:
    """Ten members of one key with a limit of 1, and the body on the same key."""
    single, collect = smoke.task("single"), smoke.task("collect")

    chord(group(single.si(key, 0.02) for _ in range(10)), collect.s(key))()

    collected = f"ledger:collected:{key}"
    wait_until(lambda: smoke.ledger.client.get(collected), that="collected")
    assert smoke.ledger.client.get(collected) == "10"
    assert smoke.ledger.peak(key) == 1


def test_a_chord_with_refused_members_fails_instead_of_hanging(
    smoke: SmokeSetup, key: str
) -> None:
    """What a canvas submits gets its refusal as a result: the chord knows."""
    strict, five = smoke.task("strict"), smoke.task("five")
    holder = strict.delay(key, HELD)

    result = chord(
        group(strict.si(key), strict.si(key), five.si(key)), five.si(f"{key}-body")
    )()

    with pytest.raises((ChordError, LimitReached)):
        result.get(timeout=PATIENCE)
    smoke.ledger.release(holder)
    assert holder.get(timeout=PATIENCE) == key
    assert not smoke.ledger.runs(key=f"{key}-body")


def test_a_group_of_many_keys_and_one_returns_all(smoke: SmokeSetup, key: str) -> None:
    """A group's members wait in the store, and its result waits for them."""
    five = smoke.task("five")

    result = group(five.si(f"{key}-{n % 3}", 0.01) for n in range(45)).apply_async()

    assert result.get(timeout=PATIENCE) == [f"{key}-{n % 3}" for n in range(45)]
    assert all(smoke.ledger.peak(f"{key}-{n}") <= 5 for n in range(3))


def test_a_task_submitted_again_under_its_id_runs_once(
    smoke: SmokeSetup, key: str
) -> None:
    """While the first waits or runs, the second submission is the same task."""
    single = smoke.task("single")
    holder = single.delay(key, HELD)

    first = single.apply_async((key,), task_id=f"{key}-id")
    second = single.apply_async((key,), task_id=f"{key}-id")
    smoke.ledger.release(holder)

    assert first.id == second.id
    assert first.get(timeout=PATIENCE) == second.get(timeout=PATIENCE) == key
    assert holder.get(timeout=PATIENCE) == key
    assert smoke.ledger.starts(f"{key}-id") == 1


def test_stats_tell_what_runs_is_dispatched_and_waits(
    smoke: SmokeSetup, key: str, both: list[Any]
) -> None:
    """Held workers: five are dispatched; then five run and the rest waits."""
    five = smoke.task("five")

    with held(*both):
        results = [five.delay(key, HELD) for _ in range(7)]
        stats = five.control.stats(key)
        assert (stats.key, stats.limit) == (key, 5)
        assert (stats.running, stats.dispatched, stats.waiting) == (0, 5, 2)

    wait_until(lambda: five.control.stats(key).running == 5, that="five run")
    stats = five.control.stats(key)
    assert (stats.running, stats.dispatched, stats.waiting) == (5, 0, 2)
    smoke.ledger.release(*results)
    for result in results:
        result.get(timeout=PATIENCE)
