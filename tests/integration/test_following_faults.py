"""What must not keep the end of a task, or anything else, from those who follow it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chain, group, states
from celery.exceptions import Ignore
from redis import Redis

from celery_bgtask import BgResult, follow
from celery_bgtask.events import Ended, Event
from celery_bgtask.extension import extension_of
from celery_bgtask.results.listener import listener_of
from tests.helpers import wait_until, wait_until_drained


#: Seconds in which anything comes that is pushed; the machine may be busy.
SOON = 15.0


class Heard:
    """What a follower of a result is told."""

    def __init__(self, result: BgResult) -> None:
        self.events: list[Event] = []
        self._over = threading.Event()
        result.follow(self._hear)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Ended):
            self._over.set()

    def end(self, within: float = SOON) -> Ended:
        """Wait for the end and return it."""
        assert self._over.wait(within), f"heard until then: {self.events}"
        end = self.events[-1]
        assert isinstance(end, Ended)
        return end


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, ZeroDivisionError])
def test_a_callback_that_raises_anything_harms_nobody(
    error: type[BaseException], declare: Callable[..., Any], worker: Any
) -> None:
    """Not even one that wants to end the process: the thread is everybody's."""
    task = declare()

    def refuse(_: Any) -> None:
        raise error

    with worker():
        first = task.delay("k").on_done(refuse)
        Heard(first).end()

        assert Heard(task.delay("k")).end().is_success


def test_what_cannot_be_read_is_left_out(
    app: Celery, declare: Callable[..., Any], worker: Any, redis: Redis
) -> None:
    """In a log or on a channel: of another version, or by mistake."""

    def reporting(self: Any, k: str) -> None:
        self.progress(1)
        redis.rpush(log_of(app, self.request.id), "1 2 {}", "nonsense")
        redis.publish(extension_of(app).reply_channel, "nonsense")
        self.progress(2)

    result = declare("reporting", reporting, bind=True).delay("k")
    heard = Heard(result)
    with worker():
        heard.end()

    late = Heard(BgResult(result.id, app=app))
    assert late.end().is_success
    assert [event.seq for event in late.events] == [1, 2, 3]
    assert [event.seq for event in heard.events] == [1, 2, 3]


def test_the_end_of_a_stopped_run_is_told_while_its_body_goes_on(
    declare: Callable[..., Any], worker: Any, redis: Redis
) -> None:
    """To who comes after it was told: the body may not care for a long time."""
    started, go_on = threading.Event(), threading.Event()

    def stubborn(k: str) -> None:
        started.set()
        assert go_on.wait(60)

    task = declare("stubborn", stubborn)
    with worker("threads"):
        result = task.delay("k")
        assert started.wait(SOON)
        result.cancel("enough", terminate=True)
        end = Heard(result).end()
        go_on.set()
        wait_until_drained(redis, within=SOON)

    assert (end.state, end.error) == (states.REVOKED, "TaskCancelled")


def test_an_end_that_celery_has_stored_is_told(
    app: Celery, declare: Callable[..., Any], worker: Any
) -> None:
    """A step that is not limited fails, and Celery ends the rest of the chain."""
    task = declare()

    @app.task(lazy=False, shared=False)
    def failing() -> None:
        raise ZeroDivisionError

    last: Any = chain(failing.si(), task.si("k")).apply_async()
    heard, foreign = Heard(last), Heard(BgResult(last.id, app=app))
    with worker():
        assert heard.end().error == foreign.end().error == "ZeroDivisionError"


def test_a_task_without_limit_can_be_followed_too(app: Celery, worker: Any) -> None:
    """Its end is looked up; nobody pushes it."""

    @app.task(lazy=False, shared=False)
    def plain() -> int:
        return 7

    result = BgResult(plain.delay().id, app=app)
    heard = Heard(result)
    with worker():
        assert heard.end().is_success
        assert result.get(timeout=SOON) == 7


