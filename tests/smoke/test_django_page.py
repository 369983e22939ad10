"""The page on Django was followed from an empty folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from celery_bgtask.testing import embedded_server
from tests.helpers import wait_until
from tests.smoke.browser import served
from tests.smoke.pages import LONG, run, worker_of, write_files


#: Several processes write to the database; they wait for each other.
PATIENT = '\nDATABASES["default"]["OPTIONS"] = {"timeout": 60}\n'


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the commands and the files of the page make, with a worker."""
    folder = tmp_path_factory.mktemp("django")
    with embedded_server() as server:
        does(folder, "django", "startproject", "mysite", ".")
        does(folder, "django", "startapp", "exports")
        for name in ("urls.py", "__init__.py"):
            (folder / "mysite" / name).unlink()
        for name in ("models.py", "views.py", "tests.py"):
            (folder / "exports" / name).unlink()
        write_files("django.md", folder, server.url)
        with (folder / "mysite" / "settings.py").open("a") as settings:
            settings.write(PATIENT)
        does(folder, "manage", "makemigrations", "exports")
        does(folder, "manage", "migrate")
        with worker_of("mysite", folder):
            yield folder


def does(folder: Path, *command: str) -> None:
    """Run a command of the page, which succeeds."""
    done = run(folder, *command)
    assert done.returncode == 0, done.stdout


def test_the_tests_of_the_page_pass(project: Path) -> None:
    """``manage.py test`` finds them."""
    done = run(project, "manage", "test")

    assert done.returncode == 0, done.stdout
    assert "Ran 1 test" in done.stdout


def test_an_order_is_exported_once_it_is_stored(project: Path) -> None:
    """Two of one customer come to their end, and stand in the table of results."""
    with (
        served(project, "manage", "runserver", "--noreload", "{host}:{port}") as url,
        httpx.Client(base_url=url, timeout=LONG) as web,
    ):
        ids = [web.post("/order/42/").json()["id"] for _ in range(2)]
        seen = web.get(f"/progress/{ids[1]}/").json()
        wait_until(
            lambda: all(
                web.get(f"/progress/{i}/").json()["state"] == "SUCCESS" for i in ids
            ),
            that="both have ended",
        )
        last = web.get(f"/progress/{ids[1]}/").json()

    assert seen["phase"] in {"waiting", "dispatched", "running", "ended"}
    assert last == {"phase": "ended", "percent": 100.0, "state": "SUCCESS"}
    stored = run(
        project, "manage", "shell", "-c",
        "from exports.models import Export\n"
        "from django_celery_results.models import TaskResult as Result\n"
        "print([e.rows for e in Export.objects.all()])\n"
        "for r in Result.objects.all(): print(r.task_name, r.status, r.result)",
    )  # fmt: skip
    assert "[20, 20]" in stored.stdout
    assert stored.stdout.count("exports.tasks.run_export SUCCESS 20") == 2
