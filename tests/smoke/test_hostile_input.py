"""Messages and news that nobody of ours has written: the worker goes on."""

from __future__ import annotations

import pickle
import uuid
from pathlib import Path
from typing import Any

import pytest
from kombu import Producer

from celery_bgtask.extension import extension_of
from celery_bgtask.keys import scope_tag
from tests.helpers import PATIENCE, wait_until
from tests.smoke.nodes import SmokeSetup, WorkerSpec
from tests.smoke.offer_tasks import MODULE, task_of


#: In place of our header.
HEADERS: tuple[Any, ...] = (
    "text",
    [1, 2],
    7,
    {"attempt": "one", "finish_by": "soon", "start_by": {}, "clock": []},
    {"attempt": -1, "finish_by": 1e300, "metadata": "none", "reply": ["x"]},
    {"attempt": True, "finish_by": True, "start_by": None, "reply": "\udc80 \n"},
    {"attempt": 10**30, "finish_by": -(10**30), "start_by": 2**70},
    {"key": {"a": 1}, "attempt": 1.5, "metadata": [[]]},
    {"key": "\udc80", "attempt": 1},
    {"key": "x" * 10_000},
    {"broadcast": {"a": 1}, "until": "never"},
    {"broadcast": 7},
    {"broadcast": "b"},
)

#: On the channels that a worker or a client hears.
NEWS = (
    b"",
    b"nonsense",
    b"1 2 3 4",
    b"999999999999 t k 1 {}",
    b"1 t k 1 {}",
    b'1 t k 1 {"task": [], "queue": {}, "metadata": 1, "offered": "yes"}',
    b"\xff\xfe\x00",
    b"1 1 []",
    b'1 1 {"id": [], "attempt": 1, "state": "SUCCESS"}',
    b'1 1 {"id": "%s", "attempt": "x", "state": "SUCCESS"}',
    b'1 1 {"id": "%s", "attempt": 1, "current": "a", "total": {}, "data": []}',
    b"[" * 5000,
)


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Content that is decoded is JSON, and no other."""
    return {"accept_content": ["json"], "bgtask_sweep_interval": 0.25}


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """A worker that takes messages and offers."""
    return (WorkerSpec("prefork", 2, tasks=MODULE),)


@pytest.fixture
def pid(smoke: SmokeSetup) -> Any:
    """The worker's process: it must be the same one, alive, after each test."""
    [worker] = smoke.workers
    before = worker.container.pid
    yield before
    assert worker.container.status == "running", worker.logs()[-3000:]
    assert "Unrecoverable error" not in worker.logs()


def test_headers_of_any_shape_end_their_task_and_nothing_else(
    smoke: SmokeSetup, key: str, pid: int
) -> None:
    """It runs as if nothing had been said, or fails; the next one runs."""
    plain = task_of(smoke.app, "plain")

    results = [
        smoke.app.send_task(plain.name, (key,), headers={"bgtask": header})
        for header in HEADERS
        if "broadcast" not in (header if isinstance(header, dict) else ())
    ]
    for header in HEADERS[-3:]:
        smoke.app.send_task(plain.name, (key,), headers={"bgtask": header})

    for result in results:
        wait_until(result.ready, that=f"{result.id} has ended")
    assert plain.delay(key).get(timeout=PATIENCE) == plain.delay(key).get(
        timeout=PATIENCE
    )


class Trap:
    """Something that writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_runs_no_code(
    smoke: SmokeSetup, key: str, pid: int, tmp_path: Path
) -> None:
    """The app accepts JSON alone: nobody decodes anything else, and Celery says so."""
    plain, trap, task_id = task_of(smoke.app, "plain"), tmp_path / "x", uuid.uuid4().hex
    with smoke.app.connection_for_write() as connection:
        Producer(connection).publish(
            pickle.dumps(((Trap(trap),), {}, {})),
            routing_key=smoke.app.conf.task_default_queue,
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": plain.name, "id": task_id, "lang": "py"},
            correlation_id=task_id,
        )

    [worker] = smoke.workers
    wait_until(lambda: "Refusing to deserialize" in worker.logs(), that="it is refused")
    plain.delay(key).get(timeout=PATIENCE)
    assert not trap.exists(), "code from a message was run"


def test_news_of_any_shape_is_left_out(smoke: SmokeSetup, key: str, pid: int) -> None:
    """Who follows a task, and a worker that hears of offers, go on."""
    job = task_of(smoke.app, "job")
    scripts = extension_of(smoke.app).scripts(job.bgtask.scope)
    result = job.apply_async((key,), {"seconds": 1.0})
    ends: list[Any] = []
    result.on_done(ends.append)

    for news in NEWS:
        raw = news % result.id.encode() if b"%s" in news else news
        for channel in (
            scripts.available_channel,
            scripts.channel(result.id),
            extension_of(smoke.app).reply_channel,
        ):
            smoke.store.publish(channel, raw)

    wait_until(lambda: ends, that="its end was told")
    for _ in range(3):
        job.delay(key).get(timeout=PATIENCE)
    [worker] = smoke.workers
    assert "What was announced cannot be read" in worker.logs()
    assert "The listener begins again" not in worker.logs()


def test_an_offer_that_cannot_be_read_hides_no_other(
    smoke: SmokeSetup, key: str, pid: int
) -> None:
    """Its record was changed: the others are found and run."""
    job = task_of(smoke.app, "job")
    tag = scope_tag(smoke.app.conf.bgtask_key_prefix, job.bgtask.scope)
    queue = f"own-{key}"
    broken = job.apply_async((key,), queue=queue)
    smoke.store.hset(f"{tag}:task:{broken.id}", "news", '{"task": 7}')
    whole = job.apply_async((key,), queue=queue)

    [worker] = smoke.workers
    smoke.app.control.add_consumer(queue, destination=[worker.hostname()], reply=True)

    whole.get(timeout=PATIENCE)
    assert "An offer cannot be read" in worker.logs()
    broken.cancel()
