"""What Celery offers for a task or a call does the same for a bgtask: one test each."""

from __future__ import annotations

import ast
import datetime as dt
import time
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from tests.compat.conftest import PATIENCE, Compared, ending_of, value_of
from tests.compat.tasks import MODULE
from tests.helpers import wait_until
from tests.smoke.nodes import SmokeSetup, WorkerSpec


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Routes, priorities, and all that a result can tell."""
    return {
        "result_extended": True,
        "broker_transport_options": {"queue_order_strategy": "priority"},
        "task_routes": {"*.echo": {"queue": "routed", "priority": 2}},
    }


@pytest.fixture(scope="module")
def smoke_workers(celery_setup_app: Any) -> tuple[WorkerSpec, ...]:
    """One worker, which takes from two more queues."""
    default = celery_setup_app.conf.task_default_queue
    queues = ("-Q", f"{default},routed,given")
    return (WorkerSpec("prefork", 4, tasks=MODULE, options=queues),)


def extra_facts(both: Compared, call: Any) -> dict[str, Any]:
    """What the request of a call with these options says, the same of both kinds."""
    facts: dict[str, Any] = both(lambda t: call(t.facts))
    return facts


# When


@pytest.mark.parametrize("how", ["countdown", "eta", "aware-eta"])
def test_a_task_with_an_eta_starts_then(both: Compared, how: str) -> None:
    """Not before; and it knows its ETA."""
    now = dt.datetime.now(dt.timezone.utc)
    due = now + dt.timedelta(seconds=1)
    elsewhere = dt.timezone(dt.timedelta(hours=3))
    options: dict[str, dict[str, Any]] = {
        "countdown": {"countdown": 1},
        "eta": {"eta": due.replace(tzinfo=None)},
        "aware-eta": {"eta": due.astimezone(elsewhere)},
    }

    def submit(t: SimpleNamespace) -> Any:
        return [task.apply_async((), **options[how]) for task in (t.slow, t.facts)]

    def see(results: Any) -> Any:
        slow, facts = results
        value_of(slow)
        (run,) = both.setup.ledger.runs(task_id=slow.id)
        assert run.started >= due.timestamp()
        eta = value_of(facts)["eta"]
        return eta if how != "countdown" else bool(eta)

    assert both(submit, see)


def test_a_task_expires_as_with_celery(both: Compared) -> None:
    """A moment in the past, as seconds and as a time: REVOKED."""
    past = dt.datetime.now(dt.timezone.utc) - dt.timedelta(seconds=5)

    def submit(t: SimpleNamespace) -> Any:
        return [t.add.apply_async((1, 2), expires=when) for when in (-1, past)]

    def see(results: Any) -> Any:
        for result in results:
            wait_until(result.ready, within=PATIENCE, that="it has expired")
            with pytest.raises(TaskRevokedError):
                result.get()
        return [result.state for result in results]

    assert both(submit, see) == ["REVOKED", "REVOKED"]


def test_a_task_that_has_not_expired_runs(both: Compared) -> None:
    """With seconds and with a time to come."""
    future = dt.datetime.now(dt.timezone.utc) + dt.timedelta(hours=1)

    def submit(t: SimpleNamespace) -> Any:
        return [t.add.apply_async((1, 2), expires=when) for when in (300, future)]

    assert both(submit, lambda results: [value_of(one) for one in results]) == [3, 3]


# Where, and in which order


def test_a_call_is_routed(both: Compared) -> None:
    """By ``queue=``, by exchange and routing key, by a queue of the app's routes."""
    routes = {
        "queue": {"queue": "given"},
        "exchange": {"exchange": "given", "routing_key": "given"},
        "default": {},
    }
    came_by = {}
    for name, route in routes.items():
        facts = extra_facts(
            both, lambda task, route=route: task.apply_async((), **route)
        )
        came_by[name] = facts["delivery_info"]["routing_key"]

    assert came_by == {
        "queue": "given",
        "exchange": "given",
        "default": both.setup.app.conf.task_default_queue,
    }


def test_the_routes_of_the_app_hold(both: Compared) -> None:
    """``task_routes``: the queue and whatever else it says; results name it."""

    def see(result: Any) -> Any:
        value_of(result)
        return result.queue

    assert both(lambda t: t.echo.delay("x"), see) == "routed"


