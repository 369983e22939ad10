"""Progress bars of tasks, drawn by rich: `pip install 'celery-bgtask[cli]'`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from celery import states
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .watched import UNKNOWN, Watched


__all__ = ["Bars"]

#: Characters of a bar.
WIDTH = 20

#: Colours of the states; all other ends are red.
STYLES = {
    "": "dim",
    UNKNOWN: "yellow",
    "waiting": "yellow",
    "dispatched": "cyan",
    "offered": "cyan",
    "running": "green",
    "ended": "dim",
    states.SUCCESS: "bold green",
}


class Bars:
    """A row for each task, as it is at the moment of drawing.

    Anything of rich can show it: ``Live(Bars(watching.tasks))``. If the terminal is
    too low for all while some go on, those that run are shown and the others
    counted.

    Args:
        tasks: What to show, in this order.
    """

    def __init__(self, tasks: Iterable[Watched]) -> None:
        self._tasks = tuple(tasks)

    def __rich_console__(
        self, console: Console, options: ConsoleOptions
    ) -> RenderResult:
        room = options.height or console.height - 1
        shown = chosen(self._tasks, room)
        table = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True)
        table.add_column()  # the one that gives way where the terminal is narrow
        for task in shown:
            # As texts: a description with [brackets] is no markup.
            table.add_row(
                Text(task.name),
                Text(task.state, STYLES.get(task.state, "bold red")),
                bar(task),
                Text(task.percent),
                Text(task.counts),
                Text(task.about, no_wrap=True, overflow="ellipsis"),
            )
        yield table
        if len(shown) < len(self._tasks):
            over = sum(task.ended is not None for task in self._tasks)
            hidden = len(self._tasks) - len(shown)
            yield Text(f"and {hidden} more; {over} of all have ended", "dim")


def chosen(tasks: Sequence[Watched], room: int) -> Sequence[Watched]:
    """Return those of *tasks* that fit: the running ones, then as they come."""
    if len(tasks) <= room or all(task.ended for task in tasks):
        return tasks
    ranks = {"running": 0, "dispatched": 1, "waiting": 2}
    ranked = sorted(tasks, key=lambda task: ranks.get(task.state, 3))
    kept = set(map(id, ranked[: max(1, room - 1)]))
    return [task for task in tasks if id(task) in kept]


def bar(task: Watched) -> ProgressBar:
    """Return the bar of *task*; it pulses while nobody knows how far it is."""
    style = STYLES.get(task.state, "red")
    report = task.progress
    total = report.total if report else None
    if report and total and total > 0:
        done = max(0.0, report.current or 0)
    elif task.state == "running":
        return ProgressBar(total=None, width=WIDTH, pulse=True)
    else:
        total, done = 1.0, float(task.is_success)
    return ProgressBar(
        total, min(done, total), width=WIDTH, complete_style=style, finished_style=style
    )
