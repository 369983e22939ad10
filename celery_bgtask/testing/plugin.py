"""Fixtures for pytest: ``pytest_plugins = ["celery_bgtask.testing.plugin"]``.

That line belongs in the ``conftest.py`` at the root of your tests, as with Celery's
own plugin; who does not have it never imports this module, nor pytest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery.app import app_or_default

from .apps import connected, eager, running_worker
from .recorder import Recorder
from .server import EmbeddedServer, embedded_server


@pytest.fixture(scope="session")
def bgtask_server() -> Iterator[EmbeddedServer]:
    """A Valkey server for this test run.

    ``BGTASK_TEST_REDIS_URL`` names another one, of which the database is emptied
    before each test that uses it.
    """
    with embedded_server(url=os.environ.get("BGTASK_TEST_REDIS_URL")) as server:
        yield server


@pytest.fixture
def bgtask_app() -> Celery:
    """The app under test: the current one. Override it to return yours."""
    app: Celery = app_or_default()
    if app.main == "default":  # it is the one that Celery makes if there is none
        raise pytest.UsageError(
            "no Celery app of yours is current: import it in conftest.py, or override "
            "the fixture bgtask_app to return it"
        )
    return app


@pytest.fixture
def bgtasks(bgtask_app: Celery, bgtask_server: EmbeddedServer) -> Iterator[Recorder]:
    """The calls of the test; the app has an empty server, and no worker."""
    with connected(bgtask_app, bgtask_server.url) as calls:
        yield calls


@pytest.fixture
def bgtask_worker(bgtasks: Recorder) -> Iterator[Any]:
    """A worker in a thread, which runs what the test submits."""
    with running_worker(bgtasks.app) as worker:
        yield worker


@pytest.fixture
def bgtasks_eager(bgtask_app: Celery) -> Iterator[Recorder]:
    """The calls of the test; they run where they are made, and need no server."""
    with eager(bgtask_app) as calls:
        yield calls
