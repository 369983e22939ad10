"""Tasks on a real server; a worker, where one is needed, is a thread."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, _state
from celery.backends.redis import RedisBackend
from celery.contrib.testing.worker import start_worker
from kombu import Message as KombuMessage
from redis import Redis

from celery_bgtask import BgTask


@pytest.fixture(autouse=True)
def _one_app_of_this_test(app: Celery) -> Iterator[None]:
    """Celery's canvas looks for tasks in the current app."""
    state: Any = _state  # the stub knows nothing of what it keeps
    current, default = state._tls.current_app, state.default_app
    app.set_current()
    app.conf.update(
        task_publish_retry_policy={"max_retries": 1, "interval_start": 0.01},
        broker_transport_options={"socket_connect_timeout": 2},
        worker_hijack_root_logger=False,
    )
    yield
    if isinstance(app.backend, RedisBackend):
        # Or a result that is forgotten later wants to unsubscribe, from no server.
        consumer = app.backend.result_consumer  # type: ignore[attr-defined]
        consumer.stop()
    state._tls.current_app, state.default_app = current, default


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_left_to_collect() -> Iterator[None]:
    """What a worker in a thread leaves open is not found by another folder."""
    yield
    gc.collect()


@pytest.fixture
def declare(app: Celery) -> Callable[..., Any]:
    """Declares a task that returns its argument, with a key and one slot."""

    def declare(name: str = "echo", body: Any = None, **options: Any) -> Any:
        def echo(k=0, value=None):
            return value

        options = {"task_key": "k", "max_per_key": 1, "shared": False, **options}
        return app.task(base=BgTask, name=name, lazy=False, **options)(body or echo)

    return declare


@pytest.fixture
def queued(app: Celery, redis: Redis) -> Callable[[], list[KombuMessage]]:
    """Takes all messages that the broker has."""

    def queued() -> list[KombuMessage]:
        taken = []
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            queue = app.amqp.queues[app.conf.task_default_queue]
            queue = queue(channel)
            while (message := queue.get(no_ack=True)) is not None:
                taken.append(message)
        return taken

    return queued


@pytest.fixture
def keys(redis: Redis, app: Celery) -> Callable[[], list[str]]:
    """Lists our keys by the part of the name after the hash tag."""

    def keys() -> list[str]:
        prefix = app.conf.bgtask_key_prefix
        return sorted(
            name.partition("}:")[2] for name in redis.scan_iter("{" + prefix + "*")
        )

    return keys


@pytest.fixture
def worker(app: Celery) -> Callable[..., contextlib.AbstractContextManager[Any]]:
    """Starts a worker in a thread, for the time of a ``with`` block."""

    def worker(pool: str = "solo", **options: Any) -> Any:
        return start_worker(
            app,
            pool=pool,
            perform_ping_check=False,
            shutdown_timeout=60,
            loglevel="warning",
            **options,
        )

    return worker


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Do not take the sockets that Celery leaves open for those of a test."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for name in ("ResourceWarning", "pytest.PytestUnraisableExceptionWarning"):
                item.add_marker(
                    pytest.mark.filterwarnings(f"ignore:.*<socket.socket:{name}")
                )
