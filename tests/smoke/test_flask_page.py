"""The page on Flask was followed from an empty folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from celery_bgtask.testing import embedded_server
from tests.helpers import wait_until
from tests.smoke.browser import served
from tests.smoke.pages import LONG, PYTEST, run, worker_of, write_files


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, with a worker."""
    folder = tmp_path_factory.mktemp("flask")
    with embedded_server() as server:
        write_files("flask.md", folder, server.url)
        with worker_of("make_celery", folder):
            yield folder


def test_the_tests_of_the_page_pass(project: Path) -> None:
    """With the factory, with a server and without."""
    done = run(project, *PYTEST)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_a_third_export_is_refused_and_the_others_come_to_an_end(project: Path) -> None:
    """One by itself, one by the customer."""
    run_flask = ("flask", "--app", "exports", "run", "-h", "{host}", "-p", "{port}")
    with (
        served(project, *run_flask) as url,
        httpx.Client(base_url=url, timeout=LONG) as web,
    ):
        first = web.post("/exports/42?seconds=0.1").json()["id"]
        wait_until(
            lambda: web.get(f"/exports/{first}").json()["value"], that="it has ended"
        )
        told = web.get(f"/exports/{first}").json()
        long = [web.post("/exports/42?seconds=600") for _ in range(3)]
        ids = [answer.json()["id"] for answer in long[:2]]
        refused = long[2].json()
        was = [web.delete(f"/exports/{task_id}").json()["was"] for task_id in ids]
        again = web.post("/exports/42?seconds=0").status_code

    assert told == {"phase": "ended", "percent": 100.0, "value": "/srv/exports/42.csv"}
    assert [answer.status_code for answer in long] == [202, 202, 429]
    assert (refused["running"], refused["limit"]) == (2, 2)
    assert set(was) <= {"dispatched", "running"}
    assert again in {202, 429}  # a body that is being stopped keeps its slot
