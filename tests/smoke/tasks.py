"""The tasks of the smoke tests; each writes its starts and ends into the ledger.

Declared as an application would, once for all apps of the process; a worker
imports this module, so importing it must be all that it takes.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from celery import Task, shared_task
from celery.exceptions import Ignore, Reject
from celery.utils.imports import instantiate
from redis import Redis

from celery_bgtask import BgTask, bgtask
from tests.smoke.ledger import Ledger, Writer, recorded


@functools.cache
def _client(pid: int, url: str) -> Redis:
    return Redis.from_url(url, decode_responses=True)


def client_of(task: Task) -> Redis:
    """The ledger's server, which no test takes away."""
    # One per process: a connection must not cross a fork.
    return _client(os.getpid(), task.app.conf["smoke_ledger_url"])


def record(task: Task, key: str) -> Any:
    """Write down the run of *task* that has just begun."""
    return recorded(client_of(task), task.request, key)


@bgtask(bind=True, task_key="key", max_per_key=5, when_full="wait")
def five(self: Task, key: str, seconds: float | str = 0.0) -> str:
    """At most five of a key; the others wait."""
    with record(self, key) as run:
        run.work(seconds)
    return key


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait")
def single(self: Task, key: str, seconds: float | str = 0.0) -> str:
    """One of a key; the others wait."""
    with record(self, key) as run:
        run.work(seconds)
    return key


@bgtask(bind=True, task_key="key", max_per_key=1)
def strict(self: Task, key: str, seconds: float | str = 0.0) -> str:
    """One of a key; the others are refused."""
    with record(self, key) as run:
        run.work(seconds)
    return key


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait", acks_late=True)
def late(self: Task, key: str, seconds: float | str = 0.0) -> str:
    """One of a key; its message is acknowledged at the end."""
    with record(self, key) as run:
        run.work(seconds)
    return key


@bgtask(
    bind=True,
    task_key="key",
    max_per_key=1,
    when_full="wait",
    acks_late=True,
    when_lost="fail",
)
def once(self: Task, key: str, seconds: float | str = 0.0) -> str:
    """As ``late``, but not again if its worker was lost."""
    with record(self, key) as run:
        run.work(seconds)
    return key


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait", ignore_result=True)
def collect(self: Task, results: list[Any], key: str) -> None:
    """The body of a chord."""
    with record(self, key):
        client_of(self).set(f"ledger:collected:{key}", len(results))


@shared_task(bind=True, ignore_result=True)
def unlimited(self: Task, key: str) -> None:
    """A task that nobody limits."""
    with record(self, key):
        pass


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait", max_retries=3)
def ending(self: Task, key: str, how: str, **facts: Any) -> Any:
    """Ends in the way that is asked for."""
    with record(self, key) as run:
        return ENDINGS[how](self, run, **facts)


@bgtask(bind=True, task_key="key", max_per_key=1, when_full="wait", acks_late=True)
def late_ending(self: Task, key: str, how: str, **facts: Any) -> Any:
    """Ends in the way that is asked for; acknowledged then."""
    with record(self, key) as run:
        return ENDINGS[how](self, run, **facts)


def _succeed(_task: Task, run: Writer, *, seconds: float | str = 0.0) -> str:
    run.work(seconds)
    return "done"


def _fail(_task: Task, _run: Writer) -> None:
    raise ValueError("as asked for")


def _retry(
    task: Task, run: Writer, *, countdown: float, seconds: float | str = 0.0
) -> str:
    run.work(seconds)
    if task.request.retries < 2:
        raise task.retry(countdown=countdown)
    return "done"


def _ignore(_task: Task, _run: Writer) -> None:
    raise Ignore


def _reject(_task: Task, _run: Writer) -> None:
    raise Reject("as asked for", requeue=False)


def _requeue(task: Task, _run: Writer) -> str:
    if Ledger(client_of(task)).starts(str(task.request.id)) == 1:
        raise Reject("as asked for", requeue=True)
    return "done"


