"""This package."""

from __future__ import annotations

import sys

from celery import Celery

from celery_bgtask import bgtask

from .peer import LIMIT, SLOTS, URL, Peer, body


PEER = Peer(
    "celery-bgtask",
    'max_per_key=5, when_full="wait"',
    ("celery", "-A", __name__, "worker", "-P", "threads", f"-c{SLOTS}"),
    __name__,
)

app = Celery("ours", broker=URL, backend=URL)
app.conf.update(task_ignore_result=True)


@bgtask(task_key="key", max_per_key=LIMIT, when_full="wait")
@app.task(name="ours", shared=False)
def work(key: str) -> None:  # noqa: ARG001 - the tasks are limited by it
    """Be counted."""
    body()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.delay("k")
