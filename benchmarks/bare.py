"""An app that knows nothing of this package, to be measured beside one that does."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery


URL = os.environ.get("BENCHMARK_URL", "redis://127.0.0.1:6379/0")

app = Celery("bare", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="bare",
    worker_cancel_long_running_tasks_on_connection_loss=False,
    worker_enable_remote_control=False,
)


def _plain() -> int:
    return time.monotonic_ns()


plain: Any = app.task(name="bare", shared=False)(_plain)
