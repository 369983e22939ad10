"""What really ran, and when: kept beside the store, by the tasks themselves.

A stream of starts and ends in the order in which the server took them. Nothing of
the package is used to write or to read it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from redis import Redis


STREAM = "ledger:runs"
RELEASED = "ledger:released:"

#: What a body gets in place of seconds, to run until the test releases its task.
HELD = "held"

#: Seconds after which a body that nobody releases gives up.
CEILING = 90.0


@dataclass
class Run:
    """One execution of a task's body; *seen* is when it last wrote something."""

    task_id: str
    key: str
    attempt: int
    worker: str
    pid: int
    started: float
    ended: float | None = None
    seen: float = 0.0
    marks: list[str] = field(default_factory=list)

    def ran_in(self, gone: dict[str, str]) -> bool:
        """Tell whether it ran in the process, or worker, that is gone."""
        return _is_of(gone, self.worker, str(self.pid))

    @property
    def lasted(self) -> float:
        """Seconds from its start to its end; it must have one."""
        assert self.ended is not None, f"{self} never ended"
        return self.ended - self.started


class Writer:
    """Writes down one run, from inside the task."""

    def __init__(self, client: Redis, task_id: str) -> None:
        self._client = client
        self._task_id = task_id
        self._run = f"{task_id}/{os.urandom(4).hex()}"
        self._begun = time.monotonic()

    def work(self, seconds: float | str) -> None:
        """Run for so many seconds; if they are ``HELD``, until released."""
        for _ in self.steps(seconds):
            pass

    def steps(self, seconds: float | str) -> Iterator[None]:
        """Run so long in steps of a moment; the time counts from the run's start."""
        held = seconds == HELD
        end = self._begun + (CEILING if held else float(seconds))
        while (left := end - time.monotonic()) > 0:
            if held and self._client.exists(RELEASED, RELEASED + self._task_id):
                return
            yield
            time.sleep(min(left, 0.05))
        if held:
            raise TimeoutError(f"nobody has released {self._task_id}")

    def mark(self, text: str) -> None:
        """Note that the body has come to some place."""
        self.add("mark", text=text)

    def add(self, event: str, **facts: Any) -> None:
        """Append an event of this run."""
        fields: dict[Any, Any] = {"event": event, "run": self._run, **facts}
        self._client.xadd(STREAM, fields)


@contextmanager
def recorded(client: Redis, request: Any, key: str) -> Iterator[Writer]:
    """Write down the start of the body, and its end if the process lives so long."""
    writer = Writer(client, request.id)
    writer.add(
        "start",
        task_id=request.id,
        key=key,
        attempt=request.retries or 0,
        worker=request.hostname or "",
        pid=os.getpid(),
    )
    try:
        yield writer
    finally:
        writer.add("end")


class Ledger:
    """Reads what the tasks have written.

    Runs without an end count as running until :meth:`gone` says that their
    process is no more.
    """

    def __init__(self, client: Redis) -> None:
        self.client = client

    def clear(self) -> None:
        """Forget all runs."""
        self.client.delete(STREAM, RELEASED)

    def release(self, *results: Any) -> None:
        """Let the bodies of these tasks go on that are ``HELD``, now and later."""
        for result in results:
            self.client.set(RELEASED + result.id, 1)

    def release_all(self) -> None:
        """The same for all tasks, until :meth:`clear`."""
        self.client.set(RELEASED, 1)

    def gone(self, worker: str, *, pid: int = 0) -> None:
        """Note that a process of a worker is gone, or all: what it ran has ended."""
        self.client.xadd(STREAM, {"event": "gone", "worker": worker, "pid": pid})

    def events(self) -> list[tuple[float, dict[str, str]]]:
        """All events with the server's time, in order."""
        entries: Any = self.client.xrange(STREAM)
        return [(int(at.partition("-")[0]) / 1000, facts) for at, facts in entries]

    def runs(self, *, key: str | None = None, task_id: str | None = None) -> list[Run]:
        """The runs in the order of their starts, of one key or task if given."""
        runs: dict[str, Run] = {}
        for at, facts in self.events():
            if facts["event"] == "start":
                runs[facts["run"]] = Run(
                    task_id=facts["task_id"],
                    key=facts["key"],
                    attempt=int(facts["attempt"]),
                    worker=facts["worker"],
                    pid=int(facts["pid"]),
                    started=at,
                    seen=at,
                )
            elif facts["event"] == "gone":
                for run in runs.values():
                    if run.ended is None and run.ran_in(facts):
                        run.ended = at
            elif facts["run"] not in runs:
                continue  # it has started in an earlier test
            else:
                runs[facts["run"]].seen = at
                if facts["event"] == "end":
                    runs[facts["run"]].ended = at
                else:
                    runs[facts["run"]].marks.append(facts["text"])
        return [
            run
            for run in runs.values()
            if key in (None, run.key) and task_id in (None, run.task_id)
        ]

    def starts(self, task_id: str) -> int:
        """How often the body of a task has started."""
        return len(self.runs(task_id=task_id))

    def order(self, key: str | None = None) -> list[str]:
        """The ids of a key's (or of all) tasks in the order of their starts."""
        return [run.task_id for run in self.runs(key=key)]

    def peak(self, key: str | None = None) -> int:
        """How many bodies of a key (or of all) ran at once, at most."""
        # Not from the times of the runs: within one of their milliseconds a run may
        # end and the next one start.
        running: dict[str, dict[str, str]] = {}
        peak = 0
        for _, facts in self.events():
            if facts["event"] == "start" and key in (None, facts["key"]):
                running[facts["run"]] = facts
                peak = max(peak, len(running))
            elif facts["event"] == "end":
                running.pop(facts["run"], None)
            elif facts["event"] == "gone":
                running = {
                    run: start
                    for run, start in running.items()
                    if not _is_of(facts, start["worker"], start["pid"])
                }
        return peak

    def running(self, key: str) -> int:
        """How many bodies of a key run now."""
        return sum(run.ended is None for run in self.runs(key=key))

    def overlaps(self, task_id: str) -> int:
        """How many bodies of one task ran at once, at most: one, if all is well."""
        events = []
        for run in self.runs(task_id=task_id):
            events += [(run.started, 1), (run.ended or float("inf"), -1)]
        now = most = 0
        for _, step in sorted(events):
            now += step
            most = max(most, now)
        return most


def _is_of(gone: dict[str, str], worker: str, pid: str) -> bool:
    return gone["worker"] == worker and gone["pid"] in ("0", pid)
