"""Limits, blocks, pauses and remedies, from any process, on a real store."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery, group, states
from redis import Redis

from celery_bgtask import (
    KeyBlocked,
    LimitReached,
    MissingTaskKey,
    TaskCancelled,
    TaskNotAvailable,
    key_blocked,
)
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import wait_until, wait_until_drained


Queued = Callable[[], list[Any]]


@pytest.fixture
def task(declare: Callable[..., Any]) -> Any:
    """A task with one slot per key, whose calls wait."""
    return declare(when_full="wait")


@pytest.fixture
def scripts(app: Celery, task: Any) -> Scripts:
    """The scripts of its scope."""
    return extension_of(app).scripts(task.bgtask.scope)


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What its names begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


@pytest.fixture
def sweep_now(app: Celery, scripts: Scripts, redis: Redis, tag: str) -> Any:
    """Sweeps, whoever did so before."""

    def sweep_now() -> Any:
        redis.delete(f"{tag}:sweeping")
        return sweep(app, scripts, "me")

    return sweep_now


@pytest.fixture
def run_all(worker: Any, redis: Redis) -> Callable[..., list[Any]]:
    """Lets a worker run what there is, until nothing is left."""

    def run_all(*results: Any) -> list[Any]:
        with worker("threads", concurrency=4):
            values = [result.get(timeout=20) for result in results]
            wait_until_drained(redis, within=20)
        return values

    return run_all


@pytest.fixture
def told() -> Iterator[list[dict[str, Any]]]:
    """What receivers of ``key_blocked`` hear."""
    heard: list[dict[str, Any]] = []

    def receive(sender: Any, **facts: Any) -> None:
        heard.append({"sender": sender.name, **facts, "signal": None})

    key_blocked.connect(receive)
    yield heard
    key_blocked.disconnect(receive)


@pytest.fixture
def end(app: Celery, redis: Redis) -> Callable[..., None]:
    """Ends calls, and does what a worker would do of it."""
    extension = extension_of(app)

    def end(*results: Any) -> None:
        for result in results:
            result.cancel()
        for scope in extension.scopes:
            tag = scope_tag(app.conf.bgtask_key_prefix, scope)
            while redis.exists(f"{tag}:owed"):
                redis.delete(f"{tag}:sweeping")
                sweep(app, extension.scripts(scope), "me")

    return end


# Limits


def test_a_higher_limit_starts_what_waits_at_once(
    task: Any, queued: Queued, run_all: Any
) -> None:
    """Without any worker: who raises it publishes."""
    results = [task.delay("k", value=n) for n in range(4)]

    stats = task.control.set_limit("k", 3)

    assert len(queued()) == 3
    assert (stats.dispatched, stats.waiting, stats.limit) == (3, 1, 3)
    assert (stats.declared, stats.override, stats.capacity) == (1, 3, 0)
    for result in results[:3]:
        assert task.control.redispatch(result.id)
    task.control.reset_limit("k")
    assert run_all(*results) == [0, 1, 2, 3]


def test_more_than_one_step_may_start_is_started(
    end: Any, task: Any, queued: Queued, redis: Redis
) -> None:
    """A script starts a hundred at most; the operator's call goes on."""
    results = [task.delay("k") for _ in range(251)]

    stats = task.control.set_limit("k", None)

    assert len(queued()) == 251
    assert (stats.limit, stats.override, stats.capacity) == (None, -1, None)
    assert (stats.held, stats.waiting) == (251, 0)
    task.control.reset_limit("k")
    end(*results)


def test_a_limit_outlives_the_use_of_its_key(end: Any, task: Any, keys: Any) -> None:
    """It holds until it is reset, and then nothing is left of it."""
    task.control.set_limit("k", 7)
    assert keys() == ["overrides"]

    assert task.control.stats("k").limit == 7
    result = task.delay("k")
    assert task.control.stats("k").limit == 7
    end(result)
    assert task.control.stats("k").limit == 7

    assert task.control.reset_limit("k").limit == 1
    assert task.control.reset_limit("k").override is None
    assert "overrides" not in keys()


def test_a_limit_of_0_pauses_a_key(
    declare: Any, task: Any, queued: Queued, run_all: Any
) -> None:
    """Calls wait, or are refused with that as the reason; others go on."""
    task.control.set_limit("k", 0)

    waits, other = task.delay("k", value=1), task.delay("other", value=2)

    assert task.control.stats("k").waiting == 1
    with pytest.raises(LimitReached, match="'k' is paused: it has no slots") as caught:
        task.apply_async(("k",), when_full="reject")
    assert caught.value.limit == 0
    task.control.reset_limit("k")
    assert run_all(waits, other) == [1, 2]