def test_a_backend_that_is_away_for_a_moment_is_asked_again(
    app: Celery,
    declare: Callable[..., Any],
    worker: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of a task that nobody tells any more is not missed for that."""
    task = declare()
    with worker():
        result = task.delay("k")
        result.get(timeout=SOON)
    asked = threading.Event()

    def refuse(*_: Any, **__: Any) -> Any:
        asked.set()
        raise ConnectionError

    with monkeypatch.context() as patch:
        patch.setattr(app.backend, "get_task_meta", refuse)
        heard = Heard(BgResult(result.id, app=app))
        assert asked.wait(SOON)

    assert heard.end().is_success


def test_reports_become_celerys_state_in_redis(
    declare: Callable[..., Any], worker: Any
) -> None:
    """Until there is a final one."""
    told, go_on = threading.Event(), threading.Event()

    def reporting(self: Any, k: str) -> None:
        self.progress(1, 4, "one", more="ü")
        told.set()
        assert go_on.wait(60)

    task = declare("reporting", reporting, bind=True)
    with worker("threads"):
        result = task.delay("k")
        assert told.wait(SOON)
        state, info = result.state, result.info
        go_on.set()
        result.get(timeout=SOON)

    assert state == "PROGRESS"
    assert (info["current"], info["percent"], info["more"]) == (1, 25.0, "ü")
    assert result.state == states.SUCCESS


def test_the_value_of_an_ignored_task_is_none(
    app: Celery, declare: Callable[..., Any], worker: Any
) -> None:
    """Celery stores nothing of it: to wait for that would block the listener."""

    def ignored(k: str) -> None:
        raise Ignore

    task = declare("ignored", ignored)
    values: list[Any] = []
    with worker():
        result = task.delay("k").on_done(lambda done: values.append(done.get()))
        assert Heard(result).end().state == states.IGNORED
        assert asyncio.run(task.delay("k").aget(SOON)) is None
        assert Heard(BgResult(result.id, app=app)).end().state == states.IGNORED

    assert values == [None]


@pytest.mark.parametrize("limited", [True, False])
def test_a_task_that_is_replaced_ends_with_the_other_one(
    limited: bool, app: Celery, declare: Callable[..., Any], worker: Any
) -> None:
    """Under the same id: also if that has another scope, or no limit at all."""
    go_on = threading.Event()
    replaced = threading.Event()

    def waiting() -> str:
        assert go_on.wait(60)
        return "instead"

    def replacing(self: Any, k: str) -> None:
        self.progress(1)
        replaced.set()
        raise self.replace(other.si())

    other: Any = (
        declare("other", waiting, task_key=None)
        if limited
        else app.task(name="other", lazy=False, shared=False)(waiting)
    )
    task = declare("replacing", replacing, bind=True)
    with worker("threads"):
        result = task.delay("k")
        heard = Heard(result)
        foreign = Heard(BgResult(result.id, app=app))
        assert replaced.wait(SOON)
        wait_until(lambda: not task.control.stats("k").running, within=SOON)
        go_on.set()

        assert heard.end().is_success
        assert foreign.end().is_success
        assert result.get(timeout=SOON) == "instead"


def test_one_view_tells_all_that_a_chain_has_ended(
    declare: Callable[..., Any], worker: Any
) -> None:
    """Also steps that never ran; a callback that raises keeps it from no other."""

    def failing(k: str) -> None:
        raise ZeroDivisionError

    task, bad = declare(), declare("failing", failing)
    done = threading.Event()

    def refuse(_: Any) -> None:
        raise SystemExit

    view = follow(chain(task.si("k"), bad.si("k"), task.si("k"))())
    view.on_done(refuse).on_done(lambda _: done.set())
    with worker():
        assert done.wait(SOON)

    assert view.percent == 100.0


def test_the_values_of_a_group_can_be_awaited(
    declare: Callable[..., Any], worker: Any
) -> None:
    """Celery's own ``get`` does not return in another thread than the submitter's."""
    task = declare(max_per_key=None)

    view = follow(group(task.si("k", n) for n in range(3))())
    with worker():
        assert asyncio.run(view.aget(SOON)) == [0, 1, 2]


def test_a_long_chain_is_followed_once(
    app: Celery, declare: Callable[..., Any], redis: Redis
) -> None:
    """Not each step once more for each step after it; and closing forgets all."""
    task = declare()
    result = chain(*[task.si("k") for _ in range(60)])()

    view = follow(result).on_progress(print)
    listener = listener_of(app)
    followed = sum(map(len, listener._followers.values()))
    view.close()

    assert followed == 2 * 60
    assert not listener._followers
    redis.flushdb()


@pytest.mark.parametrize(
    "option", ["health_check_interval=1", "protocol=3", "decode_responses=True"]
)
def test_the_stores_url_may_say_what_others_need(
    option: str, app: Celery, redis_url: str, declare: Callable[..., Any], worker: Any
) -> None:
    """Options of redis-py that would change what comes over a connection of ours."""
    app.conf.bgtask_redis_url = f"{redis_url}?{option}"
    task = declare()

    with worker():
        Heard(task.delay("k")).end()
        time.sleep(1.1)  # the interval: then redis-py would ask, wherever it is
        assert Heard(task.delay("k")).end(within=8).is_success


def log_of(app: Celery, task_id: str) -> str:
    """Where the events of a task of scope "reporting" are kept."""
    return f"{{{app.conf.bgtask_key_prefix}:reporting}}:progress:{task_id}"
