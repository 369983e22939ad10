"""Watch tasks until they have ended."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec

import click

from ..events import Ended, Progress
from ..results.result import BgResult
from ..results.watched import UNKNOWN, News, Watched
from ..results.watching import Watching
from .group import OperatorCommand, json_option
from .output import echo, echo_json
from .targets import all_targets


__all__ = ["watch"]

#: Seconds between two lines about the reports of one task.
LINE_INTERVAL = 1.0

#: The exit code of a program that Ctrl-C has ended.
INTERRUPTED = 130

Show = Callable[[Watched, News], None]


@click.command(cls=OperatorCommand)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS",
              help="Give up then, with exit code 1.")  # fmt: skip
@json_option
@click.pass_context
def watch(
    ctx: click.Context, *, task_ids: tuple[str, ...], timeout: float | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Watch tasks until they have ended.

    A bar for each with rich (pip install 'celery-bgtask[cli]') on a terminal, else
    lines. An ID that nobody knows yet is waited for. Exit code 0 if all have
    succeeded, 1 if one has not, 130 at Ctrl-C.
    """
    until = math.inf if timeout is None else time.monotonic() + timeout
    show_warnings()
    try:
        all_targets(ctx)
        app = ctx.obj.app
        watching = Watching(BgResult(one, app=app) for one in dict.fromkeys(task_ids))
        with presenter(ctx, watching, as_json) as show:
            for task, news in watching.news(until):
                show(task, news)
    except KeyboardInterrupt:
        ctx.exit(INTERRUPTED)
    left = [f"{task.name} ({task.state})" for task in watching.tasks if not task.ended]
    if left:
        click.echo(f"not ended after {timeout:g} s: {', '.join(left)}", err=True)
    ctx.exit(0 if all(task.is_success for task in watching.tasks) else 1)


def show_warnings() -> None:
    """Print what the listener warns of: the store is away."""
    # Celery's loggers have a handler that drops everything, until a worker sets up
    # others. The last resort finds the stderr that a live display has replaced.
    if logging.lastResort is not None:
        logging.getLogger("celery_bgtask").addHandler(logging.lastResort)


def presenter(
    ctx: click.Context, watching: Watching, as_json: bool
) -> AbstractContextManager[Show]:
    """Return what opens the place where news are shown, and shows them there."""
    if as_json:
        return nullcontext(show_json)
    if sys.stdout.isatty() and find_spec("rich"):
        return live_bars(watching, no_color=bool(getattr(ctx.obj, "no_color", False)))
    return nullcontext(Lines().show)


@contextmanager
def live_bars(watching: Watching, *, no_color: bool) -> Iterator[Show]:
    """Keep a place on the terminal, and draw the bars there."""
    # Not before it is needed: every `celery` command imports this package.
    from rich.console import Console  # noqa: PLC0415
    from rich.live import Live  # noqa: PLC0415

    from ..results.bars import Bars  # noqa: PLC0415

    console = Console(no_color=no_color or None, highlight=False)
    if console.is_dumb_terminal:
        yield Lines().show
        return
    with Live(Bars(watching.tasks), console=console, refresh_per_second=10):
        yield lambda _task, _news: None  # it is drawn at its own pace


class Lines:
    """A line when a task moves, reports or ends: of reports, at most one a second."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def show(self, task: Watched, news: News) -> None:
        """Print the news, if they are worth a line."""
        if task.phase == "ended" and not task.ended:
            return  # how, is told in a moment
        if isinstance(news, Progress):
            now = time.monotonic()
            if now < self._next.get(news.task_id, 0.0):
                return
            self._next[news.task_id] = now + LINE_INTERVAL
        hint = ": nobody knows it yet" if task.state == UNKNOWN else ""
        echo(f"{task}{hint}")


def show_json(task: Watched, news: News) -> None:
    """Print news as one line of JSON."""
    more: dict[str, object] = {"event": type(news).__name__.lower()}
    if isinstance(news, Progress):
        more["percent"] = news.percent
    elif isinstance(news, Ended):
        more["succeeded"] = task.is_success
    echo_json(news, **more)
