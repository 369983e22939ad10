"""What the tests of deadlines, cancelling and lost workers have in common."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from tests.helpers import wait_until
from tests.smoke.deadline_tasks import ERRORS, MODULE
from tests.smoke.nodes import SmokeSetup


SWEEP = 0.25

#: Losing a lease is not what these tests are about: it outlasts a standstill.
CONF = {"bgtask_lease": 10, "bgtask_sweep_interval": SWEEP}

#: What a call says to the body, not to the broker.
FACTS = {"pause", "seconds", "times", "value"}

#: How often a task may miss a deadline of a second before its start.
TRIES = 10

#: Without any worker; a test may start one.
nobody = pytest.mark.parametrize(
    "smoke_workers", [()], ids=["nobody"], indirect=True, scope="module"
)

#: The broker has no part in it.
redis_only = pytest.mark.parametrize(
    "smoke_broker", ["redis"], indirect=True, scope="module"
)


def on(*pools: str) -> pytest.MarkDecorator:
    """Run a test on the worker of each of *pools*."""
    return pytest.mark.parametrize("pool", pools)


def task_of(app: Celery, name: str) -> Any:
    """The task of :mod:`tests.smoke.deadline_tasks` that *app* calls *name*."""
    return app.tasks[f"{MODULE}.{name}"]


def submit(
    smoke: SmokeSetup, name: str, key: str, how: str = "sleep", **options: Any
) -> Any:
    """Submit a task; among *options* are the facts that its body gets."""
    facts = {fact: options.pop(fact) for fact in FACTS & options.keys()}
    return task_of(smoke.app, name).apply_async((key, how), facts, **options)


def started_in_time(smoke: SmokeSetup, submit: Callable[[], Any]) -> tuple[Any, float]:
    """Submit until a body has started before its task's deadline.

    A machine that stands still takes a deadline of a second along, rightly: then
    there is nothing to see of what comes after a start.

    Returns:
        The result of the task whose body has started, and when it was submitted.
    """
    for _ in range(TRIES):
        begun = time.monotonic()
        result = submit()
        wait_until(
            lambda: smoke.ledger.starts(result.id) or result.ready(),  # noqa: B023
            that="it has started, or ended",
        )
        if smoke.ledger.starts(result.id):
            return result, begun
    raise AssertionError(f"none of {TRIES} tasks has started in its time")


def wait_for_start(smoke: SmokeSetup, *results: Any, times: int = 1) -> None:
    """Wait until the body of each task has started so often."""
    wait_until(
        lambda: all(smoke.ledger.starts(result.id) >= times for result in results),
        that=f"all have started {times} times",
    )


def wait_for_state(result: Any, state: str) -> None:
    """Look at the state only: nobody waits for the task."""
    wait_until(lambda: result.state == state, that=f"{result.id} is {state}")


def told(smoke: SmokeSetup) -> Any:
    """An errback that writes down that the error of a task was told, and where."""
    return task_of(smoke.app, "errback").s(smoke.conf["smoke_ledger_url"])


def errors_told(smoke: SmokeSetup, result: Any) -> list[dict[str, Any]]:
    """What the errback was told of a task: the error's type, and the process."""
    facts: Any = smoke.ledger.client.lrange(ERRORS + result.id, 0, -1)
    return [json.loads(fact) for fact in facts]


def error_told(smoke: SmokeSetup, result: Any) -> dict[str, Any]:
    """Wait until the errback was told of a task, which must be once."""
    (fact,) = wait_until(
        lambda: errors_told(smoke, result), that=f"the error of {result.id} was told"
    )
    return fact
