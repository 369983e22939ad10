"""Celery's custom state PROGRESS: for those who know Celery only."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, states
from celery.result import AsyncResult
from redis import Redis

from celery_bgtask.running.mirror import PROGRESS, can_mirror, mirror
from celery_bgtask.running.progress import mirrored
from tests.helpers import wait_until


META = mirrored(1, 4, "erste ✓", {"stage": "a"})

#: A loaded machine may stall for seconds.
PATIENCE = 20.0


def request(task_id: str = "t", **facts: Any) -> Any:
    """A request as a running task has it."""
    return SimpleNamespace(id=task_id, ignore_result=None, **facts)


def full_request(task: Any, task_id: str) -> Any:
    """A request that Celery's own backends take."""
    task.push_request(id=task_id, ignore_result=None)
    try:
        return task.request_stack.top
    finally:
        task.pop_request()


def state_of(app: Celery, task_id: str = "t") -> str:
    """The state, as a new process reads it."""
    return str(AsyncResult(task_id, app=app).state)


def test_anybody_who_knows_celery_can_read_it(
    app: Celery, declare: Callable[..., Any]
) -> None:
    """State and info of a plain ``AsyncResult``, as celery-progress has them."""
    task = declare()

    mirror(task.backend, full_request(task, "t"), META)

    result: Any = AsyncResult("t", app=app)
    assert result.state == PROGRESS
    assert not result.ready()
    assert result.info == {
        "pending": False,
        "current": 1,
        "total": 4,
        "percent": 25.0,
        "description": "erste ✓",
        "stage": "a",
    }


def test_it_is_stored_as_celery_would(
    app: Celery, declare: Callable[..., Any], redis: Redis
) -> None:
    """The same fields, the same lifetime, published on the same channel."""
    app.conf.result_extended = True
    task = declare()
    ours, theirs = full_request(task, "ours"), full_request(task, "theirs")
    with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe("celery-task-meta-ours")
        pubsub.get_message(timeout=PATIENCE)
        mirror(task.backend, ours, META)
        message = pubsub.get_message(timeout=PATIENCE)
    task.backend.store_result("theirs", META, PROGRESS, request=theirs)

    def stored(name: str) -> Any:
        return json.loads(str(redis.get(f"celery-task-meta-{name}")))

    assert stored("ours") == {**stored("theirs"), "task_id": "ours"}
    ttl = redis.ttl("celery-task-meta-ours")
    assert 86_000 < ttl <= 86_400
    assert message is not None
    assert message["data"] == redis.get("celery-task-meta-ours")


def test_results_that_do_not_expire(
    app: Celery, declare: Callable[..., Any], redis: Redis
) -> None:
    """``result_expires=None`` stays what it is."""
    app.conf.result_expires = None
    task = declare()

    mirror(task.backend, full_request(task, "t"), META)

    assert redis.ttl("celery-task-meta-t") == -1


@pytest.mark.parametrize("state", sorted(states.READY_STATES))
def test_a_final_state_stays(
    app: Celery, declare: Callable[..., Any], state: str
) -> None:
    """Celery's own ``update_state`` protects SUCCESS alone."""
    task = declare()
    value = 1 if state == "SUCCESS" else ValueError("as asked for")
    task.backend.store_result("t", value, state)

    mirror(task.backend, full_request(task, "t"), META)

    assert state_of(app) == state


@pytest.mark.parametrize("state", ["STARTED", "RETRY", PROGRESS, "MINE"])
def test_any_other_state_gives_way(
    app: Celery, declare: Callable[..., Any], state: str
) -> None:
    """A retry, for one, reports again."""
    task = declare()
    value = ValueError("again") if state == "RETRY" else {"pid": 1}
    task.backend.store_result("t", value, state)

    mirror(task.backend, full_request(task, "t"), META)

    assert state_of(app) == PROGRESS


def test_no_race_ends_with_progress(
    app: Celery, declare: Callable[..., Any], redis: Redis
) -> None:
    """Another process stores the end at any moment: the end it is.

    All that may come between is tried: the end is stored just before each of the
    commands with which the mirror reads and writes.
    """
    task = declare()
    backend = task.backend
    stored_at: list[str] = []
    for step in range(10):
        task_id = f"t{step}"
        commands: list[str] = []

        def note(
            command: str,
            step: int = step,
            task_id: str = task_id,
            commands: list[str] = commands,
        ) -> None:
            if len(commands) == step:
                with_redis(redis, task_id)
                stored_at.append(command)
            commands.append(command)

        with noting(backend.client, note):
            mirror(task.backend, full_request(task, task_id), META)
        if len(commands) <= step:
            break
        assert state_of(app, task_id) == "REVOKED", f"stored before {commands[step]}"

    assert stored_at[:3] == ["WATCH", "GET", "MULTI"]


def with_redis(redis: Redis, task_id: str) -> None:
    """Store a final state, from elsewhere."""
    meta: dict[str, Any] = {
        "status": "REVOKED",
        "result": {"exc_type": "TaskRevokedError", "exc_message": ["x"]},
        "traceback": None,
        "children": [],
        "date_done": None,
        "task_id": task_id,
    }
    redis.set(f"celery-task-meta-{task_id}", json.dumps(meta))


