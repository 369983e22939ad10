"""What an operator does takes hold of running workers, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import group

from celery_bgtask import KeyBlocked, TaskCancelled
from celery_bgtask.control import check as check_module
from tests.helpers import wait_until
from tests.smoke.nodes import SmokeSetup, WorkerSpec
from tests.smoke.operator_tasks import BLOCK, MODULE, gated_of, open_gates


#: Seconds after which a lost message has cost its slot.
DISPATCH_LEASE = 6.0

Submit = Callable[..., list[Any]]

WORKERS = (
    WorkerSpec("prefork", 3, tasks=MODULE),
    WorkerSpec("threads", 4, tasks=MODULE),
)

#: Workers that a test starts itself, when it wants them.
nobody = pytest.mark.parametrize(
    "smoke_workers", [()], ids=["nobody"], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases."""
    return {
        "bgtask_lease": 6,
        "bgtask_sweep_interval": 0.25,
        "bgtask_dispatch_lease": DISPATCH_LEASE,
    }


@pytest.fixture(scope="module")
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """Two, with seven places."""
    return getattr(request, "param", WORKERS)


@pytest.fixture
def gated(smoke: SmokeSetup) -> Any:
    """The task whose bodies wait for their gates."""
    return gated_of(smoke.app)


@pytest.fixture
def submit(gated: Any, key: str) -> Submit:
    """Submits calls of one key, numbered from 0 on."""

    def submit(count: int, start: int = 0) -> list[Any]:
        return [gated.delay(key, number) for number in range(start, start + count)]

    return submit


@pytest.fixture
def let(smoke: SmokeSetup, key: str) -> Callable[..., None]:
    """Opens gates."""

    def let(*numbers: int) -> None:
        open_gates(smoke.ledger.client, key, *numbers)

    return let


def runs(smoke: SmokeSetup, key: str, count: int, within: float = 20.0) -> None:
    """Wait until so many bodies of the key run."""
    wait_until(
        lambda: smoke.ledger.running(key) == count, within=within, that=f"{count} run"
    )


def started_after_end(smoke: SmokeSetup, later: Any, earlier: Any) -> bool:
    """Whether a body has started when another one had ended."""
    [first] = smoke.ledger.runs(task_id=earlier.id)
    [second] = smoke.ledger.runs(task_id=later.id)
    return first.ended is not None and second.started >= first.ended


