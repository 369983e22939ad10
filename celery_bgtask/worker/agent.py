"""Two threads that keep what this worker runs, and clean up after those that died.

They belong to the worker's main process. The heartbeat renews the leases of
what runs and does nothing else, so that nothing can keep it from that. The
sweep frees, ends, concludes and publishes, and may wait for a broker. Both go
on through reconnects, and through a warm shutdown until the last run is over.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import time
import weakref
from collections import defaultdict
from typing import Any

from celery import Celery, Task
from celery.utils.log import get_logger
from celery.worker import state
from redis.exceptions import ResponseError

from .. import outbox
from ..exceptions import StoreUnavailable
from ..extension import Extension
from ..keys import quote
from ..options import Options, options_of
from ..periodic import Periodic
from ..signals import lease_lost
from .availability import Availability
from .endings import Ending, Endings
from .intake import Intake, copy_of
from .monitors import Monitors
from .sweeper import sweep


__all__ = ["Agent", "agent_of", "run_agent"]

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
        self.monitors = Monitors()
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
                self._leave_list()
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
            self._enlist()
        return self._extension.settings.lease / RENEWALS_PER_LEASE

    def _enlist(self) -> None:
        """Let others know that this worker lives, and what it takes."""
        lease = self._extension.settings.lease
        for scope, queues in self._availability.queues().items():
            self._extension.scripts(scope).enlist(
                self._hostname, lease, taker=self.worker_id, queues=queues
            )

    def _leave_list(self) -> None:
        """Let others know that this worker goes; what they all ignore ends."""
        for scope, queues in self._availability.queues().items():
            scripts = self._extension.scripts(scope)
            granted = scripts.leave(self._hostname, taker=self.worker_id, queues=queues)
            outbox.publish(self._extension.app, scripts, granted)

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
                sweep(
                    extension.app,
                    extension.scripts(scope),
                    self.worker_id,
                    tell=self.monitors.tell,
                )
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


def run_agent(extension: Extension, hostname: str) -> Agent:
    """Make the agent of the worker that runs in this process, to be started."""
    agent = _agents[extension.app] = Agent(extension, hostname)
    return agent


def agent_of(app: Celery) -> Agent | None:
    """Return the agent of the worker that runs in this process for *app*."""
    return _agents.get(app)
