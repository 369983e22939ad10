"""What the bodies of tasks say, in each kind of pool and with each kind of backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from celery_bgtask import FinishTimeout, TaskCancelled, TaskLost
from celery_bgtask.extension import extension_of
from tests.helpers import wait_until
from tests.smoke.hearing import PATIENCE, Heard
from tests.smoke.nodes import SmokeSetup, SmokeWorker, WorkerSpec
from tests.smoke.progress_tasks import MODULE, release_gate, task_of


#: Pool and result backend: each at least once, the database of a file.
KINDS = {
    "prefork": ("prefork", ""),
    "threads-database": ("threads", "db+sqlite:///{}/results.db"),
    "gevent-rpc": ("gevent", "rpc://"),
}

DATA: dict[str, Any] = {
    "ключ": ["値", None, True, 1.5, {"a": {}}],
    "text": 'a "quoted" \\ {brace} 🎉',
    "id": "mine",
    "pending": "mine",
    "state": "SUCCESS",
}


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """The pool and the backend."""
    if request.param.startswith("gevent"):
        pytest.importorskip("gevent")
    return str(request.param)


@pytest.fixture(scope="module")
def smoke_conf(kind: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Short leases, and the result backend."""
    backend = KINDS[kind][1].format(tmp_path_factory.mktemp("results"))
    conf = {"bgtask_lease": 3.0, "bgtask_sweep_interval": 0.25, "imports": [MODULE]}
    return conf | ({"result_backend": backend} if backend else {})


@pytest.fixture(scope="module")
def smoke_workers(kind: str) -> tuple[WorkerSpec, ...]:
    """One worker."""
    return (WorkerSpec(KINDS[kind][0], 4, tasks=MODULE),)


@pytest.fixture(autouse=True)
def _listener_is_closed(smoke: SmokeSetup) -> Iterator[None]:
    yield
    extension_of(smoke.app).close()


@pytest.fixture
def worker(smoke: SmokeSetup) -> SmokeWorker:
    """The module's worker."""
    (worker,) = smoke.workers
    return worker


@pytest.fixture
def submit(smoke: SmokeSetup, key: str) -> Callable[..., Any]:
    """Submits a task of this test."""

    def submit(how: str = "steps", name: str = "work", **facts: Any) -> Any:
        return task_of(smoke.app, name).delay(key, how, **facts)

    return submit


def test_progress_arrives_and_so_does_the_value(submit: Callable[..., Any]) -> None:
    """Whatever the result backend; ``get()`` and ``on_done`` work."""
    results = [submit(count=3, base=n * 10, value=n) for n in range(12)]
    heard = [Heard(result) for result in results]
    values: list[Any] = []
    results[0].on_done(lambda done: values.append(done.get(timeout=PATIENCE)))

    for number, one in enumerate(heard):
        assert one.end.state == "SUCCESS"
        assert one.numbers == [number * 10 + step for step in range(3)]
    wait_until(lambda: values, within=PATIENCE)
    assert values == [0]
    assert [result.get(timeout=PATIENCE) for result in results] == list(range(12))


def test_a_failure_is_told_with_its_text(submit: Callable[..., Any]) -> None:
    """And raised by ``get()``."""
    result = submit(count=1, error="as asked for")

    end = Heard(result).end
    assert (end.state, end.error, end.text) == ("FAILURE", "ValueError", "as asked for")
    with pytest.raises(ValueError, match="as asked for"):
        result.get(timeout=PATIENCE)


def test_without_a_result_the_end_is_told(submit: Callable[..., Any]) -> None:
    """``ignore_result``: progress and end arrive, also for who comes late."""
    result = submit(name="silent", count=2)

    for _ in range(2):
        heard = Heard(result)
        assert heard.end.is_success
        assert heard.numbers == [0, 1]
    assert result.get(timeout=1) is None


def test_any_json_arrives_as_it_was(submit: Callable[..., Any]) -> None:
    """Other alphabets, names that mean something to us, nesting."""
    heard = Heard(submit("data", data=DATA))

    assert heard.end.is_success
    (report,) = heard.reports
    assert report.data == DATA
    assert report.description == "données"


