"""celery-heimdall: unique tasks and rates, of which the first has a key."""

from __future__ import annotations

import sys

import redis
from celery import Celery
from celery_heimdall import HeimdallTask

from .peer import SLOTS, URL, Peer, body


PEER = Peer(
    "celery-heimdall",
    "unique=True: one per key, the others are dropped",
    ("celery", "-A", __name__, "worker", "-P", "threads", f"-c{SLOTS}"),
    __name__,
)

app = Celery("heimdall", broker=URL, backend=URL)
app.conf.update(task_ignore_result=True)


class Heimdall(HeimdallTask):
    """Where its locks are."""

    abstract = True

    def setup_redis(self) -> redis.Redis:
        """Return its client."""
        return redis.Redis.from_url(URL)


@app.task(
    name="heimdall",
    base=Heimdall,
    heimdall={"unique": True, "unique_lock_blocking": False, "unique_timeout": 60},
)
def work(key: str) -> None:  # noqa: ARG001 - the tasks are unique by it
    """Be counted."""
    body()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.delay("k")
