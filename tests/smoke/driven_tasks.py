"""A task that does what it is told while it runs, one word at a time."""

from __future__ import annotations

import json
from typing import Any

from celery import Celery, Task, shared_task
from redis import Redis

from celery_bgtask import BgTask, bgtask
from tests.smoke.tasks import client_of, record


#: What ``WorkerSpec`` and ``app.tasks`` call this module.
MODULE = "tests.smoke.driven_tasks"

#: Seconds for which a body waits for its next word, in steps: the client gives up
#: reading after five.
PATIENCE = 60


@bgtask(task_key="key", max_per_key=1, when_full="wait", max_retries=3)
def driven(self: BgTask, key: str) -> Any:
    """Report, return or fail, as :class:`Driver` says."""
    with record(self, key):
        while True:
            word, *facts = next_word(self)
            if word == "report":
                self.progress(**facts[0])
            elif word == "return":
                return facts[0]
            elif word == "retry":
                raise self.retry(countdown=0)
            else:
                raise ValueError(facts[0])


@shared_task(bind=True)
def plain(self: Task) -> Any:
    """Return what it is told; nobody limits it, and it tells nothing."""
    return next_word(self)[1]


def next_word(task: Task) -> list[Any]:
    """Wait for what the running call is to do next."""
    for _ in range(PATIENCE):
        told: Any = client_of(task).blpop([words_of(str(task.request.id))], 1)
        if told is not None:
            return json.loads(told[1])
    raise AssertionError("nobody has said how to go on")


def words_of(task_id: str) -> str:
    """Return the name of the list in which the words for a call wait."""
    return f"ledger:words:{task_id}"


class Driver:
    """Submits calls, and tells them what to do.

    Args:
        app: Whose tasks they are.
        client: Of the ledger's server.
    """

    def __init__(self, app: Celery, client: Redis) -> None:
        self._tasks = app.tasks
        self._client = client

    def submit(self, key: str, **options: Any) -> Any:
        """Submit a call and return its result."""
        return self._tasks[f"{MODULE}.driven"].apply_async((key,), **options)

    def submit_plain(self) -> Any:
        """Submit a call of the task that is not limited."""
        return self._tasks[f"{MODULE}.plain"].delay()

    def report(self, result: Any, **report: Any) -> None:
        """Have a call report."""
        self._say(result, "report", report)

    def succeed(self, result: Any, value: Any = "done") -> None:
        """Have it return *value*."""
        self._say(result, "return", value)

    def fail(self, result: Any, text: str) -> None:
        """Have it raise ``ValueError(text)``."""
        self._say(result, "raise", text)

    def retry(self, result: Any) -> None:
        """Have it tried again at once."""
        self._say(result, "retry")

    def _say(self, result: Any, *word: Any) -> None:
        self._client.rpush(words_of(result.id), json.dumps(word))