def test_raising_a_limit_starts_what_waits_at_once(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """While the one that runs runs on: nobody has to release anything."""
    results = submit(5)
    runs(smoke, key, 1)

    gated.control.set_limit(key, 3)

    runs(smoke, key, 3)
    stats = gated.control.stats(key)
    assert (stats.running, stats.waiting, stats.limit) == (3, 2, 3)
    let(*range(5))
    assert [r.get(timeout=30) for r in results] == list(range(5))
    assert smoke.ledger.peak(key) == 3
    gated.control.reset_limit(key)


def test_lowering_a_limit_kills_nothing(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """What runs goes on; freed slots are swallowed until the count fits."""
    gated.control.set_limit(key, 3)
    results = submit(4)
    runs(smoke, key, 3)

    gated.control.set_limit(key, 1)
    let(0, 1)
    assert [results[n].get(timeout=30) for n in (0, 1)] == [0, 1]
    assert gated.control.stats(key).waiting == 1
    let(2, 3)

    assert [results[n].get(timeout=30) for n in (2, 3)] == [2, 3]
    assert started_after_end(smoke, results[3], results[2])
    assert smoke.ledger.peak(key) == 3
    assert all(smoke.ledger.starts(r.id) == 1 for r in results)
    gated.control.reset_limit(key)


def test_a_limit_of_its_own_outlives_the_workers(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """Also a limit of 0: it is the store that remembers."""
    gated.control.set_limit(key, 0)
    results = submit(3)
    late = smoke.start_worker("late", pool="threads", concurrency=4, tasks=MODULE)
    assert gated.control.stats(key).waiting == 3
    assert gated.control.explain(results[0].id).reason == "limit-zero"

    gated.control.set_limit(key, 2)
    runs(smoke, key, 2)
    let(0, 1, 2)

    assert [r.get(timeout=30) for r in results] == [0, 1, 2]
    assert smoke.ledger.peak(key) == 2
    assert gated.control.reset_limit(key).limit == 1
    late.container.stop()


def test_a_pause_stops_what_arrives_and_not_what_runs(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """And its end starts all in their order."""
    running, *rest = submit(4)
    runs(smoke, key, 1)

    gated.control.pause()
    let(*range(4))
    assert running.get(timeout=30) == 0
    other = gated.delay(f"{key}-other", 0)
    open_gates(smoke.ledger.client, f"{key}-other", 0)
    assert gated.control.explain(other.id).reason == "paused"
    assert smoke.ledger.order(key) == [running.id]

    gated.control.resume()

    assert [r.get(timeout=30) for r in rest] == [1, 2, 3]
    assert other.get(timeout=30) == 0
    assert smoke.ledger.order(key) == [r.id for r in (running, *rest)]


@nobody
def test_what_is_with_the_broker_in_a_pause_is_parked_when_it_arrives(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """It gives up its slot, its message is acked, and it goes on before others."""
    results = submit(3)
    gated.control.pause()
    let(0, 1, 2)

    smoke.start_worker("solo", pool="solo", concurrency=1, tasks=MODULE)
    wait_until(
        lambda: gated.control.stats(key).waiting == 3, within=20, that="it is parked"
    )
    assert gated.control.stats(key).held == 0
    assert smoke.ledger.order(key) == []
    gated.control.resume()

    assert [r.get(timeout=30) for r in results] == [0, 1, 2]
    assert smoke.ledger.order(key) == [r.id for r in results]


def test_strikes_block_a_key_and_the_block_ends_by_time(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """What runs goes on, what waits stays parked, and starts when the time is over."""
    submit(1, start=9)  # holds the slot until all are submitted
    bad = gated.delay(key, 0, strikes=3)
    [waits] = submit(1, start=1)
    let(9)
    wait_until(
        lambda: gated.control.stats(key).blocked, within=20, that="it is blocked"
    )
    stats = gated.control.stats(key)
    [block] = gated.control.blocked()
    let(0, 1)

    with pytest.raises(KeyBlocked, match="bad row") as caught:
        gated.delay(key, 2)
    assert 0 < (caught.value.remaining or 0) <= BLOCK
    assert (stats.running, stats.waiting) == (1, 1)
    assert (block.reason, block.until) == ("bad row", stats.blocked_until)
    assert bad.get(timeout=30) == 0
    assert waits.get(timeout=30) == 1

    [run] = smoke.ledger.runs(task_id=waits.id)
    assert run.started >= (block.until or 0)
    assert not gated.control.stats(key).blocked


def test_a_block_ends_by_hand(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """Other keys never notice; what waits goes on at once."""
    running, waits = submit(2)
    runs(smoke, key, 1)
    gated.control.block(key, "customer calls")
    let(0, 1)
    assert running.get(timeout=30) == 0
    open_gates(smoke.ledger.client, f"{key}-other", 7)

    assert gated.delay(f"{key}-other", 7).get(timeout=30) == 7
    assert gated.control.stats(key).waiting == 1
    assert smoke.ledger.starts(waits.id) == 0
    found = gated.control.explain(waits.id)
    assert (found.reason, found.blocked_reason) == ("blocked", "customer calls")

    assert gated.control.unblock(key)
    assert waits.get(timeout=30) == 1


def test_a_purge_ends_what_waits_and_not_what_runs(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """A worker concludes the rest; nothing is left, as the fixture checks."""
    running, *waiting = submit(6)
    runs(smoke, key, 1)
    whole = group(gated.si(key, 6)).apply_async()

    assert gated.control.purge(key) == 6

    assert [r.state for r in waiting] == ["REVOKED"] * 5
    for result in (*waiting, whole):
        with pytest.raises(TaskCancelled, match="purged"):
            result.get(timeout=30)
    let(0)
    assert running.get(timeout=30) == 0
    assert smoke.ledger.order(key) == [running.id]


def test_a_slot_that_is_forced_free_is_used_at_once(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """The body that had it runs beside, and what it returns is dropped."""
    stuck, waits = submit(2)
    runs(smoke, key, 1)

    assert gated.control.release(key, stuck.id)
    assert not gated.control.release(key, stuck.id)

    runs(smoke, key, 2)
    assert stuck.state == "REVOKED"
    let(1)
    assert waits.get(timeout=30) == 1
    let(0)
    runs(smoke, key, 0)
    with pytest.raises(TaskCancelled, match="released"):
        stuck.get(timeout=30)


def test_a_drain_starts_all_whatever_the_limit(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """Each once."""
    results = submit(5)
    runs(smoke, key, 1)

    assert gated.control.drain() == 4

    runs(smoke, key, 5)
    let(*range(5))
    assert [r.get(timeout=30) for r in results] == list(range(5))
    assert all(smoke.ledger.starts(r.id) == 1 for r in results)


def test_a_call_is_cancelled_by_its_id(
    smoke: SmokeSetup, gated: Any, key: str, submit: Submit, let: Any
) -> None:
    """From the control, as from the result."""
    running, waits = submit(2)
    runs(smoke, key, 1)

    assert gated.control.cancel(waits.id, "not needed").was == "waiting"

    with pytest.raises(TaskCancelled, match="not needed"):
        waits.get(timeout=30)
    let(0)
    assert running.get(timeout=30) == 0


@nobody
def test_what_celery_purge_has_lost_is_found_and_published_again(
    smoke: SmokeSetup,
    gated: Any,
    key: str,
    let: Any,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check says which and how; each runs once."""
    monkeypatch.setattr(check_module, "SETTLED", 0.0)
    gated.control.set_limit(key, 3)
    results = submit(4)
    let(*range(4))
    assert smoke.app.control.purge() == 3

    found = gated.control.check()
    assert {(f.problem, f.subject) for f in found} == {
        ("message-lost", r.id) for r in results[:3]
    }
    for finding in found:
        assert finding.remedy == f"celery bgtask redispatch {finding.subject}"
        assert gated.control.redispatch(finding.subject)
    assert gated.control.check() == []
    smoke.start_worker("after", pool="threads", concurrency=4, tasks=MODULE)

    assert [r.get(timeout=30) for r in results] == [0, 1, 2, 3]
    assert all(smoke.ledger.starts(r.id) == 1 for r in results)
    gated.control.reset_limit(key)


@nobody
def test_what_celery_purge_has_lost_costs_a_slot_for_a_dispatch_lease(
    smoke: SmokeSetup, gated: Any, key: str, let: Any, submit: Submit
) -> None:
    """Left alone it heals; and the lost one runs when it is published again."""
    lost, waits = submit(2)
    let(0, 1)
    assert smoke.app.control.purge() == 1
    began = gated.control.explain(lost.id).at

    smoke.start_worker("after", pool="threads", concurrency=4, tasks=MODULE)
    assert waits.get(timeout=DISPATCH_LEASE + 40) == 1

    [run] = smoke.ledger.runs(task_id=waits.id)
    assert run.started >= began
    assert gated.control.explain(lost.id).reason == "lapsed"
    [finding] = gated.control.check()
    assert (finding.problem, finding.subject) == ("message-lost", lost.id)
    assert gated.control.redispatch(lost.id)
    assert lost.get(timeout=30) == 0


def test_a_check_of_busy_workers_finds_nothing(
    smoke: SmokeSetup, gated: Any, key: str
) -> None:
    """Whatever is going on just then is not taken for damage."""
    keys = [f"{key}-{number}" for number in range(5)]
    for each in keys:
        open_gates(smoke.ledger.client, each, 0)
    results: list[Any] = []
    for _ in range(10):
        results += [gated.delay(each, 0) for each in keys * 4]
        assert gated.control.check() == []
    while not all(result.ready() for result in results):
        assert gated.control.check() == []

    assert gated.control.repair() == []


def test_what_a_worker_has_received_is_not_lost(
    smoke: SmokeSetup,
    gated: Any,
    key: str,
    submit: Submit,
    let: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its queue is empty, its body has not started, and a check finds nothing."""
    monkeypatch.setattr(check_module, "SETTLED", 0.0)
    gated.control.set_limit(key, 10)
    results = submit(10)
    runs(smoke, key, 7)
    queue = smoke.app.conf.task_default_queue
    wait_until(lambda: not smoke.store.llen(queue), within=20, that="all are received")
    assert gated.control.stats(key).dispatched == 3

    assert gated.control.check() == []

    let(*range(10))
    assert [r.get(timeout=30) for r in results] == list(range(10))
    gated.control.reset_limit(key)
