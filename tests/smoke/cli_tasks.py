"""The tasks that the tests of ``celery bgtask`` look at and steer.

Nothing else is imported that declares tasks: ``--all`` shall mean these.
"""

from __future__ import annotations

import functools
import time

from celery import Task
from redis import Redis

from celery_bgtask import bgtask
from tests.smoke.ledger import Ledger, recorded


#: What ``WorkerSpec``, ``app.tasks`` and the command line call this module.
MODULE = "tests.smoke.cli_tasks"

#: Seconds after which a body fails that nobody lets go on.
PATIENCE = 30


def go(ledger: Ledger, key: str, times: int = 1) -> None:
    """Let bodies of *key* return that wait or will wait for it."""
    ledger.client.rpush(f"ledger:go:{key}", *["go"] * times)


def _held(self: Task, key: str) -> str:
    """Return when the test says so."""
    url = self.app.conf["smoke_ledger_url"]
    with (
        Redis.from_url(url, decode_responses=True) as client,
        recorded(client, self.request, key),
    ):
        give_up = time.monotonic() + PATIENCE
        while not client.lpop(f"ledger:go:{key}"):
            assert time.monotonic() < give_up, f"nobody lets {key} go on"
            time.sleep(0.02)
    return key


_two = functools.partial(
    bgtask, bind=True, task_key="key", max_per_key=2, when_full="wait"
)

#: Two of a key.
export = _two(name=f"{MODULE}.export")(_held)

#: They share their keys.
mail = _two(name=f"{MODULE}.mail", scope="messages")(_held)
text = _two(name=f"{MODULE}.text", scope="messages")(_held)


@bgtask(bind=True, max_per_key=1, when_full="wait")
def report(self: Task) -> str:
    """One at a time, whatever it is called with."""
    return _held(self, "report")