@pytest.mark.parametrize("limit", [-2, True, 1.5, "3", math.nan, [], math.inf])
def test_what_is_no_limit_is_refused(task: Any, limit: Any, keys: Any) -> None:
    """The error says what to pass, and nothing is changed."""
    with pytest.raises(
        ValueError, match=r"0 to pause the key, -1 or None for no limit"
    ):
        task.control.set_limit("k", limit)

    assert keys() == []


@pytest.mark.parametrize("name", ["stats", "reset_limit", "unblock", "block", "purge"])
@pytest.mark.parametrize("key", [None, "", 1.5, True, "x" * 513])
def test_what_is_no_key_is_refused(task: Any, name: str, key: Any, keys: Any) -> None:
    """The error says what a key is, and nothing is changed."""
    with pytest.raises(MissingTaskKey):
        getattr(task.control, name)(key)

    assert keys() == []


def test_a_task_without_keys_has_one(declare: Any, end: Any) -> None:
    """It is called ``None``."""
    whole = declare("whole", task_key=None, when_full="wait")

    whole.control.set_limit(None, 0)
    result = whole.delay("a")

    [stats] = whole.control.keys()
    assert (stats.key, stats.waiting, stats.limit) == ("", 1, 0)
    assert whole.control.purge(None) == 1
    assert result.state == states.REVOKED
    end()
    whole.control.reset_limit(None)


# Pauses


def test_a_pause_stops_all_keys_and_its_end_starts_them(
    end: Any, task: Any, queued: Queued, run_all: Any
) -> None:
    """Nothing more starts, twice or once; a resume starts all there is room for."""
    assert task.control.pause()
    assert not task.control.pause(), "it was paused already"
    results = [task.delay(str(n), value=n) for n in range(150)]
    assert queued() == []
    assert task.control.stats("3").paused
    assert task.control.stats("3").limit == 0

    assert task.control.resume()

    assert len(queued()) == 150
    assert not task.control.stats("3").paused
    assert not task.control.resume(), "it was not paused"
    assert queued() == []
    end(*results)


def test_what_arrives_in_a_pause_waits_in_front(
    task: Any, worker: Any, redis: Redis, queued: Queued
) -> None:
    """It gives up its slot, and goes on before those that never had one."""
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    task.control.pause()

    with worker("threads", concurrency=1):
        wait_until(lambda: task.control.stats("k").waiting == 2, that="it is parked")
        assert task.control.stats("k").held == 0
        assert task.control.explain(first.id).position == 1
        assert task.control.explain(second.id).position == 2
        task.control.resume()
        assert [first.get(timeout=20), second.get(timeout=20)] == [1, 2]
        wait_until_drained(redis)


def test_a_pause_is_of_all_tasks_of_the_scope(end: Any, declare: Any) -> None:
    """They share keys, limits, and that."""
    one = declare("one", scope="both", when_full="wait")
    other = declare("other", scope="both", when_full="wait")

    one.control.pause()
    result = other.delay("k")

    assert other.control.stats("k").waiting == 1
    other.control.resume()
    assert one.control.stats("k").waiting == 0
    end(result)


# Blocks


def test_a_blocked_key_refuses(
    task: Any, keys: Any, told: list[dict[str, Any]]
) -> None:
    """Whatever ``when_full`` says; the error has the facts, and nothing is left."""
    task.control.block("k", "poison", seconds=60)

    for when_full in ("wait", "reject"):
        with pytest.raises(KeyBlocked, match="poison") as caught:
            task.apply_async(("k",), when_full=when_full)
        assert caught.value.key == "k"
        assert 0 < (caught.value.remaining or 0) <= 60
    with pytest.raises(KeyBlocked):
        task.apply_async(("k",), countdown=60)

    assert told == [
        {
            "sender": "echo",
            "key": "k",
            "reason": "poison",
            "seconds": 60,
            "signal": None,
        }
    ]
    stats = task.control.stats("k")
    assert (stats.blocked, stats.blocked_reason, stats.limit) == (True, "poison", 0)
    assert task.control.unblock("k")
    assert keys() == []
    assert not task.control.unblock("k")


