"""Who follows a task hears all of it, in order, each event once, the end last."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.app import app_or_default
from redis import Redis

from celery_bgtask import (
    AcceptTimeout,
    BgResult,
    Ended,
    Progress,
    TaskCancelled,
    task_done,
    task_error,
    task_progress,
)
from celery_bgtask.extension import Extension, extension_of
from celery_bgtask.results.listener import Listener, listener_of
from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import wait_until
from tests.integration.acting import Acted, Heard


NAME = "bgtask listener"

#: A loaded machine may stall for seconds.
PATIENCE = 20.0


def hears_the_end(*heard: Heard) -> None:
    """Wait until all of them have heard of the end."""
    wait_until(
        lambda: all(one.is_over for one in heard),
        within=PATIENCE,
        that="all have heard of the end",
    )


def has_heard(heard: Heard, *events: Any) -> None:
    """Wait until exactly these events have been heard."""
    wait_until(
        lambda: heard.events == list(events),
        within=PATIENCE,
        that=f"{events} were heard; it was {heard.events}",
    )


def listening_threads() -> list[threading.Thread]:
    """The listener threads of this process."""
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def subscribers(redis: Redis, prefix: str) -> dict[str, int]:
    """The channels of an app that somebody listens to, and how many do."""
    channels = [name for name in redis.pubsub_channels() if prefix in name]
    counted: Any = redis.pubsub_numsub(*channels) if channels else ()
    return dict(counted)


@pytest.fixture
def listener(app: Celery) -> Iterator[Listener]:
    """The app's listener; closed at the end, with its thread gone."""
    listener = listener_of(app)
    yield listener
    thread = listener._thread
    listener.close()
    assert thread is None or not thread.is_alive()


@pytest.fixture
def work(declare: Callable[..., Any], listener: Listener) -> Any:
    """A task without a limit."""
    return declare("work", max_per_key=-1)


@pytest.fixture
def quiet_work(declare: Callable[..., Any], listener: Listener) -> Any:
    """A task whose result is not kept: so Celery subscribes nothing for it."""
    return declare("quiet", max_per_key=-1, ignore_result=True)


def test_a_follower_hears_all_in_order_and_the_end_last(work: Any) -> None:
    """Each report once, as it was made; then the end, with the value at hand."""
    result = work.delay()
    heard = Heard(result)
    run = Acted(work, result.id)
    data = {"né": [1, None, {"ключ": "値"}], "on": True}

    run.report(1, total=4, description="erste Hälfte ✓", **data)
    run.report(2.5)
    run.report()
    run.end("value")

    hears_the_end(heard)
    assert heard.events == [1, 2.5, None, "end"]
    first = heard.reports[0]
    assert (first.task_id, first.attempt, first.seq) == (result.id, 1, 1)
    assert (first.current, first.total, first.percent) == (1, 4, 25.0)
    assert (first.description, first.data) == ("erste Hälfte ✓", data)
    assert [one.seq for one in heard.reports] == [1, 2, 3]
    assert 1.6e9 < first.timestamp <= heard.reports[-1].timestamp
    assert result.get(timeout=0) == "value"


def test_a_hundred_results_are_told_apart(
    quiet_work: Any, redis: Redis, app: Celery
) -> None:
    """Each hears its own and all of it, on one thread and one connection."""
    results = [quiet_work.delay() for _ in range(100)]
    heard = [Heard(result) for result in results]
    runs = [Acted(quiet_work, result.id) for result in results]
    connected = redis.info("clients")["connected_clients"]

    for number in range(5):
        for index, run in enumerate(runs):
            run.report(index * 10 + number)
    for run in reversed(runs):
        run.end()

    hears_the_end(*heard)
    for index, one in enumerate(heard):
        assert one.events == [*(index * 10 + number for number in range(5)), "end"]
        assert {report.task_id for report in one.reports} == {results[index].id}
    assert len(listening_threads()) == 1
    assert len(redis.client_list("pubsub")) == 1
    # One more, of Celery's result backend: it is asked whether the value is there.
    assert redis.info("clients")["connected_clients"] <= connected + 1
    assert list(subscribers(redis, str(app.main)).values()) == [1]


