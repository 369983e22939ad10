"""The tasks that the benchmark of offers runs in a worker."""

from __future__ import annotations

import os
import time

from celery import Celery, shared_task

from celery_bgtask import bgtask


URL = os.environ.get("BENCHMARK_URL", "redis://127.0.0.1:6379/0")

app = Celery("benchmark", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="benchmark",
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@shared_task
def plain() -> int:
    """Celery's own: the time at which the body begins."""
    return time.monotonic_ns()


@bgtask(max_per_key=5)
def queued() -> int:
    """The same, limited and delivered by the broker."""
    return time.monotonic_ns()


@bgtask(max_per_key=5, delivery="offer")
def offered() -> int:
    """The same, offered."""
    return time.monotonic_ns()
