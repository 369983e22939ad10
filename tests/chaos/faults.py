"""What happens to the world, by chance: each fault is done, noted and undone."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
from redis.exceptions import RedisError

from tests.chaos.world import LEASE, SIDES, World, kill_server
from tests.smoke.nodes import LocalContainer, WorkerContainer


@dataclass
class Fault:
    """Something that happened; *target* is a worker, a side, or ``""``: all.

    Attributes:
        kind: What was done.
        target: To whom.
        start: The ledger's time before it was done, in seconds.
        end: The ledger's time after it was undone.
        pid: The process, if it was one of a pool.
    """

    kind: str
    target: str
    start: float
    end: float = float("inf")
    pid: int = 0


#: Kinds, and how often each is chosen.
WEIGHTS = {
    "kill_worker": 4,
    "kill_child": 4,
    "term_worker": 3,
    "quit_worker": 2,
    "stop_worker": 3,
    "hang_worker": 1,
    "kill_producer": 2,
    "stop_producer": 1,
    "kill_store": 2,
    "pause_store": 2,
    "kill_pubsub": 2,
    "kill_clients": 1,
    "flush_scripts": 2,
    "cut_line": 3,
    "hold_line": 1,
    "delay_line": 3,
    "part_line": 1,
    "cut_broker": 0,
}

#: Those after which Celery and kombu themselves do all that they should.
MILD = frozenset(WEIGHTS) - {
    *("quit_worker", "kill_store", "kill_clients"),
    *("cut_line", "hold_line", "part_line", "cut_broker"),
}

#: Seconds that a worker takes to end of itself, at most: what it ran is gone first.
CRASH = 10.0

Undo = Callable[[], None]


class Faults:
    """Does one bad thing after the other to *world*.

    Args:
        world: What it is done to.
        seed: Of its choices.
        pause: Seconds between two, on average.
        keys: How many keys each kind of task has.
        rate: Calls a second of each producer.
        mild: Only what Celery and kombu themselves come through unharmed.
    """

    def __init__(
        self,
        world: World,
        seed: int,
        *,
        pause: float,
        keys: int,
        rate: float,
        mild: bool = False,
    ) -> None:
        self.world = world
        self.dice = random.Random(seed)  # noqa: S311 - chance, not secrets
        self.done: list[Fault] = []
        self._pause = pause
        self._keys = keys
        self._rate = rate
        self._undo: list[tuple[float, str, Undo]] = []
        self._weights = dict(WEIGHTS)
        if world.lines is not world.broker_lines:
            self._weights["cut_broker"] = 4
        if mild:
            self._weights = {kind: WEIGHTS[kind] for kind in sorted(MILD)}
        self._workers = [world.start_worker(newer=i == 0) for i in range(3)]
        self._producers = [self._start_producer(f"p{i}-0") for i in range(2)]

    def run(self, seconds: float) -> None:
        """Go on for so long, then undo what is left."""
        end = time.monotonic() + seconds
        at = time.monotonic() + 1.0
        while (now := time.monotonic()) < end:
            self._undo_until(now)
            self.supervise()
            if now >= at:
                (kind,) = self.dice.choices(
                    list(self._weights), list(self._weights.values())
                )
                getattr(self, kind)()
                at = time.monotonic() + self.dice.uniform(0.3, 2 * self._pause)
            time.sleep(0.05)
        self._undo_until(float("inf"))

    def supervise(self) -> None:
        """Replace workers that have ended of themselves, as a service manager does.

        kombu 5.7 raises where it gives back messages over a connection that is gone
        (``'NoneType' object has no attribute 'hostname'``), and ends its worker.
        """
        for number, worker in enumerate(self._workers):
            if worker.status == "exited":
                worker.kill("SIGKILL")
                self.world.ledger.gone(worker.name)
                self._end(self._note("crashed", worker.name, ago=CRASH))
                self._workers[number] = self._start_worker()

    # Processes

    def kill_worker(self) -> None:
        """SIGKILL, all its processes."""
        number, worker = self._worker()
        fault = self._note("kill_worker", worker.name)
        worker.kill("SIGKILL")
        self.world.ledger.gone(worker.name)
        self._end(fault)
        self._workers[number] = self._start_worker()

    def kill_child(self) -> None:
        """SIGKILL, one process of its pool."""
        _, worker = self._worker()
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(worker.pid).children()
            if not children:
                return
            pid = self.dice.choice(children).pid
            # Its worker notices at once: told before, the slot is not seen twice; and
            # after, what it began in between is over, too.
            self.world.ledger.gone(worker.name, pid=pid)
            fault = self._note("kill_child", worker.name, pid=pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.world.ledger.gone(worker.name, pid=pid)
            self._end(fault)

    def term_worker(self) -> None:
        """SIGTERM: it ends what it runs and goes."""
        number, worker = self._worker()
        self._end(self._note("term_worker", worker.name))
        worker.kill("SIGTERM")
        self.world.leaving.append(worker)
        self._workers[number] = self._start_worker()

    def quit_worker(self) -> None:
        """SIGQUIT: it goes at once."""
        number, worker = self._worker()
        fault = self._note("quit_worker", worker.name)
        worker.kill("SIGQUIT")
        self._workers[number] = self._start_worker()

        def bury() -> None:
            if worker.status == "running":
                worker.kill("SIGKILL")
            self.world.ledger.gone(worker.name)
            self._end(fault)

        self._later(LEASE / 2, worker.name, bury)

    def stop_worker(self) -> None:
        """SIGSTOP and SIGCONT, before its leases run out."""
        self._halt(self._worker()[1], self.dice.uniform(0.1, LEASE / 2), "stop_worker")

    def hang_worker(self) -> None:
        """SIGSTOP and SIGCONT, when its leases have run out."""
        seconds = self.dice.uniform(1.2, 1.8) * LEASE
        self._halt(self._worker()[1], seconds, "hang_worker")

    def kill_producer(self) -> None:
        """SIGKILL; another one takes its place."""
        number = self.dice.randrange(len(self._producers))
        producer = self._producers[number]
        self._end(self._note("kill_producer", producer.name))
        producer.kill("SIGKILL")
        name, _, age = producer.name.partition("-")
        self._producers[number] = self._start_producer(f"{name}-{int(age) + 1}")

    def stop_producer(self) -> None:
        """SIGSTOP and SIGCONT."""
        producer = self.dice.choice(self._producers)
        self._halt(producer, self.dice.uniform(0.1, LEASE), "stop_producer")

    # The store

    def kill_store(self) -> None:
        """SIGKILL; it comes back with what it had."""
        if self._is_busy(""):
            return
        fault = self._note("kill_store", "")
        kill_server(self.world.store)

        def start() -> None:
            self.world.start_store()
            self._end(fault)

        self._later(self.dice.choice([0.1, 1.0, LEASE]), "", start)

    def pause_store(self) -> None:
        """CLIENT PAUSE, of everything."""
        seconds = self.dice.uniform(0.1, LEASE / 2)
        fault = self._note("pause_store", "")
        self._ask("CLIENT", "PAUSE", int(seconds * 1000), "ALL")
        self._later(seconds, "pause", lambda: self._end(fault))

    def kill_pubsub(self) -> None:
        """CLIENT KILL, of those that listen."""
        self._end(self._note("kill_pubsub", ""))
        self._ask("CLIENT", "KILL", "TYPE", "pubsub")

    def kill_clients(self) -> None:
        """CLIENT KILL, of all others."""
        self._end(self._note("kill_clients", ""))
        self._ask("CLIENT", "KILL", "TYPE", "normal")

    def flush_scripts(self) -> None:
        """SCRIPT FLUSH."""
        self._end(self._note("flush_scripts", ""))
        self._ask("SCRIPT", "FLUSH")

    # The network

    def cut_line(self) -> None:
        """Connections to the store are broken, for less than a lease."""
        self._break(self.dice.uniform(0.1, LEASE / 2), "cut_line")

    def part_line(self) -> None:
        """The same, for longer than a lease."""
        self._break(self.dice.uniform(1.2, 1.8) * LEASE, "part_line")

    def hold_line(self) -> None:
        """Nothing comes through, and nobody is told."""
        self._break(self.dice.uniform(0.5, LEASE / 2), "hold_line")

    def delay_line(self) -> None:
        """Everything comes late."""
        self._break(self.dice.uniform(1.0, LEASE), "delay_line")

    def cut_broker(self) -> None:
        """Connections to RabbitMQ are broken."""
        side = self.dice.choice(SIDES)
        fault = self._note("cut_broker", side)
        self.world.broker_lines[side].cut()

        def mend() -> None:
            self.world.broker_lines[side].mend()
            self._end(fault)

        self._later(self.dice.uniform(0.1, 3.0), f"broker {side}", mend)

    # How it is done

    def _break(self, seconds: float, kind: str) -> None:
        side = self.dice.choice(SIDES)
        late = self.dice.uniform(0.02, 0.2)
        if self._is_busy(side):
            return
        fault = self._note(kind, side)
        line = self.world.lines[side]
        if kind == "hold_line":
            line.hold()
        elif kind == "delay_line":
            line.delay(late)
        else:
            line.cut()

        def mend() -> None:
            line.mend()
            self._end(fault)

        self._later(seconds, side, mend)

    def _halt(self, process: LocalContainer, seconds: float, kind: str) -> None:
        if self._is_busy(process.name):
            return
        fault = self._note(kind, process.name)
        process.kill("SIGSTOP")

        def go_on() -> None:
            process.kill("SIGCONT")
            self._end(fault)

        self._later(seconds, process.name, go_on)

    def _worker(self) -> tuple[int, WorkerContainer]:
        number = self.dice.randrange(len(self._workers))
        return number, self._workers[number]

    def _start_worker(self) -> WorkerContainer:
        return self.world.start_worker(newer=self.dice.random() < 0.4)

    def _start_producer(self, name: str) -> LocalContainer:
        return self.world.start_producer(
            name, self.dice.randrange(2**31), keys=self._keys, pause=1 / self._rate
        )

    def _ask(self, *command: object) -> None:
        if not self._is_busy(""):
            with contextlib.suppress(RedisError):
                self.world.redis.execute_command(*command)

    def _note(self, kind: str, target: str, *, pid: int = 0, ago: float = 0.0) -> Fault:
        fault = Fault(kind, target, self.world.now() - ago, pid=pid)
        self.done.append(fault)
        return fault

    def _end(self, fault: Fault) -> None:
        fault.end = self.world.now()

    def _is_busy(self, target: str) -> bool:
        return any(name == target for _, name, _ in self._undo)

    def _later(self, seconds: float, target: str, undo: Undo) -> None:
        self._undo.append((time.monotonic() + seconds, target, undo))

    def _undo_until(self, now: float) -> None:
        for entry in [entry for entry in self._undo if entry[0] <= now]:
            self._undo.remove(entry)
            entry[2]()