def test_what_is_not_json_is_an_error_in_the_task(submit: Callable[..., Any]) -> None:
    """It ends the task unless that catches it."""
    caught, uncaught = Heard(submit("wrong", catch=True)), submit("wrong", catch=False)

    assert caught.end.is_success
    assert caught.numbers == [2]
    assert "progress: what is reported must be JSON" in caught.reports[0].data["text"]
    with pytest.raises(TypeError, match="progress: what is reported must be JSON"):
        uncaught.get(timeout=PATIENCE)


def test_a_report_that_is_too_large_is_dropped(
    submit: Callable[..., Any], worker: SmokeWorker
) -> None:
    """The task goes on, and so do its reports; the log of the worker says why."""
    result = submit("large", name="narrow")
    heard = Heard(result)

    assert heard.end.is_success
    assert heard.numbers == [1, 3]
    line = wait_until(
        lambda: [one for one in worker.logs().splitlines() if "is dropped" in one],
        within=PATIENCE,
    )[-1]
    assert result.id in line
    assert "at most 2000 are sent" in line


def test_a_tight_loop_stays_bounded_and_its_last_report_comes(
    submit: Callable[..., Any],
) -> None:
    """Of many thousand reports few are sent; none of those is lost."""
    result = submit("flood", count=20_000)
    begun = time.monotonic()
    heard = Heard(result)

    assert heard.end.is_success
    seconds = time.monotonic() - begun
    assert heard.numbers[:20] == list(range(20))
    assert heard.numbers[-1] == 19_999
    assert len(heard.numbers) <= 20 + 20 * (seconds + 1) + 1
    assert [one.seq for one in heard.reports] == list(range(1, len(heard.reports) + 1))


def test_track_tells_at_most_ten_a_second_and_the_last(
    submit: Callable[..., Any],
) -> None:
    """In counts: the loop says itself how long it took."""
    result = submit("track", count=400, pause=0.002)
    heard = Heard(result)

    assert heard.end.is_success
    seconds = result.get(timeout=PATIENCE)
    assert heard.numbers[0] == 0
    assert heard.numbers[-1] == 400
    assert 3 <= len(heard.numbers) <= 10 * seconds + 2
    assert {one.total for one in heard.reports} == {400}
    assert heard.reports[-1].percent == 100.0


