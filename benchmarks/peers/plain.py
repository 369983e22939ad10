"""Celery alone, which limits nothing."""

from __future__ import annotations

import sys

from celery import Celery

from .peer import SLOTS, URL, Peer, body


PEER = Peer(
    "celery",
    "nothing",
    ("celery", "-A", __name__, "worker", "-P", "threads", f"-c{SLOTS}"),
    __name__,
)

app = Celery("plain", broker=URL, backend=URL)
app.conf.update(task_ignore_result=True)


@app.task(name="plain", shared=False)
def work(key: str) -> None:  # noqa: ARG001 - it means nothing
    """Be counted."""
    body()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.delay("k")
