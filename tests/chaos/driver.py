"""One chaos run: faults by seed, then peace, then the verdict."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from celery.states import READY_STATES

from celery_bgtask import TaskNotAvailable
from tests.chaos.evidence import Call, Evidence, calls_of
from tests.chaos.faults import Faults
from tests.chaos.tasks import LIMITS, task_of
from tests.chaos.verifier import Violation, duplicates, moments, violations
from tests.chaos.world import DISPATCH_LEASE, LEASE, World
from tests.helpers import wait_until_drained


#: Seconds without any end after which an operator would look: what has not arrived
#: has lost its slot by then.
QUIET = DISPATCH_LEASE + 2

#: Looks at which ``check`` may not know of a task that is late: machines are slow.
LOOKS = 4

#: Seconds in which all must have ended after the last fault.
PEACE = 150.0

Say = Callable[[str], None]


@dataclass
class Report:
    """What came of a run."""

    seed: int
    figures: dict[str, object] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    histories: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{name:28} {value}" for name, value in self.figures.items()]
        lines += [
            f"VIOLATION {v.rule}: {v.task_id}: {v.detail}" for v in self.violations
        ]
        return "\n".join([*lines, *self.histories])


def run_chaos(
    seed: int,
    seconds: float,
    folder: Path,
    *,
    amqp: str | None = None,
    rate: float = 8.0,
    pause: float = 1.2,
    say: Say = lambda _: None,
) -> Report:
    """Let it be chaos for so many seconds, and judge what has happened.

    Args:
        seed: Of all choices; when what happens is up to the machine.
        seconds: How long.
        folder: For what the processes write.
        amqp: The RabbitMQ to use as broker; else the store is the broker.
        rate: Calls a second of each of two producers.
        pause: Seconds between two faults, on average.
        say: Is told how it goes.
    """
    report = Report(seed)
    world = World(folder, amqp=amqp)
    try:
        faults = Faults(world, seed, pause=pause, keys=3, rate=rate)
        world.wait_for_workers()
        say(f"seed {seed}: chaos for {seconds:g} s")
        faults.run(seconds)
        say(f"{len(faults.done)} faults; now peace")
        begun = time.monotonic()
        world.stop_producers()
        remedies = make_peace(world, faults, report)
        seen = Evidence(world, faults.done)
        judge(seen, report)
        report.figures |= remedies
        report.figures["peace after"] = f"{time.monotonic() - begun:.1f} s"
    finally:
        world.close()
    return report


def make_peace(world: World, faults: Faults, report: Report) -> dict[str, object]:
    """Wait until all has ended; do what an operator would if nothing goes on."""
    redispatched = 0
    looks: Counter[str] = Counter()
    end = time.monotonic() + PEACE
    last, since = -1, time.monotonic()
    while (left := unfinished(world)) and time.monotonic() < end:
        faults.supervise()
        now = time.monotonic()
        if len(left) != last:
            last, since = len(left), now
        elif now - since > QUIET:
            redispatched += remedy(world, left, looks, report)
            since = now
        time.sleep(0.5)
    try:
        wait_until_drained(world.redis, prefix=world.prefix, within=60)
    except AssertionError as exc:
        report.violations.append(Violation("left", "-", str(exc)))
    unsure = check_all(world, report)
    for worker in world.leaving:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(60)
        if worker.status == "running":
            report.violations.append(Violation("does not go", "-", worker.name))
    return {
        "messages lost by the broker": f"{redispatched}, published again",
        "... with their producer": unsure,
    }


def check_all(world: World, report: Report) -> int:
    """What ``check`` finds is a violation, but for calls that came to no answer.

    Who is killed between submission and publish leaves a task without a message:
    count these.
    """
    calls = calls_of(world.ledger.client)
    unsure = 0
    for name in LIMITS:
        for finding in task_of(world.app, name).control.check():
            call = calls.get(finding.subject)
            unanswered = call and call.outcome in ("unknown", "failed")
            if unanswered and finding.problem == "message-lost":
                unsure += 1
            else:
                told = Violation("check", finding.subject, str(finding))
                report.violations.append(told)
    return unsure


def unfinished(world: World) -> list[Call]:
    """What was submitted, as its producer knows, and has no final state."""
    state = world.app.backend.get_state
    return [
        call
        for call in calls_of(world.ledger.client).values()
        if call.outcome == "submitted" and state(call.task_id) not in READY_STATES
    ]


def remedy(world: World, left: list[Call], looks: Counter[str], report: Report) -> int:
    """Publish again what is lost; what ``check`` never names is a violation."""
    named = {
        finding.subject
        for name in LIMITS
        for finding in task_of(world.app, name).control.check()
        if finding.problem == "message-lost"
    }
    count = 0
    for call in left:
        control = task_of(world.app, call.kind).control
        state = control.explain(call.task_id).state
        # What comes again after a while is not looked for: it may be with a worker.
        if call.task_id not in named and state != "delayed":
            looks[call.task_id] += 1
            if looks[call.task_id] == LOOKS:
                report.violations.append(Violation("not named", call.task_id, state))
            continue
        try:
            count += control.redispatch(call.task_id)
        except TaskNotAvailable as exc:
            report.violations.append(Violation("forgotten", call.task_id, str(exc)))
    return count


def judge(seen: Evidence, report: Report) -> None:
    """Fill in the figures and the violations."""
    report.violations += violations(seen)
    report.histories += [
        seen.history(v.task_id)
        for v in report.violations[:10]
        if v.task_id in seen.calls
    ]
    calls = Counter(call.outcome for call in seen.calls.values())
    doubles = list(duplicates(seen))
    peaks: Counter[str] = Counter()
    for _, key, runs in moments(seen):
        kind = key.partition("/")[0]
        peaks[kind] = max(peaks[kind], len(runs))
    waits = recoveries(seen)
    report.figures |= {
        "seed": report.seed,
        "faults": dict(Counter(fault.kind for fault in seen.faults).most_common()),
        "calls": dict(calls.most_common()),
        "runs": len(seen.runs),
        "outcomes": dict(seen.counts().most_common()),
        "runs too many": len(doubles),
        "... by cause": dict(Counter(cause for *_, cause in doubles).most_common()),
        "running per key, of limit": {k: f"{peaks[k]}/{n}" for k, n in LIMITS.items()},
        "recovery of killed runs": (
            f"median {statistics.median(waits):.1f} s, longest {max(waits):.1f} s, "
            f"of {len(waits)} (lease {LEASE:g} s)"
            if waits
            else "none was killed"
        ),
        "violations": len(report.violations),
    }


def recoveries(seen: Evidence) -> list[float]:
    """Seconds from each kill of a run to its next run, or its end."""
    waits = []
    for (task_id, _), runs in seen.runs_by().items():
        for number, run in enumerate(runs):
            if run.ended is None or not seen.killed(run, run.started, run.ended):
                continue
            later = [r.started for r in runs[number + 1 :]]
            later += [at for at, _ in seen.stored[task_id] if at >= run.ended]
            if later:
                waits.append(min(later) - run.ended)
    return waits
