"""What others have written into the store: it is said, and the task ends."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.utils import json
from redis import Redis

from celery_bgtask import AcceptTimeout, TaskCancelled, outbox
from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from celery_bgtask.scripts import Scripts
from celery_bgtask.worker import sweeper
from celery_bgtask.worker.sweeper import sweep
from tests.helpers import PATIENCE, wait_until


@pytest.fixture
def task(declare: Callable[..., Any]) -> Any:
    """A task whose calls wait."""
    return declare(when_full="wait")


@pytest.fixture
def scripts(app: Celery, task: Any) -> Scripts:
    """The scripts of its scope."""
    return extension_of(app).scripts(task.bgtask.scope)


@pytest.fixture
def tag(app: Celery, task: Any) -> str:
    """What its names begin with."""
    return scope_tag(app.conf.bgtask_key_prefix, task.bgtask.scope)


def let_pass(redis: Redis, tag: str, index: str, task_id: str) -> None:
    """Have what is noted of a task in *index* come now, and end a sweep's turn."""
    redis.zadd(f"{tag}:{index}", {task_id: 1})
    redis.delete(f"{tag}:sweeping")


@pytest.mark.parametrize(
    "envelope",
    [
        "nonsense",
        "[]",
        "{}",
        '{"headers": 1}',
        (
            '{"content_type": "", "content_encoding": "", "headers": {"bgtask": 7},'
            ' "properties": {}, "exchange": "", "routing_key": "x"}'
        ),
    ],
)
def test_a_stored_message_that_is_none_ends_its_task(
    app: Celery,
    task: Any,
    scripts: Scripts,
    redis: Redis,
    tag: str,
    envelope: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """With an error; the slot that it had got goes to the next one."""
    first, second, third = (task.delay("k", value=n) for n in range(3))
    redis.hset(f"{tag}:task:{second.id}", "envelope", envelope)

    outbox.publish(app, scripts, scripts.withdraw(first.id, 1))
    sweep(app, scripts, "w")

    with pytest.raises(TaskCancelled, match="cannot be read"):
        second.get(timeout=PATIENCE)
    assert "cannot be published, ever" in caplog.text
    assert redis.hget(f"{tag}:task:{third.id}", "state") == "dispatched"
    redis.delete(f"{tag}:waiting-bytes")  # it counts what was there before
    outbox.publish(app, scripts, scripts.withdraw(third.id, 1))


class Trap:
    """Something that writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_what_the_app_does_not_accept_is_never_decoded(
    app: Celery,
    task: Any,
    scripts: Scripts,
    redis: Redis,
    tag: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A pickle in place of a stored body runs no code; its task ends all the same."""
    result = task.apply_async(("k",), accept_timeout=900)
    name, trap = f"{tag}:task:{result.id}", tmp_path / "sprung"
    envelope = json.loads(str(redis.hget(name, "envelope")))
    envelope |= {
        "content_type": "application/x-python-serialize",
        "content_encoding": "binary",
    }
    redis.hset(
        name,
        mapping={"envelope": json.dumps(envelope), "body": pickle.dumps(Trap(trap))},
    )
    redis.hset(name, "start_by", 1)
    let_pass(redis, tag, "deadlines", result.id)

    sweep(app, scripts, "w")
    if not result.ready():
        let_pass(redis, tag, "owed", result.id)
        sweep(app, scripts, "w")

    with pytest.raises(AcceptTimeout):
        result.get(timeout=PATIENCE)
    assert not trap.exists(), "code from the store was run"
    assert "cannot be read" in caplog.text


def test_keys_of_another_type_stop_nobody_else(
    app: Celery,
    task: Any,
    declare: Callable[..., Any],
    redis: Redis,
    tag: str,
    worker: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A scope that somebody has broken is said to be so; the others go on."""
    other = declare("other")
    redis.set(f"{tag}:leases", "nonsense")

    with worker():
        for number in range(3):
            assert other.delay("k", value=number).get(timeout=PATIENCE) == number
        wait_until(lambda: "WRONGTYPE" in caplog.text, that="it is said")
        redis.delete(f"{tag}:leases")
        assert task.delay("k", value=7).get(timeout=PATIENCE) == 7


@pytest.mark.parametrize("when", ["before its result", "after its result"])
def test_who_dies_while_a_verdict_is_concluded_is_replaced(
    app: Celery,
    task: Any,
    scripts: Scripts,
    redis: Redis,
    tag: str,
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Another sweep concludes it, a lease later, with the same end."""
    result = task.apply_async(("k",), accept_timeout=900)
    redis.hset(f"{tag}:task:{result.id}", "start_by", 1)
    let_pass(redis, tag, "deadlines", result.id)

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if when == "before its result":
            patch.setattr(sweeper, "conclude", die)
        else:
            patch.setattr(Scripts, "conclude", die)
        with pytest.raises(KeyboardInterrupt):
            sweep(app, scripts, "w")
    assert redis.zscore(f"{tag}:owed", result.id), "it is not owed any more"

    let_pass(redis, tag, "owed", result.id)
    sweep(app, scripts, "w")

    with pytest.raises(AcceptTimeout):
        result.get(timeout=PATIENCE)
    assert redis.zscore(f"{tag}:owed", result.id) is None
