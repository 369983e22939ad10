"""A run gives its slot on when the body ends, whatever the classes around it do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery, Task
from celery.app.trace import build_tracer
from celery.exceptions import Ignore, Reject

from celery_bgtask import BgTask, StoreUnavailable, bgtask
from celery_bgtask.running.run import Run, current_run
from celery_bgtask.scripts.replies import Accepted, Released, Standing


class FakeScripts:
    """A store that says yes, and notes what it is asked and by whom."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.status = "released"
        self.away = 0

    def accept(self, *args: Any, **kwargs: Any) -> Accepted:
        """Start every task."""
        self.log.append("accept")
        return Accepted("started", 1)

    def release(self, task_id: str, *, requeue: bool, **kwargs: Any) -> Released:
        """End a run, if the store is not away."""
        if self.away:
            self.away -= 1
            raise StoreUnavailable("redis://", "gone")
        self.log.append("requeue" if requeue else "release")
        return Released(self.status, [])

    def standing(self, task_id: str, token: str) -> Standing:
        """Know nothing of a run that is not valid."""
        return Standing(valid=False, verdict="")

    def settle(self, task_id: str, **kwargs: Any) -> None:
        """Forget a run."""
        self.log.append("settle")

    def announce(self, task_id: str, event: str, **kwargs: Any) -> None:
        """Tell of an end that nothing is known of."""
        self.log.append("announce")


class Backend:
    """Notes when a result is stored."""

    persistent = True
    READY_STATES = frozenset({"SUCCESS", "FAILURE"})

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: self.log.append(name)


@pytest.fixture
def log() -> list[str]:
    """What happened, in order."""
    return []


@pytest.fixture
def scripts(log: list[str]) -> FakeScripts:
    """The store."""
    return FakeScripts(log)


@pytest.fixture
def trace(scripts: FakeScripts, log: list[str]) -> Callable[..., Any]:
    """Runs a task as a worker does, without a worker."""

    def trace(task: Any, *args: Any, **kwargs: Any) -> Any:
        type(task).backend = Backend(log)
        run = Run(
            task=task,
            scripts=scripts,  # type: ignore[arg-type]
            task_id="id",
            key="k",
            limit=1,
            attempt=1,
            token="t",
            worker="w",
            patience=30,
        )
        tracer: Any = build_tracer(task.name, task, app=task.app)
        request = {
            "id": "id", "args": args, "kwargs": kwargs, "is_eager": False,
            "delivery_info": {}, "errbacks": None, "callbacks": None, "chord": None,
            "chain": None, "group": None, "root_id": "id", "hostname": "h",
        }  # fmt: skip
        with run.current():
            return tracer("id", args, kwargs, request)

    return trace


