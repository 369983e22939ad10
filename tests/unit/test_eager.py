"""Calls that take no slot need no store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, chord, group

from celery_bgtask import BgTask, bgtask


@pytest.fixture(autouse=True)
def _nobody_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any connection to a store or a broker is a failure."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it wanted to connect")

    monkeypatch.setattr("celery_bgtask.store.Link.run", refuse)
    monkeypatch.setattr("celery_bgtask.store.Link.send", refuse)
    monkeypatch.setattr("redis.connection.Connection.connect", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture
def eager(make_app: Callable[..., Celery]) -> Celery:
    """An app that runs tasks where they are called; nothing else is configured."""
    app = make_app(task_always_eager=True)
    app.conf.update(broker_url=None, result_backend=None)
    return app


def declare(app: Celery, form: int, body: Callable[..., Any]) -> Any:
    """Declare *body* as a task with one slot."""
    app.set_current()
    ours: dict[str, Any] = {"task_key": "n", "max_per_key": 1}
    if form == 1:
        return bgtask(name="t", **ours)(body)
    if form == 2:
        return bgtask(**ours)(app.task(name="t", bind=True)(body))
    return app.task(base=BgTask, name="t", bind=True, **ours)(body)


def body(self, n, depth=0):
    """Tell of the call."""
    return {"id": self.request.id, "eager": self.request.is_eager, "n": n}


FORMS = pytest.mark.parametrize("form", [1, 2, 3])


@FORMS
def test_eager_mode_needs_no_store(form: int, eager: Celery) -> None:
    """``task_always_eager`` runs the body with its request, id and all."""
    result = declare(eager, form, body).delay(5)

    assert result.get() == {"id": result.id, "eager": True, "n": 5}
    assert result.id


@FORMS
def test_apply_needs_no_store(form: int, app: Celery) -> None:
    """``apply()`` runs here and now, with the id it is given."""
    result = declare(app, form, body).apply((5,), task_id="mine")

    assert result.get() == {"id": "mine", "eager": True, "n": 5}


@FORMS
def test_a_direct_call_needs_no_store(form: int, app: Celery) -> None:
    """A task is a function."""
    assert declare(app, form, body)(5) == {"id": None, "eager": False, "n": 5}


@FORMS
def test_eager_calls_nest(form: int, eager: Celery) -> None:
    """A call in the middle of another has a request of its own; the first keeps its."""

    def nested(self, n):
        mine = self.request.id
        inner = [] if n == 0 else self.delay(n - 1).get(disable_sync_subtasks=False)
        return [*inner, (n, mine == self.request.id)]

    result = declare(eager, form, nested).delay(3)

    assert result.get() == [(0, True), (1, True), (2, True), (3, True)]


@FORMS
def test_an_eager_retry_runs_again(form: int, eager: Celery) -> None:
    """``self.retry()`` in eager mode is Celery's."""
    tries = []

    def flaky(self, n):
        tries.append(self.request.retries)
        if len(tries) < 3:
            raise self.retry(countdown=0)
        return "done"

    assert declare(eager, form, flaky).delay(1).get() == "done"
    assert tries == [0, 1, 2]


def test_an_eager_failure_is_the_tasks(eager: Celery) -> None:
    """An exception comes out of ``get()`` as it was raised."""

    def wrong(self, n):
        raise KeyError(n)

    with pytest.raises(KeyError):
        declare(eager, 3, wrong).delay(1).get()


def test_an_eager_canvas_needs_no_store(eager: Celery) -> None:
    """Chains, groups and chords of limited tasks run in line."""
    eager.set_current()

    @eager.task(base=BgTask, max_per_key=1)
    def add(x, y=1):
        return x + y

    @eager.task(base=BgTask, max_per_key=1)
    def total(numbers):
        return sum(numbers)

    assert chain(add.s(1), add.s(2)).delay().get() == 4
    assert group(add.s(n) for n in range(3)).delay().get() == [1, 2, 3]
    assert chord((add.s(n) for n in range(3)), total.s()).delay().get() == 6


def test_map_and_chunks_need_no_store(eager: Celery) -> None:
    """They call the task as a function."""
    eager.set_current()

    @eager.task(base=BgTask, max_per_key=1)
    def add(x, y=1):
        return x + y

    assert add.map([1, 2]).apply().get() == [2, 3]
    assert add.starmap([(1, 2), (3, 4)]).apply().get() == [3, 7]
    assert add.chunks([(1, 2), (3, 4)], 1)().get() == [[3], [7]]


def test_declaring_needs_no_store(make_app: Callable[..., Celery]) -> None:
    """An app without a store can be imported; only submitting needs one."""
    app = make_app()

    task = app.task(base=BgTask, name="t", lazy=False, max_per_key=1)(lambda_body)

    assert task.bgtask.limit_of("") == 1
    assert task.control is not None


def lambda_body():
    """Do nothing."""
    return 1


@pytest.mark.parametrize("how", ["setting", "argument"])
def test_an_eager_failure_may_be_raised_and_a_retry_is_none(
    eager: Celery, how: str
) -> None:
    """``delay()`` runs it until it succeeds, or raises what the last try has raised."""
    if how == "setting":
        eager.conf.task_eager_propagates = True

    @eager.task(base=BgTask, bind=True, name="flaky", max_retries=2, shared=False)
    def flaky(self, fails):
        if self.request.retries < fails:
            raise self.retry(exc=KeyError(fails), countdown=0)
        return "done"

    def call(fails: int) -> Any:
        if how == "setting":
            return flaky.delay(fails)
        return flaky.apply((fails,), throw=True)

    assert call(2).get() == "done"
    with pytest.raises(KeyError, match="3"):
        call(3)
