"""The tasks of the tests of an operator at work."""

from __future__ import annotations

import time
from typing import cast

from celery import Celery, Task
from redis import Redis

from celery_bgtask import BgTask, bgtask
from tests.smoke.tasks import client_of, record


#: What ``WorkerSpec`` calls this module.
MODULE = "tests.smoke.operator_tasks"

#: Strikes that a key may have, and seconds that it is blocked for more.
THRESHOLD, BLOCK = 2, 2.0


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait", block_for=BLOCK,
        block_threshold=THRESHOLD, block_interval=60)  # fmt: skip
def gated(self: Task, key: str, number: int = 0, strikes: int = 0) -> int:
    """One of a key; runs until its gate opens, after so many reports of itself."""
    with record(self, key):
        for _ in range(strikes):
            self.report_bad_task("bad row")  # type: ignore[attr-defined]
        while not client_of(self).sismember(f"ledger:open:{key}", str(number)):
            time.sleep(0.02)
    return number


def gated_of(app: Celery) -> BgTask:
    """The task of this module, of *app*."""
    return cast("BgTask", app.tasks[f"{MODULE}.gated"])


def open_gates(client: Redis, key: str, *numbers: int) -> None:
    """Let bodies of *key* end."""
    client.sadd(f"ledger:open:{key}", *map(str, numbers))
    client.expire(f"ledger:open:{key}", 300)