def test_the_slot_goes_before_the_result(
    app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """Released when the body has returned, settled when the result is stored."""

    @app.task(base=BgTask, lazy=False)
    def body():
        log.append("body")

    trace(body)

    assert log == ["body", "release", "mark_as_done", "process_cleanup", "settle"]


def test_the_slot_goes_before_a_failure(
    app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """An exception ends the run as a value does."""

    @app.task(base=BgTask, lazy=False)
    def body():
        raise ValueError

    trace(body)

    assert log[0] == "release"
    assert "mark_as_failure" in log
    assert log[-1] == "settle"
    assert log.count("release") == 1


@pytest.mark.parametrize(
    ("raised", "released"),
    [
        (Ignore(), "release"),
        (Reject(requeue=False), "release"),
        (Reject(requeue=True), "requeue"),
        (KeyError("x"), "release"),
        (SoftTimeLimitExceeded(), "release"),
    ],
    ids=repr,
)
def test_every_exception_gives_the_slot_on_once(
    raised: Exception,
    released: str,
    app: Celery,
    trace: Callable[..., Any],
    log: list[str],
) -> None:
    """What the body raises decides whether the message comes again, nothing else."""

    @app.task(base=BgTask, lazy=False, acks_late=True)
    def body():
        raise raised

    trace(body)

    assert [step for step in log if step in {"release", "requeue"}] == [released]
    assert ("settle" in log) == (released == "release")


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_an_exit_gives_the_slot_on(
    raised: Any, app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """A body that leaves the process has ended, too."""

    @app.task(base=BgTask, lazy=False)
    def body():
        raise raised

    with pytest.raises(raised):
        trace(body)

    assert log[0] == "release"
    assert log[-1] == "settle"


def test_who_is_stopped_while_storing_does_not_settle(
    app: Celery,
    trace: Callable[..., Any],
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result may not be stored: who finds the run looks it up, or makes one."""

    def stop(self: Any, *args: Any, **kwargs: Any) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(Backend, "mark_as_done", stop, raising=False)

    @app.task(base=BgTask, lazy=False)
    def work():
        return "done"

    with pytest.raises(SystemExit):
        trace(work)

    assert log[0] == "release"
    assert "settle" not in log


def test_requeueing_an_early_ack_is_an_end(
    app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """Without ``acks_late`` the broker has forgotten the message: it does not come."""

    @app.task(base=BgTask, lazy=False, acks_late=False)
    def body():
        raise Reject(requeue=True)

    trace(body)

    assert log[0] == "release"


@pytest.mark.parametrize("ending", ["value", "error"])
def test_a_stale_run_stores_nothing(
    ending: str,
    app: Celery,
    trace: Callable[..., Any],
    scripts: FakeScripts,
    log: list[str],
) -> None:
    """A run that had lost its lease is ignored, not a success and not a failure."""
    scripts.status = "stale"

    @app.task(base=BgTask, lazy=False)
    def body():
        if ending == "error":
            raise ValueError

    trace(body)

    assert not [step for step in log if step.startswith("mark_as")]


def test_a_store_that_lost_its_memory_costs_no_result(
    app: Celery,
    trace: Callable[..., Any],
    scripts: FakeScripts,
    log: list[str],
) -> None:
    """What the store does not know was not ended by anybody else."""
    scripts.status = "unknown"

    @app.task(base=BgTask, lazy=False)
    def body():
        return 1

    trace(body)

    assert "mark_as_done" in log
    assert log[-1] == "announce"


@pytest.fixture(params=["form 1", "form 2", "form 3"])
def declare(request: pytest.FixtureRequest, make_app: Any) -> Callable[..., Any]:
    """Declares a task with a base class of the user's in one of the three forms."""

    def declare(members: dict[str, Any], body: Callable[..., Any]) -> Task:
        if request.param == "form 3":
            base = type("Own", (BgTask,), {"abstract": True, **members})
            app = make_app()
            return app.task(base=base, name="t", lazy=False)(body)
        base = type("Own", (Task,), {"abstract": True, **members})
        app = make_app(task_cls=base)
        if request.param == "form 2":
            return bgtask(max_per_key=1)(app.task(name="t", lazy=False)(body))
        bgtask(name="t", max_per_key=1)(body)
        return app.tasks["t"]

    return declare


def test_a_users_call_is_the_body(
    declare: Callable[..., Any], trace: Callable[..., Any], log: list[str]
) -> None:
    """A ``__call__`` without ``super()`` runs, and the slot goes after all of it.

    This is how a Flask app gives its tasks a context.
    """

    def body(number):
        log.append(f"body {number}")

    def call(self, *args, **kwargs):
        log.append("enter")
        try:
            return self.run(*args, **kwargs)
        finally:
            log.append("leave")

    task = declare({"__call__": call}, body)

    trace(task, 1)

    assert log[:4] == ["enter", "body 1", "leave", "release"]
    assert log.count("release") == 1


def test_a_users_call_may_call_super(
    declare: Callable[..., Any], trace: Callable[..., Any], log: list[str]
) -> None:
    """A ``__call__`` that asks Celery's runs the body once."""

    def body(number):
        log.append(f"body {number}")

    def call(self, *args, **kwargs):
        log.append("enter")
        value = super(type(self), self).__call__(*args, **kwargs)
        log.append("leave")
        return value

    class Probe:
        """Finds the class that holds *call*, to begin ``super()`` there."""

        def __call__(self, task, *args, **kwargs):
            log.append("enter")
            owner: Any = next(c for c in type(task).__mro__ if vars(c).get("marker"))
            parent: Any = super(owner, task)
            value = parent.__call__(*args, **kwargs)
            log.append("leave")
            return value

    probe = Probe()
    task = declare(
        {
            "marker": True,
            # A function, for only these turn into methods.
            "__call__": lambda self, *args, **kwargs: probe(self, *args, **kwargs),  # noqa: PLW0108
        },
        body,
    )

    trace(task, 1)

    assert log[:4] == ["enter", "body 1", "leave", "release"]
    assert log.count("body 1") == 1


def test_users_hooks_may_leave_out_super(
    declare: Callable[..., Any], trace: Callable[..., Any], log: list[str]
) -> None:
    """Any hook of a base class may be overridden; all are called, the slot goes."""

    def hook(name):
        return lambda self, *args, **kwargs: log.append(name)

    names = ("before_start", "on_success", "after_return", "on_failure", "on_retry")
    task = declare({name: hook(name) for name in names}, lambda_body)

    trace(task)

    assert [step for step in log if step in names] == [
        "before_start",
        "on_success",
        "after_return",
    ]
    assert log.index("release") < log.index("on_success")
    assert log[-1] == "settle"


def lambda_body():
    """Do nothing."""
    return 1


def test_a_hook_that_raises_before_the_body_gives_the_slot_on(
    declare: Callable[..., Any], trace: Callable[..., Any], log: list[str]
) -> None:
    """A body that was never reached has ended all the same."""

    def before_start(self, task_id, args, kwargs):
        raise ValueError

    task = declare({"before_start": before_start}, lambda_body)

    trace(task)

    assert log.count("release") == 1
    assert log[-1] == "settle"


def test_calling_the_task_inside_its_own_body_takes_nothing(
    app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """A recursion by function call is part of the run."""

    @app.task(base=BgTask, lazy=False, bind=True)
    def body(self, depth):
        log.append(f"body {depth}")
        if depth:
            self(depth - 1)
            type(self).run(self, 0)

    trace(body, 1)

    assert log[:4] == ["body 1", "body 0", "body 0", "release"]
    assert log.count("release") == 1


def test_another_task_called_inside_is_not_the_run(
    app: Celery, trace: Callable[..., Any], log: list[str]
) -> None:
    """The slot stays until the body of its own task has ended."""

    @app.task(base=BgTask, lazy=False)
    def other():
        log.append("other")

    @app.task(base=BgTask, lazy=False)
    def body():
        other()
        other.apply()
        log.append("body")

    trace(body)

    assert log.index("release") > log.index("body")


def test_there_is_a_current_run_while_it_runs(
    app: Celery, trace: Callable[..., Any]
) -> None:
    """The run is known on its own thread, from its acceptance to its settlement."""
    seen: list[Any] = []

    @app.task(base=BgTask, lazy=False)
    def body():
        seen.append(current_run())

    trace(body)

    assert seen[0].token == "t"
    assert current_run() is None


def test_releasing_waits_for_a_store_that_is_away(
    app: Celery,
    trace: Callable[..., Any],
    scripts: FakeScripts,
    log: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The result is not stored before the slot is given on, as long as it can hold."""
    monkeypatch.setattr("celery_bgtask.running.run.RETRY_INTERVAL", 0)
    scripts.away = 3

    @app.task(base=BgTask, lazy=False)
    def body():
        return 1

    trace(body)

    assert log == ["release", "mark_as_done", "process_cleanup", "settle"]


def test_a_store_that_stays_away_costs_no_result(
    scripts: FakeScripts, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time a lease holds, the run goes on: the lease frees the slot."""
    monkeypatch.setattr("celery_bgtask.running.run.RETRY_INTERVAL", 0)
    scripts.away = 10**9
    task = app.task(base=BgTask, name="t", lazy=False)(lambda_body)
    run = Run(
        task=task,
        scripts=scripts,  # type: ignore[arg-type]
        task_id="id",
        key="k",
        limit=1,
        attempt=1,
        token="t",
        worker="w",
        patience=0.001,
    )

    assert run.execute(lambda_body) == 1


def test_an_interruption_while_releasing_comes_afterwards(
    app: Celery, scripts: FakeScripts, log: list[str]
) -> None:
    """A soft time limit that strikes in the middle of a release loses no slot."""
    struck: list[bool] = []
    release = scripts.release

    def interrupted(*args: Any, **kwargs: Any) -> Released:
        if not struck:
            struck.append(True)
            raise SoftTimeLimitExceeded
        return release(*args, **kwargs)

    scripts.release = interrupted  # type: ignore[method-assign]
    task = app.task(base=BgTask, name="t", lazy=False)(lambda_body)
    run = Run(
        task=task,
        scripts=scripts,  # type: ignore[arg-type]
        task_id="id",
        key="k",
        limit=1,
        attempt=1,
        token="t",
        worker="w",
        patience=30,
    )

    with pytest.raises(SoftTimeLimitExceeded):
        run.execute(lambda_body)

    assert log == ["release"]
