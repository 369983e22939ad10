"""A primary is killed and its replica, which lags, takes over: what breaks, what heals.

::

    make failover
    python -m tests.chaos.failover --lag 3

Primary and replica are embedded servers; workers and the client reach them through
one proxy each, which leads to the primary and then to the replica. Before the kill
the replica is cut off for ``--lag`` seconds: what is written in that time is lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from celery import states
from redis import Redis

from celery_bgtask.testing import EmbeddedServer
from tests.chaos.tasks import LIMITS, task_of
from tests.chaos.world import LEASE, SIDES, World, kill_server
from tests.helpers import owed_keys, wait_until
from tests.smoke.nodes import WorkerContainer


KINDS = ("line", "two", "four", "offered")

#: Every so many tasks one runs for so many seconds: over the failover, if it comes so.
EVERY, LONG = 7, 4.0

#: The numbers of those, of each part, beside which one of a fresh key is called.
FRESH = frozenset({1, 3})

#: Seconds in which a healthy system is done with all that was submitted.
PATIENCE = 60.0

AMQP = "amqp://guest:guest@127.0.0.1:5672//"


class Failover:
    """One run.

    Args:
        world: Its store is the primary.
        replica: An empty server.
    """

    def __init__(self, world: World, replica: EmbeddedServer) -> None:
        self.world = world
        self.replica = replica
        self.standby = Redis.from_url(replica.url, decode_responses=True)
        self.calls: dict[str, tuple[str, float]] = {}
        self.figures: dict[str, object] = {}
        self.workers: list[WorkerContainer] = []
        self.restarts = 0

    def run(self, *, lag: float, seconds: float) -> dict[str, object]:
        """Work, fail over, heal; return what was measured."""
        primary = self.world.store
        self.standby.replicaof("127.0.0.1", primary.port)
        wait_until(self._is_synced, that="the replica has all")
        self.workers = [self.world.start_worker(newer=False) for _ in SIDES]
        self.world.wait_for_workers()
        self._submit("before", seconds)
        # From here on the replica gets nothing: a link that is cut, or a replica that
        # is slow. It still believes in its primary.
        self.standby.replicaof("127.0.0.1", 1)
        cut = self.world.now()
        self._submit("lost", lag)
        kill_server(primary)
        self.standby.replicaof("NO", "ONE")
        self.world.lead_to(self.replica)
        failover = self.world.now()
        self._submit("after", seconds)
        self._heal(failover)
        self._measure(cut, failover)
        return self.figures

    def _submit(self, when: str, seconds: float) -> None:
        """Call tasks for so long, more than the workers can do at once.

        Some are of keys that nothing else has used before: what the replica does not
        know of these, it cannot take for busy.
        """
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            kind = KINDS[number % len(KINDS)]
            long = number % EVERY == 0
            self._call(f"{when}.{number}", kind, "k", LONG if long else 0.3)
            if when != "before" and number in FRESH:
                self._call(f"{when}.fresh{number}", "line", f"fresh{number}", 3 * LONG)
            self._supervise()
            time.sleep(0.2)

    def _call(self, task_id: str, kind: str, key: str, seconds: float) -> None:
        task = task_of(self.world.app, kind)
        try:
            task.apply_async((f"{kind}/{key}", seconds), task_id=task_id)
        except Exception as exc:  # noqa: BLE001 - counted
            print(f"  {task_id}: {type(exc).__name__}: {exc}")
        else:
            self.calls[task_id] = (kind, self.world.now())

    def _heal(self, failover: float) -> None:
        """Wait; then check, repair and publish again, and say what each has done."""
        left = self._wait()
        self.figures["seconds until nothing moved by itself"] = round(
            self.world.now() - failover, 1
        )
        self.figures["open then"] = dict(Counter(self._where(i) for i in left))
        findings: Counter[str] = Counter()
        republished = mended = 0
        for name in LIMITS:
            control = task_of(self.world.app, name).control
            found = control.check()
            findings.update(finding.problem for finding in found)
            mended += len(control.repair())
            for finding in found:
                if finding.problem == "message-lost":
                    republished += control.redispatch(finding.subject)
        self.figures["check finds"] = dict(findings) or "nothing"
        self.figures["repair mends"] = mended
        self.figures["redispatch publishes"] = republished
        left = self._wait()
        self.figures["open at the end"] = dict(Counter(self._where(i) for i in left))
        names = owed_keys(self.world.redis, self.world.prefix)
        self.figures["slots and places left"] = len(names)

    def _wait(self) -> list[str]:
        """Wait until all has ended, or nothing has for a dispatch lease and more."""
        end = time.monotonic() + PATIENCE
        last, since = -1, time.monotonic()
        while True:
            left = [i for i in self.calls if self._state(i) not in states.READY_STATES]
            self._supervise()
            now = time.monotonic()
            if len(left) != last:
                last, since = len(left), now
            if not left or now - since > 2 * LEASE or now > end:
                return left
            time.sleep(0.5)

    def _supervise(self) -> None:
        """Start workers again that have ended, as a service manager does."""
        for number, worker in enumerate(self.workers):
            if worker.status == "exited":
                self.restarts += 1
                self.world.ledger.gone(worker.name)
                self.workers[number] = self.world.start_worker(newer=False)

    def _measure(self, cut: float, failover: float) -> None:
        runs = self.world.ledger.runs()
        starts = Counter(run.task_id for run in runs)
        lost = [i for i in self.calls if self._state(i) not in states.READY_STATES]
        again = {i: n - 1 for i, n in starts.items() if n > 1}
        figures = self.figures
        for when in ("before", "lost", "after"):
            mine = [i for i in self.calls if i.startswith(when)]
            figures[f"submitted {when}"] = len(mine)
            figures[f"... never ran, of {when}"] = sum(not starts[i] for i in mine)
            figures[f"... ran again, of {when}"] = sum(again.get(i, 0) for i in mine)
            figures[f"... without a result, of {when}"] = sum(i in lost for i in mine)
        above = {key: self._above(key) for key in {run.key for run in runs}}
        figures["keys that ran more than their limit"] = {
            key: f"{self.world.ledger.peak(key)}/{LIMITS[key.partition('/')[0]]}"
            for key, seconds in sorted(above.items())
            if seconds
        }
        figures["... for seconds, at most"] = round(max(above.values()), 1)
        figures["workers that ended, and were started again"] = self.restarts
        after = [run.started for run in runs if run.started > failover]
        figures["first start after the failover"] = (
            f"{min(after) - failover:.1f} s" if after else "none"
        )
        figures["replica lagged for"] = f"{failover - cut:.1f} s"

    def _above(self, key: str) -> float:
        """Seconds in which a key ran more than its limit."""
        total = last = 0.0
        now = 0
        steps: list[tuple[float, int]] = []
        for run in self.world.ledger.runs(key=key):
            steps += [(run.started, 1), (run.ended or run.seen, -1)]
        for at, step in sorted(steps):
            total += at - last if now > LIMITS[key.partition("/")[0]] else 0.0
            now, last = now + step, at
        return total

    def _state(self, task_id: str) -> str:
        return str(self.world.app.backend.get_state(task_id))

    def _where(self, task_id: str) -> str:
        """Where the store has a task."""
        kind, _ = self.calls[task_id]
        told = task_of(self.world.app, kind).control.explain(task_id)
        return told.state or told.reason

    def _is_synced(self) -> bool:
        info: Any = self.standby.info("replication")
        return str(info.get("master_link_status")) == "up"


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.failover")
    parser.add_argument("--lag", type=float, default=3.0, help="seconds that are lost")
    parser.add_argument("--seconds", type=float, default=8.0, help="before and after")
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    asked = parser.parse_args()
    amqp = os.environ.get("BGTASK_TEST_AMQP_URL", AMQP)
    with tempfile.TemporaryDirectory(prefix="failover-") as folder:
        replica = EmbeddedServer(appendonly=True)
        replica.start()
        world = World(Path(folder), amqp=amqp if asked.broker == "rabbitmq" else None)
        try:
            figures = Failover(world, replica).run(lag=asked.lag, seconds=asked.seconds)
        finally:
            world.close()
            replica.close()
    for name, value in figures.items():
        print(f"{name:40} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
