"""How long an offered task takes, beside plain Celery's, from the call on.

One worker of two processes runs both, in blocks that take turns, so that they meet
the same load. A call is made when the one before has its result: this measures how
long a task takes that finds a free worker, not how many fit into a second.

    python -m benchmarks.offers
    python -m benchmarks.offers --tasks 2000 --trips

``REDIS_URL`` names a server to use instead of an embedded one. ``--trips`` also
counts what the server is asked for one task of each kind, by whom.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import celery
from redis import Redis

from celery_bgtask.scripts.loader import SCRIPTS
from celery_bgtask.testing import embedded_server

from .tasks import app, tasks
from .workers import PATIENCE, running_worker


#: Calls of one kind in a row.
BLOCK = 25

#: The columns of the table: shares of all calls.
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

#: What is compared; the first is what the others are compared with.
KINDS: dict[str, Any] = {
    "plain Celery": tasks.plain,
    "bgtask, by the broker": tasks.limited,
    "bgtask, offered": tasks.offered,
}

#: How many milliseconds each call has taken, by kind.
Times = dict[str, list[float]]


def measure(rounds: int) -> tuple[Times, Times]:
    """Return how long calls took to their start, and to their result."""
    starts: Times = {kind: [] for kind in KINDS}
    results: Times = {kind: [] for kind in KINDS}
    for kind, task in KINDS.items():  # connections are made, scripts are loaded
        for _ in range(BLOCK):
            task.delay().get(PATIENCE)
        del kind
    for _ in range(rounds):
        for kind, task in KINDS.items():
            for _ in range(BLOCK):
                called = time.monotonic_ns()
                begun = task.delay().get(PATIENCE)
                ended = time.monotonic_ns()
                starts[kind].append((begun - called) / 1e6)
                results[kind].append((ended - called) / 1e6)
    return starts, results


def table(title: str, times: Times) -> Iterator[str]:
    """Yield the lines of a table: milliseconds, and the ratio to the first kind."""
    yield row(title, [*SHARES, *(f"x {name}" for name in SHARES)])
    first, *_ = times.values()
    for kind, values in times.items():
        cells = [quantile(values, share) for share in SHARES.values()]
        ratios = [
            cell / quantile(first, share)
            for cell, share in zip(cells, SHARES.values(), strict=True)
        ]
        texts = [f"{cell:.2f}" for cell in cells] + [f"{r:.2f}" for r in ratios]
        yield row(kind, texts)


def quantile(values: Sequence[float], share: float) -> float:
    """Return what *share* of the values do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


def row(name: str, cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return f"{name:<28}" + "".join(f"{cell:>9}" for cell in cells)


# What one task costs the server


def trips(url: str, task: Any) -> Counter[tuple[str, str]]:
    """Return the commands that one call causes, by connection and name."""
    seen: list[dict[str, Any]] = []
    names = {script.sha: script.name for script in SCRIPTS.values()}
    with Redis.from_url(url) as client, client.monitor() as monitor:

        def listen() -> None:
            command: Any
            for command in monitor.listen():
                seen.append(command)
                if command["command"] == "ECHO over":
                    return

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        client.echo("begin")
        task.delay().get(PATIENCE)
        time.sleep(0.1)  # what nobody waits for comes after the result
        client.echo("over")
        thread.join(PATIENCE)
    ports: dict[str, str] = {}
    found: Counter[tuple[str, str]] = Counter()
    for command in seen:
        if command["client_type"] == "lua" or "ECHO" in command["command"]:
            continue
        port = ports.setdefault(command["client_port"], f"connection {len(ports) + 1}")
        name, _, rest = command["command"].partition(" ")
        sha = re.match(r"[0-9a-f]{40}", rest)
        found[port, str(names.get(sha[0], name) if sha else name)] += 1
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--tasks", type=int, default=500, metavar="N", help="a kind")
    parser.add_argument("--trips", action="store_true")
    options = parser.parse_args()
    rounds = max(options.tasks // BLOCK, 1)
    with embedded_server(url=os.environ.get("REDIS_URL")) as server:
        app.conf.update(broker_url=server.url, result_backend=server.url)
        print(
            f"{rounds * BLOCK} tasks of each kind, one after the other, prefork; "
            f"Celery {celery.__version__}, Python {platform.python_version()}, "
            f"{os.cpu_count()} cores\n"
        )
        with running_worker("benchmarks.tasks", server.url):
            starts, results = measure(rounds)
            print(*table("ms from call to start", starts), "", sep="\n")
            print(*table("ms from call to result", results), sep="\n", flush=True)
            for kind, task in KINDS.items() if options.trips else ():
                print(f"\n{kind}:")
                for (port, name), count in trips(server.url, task).items():
                    print(f"  {port:<14} {name:<12} {count:>3}")


if __name__ == "__main__":
    main()
