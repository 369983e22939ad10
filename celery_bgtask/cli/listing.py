"""Look at keys: all of them, or one."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from typing import Any

import click

from ..control.views import Holder, KeyStats
from .group import OperatorCommand, json_option, task_option
from .output import ago, counted, echo, echo_json, fact, moment, one_line, span, word
from .tables import ORDERS, Totals, first, lines, rows, state
from .targets import Target, chosen


__all__ = ["facts_of", "keys", "show", "unknown_key"]


@click.command(cls=OperatorCommand)
@task_option
@click.option("--sort", type=click.Choice(list(ORDERS)), help="Read all keys, then "
              "show those first that have most waiting, wait longest, hold most slots; "
              "or by name.")  # fmt: skip
@click.option("--limit", "count", type=click.IntRange(min=1), metavar="N",
              help="Show N keys at most.")  # fmt: skip
@json_option
@click.pass_context
def keys(
    ctx: click.Context, *, task: str | None, sort: str | None, count: int | None,
    as_json: bool,
) -> None:  # fmt: skip
    """List the keys in use, blocked, or with a limit set by hand.

    In no particular order, a page at a time, so that the first come at once; see
    --sort. SLOTS: taken / limit, and * if that was set by hand. OLDEST: how long
    the one has waited that waits longest.
    """
    targets = chosen(ctx, task)
    totals = Totals()
    found = totals.count(rows(targets))
    shown = iter(first(found, sort, count)) if sort else itertools.islice(found, count)
    if as_json:
        for target, stats in shown:
            echo_json(stats, **facts_of(target, stats))
        return
    echo(lines(shown, targets))
    if totals.keys:
        is_all = sort or next(found, None) is None
        echo(
            f"{totals}"
            if is_all
            else f"{counted(count or 0, 'key')} shown; there are more"
        )


@click.command(cls=OperatorCommand)
@click.argument("key")
@task_option
@json_option
@click.pass_context
def show(ctx: click.Context, *, key: str, task: str | None, as_json: bool) -> None:
    """Show what the store has of KEY.

    Without --task, of all tasks that know it. Exit code 2 if none does: then it
    is idle, or mistyped.
    """
    targets = chosen(ctx, task)
    wanted = [t for t in targets if t.has_keys == bool(key)] or targets
    found = [(target, target.control.stats(target.key(key))) for target in wanted]
    known = [(target, stats) for target, stats in found if is_known(stats)]
    if not known:
        raise click.UsageError(unknown_key(key, found))
    for number, (target, stats) in enumerate(known):
        if as_json:
            holders = target.control.holders(target.key(stats.key))
            listed = [dataclasses.asdict(holder) for holder in holders]
            echo_json(stats, **facts_of(target, stats), holders=listed)
        else:
            echo([""] * bool(number))
            echo(about_key(target, stats))


def is_known(stats: KeyStats) -> bool:
    """Tell whether the store has anything of a key."""
    busy = stats.held or stats.waiting or stats.blocked
    return bool(busy) or stats.override is not None


def unknown_key(key: str, found: list[tuple[Target, KeyStats]]) -> str:
    """Return what to say of a key of which the store has nothing."""
    of = f" of {found[0][0]}" if len(found) == 1 else ""
    listing = found[0][0].program
    return (
        f"the store has nothing of key {word(key)}{of}: nothing runs or waits, no "
        f"block, no limit set by hand. It is idle, or mistyped; `{listing} keys` "
        "lists those in use. Nothing was changed."
    )


def facts_of(target: Target, stats: KeyStats) -> dict[str, Any]:
    """Return what JSON says of a key beside its stats."""
    return {"scope": target.scope, "held": stats.held, "capacity": stats.capacity}


def about_key(target: Target, stats: KeyStats) -> Iterator[str]:
    """Yield what there is to say of a key."""
    key = word(stats.key)
    yield f"key {key} of {target}{target.others}: {state_in_words(stats)}"
    taken = f"{stats.running} running, {stats.dispatched} dispatched"
    yield fact("slots", f"{stats.held} taken: {taken}")
    holders = target.control.holders(target.key(stats.key))
    yield from map(holder_in_words, sorted(holders, key=lambda one: one.since))
    if stats.held > len(holders) > 0:
        yield fact("", f"and {stats.held - len(holders)} more")
    yield fact("limit", limit_in_words(stats))
    oldest = f", the oldest for {ago(stats.waiting_since)}" if stats.waiting else ""
    yield fact("waiting", f"{stats.waiting}{oldest}")
    if stats.paused:
        yield fact("paused", f"all keys of the task; `{target.command('resume')}`")
    if stats.blocked:
        until = stats.blocked_until
        ends = f"until {moment(until)}" if until else "until somebody unblocks it"
        yield fact("blocked", f"{ends}: {one_line(stats.blocked_reason or '-')}")
        yield fact("", f"`{target.command('unblock', stats.key)}`")
    for block in target.control.block_log(target.key(stats.key)):
        yield fact("was blocked", f"{moment(block.since)}: {one_line(block.reason)}")


def holder_in_words(holder: Holder) -> str:
    """Return a line on who holds a slot."""
    on = f" on {one_line(holder.worker)}" if holder.worker else ""
    lease = ""
    if holder.lease_until is not None:
        lease = f", lease for {span(holder.lease_until - time.time())}"
    since = ago(holder.since)
    return fact("", f"{word(holder.task_id)} {holder.state}{on} for {since}{lease}")


def state_in_words(stats: KeyStats) -> str:
    """Return in few words what a key's tasks may expect."""
    words = {
        "blocked": "blocked: nothing new is taken, what waits stays",
        "paused": "paused: nothing more starts",
        "limit 0": "its limit is 0: nothing more starts",
        "full": "full: the next starts when one ends",
    }
    return words.get(state(stats), "it has free slots")


def limit_in_words(stats: KeyStats) -> str:
    """Return which limit holds, and where it comes from."""

    def slots(number: int | None) -> str:
        return "no limit" if number in {None, -1} else str(number)

    if stats.override is None:
        return f"{slots(stats.declared)}, as the task declares"
    declared = f"the task declares {slots(stats.declared)}"
    return f"{slots(stats.override)}, set by hand; {declared}"
