"""Following from an event loop: awaited, cancelled, timed out, many at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TimeoutError as ResultTimeout
from redis import Redis

from celery_bgtask import AcceptTimeout, BgResult, TaskCancelled
from celery_bgtask.results.listener import Listener, listener_of
from tests.helpers import wait_until
from tests.integration.acting import Acted


#: A loaded machine may stall for seconds.
PATIENCE = 20.0


@pytest.fixture
def listener(app: Celery) -> Iterator[Listener]:
    """The app's listener; at the end nobody is followed any more."""
    listener = listener_of(app)
    yield listener
    wait_until(lambda: not listener._followers, that="no follower is left behind")
    listener.close()


@pytest.fixture
def work(declare: Callable[..., Any], listener: Listener) -> Any:
    """A task without a limit."""
    return declare("work", max_per_key=-1)


async def until(predicate: Callable[[], Any]) -> None:
    """Wait, and let others run meanwhile."""

    async def look() -> None:
        while not predicate():  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)

    await asyncio.wait_for(look(), PATIENCE)


@pytest.mark.parametrize("own", [True, False], ids=["submitter", "elsewhere"])
def test_progress_and_value_are_awaited(work: Any, app: Celery, own: bool) -> None:
    """Every report in its order, then the end of the loop, then the value."""

    async def main() -> tuple[list[Any], Any]:
        submitted = work.delay()
        result = submitted if own else BgResult(submitted.id, app=app)
        run = Acted(work, result.id)
        run.report(1)
        seen: list[Any] = []
        async for progress in result.aprogress():
            seen.append(progress.current)
            if len(seen) < 3:
                run.report(len(seen) + 1)
            else:
                run.end("value")
        return seen, await result.aget(timeout=PATIENCE)

    assert asyncio.run(main()) == ([1, 2, 3], "value")


def test_what_has_ended_is_there_at_once(work: Any) -> None:
    """Reports of the log, and the value."""
    result = work.delay()
    run = Acted(work, result.id)
    run.report(1)
    run.end("value")

    async def main() -> tuple[list[Any], Any, Any]:
        seen = [progress.current async for progress in result.aprogress()]
        return seen, await result.aget(), await work.AsyncResult(result.id).aget()

    assert asyncio.run(main()) == ([1], "value", "value")


@pytest.mark.parametrize(
    ("error", "raised"), [(ValueError("no"), ValueError), (KeyError("no"), KeyError)]
)
def test_an_error_is_raised_where_it_is_awaited(
    work: Any, error: Exception, raised: type[Exception]
) -> None:
    """As ``get`` does; or returned, if it is not to be propagated."""
    result = work.delay()
    Acted(work, result.id).end(error)

    with pytest.raises(raised, match="no"):
        asyncio.run(result.aget(PATIENCE))
    assert isinstance(asyncio.run(result.aget(PATIENCE, propagate=False)), raised)


def test_a_task_that_is_cancelled_elsewhere(work: Any, redis: Redis) -> None:
    """Its end is awaited like any other."""

    async def main() -> None:
        result = work.delay()
        waiting = asyncio.create_task(result.aget(PATIENCE))
        await asyncio.sleep(0)
        await asyncio.to_thread(work.AsyncResult(result.id).cancel, "not needed")
        with pytest.raises(TaskCancelled, match="not needed"):
            await waiting

    asyncio.run(main())
    redis.flushdb()  # there is no worker to conclude it


def test_deadlines_are_kept_while_it_is_awaited(work: Any, redis: Redis) -> None:
    """Without any worker, and without a thread that waits."""
    with pytest.raises(AcceptTimeout):
        asyncio.run(work.apply_async(accept_timeout=0.4).aget(PATIENCE))
    redis.flushdb()  # there is no worker to conclude it


def test_a_timeout_is_celerys(work: Any, listener: Listener) -> None:
    """It leaves no follower, and a later await gets the value."""
    result = work.delay()

    async def main() -> Any:
        with pytest.raises(ResultTimeout):
            await result.aget(timeout=0.05)
        assert not listener._followers
        Acted(work, result.id).end("value")
        return await result.aget(timeout=PATIENCE)

    assert asyncio.run(main()) == "value"


