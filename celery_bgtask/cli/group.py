"""The group of all commands, and what each of them has in common."""

from __future__ import annotations

import sys
from typing import Any

import click
from celery.bin.base import CeleryCommand, handle_preload_options
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ..exceptions import BgTaskError, ImproperlyConfigured
from .output import one_line


__all__ = [
    "OperatorCommand", "agree", "all_option", "bgtask", "json_option", "task_option",
    "yes_option",
]  # fmt: skip

#: What an operator can do something about; all else is a defect and shows where.
EXPECTED = (
    BgTaskError,
    ImproperlyConfigured,
    OperationalError,
    BackendError,
    RedisError,
    ConnectionError,
)


class OperatorCommand(CeleryCommand):
    """A command whose failures are sentences, with exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # `| head` has seen enough, and click knows that
            raise
        except EXPECTED as exc:
            raise click.ClickException(in_words(exc)) from exc


class OperatorGroup(click.Group):
    """The commands in the order in which one needs them, not in that of letters."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names as they were declared."""
        del ctx
        return list(self.commands)


@click.group(name="bgtask", cls=OperatorGroup)
@click.pass_context
@handle_preload_options
def bgtask(_ctx: click.Context, **_preload: Any) -> None:
    r"""See and steer limited tasks: their keys, limits, blocks and slots.

    KEY is a task key as text ('' for a task without keys), ID the id of a task.
    Where the app has several limited tasks, --task says which one is meant; an id
    is looked for in all of them.

    \b
    Exit codes of all commands:
      0  done
      1  not done: the store or broker is away, it was not agreed to, it cannot
         be done any more; or `check` has found something
      2  wrong input: nothing was changed
    """


task_option = click.option(
    "--task",
    metavar="NAME",
    help="The task, its scope, or the end of the name; all if left out where a "
    "command only shows something.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON, one object a line."
)

yes_option = click.option("--yes", is_flag=True, help="Do not ask.")

all_option = click.option(
    "--all", "everything", is_flag=True, help="All limited tasks of the app."
)


def agree(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone.

    Raises:
        click.UsageError: If nobody is there to be asked.
        click.Abort: If the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(
            f"{question}\nThere is no terminal to answer on: say --yes. "
            "Nothing was changed."
        )
    click.confirm(question, abort=True, err=True)


def in_words(exc: BaseException) -> str:
    """Return what went wrong, in one line."""
    if isinstance(exc, (BgTaskError, ImproperlyConfigured)):
        return one_line(str(exc))
    where = (
        "broker" if isinstance(exc, OperationalError) else "broker or result backend"
    )
    return one_line(f"the {where} does not answer: {type(exc).__name__}: {exc}")
