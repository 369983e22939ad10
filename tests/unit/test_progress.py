"""A reporter sends what it may, keeps the latest, and always sends the last."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery

from celery_bgtask import (
    BgTask,
    FinishTimeout,
    LeaseLost,
    StoreUnavailable,
    TaskCancelled,
)
from celery_bgtask.running import progress
from celery_bgtask.running.body import TaskBody
from celery_bgtask.running.progress import RATE, Reporter, mirrored
from celery_bgtask.scripts.replies import Standing


class Clock:
    """Time that passes when the test says so, and the timers set by it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[FakeTimer] = []

    def monotonic(self) -> float:
        """The time."""
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and let timers go off when they are due."""
        until = self.now + seconds
        while due := [timer for timer in self.timers if timer.at <= until]:
            timer = min(due, key=lambda timer: timer.at)
            self.timers.remove(timer)
            self.now = max(self.now, timer.at)
            timer.function()
        self.now = until


class FakeTimer:
    """A :class:`threading.Timer` of a clock."""

    def __init__(self, clock: Clock, seconds: float, function: Callable[[], None]):
        self.clock, self.function = clock, function
        self.at = clock.now + max(seconds, 1e-6)
        self.daemon = False

    def start(self) -> None:
        """Set it."""
        assert self.daemon, "it would keep a pool process alive"
        self.clock.timers.append(self)

    def cancel(self) -> None:
        """Take it away."""
        if self in self.clock.timers:
            self.clock.timers.remove(self)

    def is_alive(self) -> bool:
        """Tell whether it will go off."""
        return self in self.clock.timers


class RecordedScripts:
    """A store that notes what is reported, and answers as it is told."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[tuple[float, Any]] = []
        self.away = False
        self.answer = Standing(valid=True, verdict="")

    def report(self, task_id: str, token: str, event: str) -> Standing:
        """Note a report."""
        if self.away:
            raise StoreUnavailable("redis://", "gone")
        assert (task_id, token) == ("id", "token")
        self.sent.append((self.clock.now, json.loads(event)["current"]))
        return self.answer

    @property
    def numbers(self) -> list[Any]:
        """What was reported, in order."""
        return [number for _, number in self.sent]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that reporters go by."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    fake = SimpleNamespace(
        RLock=threading.RLock,
        Timer=lambda seconds, function: FakeTimer(clock, seconds, function),
    )
    monkeypatch.setattr(progress, "threading", fake)
    return clock


@pytest.fixture
def scripts(clock: Clock) -> RecordedScripts:
    """The store."""
    return RecordedScripts(clock)


@pytest.fixture
def mirrors() -> list[Any]:
    """What was written as Celery's state."""
    return []


@pytest.fixture
def reporter(scripts: RecordedScripts, mirrors: list[Any]) -> Reporter:
    """The reporter of a run."""
    return make_reporter(scripts, mirrors.append)


def make_reporter(scripts: Any, mirror: Any = None, max_size: int = 10_000) -> Reporter:
    """Make a reporter on *scripts*."""
    return Reporter(
        scripts,
        task_id="id",
        attempt=1,
        token="token",
        max_size=max_size,
        mirror=mirror,
    )


def report(reporter: Reporter, *numbers: Any, **data: Any) -> None:
    """Report *numbers*, one after the other."""
    for number in numbers:
        reporter.report(number, None, "", data)


def test_a_report_goes_out_at_once(
    reporter: Reporter, scripts: RecordedScripts
) -> None:
    """As do twenty in a row."""
    report(reporter, *range(20))

    assert scripts.numbers == list(range(20))


