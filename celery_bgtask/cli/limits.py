"""Move limits while everything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

from ..control.views import KeyStats
from .group import OperatorCommand, all_option, json_option, task_option
from .listing import facts_of, is_known, limit_in_words, unknown_key
from .output import echo, echo_json, word
from .targets import Target, chosen, the_one


__all__ = ["limit", "pause", "resume"]


def slots_of(ctx: click.Context, param: click.Parameter, value: str) -> int | str:
    """Return the number of slots that *value* says, or one of the two words.

    Raises:
        click.BadParameter: If it says nothing of the kind.
    """
    if value in {"none", "reset"}:
        return value
    if re.fullmatch(r"\d{1,9}", value, re.ASCII):
        return int(value)
    raise click.BadParameter(
        f"{word(value)} is no limit: say a whole number from 0, which pauses the key, "
        "`none` for no limit, or `reset` for what the task declares. Nothing was "
        "changed.",
        ctx,
        param,
    )


# Else -1 would be an option, and the answer to it would not help.
@click.command(cls=OperatorCommand, context_settings={"ignore_unknown_options": True})
@click.argument("key")
@click.argument("slots", callback=slots_of, metavar="N|none|reset")
@task_option
@json_option
@click.pass_context
def limit(
    ctx: click.Context, *, key: str, slots: int | str, task: str | None, as_json: bool
) -> None:
    """Give KEY another limit, until it is reset.

    It holds at once and outlives restarts and deploys. 0 pauses the key; a lower
    limit kills nothing, a higher one starts what waits.
    """
    target = the_one(ctx, task)
    wanted = target.key(key)
    before = target.control.stats(wanted)
    if slots == "reset":
        if not is_known(before):
            raise click.UsageError(unknown_key(key, [(target, before)]))
        after = target.control.reset_limit(wanted)
    else:
        after = target.control.set_limit(
            wanted, None if slots == "none" else int(slots)
        )
    if as_json:
        echo_json(after, **facts_of(target, after))
    else:
        echo(changed(target, before, after))


def changed(target: Target, before: KeyStats, after: KeyStats) -> Iterator[str]:
    """Yield what a change of a limit has done."""
    key = word(after.key)
    yield f"limit of key {key} of {target}{target.others}: {limit_in_words(after)}"
    yield f"it was: {limit_in_words(before)}"
    taken = f"{after.running} running, {after.dispatched} dispatched"
    yield f"now {taken}, {after.waiting} waiting"
    if after.limit and after.held > after.limit:
        free = after.held - after.limit + 1
        yield f"nothing more starts until {free} of the {after.held} have ended"
    if after.blocked:
        yield f"it is blocked all the same: `{target.command('unblock', after.key)}`"
    if after.paused:
        yield f"the task is paused all the same: `{target.command('resume')}`"


@click.command(cls=OperatorCommand)
@task_option
@all_option
@json_option
@click.pass_context
def pause(
    ctx: click.Context, *, task: str | None, everything: bool, as_json: bool
) -> None:
    """Start nothing more of a task; what runs goes on.

    That holds for all its keys. What is submitted waits, or is refused if the
    task rejects. Tasks that share a scope are paused together.
    """
    for target in several(ctx, task, everything):
        changed = target.control.pause()
        if as_json:
            echo_json({"scope": target.scope, "paused": True, "changed": changed})
        else:
            state = "is paused" if changed else "was paused already"
            echo(f"{target}{target.others} {state}; what runs goes on.")
            echo(f"To end it: `{target.command('resume')}`")


@click.command(cls=OperatorCommand)
@task_option
@all_option
@json_option
@click.pass_context
def resume(
    ctx: click.Context, *, task: str | None, everything: bool, as_json: bool
) -> None:
    """End a pause: what waits goes on, as far as limits allow."""
    for target in several(ctx, task, everything):
        changed = target.control.resume()
        if as_json:
            echo_json({"scope": target.scope, "paused": False, "changed": changed})
        else:
            state = "is not paused any more" if changed else "was not paused"
            echo(f"{target}{target.others} {state}.")


def several(ctx: click.Context, task: str | None, everything: bool) -> list[Target]:
    """Return the target that is named, or all if that was said.

    Raises:
        click.UsageError: If both are, or neither and there are several.
    """
    if everything and task is not None:
        raise click.UsageError("say --task or --all, not both")
    return chosen(ctx, None) if everything else [the_one(ctx, task)]
