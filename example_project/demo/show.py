"""The course of the demonstration."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from io import TextIOWrapper

from redis import RedisError
from rich.console import Console

from celery_bgtask import BgTaskError

from .display import Display, display_for
from .interrupts import Interrupts
from .stage import Stage, open_stage
from .trouble import Trouble
from .verdict import Verdict, judge
from .work import Work


#: Seconds in which all the work must be done, also on a slow machine.
PATIENCE = 180


def main(interrupts: Interrupts) -> int:
    """Perform the demonstration.

    Returns:
        The exit code: 0 if the limits held, and were reached.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # Not every locale has circles.
    console = Console(highlight=False)
    try:
        with open_stage(interrupts, console.print) as stage:
            return perform(stage, console, interrupts)
    except (Trouble, BgTaskError, RedisError) as error:
        Console(stderr=True, highlight=False).print(
            f"error: {error}", markup=False, soft_wrap=True
        )
        return 1
    except SystemExit:
        console.print("\nInterrupted. All that was started has been stopped.")
        raise
    finally:
        interrupts.default()


def perform(stage: Stage, console: Console, interrupts: Interrupts) -> int:
    """Submit, watch, and check what others have counted."""
    ledger = stage.smtp.ledger
    started = time.monotonic()
    with closing(Work(ledger)) as work:
        with closing(display_for(console)) as display:
            with interrupts.held():
                work.submit()
                answers = [work.button.click(), work.button.click()]
            for click, answer in zip(("First", "Second"), answers, strict=True):
                display.note(f'{click} click on "Download now": {answer}')
            watch(work, display, stage, interrupts)
        seconds = time.monotonic() - started
        return report(judge(work, ledger.received), seconds, console)


def watch(work: Work, display: Display, stage: Stage, interrupts: Interrupts) -> None:
    """Show the lanes until every task has its result.

    Raises:
        Trouble: If the worker ends, or the work does not.
    """
    give_up = time.monotonic() + PATIENCE
    is_done = False
    while not is_done:
        stage.worker.check()
        if time.monotonic() > give_up:
            behind = [lane.name for lane in work.lanes if lane.pending]
            raise Trouble(f"not done after {PATIENCE} s: {', '.join(behind)}")
        with interrupts.held():
            is_done = work.look()
        display.show(work)
        time.sleep(0.15)


def report(verdict: Verdict, seconds: float, console: Console) -> int:
    """Print the verdict; return the exit code."""
    console.print("", *verdict.lines, "", sep="\n")
    for fault in verdict.faults:
        console.print(f"WRONG: {fault}", style="bold red")
    if verdict.faults:
        return 1
    console.print(
        f"All done in {seconds:.1f} s. Every limit was reached, none was passed.",
        style="bold green",
    )
    return 0
