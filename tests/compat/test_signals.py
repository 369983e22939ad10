"""What others are told of a task is the same: signals, events, hooks, its request."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, signals
from celery.events import EventReceiver

from tests.compat.conftest import PATIENCE, Compared
from tests.compat.tasks import MODULE
from tests.helpers import wait_until
from tests.smoke.nodes import WorkerSpec


#: How a task ends, and how many signals tell of it in its own process.
ENDINGS = {
    "success": (lambda t: t.end.delay("succeed"), 3),
    "failure": (lambda t: t.end.delay("fail"), 3),
    "retry": (lambda t: t.end.delay("retry"), 6),
    "ignore": (lambda t: t.end.delay("ignore"), 2),
    "reject": (lambda t: t.end.delay("reject"), 2),
    "late-success": (lambda t: t.late.delay("succeed"), 3),
    "late-failure": (lambda t: t.late.delay("fail"), 3),
    "expired": (lambda t: t.end.apply_async(("succeed",), expires=-1), 0),
    "soft-time-limit": (lambda t: t.limited_soft.delay(20), 3),
    "replaced": (lambda t: t.replaced_by_task.delay(1, 2), 5),
}

#: What each event must say alike; the rest is ids, times and names.
SAID = (
    "args", "kwargs", "retries", "eta", "queue", "exception", "result", "terminated",
    "signum", "expired",
)  # fmt: skip

#: What an end that a verdict brought says again: a monitor may hear of nothing else.
REPEATED = ("args", "kwargs", "retries")


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """The worker sends events, and so does who submits."""
    return {"worker_send_task_events": True, "task_send_sent_event": True}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One process: what it is told comes in one order."""
    return (WorkerSpec("prefork", 1, tasks=MODULE),)


@pytest.fixture(scope="module")
def events(
    celery_setup_app: Celery, celery_worker_cluster: Any
) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """The events of each task, by its id, as a monitor sees them."""
    seen: dict[str, list[dict[str, Any]]] = defaultdict(list)

    def collect(event: dict[str, Any]) -> None:
        if "uuid" in event:
            seen[event["uuid"]].append(event)

    with celery_setup_app.connection_for_read() as connection:
        receiver = EventReceiver(
            connection, handlers={"*": collect}, app=celery_setup_app
        )
        # Without a timeout: events that come between two captures are lost.
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        wait_until(
            lambda: seen[celery_setup_app.tasks["plain.echo"].delay().id],
            within=PATIENCE,
            that="the receiver listens",
        )
        yield seen
        receiver.should_stop = True
        thread.join()


def after(both: Compared) -> None:
    """Return when the worker, whose pool is one process, has done all before."""
    for t in both.kinds.values():
        assert t.echo.delay("after").get(timeout=PATIENCE) == "after"


def told_of(both: Compared, result: Any, count: int) -> dict[str, list[str]]:
    """The signals of a task in its own process and in the main one, in order."""
    both.notes(f"{result.id}:main")
    if count:
        both.notes(f"{result.id}:child", count=count)
    after(both)
    client: Any = both.setup.ledger.client
    return {
        where: client.lrange(f"ledger:notes:{result.id}:{where}", 0, -1)
        for where in ("main", "child")
    }


@pytest.mark.parametrize("name", ENDINGS)
def test_signals_come_in_the_same_order(both: Compared, name: str) -> None:
    """In the pool's process and in the main one, with the same arguments."""
    submit, count = ENDINGS[name]

    told = both(submit, lambda result: told_of(both, result, count))

    assert len(told["child"]) == count
    assert told["main"]


@pytest.mark.parametrize("name", ENDINGS)
def test_events_are_the_same(
    both: Compared, events: dict[str, list[dict[str, Any]]], name: str
) -> None:
    """What Flower and other monitors see."""
    submit, count = ENDINGS[name]

    def see(result: Any) -> Any:
        told_of(both, result, count)
        last = both.kinds["plain"].echo.delay()
        wait_until(
            lambda: any(e["type"] == "task-succeeded" for e in events[last.id]),
            within=PATIENCE,
            that="later events have come",
        )
        # Client and worker send theirs by connections of their own, and a retry may
        # be received before the worker hears that it was asked for.
        return sorted((event["type"], str(said(event))) for event in events[result.id])

    def said(event: dict[str, Any]) -> dict[str, Any]:
        ends = event["type"] in {"task-failed", "task-revoked"}
        facts = [fact for fact in SAID if not (ends and fact in REPEATED)]
        return {fact: event[fact] for fact in facts if fact in event}

    types = [event for event, _ in both(submit, see)]

    assert "task-sent" in types
    assert len(types) > 1


def test_publishing_is_told_the_same(both: Compared) -> None:
    """``before_task_publish`` and ``after_task_publish``: once each, in the caller."""
    told: list[Any] = []

    def receive(signal: Any, sender: str, headers: Any, **facts: Any) -> None:
        told.append(
            (
                signal.name,
                sender.partition(".")[2],
                sorted(headers.keys() - {"bgtask"}),
                sorted(facts),
                facts.get("routing_key"),
            )
        )

    def submit(t: SimpleNamespace) -> Any:
        told.clear()
        result = t.add.apply_async((1, 2), headers={"x-tenant": "blue"})
        return result, list(told)

    signals.before_task_publish.connect(receive)
    signals.after_task_publish.connect(receive)
    try:
        seen = both(submit, lambda pair: (pair[0].get(timeout=PATIENCE), pair[1]))
    finally:
        signals.before_task_publish.disconnect(receive)
        signals.after_task_publish.disconnect(receive)

    assert seen[0] == 3
    assert [signal for signal, *_ in seen[1]] == [
        "before_task_publish",
        "after_task_publish",
    ]


def test_a_custom_request_is_told_the_same(both: Compared) -> None:
    """An app's ``Task.Request``: a class, or the name of one."""
    for name in ("requested", "requested_by_name"):

        def submit(t: SimpleNamespace, name: str = name) -> Any:
            return getattr(t, name).delay("value")

        def see(result: Any) -> Any:
            assert result.get(timeout=PATIENCE) == "value"
            return both.notes(result.id)

        assert both(submit, see) == ["accepted"]


def test_hooks_are_called_the_same(both: Compared) -> None:
    """Of an app's own base classes, with ``super()`` and ``__call__``."""

    def see(result: Any) -> Any:
        return result.get(timeout=PATIENCE), both.notes(result.id, count=2)

    assert both(lambda t: t.derived.delay(1), see) == (
        ["of the derived", [1, "of the derived"]],
        ["before_start", "on_success"],
    )


def test_a_request_says_the_same(both: Compared) -> None:
    """All of ``self.request`` but ids and our header."""

    def submit(t: SimpleNamespace) -> Any:
        return t.facts.apply_async(
            (1, "two"),
            {"three": [3]},
            headers={"x-tenant": "blue"},
            priority=5,
            expires=300,
            time_limit=100,
            soft_time_limit=50,
            shadow="shown",
            argsrepr="hidden",
            link=t.echo.s(),
        )

    def see(result: Any) -> Any:
        facts = result.get(timeout=PATIENCE)
        facts["callbacks"] = [
            sig["task"].partition(".")[2] for sig in facts["callbacks"]
        ]
        return facts

    seen = both(submit, see)

    assert seen["args"] == [1, "two"]
    assert seen["timelimit"] == [100, 50]
    assert seen["headers"] == ["x-tenant"]
    assert seen["is_root"]
    assert not seen["has_parent"]
