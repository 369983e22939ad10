"""`celery bgtask watch` shows calls as they go, on a terminal and off it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from celery_bgtask.testing import EmbeddedServer
from tests.helpers import wait_until
from tests.smoke.driven_tasks import MODULE, Driver
from tests.smoke.nodes import ROOT, ServerContainer, SmokeSetup, WorkerSpec


#: Seconds for what takes a moment, on a machine that may stall.
LONG = 20.0

CTRL_C = b"\x03"


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One worker with the tasks that are told what to do."""
    return (WorkerSpec("threads", 4, tasks=MODULE),)


@pytest.fixture(scope="module")
def smoke_store(store: EmbeddedServer) -> ServerContainer:
    """A server that may be stopped, and remembers."""
    return ServerContainer(store)


@pytest.fixture
def driver(smoke: SmokeSetup) -> Driver:
    """Tells calls what to do."""
    return Driver(smoke.app, smoke.ledger.client)


class Watch:
    """A running `celery bgtask watch`, and what it has written so far."""

    def __init__(
        self, smoke: SmokeSetup, *arguments: str, terminal: bool, path: str = ""
    ) -> None:
        self._master, out = pty.openpty() if terminal else os.pipe()
        self._errors, errors = (self._master, out) if terminal else os.pipe()
        command = [*(sys.executable, "-m", "celery", "-A", "tests.smoke.app")]
        self.process = subprocess.Popen(
            [*command, "bgtask", "watch", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "SMOKE_APP": str(smoke.app.main),
                "SMOKE_CONF": json.dumps({**smoke.conf, "imports": [MODULE]}),
                "COLUMNS": "100",
                "LINES": "24",
                "TERM": "xterm",
                "PYTHONPATH": path,
            },
            stdin=out if terminal else subprocess.DEVNULL,
            stdout=out,
            stderr=errors,
            start_new_session=True,
            preexec_fn=take_terminal if terminal else None,  # noqa: PLW1509
        )
        self.written = ""
        self.errors = ""
        os.close(out)
        self._readers = [threading.Thread(target=self._read, args=("written",))]
        if not terminal:
            os.close(errors)
            self._readers.append(threading.Thread(target=self._read, args=("errors",)))
        for reader in self._readers:
            reader.start()

    def shows(self, text: str) -> None:
        """Wait until *text* is to be seen."""
        wait_until(
            lambda: text in self.written,
            within=LONG,
            that=f"{text!r} is shown; {self.written!r} {self.errors!r} is",
        )

    def type(self, keys: bytes) -> None:
        """Type *keys* on the terminal."""
        os.write(self._master, keys)

    def end(self) -> int:
        """Wait for its end; return the exit code."""
        code = self.process.wait(LONG)
        for reader in self._readers:
            reader.join(LONG)
        return code

    @property
    def lines(self) -> list[list[str]]:
        """The words of each line."""
        return [line.split() for line in self.written.splitlines()]

    @property
    def events(self) -> list[dict[str, Any]]:
        """What each line of JSON says."""
        return [json.loads(line) for line in self.written.splitlines()]

    def _read(self, where: str) -> None:
        source = self._master if where == "written" else self._errors
        while True:
            try:
                chunk = os.read(source, 4096)
            except OSError:  # the terminal's other end is closed
                chunk = b""
            if not chunk:
                return
            setattr(self, where, getattr(self, where) + chunk.decode(errors="replace"))


