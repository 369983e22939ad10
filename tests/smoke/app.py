"""The app that smoke workers and clients run, set up by their environment."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

from celery import Celery


DEFAULTS = {
    "broker_connection_retry_on_startup": True,
    "worker_cancel_long_running_tasks_on_connection_loss": False,
    "worker_hijack_root_logger": False,
    "worker_prefetch_multiplier": 1,
}


def make_app(name: str, conf: dict[str, Any]) -> Celery:
    """An app that has the tasks which this process declares."""
    app = Celery(name, set_as_current=False)
    app.conf.update(DEFAULTS | conf)
    return app


def _end_with(parent: int) -> None:
    """End this worker when the tests that started it are gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if "SMOKE_CONF" in os.environ:
    app = make_app(os.environ["SMOKE_APP"], json.loads(os.environ["SMOKE_CONF"]))
    app.set_default()
    if "SMOKE_PARENT" in os.environ:
        threading.Thread(
            target=_end_with, args=(int(os.environ["SMOKE_PARENT"]),), daemon=True
        ).start()
