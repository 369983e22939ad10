"""A call on its way to the broker: a slot, a place in the queue, or a clear answer."""

from __future__ import annotations

import contextlib
import threading
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from celery import Celery, chord, group, signals
from celery.exceptions import ChordError
from celery.result import AsyncResult
from kombu import Producer
from kombu.exceptions import OperationalError
from redis import Redis

from celery_bgtask import (
    ImproperlyConfigured,
    KeyStats,
    LimitReached,
    MissingTaskKey,
    PayloadTooLarge,
)
from celery_bgtask.extension import extension_of
from celery_bgtask.message import HEADER
from celery_bgtask.scripts import Scripts
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import PATIENCE, wait_until


Queued = Callable[[], list[Any]]


def counts(task: Any, key: Any = "k") -> tuple[int, int, int, int | None]:
    """Running, dispatched, waiting and limit of *key*."""
    stats: KeyStats = task.control.stats(key)
    return stats.running, stats.dispatched, stats.waiting, stats.limit


def free(task: Any, result: AsyncResult, attempt: int = 1) -> None:
    """Give the slot of a dispatched call back, and publish what is handed on."""
    scripts: Scripts = extension_of(task.app).scripts(task.bgtask.scope)
    granted = scripts.withdraw(result.id, attempt)
    for one in granted:
        one.message.publish(task.app, attempt=one.attempt, **one.deadlines._asdict())
    scripts.confirm(granted)


def forget(task: Any) -> None:
    """Let nothing of the task be owed at the end of a test."""
    client: Redis = task.app.backend.client
    for name in client.scan_iter("{" + task.app.conf.bgtask_key_prefix + "*"):
        client.delete(name)


def test_a_call_with_room_is_dispatched(declare: Any, queued: Queued) -> None:
    """It has a slot, and its message says which key and attempt it is."""
    task = declare()

    result = task.delay("k", value=1)

    [message] = queued()
    assert counts(task) == (0, 1, 0, 1)
    assert message.headers["id"] == result.id
    assert message.headers[HEADER]["key"] == "k"
    assert message.headers[HEADER]["attempt"] == 1
    free(task, result)


def test_a_call_without_room_is_refused(declare: Any, queued: Queued) -> None:
    """``"reject"``: an exception with the facts, and nothing is sent."""
    task = declare()
    first = task.delay("k")

    with pytest.raises(LimitReached) as caught:
        task.delay("k")

    assert vars(caught.value) == {"key": "k", "limit": 1, "running": 1, "waiting": 0}
    assert len(queued()) == 1
    assert counts(task) == (0, 1, 0, 1)
    free(task, first)


def test_a_call_of_another_key_is_not_concerned(declare: Any, queued: Queued) -> None:
    """Keys do not know each other."""
    task = declare()

    results = [task.delay(key) for key in ("a", "b", 3)]

    assert len(queued()) == 3
    for result in results:
        free(task, result)


def test_a_task_without_a_key_is_named_in_the_refusal(declare: Any) -> None:
    """Its limit holds for all calls, and the error says the task's name."""
    task = declare(task_key=None)
    first = task.delay("a")

    with pytest.raises(LimitReached, match="'echo'"):
        task.delay("b")

    free(task, first)


def test_a_refusal_leaves_nothing(
    declare: Any, keys: Callable[[], list[str]], redis: Redis, app: Celery
) -> None:
    """No key is made, nothing is subscribed to, for a call that was refused."""
    task = declare()
    first = task.delay("k")
    before, heard = keys(), redis.pubsub_channels()

    for _ in range(3):
        with pytest.raises(LimitReached):
            task.delay("k")

    assert keys() == before
    assert redis.pubsub_channels() == heard
    free(task, first)


