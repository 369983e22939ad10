"""Several apps in one process: each has its own tasks, limits, store names, workers."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery, chain, shared_task

from celery_bgtask import LimitReached, bgtask
from celery_bgtask.extension import extension_of
from tests.compat.conftest import PATIENCE, Compared, current, value_of
from tests.compat.tasks import MODULE
from tests.helpers import wait_until, wait_until_drained
from tests.smoke.app import make_app
from tests.smoke.nodes import WorkerSpec, make_worker


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """What the first app says of tasks that do not say it themselves."""
    return {"bgtask_max_per_key": 1, "bgtask_when_full": "reject"}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """The worker of the first app."""
    return (WorkerSpec("threads", 4, tasks=MODULE),)


@pytest.fixture(scope="module")
def second(celery_setup_app: Celery) -> Iterator[Celery]:
    """Another app of this process on the same server, with a worker of its own."""
    name = f"second-{uuid.uuid4().hex[:6]}"
    conf = {
        **celery_setup_app.conf["smoke_conf"],
        "task_default_queue": name,
        "bgtask_key_prefix": f"bgtask:{name}",
        "bgtask_max_per_key": 2,
    }
    app = make_app(name, {**conf, "smoke_conf": conf})
    worker = make_worker(app, WorkerSpec("threads", 4, tasks=MODULE), name="second")
    try:
        worker.ready()
        yield app
    finally:
        worker.teardown()
        extension_of(app).close()
        app.close()


def test_a_slot_of_one_app_is_none_of_the_other(
    both: Compared, second: Celery, key: str
) -> None:
    """The same task, the same server: each app counts for itself."""
    first = both.setup.app
    holders = []
    for app in (first, second):
        strict = app.tasks["limited.strict"]
        holders.append(strict.delay(until=key))
        with pytest.raises(LimitReached):
            strict.delay()

    both.setup.ledger.client.rpush(f"ledger:go:{key}", "go", "go")

    assert [value_of(holder) for holder in holders] == ["done", "done"]
    wait_until_drained(both.setup.store, prefix=second.conf.bgtask_key_prefix)


def test_what_a_task_does_not_say_its_app_says(
    both: Compared, second: Celery, key: str
) -> None:
    """One slot in the first app, two in the second."""
    expected = {both.setup.app.main: 1, second.main: 2}
    limits = {}
    for app in (both.setup.app, second):
        undecided = app.tasks["limited.undecided"]
        results = [undecided.delay(until=key) for _ in range(expected[app.main])]
        with pytest.raises(LimitReached) as error:
            undecided.delay(until=key)
        limits[app.main] = error.value.limit
        both.setup.ledger.client.rpush(f"ledger:go:{key}", *["go"] * len(results))
        assert [value_of(result) for result in results] == [None] * len(results)

    assert limits == expected


def test_a_canvas_stays_in_its_app(both: Compared, second: Celery) -> None:
    """Its steps are run by the workers of the app that is current."""
    for app in (both.setup.app, second):
        with current(app):
            result = chain(
                app.tasks["limited.echo"].s("x"), app.tasks["limited.where"].s()
            )()
            assert value_of(result) == app.main


def test_apps_are_used_side_by_side_by_threads(both: Compared, second: Celery) -> None:
    """Each call comes back from its own app, and no call is lost or refused."""
    apps = [both.setup.app, second]

    def call(number: int) -> tuple[str, str]:
        app = apps[number % 2]
        result = app.tasks["limited.where_waiting"].delay()
        wait_until(result.ready, within=PATIENCE, that="it has ended")
        return str(app.main), result.result

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(call, range(24)))

    assert [answer for _, answer in answers] == [name for name, _ in answers]
    wait_until_drained(both.setup.store, prefix=second.conf.bgtask_key_prefix)


def test_a_task_belongs_to_the_app_that_is_current() -> None:
    """What ``@bgtask`` and ``@shared_task`` return is of the current app, each time."""
    apps = [Celery(f"app-{number}", set_as_current=False) for number in range(2)]
    for app in apps:
        app.conf.update(broker_url="memory://", result_backend="cache+memory://")

    @shared_task(name="compat.plain")
    def plain() -> None: ...

    @bgtask(name="compat.limited")
    def limited() -> None: ...

    for app in apps:
        with current(app):
            assert plain.app is app
            assert limited.app is app
            assert limited.bgtask.scope == "compat.limited"
    assert apps[0].tasks["compat.limited"] is not apps[1].tasks["compat.limited"]
    for app in apps:
        app.close()
