"""End, free or send again single tasks."""

from __future__ import annotations

from typing import Any

import click

from ..control.control import Control
from ..exceptions import TaskNotAvailable
from ..results.result import Cancellation
from ..states import RUNNING
from .group import OperatorCommand, agree, json_option, task_option, yes_option
from .output import counted, echo, echo_json, one_line, word
from .targets import Target, holder_of, the_one


__all__ = ["cancel", "redispatch", "release"]


@click.command(cls=OperatorCommand)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@task_option
@click.option("--reason", help="Why; who waits for the result is told.")
@click.option("--terminate", is_flag=True, help="Stop it as well if it runs; asks.")
@yes_option
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, *, task_ids: tuple[str, ...], task: str | None,
    reason: str | None, terminate: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """End tasks: what has not started never does.

    They are REVOKED at once. Without --terminate one that runs goes on.
    """
    holders = known(ctx, task_ids, task)
    if terminate:
        running = [i for i, target in holders.items() if runs(target.control, i)]
        if running:
            agree(f"Stop {counted(len(running), 'task')}, running now?", yes=yes)
    for task_id, target in holders.items():
        done = target.control.cancel(task_id, reason, terminate)
        if as_json:
            facts = {"scope": target.scope, "task_id": task_id}
            echo_json({**facts, "was": done.was, "stopped": done.stopped})
        else:
            echo(f"{word(task_id)}: {outcome(done, terminate)}")


def runs(control: Control, task_id: str) -> bool:
    """Tell whether the body of a task runs."""
    return control.explain(task_id).state == RUNNING


def outcome(done: Cancellation, terminate: bool) -> str:
    """Return what a cancellation has done."""
    if done.was == "ended":
        return "had ended already; nothing was changed"
    if done.was != RUNNING:
        return f"cancelled; it was {done.was or 'on its way'} and will not start"
    if not terminate:
        return "runs, and goes on; --terminate stops it"
    if done.stopped:
        return "cancelled; its body is being stopped"
    return "cancelled; its pool cannot stop the body, which keeps its slot to the end"


@click.command(cls=OperatorCommand)
@click.argument("key")
@click.argument("task_id", metavar="ID")
@task_option
@yes_option
@json_option
@click.pass_context
def release(
    ctx: click.Context, *, key: str, task_id: str, task: str | None, yes: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Force the slot free that the task ID holds of KEY.

    For a slot that is held by nothing. If the task does run, its body goes on
    beside the limit, what it returns is not stored, and it ends as REVOKED.
    """
    target = the_one(ctx, task)
    wanted = target.key(key)
    agree(
        f"Free the slot of {word(task_id)} on key {word(key)} of {target}? If it runs, "
        "its result is lost and another starts beside it.",
        yes=yes,
    )
    freed = target.control.release(wanted, task_id)
    if not freed:  # a slot may be held by what the store does not know any more
        known(ctx, (task_id,), target.scope)
    if as_json:
        echo_json({"scope": target.scope, "task_id": task_id, "released": freed})
    elif freed:
        echo(f"{word(task_id)}: its slot on key {word(key)} is free")
    else:
        echo(f"{word(task_id)} holds no slot of key {word(key)}; nothing was changed")
    if not freed:
        ctx.exit(1)


@click.command(cls=OperatorCommand)
@click.argument("task_ids", metavar="ID...", nargs=-1, required=True)
@task_option
@json_option
@click.pass_context
def redispatch(
    ctx: click.Context, *, task_ids: tuple[str, ...], task: str | None, as_json: bool
) -> None:
    """Publish tasks again that are with the broker and do not start.

    After `celery purge`, or if a queue was lost. A task starts once all the same,
    so it does no harm if the message is there after all.
    """
    failed = False
    for task_id, target in known(ctx, task_ids, task).items():
        try:
            sent, why = target.control.redispatch(task_id), None
        except TaskNotAvailable as exc:
            sent, why, failed = False, one_line(exc.reason), True
        if as_json:
            facts = {"scope": target.scope, "task_id": task_id}
            echo_json({**facts, "published": sent, "error": why})
        elif why:
            click.echo(f"{word(task_id)}: not published: {why}", err=True)
        else:
            done = (
                "published again"
                if sent
                else "needs it not: it waits, runs or has ended"
            )
            echo(f"{word(task_id)}: {done}")
    if failed:
        ctx.exit(1)


def known(
    ctx: click.Context, task_ids: tuple[str, ...], task: str | None
) -> dict[str, Target]:
    """Return the targets of tasks.

    Raises:
        click.UsageError: If one is not known; nothing has been done to any yet.
    """
    found: dict[str, Any] = {i: holder_of(ctx, i, task) for i in task_ids}
    unknown = [word(task_id) for task_id, target in found.items() if target is None]
    if unknown:
        raise click.UsageError(
            f"the store does not know {', '.join(unknown)}: ended, mistyped, or sent "
            "with a countdown and not yet at a worker. Nothing was changed."
        )
    return found
