"""The same with plain tasks and with bgtasks, on workers as the smoke tests have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from celery import Celery
from celery import _state as celery_state
from celery.result import AsyncResult

from tests.compat import tasks
from tests.compat.tasks import KINDS, MODULE
from tests.helpers import wait_until
from tests.smoke.conftest import (
    _results_go_quietly,
    amqp,
    celery_backend_cluster,
    celery_broker_cluster,
    celery_setup_app,
    celery_setup_cls,
    celery_worker_cluster,
    key,
    pytest_runtest_makereport,
    smoke,
    smoke_broker,
    smoke_conf,
    smoke_store,
)
from tests.smoke.nodes import SmokeSetup, WorkerSpec


__all__ = [
    "_results_go_quietly", "amqp", "celery_backend_cluster", "celery_broker_cluster",
    "celery_setup_app", "celery_setup_cls", "celery_worker_cluster", "key",
    "pytest_runtest_makereport", "smoke", "smoke_broker", "smoke_conf", "smoke_store",
]  # fmt: skip

FOLDER = Path(__file__).parent

#: Seconds in which anything here has ended, on a machine that stalls, too.
PATIENCE = 25.0

T = TypeVar("T")

del tasks  # imported for what it registers, once for all apps of this process


class Compared:
    """Does the same with plain tasks and with bgtasks, and compares what comes out.

    Args:
        setup: With a worker that runs both.
    """

    def __init__(self, setup: SmokeSetup) -> None:
        self.setup = setup
        self.kinds = {kind: self._tasks(kind) for kind in KINDS}

    def _tasks(self, kind: str) -> SimpleNamespace:
        prefix = f"{kind}."
        return SimpleNamespace(
            kind=kind,
            **{
                name.removeprefix(prefix): task
                for name, task in self.setup.app.tasks.items()
                if name.startswith(prefix)
            },
        )

    @property
    def limited(self) -> SimpleNamespace:
        """The bgtasks."""
        return self.kinds["limited"]

    def __call__(
        self,
        submit: Callable[[SimpleNamespace], Any],
        see: Callable[[Any], T] | None = None,
    ) -> T:
        """Submit both, then look at both; return what must have been equal.

        Args:
            submit: Is given the tasks of one kind, by name.
            see: Is given what that returned, and returns what to compare; by
                default what the result's ``get`` returns.
        """
        submitted = {kind: submit(tasks) for kind, tasks in self.kinds.items()}
        look: Callable[[Any], Any] = see or value_of
        seen = {kind: look(result) for kind, result in submitted.items()}
        assert seen["limited"] == seen["plain"]
        return seen["plain"]

    def notes(self, name: str, *, count: int = 1) -> list[str]:
        """What tasks have noted under *name*, when there is so much of it."""
        client: Any = self.setup.ledger.client
        return wait_until(
            lambda: (
                found
                if len(found := client.lrange(f"ledger:notes:{name}", 0, -1)) >= count
                else []
            ),
            within=PATIENCE,
            that=f"{count} were noted as {name}",
        )


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One worker, with processes."""
    return (WorkerSpec("prefork", 4, tasks=MODULE),)


@pytest.fixture
def both(smoke: SmokeSetup) -> Iterator[Compared]:
    """Does the same with plain tasks and with bgtasks."""
    with current(smoke.app):
        yield Compared(smoke)


@contextlib.contextmanager
def current(app: Celery) -> Iterator[None]:
    """Let Celery's canvas find the tasks of *app*."""
    state: Any = celery_state  # private: it has no types
    before, default = state._tls.current_app, state.default_app
    app.set_current()
    try:
        yield
    finally:
        state._tls.current_app, state.default_app = before, default


def value_of(result: Any) -> Any:
    """What a result's ``get`` returns."""
    return result.get(timeout=PATIENCE)


def ending_of(result: AsyncResult) -> tuple[str, str, str]:
    """The final state of a task, and the type and text of what it stored."""
    wait_until(result.ready, within=PATIENCE, that=f"{result.id} has ended")
    value = result.result
    return result.state, type(value).__name__, str(value)


def until(moment: float) -> None:
    """Wait for a moment: of what must not happen before it."""
    time.sleep(max(0.0, moment - time.time()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if item.path.is_relative_to(FOLDER):
            item.add_marker("worker")