def test_a_priority_arrives(both: Compared) -> None:
    """As given to the call."""
    facts = extra_facts(both, lambda task: task.apply_async((), priority=7))

    assert facts["delivery_info"]["priority"] == 7
    assert facts["properties"]["priority"] == 7


def test_what_waits_starts_by_priority(both: Compared, key: str) -> None:
    """The broker's sense of it, Redis's here: the lowest first; one after another."""
    held = both.limited.held
    holder = held.delay(until=key)
    wait_until(lambda: held.control.stats().running, within=PATIENCE, that="it runs")

    given = [5, 9, 0, 5, 3]
    results = [held.apply_async((n,), priority=n) for n in given]
    both.setup.ledger.client.rpush(f"ledger:go:{key}", "go")

    assert [value_of(result) for result in results] == given
    assert value_of(holder) is None
    expected = [results[n].id for n in (2, 4, 0, 3, 1)]
    assert both.setup.ledger.order(held.name) == [holder.id, *expected]


def test_a_rate_limit_holds(both: Compared, key: str) -> None:
    """Two in a second: five take more than one, however a release counts them."""

    def submit(t: SimpleNamespace) -> Any:
        at, name = time.time(), f"{key}-{t.kind}"
        for _ in range(5):
            t.rated.delay(name)
        return at, name

    def see(submitted: Any) -> Any:
        at, name = submitted
        return max(map(float, both.notes(name, count=5))) - at >= 1

    assert both(submit, see)


# Ends


def test_a_hard_time_limit_ends_a_task(both: Compared) -> None:
    """The task's own, and that of a call."""

    def submit(t: SimpleNamespace) -> Any:
        return [
            t.limited_hard.delay(30),
            t.slow.apply_async((1, 30), time_limit=1),
        ]

    endings = both(submit, lambda results: [ending_of(result) for result in results])

    assert [(state, error) for state, error, _ in endings] == [
        ("FAILURE", "TimeLimitExceeded")
    ] * 2


def test_a_soft_time_limit_interrupts_a_task(both: Compared) -> None:
    """The task's own, and that of a call."""

    def submit(t: SimpleNamespace) -> Any:
        return [
            t.limited_soft.delay(30),
            t.slow.apply_async((1, 30), soft_time_limit=1),
        ]

    endings = both(submit, lambda results: [ending_of(result) for result in results])

    assert [(state, error) for state, error, _ in endings] == [
        ("FAILURE", "SoftTimeLimitExceeded")
    ] * 2


@pytest.mark.parametrize("how", ["task", "call"])
def test_a_result_that_is_ignored_is_not_stored(
    both: Compared, key: str, how: str
) -> None:
    """By the task, and by the call; the task has run and knows."""

    def submit(t: SimpleNamespace) -> Any:
        name = f"{key}-{t.kind}"
        if how == "task":
            return name, t.facts_noted.delay(name)
        return name, t.facts_stored.apply_async((name,), ignore_result=True)

    def see(submitted: Any) -> Any:
        name, result = submitted
        (noted,) = both.notes(name)
        facts = ast.literal_eval(noted.replace(name, "name"))
        assert result.get(timeout=1) is None
        return result.state, facts

    state, facts = both(submit, see)

    assert state == "PENDING"
    assert facts["ignore_result"] is True


def test_an_error_may_be_stored_though_results_are_ignored(both: Compared) -> None:
    """``store_errors_even_if_ignored``."""

    def see(results: Any) -> Any:
        failed, succeeded = results
        backend = both.setup.app.backend
        wait_until(
            lambda: backend.get_state(failed.id) == "FAILURE",
            within=PATIENCE,
            that="its error is stored",
        )
        return backend.get_state(succeeded.id)

    def submit(t: SimpleNamespace) -> Any:
        succeeded = t.only_errors.delay("succeed")
        return t.only_errors.delay("fail"), succeeded

    assert both(submit, see) == "PENDING"


def test_a_start_is_tracked(both: Compared, key: str) -> None:
    """``track_started``: STARTED while it runs, with the worker's name and process."""

    def see(result: Any) -> Any:
        wait_until(
            lambda: result.state == "STARTED", within=PATIENCE, that="it has started"
        )
        meta = result.info
        both.setup.ledger.client.rpush(f"ledger:go:{key}", "go")
        value = value_of(result)
        return value, sorted(meta), meta["pid"] in both.setup.workers[0].children()

    for tasks in both.kinds.values():
        assert see(tasks.tracked.delay(key)) == ("STARTED", ["hostname", "pid"], True)


