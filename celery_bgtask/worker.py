"""The worker's side: two threads, and how they get into a worker.

They belong to the worker's main process. The heartbeat renews the leases of
what runs and does nothing else, so that nothing can keep it from that. The
sweep frees, ends, concludes and publishes, and may wait for a broker. Both go
on through reconnects, and through a warm shutdown until the last run is over.
"""

from __future__ import annotations

import base64
import contextlib
import inspect
import random
import secrets
import time
import weakref
from collections import defaultdict
from typing import Any

from celery import Celery, Task, bootsteps, signals
from celery.local import Proxy
from celery.utils.log import get_logger
from celery.worker import state
from celery.worker.control import control_command
from celery.worker.state import requests
from redis.exceptions import ResponseError

from .availability import Availability
from .endings import Ending, Endings
from .exceptions import ImproperlyConfigured, StoreUnavailable
from .extension import Extension, extension_of
from .intake import Intake, OwnMessage, copy_of
from .keys import quote
from .message import Message
from .options import Options, options_of
from .periodic import Periodic
from .signals import lease_lost
from .sweeper import sweep


__all__ = ["Agent", "AgentStep", "agent_of", "install"]

logger = get_logger(__name__)

#: Two renewals may fail before a lease is lost.
RENEWALS_PER_LEASE = 3

#: Seconds between two looks at a process that was told to end.
WATCH_INTERVAL = 0.1

#: Seconds a worker that shuts down waits for the processes it has killed.
LEAVE_TIMEOUT = 5.0


class Agent:
    """What this package does in a worker's main process.

    Args:
        extension: Of the worker's app.
        hostname: The worker's node name.
    """

    def __init__(self, extension: Extension, hostname: str) -> None:
        self.worker_id = quote(f"{hostname}/{secrets.token_hex(4)}")
        self.intake = Intake()
        self._availability = Availability(extension, self.worker_id, self.intake)
        self._hostname = hostname
        self._extension = extension
        self._endings = Endings(extension, self.worker_id)
        self._sweep_at = 0.0
        self._leaving = False
        self._heartbeat = Periodic("bgtask heartbeat", self._beat, self._is_idle)
        self._sweep = Periodic("bgtask sweep", self._clean, self._is_idle)

    def start(self) -> None:
        """Begin to renew and sweep."""
        self._heartbeat.start()
        self._sweep.start()
        self._availability.start()

    def leave(self) -> None:
        """Stop as soon as no run is left to renew."""
        if not self._leaving:
            self._leaving = True
            with contextlib.suppress(StoreUnavailable):  # then it is forgotten in time
                self._enlist(0.0)
        self._availability.leave()
        self._heartbeat.leave()
        self._sweep.leave()

    def join(self) -> None:
        """Wait for the processes that were killed, to give their slots back."""
        self.leave()
        give_up = time.monotonic() + LEAVE_TIMEOUT
        while self._endings and time.monotonic() < give_up and self._sweep.is_alive():
            self._sweep.join(WATCH_INTERVAL)

    def report(self, ending: Ending) -> None:
        """Note *ending*; its slot is freed by the sweep."""
        self._endings.add(ending)
        self._sweep.wake()

    def _is_idle(self) -> bool:
        return not self._endings and not active_tasks(self._extension.app)

    def _beat(self) -> float:
        """Renew the leases of all that runs here, and of what is being killed."""
        tasks = active_tasks(self._extension.app) | self._endings.tasks()
        by_scope: dict[str, list[str]] = defaultdict(list)
        for task_id, task in tasks.items():
            by_scope[options_of(task).scope].append(task_id)
        for scope, ids in by_scope.items():
            for lost in self._extension.scripts(scope).renew(self.worker_id, ids):
                tell_lost(tasks[lost.task_id], lost.task_id, lost.key)
        if not self._leaving:
            self._enlist(self._extension.settings.lease)
        return self._extension.settings.lease / RENEWALS_PER_LEASE

    def _enlist(self, ttl: float) -> None:
        """Let others know that this worker lives for so long, and what it takes."""
        for scope, queues in self._availability.queues().items():
            self._extension.scripts(scope).enlist(
                self._hostname, ttl, taker=self.worker_id, queues=queues
            )

    def _clean(self) -> float:
        """End what was killed, and sweep when it is time."""
        if not self._sweep_at:
            self._warn_of_eviction()
        self._endings.see_through()
        now = time.monotonic()
        if now >= self._sweep_at:
            self._sweep_all()
            interval = self._extension.settings.sweep_interval
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 - it is no secret
            self._sweep_at = now + interval * jitter
        pause = max(0.0, self._sweep_at - time.monotonic())
        return min(pause, WATCH_INTERVAL) if self._endings else pause

    def _sweep_all(self) -> None:
        """Sweep every scope; what is wrong with one is not wrong with the others."""
        extension = self._extension
        refused: StoreUnavailable | None = None
        for scope in extension.scopes:
            try:
                sweep(extension.app, extension.scripts(scope), self.worker_id)
            except StoreUnavailable as exc:
                if not isinstance(exc.__cause__, ResponseError):
                    raise
                refused = exc
        if refused is not None:
            raise refused

    def _warn_of_eviction(self) -> None:
        with contextlib.suppress(StoreUnavailable):
            policy = self._extension.link.eviction_policy()
            if policy != "noeviction":
                logger.warning(
                    "The store at %s has maxmemory-policy %s: when its memory is full "
                    "it drops slots and waiting tasks. Set it to noeviction.",
                    self._extension.link.url,
                    policy,
                )


