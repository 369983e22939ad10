"""The tasks that the benchmark of reports runs in a worker."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from celery import Celery
from redis import Redis

from celery_bgtask import bgtask


#: The channel of the bare messages.
BARE = "benchmark:bare"

#: Seconds between a report and a publish: a task may report twenty times a second.
PAUSE = 0.03

URL = os.environ.get("BENCHMARK_URL", "redis://127.0.0.1:6379/0")

app = Celery("reporting", broker=URL, backend=URL)
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue="reporting",
    worker_cancel_long_running_tasks_on_connection_loss=False,
)


@bgtask(max_per_key=None)
@app.task(bind=True, shared=False)
def take_turns(self: Any, rounds: int) -> None:
    """Report and publish in turn, each with the time at which it was called."""
    with Redis.from_url(URL) as client:
        client.ping()  # is connected before it counts
        for number in range(rounds):
            self.progress(number, rounds, "report", at=time.monotonic_ns())
            time.sleep(PAUSE)
            client.publish(BARE, bare_message(str(self.request.id), number, rounds))
            time.sleep(PAUSE)


@bgtask(max_per_key=None)
@app.task(bind=True, shared=False)
def go_on(self: Any, seconds: float) -> int:
    """Report for a time, whatever happens; return how often."""
    until = time.monotonic() + seconds
    made = 0
    while time.monotonic() < until:
        made += 1
        self.progress(made, description="going on")
        time.sleep(2 * PAUSE)
    return made


def bare_message(task_id: str, number: int, rounds: int) -> str:
    """Return what a report is on the wire, to be published by hand."""
    report = {
        "id": task_id,
        "attempt": 1,
        "current": number,
        "total": rounds,
        "description": "report",
        "data": {"at": time.monotonic_ns()},
    }
    return f"{number} {time.time() * 1000:.0f} {json.dumps(report)}"


def sent_at(message: bytes) -> int:
    """Return when a bare message was published."""
    return int(json.loads(message.split(b" ", 2)[2])["data"]["at"])