@pytest.mark.parametrize("how", ["succeed", "fail", "ignore", "reject"])
def test_a_late_ack_is_as_with_celery(both: Compared, how: str) -> None:
    """``acks_late``: nothing stays in the broker once it has ended."""

    def see(result: Any) -> Any:
        both.notes(f"{result.id}:child", count=2)
        wait_until(
            lambda: not unacked(both.setup), within=PATIENCE, that="all is acknowledged"
        )
        return result.state if how in {"succeed", "fail"} else ""

    both(lambda t: t.late.delay(how), see)


def unacked(smoke: SmokeSetup) -> int:
    """How many messages workers have and have not acknowledged, on Redis."""
    count: Any = smoke.store.hlen("unacked")
    return int(count)


def test_a_task_is_delivered_again_when_its_process_dies(both: Compared) -> None:
    """``reject_on_worker_lost``: its second run succeeds."""

    def see(result: Any) -> Any:
        value = value_of(result)
        return value, both.setup.ledger.client.get(f"ledger:killed:{result.id}")

    assert both(lambda t: t.survive.delay("kill", seconds=0.5), see) == ("kill", "1")


def test_a_task_whose_process_dies_is_lost(both: Compared) -> None:
    """With an early ack: ``WorkerLostError``, at once."""

    def submit(t: SimpleNamespace) -> Any:
        return t.end.delay("kill", seconds=0.5)

    ending = both(submit, lambda result: ending_of(result)[:2])

    assert ending == ("FAILURE", "WorkerLostError")


# What a result tells


def test_an_extended_result_tells_the_same(both: Compared) -> None:
    """``result_extended``: name, arguments, worker, retries, queue."""

    def see(result: Any) -> Any:
        value_of(result)
        return (
            result.name.partition(".")[2],
            result.args,
            result.kwargs,
            result.worker == both.setup.workers[0].hostname(),
            result.retries,
            result.queue == both.setup.app.conf.task_default_queue,
        )

    assert both(lambda t: t.add.delay(1, 2, z=3), see) == (
        "add",
        [1, 2],
        {"z": 3},
        True,
        0,
        True,
    )


def test_an_error_is_stored_the_same(both: Compared) -> None:
    """One that does not survive pickling too; with its traceback."""

    def see(result: Any) -> Any:
        state, error, text = ending_of(result)
        return state, error, text, "fail_badly" in str(result.traceback)

    assert both(lambda t: t.fail_badly.delay(), see) == (
        "FAILURE",
        "UnpickleableExceptionWrapper",
        "Unpicklable('what')",
        True,
    )


def test_a_call_may_have_an_id_of_its_own(both: Compared) -> None:
    """Any text; the task knows it, and results are found by it."""
    for name in (str(uuid.uuid4()), "invoice/42 {x}:ü", "a" * 200):

        def submit(t: SimpleNamespace, name: str = name) -> Any:
            return t.ids.apply_async(task_id=f"{t.kind} {name}")

        def see(result: Any, name: str = name) -> Any:
            own, _, root, _ = value_of(result)
            again = both.setup.app.AsyncResult(result.id)
            assert value_of(again)[0] == own
            return own.partition(" ")[2], own == root == result.id

        assert both(submit, see) == (name, True)


# How a task is made


