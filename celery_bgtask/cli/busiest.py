"""Watch the busiest keys: a live table, or one after the other in plain lines."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec

import click

from .group import OperatorCommand, json_option, task_option
from .listing import facts_of
from .output import echo, echo_json
from .tables import ORDERS, Picture, lines, take
from .targets import Target, chosen


__all__ = ["top"]

#: Lines that are no rows: the summary, the titles, two around them.
FRAME = 4

#: Rows where no terminal says how high it is.
PLAIN_ROWS = 20


@click.command(cls=OperatorCommand)
@task_option
@click.option("--every", type=click.FloatRange(min=0.1), default=1.0, show_default=True,
              metavar="SECONDS", help="The time between two pictures.")  # fmt: skip
@click.option("--count", type=click.IntRange(min=1), metavar="N",
              help="Stop after N pictures; else at Ctrl-C.")  # fmt: skip
@click.option("--sort", type=click.Choice(list(ORDERS)), default="waiting",
              show_default=True, help="The keys that come first.")  # fmt: skip
@click.option("--limit", "height", type=click.IntRange(min=1), metavar="N",
              help="Keys to show; else what fits the terminal, or 20.")  # fmt: skip
@json_option
@click.pass_context
def top(
    ctx: click.Context, *, task: str | None, every: float, count: int | None, sort: str,
    height: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Watch the busiest keys.

    A live table with rich (pip install 'celery-bgtask[cli]') on a terminal, else
    one table after the other. At most 10,000 keys are read for each.
    """
    targets = chosen(ctx, task)
    high = shutil.get_terminal_size(fallback=(80, PLAIN_ROWS + FRAME)).lines - FRAME
    with (
        contextlib.suppress(KeyboardInterrupt),
        presenter(ctx, targets, as_json) as show,
    ):
        for number in itertools.count(1):
            show(take(targets, sort, height or max(1, high)))
            if number == count:
                break
            time.sleep(every)


def presenter(
    ctx: click.Context, targets: list[Target], as_json: bool
) -> AbstractContextManager[Callable[[Picture], None]]:
    """Return what opens the place where pictures are shown, and shows them there."""
    if as_json:
        return contextlib.nullcontext(show_json)
    if sys.stdout.isatty() and find_spec("rich"):
        # Not before it is needed: every `celery` command imports this package.
        from .live import live_table  # noqa: PLC0415

        return live_table(targets, no_color=bool(getattr(ctx.obj, "no_color", False)))
    return contextlib.nullcontext(lambda picture: echo(as_text(picture, targets)))


def show_json(picture: Picture) -> None:
    """Print a picture as one line of JSON."""
    keys = [{**dataclasses.asdict(stats), **facts_of(target, stats)}
            for target, stats in picture.rows]  # fmt: skip
    counts = vars(picture.totals)
    echo_json({"at": picture.at, **counts, "complete": picture.is_all, "busiest": keys})


def as_text(picture: Picture, targets: list[Target]) -> Iterator[str]:
    """Yield a picture as lines."""
    yield str(picture)
    yield from lines(picture.rows, targets)
    yield ""
