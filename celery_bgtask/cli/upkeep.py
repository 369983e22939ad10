"""Keep deadlines and slots where no worker does; find and mend damage."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import click
from celery import Celery
from celery.utils.log import get_logger
from celery.utils.nodenames import gethostname

from ..control.views import Finding
from ..ends import End
from ..extension import extension_of
from ..worker.sweeper import sweep as sweep_scope
from .group import OperatorCommand, json_option, task_option
from .output import echo, echo_json, fact, one_line, word
from .targets import Target, all_targets, chosen


__all__ = ["check", "repair", "sweep", "sweep_all"]

logger = get_logger(__name__)

#: What was found, and where.
Found = tuple[Target, Finding]


@click.command(cls=OperatorCommand)
@task_option
@json_option
@click.pass_context
def check(ctx: click.Context, *, task: str | None, as_json: bool) -> None:
    """Look for damage in the store.

    Compares slots, leases, records, indexes and outbox with each other. Says what
    is wrong and the command that mends it. Exit code 1 if anything is; a healthy
    system shows nothing. Changes nothing.
    """
    targets = chosen(ctx, task)
    found = list(findings_of(targets))
    show(found, as_json)
    if found:
        ctx.exit(1)
    if not as_json:
        echo(f"nothing is wrong with {', '.join(map(str, targets))}")


@click.command(cls=OperatorCommand)
@task_option
@json_option
@click.pass_context
def repair(ctx: click.Context, *, task: str | None, as_json: bool) -> None:
    """Mend the damage that only this can mend; see `check`.

    No task is lost by it. Says what was mended.
    """
    found = [(t, done) for t in chosen(ctx, task) for done in t.control.repair()]
    show(found, as_json)
    if not as_json:
        echo(f"{len(found)} mended" if found else "nothing is to be mended")


def findings_of(targets: Iterable[Target]) -> Iterator[Found]:
    """Yield what is wrong; what is wrong with the server only once."""
    is_said = False
    for target in targets:
        for finding in target.control.check():
            if finding.problem != "eviction":
                yield target, finding
            elif not is_said:
                is_said = True
                yield target, finding


def show(found: Iterable[Found], as_json: bool) -> None:
    """Print findings."""
    for target, finding in found:
        remedy = target.typed(finding.remedy)
        if as_json:
            echo_json(replace(finding, remedy=remedy), scope=target.scope)
        else:
            echo(about(target, finding, remedy))


def about(target: Target, finding: Finding, remedy: str) -> Iterator[str]:
    """Yield what there is to say of a finding."""
    yield f"{one_line(finding.problem)}: {word(finding.subject)}, of {target}"
    yield fact("found", one_line(finding.detail))
    yield fact("remedy", one_line(remedy))


@click.command(cls=OperatorCommand)
@click.option("--every", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="Go on, with this pause; else sweep once.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON, a line a sweep.")
@click.pass_context
def sweep(ctx: click.Context, *, every: float | None, as_json: bool) -> None:
    """Free lost slots, end what is overdue, publish what was left.

    Every worker does that by itself; this is for where none runs. Errbacks,
    chords and chains of tasks that end here are left to a worker.
    """
    all_targets(ctx)
    while True:
        report = sweep_all(ctx.obj.app)
        if as_json:
            echo_json(report)
        else:
            echo(in_words(report))
        if every is None:
            return
        time.sleep(every)


def sweep_all(app: Celery) -> dict[str, int]:
    """Sweep all scopes of *app* and return what was found, counted."""
    extension = extension_of(app)
    me = f"cli@{gethostname()}/{os.getpid()}"
    report = {"scopes": 0, "lost": 0, "ended": 0, "published": 0}
    ends: list[End] = []
    for scope in extension.scopes:
        scripts = extension.scripts(scope)
        swept = sweep_scope(app, scripts, me, tell=ends.append, follow=False)
        report["scopes"] += swept.mine
        report["lost"] += len(swept.lost)
        report["ended"] += len(swept.owed)
        report["published"] += len(swept.granted)
    tell_monitors(app, ends)
    return report


def tell_monitors(app: Celery, ends: Iterable[End]) -> None:
    """Send the events of *ends*, if this app has its clients send any."""
    if not ends or not app.conf.task_send_sent_event:
        return
    name = f"bgtask-sweep@{gethostname()}"
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1)
            with app.events.Dispatcher(connection, hostname=name) as dispatcher:
                for end in ends:
                    kind, fields = end.event()
                    dispatcher.send(kind, uuid=end.task_id, **fields)
    except Exception:
        logger.warning("No monitor was told of what has ended.", exc_info=True)


def in_words(report: dict[str, int]) -> str:
    """Return *report* as a sentence."""
    if not report["scopes"]:
        return "nothing to do: another sweep was here just now"
    return (
        f"{report['scopes']} scopes swept: {report['lost']} runs lost, "
        f"{report['ended']} tasks ended, {report['published']} published"
    )
