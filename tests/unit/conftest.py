"""Apps that connect nowhere, and a process that forgets each test's tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery import _state as celery_state


@pytest.fixture(autouse=True)
def _nothing_is_shared() -> Iterator[None]:
    """The apps of one test do not know the shared tasks of another."""
    _state: Any = celery_state  # all of this is private: it has no types
    finalizers, apps = set(_state._on_app_finalizers), list(_state._apps)
    current, default = _state._tls.current_app, _state.default_app
    _state._apps.clear()
    yield
    _state._on_app_finalizers.clear()
    _state._on_app_finalizers.update(finalizers)
    _state._apps.clear()
    _state._apps.update(apps)
    _state._tls.current_app, _state.default_app = current, default


@pytest.fixture
def make_app() -> Callable[..., Celery]:
    """Makes apps with the given settings; broker and results are in memory."""

    def make(name: str = "unit", **conf: Any) -> Celery:
        cls = conf.pop("task_cls", None)
        app = Celery(name, set_as_current=False, task_cls=cls)
        app.conf.update(
            broker_url="memory://", result_backend="cache+memory://", **conf
        )
        return app

    return make


@pytest.fixture
def app(make_app: Callable[..., Celery]) -> Celery:
    """An app that connects nowhere."""
    return make_app()
