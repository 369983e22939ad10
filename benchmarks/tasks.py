"""The tasks that the benchmarks run: Celery's own, and the same with limits."""

from __future__ import annotations

import os
import time
from typing import Any, NamedTuple

from celery import Celery
from redis import Redis

from celery_bgtask import bgtask


__all__ = ["Tasks", "app", "make_app", "tasks", "tasks_of"]

URL = os.environ.get("BENCHMARK_URL", "redis://127.0.0.1:6379/0")

#: A limit that no benchmark reaches.
PLENTY = 1_000_000

#: How long a lock lasts that nobody gives back.
LOCK_TTL = 60


class Tasks(NamedTuple):
    """The tasks of an app; each returns when its body has begun, in ns."""

    plain: Any
    limited: Any
    offered: Any
    job: Any
    retried: Any


def make_app(url: str) -> Celery:
    """Return an app whose broker, result backend and store are the server at *url*."""
    made = Celery("benchmark", broker=url, backend=url)
    made.conf.update(
        broker_connection_retry_on_startup=True,
        task_default_queue="benchmark",
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_enable_remote_control=False,
    )
    return made


def tasks_of(made: Celery) -> Tasks:
    """Declare the tasks with an app."""

    @made.task(name="plain", shared=False)
    def plain() -> int:
        """Celery's own."""
        return time.monotonic_ns()

    @bgtask(max_per_key=PLENTY)
    @made.task(name="limited", shared=False)
    def limited() -> int:
        """The same, limited, and delivered by the broker."""
        return time.monotonic_ns()

    @bgtask(max_per_key=PLENTY, delivery="offer")
    @made.task(name="offered", shared=False)
    def offered() -> int:
        """The same, offered to the workers."""
        return time.monotonic_ns()

    @bgtask(task_key="key", max_per_key=1, when_full="wait", max_waiting_per_key=PLENTY)
    @made.task(name="job", shared=False)
    def job(key: str, seconds: float = 0.0) -> tuple[int, int]:  # noqa: ARG001
        """Something that takes a while, one at a time; when it began and ended."""
        begun = time.monotonic_ns()
        if seconds:
            time.sleep(seconds)
        return begun, time.monotonic_ns()

    @made.task(name="retried", shared=False, bind=True, max_retries=None)
    def retried(self: Any, key: str, seconds: float) -> tuple[int, int]:
        """The same by hand: look whether somebody else runs, else come again."""
        with Redis.from_url(made.conf.broker_url) as redis:
            redis.incr(f"executions:{key}")
            if not redis.set(f"lock:{key}", 1, nx=True, ex=LOCK_TTL):
                raise self.retry(countdown=1)
            try:
                begun = time.monotonic_ns()
                time.sleep(seconds)
                return begun, time.monotonic_ns()
            finally:
                redis.delete(f"lock:{key}")

    return Tasks(plain, limited, offered, job, retried)


app = make_app(URL)
tasks = tasks_of(app)
