"""Monitors and receivers of Celery's signals hear of every end, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_bgtask.cli.upkeep import sweep_all
from celery_bgtask.testing import EmbeddedServer
from tests.helpers import value_of, wait_until
from tests.smoke.deadline_tasks import MODULE
from tests.smoke.deadlines import SWEEP, nobody, submit, task_of, wait_for_start
from tests.smoke.ledger import HELD
from tests.smoke.nodes import ServerContainer, SmokeSetup, WorkerSpec
from tests.smoke.signal_log import SIGNALS


LOGGED = {"imports": [MODULE, "tests.smoke.signal_log"]}

#: What a task's last event may be.
ENDS = ("task-failed", "task-revoked", "task-succeeded")


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Clients send events, too."""
    return {
        "bgtask_lease": 4,
        "bgtask_sweep_interval": SWEEP,
        "task_send_sent_event": True,
    }


@pytest.fixture(scope="module")
def smoke_workers(request: pytest.FixtureRequest) -> tuple[WorkerSpec, ...]:
    """One that sends events when it is told to, and keeps a log of its signals."""
    one = WorkerSpec("prefork", 2, tasks=MODULE, conf=LOGGED)
    return getattr(request, "param", (one,))


@pytest.fixture(scope="module")
def smoke_broker(
    request: pytest.FixtureRequest, smoke_store: ServerContainer
) -> ServerContainer:
    """The store's server, or one that may go away alone."""
    if not hasattr(request, "param"):
        return smoke_store
    server: EmbeddedServer = request.getfixturevalue("store")
    return ServerContainer(server)


class Monitor:
    """What Flower does: it takes all events of an app and keeps their state."""

    def __init__(self, app: Celery) -> None:
        self.events: list[dict[str, Any]] = []
        self.state = app.events.State()
        self._connection = app.connection_for_read()
        self._receiver = app.events.Receiver(
            self._connection, handlers={"*": self._hear}
        )
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def ends_of(self, result: Any) -> list[dict[str, Any]]:
        """The events of the end of a task."""
        return [
            event
            for event in self.events
            if event.get("uuid") == result.id and event["type"] in ENDS
        ]

    def end_of(self, result: Any) -> dict[str, Any]:
        """Wait for the event of the end of a task, of which there must be one."""
        (end,) = wait_until(
            lambda: self.ends_of(result), that=f"an event tells the end of {result.id}"
        )
        return end

    def close(self) -> None:
        """Hear no more."""
        self._receiver.should_stop = True
        self._thread.join(10)
        self._connection.release()

    def _watch(self) -> None:
        # Once, for it subscribes anew each time.
        self._receiver.capture(limit=None, timeout=None, wakeup=False)

    def _hear(self, event: dict[str, Any]) -> None:
        self.state.event(dict(event))
        self.events.append(event)


@pytest.fixture(scope="module")
def watching(celery_setup_app: Celery) -> Iterator[Monitor]:
    """A monitor that hears already."""
    monitor = Monitor(celery_setup_app)

    def hears() -> bool:
        with celery_setup_app.events.default_dispatcher() as dispatcher:
            dispatcher.send("test-probe")
        return bool(monitor.events)

    wait_until(hears, that="the monitor hears")
    yield monitor
    monitor.close()


@pytest.fixture
def monitor(smoke: SmokeSetup, watching: Monitor) -> Monitor:
    """The monitor of the module; the workers send what it wants."""
    smoke.app.control.enable_events(reply=True, limit=1)
    return watching


def signals_of(smoke: SmokeSetup, result: Any) -> list[str]:
    """The signals of the end of a task; wait for the first."""

    def told() -> Any:
        return smoke.ledger.client.lrange(SIGNALS + result.id, 0, -1)

    return list(wait_until(told, that=f"a signal tells the end of {result.id}"))


