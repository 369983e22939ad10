"""Look at one task: why does it not run?"""

from __future__ import annotations

from collections.abc import Iterator

import click

from ..control.views import Explanation
from .group import OperatorCommand, json_option, task_option
from .output import ago, echo, echo_json, fact, moment, one_line, word
from .targets import Target, chosen, holder_of


__all__ = ["explain"]

#: What may be done about a reason: for what, and the command; {key} and {id}.
REMEDIES: dict[str, tuple[str, ...]] = {
    "key-full": ("for more slots", "limit", "{key}", "N"),
    "behind-others": ("for more slots", "limit", "{key}", "N"),
    "limit-zero": ("to go on", "limit", "{key}", "reset"),
    "paused": ("to go on", "resume"),
    "blocked": ("to go on", "unblock", "{key}"),
    "with-broker": ("if its queue was lost", "redispatch", "{id}"),
    "offered": ("to ask all workers again", "redispatch", "{id}"),
    "lapsed": ("if its queue was lost", "redispatch", "{id}"),
    "next-sweep": ("if it stays so", "check"),
}


@click.command(cls=OperatorCommand)
@click.argument("task_id", metavar="ID")
@task_option
@json_option
@click.pass_context
def explain(
    ctx: click.Context, *, task_id: str, task: str | None, as_json: bool
) -> None:
    """Say why a task is not running, or that it is.

    Exit code 2 if neither the store nor the result backend knows it.
    """
    target = holder_of(ctx, task_id, task) or chosen(ctx, task)[0]
    explanation = target.control.explain(task_id)
    if explanation.reason == "unknown":
        raise click.UsageError(one_line(explanation.sentence))
    if as_json:
        echo_json(explanation)
    else:
        echo(about_call(target, explanation))


def about_call(target: Target, call: Explanation) -> Iterator[str]:
    """Yield what there is to say of a task."""
    key = "" if call.key is None else f", key {word(call.key)}"
    yield f"task {word(call.task_id)} of {word(call.task)}{key}"
    yield one_line(call.sentence)
    why = "" if call.reason == call.state else f" ({call.reason})"
    yield fact("state", f"{call.state or '-'}{why}")
    if call.position is not None:
        yield fact("position", f"{call.position} of {call.waiting} that wait")
    for name, value in times_of(call):
        if value is not None:
            yield fact(name, moment(value, call.at))
    if call.worker:
        yield fact("worker", one_line(call.worker))
    if call.key is not None:
        yield fact("slots", f"{call.held} taken {limit_of(call)}")
    for holder in sorted(call.holders, key=lambda one: one.since):
        on = f" on {one_line(holder.worker)}" if holder.worker else ""
        since = ago(holder.since, call.at)
        yield fact("", f"{word(holder.task_id)} {holder.state}{on} for {since}")
    if call.held > len(call.holders) > 0:
        yield fact("", f"and {call.held - len(call.holders)} more")
    if call.reason in REMEDIES:
        facts = {"{key}": call.key or "", "{id}": call.task_id}
        when, name, *rest = REMEDIES[call.reason]
        command = target.command(name, *(facts.get(part, part) for part in rest))
        yield fact("next", f"{when}: `{command}`")


def limit_of(call: Explanation) -> str:
    """Return how many slots the key of a task has now."""
    if call.limit is None:
        return "(no limit)"
    return f"of {call.limit}" if call.limit else "(no more are given)"


def times_of(call: Explanation) -> Iterator[tuple[str, float | None]]:
    """Yield the times of a task, with names."""
    yield "waits since", call.waiting_since
    yield "started", call.started
    yield "has slot until", call.dispatch_lease_until
    yield "blocked until", call.blocked_until
    yield "start by", call.start_by
    yield "finish by", call.finish_by
    yield "expires", call.expires_at
