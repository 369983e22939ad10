"""Where the benchmarks happen: servers, workers and apps, started when needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar, cast

from celery import Celery
from redis import Redis

from celery_bgtask.extension import extension_of
from celery_bgtask.testing import EmbeddedServer, embedded_server

from . import bare, tasks
from .workers import PATIENCE, running_worker


__all__ = ["World"]

T = TypeVar("T")


class World:
    """What rows measure in; all of it ends with the ``with`` block.

    Args:
        short: Whether less will do.
    """

    def __init__(self, *, short: bool = False) -> None:
        self.short = short
        self._stack = ExitStack()
        self._workers: set[str] = set()
        self._kept: dict[str, Any] = {}
        self._server: Any = None
        self.notes: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> World:  # noqa: PYI034 - Self came with Python 3.11
        self._server = self._stack.enter_context(
            embedded_server(url=os.environ.get("REDIS_URL"))
        )
        for app in (tasks.app, bare.app):
            app.conf.update(broker_url=self.url, result_backend=self.url)
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.__exit__(None, None, None)

    @property
    def url(self) -> str:
        """The server that the workers use."""
        return str(self._server.url)

    @property
    def version(self) -> str:
        """Name and version of that server."""
        with self.redis() as client:
            info: Any = client.info("server")
        name = info.get("server_name", "redis")
        return f"{name} {info.get(name + '_version', info['redis_version'])}"

    @property
    def tasks(self) -> tasks.Tasks:
        """The tasks, with a worker of two processes that runs them."""
        self._start("benchmarks.tasks")
        tasks.tasks.plain.delay().get(PATIENCE)
        return tasks.tasks

    @property
    def bare(self) -> Any:
        """A task of an app without this package, with a worker of its own."""
        self._start("benchmarks.bare")
        bare.plain.delay().get(PATIENCE)
        return bare.plain

    @contextmanager
    def server(self) -> Iterator[EmbeddedServer]:
        """A server of a row's own, where no worker is."""
        with embedded_server() as server:
            yield server

    @contextmanager
    def redis(self) -> Iterator[Redis]:
        """A client of the server that the workers use."""
        with Redis.from_url(self.url) as client:
            yield client

    def keep(self, name: str, make: Callable[[], AbstractContextManager[T]]) -> T:
        """Return what *make* makes, the same for each row that asks."""
        if name not in self._kept:
            self._kept[name] = self._stack.enter_context(make())
        return cast("T", self._kept[name])

    def note(self, about: str, **facts: Any) -> None:
        """Keep what was seen beside the figures, for the JSON."""
        self.notes.setdefault(about, {}).update(facts)

    def close(self, app: Celery) -> None:
        """Close what an app of a row has open."""
        consumer = getattr(app.backend, "result_consumer", None)
        if consumer is not None:
            consumer.stop()
        extension_of(app).close()
        app.close()

    def _start(self, module: str) -> None:
        if module not in self._workers:
            self._stack.enter_context(running_worker(module, self.url))
            self._workers.add(module)
