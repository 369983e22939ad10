"""rq with its RateLimit, which holds jobs back in Redis."""

from __future__ import annotations

import sys

from redis import Redis
from rq import Queue
from rq.rate_limit import RateLimit

from .peer import LIMIT, SLOTS, URL, Peer, body


PEER = Peer(
    "rq",
    "RateLimit(key, concurrency=5)",
    (
        *("rq.cli", "worker-pool", "--num-workers", str(SLOTS)),
        *("--worker-class", "rq.worker.SimpleWorker", "default"),
    ),
    __name__,
)


def work(key: str) -> None:  # noqa: ARG001 - the rate is of it
    """Be counted."""
    body()


if __name__ == "__main__":
    from benchmarks.peers import rqs  # the name by which a worker finds the job

    queue = Queue(connection=Redis.from_url(URL))
    for _ in range(int(sys.argv[1])):
        queue.enqueue(rqs.work, "k", rate_limit=RateLimit("k", LIMIT))
