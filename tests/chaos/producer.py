"""A process that submits tasks by chance, and tells the ledger of each call.

Before the call it writes what it is about to do, after it what came of it: so of a
producer that was killed in between it is known that nothing is known.
"""

from __future__ import annotations

import os
import random
import time
from typing import Any

from redis import Redis

from celery_bgtask import LimitReached
from tests.chaos.tasks import CALLS, MODULE, STOP, task_of
from tests.smoke.app import app


#: What a task does at its end, and how often: of ten.
HOW = ("", "", "", "", "", "", "fail", "again", "later", "")

#: Of a hundred calls so many are cancelled soon after.
CANCELLED = 5


class Producer:
    """Submits until it is told to stop.

    Args:
        name: Begins the ids of its tasks.
        seed: Of its choices.
        keys: How many keys each kind of task has.
        pause: Seconds between two calls, on average.
    """

    def __init__(self, name: str, seed: int, *, keys: int, pause: float) -> None:
        self._name = name
        self._dice = random.Random(seed)  # noqa: S311 - chance, not secrets
        self._keys = keys
        self._pause = pause
        self._ledger = Redis.from_url(app.conf["smoke_ledger_url"])
        self._results: list[Any] = []

    def run(self) -> None:
        """Submit until the ledger says that it is enough."""
        number = 0
        while not self._ledger.exists(STOP):
            number += 1
            self._submit(f"{self._name}.{number}")
            if self._results and self._dice.randrange(100) < CANCELLED:
                self._cancel(self._dice.choice(self._results[-5:]))
            time.sleep(self._dice.expovariate(1 / self._pause))

    def _submit(self, task_id: str) -> None:
        dice = self._dice
        kind = dice.choice(["line", "strict", "two", "three", "four", "offered"])
        # The first producer has the keys of "line" for itself: so their order is known.
        owner = self._name.partition("-")[0]
        key = (
            f"{kind}/{owner if kind == 'line' else 'all'}/{dice.randrange(self._keys)}"
        )
        how = "" if kind == "line" else dice.choice(HOW)
        seconds = dice.choice([0, 0, 0.05, 0.2, 0.5, 1.0])
        self._tell("about", task_id, kind=kind, key=key)
        try:
            result = task_of(app, kind).apply_async(
                (key, seconds, how), task_id=task_id
            )
        except LimitReached:
            self._tell("refused", task_id)
        except Exception as exc:  # noqa: BLE001 - whatever a lost connection raises
            self._tell("failed", task_id, error=type(exc).__name__)
        else:
            self._tell("submitted", task_id)
            self._results.append(result)

    def _cancel(self, result: Any) -> None:
        self._tell("cancelling", result.id)
        try:
            was = result.cancel("by chance").was
        except Exception as exc:  # noqa: BLE001
            self._tell("uncancelled", result.id, error=type(exc).__name__)
        else:
            self._tell("cancelled", result.id, was=was)

    def _tell(self, what: str, task_id: str, **facts: str) -> None:
        fields: dict[Any, Any] = {"call": what, "task_id": task_id, **facts}
        self._ledger.xadd(CALLS, fields)


if __name__ == "__main__":
    app.loader.import_module(MODULE)
    app.finalize()
    Producer(
        os.environ["CHAOS_PRODUCER"],
        int(os.environ["CHAOS_SEED"]),
        keys=int(os.environ["CHAOS_KEYS"]),
        pause=float(os.environ["CHAOS_PAUSE"]),
    ).run()
