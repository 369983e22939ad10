"""Real workers report, and who follows them hears all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError

from celery_bgtask import BgResult, follow
from celery_bgtask.extension import extension_of
from celery_bgtask.testing import EmbeddedServer
from tests.helpers import wait_until
from tests.smoke.hearing import PATIENCE, Heard, following
from tests.smoke.nodes import ROOT, ServerContainer, SmokeSetup, WorkerSpec
from tests.smoke.progress_tasks import MODULE, release_gate, task_of


#: The queue of the worker that has processes.
PROCESSES = "processes"


@pytest.fixture(scope="module")
def smoke_conf() -> dict[str, Any]:
    """Short leases; what was fetched when Redis went away comes back soon."""
    return {
        "bgtask_lease": 12.0,
        "bgtask_sweep_interval": 0.25,
        "imports": [MODULE],
        "broker_transport_options": {
            "visibility_timeout": 4,
            "unacked_restore_interval": 1,
            "unacked_restore_throttle": 1,
        },
    }


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One in which many bodies may wait at once, and one with processes."""
    return (
        WorkerSpec("threads", 12, tasks=MODULE),
        WorkerSpec("prefork", 2, tasks=MODULE, options=("-Q", PROCESSES)),
    )


@pytest.fixture(scope="module")
def smoke_store(store: EmbeddedServer) -> ServerContainer:
    """A server that a test may stop; it remembers."""
    return ServerContainer(store)


@pytest.fixture(autouse=True)
def _listener_is_closed(smoke: SmokeSetup) -> Iterator[None]:
    yield
    extension_of(smoke.app).close()


@pytest.fixture
def work(smoke: SmokeSetup) -> Any:
    """The task that the workers run."""
    return task_of(smoke.app, "work")


