"""The app of the load, as its commands find it: one task, which nobody runs."""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from celery_bgtask import BgTask
from tests.smoke.app import make_app


LIMIT = 5


def declared(app: Celery) -> Any:
    """Declare the task, and return it."""

    def work(k: int) -> None:
        """Do nothing."""

    options: dict[str, Any] = {"task_key": "k", "max_per_key": LIMIT}
    return app.task(base=BgTask, name="load.work", **options)(work)


if "LOAD_CONF" in os.environ:
    app = make_app("load", json.loads(os.environ["LOAD_CONF"]))
    declared(app)
