"""Whether what has happened is what is promised; each rule yields who breaks it.

*The rule of the limit.* At every moment at most ``max_per_key`` bodies of a key run,
not counting those whose lease may have run out: whose worker was stopped, or cut off
from the store, for longer than a lease has left when it falls silent. Such a body
counts again :data:`HONOUR` seconds after its worker is back: by then it has asked
``checkpoint`` and ended. A store that is away excuses nobody. A body is over when it
says so, or when its process was killed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

from celery import states

from tests.chaos.evidence import KILLS, Call, Evidence
from tests.chaos.tasks import LIMITS
from tests.chaos.world import DISPATCH_LEASE
from tests.smoke.ledger import Run


#: Seconds in which a body that has lost its lease is told, on a slow machine too.
HONOUR = 5.0

#: What a task may have been for a cancellation to keep it from starting.
NOT_STARTED = frozenset({"waiting", "dispatched", "offered", "lapsed"})


#: What Celery makes of a task that it could not publish again (a retry), or whose
#: result it could not store, while store or broker were away.
OUTAGE_ERRORS = frozenset({"Reject", "ConnectionError", "TimeoutError"})


#: What Celery and we say of a task whose process is gone.
LOSSES = frozenset({"TaskLost", "WorkerLostError"})


class Violation(NamedTuple):
    """A promise that was not kept."""

    rule: str
    task_id: str
    detail: str


def violations(seen: Evidence) -> Iterator[Violation]:
    """Yield every promise that was not kept."""
    for call in seen.calls.values():
        yield from outcome(seen, call)
        yield from cancellation(seen, call)
    yield from over_limit(seen)
    for task_id, _, cause in duplicates(seen):
        if not cause:
            yield Violation("duplicate", task_id, "a run came twice without a cause")
    yield from disorder(seen)


def outcome(seen: Evidence, call: Call) -> Iterator[Violation]:
    """Every submitted id has one outcome, and it is what happened."""
    task_id = call.task_id
    state, error = seen.final[task_id]
    runs = [run for run in seen.runs if run.task_id == task_id]
    # A FAILURE to store RETRY is Celery's way, though the retry is on its way by then.
    stored = {state} | {
        other
        for at, other in seen.stored[task_id]
        if other != states.FAILURE
        or not any(seen.was_unheard(run.worker, run.started, at) for run in runs)
    }
    final = state in states.READY_STATES
    if call.outcome == "refused" and (runs or final):
        yield Violation("refused", task_id, f"{len(runs)} runs, {state}")
    if call.outcome == "submitted" and not final:
        yield Violation("no outcome", task_id, state)
    if runs and not final:
        yield Violation("no outcome", task_id, f"{state} after {len(runs)} runs")
    if len(stored) > 1:
        yield Violation("two outcomes", task_id, ", ".join(sorted(stored)))
    if final and not is_true(seen, call, runs):
        yield Violation("untrue outcome", task_id, f"{state} {error}")


def is_true(seen: Evidence, call: Call, runs: list[Run]) -> bool:
    """Tell whether a final state has a reason in what has happened."""
    state, error = seen.final[call.task_id]
    stored = [at for at, _ in seen.stored[call.task_id]]
    end = stored[0] if stored else float("inf")
    if state == states.SUCCESS:
        return any("done" in run.marks for run in runs)
    if state == states.REVOKED:
        # A cold shutdown revokes what it has and has acknowledged: Celery's way.
        return bool(call.cancelled) or seen.has(call.at, end, {"quit_worker"})
    if error in LOSSES:
        return seen.has(call.at, end, KILLS) or any(
            seen.has_lost(run.worker, run.started, end, HONOUR) for run in runs
        )
    if error in OUTAGE_ERRORS:
        return any(seen.was_unheard(r.worker, r.started, end) for r in runs)
    return error == "ValueError" and bool(runs)


def cancellation(seen: Evidence, call: Call) -> Iterator[Violation]:
    """What was cancelled before its start does not start."""
    for at, was in call.cancelled:
        if was in NOT_STARTED and any(
            run.started > at for run in seen.runs if run.task_id == call.task_id
        ):
            yield Violation("cancelled", call.task_id, f"it started although it {was}")


def over_limit(seen: Evidence) -> Iterator[Violation]:
    """No key runs more than its limit, nor a task beside itself; see above."""
    for at, _, runs in moments(seen):
        held = [run for run in runs if not is_excused(seen, run, at)]
        newest = runs[-1]
        limit = LIMITS[newest.key.partition("/")[0]]
        if len(held) > limit:
            ids = " ".join(run.task_id for run in held)
            yield Violation("over limit", newest.task_id, f"{newest.key}: {ids}")
        if sum(run.task_id == newest.task_id for run in held) > 1:
            yield Violation("beside itself", newest.task_id, newest.key)


def moments(seen: Evidence) -> Iterator[tuple[float, str, list[Run]]]:
    """Yield, at each start, the time, the key and its bodies, the new one last."""
    # By the ledger's order: within one millisecond a run may end and another start.
    starts = iter(seen.runs)
    running: dict[str, Run] = {}
    for at, facts in seen.events:
        if facts["event"] == "start":
            run = running[facts["run"]] = next(starts)
            mine = [other for other in running.values() if other.key == run.key]
            yield at, run.key, mine
        elif facts["event"] == "end":
            running.pop(facts["run"], None)
        elif facts["event"] == "gone":
            running = {n: r for n, r in running.items() if not r.ran_in(facts)}


def is_excused(seen: Evidence, run: Run, at: float) -> bool:
    """Tell whether a body need not count at a time: it is told soon, or is dying."""
    return bool(
        seen.has_lost(run.worker, at, at, HONOUR)
        or any(
            fault.kind == "quit_worker"
            and fault.target == run.worker
            and fault.start <= at <= fault.end
            for fault in seen.faults
        )
    )


def duplicates(seen: Evidence) -> Iterator[tuple[str, int, str]]:
    """Yield id, attempt and cause, ``""`` if there is none, of each run too many."""
    for (task_id, attempt), runs in seen.runs_by().items():
        for before, run in pairwise(runs):
            cause = seen.killed(before, before.started, run.started)
            cause = cause or seen.has_lost(
                before.worker, before.started, run.started, 0.0
            )
            if not cause and could_not_come_again(seen, before):
                cause = "its retry could not be published"
            yield task_id, attempt, cause


def could_not_come_again(seen: Evidence, run: Run) -> bool:
    """Tell whether a body ended with a retry or an error while the store was away.

    Its end could be stored nowhere: it runs again, if it may.
    """
    end = run.ended or run.seen
    return "done" not in run.marks and seen.was_unheard(run.worker, end, end)


def disorder(seen: Evidence) -> Iterator[Violation]:
    """One producer's tasks of a key of one slot start in the order of their calls.

    But one whose message did not arrive while the key stood idle for a dispatch
    lease: it has lost its place.
    """
    first: dict[str, Run] = {}
    for run in seen.runs:
        first.setdefault(run.task_id, run)
    lines: dict[str, list[Call]] = {}
    for call in seen.calls.values():
        known = call.outcome == "submitted" and not call.cancelled
        if call.kind == "line" and known and call.task_id in first:
            lines.setdefault(call.key, []).append(call)
    for key, calls in lines.items():
        gaps = idle_times(seen, key)
        for earlier, later in pairwise(calls):
            start = first[later.task_id].started
            if start >= first[earlier.task_id].started:
                continue
            if not any(
                min(end, start) - max(begin, earlier.at) > DISPATCH_LEASE - 0.5
                for begin, end in gaps
            ):
                yield Violation("order", earlier.task_id, f"after {later.task_id}")


def idle_times(seen: Evidence, key: str) -> list[tuple[float, float]]:
    """When no body of a key ran."""
    gaps = []
    end = 0.0
    for run in seen.runs:
        if run.key == key:
            gaps.append((end, run.started))
            end = max(end, run.ended or float("inf"))
    return gaps
