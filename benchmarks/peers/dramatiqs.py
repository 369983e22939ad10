"""dramatiq with its ConcurrentRateLimiter, as its guide has it."""

from __future__ import annotations

import sys

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.rate_limits import ConcurrentRateLimiter
from dramatiq.rate_limits.backends import RedisBackend

from .peer import LIMIT, SLOTS, URL, Peer, body


PEER = Peer(
    "dramatiq",
    "ConcurrentRateLimiter, retries from 0.1 s to 1 s apart",
    ("dramatiq", "--processes=1", f"--threads={SLOTS}", __name__),
    __name__,
)

dramatiq.set_broker(RedisBroker(url=URL))
limiter = ConcurrentRateLimiter(RedisBackend(url=URL), "k", limit=LIMIT)


@dramatiq.actor(max_retries=None, min_backoff=100, max_backoff=1000)
def work(key: str) -> None:  # noqa: ARG001 - a limiter is of one key
    """Be counted, or come again."""
    with limiter.acquire():
        body()


if __name__ == "__main__":
    for _ in range(int(sys.argv[1])):
        work.send("k")