def test_who_was_never_started_in_time_has_failed(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """A task that waited for its slot: the monitor has never met it, and knows it."""
    holder = submit(smoke, "job", key, seconds=HELD)
    wait_for_start(smoke, holder)

    parked = submit(smoke, "job", key, accept_timeout=0.5)

    end = monitor.end_of(parked)
    assert (end["type"], end["name"]) == ("task-failed", f"{MODULE}.job")
    assert "AcceptTimeout" in end["exception"]
    assert end["hostname"] == smoke.workers[0].hostname()
    assert monitor.state.tasks[parked.id].state == "FAILURE"
    assert signals_of(smoke, parked) == ["task_failure AcceptTimeout"]
    smoke.ledger.release(holder)
    assert monitor.end_of(holder)["type"] == "task-succeeded"


def test_a_waiting_task_that_is_cancelled_is_revoked(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """As Celery says it of what it revokes before the start."""
    holder = submit(smoke, "job", key, seconds=HELD)
    parked = submit(smoke, "job", key)

    parked.cancel("not needed")

    end = monitor.end_of(parked)
    told = {name: end[name] for name in ("type", "terminated", "signum", "expired")}
    assert told == {
        "type": "task-revoked",
        "terminated": False,
        "signum": None,
        "expired": False,
    }
    assert monitor.state.tasks[parked.id].state == "REVOKED"
    assert signals_of(smoke, parked) == ["task_revoked False"]
    smoke.ledger.release(holder)


def test_a_running_body_that_is_stopped_is_revoked_once(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """Who stops it leaves the word to who concludes it."""
    stopped = submit(smoke, "job", key, seconds=HELD)
    wait_for_start(smoke, stopped)

    stopped.cancel(terminate=True)
    after = submit(smoke, "job", key)

    assert monitor.end_of(after)["type"] == "task-succeeded"
    assert monitor.end_of(stopped)["type"] == "task-revoked"
    assert signals_of(smoke, stopped) == ["task_revoked False"]


def test_what_expires_is_revoked_at_its_time(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """While it waits; ``expired`` says why."""
    holder = submit(smoke, "job", key, seconds=HELD)
    parked = submit(smoke, "job", key, expires=0.5)

    assert monitor.end_of(parked)["expired"] is True

    assert signals_of(smoke, parked) == ["task_revoked True"]
    smoke.ledger.release(holder)


def test_a_message_of_a_cancelled_id_is_revoked_where_it_arrives(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """The store knows no such task: the pool ends it."""
    job = task_of(smoke.app, "job")
    early = job.AsyncResult(f"{key}-id")
    early.cancel("early")

    smoke.app.send_task(job.name, (key,), task_id=early.id)

    assert monitor.end_of(early)["type"] == "task-revoked"
    assert signals_of(smoke, early) == ["task_revoked False"]


def test_a_lost_task_has_failed(smoke: SmokeSetup, monitor: Monitor, key: str) -> None:
    """The worker that concludes it says so."""
    queue = f"doomed-{key}"
    leaver = smoke.start_worker(
        "leaver", pool="threads", concurrency=1, tasks=MODULE, options=("-Q", queue)
    )
    lost = submit(smoke, "job", key, seconds=HELD, queue=queue)
    wait_for_start(smoke, lost)

    leaver.container.kill("SIGKILL")

    end = monitor.end_of(lost)
    assert (end["type"], end["hostname"]) == (
        "task-failed",
        smoke.workers[0].hostname(),
    )
    assert "TaskLost" in end["exception"]
    assert signals_of(smoke, lost) == ["task_failure TaskLost"]


def test_a_worker_that_sends_no_events_sends_the_signal_only(
    smoke: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """As with all of Celery's events; they are switched while it runs."""
    holder = submit(smoke, "job", key, seconds=HELD)
    silent, told = submit(smoke, "job", key), submit(smoke, "job", key)
    smoke.app.control.disable_events(reply=True, limit=1)

    silent.cancel()
    assert signals_of(smoke, silent) == ["task_revoked False"]
    smoke.app.control.enable_events(reply=True, limit=1)
    told.cancel()

    assert monitor.end_of(told)["type"] == "task-revoked"
    assert not monitor.ends_of(silent)
    smoke.ledger.release(holder)


@nobody
def test_a_sweep_on_the_command_line_tells_what_nothing_follows(
    alone: SmokeSetup, monitor: Monitor, key: str
) -> None:
    """There is no worker to tell it; with ``task_send_sent_event``, as any client."""
    due = submit(alone, "job", key, accept_timeout=0.2)
    owed = submit(
        alone,
        "job",
        f"{key}-owed",
        accept_timeout=0.2,
        link_error=task_of(alone.app, "follow").s(key=key),
    )

    wait_until(
        lambda: sweep_all(alone.app) and due.ready() and owed.ready(),
        that="both have ended",
    )

    assert monitor.end_of(due)["hostname"].startswith("bgtask-sweep@")
    alone.start_worker("later", pool="threads", tasks=MODULE, options=("-E",))
    assert monitor.end_of(owed)["hostname"].startswith("later@")


@pytest.mark.parametrize("smoke_broker", ["alone"], indirect=True, scope="module")
def test_a_broker_that_is_away_keeps_no_task_from_its_end(
    smoke: SmokeSetup, smoke_broker: ServerContainer, key: str
) -> None:
    """What concludes it does not wait for who would carry the event."""
    smoke.app.control.enable_events(reply=True, limit=1)
    holder = submit(smoke, "job", key, seconds=HELD)
    wait_for_start(smoke, holder)
    parked = [submit(smoke, "job", key, accept_timeout=1) for _ in range(3)]

    smoke_broker.kill()

    for result in parked:
        assert signals_of(smoke, result) == ["task_failure AcceptTimeout"]
        assert result.state == "FAILURE"
    smoke_broker.restart()
    smoke.ledger.release(holder)
    assert value_of(holder) is None
