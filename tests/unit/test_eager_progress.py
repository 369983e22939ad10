"""Eager calls and ``apply()`` tell as others do, at once and without a store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, chain, group

from celery_bgtask import (
    BgEagerResult,
    BgTask,
    Ended,
    Progress,
    follow,
    task_done,
    task_error,
    task_progress,
)


@pytest.fixture
def eager(make_app: Callable[..., Celery]) -> Celery:
    """An app that runs tasks where they are called; no store is configured."""
    app = make_app(task_always_eager=True)
    app.conf.update(broker_url=None, result_backend=None)
    app.set_current()
    return app


@pytest.fixture
def work(eager: Celery) -> Any:
    """A task that reports, and may fail."""

    @eager.task(base=BgTask, bind=True, lazy=False)
    def work(self, steps=2, error=None):
        for step in range(1, steps + 1):
            self.progress(step, steps, f"step {step}", now=step)
        self.checkpoint()
        if error:
            raise ValueError(error)
        return steps

    return work


@pytest.fixture
def signalled() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The signals that are sent, in order, with their arguments."""
    noted: list[tuple[str, dict[str, Any]]] = []

    def note(signal: Any, **facts: Any) -> None:
        noted.append((signal.name, facts))

    signals = (task_progress, task_done, task_error)
    for signal in signals:
        signal.connect(note)
    yield noted
    for signal in signals:
        signal.disconnect(note)


@pytest.mark.parametrize("way", ["delay", "apply"])
def test_a_result_tells_all_that_has_happened(work: Any, way: str) -> None:
    """Each callback at its registration; the value is there."""
    result = getattr(work, way)(3) if way == "delay" else work.apply((3,))
    heard: list[Progress] = []
    done: list[Any] = []

    assert result.on_progress(heard.append) is result
    assert result.on_done(done.append) is result

    assert isinstance(result, BgEagerResult)
    assert [one.current for one in heard] == [1, 2, 3]
    assert [one.seq for one in heard] == [1, 2, 3]
    assert {one.task_id for one in heard} == {result.id}
    assert heard[0].data == {"now": 1}
    assert heard[1].timestamp > 1.6e9
    assert result.last_progress is not None
    assert (result.last_progress.percent, result.last_progress.description) == (
        100.0,
        "step 3",
    )
    assert done == [result]
    assert done[0].get() == 3
    assert (result.phase, result.key) == ("ended", None)


def test_a_task_that_says_nothing(eager: Celery) -> None:
    """There is no last progress."""

    @eager.task(base=BgTask, lazy=False)
    def quiet():
        return 1

    result: Any = quiet.delay()

    assert result.last_progress is None
    assert [type(event) for event in result.events] == [Ended]


def test_a_failure_is_told_as_well(work: Any) -> None:
    """``on_done`` is for every end; the error comes out of ``get()``."""
    result = work.delay(1, error="as asked for")
    done: list[Any] = []
    result.on_done(done.append)

    end = result.events[-1]
    assert (end.state, end.error, end.text) == ("FAILURE", "ValueError", "as asked for")
    assert done == [result]
    with pytest.raises(ValueError, match="as asked for"):
        result.get()


def test_it_can_be_awaited(work: Any) -> None:
    """The same code in a view runs in its tests."""

    async def view() -> tuple[list[Any], Any]:
        result = work.delay(2)
        seen = [one.current async for one in result.aprogress()]
        return seen, await result.aget()

    assert asyncio.run(view()) == ([1, 2], 2)


def test_signals_are_sent_in_line(work: Any, signalled: list[Any]) -> None:
    """An app's one place for logging works in its tests, too."""
    good = work.delay(1)
    work.delay(0, error="no")

    assert [name for name, _ in signalled] == [
        "task_progress",
        "task_done",
        "task_error",
    ]
    assert signalled[0][1]["progress"].current == 1
    assert signalled[1][1]["result"].id == good.id
    assert signalled[2][1]["ended"].text == "no"


def test_retries_count_attempts(eager: Celery) -> None:
    """Each with its own number, in the order they were made."""

    @eager.task(base=BgTask, bind=True, lazy=False, max_retries=3)
    def flaky(self):
        self.progress(self.request.retries)
        if self.request.retries < 2:
            raise self.retry(countdown=0)
        return "done"

    result: Any = flaky.delay()
    heard: list[Progress] = []
    result.on_progress(heard.append)

    assert result.get() == "done"
    assert [(one.attempt, one.current) for one in heard] == [(1, 0), (2, 1), (3, 2)]


def test_a_call_within_a_call_reports_for_itself(eager: Celery, work: Any) -> None:
    """And the outer one goes on."""

    @eager.task(base=BgTask, bind=True, lazy=False)
    def outer(self):
        self.progress(10)
        work.delay(2)
        self.progress(20)

    result: Any = outer.delay()

    assert [event.current for event in result.events[:-1]] == [10, 20]


@pytest.mark.parametrize("wrong", [{1}, float("nan")])
def test_what_is_not_json_fails_here_too(eager: Celery, wrong: Any) -> None:
    """A test of an application finds it."""

    @eager.task(base=BgTask, bind=True, lazy=False)
    def body(self):
        self.progress(wrong=wrong)

    with pytest.raises((TypeError, ValueError), match="progress: "):
        body.delay().get()


def test_canvases_can_be_followed(eager: Celery, work: Any) -> None:
    """All members have ended; the value is there."""
    view = follow(group(work.s(1), work.s(2)).delay())
    done: list[Any] = []
    view.on_done(done.append)

    assert view.get() == [1, 2]
    assert view.percent == 100.0
    assert done == [view.result]
    assert chain(work.si(1), work.si(2)).delay().get() == 2