@pytest.mark.parametrize("pause", [0, 0.3])
def test_retries_count_attempts(submit: Callable[..., Any], pause: float) -> None:
    """At once or later; who follows hears all of them."""
    result = submit("retried", times=2, pause=pause)
    heard = Heard(result)

    assert heard.end.is_success
    assert heard.end.attempt == 3
    assert [(one.attempt, one.current) for one in heard.reports] == [
        (1, 0), (2, 1), (3, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("way", ["progress", "track"])
def test_a_task_that_is_too_late_hears_of_it(
    smoke: SmokeSetup, key: str, submit: Callable[..., Any], kind: str, way: str
) -> None:
    """``FinishTimeout``; and nothing it says after that is heard."""
    result = submit("until_told", name="limited", way=way)
    heard = Heard(result)

    assert (heard.end.state, heard.end.error) == ("FAILURE", "FinishTimeout")
    wait_until(lambda: not smoke.ledger.running(key), within=PATIENCE)
    count = len(heard.events)
    if kind != "prefork":  # there the soft limit may be first
        assert smoke.ledger.runs(key=key)[0].marks == ["begun", "FinishTimeout"]
    assert heard.numbers
    with pytest.raises(FinishTimeout):
        result.get(timeout=PATIENCE)
    assert len(heard.events) == count


def test_a_task_that_was_cancelled_hears_of_it(
    smoke: SmokeSetup, key: str, submit: Callable[..., Any], kind: str
) -> None:
    """``TaskCancelled`` where the pool cannot stop the body."""
    result = submit("until_told", way="progress")
    heard = Heard(result)
    wait_until(lambda: heard.numbers, within=PATIENCE)

    result.cancel("not needed", terminate=True)

    assert (heard.end.state, heard.end.error) == ("REVOKED", "TaskCancelled")
    wait_until(lambda: not smoke.ledger.running(key), within=PATIENCE)
    if kind == "threads-database":
        assert smoke.ledger.runs(key=key)[0].marks == ["begun", "TaskCancelled"]
    with pytest.raises(TaskCancelled, match="not needed"):
        result.get(timeout=PATIENCE)


def test_a_run_that_has_lost_its_lease_reports_nothing_more(
    smoke: SmokeSetup,
    key: str,
    submit: Callable[..., Any],
    worker: SmokeWorker,
    kind: str,
) -> None:
    """Its worker was away for too long, and another one has noticed."""
    if kind != "threads-database":
        pytest.skip("the worker is paused once")
    other = smoke.start_worker("other", pool="threads", concurrency=1, tasks=MODULE)
    with_lease = submit("until_told", way="progress")
    heard = Heard(with_lease)
    wait_until(lambda: heard.numbers, within=PATIENCE)
    (run,) = smoke.ledger.runs(key=key)
    away, stays = (
        (worker, other) if worker.hostname() == run.worker else (other, worker)
    )

    away.pause()
    end = heard.end
    count = len(heard.events)
    away.resume()

    assert (end.state, end.error) == ("FAILURE", "TaskLost")
    wait_until(
        lambda: smoke.ledger.runs(key=key)[0].marks == ["begun", "LeaseLost"],
        within=PATIENCE,
    )
    assert len(heard.events) == count
    with pytest.raises(TaskLost):
        with_lease.get(timeout=PATIENCE)
    assert stays.container.status == "running"


def test_a_process_that_is_killed_is_told_of(
    submit: Callable[..., Any], kind: str
) -> None:
    """Prefork: the worker notices; who follows hears it as the end."""
    if kind != "prefork":
        pytest.skip("there are no processes to kill")
    heard = Heard(submit("die"))

    assert (heard.end.state, heard.end.error) == ("FAILURE", "WorkerLostError")
    assert heard.numbers == [1]


def test_celerys_own_state_shows_it(
    smoke: SmokeSetup, key: str, submit: Callable[..., Any], kind: str
) -> None:
    """PROGRESS in Redis, for whoever knows Celery only; nothing in a database."""
    result = submit(count=3, gates=[3])
    heard = Heard(result)
    heard.wait_for(0, 1, 2)
    plain: Any = AsyncResult(result.id, app=smoke.app)
    if kind == "prefork":
        wait_until(lambda: plain.state == "PROGRESS", within=PATIENCE)
        wait_until(lambda: plain.info["current"] == 2, within=PATIENCE)
        assert plain.info == {
            "pending": False,
            "current": 2,
            "total": 3,
            "percent": 66.67,
            "description": "schritt 2 ✓",
            "key": key,
        }
    elif kind == "threads-database":
        assert plain.state in {"PENDING", "STARTED"}
    release_gate(smoke.ledger.client, key)

    assert heard.end.is_success
    assert result.get(timeout=PATIENCE) == "done"
    assert result.state == "SUCCESS"


def test_a_deadline_is_kept_by_who_follows(
    smoke: SmokeSetup, key: str, worker: SmokeWorker, kind: str
) -> None:
    """No worker is there for the queue; with any backend the callback is called."""
    result = task_of(smoke.app, "work").apply_async(
        (key,), accept_timeout=0.5, queue="nobody"
    )
    heard = Heard(result)

    assert (heard.end.state, heard.end.error) == ("FAILURE", "AcceptTimeout")
    smoke.store.delete("nobody")


def test_the_database_is_there(kind: str, smoke: SmokeSetup) -> None:
    """Results really are in it."""
    if kind != "threads-database":
        pytest.skip("another backend")
    path = Path(smoke.conf["result_backend"].partition("///")[2])

    assert path.stat().st_size > 0