def test_a_block_without_a_time_lasts(task: Any) -> None:
    """Until it is ended by hand; a new one replaces it."""
    assert task.control.block("k", "first", seconds=60)
    assert not task.control.block("k", "second"), "it was blocked already"

    with pytest.raises(KeyBlocked) as caught:
        task.delay("k")

    assert caught.value.remaining is None
    [block] = task.control.blocked()
    assert (block.key, block.reason, block.until) == ("k", "second", None)
    assert block.remaining is None
    assert "@" in block.by
    assert task.control.stats("k").blocked_until is None
    task.control.unblock("k")
    assert list(task.control.blocked()) == []


def test_a_block_that_has_ended_by_time_is_swept(
    end: Any,
    task: Any,
    redis: Redis,
    tag: str,
    sweep_now: Any,
    queued: Queued,
    keys: Any,
) -> None:
    """What waits goes on, and nothing is left of the block."""
    task.control.pause()
    result = task.delay("k")
    task.control.block("k", seconds=60)
    task.control.resume()
    assert queued() == []

    redis.zincrby(f"{tag}:blocked", -61_000, "k")
    assert not task.control.stats("k").blocked
    assert list(task.control.blocked()) == []
    sweep_now()

    assert len(queued()) == 1
    assert not {"blocked", "blocks"} & set(keys())
    end(result)


def test_a_sweep_goes_on_with_a_block_of_many(
    end: Any, task: Any, redis: Redis, tag: str, sweep_now: Any, queued: Queued
) -> None:
    """It starts a hundred at most, and the next one the rest."""
    task.control.set_limit("k", None)
    task.control.pause()
    results = [task.delay("k") for _ in range(150)]
    task.control.block("k", seconds=60)
    task.control.resume()
    redis.zincrby(f"{tag}:blocked", -61_000, "k")

    sweep_now()
    assert len(queued()) == 100
    assert redis.exists(f"{tag}:blocked")
    sweep_now()
    assert len(queued()) == 50
    sweep_now()
    assert not redis.exists(f"{tag}:blocked")

    task.control.reset_limit("k")
    end(*results)


def test_a_call_after_the_end_of_a_block_waits_for_no_sweep(
    end: Any, task: Any, redis: Redis, tag: str, queued: Queued
) -> None:
    """It starts what waits before it, and is taken."""
    task.control.pause()
    first = task.delay("k", value=1)
    task.control.block("k", seconds=60)
    task.control.resume()
    redis.zincrby(f"{tag}:blocked", -61_000, "k")

    second = task.delay("k", value=2)

    [message] = queued()
    assert message.headers["id"] == first.id
    end(second, first)
    task.control.unblock("k")


def test_a_canvas_gets_a_stored_failure(task: Any) -> None:
    """Nobody is there to catch an exception."""
    task.control.block("k", "poison")

    result = group(task.s("k")).apply_async()

    with pytest.raises(KeyBlocked, match="poison"):
        result.get(timeout=10)
    task.control.unblock("k")


def test_strikes_block_a_key(
    declare: Any, told: list[dict[str, Any]], keys: Any
) -> None:
    """More than the threshold in the interval; told once."""
    task = declare(block_threshold=2, block_interval=60, block_for=30)

    answers = [task.control.report_bad_task("k", "bad row") for _ in range(4)]

    assert answers == [False, False, True, True]
    assert [(t["reason"], t["seconds"]) for t in told] == [("bad row", 30)]
    with pytest.raises(KeyBlocked, match="bad row") as caught:
        task.delay("k")
    assert 0 < (caught.value.remaining or 0) <= 30
    assert not any(name.startswith("strikes") for name in keys())
    task.control.unblock("k")


def test_strikes_are_forgotten(declare: Any, redis: Redis, app: Celery) -> None:
    """Those of an earlier time do not count, and have a lifetime."""
    task = declare(block_threshold=1, block_interval=60)
    tag = scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)
    task.control.report_bad_task("k")
    assert 0 < redis.pttl(f"{tag}:strikes:k") <= 60_000

    nonces: Any = redis.zrange(f"{tag}:strikes:k", 0, -1)
    for nonce in nonces:
        redis.zincrby(f"{tag}:strikes:k", -61_000, nonce)

    assert not task.control.report_bad_task("k")
    assert task.control.report_bad_task("k")
    task.control.unblock("k")


