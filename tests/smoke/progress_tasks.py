"""The tasks of the tests of progress and of those who follow it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from celery import Celery, Task, shared_task

from celery_bgtask import BgTaskError, bgtask
from tests.smoke.ledger import Writer
from tests.smoke.tasks import client_of, record


#: What ``WorkerSpec`` and ``app.tasks`` call this module.
MODULE = "tests.smoke.progress_tasks"

#: Where :func:`release_gate` says that bodies may go on.
GATE = "ledger:gate:"

#: Seconds that a body waits at a gate.
PATIENCE = 40.0


def task_of(app: Celery, name: str) -> Any:
    """The task of this module that *app* calls *name*."""
    return app.tasks[f"{MODULE}.{name}"]


def release_gate(client: Any, key: str, count: int = 1) -> None:
    """Let *count* bodies of *key* go on that wait, or will."""
    client.rpush(GATE + key, *range(count))


def _work(self: Any, key: str, how: str = "steps", **facts: Any) -> Any:
    """Any number of a key."""
    with record(self, key) as run:
        return BODIES[how](self, run, key, **facts)


_any = functools.partial(bgtask, bind=True, task_key="key", max_per_key=None)

work = _any(name=f"{MODULE}.work", max_retries=9)(_work)

#: Nobody asks for its result.
silent = _any(name=f"{MODULE}.silent", ignore_result=True)(_work)

#: It must have ended within two seconds.
limited = _any(name=f"{MODULE}.limited", finish_timeout=2.0)(_work)

#: Its own scope, and a small payload.
narrow = _any(name=f"{MODULE}.narrow", max_payload_size=2000)(_work)


@shared_task(bind=True)
def plain(self: Task, *_: Any, key: str) -> str:
    """A task that nobody limits."""
    with record(self, key):
        return "plain"


def _steps(
    task: Any,
    _run: Writer,
    key: str,
    *,
    count: int = 5,
    base: int = 0,
    gates: tuple[int, ...] = (),
    value: Any = "done",
    error: str = "",
) -> Any:
    """Report *count* times; wait at a gate before some of them."""
    for step in range(count):
        if step in gates:
            wait_at_gate(task, key)
        task.progress(base + step, base + count, f"schritt {step} ✓", key=key)
    if count in gates:
        wait_at_gate(task, key)
    if error:
        raise ValueError(error)
    return value


def wait_at_gate(task: Any, key: str) -> None:
    """Wait until the test lets one of *key* go on."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        # A short wait each: with gevent, others go on meanwhile.
        if client_of(task).lpop(GATE + key) is not None:
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody lets {key} go on")


def _paced(task: Any, _run: Writer, _key: str, *, count: int, pause: float) -> int:
    """Report again and again; return how often."""
    for step in range(count):
        task.progress(step, count)
        time.sleep(pause)
    return count


def _flood(task: Any, _run: Writer, _key: str, *, count: int) -> int:
    """Report as fast as can be."""
    for step in range(count):
        task.progress(step, count)
    return count


def _track(task: Any, _run: Writer, _key: str, *, count: int, pause: float) -> float:
    """Track a loop; return for how long."""
    begun = time.monotonic()
    for _ in task.track(range(count), description="tracked"):
        time.sleep(pause)
    return time.monotonic() - begun


def _data(task: Any, _run: Writer, _key: str, *, data: dict[str, Any]) -> str:
    task.progress(1, 2, "données", **data)
    return "done"


def _wrong(task: Any, _run: Writer, _key: str, *, catch: bool) -> str:
    """Report what is no JSON."""
    try:
        task.progress(1, wrong={1, 2})
    except TypeError as exc:
        if not catch:
            raise
        task.progress(2, text=str(exc))
    return "done"


def _large(task: Any, _run: Writer, _key: str) -> str:
    task.progress(1)
    task.progress(2, blob="x" * 3000)
    task.progress(3)
    return "done"


def _retried(task: Any, _run: Writer, _key: str, *, times: int, pause: float) -> str:
    retries = task.request.retries
    task.progress(retries, times)
    if retries < times:
        raise task.retry(countdown=pause)
    return "done"


def _until_told(task: Any, run: Writer, _key: str, *, way: str) -> str:
    """Report, or track, until somebody says that it is over."""
    run.mark("begun")
    until = time.monotonic() + PATIENCE

    def steps() -> Any:
        while time.monotonic() < until:
            time.sleep(0.05)
            yield None

    try:
        if way == "track":
            for _ in task.track(steps()):
                pass
        else:
            for number, _ in enumerate(steps()):
                task.progress(number)
    except BgTaskError as exc:
        run.mark(type(exc).__name__)
        raise
    return "late"


def _submit(task: Any, run: Writer, key: str) -> Any:
    """Submit a task and follow it, in this process of the pool."""
    heard: list[Any] = []
    over: list[Any] = []
    result = work.apply_async((f"{key}-inner",), {"count": 3})
    result.on_progress(lambda one: heard.append(one.current))
    result.on_done(over.append)
    until = time.monotonic() + PATIENCE
    while not over and time.monotonic() < until:
        time.sleep(0.02)
    run.mark(f"{heard}")
    return heard


def _replaced(task: Any, _run: Writer, key: str, *, by: str, **facts: Any) -> Any:
    """Let another task take its place."""
    task.progress(1, 10)
    return task.replace(task_of(task.app, by).si(key=f"{key}-by", **facts))


def _die(task: Any, run: Writer, _key: str) -> None:
    """Report, and be killed."""
    task.progress(1)
    run.add("end")
    import os  # noqa: PLC0415 - for this one
    import signal  # noqa: PLC0415

    os.kill(os.getpid(), signal.SIGKILL)


BODIES: dict[str, Callable[..., Any]] = {
    "steps": _steps,
    "paced": _paced,
    "flood": _flood,
    "track": _track,
    "data": _data,
    "wrong": _wrong,
    "large": _large,
    "retried": _retried,
    "until_told": _until_told,
    "submit": _submit,
    "replaced": _replaced,
    "die": _die,
}