def _exit(_task: Task, _run: Writer) -> None:
    sys.exit(3)


def _replace(task: Task, _run: Writer, *, by: str) -> Any:
    return task.replace(ending.si(by, "succeed"))


def _kill(_task: Task, run: Writer) -> None:
    run.add("end")
    os.kill(os.getpid(), signal.SIGKILL)


def _die(_task: Task, run: Writer) -> None:
    run.add("end")
    os._exit(3)


def _stubborn(_task: Task, run: Writer, *, seconds: float) -> None:
    try:
        time.sleep(seconds)
    finally:
        for _ in range(50):
            run.mark("finally")
            time.sleep(0.02)


ENDINGS: dict[str, Callable[..., Any]] = {
    "succeed": _succeed,
    "fail": _fail,
    "retry": _retry,
    "ignore": _ignore,
    "reject": _reject,
    "requeue": _requeue,
    "exit": _exit,
    "replace": _replace,
    "kill": _kill,
    "die": _die,
    "stubborn": _stubborn,
}


class Overriding(BgTask):
    """A base class that overrides every hook of a task and calls no ``super()``."""

    abstract = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run."""
        return self.run(*args, **kwargs)

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        """Note it."""
        self._note("before_start")

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        """Note it."""
        self._note("on_success")

    def on_failure(
        self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Note it."""
        self._note("on_failure")

    def on_retry(
        self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any
    ) -> None:
        """Note it."""
        self._note("on_retry")

    def after_return(self, *args: Any, **_kwargs: Any) -> None:
        """Note it."""
        self._note("after_return")

    def on_replace(self, sig: Any) -> Any:
        """Celery's own text, by hand."""
        self._note("on_replace")
        if self.request.is_eager:
            return sig.apply().get()
        sig.delay()
        raise Ignore("replaced")

    def shadow_name(self, args: Any, kwargs: Any, options: Any) -> Any:
        """Show another name."""
        return "shadowed"

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Do nothing."""

    def start_strategy(self, app: Any, consumer: Any, **kwargs: Any) -> Any:
        """The usual one, by hand."""
        return instantiate(self.Strategy, self, app, consumer, **kwargs)

    def _note(self, hook: str) -> None:
        client_of(self).hincrby(f"ledger:hooks:{self.request.id}", hook, 1)


class PlainOverriding(Task):
    """The same for a task that is limited afterwards; ``super()`` where it must."""

    abstract = True

    __call__ = Overriding.__call__
    before_start = Overriding.before_start
    on_success = Overriding.on_success
    on_failure = Overriding.on_failure
    on_retry = Overriding.on_retry
    after_return = Overriding.after_return
    on_replace = Overriding.on_replace
    shadow_name = Overriding.shadow_name
    _note = Overriding._note

    def apply_async(self, *args: Any, **options: Any) -> Any:
        """Add a header, as tracing libraries do."""
        options["headers"] = {**(options.get("headers") or {}), "x-smoke": "1"}
        return super().apply_async(*args, **options)

    def apply(self, *args: Any, **options: Any) -> Any:
        """As it is."""
        return super().apply(*args, **options)

    def retry(self, *args: Any, **options: Any) -> Any:
        """As it is."""
        return super().retry(*args, **options)

    def signature(self, *args: Any, **options: Any) -> Any:
        """As it is."""
        return super().signature(*args, **options)


def _hooked(self: Task, key: str, how: str, **facts: Any) -> Any:
    """Ends in the way that is asked for."""
    with record(self, key) as run:
        return ENDINGS[how](self, run, **facts)


hooked = bgtask(
    name="tests.smoke.tasks.hooked",
    bind=True,
    base=Overriding,
    task_key="key",
    max_per_key=1,
    when_full="wait",
)(_hooked)

plain_hooked = bgtask(
    name="tests.smoke.tasks.plain_hooked",
    bind=True,
    base=PlainOverriding,
    task_key="key",
    max_per_key=1,
    when_full="wait",
)(_hooked)