def test_a_task_reports_its_own_key(declare: Any, worker: Any, redis: Redis) -> None:
    """From the body, by the key of the run."""

    def body(self, k):
        return [self.report_bad_task("bad") for _ in range(2)]

    task = declare("bad", body, bind=True, block_threshold=1)
    with worker():
        assert task.delay("k").get(timeout=20) == [False, True]
    with pytest.raises(KeyBlocked):
        task.delay("k")
    task.control.unblock("k")
    assert body(task, "k") == [False, False]  # outside of a run


def test_a_log_of_blocks_is_kept_if_wanted(
    app: Celery, declare: Any, redis: Redis
) -> None:
    """The latest, newest first, for a while."""
    app.conf.bgtask_log_blocks = 2
    task = declare()
    for reason in ("a", "b", "c"):
        task.control.block("k", reason, seconds=5)
    task.control.unblock("k")

    log = task.control.block_log("k")

    assert [block.reason for block in log] == ["c", "b"]
    assert [round((b.until or 0) - b.since) for b in log] == [5, 5]
    [name] = redis.scan_iter("*:block-log:*")
    assert redis.pttl(name) > 0


def test_no_log_of_blocks_is_kept_by_default(task: Any) -> None:
    """Not a key of it."""
    task.control.block("k", "a")
    task.control.unblock("k")

    assert task.control.block_log("k") == []


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, "5", True])
def test_what_is_no_time_is_refused(task: Any, seconds: Any, keys: Any) -> None:
    """The error says what to pass, and nothing is changed."""
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        task.control.block("k", "why", seconds=seconds)
    with pytest.raises(TypeError, match="a reason is a text"):
        task.control.block("k", 5)

    assert keys() == []


def test_a_retry_on_a_blocked_key_waits(
    declare: Any, worker: Any, redis: Redis
) -> None:
    """What was taken is seen through: it parks, and goes on when the block ends."""

    def body(self, k):
        if self.request.retries:
            return "done"
        self.report_bad_task("bad")
        self.report_bad_task("bad")
        raise self.retry(countdown=0)

    task = declare("again", body, bind=True, block_threshold=1)
    with worker("threads", concurrency=2):
        result = task.delay("k")
        wait_until(lambda: task.control.stats("k").waiting == 1, that="it waits")
        assert task.control.explain(result.id).reason == "blocked"
        task.control.unblock("k")
        assert result.get(timeout=20) == "done"
        wait_until_drained(redis)


# Remedies


def test_a_purge_ends_what_waits(
    end: Any, app: Celery, task: Any, sweep_now: Any, keys: Any
) -> None:
    """As REVOKED, for everybody, also more than a step may take; others go on."""
    holder = task.delay("k")
    other = [task.delay("other"), task.delay("other")]
    waiting = [task.delay("k") for _ in range(120)]

    assert task.control.purge("k") == 120
    assert task.control.purge("k") == 0

    assert {result.state for result in waiting} == {states.REVOKED}
    with pytest.raises(TaskCancelled, match="purged"):
        waiting[7].get(timeout=10)
    assert task.control.stats("k").held == 1
    assert task.control.stats("other").waiting == 1
    end(*other, holder)
    for _ in range(3):
        sweep_now()
    assert not any(name.startswith("task:") for name in keys())


def test_a_slot_is_forced_free(end: Any, task: Any, queued: Queued) -> None:
    """Of what is with the broker: the next one gets it, and the task stays valid."""
    first, second = task.delay("k"), task.delay("k")
    queued()

    assert task.control.release("k", first.id)
    assert not task.control.release("k", first.id)
    assert not task.control.release("other", second.id)

    [message] = queued()
    assert message.headers["id"] == second.id
    assert task.control.explain(first.id).reason == "lapsed"
    end(first, second)


def test_what_is_published_again_starts_once(
    task: Any, queued: Queued, run_all: Any
) -> None:
    """Though both messages arrive."""
    result = task.delay("k", value=1)

    assert task.control.redispatch(result.id)

    messages = queued()
    assert [m.headers["id"] for m in messages] == [result.id] * 2
    for _ in range(2):
        assert task.control.redispatch(result.id)
    assert run_all(result) == [1]
    with pytest.raises(TaskNotAvailable):
        task.control.redispatch(result.id)


def test_what_lost_its_slot_gets_the_next_one(
    task: Any, queued: Queued, run_all: Any
) -> None:
    """A lapsed task whose message is lost waits in front of the others."""
    lost, other, third = (task.delay("k", value=n) for n in range(3))
    task.control.release("k", lost.id)
    queued()

    assert task.control.redispatch(lost.id)

    assert task.control.explain(lost.id).position == 1
    assert task.control.explain(third.id).position == 2
    assert task.control.redispatch(other.id)
    assert run_all(lost, other, third) == [0, 1, 2]


