"""The same names as they were before anybody limited them; see ``test_rollout``."""

from __future__ import annotations

import time
from typing import Any

from celery import Task, shared_task
from redis import Redis

from tests.smoke.ledger import recorded


@shared_task(bind=True, name="tests.smoke.tasks.single")
def single(self: Task, key: str, seconds: float = 0.0) -> Any:
    """As many as come."""
    url = self.app.conf["smoke_ledger_url"]
    with (
        Redis.from_url(url, decode_responses=True) as client,
        recorded(client, self.request, key),
    ):
        time.sleep(seconds)
    return key
