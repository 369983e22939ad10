"""The live table of `top`, drawn by rich; nothing else needs that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .tables import COLORS, STATE_AT, Picture, cells, columns
from .targets import Target


__all__ = ["live_table"]


@contextlib.contextmanager
def live_table(
    targets: list[Target], *, no_color: bool
) -> Iterator[Callable[[Picture], None]]:
    """Keep a place on the terminal, and draw each picture over the last."""
    console = Console(no_color=no_color or None, highlight=False)
    with Live(console=console, auto_refresh=False) as live:
        yield lambda picture: live.update(drawn(picture, targets), refresh=True)


def drawn(picture: Picture, targets: list[Target]) -> Group:
    """Return a picture as rich draws it."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title, width in columns(targets):
        table.add_column(
            title,
            justify="right" if width > 0 else "left",
            min_width=abs(width),
            no_wrap=title != "KEY",
            overflow="fold",
        )
    for row in picture.rows:
        texts = cells(row, targets, picture.at)
        # As texts: a key with [brackets] is no markup.
        table.add_row(*map(Text, texts), style=COLORS.get(texts[STATE_AT], ""))
    return Group(Text(str(picture)), table)
