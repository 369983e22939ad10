"""What the mail server and the database have counted, and whether it is right."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from . import records
from .work import Button, Lane, Work


@dataclass(slots=True)
class Verdict:
    """Lines to read, and the faults among what they say."""

    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def expect(self, fault: str, *, unless: bool) -> None:
        """Record *fault*, unless all is well."""
        if not unless:
            self.faults.append(fault)


def judge(work: Work, received: Counter[str]) -> Verdict:
    """Ask those who know nothing of limits what they saw."""
    verdict = Verdict()
    judge_exports(verdict, work)
    judge_mails(verdict, work, received)
    judge_button(verdict, work.button)
    return verdict


def judge_exports(verdict: Verdict, work: Work) -> None:
    """Files against the records of them, records against the orders."""
    verdict.lines.append("The database recorded")
    for customer, lane in work.exports.items():
        seen = records.exported(customer)
        verdict.lines.append(
            f"  {lane.name:<18}{seen.files:3} exports with {seen.lines:,} order lines,"
            f" at most {lane.most} at once"
        )
        judge_lane(verdict, lane)
        verdict.expect(
            f"{lane.name}: {seen.lines_ordered:,} lines were ordered",
            unless=seen.lines == seen.lines_ordered,
        )
        verdict.expect(
            f"{lane.name}: {seen.damaged} files are not what was recorded",
            unless=seen.damaged == 0,
        )


def judge_mails(verdict: Verdict, work: Work, received: Counter[str]) -> None:
    """The mail server's ledger against the list of customers."""
    verdict.lines.append("The mail server counted")
    for domain, lane in work.mails.items():
        mails = sum(n for to, n in received.items() if to.endswith(f"@{domain}"))
        verdict.lines.append(
            f"  {domain:<18}{mails:3} mails, at most {lane.most} connections at once"
        )
        judge_lane(verdict, lane)
    verdict.expect(
        "not every customer got exactly one mail",
        unless=received == Counter(records.addresses()),
    )


def judge_button(verdict: Verdict, button: Button) -> None:
    """Two clicks: one export, one refusal."""
    started, refused = len(button.started), button.refused
    verdict.lines.append(
        f'The button "Download now" was clicked twice: {started} started,'
        f" {refused} refused"
    )
    verdict.expect(
        "the second click was not refused", unless=(started, refused) == (1, 1)
    )
    verdict.expect(
        "the year was not exported",
        unless=all(result.successful() for result in button.started),
    )


def judge_lane(verdict: Verdict, lane: Lane) -> None:
    """The limit was reached and not passed, nothing failed, no slot is left over."""
    limit, stats = lane.limit, lane.stats
    verdict.expect(
        f"{lane.name}: {lane.most} at once, where the limit is {limit}",
        unless=lane.most == limit,
    )
    verdict.expect(f"{lane.name}: {lane.failed} tasks failed", unless=lane.failed == 0)
    verdict.expect(
        f"{lane.name}: a slot is still taken, or a task still waits",
        unless=(stats.running, stats.dispatched, stats.waiting) == (0, 0, 0),
    )