def test_a_hundred_results_in_one_process_hear_each_its_own_and_all_of_it(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Reports, end and value; one thread for all of them."""
    before = listening()
    queues = [smoke.app.conf.task_default_queue, PROCESSES]
    results = [
        work.apply_async(
            (f"{key}-{n}",), {"count": 4, "base": n * 10}, queue=queues[n % 2]
        )
        for n in range(100)
    ]
    heard = [Heard(result) for result in results]

    for number, one in enumerate(heard):
        assert one.end.is_success
        assert one.numbers == [number * 10 + step for step in range(4)]
        assert {report.task_id for report in one.reports} == {results[number].id}
        assert results[number].get(timeout=0) == "done"
    assert listening() - before <= 1


def listening() -> int:
    """Count the listener threads of this process: other tests have apps, too."""
    return sum(thread.name == "bgtask listener" for thread in threading.enumerate())


def test_two_threads_and_two_processes_hear_the_same(
    smoke: SmokeSetup,
    key: str,
    work: Any,
    client_process: Callable[[str], subprocess.Popen[str]],
) -> None:
    """Each of them all of it, in order."""
    results = [work.delay(key, count=6, gates=[2], base=n * 10) for n in range(10)]
    ids = [result.id for result in results]
    processes = [client_process(following(ids)) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        threads = [
            pool.submit(lambda: [Heard(result) for result in results]),
            pool.submit(lambda: [Heard(work.AsyncResult(one)) for one in ids]),
        ]
        heard = [thread.result() for thread in threads]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "following\n"

    release_gate(smoke.ledger.client, key, 10)

    expected = [[n * 10 + step for step in range(6)] for n in range(10)]
    for ones in heard:
        assert all(one.end.is_success for one in ones)
        assert [one.numbers for one in ones] == expected
    for process in processes:
        said = json.loads(process.communicate(timeout=PATIENCE)[0])
        assert [said[one] for one in ids] == [[*steps, "end"] for steps in expected]


def test_who_starts_in_the_middle_or_after_the_end_hears_all(
    smoke: SmokeSetup,
    key: str,
    work: Any,
    client_process: Callable[[str], subprocess.Popen[str]],
) -> None:
    """From here and from another process."""
    result = work.delay(key, count=6, gates=[3])
    first = Heard(result)
    first.wait_for(0, 1, 2)
    middle = Heard(BgResult(result.id, app=smoke.app))
    process = client_process(following([result.id]))
    assert process.stdout is not None
    assert process.stdout.readline() == "following\n"
    middle.wait_for(0, 1, 2)
    assert result.phase == "running"

    release_gate(smoke.ledger.client, key)

    after = [first, middle]
    assert first.end.is_success
    after.append(Heard(result))
    after.append(Heard(BgResult(result.id, app=smoke.app)))
    for one in after:
        assert one.end.is_success
        assert one.numbers == list(range(6))
    assert json.loads(process.communicate(timeout=PATIENCE)[0]) == {
        result.id: [*range(6), "end"]
    }
    late = client_process(following([result.id]))
    assert json.loads(late.communicate(timeout=PATIENCE)[0].splitlines()[-1]) == {
        result.id: [*range(6), "end"]
    }
    last = work.AsyncResult(result.id).last_progress
    assert (last.current, last.percent) == (5, pytest.approx(500 / 6))
    assert result.phase == "ended"


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning"
)
def test_nothing_is_lost_while_the_store_is_away_for_five_seconds(
    smoke: SmokeSetup, key: str, work: Any, store: EmbeddedServer
) -> None:
    """What was reported is heard, once and in order; so is what comes after.

    Some end while it is away: their last report and their end come when it is back.
    """
    long = [work.delay(f"{key}-long", count=8, gates=[4]) for _ in range(3)]
    short = [work.delay(f"{key}-short", "paced", count=40, pause=0.1) for _ in range(3)]
    heard = [Heard(result) for result in (*long, *short)]
    heard += [Heard(work.AsyncResult(one.id)) for one in (*long, *short)]
    for one in heard:
        wait_until(lambda one=one: len(one.numbers) >= 4, within=PATIENCE)  # type: ignore[misc]

    store.restart(after=5)

    release_gate(smoke.ledger.client, f"{key}-long", 3)
    for one in heard:
        assert one.end.is_success, one.end
    assert all(one.numbers == list(range(8)) for one in [*heard[:3], *heard[6:9]])
    for own, other in zip(heard[3:6], heard[9:], strict=True):
        # Made while nobody could take them, reports give way to the latest.
        assert own.numbers == other.numbers
        assert own.numbers[-1] == 39
        seqs = [report.seq for report in own.reports]
        assert seqs == list(range(1, len(seqs) + 1)), "none that was taken is missing"
    assert [result.get(timeout=PATIENCE) for result in long] == ["done"] * 3


def test_a_process_of_the_pool_submits_and_follows(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Children of prefork and threads alike; each hears its own."""
    results = [work.delay(f"{key}-{n}", "submit") for n in range(4)]
    results += [
        work.apply_async((f"{key}-{n}", "submit"), queue=PROCESSES) for n in range(4)
    ]

    assert [result.get(timeout=PATIENCE) for result in results] == [[0, 1, 2]] * 8


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_submitter_that_forks_and_follows(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """As gunicorn does: parent and child each hear what they have submitted."""
    result = work.delay(key, count=4, gates=[2])
    heard = Heard(result)
    heard.wait_for(0, 1)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            own, inherited = Heard(work.delay(f"{key}-child")), Heard(result)
            inherited.wait_for(0, 1)
            release_gate(smoke.ledger.client, key)
            said = [own.end.state, own.numbers, inherited.end.state, inherited.numbers]
            os.write(writer, json.dumps(said).encode())
        finally:
            os._exit(0)

    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(pid, 0)

    assert said == ["SUCCESS", list(range(5)), "SUCCESS", list(range(4))]
    assert heard.end.is_success
    assert heard.numbers == list(range(4))


QUIET = """
import time
from celery_bgtask.results.listener import listener_of
task = app.tasks["tests.smoke.progress_tasks.work"]
"""

WAYS = {
    "following": "task.delay(KEY).on_progress(print).on_done(print)",
    "heard": "r = task.delay(KEY)\nr.on_done(lambda _: None)\nr.get(timeout=30)",
    "closed": (
        "r = task.delay(KEY)\nr.on_done(lambda _: None)\nr.get(timeout=30)\n"
        "listener_of(app).close()"
    ),
    "busy": (
        "import threading\nentered = threading.Event()\n"
        "task.delay(KEY).on_done(lambda _: (entered.set(), time.sleep(60)))\n"
        "assert entered.wait(30)"
    ),
    "failing": (
        "task.delay(KEY).on_done(lambda _: None)\nraise SystemExit('as asked for')"
    ),
    "asyncio": (
        "import asyncio\n"
        "async def main():\n"
        "    r = task.delay(KEY)\n"
        "    assert [p.current async for p in r.aprogress()] == [0, 1, 2, 3, 4]\n"
        "    assert await r.aget() == 'done'\n"
        "asyncio.run(main())"
    ),
}


def test_the_interpreter_ends_without_noise(smoke: SmokeSetup, key: str) -> None:
    """Whatever its listener is at; and without waiting for a callback for long."""

    def run(way: str) -> tuple[str, int, str]:
        code = (
            "from tests.smoke.app import app; from tests.smoke import progress_tasks\n"
            f"KEY = {key!r}\n{QUIET}{WAYS[way]}\n"
        )
        process = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code],
            cwd=ROOT,
            env={
                **os.environ,
                "SMOKE_APP": str(smoke.app.main),
                "SMOKE_CONF": json.dumps(smoke.conf),
            },
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        return way, process.returncode, process.stderr

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, WAYS))

    for way, code, stderr in ended:
        expected = (1, "as asked for\n") if way == "failing" else (0, "")
        assert (code, without_celerys_own(stderr)) == expected, way