@pytest.mark.parametrize(
    ("args", "error"),
    [(("k", "x" * 3000), PayloadTooLarge), ((None,), MissingTaskKey)],
    ids=["payload", "key"],
)
def test_bad_input_changes_nothing(
    args: Any,
    error: type[Exception],
    declare: Any,
    keys: Callable[[], list[str]],
    queued: Queued,
    redis: Redis,
) -> None:
    """Neither slot nor message nor subscription."""
    task = declare(max_payload_size=2000)
    before = set(redis.pubsub_channels())  # of results that other tests let go

    with pytest.raises(error):
        task.delay(*args)

    assert keys() == []
    assert queued() == []
    assert set(redis.pubsub_channels()) <= before


def test_a_wrong_limit_from_a_callable_changes_nothing(
    declare: Any, keys: Callable[[], list[str]], queued: Queued
) -> None:
    """``max_per_key`` is asked at each call, and what it says is checked."""
    task = declare(max_per_key=lambda key: 0)

    with pytest.raises(ImproperlyConfigured, match="must return"):
        task.delay("k")

    assert keys() == []
    assert queued() == []


def test_the_payload_is_measured_as_serialized(declare: Any, queued: Queued) -> None:
    """The limit is on the bytes of the body, before they are compressed."""
    task = declare(max_payload_size=2000, compression="zlib")

    with pytest.raises(PayloadTooLarge) as caught:
        task.delay("k", value="x" * 3000)

    assert 3000 < caught.value.size < 3300
    assert caught.value.limit == 2000
    assert queued() == []


def test_a_call_without_room_waits(declare: Any, queued: Queued) -> None:
    """``"wait"``: the message is kept, and published when a slot is free."""
    task = declare(when_full="wait")
    first, second = task.delay("k", value=1), task.delay("k", value=2)

    assert counts(task) == (0, 1, 1, 1)
    assert [message.headers["id"] for message in queued()] == [first.id]

    free(task, first)

    [message] = queued()
    assert message.headers["id"] == second.id
    assert message.decode()[1] == {"value": 2}
    assert counts(task) == (0, 1, 0, 1)
    free(task, second)


def test_too_many_may_not_wait(declare: Any) -> None:
    """``max_waiting_per_key``: then it is refused, and the error counts them."""
    task = declare(when_full="wait", max_waiting_per_key=2)
    for _ in range(3):
        task.delay("k")

    with pytest.raises(LimitReached) as caught:
        task.delay("k")

    assert (caught.value.running, caught.value.waiting) == (1, 2)
    assert counts(task) == (0, 1, 2, 1)
    forget(task)


def test_too_many_bytes_may_not_wait(app: Celery, declare: Any) -> None:
    """``bgtask_max_waiting_bytes`` bounds what is parked in a scope."""
    app.conf.bgtask_max_waiting_bytes = 10_000
    task = declare(when_full="wait")
    task.delay("k", value="x" * 8000)  # has a slot: its message is not kept
    task.delay("k", value="x" * 6000)

    with pytest.raises(LimitReached):
        task.delay("k", value="x" * 6000)
    with pytest.raises(LimitReached):
        task.delay("k2", value="x") and task.delay("k2", value="x" * 6000)

    assert counts(task) == (0, 1, 1, 1)
    forget(task)


def test_a_higher_limit_promotes_what_waits(declare: Any, queued: Queued) -> None:
    """A submission that brings a higher limit starts the others first."""
    limits = iter([1, 1, 1, 3])
    task = declare(when_full="wait", max_per_key=lambda key: next(limits))
    results = [task.delay("k") for _ in range(4)]

    ids = [message.headers["id"] for message in queued()]

    assert ids == [result.id for result in results[:3]]
    assert counts(task) == (0, 3, 1, 3)
    forget(task)


def test_a_call_may_say_what_a_full_key_does(declare: Any) -> None:
    """``when_full=`` of ``apply_async`` goes before the task's."""
    task = declare()
    task.delay("k")

    waiting = task.apply_async(("k",), when_full="wait")

    assert waiting.id
    assert counts(task) == (0, 1, 1, 1)
    forget(task)


