"""The decorator comes to an app that runs already, with base classes of its own."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers import PATIENCE, wait_until
from tests.smoke.nodes import SmokeSetup, WorkerSpec


#: How often Celery calls which hook of a task that ends in some way.
HOOKS = {
    "succeed": {"before_start": 1, "on_success": 1, "after_return": 1},
    "fail": {"before_start": 1, "on_failure": 1, "after_return": 1},
    "retry": {"before_start": 3, "on_retry": 2, "on_success": 1, "after_return": 1},
    "ignore": {"before_start": 1},
}


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Slots of lost messages come back soon: a first worker waits one lease more."""
    return {
        "bgtask_lease": 3.0,
        "bgtask_sweep_interval": 0.25,
        "bgtask_dispatch_lease": 2.0,
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Each test starts what it needs."""
    return ()


@pytest.mark.parametrize("name", ["single", "strict"])
def test_messages_from_before_the_decorator_are_all_run_within_the_limit(
    smoke: SmokeSetup, key: str, name: str
) -> None:
    """Sent by name, without our header: none is refused, and still one at a time."""
    results = [
        smoke.app.send_task(f"tests.smoke.tasks.{name}", (key, 0.02)) for _ in range(20)
    ]

    smoke.start_worker("new", pool="threads", concurrency=6)

    assert [result.get(timeout=PATIENCE) for result in results] == [key] * 20
    assert smoke.ledger.peak(key) == 1
    assert len(smoke.ledger.runs(key=key)) == 20


def test_a_client_that_is_decorated_first_loses_a_slot_for_a_dispatch_lease_only(
    smoke: SmokeSetup, key: str
) -> None:
    """A worker without the decorator never says that a task has ended."""
    single = smoke.task("single")
    old = smoke.start_worker(
        "old", pool="solo", concurrency=1, tasks="tests.smoke.plain"
    )
    results = [single.delay(key) for _ in range(3)]
    assert results[0].get(timeout=PATIENCE) == key
    assert len(smoke.ledger.runs(key=key)) == 1

    old.kill("SIGTERM", reload_container=False)
    old.wait()
    smoke.start_worker("new", pool="threads", concurrency=2)

    assert [result.get(timeout=PATIENCE) for result in results] == [key] * 3
    assert len(smoke.ledger.runs(key=key)) == 3


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["hooked", "plain_hooked"])
def test_a_base_class_that_overrides_every_hook_breaks_nothing(
    smoke: SmokeSetup, key: str, pool: str, name: str
) -> None:
    """Hooks without ``super()`` are called as ever; slots do not depend on them."""
    task = smoke.task(name)
    smoke.start_worker(pool, pool=pool, concurrency=3)

    ended = {
        task.delay(key, how, **({"countdown": 0} if how == "retry" else {})).id: hooks
        for how, hooks in HOOKS.items()
    }

    def noted() -> dict[str, dict[str, int]]:
        ledger: Any = smoke.ledger.client
        return {
            task_id: {
                hook: int(times)
                for hook, times in ledger.hgetall(f"ledger:hooks:{task_id}").items()
            }
            for task_id in ended
        }

    wait_until(lambda: noted() == ended, that=f"all hooks were called: {ended}")
    assert smoke.ledger.peak(key) == 1
