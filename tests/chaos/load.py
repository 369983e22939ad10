"""Many tasks, many keys, many results: does it stay fast, and is it all given back?

::

    make load N=100000
    python -m tests.chaos.load --tasks 1000000

The scripts are called as a client and a worker call them, on an embedded server, one
call after the other. Ends with 1 if memory does not come back or a script was slow.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import psutil
from redis import Redis
from rich.progress import track

from celery_bgtask.extension import extension_of
from celery_bgtask.message import Message
from celery_bgtask.scripts import Scripts
from celery_bgtask.testing import embedded_server
from tests.chaos.loaded import LIMIT, declared
from tests.integration.acting import Acted
from tests.smoke.app import make_app
from tests.smoke.nodes import ROOT


PER_KEY = 10

#: As large as a message of a task with two short arguments.
MESSAGE = Message(b'[[42, "report"], {}, {"chain": null}]', b'{"headers": {}}' * 30)

#: Microseconds that a script may take: the server serves nobody else meanwhile.
SLOW = 50_000

#: Bytes that may be left: what the server keeps for clients, scripts and its own log.
LEFT = 3_000_000

Figures = dict[str, object]


class Load:
    """The server, the scripts and how much of everything.

    Args:
        url: An empty server.
        tasks: How many.
    """

    def __init__(self, url: str, tasks: int) -> None:
        self.url = url
        self.tasks = tasks
        self.failures: list[str] = []
        self.redis = Redis.from_url(url)
        self.conf = {
            "broker_url": url,
            "result_backend": url,
            "bgtask_redis_url": url,
            "bgtask_key_prefix": "bgtask:load",
            "bgtask_max_waiting_bytes": 2**40,
            "bgtask_dispatch_lease": 86_400.0,
            "task_default_queue": "load",
        }
        self.app = make_app("load", self.conf)
        self.task: Any = declared(self.app)
        self.scripts: Scripts = extension_of(self.app).scripts("load.work")
        self.redis.config_set("slowlog-log-slower-than", 10_000)
        self.redis.config_set("slowlog-max-len", 1000)

    def submit(self, task_id: str, key: str, *, limit: int = LIMIT) -> str:
        """Submit as a client does."""
        return self.scripts.submit(
            task_id,
            key,
            limit=limit,
            wait=True,
            max_waiting=10**9,
            rank=0,
            retries=0,
            token="",
            delay=0.0,
            nonce="n",
            message=MESSAGE,
        ).status

    def run(self, task_id: str, key: str, *, limit: int = LIMIT) -> list[str]:
        """Run as a worker does; return the tasks that got their turn by it."""
        scripts = self.scripts
        token = task_id.replace("-", "")
        named: dict[str, Any] = {"token": token, "worker": "w", "attempt": 1}
        scripts.accept(
            task_id, 1, key, limit=limit, token=token, worker="w", fresh=False,
            rank=0, retries=0,
        )  # fmt: skip
        granted = scripts.release(task_id, **named).granted
        scripts.settle(task_id, **named, remember=False, event="", owed=False)
        if granted:
            scripts.confirm(granted)
        return [task.task_id for task in granted]

    def memory(self) -> int:
        """Bytes that the server has in use."""
        # What is sent without waiting for a reply is over when this is answered.
        self.scripts.stats("none")
        info: Any = self.redis.info("memory")
        return int(info["used_memory"])

    # The parts

    def many_keys(self) -> Figures:
        """All tasks over a tenth as many keys: half of them wait at first."""
        keys = max(1, self.tasks // PER_KEY)
        ids = [(f"t-{n}", str(n % keys)) for n in range(self.tasks)]
        start = self.memory()
        submitting = timed(
            lambda: [self.submit(i, k) for i, k in bar(ids, "submitted")]
        )
        peak = self.memory()
        done = 0

        def work() -> None:
            nonlocal done
            for n in bar(range(keys), "keys worked off"):
                turn = [f"t-{n + keys * i}" for i in range(LIMIT)]
                while turn:
                    turn += self.run(turn.pop(0), str(n))
                    done += 1

        working = timed(work)
        return {
            "tasks / keys": f"{self.tasks:,} / {keys:,}",
            "run": f"{done:,}",
            "submissions a second": f"{self.tasks / submitting:,.0f}",
            "tasks worked off a second": f"{done / working:,.0f}",
            "memory at the start, peak": f"{mb(start)}, {mb(peak)}",
            "memory at the peak per task": f"{(peak - start) / self.tasks:,.0f} B",
            **self.given_back("many keys", start),
        }

    def one_key(self) -> Figures:
        """A tenth of the tasks wait for one key."""
        count = self.tasks // 10
        start = self.memory()
        times = [
            timed(lambda n=n: self.submit(f"p-{n}", "one", limit=1))  # type: ignore[misc]
            for n in bar(range(count), "parked on one key")
        ]
        peak = self.memory()
        turn, runs = ["p-0"], []
        for _ in bar(range(count), "worked off"):
            begun = time.perf_counter()
            turn = self.run(turn[0], "one", limit=1)
            runs.append(time.perf_counter() - begun)
        some = max(1, count // 100)
        return {
            "waiting on one key": f"{count - 1:,}, {mb(peak - start)}",
            "submission, first and last hundredth": first_last(times, some),
            "accept + release + settle, the same": first_last(runs, some),
            **self.given_back("one key", start),
        }

    def many_results(self) -> Figures:
        """A hundredth of the tasks are followed by one process, to their ends."""
        count = max(1, self.tasks // 100)
        start, own = self.memory(), rss()
        ended = threading.Semaphore(0)
        heard: list[float] = []
        results = []
        for _ in bar(range(count), "followed"):
            result = self.task.apply_async(("k",), task_id=None, when_full="wait")
            result.on_progress(lambda p: heard.append(p.current))
            result.on_done(lambda _: ended.release())
            results.append(result)
        peak, own_peak = self.memory(), rss()
        clients = int(self.redis.info("clients")["connected_clients"])
        begun = time.perf_counter()
        for result in bar(results, "ended"):
            run = Acted(self.task, result.id)
            run.report(1)
            run.end("done")
        for _ in results:
            assert ended.acquire(timeout=60), "an end was not told"
        took = time.perf_counter() - begun
        for result in results:
            self.redis.delete(f"celery-task-meta-{result.id}")
        self.redis.delete("load")  # the queue: nobody has run what is in it
        for name in self.redis.scan_iter("{bgtask:load:*}:progress:*", count=1000):
            self.redis.delete(name)  # they have a lifetime
        return {
            "results followed": f"{count:,}, by {clients} connections in all",
            "reports and ends heard": f"{len(heard):,} and {count:,} in {took:.1f} s",
            "memory per followed result": (
                f"server {(peak - start) / count:,.0f} B, "
                f"client {(own_peak - own) / count:,.0f} B"
            ),
            **self.given_back("results", start),
        }

    def silence(self) -> Figures:
        """A twentieth of the tasks run, and the store was away: one sweep saves all."""
        count = max(1, self.tasks // 20)
        start = self.memory()
        for n in bar(range(count), "running"):
            self.scripts.accept(
                f"s-{n}", 1, str(n), limit=LIMIT, token=f"s{n}", worker="w",
                fresh=True, rank=0, retries=0,
            )  # fmt: skip
        self.redis.delete("{bgtask:load:load.work}:sweeping")
        took = timed(lambda: self.scripts.sweep("w"))
        for n in bar(range(count), "ended"):
            named: dict[str, Any] = {"token": f"s{n}", "worker": "w", "attempt": 1}
            self.scripts.release(f"s-{n}", **named)
            self.scripts.settle(f"s-{n}", **named, remember=False, event="", owed=False)
        return {
            "the first sweep after an outage": f"{took * 1e3:.0f} ms, {count:,} runs",
            **self.given_back("silence", start),
        }

    def listing(self) -> Figures:
        """As many keys as tasks, listed as operators do."""
        scope = "{bgtask:load:load.work}"
        now = int(time.time() * 1000)
        start = self.memory()
        with self.redis.pipeline(transaction=False) as pipe:
            # What a script leaves of a key with one task; faster.
            for n in bar(range(self.tasks), "keys made"):
                pipe.hset(f"{scope}:limits", str(n), LIMIT)
                pipe.zadd(f"{scope}:slots:{n}", {f"t-{n}": now})
                if n % 1000 == 999:
                    pipe.execute()
            pipe.execute()
        figures: Figures = {"keys to list": f"{self.tasks:,}, {mb(self.memory())}"}
        for command in ("top --count 1", "keys", "keys --sort oldest --limit 10"):
            first, took, peak, count = self.operate(command)
            figures[f"celery bgtask {command}"] = (
                f"first line after {first:.1f} s, all after {took:.1f} s, "
                f"{count:,} lines, {mb(peak)}"
            )
        self.redis.flushdb()
        return {**figures, **self.given_back("listing", start)}

    def operate(self, command: str) -> tuple[float, float, int, int]:
        """Run a command; return seconds to its first line and in all, bytes, lines."""
        env = {**os.environ, "LOAD_CONF": json.dumps(self.conf)}
        begun = time.perf_counter()
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "tests.chaos.loaded"),
                *("bgtask", *command.split()),
            ],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first = time.perf_counter() - begun
            lines, peak = 1, 0
            watched = psutil.Process(process.pid)
            for lines, _ in enumerate(process.stdout, 2):
                if lines % 20_000 == 0:
                    peak = max(peak, watched.memory_info().rss)
            assert not process.wait()
        peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
        return first, time.perf_counter() - begun, peak, lines

    def given_back(self, part: str, start: int) -> Figures:
        """Say how much memory is left, once the server has given back what it can."""
        time.sleep(1)
        left = self.memory() - start
        if left > LEFT:
            self.failures.append(f"{part}: {mb(left)} of memory are left")
        return {f"memory left after {part}": mb(left)}

    def slow(self) -> Figures:
        """What the server itself found slow, and what a script takes on average."""
        entries: Any = self.redis.slowlog_get(1000)
        scripts = [e for e in entries if b"EVAL" in e["command"].upper()]
        longest = max((e["duration"] for e in scripts), default=0)
        if longest > SLOW:
            self.failures.append(f"a script took {longest / 1000:.0f} ms")
        stats: Any = self.redis.info("commandstats")
        sha = stats["cmdstat_evalsha"]
        return {
            "scripts above 10 ms (SLOWLOG)": f"{len(scripts)} of {sha['calls']:,}",
            "the longest": f"{longest / 1000:.1f} ms",
            "a script on average": f"{sha['usec_per_call']:.0f} us",
        }


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that *work* takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def bar(items: Any, what: str) -> Iterator[Any]:
    """Show how far it is."""
    sequence: Iterable[Any] = items
    yield from track(sequence, what, total=len(items), update_period=1.0)


def mb(size: int) -> str:
    """Bytes as people read them."""
    return f"{size / 1e6:,.1f} MB"


def rss() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def first_last(times: list[float], count: int) -> str:
    """Microseconds on average at the beginning and at the end."""
    first, last = (sum(part) / count * 1e6 for part in (times[:count], times[-count:]))
    return f"{first:.0f} us, {last:.0f} us"


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.load")
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("parts", nargs="*", help="only these")
    asked = parser.parse_args()
    with embedded_server() as server:
        load = Load(server.url, asked.tasks)
        parts = asked.parts or [
            "many_keys",
            "one_key",
            "silence",
            "many_results",
            "listing",
        ]
        for part in (*parts, "slow"):
            begun = time.perf_counter()
            figures = getattr(load, part)()
            print(f"{part} ({time.perf_counter() - begun:.0f} s)", flush=True)
            for name, value in figures.items():
                print(f"  {name:42} {value}", flush=True)
        for failure in load.failures:
            print(f"TOO MUCH: {failure}")
        extension_of(load.app).close()
    return bool(load.failures)


if __name__ == "__main__":
    sys.exit(main())
