"""Flower shows limited tasks as the page on monitoring says."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from celery_bgtask.testing import embedded_server
from tests.helpers import wait_until
from tests.smoke.browser import served
from tests.smoke.pages import LONG, environment, started, write_files


#: So that a killed worker is found dead within the test.
SOON = "\napp.conf.update(bgtask_lease=6, bgtask_sweep_interval=0.5)\n"

#: Starts a worker of the page.
WORKER = ("celery", "-A", "shop", "worker", "-E", "-P", "threads", "-l", "INFO")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, with a server."""
    folder = tmp_path_factory.mktemp("monitor")
    with embedded_server() as server:
        write_files("monitor.md", folder, server.url)
        with (folder / "shop.py").open("a") as file:
            file.write(SOON)
        yield folder


@pytest.fixture(scope="module")
def flower(shop: Path) -> Iterator[httpx.Client]:
    """A client of Flower; a worker has come after it."""
    command = ("celery", "-A", "shop", "flower", "--address={host}", "--port={port}")
    with (
        served(shop, *command, FLOWER_UNAUTHENTICATED_API="true") as url,
        httpx.Client(base_url=f"{url}/api", timeout=LONG) as client,
        worker(shop, "one@shop"),
    ):
        hears(client, "one@shop")
        yield client


def worker(shop: Path, name: str, *options: str) -> Any:
    """Run a worker of the page; a body may run when it is ended."""
    command = (*WORKER, "-n", name, *options)
    return started(shop, *command, ready=" ready.", end=signal.SIGKILL)


def hears(flower: httpx.Client, worker: str) -> None:
    """Wait until Flower has heard of a worker: what is sent before is not shown."""
    wait_until(
        lambda: flower.get("/workers", params={"status": 1}).json().get(worker),
        within=LONG,
        that=f"Flower knows {worker}",
    )


@pytest.fixture(scope="module")
def call(shop: Path) -> Callable[[str], Any]:
    """Calls something of the page's module, and returns what comes out."""

    def call(code: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", f"import json, shop; print(json.dumps({code}))"],
            cwd=shop, env=environment(shop), capture_output=True, encoding="utf-8",
            timeout=LONG, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def shown(flower: httpx.Client, task_id: str, state: str) -> dict[str, Any]:
    """Return a task as Flower shows it, once it is in *state*."""

    def found() -> dict[str, Any]:
        task = flower.get("/tasks").json().get(task_id)
        return dict(task) if task and task["state"] == state else {}

    return wait_until(found, within=LONG, that=f"Flower shows {task_id} as {state}")


def test_flower_shows_each_state(
    flower: httpx.Client, call: Callable[[str], Any]
) -> None:
    """Running with progress, waiting, cancelled, refused, offered, and to the end."""
    first, second, offer = call(
        "[shop.export.delay(1, 3000).id, shop.export.delay(1, 0).id, "
        "shop.offered.delay(1, 0).id]"
    )

    assert shown(flower, first, "STARTED")["name"] == "shop.export"
    assert "3000" in shown(flower, first, "STARTED")["args"]
    assert shown(flower, second, "PENDING")["name"] == "shop.export"
    assert shown(flower, offer, "SUCCESS")["worker"] == "one@shop"
    wait_until(
        lambda: flower.get(f"/task/result/{first}").json()["state"] == "PROGRESS",
        within=LONG,
        that="the result that Flower shows is PROGRESS",
    )
    assert call(f"shop.export.AsyncResult({second!r}).cancel()[0]") == "waiting"
    assert shown(flower, second, "REVOKED")["started"] is None

    known = set(flower.get("/tasks").json())
    refused = "[shop.report.control.set_limit(1, 0).limit, attempt()]"
    assert call(f"(exec({ATTEMPT!r}, globals()), {refused})[1]") == [0, "LimitReached"]
    last = call("shop.export.delay(2, 0).id")
    shown(flower, last, "SUCCESS")
    assert set(flower.get("/tasks").json()) == known | {last}


#: Calls a task that is refused.
ATTEMPT = """
def attempt():
    try:
        shop.report.delay(1, 0)
    except Exception as exc:
        return type(exc).__name__
"""


def test_flower_shows_a_lost_task_as_failed(
    shop: Path, flower: httpx.Client, call: Callable[[str], Any]
) -> None:
    """With the error that its caller gets."""
    with worker(shop, "two@shop", "-Q", "other") as two:
        hears(flower, "two@shop")
        lost = call("shop.report.apply_async((2, 3000), queue='other').id")
        assert shown(flower, lost, "STARTED")["worker"] == "two@shop"
        two.kill()

    assert "TaskLost" in shown(flower, lost, "FAILURE")["exception"]
