"""What each package is given to do, and what is seen of it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from redis import Redis


__all__ = ["LIMIT", "SECONDS", "SLOTS", "URL", "Peer", "Seen", "body", "burst"]

URL = os.environ.get("BENCHMARK_URL", "redis://127.0.0.1:6379/0")

#: How many bodies may run at once, and how many the workers could.
LIMIT, SLOTS = 5, 8

#: How long a body takes.
SECONDS = 0.05

#: Seconds after the last start without another: then nothing more comes.
SILENCE = 8.0

_ENTER = """
local running = redis.call("INCR", "running")
if running > tonumber(redis.call("GET", "most") or 0) then
  redis.call("SET", "most", running)
end
redis.call("INCR", "started")
redis.call("SETNX", "begun", ARGV[1])
"""


class Peer(NamedTuple):
    """A package as it is set up for the work.

    Attributes:
        name: As it is installed.
        how: What of it limits tasks by a key.
        command: Starts its worker, with the arguments of ``python -m``.
        module: Submits, by ``python -m``, as many as its argument says.
    """

    name: str
    how: str
    command: Sequence[str]
    module: str


class Seen(NamedTuple):
    """What became of a burst; *seconds* from the first start to the last end."""

    started: int
    most: int
    seconds: float


def body() -> None:
    """Be counted while running."""
    with Redis.from_url(URL) as redis:
        redis.eval(_ENTER, 0, time.time())
        time.sleep(SECONDS)
        redis.decr("running")
        redis.set("ended", time.time())


def burst(peer: Peer, url: str, count: int) -> Seen:
    """Submit *count* tasks of one key while a worker runs; wait until all is quiet."""
    with Redis.from_url(url) as redis, running(peer.command, url):
        wait_for_worker(peer, redis, url)
        subprocess.run(
            [sys.executable, "-m", peer.module, str(count)],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "BENCHMARK_URL": url},
            check=True,
        )
        started, since = -1, time.monotonic()
        while started < count and time.monotonic() - since < SILENCE:
            time.sleep(0.05)
            now = number(redis, "started")
            if now != started or number(redis, "running"):
                started, since = now, time.monotonic()
        while number(redis, "running") and time.monotonic() - since < SILENCE:
            time.sleep(0.05)
        begun, ended = redis.mget("begun", "ended")
        taken = float(ended or 0) - float(begun or 0)
        return Seen(number(redis, "started"), number(redis, "most"), taken)


def number(redis: Redis, name: str) -> int:
    """Return a number that the bodies have counted."""
    return int(redis.get(name) or 0)


def wait_for_worker(peer: Peer, redis: Redis, url: str) -> None:
    """Have one task done, and count from then on."""
    subprocess.run(
        [sys.executable, "-m", peer.module, "1"],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "BENCHMARK_URL": url},
        check=True,
    )
    give_up = time.monotonic() + 60
    while not redis.exists("ended"):
        if time.monotonic() > give_up:
            raise TimeoutError(f"{peer.name} has run nothing")
        time.sleep(0.1)
    time.sleep(1)  # its lock or slot is given back
    redis.delete("started", "most", "running", "begun", "ended")


@contextmanager
def running(command: Sequence[str], url: str) -> Iterator[None]:
    """A worker for the time of a ``with`` block; its log is shown if that fails."""
    with tempfile.TemporaryFile() as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "BENCHMARK_URL": url, "RQ_REDIS_URL": url},
            stdout=log,
            stderr=log,
        )
        try:
            yield
        except Exception:
            log.seek(0)
            sys.stderr.write(log.read().decode(errors="replace"))
            raise
        finally:
            worker.terminate()
            try:
                worker.wait(30)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
