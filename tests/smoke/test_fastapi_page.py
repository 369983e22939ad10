"""The page on FastAPI was followed from an empty folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from celery_bgtask.testing import embedded_server
from tests.smoke.browser import served
from tests.smoke.pages import LONG, PYTEST, run, worker_of, write_files


#: Parts of an export that does not end by itself.
ENDLESS = 100_000


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, with a worker."""
    folder = tmp_path_factory.mktemp("fastapi")
    with embedded_server() as server:
        write_files("fastapi.md", folder, server.url)
        with worker_of("shop", folder):
            yield folder


@pytest.fixture(scope="module")
def web(project: Path) -> Iterator[httpx.Client]:
    """A client of the web server."""
    command = ("uvicorn", "web:web", "--host", "{host}", "--port", "{port}")
    with (
        served(project, *command) as url,
        httpx.Client(base_url=url, timeout=LONG) as client,
    ):
        yield client


def test_the_tests_of_the_page_pass(project: Path) -> None:
    """With a worker in a thread, and without any."""
    done = run(project, *PYTEST)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_stream_tells_of_the_task_to_its_end(web: httpx.Client) -> None:
    """Each report, the state, and the value for who asks."""
    task_id = web.post("/exports/1", params={"parts": 4}).json()["id"]

    *reports, end = web.get(f"/exports/{task_id}/events").text.strip().split("\n\n")
    told = [json.loads(report.partition("data: ")[2]) for report in reports]
    assert told[-1] == {"percent": 100.0, "description": "exporting"}
    assert end == 'event: done\ndata: "SUCCESS"'
    assert web.get(f"/exports/{task_id}").json() == {"value": "4 parts for 1"}


def test_a_browser_that_goes_away_may_end_its_task(web: httpx.Client) -> None:
    """One stream says so; the task of the other goes on, until it is cancelled."""
    kept, ended = (
        web.post("/exports/2", params={"parts": ENDLESS}).json()["id"] for _ in "ab"
    )
    for task_id, cancel in ((kept, "false"), (ended, "true")):
        url = f"/exports/{task_id}/events?cancel_on_disconnect={cancel}"
        with web.stream("GET", url) as stream:
            next(stream.iter_lines())

    with ExitStack() as stack:
        url = f"/exports/{ended}/events"
        told = stack.enter_context(web.stream("GET", url)).read().decode()
    assert told.strip().endswith('event: done\ndata: "REVOKED"')
    assert web.delete(f"/exports/{kept}").json()["was"] == "running"
