"""The tasks of the tests of deadlines, cancelling and lost workers."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task, shared_task
from redis import Redis

from celery_bgtask import BgTaskError, bgtask
from celery_bgtask.running.run import CHECK_INTERVAL
from celery_bgtask.signals import lease_lost
from tests.smoke.ledger import Writer
from tests.smoke.tasks import client_of, record


#: What ``WorkerSpec`` and ``app.tasks`` call this module.
MODULE = "tests.smoke.deadline_tasks"

ERRORS = "ledger:errors:"
LEASES_LOST = "ledger:leases-lost"


def _job(self: Task, key: str, how: str = "sleep", **facts: Any) -> Any:
    """One of a key; the others wait."""
    with record(self, key) as run:
        try:
            return BODIES[how](self, run, **facts)
        except SoftTimeLimitExceeded:
            run.mark("soft")
            raise


_one = functools.partial(
    bgtask, bind=True, task_key="key", max_per_key=1, when_full="wait", max_retries=9
)

job = _one(name=f"{MODULE}.job")(_job)

#: A worker must start it within a second.
prompt = _one(name=f"{MODULE}.prompt", accept_timeout=1.0)(_job)

#: The same, and nobody asks for its result.
silent = _one(name=f"{MODULE}.silent", accept_timeout=1.0, ignore_result=True)(_job)

#: Acknowledged at its end: it runs again when its worker is lost.
late = _one(name=f"{MODULE}.late", acks_late=True)(_job)

#: Acknowledged at its start, and runs again all the same.
again = _one(name=f"{MODULE}.again", when_lost="rerun")(_job)


@shared_task
def errback(request: Any, exc: BaseException, traceback: Any, url: str) -> None:
    """Write down that the error of a task was told, and in which process."""
    del traceback
    fact = {"error": type(exc).__name__, "pid": os.getpid()}
    with Redis.from_url(url) as client:
        client.rpush(ERRORS + request.id, json.dumps(fact))


@shared_task(bind=True)
def follow(self: Task, *_: Any, key: str) -> str:
    """Come after a task: the next of its chain, the body of its chord."""
    with record(self, key):
        return "followed"


def _sleep(
    _task: Task, run: Writer, *, seconds: float | str = 0.0, value: Any = None
) -> Any:
    run.work(seconds)
    return value


def _swallow(_task: Task, run: Writer, *, seconds: float | str) -> str:
    """Take no notice of a soft time limit."""
    while True:
        try:
            for _ in run.steps(seconds):
                run.mark("works")
        except SoftTimeLimitExceeded:
            run.mark("soft")
        else:
            return "late"


def _check(task: Any, run: Writer, *, seconds: float | str) -> str:
    """Ask at checkpoints whether to go on."""
    for _ in run.steps(seconds):
        _ask(task, run)
    time.sleep(CHECK_INTERVAL)  # a checkpoint asks no more often
    _ask(task, run)
    return "late"


def _check_last(task: Any, run: Writer, *, seconds: float | str) -> str:
    """Ask once, at the end."""
    run.work(seconds)
    _ask(task, run)
    return "late"


def _ask(task: Any, run: Writer) -> None:
    try:
        task.checkpoint()
    except BgTaskError as exc:
        run.mark(f"{type(exc).__name__}: {exc}")
        raise


def _retry(task: Task, _run: Writer, *, times: int, pause: float) -> str:
    if task.request.retries < times:
        raise task.retry(countdown=pause)
    return "done"


def _fail(_task: Task, run: Writer, *, seconds: float | str = 0.0) -> None:
    run.work(seconds)
    raise ValueError("as asked for")


BODIES: dict[str, Callable[..., Any]] = {
    "sleep": _sleep,
    "swallow": _swallow,
    "check": _check,
    "check-last": _check_last,
    "retry": _retry,
    "fail": _fail,
}


@lease_lost.connect(weak=False)
def _note_lost_lease(sender: Task, task_id: str, key: str, **_: Any) -> None:
    client_of(sender).rpush(LEASES_LOST, f"{task_id} {key}")
