"""docket with its ConcurrencyLimit."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

from docket import ConcurrencyLimit, Docket, Worker

from .peer import LIMIT, SLOTS, URL, Peer, body


PEER = Peer(
    "pydocket",
    'ConcurrencyLimit("key", 5)',
    (__name__, "worker"),
    __name__,
)


async def work(
    key: str,  # noqa: ARG001 - the limit is of it
    limit: ConcurrencyLimit = ConcurrencyLimit("key", LIMIT),  # noqa: ARG001, B008
) -> None:
    """Be counted."""
    await asyncio.to_thread(body)


async def submit(count: int) -> None:
    """Submit so many."""
    async with Docket(name="peers", url=URL) as docket:
        docket.register(work)
        for _ in range(count):
            await docket.add(work)("k")


async def serve() -> None:
    """Run what is submitted."""
    async with Docket(name="peers", url=URL) as docket:
        docket.register(work)
        async with Worker(
            docket,
            concurrency=SLOTS,
            minimum_check_interval=timedelta(milliseconds=20),
            scheduling_resolution=timedelta(milliseconds=20),
        ) as worker:
            await worker.run_forever()


if __name__ == "__main__":
    asyncio.run(serve() if sys.argv[1] == "worker" else submit(int(sys.argv[1])))
