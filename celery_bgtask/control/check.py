"""Compare all that the store has of a scope: slots, leases, records, indexes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Task

from .. import outbox
from ..extension import Extension, extension_of
from ..keys import quote, unquote
from ..options import options_of
from ..scripts import Scripts
from ..scripts.readings import EVERYWHERE, AuditRow, KeyRow
from ..states import DISPATCHED, LAPSED, WAITING
from .broker import Whereabouts
from .damage import damage_of, is_stalled, key_damage_of
from .views import Finding


__all__ = ["check", "repair"]

REPAIR = "celery bgtask repair"
SWEEP = "celery bgtask sweep"

#: Seconds that a sweep may be late on a machine that is busy.
PATIENCE = 5.0

#: How many may be missing.
SWEEPS_MISSED = 4

#: Seconds after which a message may be looked for: publishing takes time.
SETTLED = 10.0

#: Seconds after which somebody has gone on with a key, who was about to.
MOMENT = 0.2

#: How often a count is taken that changes meanwhile.
LOOKS = 3


def check(task: Task[Any, Any]) -> list[Finding]:
    """Return what is wrong in the scope of *task*.

    Each task and key is read at one moment, so that what goes on meanwhile is
    not taken for damage. It walks through all names of the database: of a large
    one that takes a while, but no step takes long.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    extension = extension_of(task.app)
    scripts = scripts_of(task)
    survey = Survey.of(scripts)
    findings = [finding for _, _, finding in survey.damage]
    findings += [drift_finding(scripts.scope, d) for d in drifts(scripts, survey)]
    findings += delays(survey, scripts.scope)
    findings += lost_messages(task, scripts, survey)
    findings += eviction(extension)
    return list({(f.problem, f.subject): f for f in findings}.values())


def repair(task: Task[Any, Any]) -> list[Finding]:
    """Mend the damage in the scope of *task*, and return what was found of it.

    Raises:
        StoreUnavailable: If the store does not answer.
    """
    scripts = scripts_of(task)
    survey = Survey.of(scripts)
    mended: dict[tuple[str, str], Finding] = {}
    for key, task_id, finding in survey.damage:
        limit = -1 if key == EVERYWHERE else options_of(task).limit_of(unquote(key))
        outbox.publish(task.app, scripts, scripts.repair(key, task_id, limit))
        mended[finding.problem, finding.subject] = finding
    for drift in drifts(scripts, Survey.of(scripts)):
        scripts.recount(drift)
        mended["bytes-drift", scripts.scope] = drift_finding(scripts.scope, drift)
    return list(mended.values())


@dataclass
class Survey:
    """One walk through a scope.

    Attributes:
        patience: How late something may be, in ms.
        damage: Key (quoted) and task of all that does not agree, and the finding.
        overdue: The tasks that something should have been done about by now.
        unpublished: For how many seconds nobody has published them, by task.
        away: The tasks whose message should have arrived by now.
        parked: Bytes of each message that waits, by task.
        counted: What the store counts of these; -1 if that changed meanwhile.
    """

    patience: float
    damage: list[tuple[str, str, Finding]] = field(default_factory=list)
    overdue: set[str] = field(default_factory=set)
    unpublished: dict[str, float] = field(default_factory=dict)
    away: dict[str, AuditRow] = field(default_factory=dict)
    parked: dict[str, int] = field(default_factory=dict)
    counted: int = -1

    @classmethod
    def of(cls, scripts: Scripts) -> Survey:
        """Walk through a scope.

        Raises:
            StoreUnavailable: If the store does not answer.
        """
        survey = cls(1000 * PATIENCE + SWEEPS_MISSED * scripts.sweep_ms)
        before = scripts.recount()
        keys: dict[str, Any] = {quote(row.key): row for row in scripts.all_keys()}
        places = list_keys(scripts.places(), keys)
        for row in scripts.audit(places):
            survey._add(row)
        for key in scripts.stats_of([unquote(key) for key in keys]):
            survey._add_key(key, scripts)
        survey.counted = before if scripts.recount() == before else -1
        return survey

    @property
    def drift(self) -> int:
        """By how much the count of waiting bytes is too high."""
        return self.counted - sum(self.parked.values()) if self.counted >= 0 else 0

    def _add(self, row: AuditRow) -> None:
        for problem, detail in damage_of(row):
            is_home = row.found == EVERYWHERE and row.key is not None
            key = str(row.key) if is_home else row.found
            finding = Finding(problem, row.task_id, detail, REPAIR)
            self.damage.append((key, row.task_id, finding))
        if row.state == WAITING:
            self.parked[row.task_id] = row.size
        self._add_times(row)

    def _add_times(self, row: AuditRow) -> None:
        late = row.now - self.patience
        if any(
            at is not None and at < late for at in (row.lease, row.deadline, row.owed)
        ):
            self.overdue.add(row.task_id)
        if row.outbox is not None and row.outbox < late:
            self.unpublished[row.task_id] = (row.now - row.outbox) / 1000
        if row.found == EVERYWHERE and should_have_arrived(row):
            self.away[row.task_id] = row

    def _add_key(self, row: KeyRow, scripts: Scripts) -> None:
        if is_stalled(row):
            time.sleep(MOMENT)  # a resume or a sweep may be about to go on
            row = scripts.stats(row.key)
        for problem, detail in key_damage_of(row):
            subject = row.key or scripts.scope
            finding = Finding(problem, subject, detail, REPAIR)
            self.damage.append((quote(row.key), "", finding))


