"""celery-progress shows our tasks: its view in Django, its client in JavaScript."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from tests.helpers import wait_until
from tests.smoke.browser import LONG, SCRIPT, Page, get, served
from tests.smoke.driven_tasks import MODULE, Driver
from tests.smoke.nodes import SmokeSetup, WorkerSpec


#: All that a project needs: the app is the default one, as in Celery's own how-to.
SETTINGS = """
from tests.smoke.app import app as celery_app

SECRET_KEY = "of a test"
DEBUG = True
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = "urls"
INSTALLED_APPS = ["django.contrib.staticfiles", "celery_progress"]
STATIC_URL = "/static/"
"""

URLS = """
from django.urls import include, path

urlpatterns = [path("celery-progress/", include("celery_progress.urls"))]
"""


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One worker with the tasks that are told what to do."""
    return (WorkerSpec("threads", 4, tasks=MODULE),)


@pytest.fixture
def driver(smoke: SmokeSetup) -> Driver:
    """Tells calls what to do."""
    return Driver(smoke.app, smoke.ledger.client)


@pytest.fixture(scope="module")
def django(
    celery_setup_app: Celery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where a Django server with celery-progress listens."""
    app, path = celery_setup_app, tmp_path_factory.mktemp("django")
    (path / "settings.py").write_text(SETTINGS)
    (path / "urls.py").write_text(URLS)
    with served(
        path,
        *("django", "runserver", "--noreload", "{host}:{port}"),
        DJANGO_SETTINGS_MODULE="settings",
        SMOKE_APP=str(app.main),
        SMOKE_CONF=json.dumps(app.conf["smoke_conf"]),
    ) as url:
        yield url


@pytest.fixture
def seen(django: str) -> Callable[[Any], dict[str, Any]]:
    """What celery-progress's view says of a call."""

    def told(result: Any) -> dict[str, Any]:
        task_id = getattr(result, "id", result)
        return dict(json.loads(get(f"{django}/celery-progress/{task_id}/")))

    return told


def test_the_view_tells_every_state_as_it_is(
    driver: Driver, seen: Callable[[Any], dict[str, Any]], key: str
) -> None:
    """From the wait for a slot to the value, in the words of celery-progress."""
    first, second = driver.submit(key), driver.submit(key)

    waiting = {"pending": True, "current": 0, "total": 100, "percent": 0}
    assert seen(second) == {
        "state": "PENDING", "complete": False, "success": None, "progress": waiting
    }  # fmt: skip

    driver.report(first, current=1, total=3, description="réading", file="a.csv")
    wait_until(lambda: seen(first)["state"] == "PROGRESS", within=LONG)
    assert seen(first) == {
        "state": "PROGRESS",
        "complete": False,
        "success": None,
        "progress": {
            "pending": False, "current": 1, "total": 3, "percent": 33.33,
            "description": "réading", "file": "a.csv",
        },
    }  # fmt: skip

    driver.succeed(first, {"url": "/a.csv"})
    whole = {"pending": False, "current": 100, "total": 100, "percent": 100}
    wait_until(lambda: seen(first)["complete"], within=LONG)
    assert seen(first) == {
        "state": "SUCCESS", "complete": True, "success": True, "progress": whole,
        "result": {"url": "/a.csv"},
    }  # fmt: skip

    driver.fail(second, "disk full")
    wait_until(lambda: seen(second)["complete"], within=LONG)
    assert seen(second) == {
        "state": "FAILURE", "complete": True, "success": False, "progress": whole,
        "result": "disk full",
    }  # fmt: skip


def test_the_view_tells_of_a_call_that_was_cancelled(
    driver: Driver, seen: Callable[[Any], dict[str, Any]], key: str
) -> None:
    """A call that never ran is complete, and no success."""
    first, second = driver.submit(key), driver.submit(key)
    second.cancel("not needed")

    told = seen(second)
    assert (told["state"], told["complete"], told["success"]) == (
        "REVOKED",
        True,
        False,
    )
    driver.succeed(first)
    first.get(LONG)


def test_the_view_waits_for_a_call_that_nobody_knows(
    seen: Callable[[Any], dict[str, Any]],
) -> None:
    """As with Celery itself, an unknown call is a pending one."""
    assert seen(uuid.uuid4())["state"] == "PENDING"


@pytest.fixture
def page(django: str) -> Iterator[Callable[[Any], Page]]:
    """Open a page that shows a call."""
    opened: list[Page] = []

    def open_page(result: Any) -> Page:
        opened.append(Page(django + SCRIPT, f"{django}/celery-progress/{result.id}/"))
        return opened[-1]

    yield open_page
    for one in opened:
        one.close()


def test_the_bar_of_the_javascript_client_moves_to_the_end(
    driver: Driver, page: Callable[[Any], Page], key: str
) -> None:
    """Its width is the percentage; at the end it is told, and asks no more."""
    first, second = driver.submit(key), driver.submit(key)
    shown = page(second)

    shown.shows("message", "textContent", "Waiting for task to start...")
    driver.succeed(first)
    driver.report(second, current=1, total=4, description="reading")
    shown.shows("bar", "width", "25%")
    shown.shows("message", "textContent", "1 of 4 processed. reading")
    driver.report(second, current=3, total=4, description="writing")
    shown.shows("bar", "width", "75%")
    driver.succeed(second, "a.csv")

    assert shown.end() == 0
    assert shown.seen[-2:] == [
        ["bar", "backgroundColor", "#76ce60"],
        ["message", "textContent", "Success! a.csv"],
    ]
    widths = [value for name, what, value in shown.seen if what == "width"]
    assert widths == sorted(widths, key=lambda width: float(width.rstrip("%")))
    assert widths[-1] == "100%"


def test_the_javascript_client_tells_a_failure(
    driver: Driver, page: Callable[[Any], Page], key: str
) -> None:
    """The text of the error is what the user gets to see."""
    result = driver.submit(key)
    shown = page(result)
    driver.report(result, current=1, total=2)
    shown.shows("bar", "width", "50%")
    driver.fail(result, "disk full")

    assert shown.end() == 0
    assert shown.seen[-2:] == [
        ["bar", "backgroundColor", "#dc4f63"],
        ["message", "textContent", "Uh-Oh, something went wrong! disk full"],
    ]
