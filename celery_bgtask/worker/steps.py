"""How the agent and the intake get into a worker, and out of it."""

from __future__ import annotations

import inspect
from typing import Any

from celery import Celery, bootsteps, signals
from celery.local import Proxy

from ..exceptions import ImproperlyConfigured
from ..extension import extension_of
from . import remote  # noqa: F401 - its commands are registered
from .agent import agent_of, run_agent


__all__ = ["AgentStep", "install"]


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
        self.agent = run_agent(extension, parent.hostname)

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
            agent.monitors.open(parent)

    def register_with_event_loop(self, parent: Any, hub: Any) -> None:
        """Have the loop wake for what comes."""
        agent = agent_of(parent.app)
        if agent is not None:
            agent.intake.register(hub)

    def stop(self, parent: Any) -> None:
        """Take nothing more; a lost connection to the broker stops this, too."""
        agent = agent_of(parent.app)
        if agent is not None:
            agent.monitors.shut()
            agent.intake.shut()


def install(app: Celery) -> None:
    """Let workers of *app* run an agent; more than once does no harm."""
    app.steps["worker"].add(AgentStep)
    app.steps["consumer"].add(IntakeStep)


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