def list_keys(
    places: Iterable[tuple[str, str]], keys: dict[str, Any]
) -> Iterator[tuple[str, str]]:
    """Yield the *places* of tasks, and add those of keys to *keys*."""
    for key, task_id in places:
        if task_id:
            yield key, task_id
        else:
            keys.setdefault(key, None)


def drifts(scripts: Scripts, survey: Survey) -> Iterator[int]:
    """Yield by how much the count of waiting bytes is wrong, if it is.

    The sum takes several steps: it counts if it comes out the same twice.
    """
    for _ in range(LOOKS):
        last = survey.drift
        if not last:
            return
        survey = Survey.of(scripts)
        if survey.drift == last:
            yield last
            return


def drift_finding(scope: str, drift: int) -> Finding:
    """Return the finding of a wrong count."""
    detail = f"it is {abs(drift)} bytes too {'high' if drift > 0 else 'low'}"
    return Finding("bytes-drift", scope, detail, REPAIR)


def delays(survey: Survey, scope: str) -> Iterator[Finding]:
    """Yield what a sweep should have done by now."""
    for task_id, late in survey.unpublished.items():
        yield Finding(
            "not-published",
            task_id,
            f"its turn came, and for {late:.0f} s nobody has published it",
            SWEEP,
        )
    if survey.overdue:
        yield Finding(
            "not-swept",
            scope,
            f"{len(survey.overdue)} tasks ran out of time and nothing was done: nobody "
            "sweeps",
            f"{SWEEP} --every 1",
        )


def lost_messages(
    task: Task[Any, Any], scripts: Scripts, survey: Survey
) -> Iterator[Finding]:
    """Yield the tasks whose message is neither in a queue nor with a worker."""
    envelopes = {task_id: row.envelope for task_id, row in survey.away.items()}
    lost = list(Whereabouts(task.app, task.name).without_message(envelopes))
    for row in scripts.audit((EVERYWHERE, task_id) for task_id in lost):
        # Some may have started while their messages were looked for.
        if row.state != survey.away[row.task_id].state or not should_have_arrived(row):
            continue
        remedy = "redispatch" if row.size else "cancel"
        way = (
            "publish it again: should both arrive, one starts"
            if row.size
            else "the store has not kept it, so it can only be cancelled"
        )
        yield Finding(
            "message-lost",
            row.task_id,
            f"probably its message is lost: it is {row.state}, its queue is empty, and "
            "no worker that answered has it. That is a guess: it may be with a worker "
            f"that did not answer, or on its way. If it stays so, {way}",
            f"celery bgtask {remedy} {row.task_id}",
        )


def should_have_arrived(row: AuditRow) -> bool:
    """Tell whether the message of a task is old enough to be looked for."""
    if row.outbox is not None or row.offer:
        return False
    settled = row.slot is not None and row.now - row.slot > 1000 * SETTLED
    return row.state == LAPSED or (row.state == DISPATCHED and settled)


def eviction(extension: Extension) -> Iterator[Finding]:
    """Yield whether the server may drop what it has."""
    policy = extension.link.eviction_policy()
    if policy != "noeviction":
        yield Finding(
            "eviction",
            "maxmemory-policy",
            f"the server has {policy}: when its memory is full it drops slots and "
            "waiting tasks",
            "redis-cli CONFIG SET maxmemory-policy noeviction",
        )


def scripts_of(task: Task[Any, Any]) -> Scripts:
    """Return the scripts of the task's scope."""
    return extension_of(task.app).scripts(options_of(task).scope)
