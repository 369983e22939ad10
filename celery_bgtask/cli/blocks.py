"""Refuse keys that misbehave."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator

import click

from ..control.views import Block
from .group import OperatorCommand, json_option, task_option
from .listing import is_known, unknown_key
from .output import ago, echo, echo_json, one_line, span, table, word
from .tables import task_column
from .targets import Target, chosen, the_one


__all__ = ["block", "blocked", "unblock"]


#: Seconds of each unit.
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def seconds_of(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> float | None:
    """Return the seconds of a time: ``90``, ``90s``, ``15m``, ``2h``, ``1d``.

    Raises:
        click.BadParameter: If it is none, or not above 0.
    """
    if value is None:
        return None
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([smhd]?)", value, re.ASCII)
    seconds = float(match[1]) * UNITS[match[2]] if match else 0.0
    if seconds > 0:
        return seconds
    raise click.BadParameter(
        f"{word(value)} is no time: say 90s, 15m, 2h or 1d. Nothing was changed.",
        ctx,
        param,
    )


@click.command(cls=OperatorCommand)
@click.argument("key")
@task_option
@click.option("--reason", default="", help="Why; callers are told, in KeyBlocked.")
@click.option("--for", "seconds", callback=seconds_of, metavar="TIME",
              help="90s, 15m, 2h, 1d; else until it is unblocked.")  # fmt: skip
@json_option
@click.pass_context
def block(
    ctx: click.Context, *, key: str, task: str | None, reason: str,
    seconds: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Refuse KEY: delay() raises KeyBlocked.

    What runs goes on, what waits stays where it is and goes on when the block
    ends. A key that is blocked gets the new reason and time.
    """
    target = the_one(ctx, task)
    wanted = target.key(key)
    changed = target.control.block(wanted, reason, seconds)
    stats = target.control.stats(wanted)
    if as_json:
        echo_json({
            "scope": target.scope, "key": stats.key, "blocked": stats.blocked,
            "reason": stats.blocked_reason, "until": stats.blocked_until,
            "changed": changed,
        })  # fmt: skip
        return
    how_long = f"for {span(seconds)}" if seconds else "until somebody unblocks it"
    echo(f"key {word(stats.key)} of {target}{target.others} is blocked {how_long}.")
    if not changed:
        echo("It was blocked already: this is its new time and reason.")
    echo(f"What runs ({stats.running}) goes on, what waits ({stats.waiting}) stays.")
    echo(f"To end it: `{target.command('unblock', stats.key)}`")


@click.command(cls=OperatorCommand)
@click.argument("key")
@task_option
@json_option
@click.pass_context
def unblock(ctx: click.Context, *, key: str, task: str | None, as_json: bool) -> None:
    """End the block of KEY: what waits goes on."""
    target = the_one(ctx, task)
    wanted = target.key(key)
    before = target.control.stats(wanted)
    if not is_known(before):
        raise click.UsageError(unknown_key(key, [(target, before)]))
    was = target.control.unblock(wanted)
    if as_json:
        echo_json({"scope": target.scope, "key": before.key, "was_blocked": was})
    elif was:
        echo(f"key {word(before.key)} of {target} is not blocked any more.")
    else:
        echo(f"key {word(before.key)} of {target} was not blocked.")


@click.command(cls=OperatorCommand)
@task_option
@json_option
@click.pass_context
def blocked(ctx: click.Context, *, task: str | None, as_json: bool) -> None:
    """List the keys that are blocked.

    LEFT: until the block ends by itself, - if it does not. SINCE: how long ago
    it began.
    """
    targets = chosen(ctx, task)
    found = ((t, block) for t in targets for block in t.control.blocked())
    if as_json:
        for target, one in found:
            echo_json(one, scope=target.scope)
        return
    columns = [("LEFT", 6), ("SINCE", 6), *task_column(targets), ("KEY", -16)]
    echo(table([*columns, ("REASON", 0)], rows(found, targets), "No key is blocked."))


def rows(
    found: Iterable[tuple[Target, Block]], targets: list[Target]
) -> Iterator[list[str]]:
    """Yield blocks as rows of a table."""
    now = time.time()
    for target, one in found:
        yield [
            "-" if one.remaining is None else span(one.remaining),
            ago(one.since, now),
            *([word(target.title)] if len(targets) > 1 else []),
            word(one.key),
            one_line(one.reason) or "-",
        ]