def tell_lost(task: Task[Any, Any], task_id: str, key: str) -> None:
    """Say that a run of this worker is not its own any more."""
    logger.warning(
        "Task %s[%s] has lost its lease on %r: this worker was away for longer than "
        "bgtask_lease. What it still does will not be stored.",
        task.name,
        task_id,
        key or task.name,
        extra={"bgtask_event": "lease_lost", "bgtask_key": key},
    )
    lease_lost.send(sender=task, task_id=task_id, key=key)


def active_tasks(app: Celery) -> dict[str, Task[Any, Any]]:
    """Return the bgtasks of *app* that this worker has in hand, by task id.

    Celery keeps the requests of all apps of a process together.
    """
    requests = (*copy_of(state.reserved_requests), *copy_of(state.active_requests))
    return {
        request.id: request.task
        for request in requests
        if isinstance(getattr(request.task, "bgtask", None), Options)
        and request.task.app is app
    }


_agents: weakref.WeakKeyDictionary[Celery, Agent] = weakref.WeakKeyDictionary()


def agent_of(app: Celery) -> Agent | None:
    """Return the agent of the worker that runs in this process for *app*."""
    return _agents.get(app)


def check_declarations(app: Celery) -> None:
    """Check that no task hides a limited one.

    Raises:
        ImproperlyConfigured: If ``@app.task`` stands on top of ``@bgtask``: it
            would be a plain task that calls the limited one as a function.
    """
    for task in app.tasks.values():
        body = inspect.getattr_static(type(task), "run", None)
        hidden = getattr(body, "__func__", body)
        if type(hidden) is Proxy and is_limited(app, hidden):
            raise ImproperlyConfigured(
                f"{task.name}: put @bgtask above Celery's decorator, not below it: "
                "as it is, the task has no limit"
            )


def is_limited(app: Celery, proxy: Any) -> bool:
    """Tell whether *proxy*, as ``shared_task`` makes them, is of a limited task."""
    made = inspect.getclosurevars(proxy._Proxy__local).nonlocals  # noqa: SLF001
    fun: Any = made.get("fun")
    name = made.get("name") or app.gen_task_name(fun.__name__, fun.__module__)
    return hasattr(app.tasks.get(name), "bgtask")


class AgentStep(bootsteps.StartStopStep):
    """Runs the agent of a worker.

    After the pool, which forks: there are no threads yet, then.
    """

    requires = ("celery.worker.components:Pool",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        extension = extension_of(parent.app)
        check_declarations(parent.app)
        _ = extension.link  # a worker that has no store must not start
        self.agent = Agent(extension, parent.hostname)
        _agents[parent.app] = self.agent

    def start(self, parent: Any) -> None:
        """Start with the worker."""
        self.agent.intake.attend(parent.pool)
        self.agent.start()

    def stop(self, parent: Any) -> None:
        """Stop after the worker's last run."""
        self.agent.leave()

    def terminate(self, parent: Any) -> None:
        """Stop with a worker that takes no time for its runs."""
        self.agent.join()


@signals.worker_shutdown.connect(weak=False)
def leave(sender: Any, **_kwargs: Any) -> None:
    """Give back what a worker that shuts down has cancelled."""
    agent = agent_of(sender.app) if hasattr(sender, "app") else None
    if agent is not None:
        agent.join()


class IntakeStep(bootsteps.StartStopStep):
    """Lets a worker start tasks that no broker has delivered, while it consumes."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """Begin with a consumer that is connected."""
        agent = agent_of(parent.app)
        if agent is not None:
            agent.intake.open(parent)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Have the loop wake for what comes."""
        agent = agent_of(parent.app)
        if agent is not None:
            agent.intake.register(hub)

    def stop(self, parent: Any) -> None:
        """Take nothing more; a lost connection to the broker stops this, too."""
        agent = agent_of(parent.app)
        if agent is not None:
            agent.intake.shut()


@control_command(signature="<task> <broadcast_id> <until_ms> <body> <envelope>")
def bgtask_broadcast(
    state: Any, *, task: str, broadcast_id: str, until_ms: int, body: str, envelope: str
) -> None:
    """Run a task once on this worker, if it knows it."""
    agent = agent_of(state.app)
    if agent is None or task not in state.app.tasks:
        return
    message = Message(base64.b64decode(body), envelope.encode()).readdressed(
        f"{broadcast_id}@{state.hostname}",
        {"broadcast": broadcast_id, "until": until_ms},
    )
    agent.intake.put(OwnMessage(message, lambda _: None, agent.intake.accept))


@control_command(args=[("task_id", str)], signature="<task_id>")
def bgtask_stop(state: Any, task_id: str, signal: str | None = None, **_: Any) -> Any:
    """Stop the body of a task that has been ended, if this worker runs it."""
    request = requests.get(task_id)
    if request is None or not hasattr(request, "stop"):
        return None
    return {"stopped": request.stop(state.consumer.pool, signal)}


def install(app: Celery) -> None:
    """Let workers of *app* run an agent; more than once does no harm."""
    app.steps["worker"].add(AgentStep)
    app.steps["consumer"].add(IntakeStep)
