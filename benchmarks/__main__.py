"""Measure what limiting costs, beside plain Celery, in one run; print a table.

    python -m benchmarks
    python -m benchmarks --short --json figures.json
    python -m benchmarks --only throughput latency

Each round measures both sides, one right after the other; a line has the median of
its rounds, the least and the greatest. ``REDIS_URL`` names a server for the workers,
to be used instead of an embedded one.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from .row import Figure, Row
from .rows import ROWS
from .table import as_json, as_markdown, as_table, machine, put_into
from .world import World


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 if all rows were measured."""
    options = parsed(arguments)
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    console, shown = Console(), Console(stderr=True)
    began = time.monotonic()
    with World(short=options.short) as world:
        about = machine(world.version)
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=shown,
            transient=True,
        ) as bars:
            figures = [measured(row, world, bars) for row in rows]
        notes = {**world.notes, "seconds": round(time.monotonic() - began)}
    console.print(as_table(figures))
    packages = ", ".join(f"{k} {v}" for k, v in about["packages"].items())
    console.print(
        f"\n{about['server']}, Python {about['python']}, {packages}\n"
        f"{about['processor']}, {about['cores']} cores, "
        f"load {about['load'][0]} at the begin; {notes['seconds']} s",
        style="dim",
        highlight=False,
    )
    if options.page:
        put_into(options.page, as_markdown(figures, about))
    if options.json:
        text = json.dumps(as_json(figures, about, notes), indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")
    return 1 if any(figure.error for figure in figures) else 0


def parsed(arguments: Sequence[str] | None) -> Any:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--short", action="store_true", help="in one or two minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all values")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table there")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=[row.name for row in ROWS]
    )
    return parser.parse_args(arguments)


def measured(row: Row, world: World, bars: Progress) -> Figure:
    """Measure one row; one that fails says so and spoils no other."""
    rounds = row.rounds[1 if world.short else 0]
    bar = bars.add_task(row.name, total=rounds)
    values: list[float] = []
    try:
        for value in row.measure(world, rounds):
            values.append(value)
            bars.advance(bar)
    except Exception as exc:  # noqa: BLE001 - whatever it is, the other rows count
        return Figure(row, values, error=f"{type(exc).__name__}: {exc}")
    finally:
        bars.remove_task(bar)
    return Figure(row, values)


if __name__ == "__main__":
    raise SystemExit(main())