def test_an_offered_task_that_comes_again_later_is_published_again(
    end: Any, declare: Any, worker: Any, queued: Queued
) -> None:
    """A retry with a delay is with the broker, whatever the delivery."""

    def come_again(self, k):
        raise self.retry(countdown=600)

    task = declare("late", come_again, delivery="offer", bind=True)
    result = task.delay("k")
    with worker():
        wait_until(lambda: task.control.explain(result.id).state == "delayed")
    queued()

    assert task.control.redispatch(result.id)

    assert [message.headers["id"] for message in queued()] == [result.id]
    end(result)


def test_what_cannot_be_published_again_is_said(
    end: Any, app: Celery, declare: Any, task: Any
) -> None:
    """Why not, as an error; what needs it not, as an answer."""
    with pytest.raises(TaskNotAvailable, match="the store does not know it"):
        task.control.redispatch("nobody")
    holder, waits = task.delay("k"), task.delay("k")
    assert not task.control.redispatch(waits.id)
    end(waits, holder)

    free = declare("free", max_per_key=None)
    result = free.delay("k")
    with pytest.raises(TaskNotAvailable, match="no message of it"):
        free.control.redispatch(result.id)
    end(result)


def test_messages_need_not_be_kept(end: Any, app: Celery, declare: Any) -> None:
    """A setting turns it off."""
    app.conf.bgtask_keep_dispatched = False
    task = declare()

    result = task.delay("k")

    with pytest.raises(TaskNotAvailable, match="bgtask_keep_dispatched is off"):
        task.control.redispatch(result.id)
    end(result)


def test_the_message_is_kept_no_longer_than_needed(
    declare: Any, worker: Any, redis: Redis, tag: str
) -> None:
    """It goes when the body starts."""

    def body(k):
        [name] = redis.scan_iter("*:task:*")
        return redis.hexists(name, "body")

    task = declare("kept", body)
    with worker():
        assert task.delay("k").get(timeout=20) == 0
        wait_until_drained(redis)


def test_a_drain_publishes_all(
    end: Any, task: Any, queued: Queued, worker: Any, redis: Redis
) -> None:
    """Whatever limits, blocks and pauses say; and a worker starts it."""
    results = [task.delay(str(n % 3), value=n) for n in range(150)]
    task.control.block("1")
    task.control.set_limit("2", 0)
    task.control.pause()

    assert task.control.drain() == 147
    assert task.control.drain() == 0

    assert not any(stats.waiting for stats in list(task.control.keys()))
    with worker("threads", concurrency=8):
        drained = results[3:]
        assert [r.get(timeout=30) for r in drained] == list(range(3, 150))
    task.control.unblock("1")
    task.control.reset_limit("2")
    task.control.resume()
    assert len(queued()) == 3  # which the pause had parked when they arrived
    end(*results[:3])


# Views


def test_keys_come_once_and_a_page_at_a_time(end: Any, task: Any) -> None:
    """In use, blocked, with a limit of their own, or all of that."""
    names = [f"Zoë {{{n}}}\n" for n in range(700)]
    results = [task.delay(name) for name in names]
    results += [task.delay(names[0])]
    task.control.set_limit(names[0], 1)
    task.control.block(names[0], "why")
    task.control.set_limit("idle", 3)
    task.control.block("bad", "why")

    rows = list(task.control.keys(page=50))

    assert sorted(row.key for row in rows) == sorted([*names, "idle", "bad"])
    first = next(row for row in rows if row.key == names[0])
    assert (first.dispatched, first.waiting, first.limit) == (1, 1, 0)
    assert first.waiting_since
    assert next(row for row in rows if row.key == "idle").limit == 3
    end(*reversed(results))
    task.control.unblock(names[0])
    task.control.unblock("bad")
    task.control.reset_limit(names[0])
    task.control.reset_limit("idle")


def test_the_oldest_of_all_priorities_is_seen(end: Any, task: Any) -> None:
    """Who waits longest may be behind others."""
    results = [task.apply_async(("k",), priority=p) for p in (0, 9, 3)]
    since = task.control.stats("k").waiting_since

    assert since == task.control.explain(results[1].id).waiting_since
    assert since <= task.control.explain(results[2].id).waiting_since
    end(*reversed(results))
