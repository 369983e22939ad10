"""The tasks of the tests of offers, broadcasts and external workers."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, shared_task, signals
from celery.exceptions import Reject
from redis import Redis

from celery_bgtask import IGNORE, bgtask, task_accepted, task_available
from tests.smoke.ledger import Ledger, Writer
from tests.smoke.tasks import client_of, record


#: What ``WorkerSpec`` and ``app.tasks`` call this module.
MODULE = "tests.smoke.offer_tasks"

TOLD = "ledger:told:"
ACCEPTED = "ledger:accepted:"

#: Tasks that share keys, two at a time, however they are delivered.
SHARED = "tests.smoke.offers.shared"


def task_of(app: Celery, name: str) -> Any:
    """The task of this module that *app* calls *name*."""
    return app.tasks[f"{MODULE}.{name}"]


def _job(self: Task, key: str, how: str = "sleep", **facts: Any) -> Any:
    """Do what is asked for."""
    with record(self, key) as run:
        return BODIES[how](self, run, **facts)


_offered = functools.partial(
    bgtask, bind=True, task_key="key", delivery="offer", max_retries=9
)
_shared = functools.partial(
    bgtask, bind=True, task_key="key", max_per_key=2, when_full="wait", scope=SHARED
)

#: As many of a key as the workers have places.
job = _offered(name=f"{MODULE}.job", max_per_key=None)(_job)

#: The same, acknowledged at its end: it runs again when its worker is lost.
late = _offered(name=f"{MODULE}.late", max_per_key=None, acks_late=True)(_job)

#: The same, and it comes back to the queue when its process dies.
requeued = _offered(
    name=f"{MODULE}.requeued",
    max_per_key=None,
    acks_late=True,
    reject_on_worker_lost=True,
)(_job)

#: One a second, on each worker.
rated = _offered(name=f"{MODULE}.rated", max_per_key=None, rate_limit="1/s")(_job)

#: Nobody asks for its result.
silent = _offered(name=f"{MODULE}.silent", max_per_key=None, ignore_result=True)(_job)

#: One of a key; the others wait.
single = _offered(name=f"{MODULE}.single", max_per_key=1, when_full="wait")(_job)

#: Two of a key, of both together.
offered = _shared(name=f"{MODULE}.offered", delivery="offer")(_job)
queued = _shared(name=f"{MODULE}.queued")(_job)

#: Delivered by the broker, whatever is on offer; and broadcast.
plain = bgtask(name=f"{MODULE}.plain", bind=True, task_key="key", max_per_key=None)(
    _job
)


@bgtask(bind=True, max_per_key=1, ignore_result=True)
def tell(self: Task, key: str, seconds: float = 0.0) -> None:
    """Say nothing; one at a time, if it is not broadcast."""
    with record(self, key):
        time.sleep(seconds)


@shared_task(bind=True)
def gather(self: Task, results: Any, key: str) -> Any:
    """Come after tasks: the next of their chain, the body of their chord."""
    with record(self, key):
        return results


@shared_task
def errback(
    request: Any, exc: BaseException, traceback: Any, url: str, name: str
) -> None:
    """Write down that the error of a task was told."""
    del traceback, request
    with Redis.from_url(url) as client:
        client.rpush(f"ledger:errors:{name}", type(exc).__name__)


def _sleep(
    _task: Task, _run: Writer, *, seconds: float = 0.0, value: Any = None
) -> Any:
    time.sleep(seconds)
    return value


def _fail(_task: Task, _run: Writer, *, seconds: float = 0.0) -> None:
    time.sleep(seconds)
    raise ValueError("as asked for")


def _fail_on(task: Any, _run: Writer, *, worker: str) -> str:
    if task.request.hostname.startswith(worker):
        raise ValueError("as asked for")
    return "done"


def _retry(task: Task, _run: Writer, *, times: int, pause: float) -> str:
    if task.request.retries < times:
        raise task.retry(countdown=pause)
    return "done"


def _requeue(task: Task, _run: Writer) -> str:
    if Ledger(client_of(task)).starts(str(task.request.id)) == 1:
        raise Reject("as asked for", requeue=True)
    return "done"


def _replace(task: Task, _run: Writer, *, by: str) -> Any:
    return task.replace(job.s(by, value="replaced"))


def _die_on(task: Any, run: Writer, *, worker: str = "", times: int = 99) -> str:
    ledger = Ledger(client_of(task))
    mine = task.request.hostname.startswith(worker)
    if mine and ledger.starts(str(task.request.id)) <= times:
        run.add("end")
        os._exit(3)
    return "survived"


def _tell_metadata(task: Any, _run: Writer) -> Any:
    return dict(task.metadata)


def _report(task: Any, _run: Writer, *, reports: int) -> str:
    for number in range(reports):
        task.progress(number + 1, reports)
    return "reported"


BODIES: dict[str, Callable[..., Any]] = {
    "sleep": _sleep,
    "fail": _fail,
    "fail_on": _fail_on,
    "retry": _retry,
    "requeue": _requeue,
    "replace": _replace,
    "die": _die_on,
    "metadata": _tell_metadata,
    "report": _report,
}


# Receivers, as a worker's settings ask for them


def told(client: Redis, worker: str) -> list[dict[str, Any]]:
    """What the receivers of a worker were told, in order."""
    facts: Any = client.lrange(TOLD + worker, 0, -1)
    return [json.loads(fact) for fact in facts]


def accepted(client: Redis, pid: int) -> list[dict[str, Any]]:
    """What the receivers in a process were told of starts, in order."""
    facts: Any = client.lrange(f"{ACCEPTED}{pid}", 0, -1)
    return [json.loads(fact) for fact in facts]


def _note(hostname: str, sender: Task, **facts: Any) -> None:
    facts.pop("signal", None)
    fact = {"task": sender.name, "pid": os.getpid(), **facts}
    client_of(sender).rpush(TOLD + hostname, json.dumps(fact))


def _ignore_if_told(hostname: str, sender: Task, **facts: Any) -> Any:
    _note(hostname, sender, **facts)
    return IGNORE if facts["metadata"].get("not") in ("anybody", hostname) else None


def _be_slow(hostname: str, sender: Task, **facts: Any) -> None:
    _note(hostname, sender, **facts)
    time.sleep(5)


def _raise(hostname: str, sender: Task, **facts: Any) -> None:
    _note(hostname, sender, **facts)
    raise RuntimeError("as asked for")


RECEIVERS = {
    "note": _note,
    "choosy": _ignore_if_told,
    "slow": _be_slow,
    "raising": _raise,
}


@signals.worker_init.connect(weak=False)
def _connect(sender: Any, **_: Any) -> None:
    """Connect what the settings of this worker name as ``smoke_receiver``."""
    wanted = sender.app.conf.get("smoke_receiver")
    if wanted:
        receiver = functools.partial(RECEIVERS[wanted], sender.hostname)
        task_available.connect(receiver, weak=False)
        task_accepted.connect(_note_start, weak=False)


def _note_start(sender: Task, **facts: Any) -> None:
    facts.pop("signal", None)
    client_of(sender).rpush(f"{ACCEPTED}{os.getpid()}", json.dumps(facts))
