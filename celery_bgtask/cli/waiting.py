"""End or publish all that waits."""

from __future__ import annotations

import click

from .group import (
    OperatorCommand,
    agree,
    all_option,
    json_option,
    task_option,
    yes_option,
)
from .limits import several
from .listing import is_known, unknown_key
from .output import counted, echo, echo_json, word
from .targets import Target, the_one


__all__ = ["drain", "purge"]


@click.command(cls=OperatorCommand)
@click.argument("key")
@task_option
@yes_option
@json_option
@click.pass_context
def purge(
    ctx: click.Context, *, key: str, task: str | None, yes: bool, as_json: bool
) -> None:
    """End all tasks that wait for KEY.

    They are REVOKED and never run. What runs or is with the broker is left alone.
    """
    target = the_one(ctx, task)
    wanted = target.key(key)
    stats = target.control.stats(wanted)
    if not is_known(stats):
        raise click.UsageError(unknown_key(key, [(target, stats)]))
    if stats.waiting:
        tasks = counted(stats.waiting, "waiting task")
        agree(f"End {tasks} of key {word(key)} of {target} as REVOKED?", yes=yes)
    report(target, "purged", target.control.purge(wanted), as_json,
           f"of key {word(key)} of {target} ended as REVOKED")  # fmt: skip


@click.command(cls=OperatorCommand)
@task_option
@all_option
@yes_option
@json_option
@click.pass_context
def drain(
    ctx: click.Context, *, task: str | None, everything: bool, yes: bool, as_json: bool
) -> None:
    """Publish all tasks that wait, whatever the limits.

    For the time before workers that know no limits take over: clients first, then
    this, then workers.
    """
    targets = several(ctx, task, everything)
    names = ", ".join(map(str, targets))
    agree(f"Publish all that waits of {names}, beyond every limit?", yes=yes)
    for target in targets:
        report(target, "drained", target.control.drain(), as_json,
               f"of {target} published")  # fmt: skip


def report(target: Target, what: str, count: int, as_json: bool, rest: str) -> None:
    """Print how many tasks were dealt with."""
    if as_json:
        echo_json({"scope": target.scope, what: count})
    elif count:
        echo(f"{counted(count, 'waiting task')} {rest}")
    else:
        echo("nothing waits; nothing was changed")
