"""Shows the keys as they move: a live table in a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from celery_bgtask.results.bars import Bars

from .work import Lane, Work


LEGEND = Text.assemble(
    *(("●", "green"), "  runs   ", ("◐", "cyan"), "  is sent to the worker   "),
    *(("○", "dim"), "  is free"),
    style="dim",
)


class Display(Protocol):
    """Something to look at while the work is done."""

    def show(self, work: Work) -> None:
        """Show how things stand."""

    def note(self, text: str) -> None:
        """Tell of something that happened once."""

    def close(self) -> None:
        """Leave the last state to be read."""


def display_for(console: Console) -> Display:
    """The display that suits where *console* writes to."""
    is_live = sys.stdout.isatty() and not console.is_dumb_terminal
    return LiveTable(console) if is_live else Lines(console)


class Lines:
    """A line when a key has moved on by a quarter, and for each note."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()
        self._quarters: dict[str, int] = {}

    def show(self, work: Work) -> None:
        """Print the keys that have moved on."""
        for lane in work.lanes:
            quarter = 4 * lane.done // len(lane.results)
            if self._quarters.get(lane.name) != quarter:
                self._quarters[lane.name] = quarter
                self._print(
                    f"{lane.name:<18} {lane.stats.running} running  "
                    f"{lane.stats.waiting:>2} waiting  "
                    f"{lane.done:>2} of {len(lane.results)} done{shares(work, lane)}"
                )

    def note(self, text: str) -> None:
        """Print what happened."""
        self._print(text)

    def close(self) -> None:
        """Nothing is left to do."""

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        self._console.print(
            f"{seconds:5.1f} s  {text}", markup=False, highlight=False, soft_wrap=True
        )


def shares(work: Work, lane: Lane) -> str:
    """How far the exports of one key are that run."""
    known = [task.percent for task in work.exporting if task.name == lane.name]
    return f"  ({', '.join(known)})" if known else ""


class LiveTable:
    """A table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._started = time.monotonic()
        self._notes: list[str] = []
        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, work: Work) -> None:
        """Draw every key anew."""
        seconds = time.monotonic() - self._started
        self._live.update(draw(work, self._notes, seconds), refresh=True)

    def note(self, text: str) -> None:
        """Add a line below the table."""
        self._notes.append(text)

    def close(self) -> None:
        """Give the terminal back."""
        self._live.stop()


def draw(work: Work, notes: list[str], seconds: float) -> RenderableType:
    """Everything that is to be seen at one moment; fits 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column(f"{seconds:4.1f} s", width=20)
    table.add_column("running", width=8)
    table.add_column("waiting", justify="right")
    table.add_column("most at once", justify="right")
    table.add_column("done", width=16)
    table.add_column("", justify="right")
    table.add_row("[bold]Exports[/] per customer")
    for lane in work.exports.values():
        table.add_row(*cells(lane))
    table.add_row()
    table.add_row("[bold]Mails[/] per domain")
    for lane in work.mails.values():
        table.add_row(*cells(lane))
    bars = Bars(work.exporting)
    return Group("", table, "", LEGEND, "", *map(Text, notes), "", bars)


def cells(lane: Lane) -> list[RenderableType]:
    """The row of one key."""
    total = len(lane.results)
    return [
        f"  {lane.name}",
        slots(lane),
        Text(str(lane.stats.waiting or ""), style="yellow"),
        f"{lane.most} of {lane.limit}",
        ProgressBar(
            total, lane.done, width=16, complete_style="green", finished_style="green"
        ),
        f"{lane.done}/{total}",
    ]


def slots(lane: Lane) -> Text:
    """A circle for each slot."""
    stats = lane.stats
    free = lane.limit - stats.running - stats.dispatched
    return Text.assemble(
        ("●" * stats.running, "green"),
        ("◐" * stats.dispatched, "cyan"),
        ("○" * free, "dim"),
    )