class noting:  # noqa: N801 - reads as a with statement
    """Calls *note* before each command that a client sends."""

    def __init__(self, client: Any, note: Callable[[str], None]) -> None:
        self.pool, self.note = client.connection_pool, note
        self.get = self.pool.get_connection

    def __enter__(self) -> None:
        def get(*args: Any, **kwargs: Any) -> Any:
            connection = self.get(*args, **kwargs)
            send, packed = connection.send_command, connection.send_packed_command

            def send_command(*args: Any, **kwargs: Any) -> None:
                self.note(args[0])
                connection.__dict__.pop("send_packed_command", None)
                send(*args, **kwargs)
                connection.send_packed_command = send_packed_command

            def send_packed_command(*args: Any, **kwargs: Any) -> None:
                self.note("MULTI")
                packed(*args, **kwargs)

            connection.send_command = send_command
            connection.send_packed_command = send_packed_command
            return connection

        self.pool.get_connection = get

    def __exit__(self, *_: object) -> None:
        self.pool.get_connection = self.get
        self.pool.disconnect()


def test_a_mirror_and_an_end_at_once(app: Celery, declare: Callable[..., Any]) -> None:
    """Two threads, many times: the end is what stays."""
    task = declare()
    over = threading.Event()
    ids = [f"race-{number}" for number in range(60)]
    current = [ids[0]]

    def keep_mirroring() -> None:
        while not over.is_set():
            mirror(task.backend, full_request(task, current[0]), META)

    thread = threading.Thread(target=keep_mirroring)
    thread.start()
    for task_id in ids:
        current[0] = task_id
        wait_until(
            lambda task_id=task_id: state_of(app, task_id) == PROGRESS,  # type: ignore[misc]
            within=PATIENCE,
        )
        task.backend.store_result(task_id, None, "REVOKED")
    over.set()
    thread.join(PATIENCE)

    assert {state_of(app, task_id) for task_id in ids} == {"REVOKED"}


@pytest.mark.parametrize(
    ("backend", "mirrored"),
    [
        ("redis", True),
        ("file", True),
        ("cache+memory://", True),
        ("db+sqlite://", False),
        ("rpc://", False),
        ("disabled://", False),
    ],
)
def test_what_is_mirrored_where(
    app: Celery,
    declare: Callable[..., Any],
    backend: str,
    mirrored: bool,
    tmp_path: Path,
) -> None:
    """Not in databases, where each report would be a transaction."""
    if backend == "file":
        app.conf.update(result_backend=tmp_path.as_uri())
    elif backend != "redis":
        app.conf.update(result_backend=backend)
    task = declare()

    assert can_mirror(task, request()) is mirrored
    if mirrored:
        mirror(task.backend, full_request(task, "t"), META)
        assert task.backend.get_state("t") == PROGRESS
        task.backend.store_result("t", None, "REVOKED")
        mirror(task.backend, full_request(task, "t"), META)
        assert task.backend.get_state("t") == "REVOKED"


@pytest.mark.parametrize(
    ("of_task", "of_call", "mirrored"),
    [
        (False, None, True),
        (True, None, False),
        (False, True, False),
        (True, False, True),
    ],
)
def test_a_result_that_nobody_wants_is_not_mirrored(
    declare: Callable[..., Any], of_task: bool, of_call: bool | None, mirrored: bool
) -> None:
    """What the call says, then the task."""
    task = declare(ignore_result=of_task)

    assert can_mirror(task, SimpleNamespace(ignore_result=of_call)) is mirrored


@pytest.fixture
def interval(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes need not be a second apart."""
    monkeypatch.setattr("celery_bgtask.running.progress.MIRROR_INTERVAL", 0.05)


@pytest.mark.usefixtures("interval")
def test_a_run_mirrors_its_latest_report_and_then_its_end(
    app: Celery, declare: Callable[..., Any], worker: Callable[..., Any], redis: Redis
) -> None:
    """What was held back is written by a timer, and not on a connection of its own."""
    connections: list[int] = []

    def body(self: Any, k: int = 0) -> str:
        for number in range(8):
            self.progress(number)
            self.progress(number + 0.5)
            wait_until(
                lambda number=number: (  # type: ignore[misc]
                    self.AsyncResult(self.request.id).info == mirrored_of(number)
                ),
                within=PATIENCE,
                that="the latest report is mirrored",
            )
            connections.append(redis.info("stats")["total_connections_received"])
        return "done"

    def mirrored_of(number: int) -> Any:
        return mirrored(number + 0.5, None, "", {})

    task = declare("reporting", body, bind=True)
    with worker():
        result = task.delay()
        assert result.get(timeout=PATIENCE) == "done"

    assert state_of(app, result.id) == "SUCCESS"
    # Body and timer may need one at the same time: two, not one for each write.
    assert connections[-1] <= connections[1] + 2


def test_the_mirror_can_be_turned_off(
    app: Celery, declare: Callable[..., Any], worker: Callable[..., Any]
) -> None:
    """``bgtask_progress_mirror``: who follows hears all the same."""
    app.conf.bgtask_progress_mirror = False

    def body(self: Any, k: int = 0) -> str:
        self.progress(1)
        return str(self.AsyncResult(self.request.id).state)

    task = declare("reporting", body, bind=True)
    with worker():
        result = task.delay()
        heard: list[Any] = []
        result.on_progress(heard.append)
        assert result.get(timeout=PATIENCE) in {"PENDING", "STARTED"}
        wait_until(lambda: len(heard) == 1, within=PATIENCE)