def test_the_same_id_is_sent_once(declare: Any, queued: Queued) -> None:
    """A second submission while the first is on its way gives the same result."""
    task = declare(max_per_key=5)

    first = task.apply_async(("k",), task_id="mine")
    again = task.apply_async(("k",), task_id="mine")

    assert first.id == again.id == "mine"
    assert len(queued()) == 1
    assert counts(task) == (0, 1, 0, 5)
    free(task, first)


def test_a_broker_that_refuses_gives_the_slot_back(
    declare: Any, keys: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``delay()`` raises what the broker said, and the key is as before."""
    task = declare()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Producer, "publish", refuse)
        with pytest.raises(OperationalError, match="no"):
            task.delay("k")

    assert keys() == []
    free(task, task.delay("k"))


def test_a_broker_that_refuses_lets_the_next_one_start(
    declare: Any, queued: Queued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What had come to wait in the meantime gets the slot."""
    task = declare(when_full="wait")
    waiting: list[Any] = []
    publish = Producer.publish

    def refuse_first(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not waiting:
            waiting.append(True)
            waiting.append(task.delay("k", value="next"))
            raise OperationalError("no")
        return publish(self, *args, **kwargs)

    monkeypatch.setattr(Producer, "publish", refuse_first)
    with pytest.raises(OperationalError):
        task.delay("k", value="first")

    [message] = queued()
    assert message.headers["id"] == waiting[1].id
    assert counts(task) == (0, 1, 0, 1)
    free(task, waiting[1])


SERIALIZERS = pytest.mark.parametrize(
    "serializer", ["json", "yaml", "msgpack", "pickle"]
)


@SERIALIZERS
@pytest.mark.parametrize("compression", [None, "zlib", "bzip2"])
def test_a_parked_message_is_published_as_it_was(
    serializer: str, compression: Any, app: Celery, declare: Any, queued: Queued
) -> None:
    """Serializer, compression, headers and properties are those of the submission."""
    app.conf.accept_content = [serializer]
    task = declare(when_full="wait", serializer=serializer, compression=compression)
    sending: dict[str, Any] = {
        "priority": 3, "headers": {"mine": "Zoë"}, "shadow": "other",
        "reply_to": "me", "expires": 1000,
    }  # fmt: skip
    value = {"text": "Zoë \0 ☃", "numbers": [1, 2.5, None]}
    first = task.apply_async(("k", value), **sending)
    second = task.apply_async(("k", value), **sending)
    [direct] = queued()

    free(task, first)
    [parked] = queued()

    assert parked.headers["id"] == second.id
    for message in (direct, parked):
        message.accept = {message.content_type}
        assert message.decode()[0] in (["k", value], ("k", value))
        assert message.headers["mine"] == "Zoë"
        assert message.headers["shadow"] == "other"
    changed = {"id", "root_id", "expires", HEADER}
    assert set(parked.headers) == set(direct.headers)
    for name in set(parked.headers) - changed:
        assert parked.headers[name] == direct.headers[name], name
    assert parked.body == direct.body
    assert (parked.content_type, parked.content_encoding) == (
        direct.content_type,
        direct.content_encoding,
    )
    for name in ("reply_to", "priority", "delivery_mode"):
        assert parked.properties[name] == direct.properties[name], name
    assert parked.properties["correlation_id"] == second.id
    for name in ("exchange", "routing_key"):
        assert parked.delivery_info[name] == direct.delivery_info[name], name
    free(task, second)


def test_a_producer_that_compresses_does_it_once(
    app: Celery, declare: Any, queued: Queued
) -> None:
    """A producer of the caller's own is used as it is."""
    task = declare()

    with app.connection_for_write() as connection:
        producer = Producer(connection.default_channel, compression="zlib")
        result = task.apply_async(("k", "value"), producer=producer)

    [message] = queued()
    assert zlib.decompress(message.body).startswith(b'[["k"')
    free(task, result)


def test_protocol_1_is_parked_and_published(
    app: Celery, declare: Any, queued: Queued
) -> None:
    """The old message protocol has the call in its body; the key is in a header."""
    app.conf.task_protocol = 1
    task = declare(when_full="wait")
    first, second = task.delay("k", value=1), task.delay("k", value=2)
    [message] = queued()
    assert message.decode()["id"] == first.id
    assert message.headers[HEADER]["key"] == "k"

    free(task, first)

    [message] = queued()
    assert message.decode()["kwargs"] == {"value": 2}
    assert message.headers[HEADER]["attempt"] == 1
    free(task, second)


def test_a_message_goes_where_it_was_routed(app: Celery, declare: Any) -> None:
    """A parked call keeps its queue."""
    task = declare(when_full="wait")
    other = f"{app.conf.task_default_queue}-other"
    first = task.apply_async(("k",), queue=other)
    second = task.apply_async(("k",), queue=other)

    free(task, first)

    with (
        app.connection_for_read() as connection,
        connection.SimpleQueue(other) as queue,
    ):
        ids = [queue.get(timeout=PATIENCE).headers["id"] for _ in range(2)]
        queue.clear()
    assert ids == [first.id, second.id]
    free(task, second)


def test_publish_signals_come_once_at_the_submission(
    declare: Any, queued: Queued
) -> None:
    """Receivers see a parked call when it is made, and may change its headers."""
    task = declare(when_full="wait")
    seen: list[str] = []

    def before(sender: Any = None, headers: Any = None, **_: Any) -> None:
        seen.append("before")
        headers["tenant"] = f"t{len(seen)}"

    def after(sender: Any = None, **_: Any) -> None:
        seen.append("after")

    signals.before_task_publish.connect(before)
    signals.after_task_publish.connect(after)
    try:
        first, second = task.delay("k"), task.delay("k")
        queued()
        free(task, first)
    finally:
        signals.before_task_publish.disconnect(before)
        signals.after_task_publish.disconnect(after)

    [message] = queued()
    assert seen == ["before", "after"] * 2
    assert message.headers["tenant"] == "t3"
    free(task, second)


def test_a_receiver_may_change_what_is_called(declare: Any, queued: Queued) -> None:
    """The body that is stored is the one that receivers have seen last."""
    task = declare(when_full="wait")

    def before(body: Any = None, **_: Any) -> None:
        body[1]["value"] = "changed"

    signals.before_task_publish.connect(before)
    try:
        first, second = task.delay("k", value=1), task.delay("k", value=2)
    finally:
        signals.before_task_publish.disconnect(before)
    free(task, first)

    assert [message.decode()[1] for message in queued()] == [{"value": "changed"}] * 2
    free(task, second)


@pytest.mark.parametrize("when_full", ["wait", "reject"])
def test_sent_events_tell_of_what_was_taken(
    when_full: str, app: Celery, declare: Any
) -> None:
    """``task_send_sent_event``: one event for a call that was taken, none else."""
    app.conf.task_send_sent_event = True
    task = declare(when_full=when_full)
    events: list[dict[str, Any]] = []

    with app.connection_for_read() as connection:
        handlers = {"task-sent": events.append}
        receiver = app.events.Receiver(connection, handlers=handlers)
        with receiver.consumer_context() as (subscribed, _, _):
            with contextlib.suppress(TimeoutError):
                subscribed.drain_events(timeout=0.05)  # it subscribes here
            first = task.delay("k")
            if when_full == "wait":
                task.delay("k")
            else:
                with pytest.raises(LimitReached):
                    task.delay("k")
            with contextlib.suppress(TimeoutError):
                while True:
                    subscribed.drain_events(timeout=0.3)

    assert [event["name"] for event in events] == ["echo"] * (1 + (when_full == "wait"))
    assert events[0]["uuid"] == first.id
    forget(task)


def test_a_group_takes_slots_one_by_one(declare: Any, queued: Queued) -> None:
    """Its members are submitted like other calls, by one producer."""
    task = declare(when_full="wait", max_per_key=2)

    calls = group(task.s("k", value=number) for number in range(5))
    result: Any = calls.apply_async()

    assert len(result) == 5
    assert len(queued()) == 2
    assert counts(task) == (0, 2, 3, 2)
    forget(task)


def test_a_member_of_a_group_that_is_refused_has_failed(declare: Any) -> None:
    """Nobody could catch an exception in the middle of a canvas: it is stored."""
    task = declare()

    result: Any = group(task.s("k") for _ in range(3)).apply_async()

    first, *others = result.results
    assert [other.state for other in others] == ["FAILURE"] * 2
    with pytest.raises(LimitReached) as caught:
        others[0].get(timeout=PATIENCE)
    assert caught.value.key == "k"
    free(task, first)


def test_a_refused_member_ends_its_chord(
    app: Celery, declare: Any, worker: Any
) -> None:
    """A chord whose part was refused fails; it does not hang."""
    task = declare()
    total = declare("total", lambda_sum, task_key=None, max_per_key=None)

    with worker():
        parts = [task.s("k", value=number) for number in range(3)]
        result = chord(parts, total.s()).apply_async()
        with pytest.raises((LimitReached, ChordError)):
            result.get(timeout=PATIENCE)
        wait_for_idle(task)


def lambda_sum(numbers):
    """Return the sum of what the parts of a chord have returned."""
    return sum(numbers)


def wait_for_idle(task: Any) -> None:
    """Wait until no slot of the task is taken."""
    wait_until(lambda: counts(task)[:3] == (0, 0, 0), that="no slot is taken")


def test_a_refusal_of_an_ignored_result_is_not_stored(
    app: Celery, declare: Any
) -> None:
    """``ignore_result`` holds for refusals too, unless errors are to be stored."""
    quiet = declare("quiet", ignore_result=True)
    loud = declare("loud", ignore_result=True, store_errors_even_if_ignored=True)

    for task, state in ((quiet, "PENDING"), (loud, "FAILURE")):
        result: Any = group(task.s("k") for _ in range(2)).apply_async()
        assert app.AsyncResult(result.results[1].id).state == state
        free(task, result.results[0])


def test_an_eta_takes_no_slot(declare: Any, queued: Queued) -> None:
    """A call with a countdown takes its slot when it arrives."""
    task = declare()

    task.apply_async(("k",), countdown=1000)

    assert counts(task) == (0, 0, 0, 1)
    assert len(queued()) == 1
    free(task, task.delay("k"))


@pytest.mark.parametrize(
    "key", ["{}", "a b", "line\nbreak", "nul\0", "Zoë ☃", "%41", "x" * 512, "*", "a:b"]
)
def test_any_text_is_a_key(key: str, declare: Any, worker: Any) -> None:
    """Odd characters neither split a name nor are lost on the way to the worker."""
    task = declare(when_full="wait")
    results = [task.delay(key, value=number) for number in range(2)]
    assert counts(task, key) == (0, 1, 1, 1)

    with worker():
        assert [result.get(timeout=PATIENCE) for result in results] == [0, 1]
        wait_for_idle(task)


def test_a_burst_from_many_threads_takes_exactly_the_slots(declare: Any) -> None:
    """A hundred threads at once, five slots: five are taken, 95 refused."""
    task = declare(max_per_key=5)
    outcome: list[str] = []
    start = threading.Barrier(50)

    def submit() -> None:
        start.wait()
        for _ in range(2):
            try:
                task.delay("k")
            except LimitReached:
                outcome.append("refused")
            else:
                outcome.append("taken")

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcome) == ["refused"] * 95 + ["taken"] * 5
    assert counts(task) == (0, 5, 0, 5)
    forget(task)


def test_a_sweep_of_an_idle_scope_leaves_nothing_that_stays(
    app: Celery, declare: Any, redis: Redis, keys: Callable[[], list[str]]
) -> None:
    """What a sweep notes has a lifetime."""
    task = declare()

    sweep(app, extension_of(app).scripts(task.bgtask.scope), "w")

    assert set(keys()) == {"swept", "sweeping"}
