"""The figures as a table of at most 80 columns, and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from .row import Figure, Row


__all__ = ["as_json", "as_markdown", "as_table", "machine", "put_into"]

#: Between these lines of a page stands the table.
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"

#: What is installed and shapes the figures.
PACKAGES = ("celery", "kombu", "redis", "hiredis", "celery-bgtask")


def machine(server: str) -> dict[str, Any]:
    """Return what the figures were measured on; *server* is its name and version."""
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "server": server,
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": [round(load, 2) for load in os.getloadavg()],
    }


def processor() -> str:
    """Return the name of the processor, as the system has it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def as_table(figures: Iterable[Figure]) -> Table:
    """Return the table of *figures*."""
    table = Table(box=None, pad_edge=False, header_style="bold", width=80)
    table.add_column("what, beside what", ratio=1)
    for name in ("aim", "median", "min..max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", width=3)
    for figure in figures:
        table.add_row(*cells(figure))
    return table


def cells(figure: Figure) -> tuple[str, ...]:
    """Return the texts of a line."""
    row, values = figure.row, figure.values
    what = row.what + (f" [dim]: {row.beside}[/]" if row.beside else "")
    aim = aim_of(row)
    if figure.error or not values:
        text = figure.error.replace("[", r"\[")
        return f"{what} [red]{text}[/]", aim, "", "", "[red]err[/]"
    spread = f"{number(min(values), '')}..{number(max(values), '')}"
    mark = {None: "", True: "[green]ok[/]", False: "[red]no[/]"}[figure.is_met]
    return (
        what,
        aim,
        number(figure.median, row.unit),
        spread if len(values) > 1 else "",
        mark,
    )


def as_markdown(figures: Iterable[Figure], about: Mapping[str, Any]) -> str:
    """Return the table as a page has it, and what it was measured on."""
    lines = ["| what | beside | aim | median | min .. max |", "|---|---|---|---|---|"]
    for figure in figures:
        row, values = figure.row, figure.values
        if figure.error or not values:
            continue
        spread = f"{number(min(values), '')} .. {number(max(values), '')}"
        aim = aim_of(row)
        median = number(figure.median, row.unit)
        cells = (
            row.what,
            row.beside,
            aim,
            f"**{median}**" if figure.is_met else median,
            spread if len(values) > 1 else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    packages = ", ".join(f"{name} {known}" for name, known in about["packages"].items())
    measured_on = (
        f"{about['server']}, Python {about['python']}, {packages}; "
        f"{about['processor']}, {about['cores']} cores, load {about['load'][0]} at the "
        "begin. **Bold**: the aim is reached."
    )
    lines += ["", measured_on]
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    """Put a table between the two lines of *page* that are for it."""
    old = page.read_text(encoding="utf-8")
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"
    page.write_text(new, encoding="utf-8")


def aim_of(row: Row) -> str:
    """Return the text of an aim, "" for none."""
    if row.aim is None:
        return ""
    sign = "≤" if row.aim.sense == "at most" else "≥"
    return f"{sign} {number(row.aim.limit, row.unit)}"


def number(value: float, unit: str) -> str:
    """Return a number as it is read: two decimals for a ratio, none for a count."""
    digits = 2 if abs(value) < 10 and value != int(value) else 0  # noqa: PLR2004
    if unit == "x":
        digits = 2
    return f"{value:.{digits}f} {unit}".rstrip()


def as_json(
    figures: Iterable[Figure], about: Mapping[str, Any], notes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return all that was measured, and on what."""
    return {
        "machine": dict(about),
        "rows": {
            figure.row.name: {
                "what": figure.row.what,
                "beside": figure.row.beside,
                "unit": figure.row.unit,
                "aim": figure.row.aim and [figure.row.aim.sense, figure.row.aim.limit],
                "median": figure.median if figure.values else None,
                "values": list(figure.values),
                "reached": figure.is_met,
                "error": figure.error,
            }
            for figure in figures
        },
        "notes": dict(notes),
    }
