"""Apps as tests need them: eager, or with a server and a worker of their own."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging
from kombu import pools
from redis import Redis

from ..extension import extension_of
from .calls import Recorder


__all__ = ["connected", "eager", "running_worker"]

#: They would be stronger than the settings.
VARIABLES = (
    "CELERY_BROKER_URL",
    "CELERY_BROKER_READ_URL",
    "CELERY_BROKER_WRITE_URL",
    "CELERY_RESULT_BACKEND",
)

#: Where an app goes, and what only its usual servers need.
PLAIN_SERVER: dict[str, Any] = {
    "broker_read_url": None,
    "broker_write_url": None,
    "broker_user": None,
    "broker_password": None,
    "broker_use_ssl": False,
    "redis_username": None,
    "redis_password": None,
    "redis_backend_use_ssl": None,
    "task_always_eager": False,
}

#: Seconds in which a worker has ended what it runs.
SHUTDOWN = 60.0


@contextlib.contextmanager
def eager(app: Celery, *, propagates: bool = True) -> Iterator[Recorder]:
    """Run tasks of *app* where they are called, for the time of a ``with`` block.

    Neither a server nor a worker is needed: there are no limits and no timeouts,
    and what a task reports its callbacks hear at once.

    Args:
        app: The Celery app.
        propagates: Whether ``delay()`` raises what the task raises, so that no
            failure goes unseen; in production only ``get()`` does.
    """
    settings = {"task_always_eager": True, "task_eager_propagates": propagates}
    with changed(app, settings), Recorder(app, is_eager=True).recording() as calls:
        yield calls


@contextlib.contextmanager
def connected(app: Celery, url: str) -> Iterator[Recorder]:
    """Give *app* another server, for the time of a ``with`` block.

    The server is its broker, its result backend and its store. Without a worker
    nothing runs, and a test can look at what was submitted.

    Args:
        app: The Celery app.
        url: A database of a Redis or Valkey server. It is emptied first.
    """
    settings = {
        **PLAIN_SERVER,
        "broker_url": url,
        "result_backend": url,
        "bgtask_redis_url": url,
    }
    with Redis.from_url(url) as client:
        client.flushdb()
    try:
        with without_variables(), changed(app, settings):
            reset(app)
            try:
                with Recorder(app).recording() as calls:
                    yield calls
            finally:
                close(app)
    finally:
        reset(app)


@contextlib.contextmanager
def running_worker(app: Celery, *, concurrency: int = 2) -> Iterator[Any]:
    """Run a worker of *app* in a thread, for the time of a ``with`` block.

    Args:
        app: The Celery app.
        concurrency: How many tasks run at a time, in threads.
    """
    # Who hears this signal sets logging up, and that is the test runner.
    setup_logging.connect(leave_as_it_is)
    try:
        with start_worker(
            app,
            concurrency=concurrency,
            pool="threads",
            perform_ping_check=False,
            shutdown_timeout=SHUTDOWN,
        ) as worker:
            yield worker
    finally:
        setup_logging.disconnect(leave_as_it_is)


def leave_as_it_is(**_kwargs: Any) -> None:
    """Set no logging up."""


@contextlib.contextmanager
def changed(app: Celery, settings: dict[str, Any]) -> Iterator[None]:
    """Change settings of *app* for the time of a ``with`` block."""
    before = {name: app.conf.get(name) for name in settings}
    configure(app, settings)
    try:
        yield
    finally:
        configure(app, before)


def configure(app: Celery, settings: dict[str, Any]) -> None:
    """Set settings of *app*, also by the names that they have in its namespace."""
    prefix = getattr(app.conf, "prefix", None) or ""
    for name, value in settings.items():
        app.conf[name] = value
        if prefix:  # before Celery 5.7 such a name was stronger, wherever it was set
            own = prefix + name
            app.conf[own.upper() if prefix.isupper() else own] = value


@contextlib.contextmanager
def without_variables() -> Iterator[None]:
    """Hide what the environment says of servers, for the time of a ``with`` block."""
    hidden = {name: os.environ.pop(name) for name in VARIABLES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def reset(app: Celery) -> None:
    """Forget what *app* has made of its settings: connections and the result backend.

    As Celery does it after a fork.
    """
    state: Any = app  # none of this has types
    state._after_fork()  # noqa: SLF001
    state._local = threading.local()  # noqa: SLF001
    state._backend_cache = None  # noqa: SLF001
    extension_of(app).reconfigure()


def close(app: Celery) -> None:
    """Close the connections of *app*: to its broker, and where it hears of results."""
    with app.connection_for_write() as connection:
        for group in (pools.producers, pools.connections):
            group[connection].force_close_all()
            del group[connection]
    consumer = getattr(app.backend, "result_consumer", None)
    if consumer is not None:
        with contextlib.suppress(Exception):  # it may never have been opened
            consumer.stop()
