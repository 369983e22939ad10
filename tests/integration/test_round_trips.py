"""What limiting costs: how often the store is asked, and whether one waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery

from celery_bgtask import LimitReached, store
from celery_bgtask.extension import extension_of
from celery_bgtask.store import Link
from tests.helpers import PATIENCE, monitored, wait_until


@pytest.fixture
def calls(app: Celery, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The scripts that clients and pool have run; "…" behind what nobody awaited.

    The sweep and the heartbeat have threads of their own, which do not count.
    """
    app.conf.update(bgtask_lease=3000, bgtask_sweep_interval=200)
    calls: list[str] = []
    run, send = Link.run, Link.send

    def counted(name: str) -> bool:
        thread = threading.current_thread().name
        # A worker that leaves says so, once.
        return not thread.startswith("bgtask") and name not in {"stats", "leave"}

    def spy_run(self: Link, script: Any, tag: str, args: Any) -> Any:
        if counted(script.name):
            calls.append(script.name)
        return run(self, script, tag, args)

    def spy_send(self: Link, script: Any, tag: str, args: Any) -> None:
        if counted(script.name):
            calls.append(script.name + "…")
        send(self, script, tag, args)

    monkeypatch.setattr(Link, "run", spy_run)
    monkeypatch.setattr(Link, "send", spy_send)
    return calls


def settled(task: Any) -> bool:
    """Whether nothing of the key is in use."""
    stats = task.control.stats("k")
    return not (stats.running or stats.dispatched or stats.waiting)


def test_a_call_asks_once(declare: Callable[..., Any], calls: list[str]) -> None:
    """``delay()``: one script."""
    declare().delay("k")

    assert calls == ["submit"]


def test_a_refused_call_asks_once(
    declare: Callable[..., Any], calls: list[str]
) -> None:
    """A refusal costs no more."""
    task = declare()
    task.delay("k")
    calls.clear()

    with pytest.raises(LimitReached):
        task.delay("k")

    assert calls == ["submit"]


@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_task_asks_once_at_its_start_and_waits_once_at_its_end(
    pool: str, declare: Callable[..., Any], calls: list[str], worker: Any
) -> None:
    """One script in each of the three places; settling is not waited for."""
    task = declare()

    with worker(pool):
        assert task.delay("k", value=7).get(timeout=PATIENCE) == 7
        wait_until(lambda: calls[-1] == "settle…", that="it has settled")

    assert calls == ["submit", "accept", "release", "settle…"]


def test_a_hand_off_asks_no_more(
    declare: Callable[..., Any], calls: list[str], worker: Any
) -> None:
    """The next task comes with the reply to the release; confirming is not awaited."""
    task = declare(when_full="wait")
    results = [task.delay("k", value=n) for n in range(3)]
    assert calls == ["submit"] * 3
    calls.clear()

    with worker():
        assert [result.get(timeout=PATIENCE) for result in results] == [0, 1, 2]
        wait_until(lambda: calls.count("settle…") == 3, that="all have settled")

    one = ["accept", "release", "confirm…", "settle…"]
    assert calls == [*one, *one, "accept", "release", "settle…"]


def test_the_server_sees_no_more_than_that(
    declare: Callable[..., Any],
    calls: list[str],
    worker: Any,
    app: Celery,
    redis_url: str,
) -> None:
    """Counted by the server: one script call each, and nothing around them."""
    task = declare()
    with worker():
        task.delay("k").get(timeout=PATIENCE)
        wait_until(lambda: calls[-1:] == ["settle…"], that="it has settled")
        wait_until(lambda: settled(task), that="the key is idle")
        asked = len(calls)

        with monitored(redis_url) as seen:
            for _ in range(5):
                task.delay("k").get(timeout=PATIENCE)
            wait_until(lambda: len(calls) == asked + 20, that="all have settled")
            wait_until(lambda: len(scripts_of(app, seen)) >= 20, that="all were run")

    scripts = scripts_of(app, seen)
    links = {client_of(command) for command in scripts}
    unanswered = [c for c in seen if c["command"].startswith("CLIENT REPLY")]
    assert len(scripts) == 20
    assert len([c for c in unanswered if client_of(c) in links]) == 5


def scripts_of(app: Celery, seen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The script calls that are about *app*; others use the server, too."""
    prefix = app.conf.bgtask_key_prefix
    return [
        command
        for command in list(seen)
        if command["command"].startswith("EVAL") and prefix in command["command"]
    ]


def client_of(command: dict[str, Any]) -> tuple[Any, Any]:
    """Who has given a command."""
    return command["client_address"], command["client_port"]


def test_one_connection_per_process(
    declare: Callable[..., Any], worker: Any, app: Celery
) -> None:
    """Client, pool threads, heartbeat and sweep of one process share it."""
    task = declare()
    for other in list(store._links):
        other.close()  # of other tests

    with worker("threads"):
        task.delay("k").get(timeout=PATIENCE)
        connected = [link for link in store._links if link._connection]

    assert connected == [extension_of(app).link]
