"""What applications have for their own tests, with a server."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord

from celery_bgtask import BgTask, KeyBlocked, LimitReached, StoreUnavailable
from celery_bgtask.testing import connected, embedded_server, running_worker
from tests.helpers import wait_until


#: Where the app goes outside of the tests: nobody is there.
NOWHERE = "redis://127.0.0.1:1/0"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the module's own: it is emptied."""
    try:
        with embedded_server() as server:
            yield server.url
    except ModuleNotFoundError as exc:
        pytest.skip(str(exc))


def declare(app: Any) -> None:
    """Declare the tasks of an application."""
    limited: Any = {"shared": False, "base": BgTask, "max_per_key": 1}

    @app.task(name="wait", task_key="key", when_full="wait", **limited)
    def wait(key, text=""):
        return text

    @app.task(name="reject", task_key="key", **limited)
    def reject(key):
        return key

    @app.task(shared=False, name="collect")
    def collect(results):
        return results


@pytest.fixture
def shop() -> Iterator[Any]:
    """An application that is set up for its production."""
    app = Celery("shop", broker=NOWHERE, backend=NOWHERE)
    app.conf.update(task_publish_retry=False, redis_password="secret")
    declare(app)
    yield app
    app.close()


def test_calls_are_told_with_where_they_are(shop: Any, url: str) -> None:
    """Dispatched, waiting, cancelled; by the store, at the moment of the question."""
    wait = shop.tasks["wait"]
    with connected(shop, url) as calls:
        results = [wait.delay("a", text=text) for text in "xyz"]
        wait.delay("b")

        states = [call.state for call in calls.submitted(wait, "a")]
        assert states == ["dispatched", "waiting", "waiting"]
        assert [c.arguments["text"] for c in calls.parked(wait, "a")] == ["y", "z"]
        assert calls.parked(wait, "b") == []
        results[1].cancel()
        assert calls.parked(wait).one().id == results[2].id
        assert calls.submitted(wait, text="y").one().state == "ended"


def test_refused_calls_are_told_apart(shop: Any, url: str) -> None:
    """They were not submitted; one that comes again and is taken, was."""
    reject = shop.tasks["reject"]
    with connected(shop, url) as calls:
        first = reject.delay("a")
        with pytest.raises(LimitReached):
            reject.apply_async(("a",), task_id="again")
        reject.control.block("b", "rude")
        with pytest.raises(KeyBlocked):
            reject.delay("b")

        assert [call.key for call in calls.refused(reject)] == ["a", "b"]
        assert calls.submitted(reject).one().id == first.id
        first.cancel()
        reject.apply_async(("a",), task_id="again")
        assert calls.refused(reject).one().key == "b"
        assert [call.id for call in calls.submitted(reject)] == [first.id, "again"]


def test_each_block_begins_with_an_empty_server(shop: Any, url: str) -> None:
    """And ends with the app as it was: its settings, and where it goes."""
    for _ in range(2):
        with connected(shop, url) as calls:
            shop.tasks["reject"].delay("a")
            assert shop.tasks["reject"].control.stats("a").dispatched == 1
            assert calls.submitted().one().state == "dispatched"

    assert shop.conf.broker_url == shop.conf.result_backend == NOWHERE
    assert (shop.conf.redis_password, shop.conf.get("bgtask_redis_url")) == (
        "secret", None
    )  # fmt: skip
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        shop.tasks["reject"].control.stats("a")
    assert shop.producer_pool.connections.connection.port == 1
    backend: Any = shop.backend
    assert backend.client.connection_pool.connection_kwargs["port"] == 1


def test_the_environment_does_not_name_another_server(
    shop: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Celery's variables would win over the settings."""
    monkeypatch.setenv("CELERY_BROKER_URL", NOWHERE)
    monkeypatch.setenv("CELERY_RESULT_BACKEND", NOWHERE)

    with connected(shop, url) as calls:
        shop.tasks["collect"].delay([])
        assert calls.submitted("collect").one().state == "dispatched"

    assert os.environ["CELERY_BROKER_URL"] == NOWHERE


def test_an_app_with_a_namespace_is_given_the_server_too(url: str) -> None:
    """As Django's settings have one."""
    settings: Any = type("Settings", (), {
        "CELERY_BROKER_URL": NOWHERE,
        "CELERY_RESULT_BACKEND": NOWHERE,
        "CELERY_BGTASK_KEY_PREFIX": "mine",
        "CELERY_TASK_ALWAYS_EAGER": True,
    })  # fmt: skip
    app = Celery("spaced", set_as_current=False)
    app.config_from_object(settings, namespace="CELERY")
    declare(app)

    with connected(app, url) as calls:
        app.tasks["wait"].delay("a")
        app.tasks["wait"].delay("a")
        assert calls.parked("wait").one().key == "a"
    assert app.conf.task_always_eager is True
    app.close()


def test_what_a_worker_submits_is_told_too(shop: Any, url: str) -> None:
    """The worker of the test is a thread: it sees and is seen."""
    shop.set_current()
    wait = shop.tasks["wait"]
    before = logging.root.level, [*logging.root.handlers], sys.stdout
    with connected(shop, url) as calls:
        result = chord(
            (wait.s("a", text) for text in "xy"), shop.tasks["collect"].s()
        )()
        with running_worker(shop):
            assert sorted(result.get(timeout=30)) == ["x", "y"]
            wait_until(
                lambda: {call.state for call in calls.submitted()} == {"ended"},
                that="all has ended",
            )
        assert [call.task for call in calls.submitted()] == ["wait", "wait", "collect"]
        assert (logging.root.level, [*logging.root.handlers], sys.stdout) == before
