"""Workers that die, leave or hang: what they held is given on, once and in time."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import PATIENCE, let_pass, wait_until
from tests.smoke.ledger import HELD
from tests.smoke.nodes import SmokeSetup, SmokeWorker, WorkerSpec


LEASE = 3.0


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {"bgtask_lease": LEASE, "bgtask_sweep_interval": 0.25}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Each test starts its own: one that goes, one that stays."""
    return ()


@pytest.fixture
def survivor(smoke: SmokeSetup) -> SmokeWorker:
    """The worker that stays; it takes no task before the other is gone."""
    return smoke.start_worker(
        "survivor", pool="threads", concurrency=6, idle=True, wait=False
    )


@pytest.fixture
def leaver(smoke: SmokeSetup, survivor: SmokeWorker) -> SmokeWorker:
    """The worker that goes."""
    leaver = smoke.start_worker("leaver", concurrency=6)
    survivor.ready()
    return leaver


def wait_for_runs(smoke: SmokeSetup, key: str, number: int) -> None:
    """Wait until so many bodies of a key have started."""
    wait_until(
        lambda: len(smoke.ledger.runs(key=key)) >= number,
        that=f"{number} have started",
    )


@pytest.mark.parametrize("group", [True, False], ids=["all", "main"])
def test_a_killed_workers_slots_are_given_on_when_its_leases_have_run_out(
    smoke: SmokeSetup, key: str, leaver: SmokeWorker, survivor: SmokeWorker, group: bool
) -> None:
    """SIGKILL, of the whole group or of the main process: what waits runs elsewhere."""
    five = smoke.task("five")
    holders = [five.delay(key, HELD) for _ in range(5)]
    waiting = [five.delay(key) for _ in range(3)]
    wait_for_runs(smoke, key, 5)
    due = min(smoke.lease_of(holder) for holder in holders)

    leaver.container.kill("SIGKILL", group=group)
    smoke.ledger.gone(leaver.hostname())
    survivor.consume()

    for result in waiting:
        result.get(timeout=PATIENCE)
    wait_until(lambda: not five.control.stats(key).running, that="all slots are free")
    assert smoke.ledger.peak(key) == 5
    assert all(run.started >= due for run in smoke.ledger.runs(key=key)[5:])
    assert all(smoke.ledger.starts(result.id) == 1 for result in waiting)


def test_a_warm_shutdown_keeps_the_leases_to_the_end(
    smoke: SmokeSetup, key: str, leaver: SmokeWorker, survivor: SmokeWorker
) -> None:
    """SIGTERM with tasks longer than the lease: each ends well, none runs twice."""
    single, five = smoke.task("single"), smoke.task("five")
    first = single.delay(key, HELD)
    others = [five.delay(f"{key}-five", HELD) for _ in range(5)]
    wait_for_runs(smoke, key, 1)
    wait_for_runs(smoke, f"{key}-five", 5)
    second = single.delay(key)
    last = five.delay(f"{key}-five")

    leaver.kill("SIGTERM", reload_container=False)
    survivor.consume()
    let_pass(LEASE + 2)
    smoke.ledger.release(first, *others)

    assert leaver.wait() == 0
    for result in (first, second, *others, last):
        result.get(timeout=PATIENCE)
        assert smoke.ledger.starts(result.id) == 1
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1
    assert smoke.ledger.peak(f"{key}-five") == 5
    leaver.assert_log_does_not_exist("lost its lease", timeout=0)


def test_a_cold_shutdown_gives_its_slots_on(
    smoke: SmokeSetup, key: str, leaver: SmokeWorker, survivor: SmokeWorker
) -> None:
    """SIGQUIT cancels what runs; what waits runs elsewhere, in a lease at most."""
    single = smoke.task("single")
    first = single.delay(key, HELD)
    second = single.delay(key)
    wait_for_runs(smoke, key, 1)

    leaver.kill("SIGQUIT", reload_container=False)
    leaver.wait()
    smoke.ledger.gone(leaver.hostname())
    survivor.consume()

    second.get(timeout=PATIENCE)
    assert smoke.ledger.order(key) == [first.id, second.id]
    assert smoke.ledger.peak(key) == 1


def test_what_a_leaving_worker_had_fetched_runs_elsewhere(
    smoke: SmokeSetup, key: str, survivor: SmokeWorker
) -> None:
    """Messages fetched ahead go back to the broker and keep their slots."""
    five = smoke.task("five")
    leaver = smoke.start_worker(
        "narrow", concurrency=1, conf={"worker_prefetch_multiplier": 4}
    )
    results = [five.delay(key, HELD) for _ in range(8)]
    wait_for_runs(smoke, key, 1)

    leaver.kill("SIGTERM", reload_container=False)
    smoke.ledger.release(*results)
    leaver.wait()
    survivor.consume()

    for result in results:
        result.get(timeout=PATIENCE)
        assert smoke.ledger.starts(result.id) == 1
    assert smoke.ledger.peak(key) <= 5


def test_a_worker_that_hung_longer_than_its_lease_changes_nothing_any_more(
    smoke: SmokeSetup, key: str, survivor: SmokeWorker
) -> None:
    """It is told that the lease is lost; its late end frees no other's slot."""
    # With one message not acknowledged it asks the broker for no more; otherwise
    # its connection would take the next one while the worker is stopped.
    once = smoke.task("once")
    leaver = smoke.start_worker("leaver", concurrency=1)
    first = once.delay(key, HELD)
    second = once.delay(key, HELD)
    third = once.delay(key)
    wait_for_runs(smoke, key, 1)
    leaver.pause()
    survivor.consume()

    wait_for_runs(smoke, key, 2)
    leaver.resume()
    # Before the body ends: of what has ended nobody is warned.
    wait_until(lambda: "has lost its lease" in leaver.logs(), that="it is warned")
    smoke.ledger.release(first)
    wait_until(lambda: "is dropped" in leaver.logs(), that="it has ended")
    assert third.phase == "waiting", "the slot of another run was freed"
    smoke.ledger.release(second)

    second.get(timeout=PATIENCE)
    third.get(timeout=PATIENCE)
    runs = {run.task_id: run for run in smoke.ledger.runs(key=key)}
    assert runs[third.id].started >= (runs[second.id].ended or 0)
    assert first.state != "SUCCESS"
    assert smoke.ledger.starts(first.id) == 1
