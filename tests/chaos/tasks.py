"""The tasks of the chaos run, and the pulse of the workers that run them.

Every body honours a lost lease: it asks ``checkpoint`` as it works and ends at once
when it is told.
"""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from typing import Any

from celery import Celery, Task, signals
from redis import Redis

from celery_bgtask import bgtask
from celery_bgtask.scripts import loader
from tests.smoke.tasks import record


MODULE = "tests.chaos.tasks"

#: Where each worker's main process says that it gets to run.
PULSE = "chaos:pulse"

#: What producers say of each call; and where they are told to stop.
CALLS = "chaos:calls"
STOP = "chaos:stop"

#: Seconds between two of its beats.
BEAT = 0.2

#: Slots per key, by task; what the verifier goes by.
LIMITS = {"line": 1, "strict": 1, "two": 2, "three": 3, "four": 4, "offered": 5}

#: Tasks whose full key refuses.
REFUSING = frozenset({"strict", "three"})


def task_of(app: Celery, name: str) -> Any:
    """The task of this module that *app* calls *name*."""
    return app.tasks[f"{MODULE}.{name}"]


def _job(self: Task, key: str, seconds: float = 0.0, how: str = "") -> str:
    """Work, and honour a lost lease; then succeed, fail or come again."""
    with record(self, key) as run:
        for _ in run.steps(seconds):
            self.checkpoint()  # type: ignore[attr-defined]
        if how == "fail":
            raise ValueError("as asked for")
        if how in ("again", "later") and self.request.retries < 2:
            raise self.retry(countdown=0.3 if how == "later" else 0)
        run.mark("done")
    return key


def _declare(name: str, **options: Any) -> Any:
    refuses = name in REFUSING
    return partial(
        bgtask,
        name=f"{MODULE}.{name}",
        bind=True,
        task_key="key",
        max_per_key=LIMITS[name],
        when_full="reject" if refuses else "wait",
        max_retries=2,
    )(**options)(_job)


#: One after the other; what a process had just taken is lost with it.
line = _declare("line")
strict = _declare("strict")

#: They run again when their worker is lost.
two = _declare("two", acks_late=True, max_lost=9)
three = _declare("three", acks_late=True, max_lost=9)
four = _declare("four", acks_late=True, max_lost=9)

#: Taken by the first worker that wants it.
offered = _declare("offered", delivery="offer", acks_late=True, max_lost=9)


if os.environ.get("CHAOS_NEWER"):
    # As another release has them: the same scripts by other hashes.
    sources = loader.load_sources()
    loader.SCRIPTS.update(
        loader.assemble(
            {
                name: text
                if name.startswith(loader.INCLUDES)
                else f"{text}\n-- newer\n"
                for name, text in sources.items()
            }
        )
    )


@signals.worker_ready.connect(weak=False)
def _beat(sender: Any, **_: Any) -> None:
    """Tell the ledger again and again that this worker gets to run."""
    conf, name = sender.app.conf, sender.hostname

    def tell() -> None:
        client = Redis.from_url(conf["smoke_ledger_url"])
        while True:
            client.xadd(PULSE, {"worker": name})
            time.sleep(BEAT)

    threading.Thread(target=tell, daemon=True).start()