def test_a_task_of_an_apps_own_base_class(both: Compared) -> None:
    """Attributes and ``__call__`` of a base of a base."""
    assert both(lambda t: t.derived.delay(1)) == [
        "of the derived",
        [1, "of the derived"],
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_a_class_based_task(both: Compared, fails: bool) -> None:
    """One instance per process, made by its ``__init__``; with ``autoretry_for``."""
    seen: Any = both(lambda t: t.class_based.delay("value", fails=fails))

    assert seen == ["value", True, int(fails)]


def test_a_pydantic_task(both: Compared) -> None:
    """Models come and go as dicts; the limited one's key is a field."""
    seen: Any = both(lambda t: t.add_points.delay({"x": 1, "y": 2}))

    assert seen == {"total": 3}


def test_arguments_are_checked_when_a_task_is_called(both: Compared) -> None:
    """By its signature, with Celery's own error."""

    def submit(t: SimpleNamespace) -> Any:
        with pytest.raises(TypeError) as error:
            t.add.delay(1)
        return str(error.value)

    assert "missing 1 required positional argument: 'y'" in both(submit, str)


def test_arguments_of_an_untyped_task_are_not_checked(both: Compared) -> None:
    """``typing=False``: the body finds out."""
    endings = both(lambda t: t.untyped.delay(1, 2), ending_of)

    assert endings[:2] == ("FAILURE", "TypeError")


def test_a_name_to_show(both: Compared) -> None:
    """``shadow=`` of a call, and ``shadow_name`` of a task."""

    def submit(t: SimpleNamespace) -> Any:
        return t.shadowed.delay("a"), t.facts.apply_async((), shadow="b")

    def see(results: Any) -> Any:
        of_task, of_call = results
        return value_of(of_task), value_of(of_call)["shadow"]

    assert both(submit, see) == (["a", "shown a"], "b")


def test_headers_of_a_call_arrive(both: Compared) -> None:
    """As tracing libraries send them."""
    facts = extra_facts(
        both, lambda task: task.apply_async((), headers={"traceparent": "00-1-2-01"})
    )

    assert facts["headers"] == ["traceparent"]


def test_a_call_by_a_connection_or_producer_of_ones_own(both: Compared) -> None:
    """``connection=`` and ``producer=``."""
    app = both.setup.app

    def submit(t: SimpleNamespace) -> Any:
        with app.connection_for_write() as connection:
            first = t.add.apply_async((1, 2), connection=connection)
        with app.producer_or_acquire() as producer:
            return first, t.add.apply_async((3, 4), producer=producer)

    assert both(submit, lambda results: [value_of(one) for one in results]) == [3, 7]


def test_a_call_by_name(both: Compared) -> None:
    """``app.send_task``: without the task's class, as from another program."""
    app = both.setup.app

    assert both(lambda t: app.send_task(f"{t.kind}.add", (1, 2))) == 3


def test_a_call_from_a_signature(both: Compared) -> None:
    """``app.signature`` with options, partial arguments, ``clone`` and ``set``."""
    app = both.setup.app

    def submit(t: SimpleNamespace) -> Any:
        partial = app.signature(f"{t.kind}.add", args=(1,), kwargs={"z": 5})
        return partial.clone(args=(2,)).set(priority=3, countdown=0.1).apply_async()

    assert both(submit) == 8


def test_a_call_in_the_process_that_calls(both: Compared) -> None:
    """As a function, and by ``apply``: no worker, no slot."""

    def submit(t: SimpleNamespace) -> Any:
        eager = t.facts.apply((1,), {"two": 2})
        return t.add(1, 2), eager.get()["is_eager"], eager.state

    assert both(submit, tuple) == (3, True, "SUCCESS")
    assert both.limited.add.control.stats().running == 0


def test_a_result_is_forgotten(both: Compared) -> None:
    """``forget``: the result is gone."""

    def see(result: Any) -> Any:
        assert value_of(result) == 3
        result.forget()
        return both.setup.app.AsyncResult(result.id).state

    assert both(lambda t: t.add.delay(1, 2), see) == "PENDING"


def test_the_worker_shows_the_same(both: Compared, key: str) -> None:
    """``inspect active``: name, arguments, delivery, time limits, process."""
    app = both.setup.app

    def submit(t: SimpleNamespace) -> Any:
        return t, t.held.delay(until=f"{key}-{t.kind}")

    def see(submitted: Any) -> Any:
        tasks, result = submitted

        def shown() -> Any:
            (active,) = (
                app.control.inspect(destination=[both.setup.workers[0].hostname()])
                .active()
                .values()
            )
            return [one for one in active if one["id"] == result.id]

        (found,) = wait_until(shown, within=PATIENCE, that="it is shown")
        both.setup.ledger.client.rpush(f"ledger:go:{key}-{tasks.kind}", "go")
        value_of(result)
        del found["id"], found["time_start"]
        found["worker_pid"] = found["worker_pid"] in both.setup.workers[0].children()
        return str(found).replace(tasks.kind, "kind")

    assert both(submit, see)