def test_a_hundred_results_of_elsewhere_share_the_connection(
    quiet_work: Any, redis: Redis, app: Celery
) -> None:
    """One channel each, given up at the end of each."""
    ids = [quiet_work.delay().id for _ in range(100)]
    heard = [Heard(quiet_work.AsyncResult(task_id)) for task_id in ids]
    runs = [Acted(quiet_work, task_id) for task_id in ids]
    for index, run in enumerate(runs):
        run.report(index)

    wait_until(lambda: all(one.events for one in heard), within=PATIENCE)
    assert len(subscribers(redis, str(app.main))) == 101
    assert len(redis.client_list("pubsub")) == 1
    assert len(listening_threads()) == 1
    for run in runs:
        run.end()

    hears_the_end(*heard)
    assert [one.events for one in heard] == [[n, "end"] for n in range(100)]
    wait_until(
        lambda: len(subscribers(redis, str(app.main))) == 1,
        within=PATIENCE,
        that="only the channel of its own tasks is left",
    )


def test_two_threads_hear_each_their_own(work: Any) -> None:
    """Submitting and following in threads at once."""
    heard: dict[int, list[Heard]] = {0: [], 1: []}
    runs: dict[int, list[Acted]] = {0: [], 1: []}

    def follow(thread: int) -> None:
        for number in range(20):
            result = work.delay()
            heard[thread].append(Heard(result))
            run = Acted(work, result.id)
            run.report(thread * 100 + number)
            runs[thread].append(run)
        for run in runs[thread]:
            run.end()

    threads = [threading.Thread(target=follow, args=(n,)) for n in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    hears_the_end(*heard[0], *heard[1])
    for which in (0, 1):
        assert [one.events for one in heard[which]] == [
            [which * 100 + number, "end"] for number in range(20)
        ]
    assert len(listening_threads()) == 1


@pytest.mark.parametrize("own", [True, False], ids=["submitter", "elsewhere"])
def test_who_comes_late_hears_what_was_before(
    work: Any, own: bool, app: Celery
) -> None:
    """In the middle, at the end, and of each report once."""
    result = work.delay()
    run = Acted(work, result.id)
    run.report(1)
    run.report(2)
    late = Heard(result if own else BgResult(result.id, app=app))
    run.report(3)
    run.end("value")
    after = Heard(result if own else BgResult(result.id, app=app))

    hears_the_end(late, after)
    assert late.events == after.events == [1, 2, 3, "end"]
    assert result.last_progress is not None
    assert result.last_progress.current == 3
    assert work.AsyncResult(result.id).last_progress == result.last_progress


@pytest.mark.parametrize("own", [True, False], ids=["submitter", "elsewhere"])
def test_who_comes_while_reports_are_made_misses_none(
    work: Any, own: bool, app: Celery
) -> None:
    """What comes live before the log has been read is not told before that."""
    for _ in range(4):
        result = work.delay()
        run = Acted(work, result.id)
        heard: list[Heard] = []

        def report(run: Acted = run) -> None:
            for number in range(80):
                run.report(number)
            run.end()

        reporter = threading.Thread(target=report)
        reporter.start()
        while reporter.is_alive():
            heard.append(Heard(result if own else BgResult(result.id, app=app)))
            reporter.join(0.003)

        hears_the_end(*heard)
        for one in heard:
            # Who is told of the end is another follower, and may come to it sooner.
            wait_until(lambda one=one: len(one.events) > 80, within=PATIENCE)  # type: ignore[misc]
            assert [n for n in one.events if n != "end"] == list(range(80))


def test_a_task_that_reported_nothing_leaves_no_log(
    work: Any, keys: Callable[[], list[str]]
) -> None:
    """Who comes after its end hears of that from the result backend."""
    result = work.delay()
    Acted(work, result.id).end("value")
    heard = Heard(result)

    hears_the_end(heard)
    assert heard.events == ["end"]
    assert result.last_progress is None
    assert not [name for name in keys() if name.startswith("progress:")]


def test_who_comes_when_the_log_has_gone_hears_of_the_end(
    work: Any, redis: Redis, app: Celery
) -> None:
    """It has a lifetime; the result backend still knows."""
    result = work.delay()
    run = Acted(work, result.id)
    run.report(1)
    run.end(ValueError("as asked for"))
    (log,) = redis.scan_iter("*:progress:*")
    assert 0 < redis.pttl(log) <= 600_000
    redis.delete(log)
    ends: list[Any] = []

    work.AsyncResult(result.id).follow(ends.append)

    wait_until(lambda: ends, within=PATIENCE)
    (end,) = ends
    assert (end.state, end.error, end.text) == ("FAILURE", "ValueError", "as asked for")
    assert not end.is_success


def test_what_was_trimmed_shows_as_a_gap(work: Any) -> None:
    """The log has the last hundred reports; their numbers say that some are missing."""
    result = work.delay()
    run = Acted(work, result.id)
    for number in range(1, 131):
        run.report(number)

    heard = Heard(result)

    wait_until(lambda: len(heard.reports) >= 100, within=PATIENCE)
    assert [one.seq for one in heard.reports] == list(range(31, 131))
    run.report(131)
    run.end()
    hears_the_end(heard)
    assert heard.events == [*range(31, 132), "end"]


def test_a_new_attempt_goes_on_where_the_last_one_was(work: Any) -> None:
    """Attempts count up; what a stale run reports is not heard."""
    result = work.delay()
    heard = Heard(result)
    first = Acted(work, result.id)
    first.report(1)
    # Its worker has vanished: a message of the next attempt comes.
    first.scripts.release(result.id, token=first.token, worker="w", attempt=1)
    second = Acted(work, result.id, attempt=2, reply=str(result.reply))

    assert not first.report(99)
    assert second.report(2)
    second.end()

    hears_the_end(heard)
    assert heard.events == [1, 2, "end"]
    assert [one.attempt for one in heard.reports] == [1, 2]


def test_a_lost_connection_loses_nothing(work: Any, redis: Redis) -> None:
    """It is cut again and again while reports are made: each is heard once."""
    results = [work.delay() for _ in range(3)]
    heard = [Heard(result) for result in results]
    elsewhere = [Heard(work.AsyncResult(result.id)) for result in results]
    runs = [Acted(work, result.id) for result in results]

    for number in range(60):
        for run in runs:
            run.report(number)
        if number % 20 == 10:
            redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        if number == 40:
            has_heard(heard[0], *range(41))
    for run in runs:
        run.end()

    hears_the_end(*heard, *elsewhere)
    for one in (*heard, *elsewhere):
        assert one.events == [*range(60), "end"]


def test_the_end_is_heard_though_the_connection_was_away(
    work: Any, redis: Redis, listener: Listener
) -> None:
    """All is over before it is back: the log and the result backend tell."""
    spoke, silent = work.delay(), work.delay()
    heard = [Heard(spoke), Heard(silent), Heard(work.AsyncResult(silent.id))]
    runs = Acted(work, spoke.id), Acted(work, silent.id)
    runs[0].report(1)
    has_heard(heard[0], 1)

    with listener._lock:  # it cannot come back in here
        redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        runs[0].report(2)
        for run in runs:
            run.end()

    hears_the_end(*heard)
    assert [one.events for one in heard] == [[1, 2, "end"], ["end"], ["end"]]


@pytest.fixture
def own_server() -> Iterator[EmbeddedServer]:
    """A server that a test may stop; it remembers."""
    with embedded_server(appendonly=True) as server:
        yield server


def test_a_store_that_is_away_is_told_once_and_waited_for(
    app: Celery,
    own_server: EmbeddedServer,
    declare: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Following never fails: it begins when the store is back."""
    app.conf.update(
        broker_url=own_server.url,
        result_backend=own_server.url,
        bgtask_redis_url=own_server.url,
    )
    work = declare("work", max_per_key=-1)
    result = work.delay()
    own_server.stop()

    with caplog.at_level(logging.INFO, "celery_bgtask.results.listener"):
        heard = Heard(result)
        wait_until(lambda: caplog.records, within=PATIENCE, that="it is told")
        own_server.restart(after=1)
        run = Acted(work, result.id)
        run.report(1)
        run.end("value")
        hears_the_end(heard)

    assert heard.events == [1, "end"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "secret" not in caplog.text
    listener_of(app).close()
    backend: Any = app.backend
    backend.result_consumer.stop()


def test_a_callback_that_raises_harms_nobody(
    work: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the next event, nor another callback, nor another task."""
    result, other = work.delay(), work.delay()
    before, after, beside = Heard(result), None, Heard(other)

    def wrong(_: Any) -> None:
        raise KeyError("as asked for")

    result.on_progress(wrong).on_done(wrong)
    after = Heard(result)
    runs = Acted(work, result.id), Acted(work, other.id)
    for run in runs:
        run.report(1)
        run.report(2)
        run.end()

    hears_the_end(before, after, beside)
    for heard in (before, after, beside):
        assert heard.events == [1, 2, "end"]
    assert len(caplog.records) == 3
    assert all(result.id in record.getMessage() for record in caplog.records)


def test_a_slow_callback_loses_nothing(work: Any) -> None:
    """More comes while it runs than the log keeps: all is heard, in order."""
    result, other = work.delay(), work.delay()
    entered, go_on = threading.Event(), threading.Event()

    def slow(progress: Progress) -> None:
        entered.set()
        assert go_on.wait(PATIENCE)

    other.on_progress(slow)
    heard = Heard(result)
    run, blocker = Acted(work, result.id), Acted(work, other.id)
    run.report(0)
    has_heard(heard, 0)
    blocker.report(1)
    assert entered.wait(PATIENCE)
    for number in range(1, 301):
        run.report(number)
    run.end()
    assert heard.events == [0]

    go_on.set()

    hears_the_end(heard)
    assert heard.events == [*range(301), "end"]
    blocker.end()


def test_a_callback_may_fetch_submit_and_follow(work: Any) -> None:
    """All that an application does when one of its tasks has ended."""
    values: list[Any] = []
    nexts: list[Any] = []

    def follow_up(done: Any) -> None:
        values.append(done.get(timeout=0))
        result = work.delay()
        nexts.append((result, Heard(result)))

    result = work.delay()
    result.on_done(follow_up)
    Acted(work, result.id).end("value")
    (second, heard) = wait_until(lambda: nexts, within=PATIENCE)[0]
    run = Acted(work, second.id)
    run.report(1)
    run.end()

    hears_the_end(heard)
    assert values == ["value"]
    assert heard.events == [1, "end"]


def test_two_followers_of_a_task_come_and_go(
    work: Any, app: Celery, redis: Redis, listener: Listener
) -> None:
    """Its channel is heard as long as one of them is there, and again later."""
    task_id = work.delay().id
    run = Acted(work, task_id)
    channel = run.scripts.channel(task_id)
    events: dict[str, list[Any]] = {"a": [], "b": [], "c": []}

    def numsub() -> int:
        return dict(redis.pubsub_numsub(channel))[channel]

    def follow(name: str) -> Any:
        return BgResult(task_id, app=app).follow(events[name].append)

    a, b = follow("a"), follow("b")
    run.report(1)
    wait_until(lambda: events["a"] and events["b"], within=PATIENCE)
    listener.unfollow(a)
    listener.unfollow(a)
    run.report(2)
    wait_until(lambda: len(events["b"]) == 2, within=PATIENCE)
    assert numsub() == 1
    listener.unfollow(b)
    wait_until(lambda: not numsub(), within=PATIENCE, that="nobody listens")
    run.report(3)
    follow("c")
    run.end()

    wait_until(lambda: events["c"][-1:] and isinstance(events["c"][-1], Ended))
    assert [getattr(event, "current", "end") for event in events["c"]] == [
        1, 2, 3, "end",
    ]  # fmt: skip
    assert len(events["a"]) == 1
    assert len(events["b"]) == 2
    wait_until(lambda: not numsub(), within=PATIENCE, that="nobody listens")


def test_following_and_not_in_quick_change(
    work: Any, app: Celery, redis: Redis, listener: Listener
) -> None:
    """Nobody waits for an acknowledgement: at the end it is heard all the same."""
    task_id = work.delay().id
    run = Acted(work, task_id)
    for _ in range(50):
        listener.unfollow(BgResult(task_id, app=app).follow(lambda _: None))
    heard = Heard(BgResult(task_id, app=app))
    run.report(1)
    run.end()

    hears_the_end(heard)
    assert heard.events == [1, "end"]
    assert not listener._followers
    wait_until(lambda: len(subscribers(redis, str(app.main))) == 1, within=PATIENCE)


def test_closing_ends_thread_and_connection_and_following_begins_anew(
    quiet_work: Any, redis: Redis, app: Celery
) -> None:
    """Nothing more is heard; a new follower hears all."""
    result = quiet_work.delay()
    heard = Heard(result)
    run = Acted(quiet_work, result.id)
    run.report(1)
    has_heard(heard, 1)
    (thread,) = listening_threads()

    extension_of(app).close()

    assert not thread.is_alive()
    wait_until(lambda: not subscribers(redis, str(app.main)), within=PATIENCE)
    again = Heard(result)
    run.report(2)
    run.end()
    hears_the_end(again)
    assert again.events == [1, 2, "end"]
    assert heard.events == [1]


def test_closing_makes_no_noise(
    work: Any, listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    """However often, and whatever the thread is at: connecting, reading, telling."""
    result = work.delay()
    run = Acted(work, result.id)
    run.report(0)
    for number in range(60):
        heard = Heard(result)
        if number % 3:
            wait_until(lambda: heard.events, within=PATIENCE)  # noqa: B023
        listener.close()

    assert not listening_threads()
    assert not caplog.records
    run.end()


@pytest.fixture
def nobody_concludes(redis: Redis) -> Iterator[None]:
    """What has ended by a verdict stays owed: there is no worker."""
    yield
    redis.flushdb()


@pytest.mark.usefixtures("nobody_concludes")
def test_the_deadline_of_a_followed_task_is_kept_without_any_worker(work: Any) -> None:
    """Nobody waits in ``get()``, nobody sweeps: the callback is called in time."""
    result = work.apply_async(accept_timeout=0.5)
    elsewhere = work.AsyncResult(work.apply_async(accept_timeout=0.4).id)
    heard = Heard(result), Heard(elsewhere)
    ends: list[Any] = []
    result.follow(ends.append)

    hears_the_end(*heard)

    assert heard[0].events == heard[1].events == ["end"]
    with pytest.raises(AcceptTimeout) as caught:
        result.get(timeout=0)
    assert caught.value.timeout == 0.5
    with pytest.raises(AcceptTimeout):
        elsewhere.get(timeout=0)
    wait_until(lambda: ends, within=PATIENCE)
    assert (ends[0].state, ends[0].error) == ("FAILURE", "AcceptTimeout")


@pytest.mark.usefixtures("nobody_concludes")
@pytest.mark.parametrize("backend", ["rpc://", "db+sqlite:///{}/results", None])
def test_deadlines_are_kept_whatever_the_result_backend(
    app: Celery,
    declare: Callable[..., Any],
    tmp_path: Path,
    listener: Listener,
    backend: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The callback is called, and ``get()`` raises, without any worker."""
    app.conf.update(result_backend=backend and backend.format(tmp_path))
    work = declare("work", max_per_key=-1)
    result, awaited = work.apply_async(accept_timeout=0.3), work.delay()
    heard = Heard(result)
    cancelled = Heard(awaited)
    hears_the_end(heard)
    awaited.cancel("not needed")
    hears_the_end(cancelled)

    for one, error in ((result, AcceptTimeout), (awaited, TaskCancelled)):
        with pytest.raises(error):
            one.get(timeout=0)
    assert not caplog.records


@pytest.mark.usefixtures("nobody_concludes")
def test_a_cancelled_task_has_ended(work: Any) -> None:
    """Who follows it is told, by whoever cancels; the state is REVOKED."""
    result = work.delay()
    heard = Heard(result)
    ends: list[Any] = []
    result.follow(ends.append)

    work.AsyncResult(result.id).cancel("not needed")

    hears_the_end(heard)
    wait_until(lambda: ends, within=PATIENCE)
    assert (ends[0].state, ends[0].error) == ("REVOKED", "TaskCancelled")
    with pytest.raises(TaskCancelled, match="not needed"):
        result.get(timeout=0)


@pytest.mark.parametrize("failed", [False, True])
def test_without_a_result_the_end_is_told_and_kept(
    quiet_work: Any, failed: bool
) -> None:
    """``ignore_result``: all works but the value, also for who comes late."""
    result = quiet_work.delay()
    heard = Heard(result)
    Acted(quiet_work, result.id).end(OSError("no") if failed else None)
    hears_the_end(heard)
    ends: list[Any] = []

    quiet_work.AsyncResult(result.id).follow(ends.append)

    wait_until(lambda: ends, within=PATIENCE)
    assert ends[0].state == ("FAILURE" if failed else "SUCCESS")
    assert ends[0].error == ("OSError" if failed else "")


def test_a_call_with_the_id_of_an_ended_one_is_heard_from_its_beginning(
    quiet_work: Any,
) -> None:
    """What the first one told is not taken for the second's."""
    first = quiet_work.apply_async(task_id="daily")
    run = Acted(quiet_work, "daily")
    run.report(1)
    run.end()
    hears_the_end(Heard(first))

    heard = Heard(quiet_work.apply_async(task_id="daily"))
    elsewhere = Heard(quiet_work.AsyncResult("daily"))
    run = Acted(quiet_work, "daily")
    run.report(2)
    has_heard(heard, 2)
    run.end()

    hears_the_end(heard, elsewhere)
    assert heard.events == elsewhere.events == [2, "end"]


@pytest.fixture
def signalled(work: Any) -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """The signals that *work* has sent: name, thread and arguments."""
    noted: list[tuple[str, Any, dict[str, Any]]] = []

    def note(sender: Any, signal: Any, **facts: Any) -> None:
        noted.append((signal.name, threading.current_thread().name, facts))

    signals = (task_progress, task_done, task_error)
    for signal in signals:
        signal.connect(note, sender=work)
    yield noted
    for signal in signals:
        signal.disconnect(note, sender=work)


def test_signals_tell_of_all_that_this_process_has_submitted(
    work: Any, signalled: list[Any]
) -> None:
    """Nobody follows; the application has one place for all of its tasks."""
    good, bad = work.delay(), work.delay()
    runs = Acted(work, good.id), Acted(work, bad.id)
    runs[0].report(1)
    runs[0].end("value")
    wait_until(lambda: len(signalled) == 2, within=PATIENCE)
    runs[1].end(ValueError("as asked for"))
    wait_until(lambda: len(signalled) == 3, within=PATIENCE)

    (progress, done, error) = signalled
    assert [name for name, *_ in signalled] == [
        "task_progress",
        "task_done",
        "task_error",
    ]
    assert {thread for _, thread, _ in signalled} == {NAME}
    assert progress[2]["progress"].current == 1
    assert progress[2]["result"] is done[2]["result"] is good
    assert done[2]["result"].get(timeout=PATIENCE) == "value"
    assert error[2]["result"] is bad
    assert (error[2]["ended"].error, error[2]["ended"].text) == (
        "ValueError", "as asked for",
    )  # fmt: skip


def test_nobody_is_told_of_another_process_by_signal(
    work: Any, signalled: list[Any]
) -> None:
    """Only what was submitted here; and without a receiver nothing is followed."""
    task_id = work.delay().id
    wait_until(listening_threads, within=PATIENCE)
    heard = Heard(work.AsyncResult(task_id))
    del signalled[:]
    other = work.AsyncResult("other")
    other_heard = Heard(other)
    Acted(work, "other").end()
    hears_the_end(other_heard)

    assert not signalled
    Acted(work, task_id).end()
    hears_the_end(heard)


def test_nothing_listens_before_it_is_wanted(work: Any, listener: Listener) -> None:
    """Submitting alone starts no thread."""
    work.delay()

    assert listener._thread is None
    assert not listening_threads()


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_threads_that_submit_first_have_one_channel(app: Celery) -> None:
    """All at once, in a process that has submitted nothing yet."""
    for _ in range(100):
        extension = Extension(app)
        assert extension.link.db >= 0
        begin = threading.Barrier(4)
        found: list[str] = []

        def ask(
            extension: Extension = extension,
            begin: threading.Barrier = begin,
            found: list[str] = found,
        ) -> None:
            begin.wait()
            found.append(extension.reply_channel)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert found == [extension.reply_channel] * 4


def in_a_child(child: Callable[[Any], None]) -> Any:
    """Run *child* in a process that is forked off here; return what it sends."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run() -> None:
        child(sender.send)
        os._exit(0)

    process = context.Process(target=run)
    process.start()
    assert receiver.poll(PATIENCE), "the child says nothing"
    said = receiver.recv()
    process.join(10)
    return said


forks = pytest.mark.filterwarnings(
    "ignore:This process.*is multi-threaded:DeprecationWarning"
)


@forks
def test_a_forked_child_hears_of_its_own_tasks_and_of_its_parents(
    quiet_work: Any, redis: Redis
) -> None:
    """On a connection and a thread of its own; the parent goes on as before."""
    inherited = quiet_work.delay()
    heard = Heard(inherited)
    run = Acted(quiet_work, inherited.id)
    run.report(1)
    has_heard(heard, 1)

    def child(send: Callable[[Any], None]) -> None:
        own = quiet_work.delay()
        mine, theirs = Heard(own), Heard(inherited)
        own_run = Acted(quiet_work, own.id)
        own_run.report(10)
        has_heard(theirs, 1)
        run.report(2)
        own_run.end()
        wait_until(
            lambda: mine.is_over and len(theirs.events) == 2, within=PATIENCE / 2
        )
        threads = [thread.ident for thread in listening_threads()]
        send((mine.events, theirs.events, len(threads)))

    assert in_a_child(child) == ([10, "end"], [1, 2], 1)

    run.report(3)
    run.end()
    hears_the_end(heard)
    assert heard.events == [1, 2, 3, "end"]
    assert len(listening_threads()) == 1


@forks
def test_a_fork_while_a_thread_follows_blocks_nobody(
    quiet_work: Any, listener: Listener
) -> None:
    """A lock that was held at the fork is free in the child."""
    Heard(quiet_work.delay())

    def child(send: Callable[[Any], None]) -> None:
        result = quiet_work.delay()
        heard = Heard(result)
        Acted(quiet_work, result.id).end()
        hears_the_end(heard)
        send(heard.events)

    with listener._lock:
        assert in_a_child(child) == ["end"]


def test_a_store_that_forgot_a_run_still_tells_of_its_end(
    declare: Callable[..., Any],
    worker: Callable[..., Any],
    redis: Redis,
    listener: Listener,
) -> None:
    """A restart without persistence: the run goes on, and its end is told."""
    started, go_on = threading.Event(), threading.Event()

    def body(self: Any, k: int = 0) -> None:
        self.progress(1)
        started.set()
        assert go_on.wait(PATIENCE)
        self.progress(2)

    work = declare("work", body, bind=True)
    with worker():
        result = work.delay()
        heard = Heard(result), Heard(work.AsyncResult(result.id))
        assert started.wait(PATIENCE)
        for one in heard:
            has_heard(one, 1)

        redis.flushdb()
        go_on.set()

        hears_the_end(*heard)


def test_the_app_is_current_where_callbacks_run(app: Celery, work: Any) -> None:
    """So they may submit shared tasks: an app is current in its own thread only."""
    result = work.delay()
    seen: list[Celery] = []

    result.on_done(lambda _: seen.append(app_or_default()))
    Acted(work, result.id).end()

    wait_until(lambda: seen, that="the callback has run")
    assert seen == [app]