def test_who_is_cancelled_leaves_no_follower_behind(
    work: Any, listener: Listener, redis: Redis, app: Celery
) -> None:
    """Neither in ``aget`` nor in ``aprogress``; and no channel is left subscribed."""
    task_id = work.delay().id
    run = Acted(work, task_id)
    run.report(1)
    channel = run.scripts.channel(task_id)
    seen: list[Any] = []

    async def watch() -> None:
        async for progress in BgResult(task_id, app=app).aprogress():
            seen.append(progress.current)  # noqa: PERF401 - it never ends

    async def main() -> None:
        waiting = [
            asyncio.create_task(BgResult(task_id, app=app).aget()),
            asyncio.create_task(watch()),
        ]
        await until(lambda: seen)
        assert len(listener._followers[task_id]) == 2
        for one in waiting:
            one.cancel()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        assert not listener._followers

    asyncio.run(main())
    wait_until(lambda: not dict(redis.pubsub_numsub(channel))[channel], within=PATIENCE)
    run.end()


def test_who_stops_reading_leaves_no_follower_behind(
    work: Any, listener: Listener
) -> None:
    """A ``break`` in the loop is enough, once the generator is closed."""
    result = work.delay()
    run = Acted(work, result.id)
    run.report(1)

    async def main() -> None:
        async with contextlib.aclosing(result.aprogress()) as reports:
            async for _ in reports:
                break
        assert not listener._followers
        async for _ in result.aprogress():
            break
        await until(lambda: not listener._followers)

    asyncio.run(main())
    run.end()


def test_many_awaits_need_no_thread_each(
    work: Any, app: Celery, redis: Redis, listener: Listener
) -> None:
    """Three hundred wait on the one thread that listens; each gets its own value."""

    async def main() -> list[Any]:
        results = [work.delay() for _ in range(100)]
        before = threading.active_count()
        waiting = [
            asyncio.create_task(result.aget(PATIENCE))
            for one in results
            for result in (one, one, BgResult(one.id, app=app))
        ]
        await until(lambda: len(listener._followers) == 100 and not listener._fresh)
        assert threading.active_count() <= before + 1
        for number, result in enumerate(results):
            Acted(work, result.id).end(number)
        return await asyncio.gather(*waiting)

    assert asyncio.run(main()) == [number for number in range(100) for _ in range(3)]


def test_the_loop_is_free_while_something_is_awaited(work: Any) -> None:
    """Others run meanwhile: nothing blocks."""

    async def main() -> int:
        turns = 0
        result = work.delay()
        run = Acted(work, result.id)
        waiting = asyncio.create_task(result.aget(PATIENCE))
        while turns < 50:
            await asyncio.sleep(0)
            turns += 1
        assert not waiting.done()
        run.end("value")
        assert await waiting == "value"
        return turns

    assert asyncio.run(main()) == 50


def test_two_loops_in_two_threads(work: Any) -> None:
    """Each hears in its own."""
    said: dict[int, Any] = {}
    results = [work.delay() for _ in range(2)]

    def run_loop(number: int) -> None:
        async def main() -> tuple[list[Any], Any]:
            seen = [one.current async for one in results[number].aprogress()]
            return seen, await results[number].aget(PATIENCE)

        said[number] = asyncio.run(main())

    threads = [threading.Thread(target=run_loop, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for number, result in enumerate(results):
        run = Acted(work, result.id)
        run.report(number)
        run.end(number)
    for thread in threads:
        thread.join(PATIENCE)

    assert said == {0: ([0], 0), 1: ([1], 1)}


def test_a_loop_that_has_been_closed_disturbs_nobody(
    work: Any, caplog: pytest.LogCaptureFixture, listener: Listener
) -> None:
    """What comes for it is dropped; others hear on."""
    result = work.delay()
    heard: list[Any] = []
    done = threading.Event()
    loop = asyncio.new_event_loop()
    task = loop.create_task(result.aget())
    loop.run_until_complete(asyncio.sleep(0.01))
    result.on_progress(lambda one: heard.append(one.current))
    result.on_done(lambda _: done.set())
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # what we are after
    loop.close()

    run = Acted(work, result.id)
    run.report(1)
    run.end()

    assert done.wait(PATIENCE)
    assert heard == [1]
    assert not caplog.records


def test_without_a_result_the_end_is_awaited(declare: Callable[..., Any]) -> None:
    """``ignore_result``: there is no value."""
    quiet = declare("quiet", ignore_result=True, max_per_key=-1)

    async def main() -> Any:
        result = quiet.delay()
        Acted(quiet, result.id).end("value")
        return await result.aget(PATIENCE)

    assert asyncio.run(main()) is None