def take_terminal() -> None:
    """Make stdin the terminal of the new session: Ctrl-C there is a signal then."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


@pytest.fixture
def watch(smoke: SmokeSetup) -> Iterator[Callable[..., Watch]]:
    """Start `celery bgtask watch` with some arguments."""
    started: list[Watch] = []

    def start(*arguments: Any, terminal: bool = False, path: Any = "") -> Watch:
        ids = [getattr(argument, "id", argument) for argument in arguments]
        started.append(Watch(smoke, *ids, terminal=terminal, path=str(path)))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.end()


def test_lines_tell_of_each_call_until_all_have_succeeded(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """One runs, one waits for its slot; both end well, and so does the command."""
    first, second = driver.submit(key), driver.submit(key)
    watched = watch(first, second)

    watched.shows(f"{second.id[:8]}  waiting")
    driver.report(first, current=1, total=4, description="reading")
    watched.shows(f"{first.id[:8]}  running      25 %  1/4  reading")
    driver.succeed(first)
    watched.shows(f"{first.id[:8]}  SUCCESS")
    watched.shows(f"{second.id[:8]}  running")
    driver.succeed(second)

    assert watched.end() == 0
    assert watched.lines[-1] == [second.id[:8], "SUCCESS"]
    assert watched.errors == ""


def test_a_call_that_fails_is_exit_code_1(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """The line says how far it was, and why it has ended."""
    result = driver.submit(key)
    watched = watch(result)
    driver.report(result, current=9, total=10, description="writing")
    watched.shows("90 %")
    driver.fail(result, "disk full")

    assert watched.end() == 1
    assert (
        watched.written.splitlines()[-1]
        == f"{result.id[:8]}  FAILURE      90 %  9/10  ValueError: disk full"
    )


def test_calls_that_have_ended_are_told_at_once(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """Who comes late hears the end, of calls that nobody limits as well."""
    limited, plain = driver.submit(key), driver.submit_plain()
    driver.report(limited, current=2, total=2)
    driver.succeed(limited)
    driver.succeed(plain)
    limited.get(LONG)
    plain.get(LONG)
    watched = watch(limited, plain, limited)

    assert watched.end() == 0
    ends = [line for line in watched.lines if "SUCCESS" in line]
    assert sorted(ends) == sorted(
        [[limited.id[:8], "SUCCESS", "100", "%", "2/2"], [plain.id[:8], "SUCCESS"]]
    )


def test_an_unknown_id_is_said_to_be_and_waited_for(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """It may be submitted later; then it is a call as any other."""
    task_id = str(uuid.uuid4())
    watched = watch(task_id)

    watched.shows(f"{task_id[:8]}  unknown")
    assert "nobody knows it yet" in watched.written
    result = driver.submit(key, task_id=task_id)
    driver.report(result, current=1, total=2)
    watched.shows("50 %")
    driver.succeed(result)

    assert watched.end() == 0


def test_a_timeout_names_what_has_not_ended(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """What did end is no part of it."""
    done, waits = driver.submit(key), str(uuid.uuid4())
    driver.succeed(done)
    done.get(LONG)
    watched = watch("--timeout", "0.5", done, waits)

    assert watched.end() == 1
    assert watched.errors == f"not ended after 0.5 s: {waits[:8]} (unknown)\n"


def test_json_has_a_line_for_each_event(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """Everything that an event has is in it, whole."""
    result = driver.submit(key)
    watched = watch("--json", result)
    watched.shows('"running"')
    for current in range(1, 4):
        driver.report(result, current=current, total=4, description="é\x1b", part="a")
    driver.fail(result, "no")

    assert watched.end() == 1
    reports = [event for event in watched.events if event["event"] == "progress"]
    assert [report["current"] for report in reports] == [1, 2, 3]
    assert reports[0].pop("timestamp") > 0
    assert reports[0] == {
        "event": "progress", "task_id": result.id, "attempt": 1, "seq": 1,
        "current": 1, "total": 4, "percent": 25.0, "description": "é\x1b",
        "data": {"part": "a"},
    }  # fmt: skip
    *_, end = watched.events
    assert (end["event"], end["state"], end["error"], end["succeeded"]) == (
        "ended",
        "FAILURE",
        "ValueError",
        False,
    )


def test_a_terminal_shows_bars_that_move(
    driver: Driver, watch: Callable[..., Watch], key: str
) -> None:
    """Bars are drawn anew in place; what a task says cannot act on the terminal."""
    first, second = driver.submit(key), driver.submit(key)
    watched = watch(first, second, terminal=True)

    watched.shows("waiting")
    driver.report(first, current=1, total=4, description="a [red]part\x1b[2J")
    watched.shows("a [red]part\\x1b[2J")
    driver.report(first, current=3, total=4, description="b")
    watched.shows("75 %")
    driver.succeed(first)
    driver.succeed(second)

    assert watched.end() == 0
    assert "\x1b[2J" not in watched.written
    assert "━" in watched.written
    assert watched.written.count("\x1b[?25l") == watched.written.count("\x1b[?25h") == 1


def test_a_terminal_without_rich_shows_lines(
    driver: Driver, watch: Callable[..., Watch], key: str, tmp_path: Path
) -> None:
    """It is an extra, and nothing fails without it."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None")
    result = driver.submit(key)
    watched = watch(result, terminal=True, path=tmp_path)
    driver.report(result, current=1, total=4, description="a")
    watched.shows(f"{result.id[:8]}  running      25 %  1/4  a")
    driver.succeed(result)

    assert watched.end() == 0
    assert "\x1b" not in watched.written


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_ctrl_c_ends_it_quietly(
    driver: Driver, watch: Callable[..., Watch], key: str, terminal: bool
) -> None:
    """Exit code 130, and the calls go on."""
    result = driver.submit(key)
    watched = watch(result, terminal=terminal)
    watched.shows("running")
    if terminal:
        watched.type(CTRL_C)
    else:
        watched.process.send_signal(signal.SIGINT)

    assert watched.end() == 130
    assert "Traceback" not in watched.written + watched.errors
    assert "Aborted" not in watched.written + watched.errors
    driver.succeed(result, "went on")
    assert result.get(LONG) == "went on"


@pytest.mark.timeout(120)
def test_it_goes_on_when_the_server_was_away(
    driver: Driver, watch: Callable[..., Watch], key: str, store: EmbeddedServer
) -> None:
    """What is reported meanwhile and afterwards is shown; nothing ends."""
    result = driver.submit(key)
    watched = watch(result)
    driver.report(result, current=1, total=4)
    watched.shows("25 %")
    store.stop()
    try:
        driver.report(result, current=2, total=4)
        wait_until(lambda: "not heard of" in watched.errors, within=LONG)
    finally:
        store.start()
    watched.shows("50 %")
    driver.succeed(result)

    assert watched.end() == 0
    assert watched.lines[-1][1] == "SUCCESS"
    assert "Traceback" not in watched.errors


def test_a_retry_is_seen(driver: Driver, watch: Callable[..., Watch], key: str) -> None:
    """The attempt is told beside what the task says."""
    result = driver.submit(key)
    watched = watch(result)
    driver.retry(result)
    driver.report(result, current=1, total=2, description="again")
    watched.shows("again (attempt 2)")
    driver.succeed(result)

    assert watched.end() == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "Missing argument 'ID...'"),
        (["--timeout", "soon", "x"], "Invalid value for '--timeout'"),
        (["--timeout", "-1", "x"], "Invalid value for '--timeout'"),
    ],
)
def test_bad_input_is_exit_code_2(
    watch: Callable[..., Watch], arguments: list[str], says: str
) -> None:
    """It is said what is wrong."""
    watched = watch(*arguments)

    assert watched.end() == 2
    assert says in watched.errors


def test_an_app_without_limited_tasks_is_exit_code_2(tmp_path: Path) -> None:
    """There is nothing to be heard of."""
    (tmp_path / "empty.py").write_text("from celery import Celery\napp = Celery('e')\n")
    shown = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "empty", "bgtask", "watch", "x"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )

    assert shown.returncode == 2
    assert "no limited tasks" in shown.stderr