def test_of_what_comes_faster_the_latest_is_kept(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """It goes out as soon as it may, without another call."""
    report(reporter, *range(1000))
    assert scripts.numbers == list(range(20))
    assert len(clock.timers) == 1

    clock.pass_time(1)

    assert scripts.numbers == [*range(20), 999]
    assert scripts.sent[-1][0] == pytest.approx(1000 + 1 / RATE)


def test_a_tight_loop_is_bounded(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """Twenty at once, then twenty a second, however many there are."""
    for number in range(10_000):
        report(reporter, number)
        clock.pass_time(0.001)

    reporter.close()
    assert 20 + 199 <= len(scripts.sent) <= 20 + 201
    assert scripts.numbers[-1] == 9999
    assert scripts.numbers == sorted(set(scripts.numbers))
    for begin in range(10):
        within = [at for at, _ in scripts.sent if 1000 + begin <= at < 1001 + begin]
        assert len(within) <= (41 if begin == 0 else 21)


def test_who_reports_seldom_is_never_held_back(
    scripts: RecordedScripts, clock: Clock
) -> None:
    """Each report at its time."""
    reporter = make_reporter(scripts)
    for number in range(100):
        report(reporter, number)
        assert scripts.sent[-1] == (clock.now, number)
        clock.pass_time(0.06)

    assert not clock.timers


def test_after_a_silence_twenty_go_at_once_again(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """And not more, however long it was."""
    report(reporter, *range(30))
    clock.pass_time(3600)
    report(reporter, *range(100, 130))

    assert scripts.numbers == [*range(20), 29, *range(100, 120)]


def test_the_last_report_goes_out_before_the_end(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """Closing sends it, whatever the rate; nothing comes after."""
    report(reporter, *range(50))

    reporter.close()
    reporter.close()

    assert scripts.numbers == [*range(20), 49]
    assert not clock.timers
    report(reporter, 99)
    clock.pass_time(10)
    assert scripts.numbers == [*range(20), 49]


def test_closing_sends_nothing_twice(
    reporter: Reporter, scripts: RecordedScripts
) -> None:
    """What has gone out has gone out."""
    report(reporter, 1)

    reporter.close()

    assert scripts.numbers == [1]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Standing(valid=False, verdict=""), LeaseLost),
        (Standing(valid=False, verdict="unfinished 5"), FinishTimeout),
        (Standing(valid=False, verdict="cancelled by hand"), TaskCancelled),
    ],
)
def test_a_run_that_was_ended_is_told(
    reporter: Reporter,
    scripts: RecordedScripts,
    clock: Clock,
    answer: Standing,
    error: type[Exception],
) -> None:
    """By the report itself, by each one after it, and without asking again."""
    scripts.answer = answer
    for _ in range(3):
        with pytest.raises(error):
            report(reporter, 1)

    assert len(scripts.sent) == 1
    reporter.close()
    clock.pass_time(10)
    assert len(scripts.sent) == 1


def test_a_run_that_was_ended_is_told_by_the_next_report(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """If it was the timer that heard of it."""
    report(reporter, *range(21))
    scripts.answer = Standing(valid=False, verdict="")
    clock.pass_time(1)

    with pytest.raises(LeaseLost):
        report(reporter, 22)

    assert scripts.numbers == list(range(21))


def test_a_report_that_is_too_large_is_dropped_and_logged(
    scripts: RecordedScripts, caplog: pytest.LogCaptureFixture
) -> None:
    """The task goes on, and so do its reports; the size is that of the bytes."""
    reporter = make_reporter(scripts, max_size=1000)
    reporter.report(1, None, "я" * 400, {})
    reporter.report(2, None, "я" * 500, {})
    reporter.report(3, None, "", {"x": "x" * 10_000})
    reporter.report(4, None, "", {})

    assert scripts.numbers == [1, 4]
    assert len(caplog.records) == 2
    assert all(record.levelname == "ERROR" for record in caplog.records)
    assert "id" in caplog.text
    assert "at most 1000 are sent" in caplog.text


@pytest.mark.parametrize(
    ("wrong", "error"), [({1}, TypeError), (float("nan"), ValueError)]
)
def test_what_is_not_json_is_an_error_in_the_body(
    reporter: Reporter, scripts: RecordedScripts, wrong: Any, error: type[Exception]
) -> None:
    """And no report; who goes on after it may report again."""
    with pytest.raises(error, match="progress: "):
        report(reporter, 1, wrong=wrong)

    report(reporter, 2)
    assert scripts.numbers == [2]


def test_while_the_store_is_away_nothing_fails(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """The latest report is kept, and goes out when the store is back."""
    scripts.away = True
    for number in range(10):
        report(reporter, number)
        clock.pass_time(0.5)
    assert not scripts.sent
    scripts.away = False

    clock.pass_time(2)

    assert scripts.numbers == [9]
    report(reporter, 10)
    assert scripts.numbers == [9, 10]


def test_the_last_report_waits_for_the_store(
    reporter: Reporter, scripts: RecordedScripts, clock: Clock
) -> None:
    """Closing fails until it has gone out; whoever releases the slot tries again."""
    scripts.away = True
    report(reporter, 1, 2)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            reporter.close()
    clock.pass_time(10)
    scripts.away = False

    reporter.close()
    reporter.close()

    assert scripts.numbers == [2]


def test_the_mirror_is_written_at_once_and_then_once_a_second(
    reporter: Reporter, scripts: RecordedScripts, mirrors: list[Any], clock: Clock
) -> None:
    """With the latest there is, without another report."""
    report(reporter, 1)
    assert [meta["current"] for meta in mirrors] == [1]

    report(reporter, *range(2, 10))
    assert len(mirrors) == 1
    clock.pass_time(0.99)
    assert len(mirrors) == 1
    clock.pass_time(0.02)
    assert [meta["current"] for meta in mirrors] == [1, 9]
    clock.pass_time(10)
    assert len(mirrors) == 2

    for number in range(10, 110):
        report(reporter, number)
        clock.pass_time(0.1)
    assert len(mirrors) <= 2 + 11
    reporter.close()
    before = len(mirrors)
    clock.pass_time(10)
    assert len(mirrors) == before, "the result is next: nothing may overwrite it"


def test_a_mirror_that_fails_is_logged_and_harms_nothing(
    scripts: RecordedScripts, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """The report itself has gone out."""

    def wrong(meta: Any) -> None:
        raise OSError("no backend")

    reporter = make_reporter(scripts, wrong)
    report(reporter, 1, 2)
    clock.pass_time(2)
    reporter.close()

    assert scripts.numbers == [1, 2]
    assert caplog.text.count("The state PROGRESS of task id was not stored") == 2


def test_the_mirror_has_the_shape_that_celery_progress_reads() -> None:
    """Its numbers are never None; data of the task's own cannot change them."""
    assert mirrored(1, 3, "x", {"stage": "a", "pending": True}) == {
        "pending": False,
        "current": 1,
        "total": 3,
        "percent": 33.33,
        "description": "x",
        "stage": "a",
    }
    assert mirrored(None, None, "", {}) == {
        "pending": False,
        "current": 0,
        "total": 0,
        "percent": 0.0,
        "description": "",
    }


class Tracked(TaskBody):
    """A task whose body reports to a list; each step of it takes some time."""

    abstract = True
    told: list[Any]

    def progress(self, current=None, total=None, description="", **data):
        """Note a report."""
        self.told.append((current, total, description))


@pytest.fixture
def tracked(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> Tracked:
    """A body that tracks; its time is the clock's."""
    monkeypatch.setattr("celery_bgtask.running.body.time", clock)
    task = Tracked()
    task.told = []
    return task


def test_track_reports_ten_times_a_second_and_the_last(
    tracked: Tracked, clock: Clock
) -> None:
    """However fast the loop is."""
    seen = []
    for item in tracked.track(range(10_005), description="work"):
        clock.pass_time(0.001)
        seen.append(item)

    assert seen == list(range(10_005))
    assert tracked.told[0] == (0, 10_005, "work")
    assert tracked.told[-1] == (10_005, 10_005, "work")
    assert 95 <= len(tracked.told) <= 102
    numbers = [current for current, *_ in tracked.told]
    assert numbers == sorted(set(numbers)), "each number is told once"


def test_track_of_a_slow_loop_tells_each_step(tracked: Tracked, clock: Clock) -> None:
    """What is told is what is done."""
    for _ in tracked.track("abc"):
        clock.pass_time(5)

    assert [current for current, *_ in tracked.told] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("given", "total", "told"),
    [
        ([1, 2], None, 2),
        (iter([1, 2]), None, None),
        (iter([1, 2]), 2, 2),
        ([1, 2], 7.5, 7.5),
    ],
    ids=["sized", "unsized", "said", "otherwise"],
)
def test_the_total_of_track(
    tracked: Tracked, given: Any, total: Any, told: Any
) -> None:
    """Said, or the length of what is tracked, or unknown."""
    assert list(tracked.track(given, total)) == [1, 2]

    assert [facts[1] for facts in tracked.told] == [told, told]
    assert [facts[0] for facts in tracked.told] == [0, 2]


def test_track_of_nothing(tracked: Tracked) -> None:
    """One report: there is nothing to do."""
    assert list(tracked.track([])) == []

    assert tracked.told == [(0, 0, "")]


def test_what_was_done_is_told_when_a_loop_ends_early(tracked: Tracked) -> None:
    """By an error, a break, or an error of what is tracked."""

    def fails() -> Iterator[int]:
        yield from range(5)
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - raised just above
        list(tracked.track(fails()))
    for number in tracked.track(range(100)):
        if number == 3:
            break

    numbers = [current for current, *_ in tracked.told]
    assert numbers == [0, 5, 0, 3]


def test_track_ends_with_the_run(tracked: Tracked, clock: Clock) -> None:
    """A run that was ended hears of it in its loop."""

    def ended(*args: Any, **kwargs: Any) -> None:
        if clock.now > 1001:
            raise TaskCancelled("id")

    tracked.progress = ended  # type: ignore[method-assign]
    done = []

    def body() -> None:
        for item in tracked.track(range(1000)):
            done.append(item)
            clock.pass_time(0.3)

    with pytest.raises(TaskCancelled):
        body()
    assert len(done) == 4


def test_track_takes_what_it_is_given_when_it_is_wanted(tracked: Tracked) -> None:
    """One by one: it may be endless, or made as it goes."""
    taken = []

    def endless() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    for item in tracked.track(endless()):
        if item == 3:
            break

    assert taken == [0, 1, 2, 3]


def test_outside_of_a_run_there_is_no_key_and_nothing_to_check(app: Celery) -> None:
    """A task that is called as a function reports to nobody, and goes on."""

    @app.task(base=BgTask, bind=True, lazy=False)
    def body(self):
        self.progress(1, 2, "x", y=3)
        self.checkpoint()
        return list(self.track("ab")), self.key

    assert body() == (["a", "b"], None)
