"""A web application, served by a real server, follows tasks of real workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from celery_bgtask import AcceptTimeout
from celery_bgtask.extension import extension_of
from tests.helpers import wait_until
from tests.smoke.hearing import PATIENCE
from tests.smoke.nodes import ROOT, SmokeSetup, WorkerSpec
from tests.smoke.progress_tasks import MODULE, release_gate, task_of


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """The tasks."""
    return {"imports": [MODULE]}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """Threads: many bodies wait at once."""
    return (WorkerSpec("threads", 40, tasks=MODULE),)


class Server:
    """A uvicorn that serves the application."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process, self.log = process, log
        self.url = wait_until(self._url, within=PATIENCE, that="uvicorn is up")

    def _url(self) -> str:
        assert self.process.poll() is None, self.log.read_text()
        found = re.search(r"running on (http://\S+)", self.log.read_text())
        return found[1] if found else ""


@pytest.fixture(scope="module")
def uvicorn(celery_setup_app: Celery, tmp_path_factory: Any) -> Iterator[Server]:
    """The web server of the module; it ends in good order and says nothing odd."""
    log = tmp_path_factory.mktemp("web") / "uvicorn.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "tests.smoke.web:web"),
                *("--port", "0", "--no-access-log", "--no-use-colors"),
                *("--timeout-graceful-shutdown", "5"),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "SMOKE_APP": str(celery_setup_app.main),
                "SMOKE_CONF": json.dumps(celery_setup_app.conf["smoke_conf"]),
                "PYTHONUNBUFFERED": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield Server(process, log)
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait()
    lines = [line for line in log.read_text().splitlines() if "INFO:" not in line]
    assert lines == []


@pytest.fixture
def web(uvicorn: Server, smoke: SmokeSetup) -> httpx.AsyncClient:
    """A browser."""
    return httpx.AsyncClient(
        base_url=uvicorn.url, timeout=PATIENCE, limits=httpx.Limits(max_connections=200)
    )


async def events_of(lines: AsyncIterator[str]) -> AsyncIterator[tuple[str, Any]]:
    """The server-sent events in *lines*."""
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


async def submit(web: httpx.AsyncClient, key: str, **facts: Any) -> str:
    """Submit a task by the application."""
    reply = await web.post("/tasks", json={"key": key, **facts})
    return str(reply.json()["id"])


async def insight(web: httpx.AsyncClient) -> Any:
    """What the application's process is made of."""
    return (await web.get("/insight")).json()


async def until_followers(web: httpx.AsyncClient, count: int) -> Any:
    """Wait until the application has so many followers; return what it is made of."""
    for _ in range(int(PATIENCE / 0.05)):
        seen = await insight(web)
        if seen["followers"] == count:
            return seen
        await asyncio.sleep(0.05)
    raise AssertionError(f"not {count} followers: {seen}")


def test_a_stream_shows_progress_as_it_is_made(
    web: httpx.AsyncClient, smoke: SmokeSetup, key: str
) -> None:
    """What was before, what comes, the end, the value."""

    async def main() -> list[Any]:
        async with web:
            task_id = await submit(web, key, count=4, gates=[2], value="✓")
            seen = []
            async with web.stream("GET", f"/tasks/{task_id}/events") as reply:
                async for event in events_of(reply.aiter_lines()):
                    seen.append(event)
                    if len(seen) == 2:  # the body waits: these came while it runs
                        release_gate(smoke.ledger.client, key)
            return seen

    assert asyncio.run(main()) == [
        *(("progress", [step, f"schritt {step} ✓"]) for step in range(4)),
        ("done", "✓"),
    ]


def test_many_streams_and_waits_at_once(
    web: httpx.AsyncClient, smoke: SmokeSetup, key: str
) -> None:
    """Sixty requests wait; the process has one thread for all of them."""

    async def read(task_id: str) -> list[Any]:
        async with web.stream("GET", f"/tasks/{task_id}/events") as reply:
            return [event async for event in events_of(reply.aiter_lines())]

    async def main() -> None:
        async with web:
            ids = [
                await submit(web, key, count=3, gates=[2], base=n * 10, value=n)
                for n in range(30)
            ]
            streams = [asyncio.create_task(read(one)) for one in ids]
            waits = [asyncio.create_task(web.get(f"/tasks/{one}")) for one in ids]
            seen = await until_followers(web, 60)
            assert seen["threads"].count("bgtask listener") == 1
            # Its executor, where values are fetched, has a few; not one for each.
            assert len(seen["threads"]) < 20
            release_gate(smoke.ledger.client, key, 30)
            for number, stream in enumerate(await asyncio.gather(*streams)):
                assert stream == [
                    *(
                        ("progress", [number * 10 + step, f"schritt {step} ✓"])
                        for step in range(3)
                    ),
                    ("done", number),
                ]
            values = [reply.json()["value"] for reply in await asyncio.gather(*waits)]
            assert values == list(range(30))
            await until_followers(web, 0)

    asyncio.run(main())


def test_a_browser_that_goes_away_leaves_nothing_behind(
    web: httpx.AsyncClient, smoke: SmokeSetup, key: str
) -> None:
    """The stream is cancelled by the server; nobody is followed any more."""

    async def main() -> None:
        async with web:
            task_id = await submit(web, key, count=2, gates=[1])
            async with web.stream("GET", f"/tasks/{task_id}/events") as reply:
                events = events_of(reply.aiter_lines())
                assert (await anext(events))[0] == "progress"
                await until_followers(web, 1)
            await until_followers(web, 0)
            release_gate(smoke.ledger.client, key)
            reply = await web.get(f"/tasks/{task_id}")
            assert reply.json() == {"value": "done"}

    asyncio.run(main())


def test_awaits_of_many_tasks_of_this_process(smoke: SmokeSetup, key: str) -> None:
    """Values, errors and deadlines, all awaited together."""
    work = task_of(smoke.app, "work")

    async def main() -> list[Any]:
        results = [work.delay(key, count=2, value=n) for n in range(40)]
        results.append(work.delay(key, error="as asked for"))
        results.append(work.apply_async((key,), accept_timeout=0.5, queue="nobody"))
        return await asyncio.gather(
            *(result.aget(PATIENCE) for result in results), return_exceptions=True
        )

    *values, error, late = asyncio.run(main())
    extension_of(smoke.app).close()
    smoke.store.delete("nobody")

    assert values == list(range(40))
    assert repr(error) == "ValueError('as asked for')"
    assert isinstance(late, AcceptTimeout)