def without_celerys_own(stderr: str) -> str:
    """What a process has written, less what results do that are collected so late."""
    if "AsyncResult.__del__" in stderr and "celery_bgtask" not in stderr:
        return ""
    return stderr


SIGNALS = """
import json, threading
from celery_bgtask import task_done, task_error, task_progress
noted = []
over = threading.Event()
def note(sender, signal, result, progress=None, ended=None, **_):
    what = progress.current if progress else [ended.state, ended.error, ended.text]
    noted.append([signal.name, sender.name.rpartition(".")[2], what])
    if sum(name != "task_progress" for name, *_ in noted) == 2:
        over.set()
for signal in (task_progress, task_done, task_error):
    signal.connect(note, weak=False)
task = app.tasks["tests.smoke.progress_tasks.work"]
task.delay(KEY, count=2).get(timeout=30)
task.delay(KEY, count=1, error="as asked for")
assert over.wait(30), noted
print(json.dumps(noted))
"""


def test_signals_in_the_submitting_process(
    smoke: SmokeSetup, key: str, client_process: Callable[[str], subprocess.Popen[str]]
) -> None:
    """One place for an application to log what becomes of its tasks."""
    process = client_process(
        f"from tests.smoke import progress_tasks\nKEY = {key!r}\n{SIGNALS}"
    )

    noted = json.loads(process.communicate(timeout=PATIENCE * 2)[0])

    assert noted == [
        ["task_progress", "work", 0],
        ["task_progress", "work", 1],
        ["task_done", "work", ["SUCCESS", "", ""]],
        ["task_progress", "work", 0],
        ["task_error", "work", ["FAILURE", "ValueError", "as asked for"]],
    ]


def test_on_done_has_the_value_at_hand(smoke: SmokeSetup, key: str, work: Any) -> None:
    """``get()`` in the callback does not wait; a failure is raised there."""
    values: list[Any] = []
    over = threading.Semaphore(0)

    def fetch(done: Any) -> None:
        try:
            values.append(done.get(timeout=0))
        except ValueError as exc:
            values.append(str(exc))
        finally:
            over.release()

    work.delay(key, value={"ключ": [1]}).on_done(fetch)
    assert over.acquire(timeout=PATIENCE)
    work.delay(key, error="as asked for").on_done(fetch)
    assert over.acquire(timeout=PATIENCE)

    assert values == [{"ключ": [1]}, "as asked for"]


def test_a_group_is_followed_as_one(smoke: SmokeSetup, key: str, work: Any) -> None:
    """Reports of all members; the end when the last has ended; the values."""
    result = group(
        work.s(f"{key}-{n}", count=3, base=n * 10, value=n, gates=[2]) for n in range(5)
    )()
    view = follow(result)
    reports: list[Any] = []
    done: list[Any] = []
    view.on_progress(lambda one: reports.append((one.task_id, one.current)))
    view.on_done(done.append)
    wait_until(lambda: len(reports) == 10, within=PATIENCE)
    assert 0 < view.percent < 100
    assert not done
    for number in range(5):
        release_gate(smoke.ledger.client, f"{key}-{number}")

    assert view.get(timeout=PATIENCE) == [0, 1, 2, 3, 4]
    wait_until(lambda: done and len(reports) == 15, within=PATIENCE)
    assert done == [result]
    assert view.percent == 100.0
    assert [member.id for member in view.members] == [one.id for one in result.results]
    for number, member in enumerate(view.members):
        assert [step for one, step in reports if one == member.id] == [
            number * 10 + step for step in range(3)
        ]


