"""celery-singleton: unique tasks."""

from __future__ import annotations

import sys

from celery import Celery
from celery_singleton import Singleton

from .peer import SLOTS, URL, Peer, body


PEER = Peer(
    "celery-singleton",
    "base=Singleton: one per key, the others are dropped",
    ("celery", "-A", __name__, "worker", "-P", "threads", f"-c{SLOTS}"),
    __name__,
)

app = Celery("singleton", broker=URL, backend=URL)


@app.task(name="singleton", base=Singleton, unique_on=["key"])
def work(key: str) -> None:  # noqa: ARG001 - the tasks are unique by it
    """Be counted."""
    body()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.delay("k")
