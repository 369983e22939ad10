"""What is known after a chaos run, read once: calls, runs, outcomes, silences."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from celery import states
from redis import Redis

from tests.chaos.backend import OUTCOMES
from tests.chaos.faults import Fault
from tests.chaos.tasks import CALLS, PULSE
from tests.chaos.world import LEASE, World
from tests.smoke.ledger import Run


#: Kinds of faults during which a worker does not reach the store, or does not run.
HALTS = frozenset({"stop_worker", "hang_worker", "halted"})
CUTS = frozenset({"cut_line", "part_line", "hold_line"})
OUTAGES = frozenset({"kill_store", "pause_store"})

#: Those that end what a process runs.
KILLS = frozenset({"kill_worker", "kill_child", "quit_worker", "crashed"})

#: Seconds without a beat after which a worker counts as halted by its machine.
STALL = 1.5

#: Seconds that a lease has left at least when its worker falls silent: it is renewed
#: three times in its life, and a busy heartbeat comes late.
LEFT = LEASE * 2 / 3 - 0.5


@dataclass
class Call:
    """What a producer has said of one id; times are the ledger's."""

    task_id: str
    kind: str
    key: str
    at: float
    outcome: str = "unknown"
    error: str = ""
    cancelled: list[tuple[float, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Silence:
    """A time in which a worker could not renew its leases."""

    start: float
    end: float
    kinds: frozenset[str]


class Evidence:
    """All that was written down of a run.

    Args:
        world: Whose ledger is read, and whose results.
        faults: What was done to it.
    """

    def __init__(self, world: World, faults: list[Fault]) -> None:
        client = world.ledger.client
        self.calls = calls_of(client)
        self.runs = world.ledger.runs()
        self.events = world.ledger.events()
        self.faults = [*faults, *stalls_of(client)]
        self.stored = stored_of(client)
        self.final: dict[str, tuple[str, str]] = {}
        for task_id in self.calls:
            meta: Any = world.app.backend.get_task_meta(task_id)
            error = meta["result"] if meta["status"] in states.EXCEPTION_STATES else ""
            self.final[task_id] = (
                meta["status"],
                type(error).__name__ if error else "",
            )
        self._silences: dict[str, list[Silence]] = {}

    def runs_by(self) -> dict[tuple[str, int], list[Run]]:
        """The runs of each attempt, in the order of their starts."""
        groups: dict[tuple[str, int], list[Run]] = defaultdict(list)
        for run in self.runs:
            groups[run.task_id, run.attempt].append(run)
        return groups

    def silences(self, worker: str) -> list[Silence]:
        """When a worker could not renew; what follows closely counts as one."""
        if worker not in self._silences:
            mine = sorted(
                (f for f in self.faults if silences(f, worker)), key=lambda f: f.start
            )
            merged: list[Silence] = []
            for fault in mine:
                kinds = frozenset({fault.kind})
                last = merged[-1] if merged else None
                if last and fault.start < last.end + LEASE / 3 + 0.5:
                    end = max(last.end, fault.end)
                    merged[-1] = Silence(last.start, end, last.kinds | kinds)
                else:
                    merged.append(Silence(fault.start, fault.end, kinds))
            self._silences[worker] = merged
        return self._silences[worker]

    def has_lost(self, worker: str, start: float, end: float, honour: float) -> str:
        """Say why leases of a worker may have run out between two times, or ``""``.

        That the store was away is no reason: then nobody is taken for dead.
        """
        for silence in self.silences(worker):
            if silence.kinds <= OUTAGES:
                continue
            first, last = silence.start + LEFT, silence.end + honour
            if silence.end > first and start <= last and end >= first:
                return "+".join(sorted(silence.kinds))
        return ""

    def has(self, start: float, end: float, kinds: Collection[str]) -> bool:
        """Tell whether faults of these kinds fall between two times."""
        return any(
            fault.kind in kinds and fault.start <= end and fault.end >= start
            for fault in self.faults
        )

    def was_unheard(self, worker: str, start: float, end: float) -> bool:
        """Tell whether store or broker could not be reached for some of the time."""
        return any(
            fault.start <= end + STALL and fault.end >= start - STALL
            for fault in self.faults
            if silences(fault, worker) or fault.kind in ("cut_broker", "kill_clients")
        )

    def killed(self, run: Run, start: float, end: float) -> str:
        """Say how the process of a run was killed between two times, or ``""``."""
        for fault in self.faults:
            mine = fault.target == run.worker and fault.pid in (0, run.pid)
            # What a warm shutdown does not end in time, the run's end shows.
            if (
                mine
                and fault.kind in KILLS
                and fault.end >= start
                and fault.start <= end
            ):
                return fault.kind
        return ""

    def history(self, task_id: str) -> str:
        """All that is known of one task, in order."""
        call = self.calls.get(task_id)
        lines: list[tuple[float, str]] = []
        if call:
            lines.append(
                (call.at, f"{call.outcome} {call.error} {call.kind} {call.key}")
            )
            lines += [(at, f"cancelled: was {was}") for at, was in call.cancelled]
        for run in self.runs:
            if run.task_id == task_id:
                where = f"attempt {run.attempt} on {run.worker} pid {run.pid}"
                lines.append((run.started, f"run begins: {where}"))
                lines.append(
                    (run.ended or float("inf"), f"run ends {run.marks}: {where}")
                )
        lines += [(at, f"{state} stored") for at, state in self.stored[task_id]]
        begin, end = min(lines)[0] - 1, max(at for at, _ in lines if at < 1e12) + 15
        for fault in self.faults:
            if fault.start <= end and fault.end >= begin:
                lines.append((fault.start, f"    {fault.kind} {fault.target}"))
                lines.append((fault.end, f"    end of {fault.kind} {fault.target}"))
        told = "\n".join(
            f"  {at - begin - 1:8.3f}  {what}" for at, what in sorted(lines)
        )
        return f"{task_id}: final {self.final.get(task_id)}\n{told}"

    def counts(self) -> Counter[str]:
        """How many ids had each final state."""
        return Counter(
            f"{state} {error}".strip() for state, error in self.final.values()
        )


def silences(fault: Fault, worker: str) -> bool:
    """Tell whether a fault keeps a worker from renewing."""
    if fault.kind in HALTS:
        return fault.target == worker
    if fault.kind in CUTS:
        return f"-{fault.target}@" in worker
    return fault.kind in OUTAGES


def entries(client: Redis, stream: str) -> list[tuple[float, dict[str, str]]]:
    """The entries of a stream, each with the time at which it was added."""
    found: Any = client.xrange(stream)
    return [(int(at.partition("-")[0]) / 1000, facts) for at, facts in found]


def calls_of(client: Redis) -> dict[str, Call]:
    """What the producers have said."""
    calls: dict[str, Call] = {}
    for at, facts in entries(client, CALLS):
        what, task_id = facts["call"], facts["task_id"]
        if what == "about":
            calls[task_id] = Call(task_id, facts["kind"], facts["key"], at)
        elif what == "cancelled":
            calls[task_id].cancelled.append((at, facts["was"]))
        elif what in ("cancelling", "uncancelled"):
            calls[task_id].cancelled.append((at, "?"))
        else:
            calls[task_id].outcome = what
            calls[task_id].error = facts.get("error", "")
    return calls


def stalls_of(client: Redis) -> list[Fault]:
    """When the machine, or somebody, did not let a worker run."""
    last: dict[str, float] = {}
    stalls = []
    for at, facts in entries(client, PULSE):
        worker = facts["worker"]
        if at - last.get(worker, at) > STALL:
            stalls.append(Fault("halted", worker, last[worker], at))
        last[worker] = at
    return stalls


def stored_of(client: Redis) -> dict[str, list[tuple[float, str]]]:
    """The final states that were stored, by id."""
    stored: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for at, facts in entries(client, OUTCOMES):
        stored[facts["task_id"]].append((at, facts["state"]))
    return stored