def test_a_group_with_a_member_that_fails(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """The others run on; the end is theirs, too."""
    view = follow(
        group(
            work.s(key, value=1),
            work.s(key, error="as asked for"),
            work.s(key, value=3, gates=[1]),
        )()
    )
    done = threading.Event()
    view.on_done(lambda _: done.set())
    wait_until(view.members[1].ready, within=PATIENCE)
    assert not done.is_set()
    release_gate(smoke.ledger.client, key)

    assert done.wait(PATIENCE)
    with pytest.raises(ValueError, match="as asked for"):
        view.get(timeout=PATIENCE)
    values = view.get(timeout=PATIENCE, propagate=False)
    assert [values[0], str(values[1]), values[2]] == [1, "as asked for", 3]


def test_a_chord_is_followed_with_its_body(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """First the members, then the body; whose value it is."""
    body = work.si(f"{key}-body", value="all")
    view = follow(chord([work.s(f"{key}-{n}", base=n * 10) for n in range(2)], body)())
    reports: list[Any] = []
    view.on_progress(lambda one: reports.append(one.data["key"]))

    assert view.get(timeout=PATIENCE) == "all"
    wait_until(lambda: len(reports) == 15, within=PATIENCE)
    assert len(view.members) == 3
    assert view.percent == 100.0


def test_a_chord_with_a_member_that_fails_ends(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Its body never runs: who follows it is told all the same."""
    body = work.si(f"{key}-body")
    result = chord([work.s(key), work.s(key, error="as asked for")], body)()
    heard, elsewhere = Heard(result), follow(result)
    done = threading.Event()
    elsewhere.on_done(lambda _: done.set())

    assert heard.end.state == "FAILURE"
    assert done.wait(PATIENCE)
    # Celery raises the error of the first step that has one, here of the group.
    with pytest.raises(ValueError, match="as asked for"):
        elsewhere.get(timeout=PATIENCE)
    assert isinstance(result.result, ChordError)
    assert not smoke.ledger.runs(key=f"{key}-body")


def test_a_chain_is_followed_step_by_step(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """All steps; its end is that of the last."""
    result = chain(
        work.si(f"{key}-a", count=2),
        work.si(f"{key}-b", count=2),
        work.si(f"{key}-c", count=2, value="last"),
    )()
    view = follow(result)
    reports: list[str] = []
    view.on_progress(lambda one: reports.append(one.data["key"][-1]))
    heard = Heard(result)

    assert view.get(timeout=PATIENCE) == "last"
    assert heard.end.is_success
    wait_until(lambda: len(reports) == 6, within=PATIENCE)
    assert sorted(reports) == ["a", "a", "b", "b", "c", "c"]


def test_a_chain_whose_first_step_fails_ends(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Nothing of the later steps ever runs; whoever follows them is told."""
    result = chain(
        work.si(key, error="as asked for", gates=[1]),
        work.si(f"{key}-b"),
        work.si(f"{key}-c"),
    )()
    heard = [Heard(result), Heard(result.parent), Heard(result.parent.parent)]
    view = follow(result)
    release_gate(smoke.ledger.client, key)

    assert [(one.end.state, one.end.error) for one in heard] == [
        ("FAILURE", "ValueError")
    ] * 3
    with pytest.raises(ValueError, match="as asked for"):
        view.get(timeout=PATIENCE)
    late = Heard(result)
    assert late.end.state == "FAILURE"
    assert not smoke.ledger.runs(key=f"{key}-b") + smoke.ledger.runs(key=f"{key}-c")


def test_one_view_for_a_chain_with_a_group_in_it(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Celery makes a chord of it: all of them are members."""
    result = chain(
        work.si(f"{key}-a", count=1),
        group(work.si(f"{key}-b", count=1), work.si(f"{key}-b", count=1)),
        work.si(f"{key}-c", count=1, value="last"),
    )()
    view = follow(result)
    reports: list[str] = []
    view.on_progress(lambda one: reports.append(one.data["key"][-1]))

    assert view.get(timeout=PATIENCE) == "last"
    wait_until(lambda: len(reports) == 4, within=PATIENCE)
    assert sorted(reports) == ["a", "b", "b", "c"]
    assert len(view.members) == 4


def test_callbacks_of_a_view_that_raise_and_a_view_that_is_closed(
    smoke: SmokeSetup, key: str, work: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """One that raises is logged and harms no other; a closed view hears no more."""
    view = follow(group(work.s(key, count=2, gates=[1]) for _ in range(2))())
    closed = follow(view.result)
    reports: list[Any] = []
    after: list[Any] = []
    done = threading.Event()

    def wrong(_: Any) -> None:
        raise KeyError("as asked for")

    view.on_done(wrong)
    view.on_done(lambda _: done.set())
    closed.on_progress(reports.append)
    closed.on_done(after.append)
    wait_until(lambda: len(reports) == 2, within=PATIENCE)
    closed.close()
    release_gate(smoke.ledger.client, key, 2)

    assert done.wait(PATIENCE)
    assert len(caplog.records) == 1
    view.on_done(wrong)
    assert len(caplog.records) == 2
    assert len(reports) == 2
    assert not after


def test_a_task_that_replaces_itself_ends_with_its_successor(
    smoke: SmokeSetup, key: str, work: Any
) -> None:
    """Its reports go on as those of the next attempt."""
    result = work.delay(key, "replaced", by="work", count=2)
    heard = Heard(result), Heard(work.AsyncResult(result.id))

    assert result.get(timeout=PATIENCE) == "done"
    for one in heard:
        assert one.end.is_success
        assert [(report.attempt, report.current) for report in one.reports] == [
            (1, 1), (2, 0), (2, 1),
        ]  # fmt: skip
    assert heard[0].done[0].get(timeout=0) == "done"
