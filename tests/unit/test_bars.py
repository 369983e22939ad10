"""What is shown of a task in a terminal: as a line, and as a bar."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from celery_bgtask.events import Ended, Progress
from celery_bgtask.results.bars import Bars
from celery_bgtask.results.watched import Watched, name_of


def task(phase: str = "running", name: str = "task", **report: Any) -> Watched:
    """A task that has reported, if *report* says what."""
    if not report:
        return Watched("id", name, phase)
    facts = {"current": None, "total": None, "description": "", "attempt": 1, **report}
    return Watched("id", name, phase, Progress(task_id="id", seq=1, **facts))


def ended(watched: Watched, state: str, error: str = "", text: str = "") -> Watched:
    """The same task when it has ended."""
    watched.ended = Ended("id", 1, 9, state, error, text)
    return watched


def drawn(*tasks: Watched, width: int = 80, height: int = 25) -> list[str]:
    """What rich draws of *tasks*, line by line."""
    console = Console(file=io.StringIO(), width=width, height=height)
    with console.capture() as capture:
        console.print(Bars(tasks))
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize(
    ("watched", "line"),
    [
        (task("waiting"), "task      waiting"),
        (task(current=0, total=3), "task      running       0 %  0/3"),
        (task(current=2999, total=3000), "task      running      99 %  2999/3000"),
        (task(current=2.5, total=5), "task      running      50 %  2.5/5"),
        (task(current=7), "task      running            7"),
        (task(current=1e300), "task      running            1e+300"),
        (task(current=1, total=-2), "task      running     -50 %  1/-2"),
        (task(description="a\nb\x1b[m"), r"task      running              a\nb\x1b[m"),
        (task(description="\ud800"), r"task      running              \ud800"),
        (task(attempt=2), "task      running              (attempt 2)"),
        (ended(task(current=1), "SUCCESS"), "task      SUCCESS            1"),
        (
            ended(task(description="x"), "FAILURE", "OSError", "no\nroom"),
            r"task      FAILURE              OSError: no\nroom",
        ),
    ],
)  # fmt: skip
def test_a_task_is_one_line(watched: Watched, line: str) -> None:
    """State, share, counts and words, whatever the task has reported."""
    assert str(watched) == line


def test_a_uuid_is_called_by_its_start() -> None:
    """An id of one's own is a name, and stays whole."""
    assert name_of("3f2a9c1b-1111-2222-3333-444444444444") == "3f2a9c1b"
    assert name_of("export-of-customer-42") == "export-of-customer-42"
    assert name_of("a\x1b[2J") == r"a\x1b[2J"


def test_a_bar_is_as_long_as_the_work_that_is_done() -> None:
    """Half of the work is half of the bar; the end is all of it."""
    half, done = drawn(
        task(current=1, total=2), ended(task(current=2, total=2), "SUCCESS")
    )

    assert half.count("━") == 10
    assert done.count("━") == 20


@pytest.mark.parametrize("current", [-5, 99])
def test_a_bar_never_leaves_its_place(current: int) -> None:
    """Whatever is reported, the row has the width of a row."""
    [row] = drawn(task(current=current, total=10))

    assert row.count("━") in (0, 20)
    assert f"{current}/10" in row


@pytest.mark.parametrize("width", [20, 40, 60, 80])
def test_a_row_is_one_line_however_narrow_the_terminal(width: int) -> None:
    """What does not fit is left out, the words of the task first."""
    rows = drawn(task(current=1, total=2, description="word " * 50), width=width)

    assert len(rows) == 1
    assert len(rows[0]) <= width


def test_what_a_task_says_is_no_markup() -> None:
    """Brackets are brackets."""
    [row] = drawn(task(description="[bold]x[/]", name="[b]"))

    assert row.startswith("[b]")
    assert row.endswith("[bold]x[/]")


def test_a_low_terminal_shows_what_runs() -> None:
    """The rest is counted, until all have ended: then each is shown."""
    over = [ended(task(name=f"over{n}"), "SUCCESS") for n in range(10)]
    runs = [task(name="first"), task("waiting"), task(name="second")]

    *rows, rest = drawn(*over, *runs, height=4)
    assert [row.split()[0] for row in rows] == ["first", "second"]
    assert rest == "and 11 more; 10 of all have ended"
    assert len(drawn(*over, height=4)) == 10
