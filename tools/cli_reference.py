"""Write what `celery bgtask --help` says into docs/reference/cli.md.

.venv/bin/python tools/cli_reference.py            # print the page
.venv/bin/python tools/cli_reference.py --write    # write it
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from celery_bgtask.cli import bgtask


PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"
#: What is said of all commands, above.
COMMON = {"task", "as_json", "yes", "everything"}

BEGIN, END = "<!-- begin commands -->\n", "<!-- end commands -->\n"


def section(name: str, command: click.Command) -> Iterator[str]:
    """Yield what there is to say of a command."""
    options = [p for p in command.params if isinstance(p, click.Option)]
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    usage = [argument.metavar or str(argument.name).upper() for argument in arguments]
    usage += [f"[{spelled(option)}]" for option in options]
    yield f"### {name}\n\n    $ celery -A proj bgtask {' '.join([name, *usage])}\n\n"
    yield f"{inspect.cleandoc(command.help or '')}\n\n"
    own = [option for option in options if option.name not in COMMON]
    if own:
        yield "| option | |\n|---|---|\n"
    for option in own:
        default = "" if option.default is None or option.is_flag else option.default
        default = f" Default: {default}." if option.show_default else ""
        yield f"| `{spelled(option)}` | {option.help}{default} |\n"
    yield "\n" if own else ""


def spelled(option: click.Option) -> str:
    """Return an option as one types it."""
    if option.is_flag:
        return option.opts[0]
    choices = getattr(option.type, "choices", ())
    return f"{option.opts[0]} {'/'.join(choices) or option.metavar or 'TEXT'}"


def with_commands(page: str) -> str:
    """Return *page* with the commands as they are now."""
    head, _, rest = page.partition(BEGIN)
    tail = rest.partition(END)[2]
    sections = (section(name, command) for name, command in bgtask.commands.items())
    commands = "".join(line for lines in sections for line in lines)
    return f"{head}{BEGIN}\n{commands}{END}{tail}"


def main() -> None:
    """Print or write the page."""
    page = with_commands(PAGE.read_text(encoding="utf-8"))
    if "--write" in sys.argv:
        PAGE.write_text(page, encoding="utf-8")
    else:
        sys.stdout.write(page)


if __name__ == "__main__":
    main()
