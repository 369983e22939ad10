"""Texts, times and tables as a terminal shows them, and JSON as programs read it.

What users have named (keys, reasons, tasks) never reaches a terminal as it is: a
control character could move the cursor, colour what follows, or forge a line.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click


__all__ = [
    "ago", "counted", "echo", "echo_json", "fact", "moment", "one_line", "span",
    "table", "word",
]  # fmt: skip

#: What a shell takes as it stands, beside letters and digits of any language.
BARE = frozenset("_@%+:,./-")

#: Where the values of a list of facts begin.
INDENT = 17

_SHORT = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\x1b": r"\x1b"}


def word(text: str) -> str:
    r"""Return *text* as one would type it in a shell: nothing hidden, to be pasted.

    ``42`` stays, ``a b`` becomes ``'a b'``, an escape ``$'\x1b'``; the empty text
    is ``''``.
    """
    if text and all(char in BARE or char.isalnum() for char in text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\\''") + "'"
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + _escaped(escaped) + "'"


def one_line(text: str) -> str:
    """Return *text* without anything that a terminal would act upon."""
    return text if text.isprintable() else _escaped(text)


def _escaped(text: str) -> str:
    return "".join(
        char if char.isprintable() else _SHORT.get(char) or _code(char) for char in text
    )


def _code(char: str) -> str:
    code = ord(char)
    if code < 0x80:  # noqa: PLR2004 - a byte of its own, in UTF-8 as well
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"  # noqa: PLR2004


def span(seconds: float) -> str:
    """Return a time in at most six characters: ``41s``, ``2h03m``, ``12d``."""
    left = max(0, int(seconds))
    if left < 60:  # noqa: PLR2004
        return f"{left}s"
    minutes, hours, days = left // 60, left // 3600, left // 86400
    if not hours:
        return f"{minutes}m{left % 60:02d}s"
    if not days:
        return f"{hours}h{minutes % 60:02d}m"
    return f"{days}d{hours % 24:02d}h" if days < 100 else f"{days}d"  # noqa: PLR2004


def ago(epoch: float | None, now: float | None = None) -> str:
    """Return how long ago *epoch* was, ``-`` if there is none."""
    if epoch is None:
        return "-"
    return span((time.time() if now is None else now) - epoch)


def moment(epoch: float, now: float | None = None) -> str:
    """Return *epoch* as this machine's clock shows it, and how far it is away."""
    left = epoch - (time.time() if now is None else now)
    local = time.strftime("%Y-%m-%d %H:%M:%S%z", time.localtime(epoch))
    return f"{local}, " + (f"in {span(left)}" if left > 0 else f"{span(-left)} ago")


def fact(name: str, value: str) -> str:
    """Return a line of a list of facts."""
    return f"  {name:<{INDENT - 2}}{value}"


def table(
    columns: Sequence[tuple[str, int]], rows: Iterable[Sequence[str]], empty: str
) -> Iterator[str]:
    """Yield the lines of a table as its rows come, or the sentence *empty*.

    Args:
        columns: Titles and widths: to the left if below 0, the last as it comes.
        rows: Their cells; may have colours.
        empty: What is said if there are none.
    """
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        yield empty
        return
    for row in itertools.chain([[title for title, _ in columns], first], rows):
        yield "  ".join(
            placed(cell, width) for cell, (_, width) in zip(row, columns, strict=True)
        )


def placed(cell: str, width: int) -> str:
    """Return *cell* with the blanks that it lacks to its width."""
    blanks = " " * (abs(width) - len(click.unstyle(cell)))
    return cell + blanks if width < 0 else blanks + cell


def echo(lines: str | Iterable[str]) -> None:
    """Print *lines* as they come; without colours if Celery was told so."""
    context = click.get_current_context()
    color = False if getattr(context.obj, "no_color", False) else None
    for line in [lines] if isinstance(lines, str) else lines:
        click.echo(line, color=color)


def echo_json(value: Any, **more: Any) -> None:
    """Print a dict or dataclass, and *more* facts, as one line of JSON."""
    facts = value if isinstance(value, dict) else dataclasses.asdict(value)
    click.echo(json.dumps(_plain({**more, **facts})))


def _plain(value: Any) -> Any:
    """Return *value* without what JSON has no word for: an endless time is null."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def counted(count: int, noun: str) -> str:
    """Return a number of things."""
    return f"{count} {noun}{'s' * (count != 1)}"
