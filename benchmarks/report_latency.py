"""How long a report takes to its callback, beside a bare publish of the same size.

A real worker runs one task, which reports and publishes in turn, so that both meet
the same load; this process, which has submitted the task, hears both. Then the
server is stopped and started again while another task reports.

    python -m benchmarks.report_latency
    python -m benchmarks.report_latency --reports 2000 --outage 0

``REDIS_URL`` names a server to use instead of an embedded one, and then there is no
outage.
"""

from __future__ import annotations

import argparse
import os
import platform
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import celery
from redis import Redis

from celery_bgtask import Progress
from celery_bgtask.testing import EmbeddedServer, embedded_server

from .reporting import BARE, app, go_on, sent_at, take_turns
from .workers import PATIENCE, running_worker


#: The columns of the table: shares of all messages.
SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


class Latencies:
    """How long one way has taken, message by message, in milliseconds."""

    def __init__(self) -> None:
        self._values: list[float] = []

    def add(self, sent: int) -> None:
        """Note that what was *sent* at that time has arrived now."""
        self._values.append((time.monotonic_ns() - sent) / 1e6)

    def __len__(self) -> int:
        return len(self._values)

    def quantile(self, share: float) -> float:
        """Return what *share* of the messages have not exceeded."""
        ranked = sorted(self._values)
        return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@contextmanager
def heard_bare(url: str, latencies: Latencies) -> Iterator[None]:
    """Hear the bare messages on a thread, as an application by hand would."""
    with Redis.from_url(url) as client:
        channel = client.pubsub(ignore_subscribe_messages=True)
        channel.subscribe(BARE)

        def hear() -> None:
            for message in channel.listen():
                if message["data"] == b"stop":
                    return
                latencies.add(sent_at(message["data"]))

        thread = threading.Thread(target=hear, daemon=True)
        thread.start()
        yield
        client.publish(BARE, "stop")
        thread.join(PATIENCE)


def measure(url: str, rounds: int) -> dict[str, Latencies]:
    """Return how long bare messages and reports have taken."""
    bare, ours = Latencies(), Latencies()
    with heard_bare(url, bare):
        result = take_turns.delay(rounds)
        finish(result.on_progress(lambda report: ours.add(report.data["at"])))
    return {"bare publish to receive": bare, "report to callback": ours}


def survive(server: EmbeddedServer, seconds: float) -> tuple[int, int, int]:
    """Stop the server for *seconds* while a task reports.

    Returns:
        The reports that the task has made, those that the store took, and those
        that arrived here.
    """
    arrived: list[Progress] = []
    under_way = threading.Event()

    def note(report: Progress) -> None:
        arrived.append(report)
        if report.current and report.current >= 10:  # noqa: PLR2004
            under_way.set()

    result = go_on.delay(seconds + 5).on_progress(note)
    under_way.wait(PATIENCE)
    server.restart(after=seconds)
    made = finish(result)
    last = result.last_progress  # of the log: its number counts what was taken
    return made, last.seq, len(arrived)


def finish(result: Any) -> Any:
    """Wait for the end of a task and of all callbacks before it; return its value.

    Raises:
        TimeoutError: If it does not come.
    """
    over = threading.Event()
    result.on_done(lambda _: over.set())
    if not over.wait(PATIENCE):
        raise TimeoutError(f"{result.id} has not ended within {PATIENCE:g} s")
    return result.get(PATIENCE)


def table(ways: dict[str, Latencies]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield row("milliseconds", list(SHARES))
    for name, one in ways.items():
        yield row(name, [f"{one.quantile(share):.3f}" for share in SHARES.values()])
    bare, ours = ways.values()
    ratios = (ours.quantile(share) / bare.quantile(share) for share in SHARES.values())
    yield row("ratio", [f"{ratio:.2f}" for ratio in ratios])


def row(name: str, cells: Sequence[str]) -> str:
    """Return a line of the table."""
    return f"{name:<24}" + "".join(f"{cell:>9}" for cell in cells)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--reports", type=int, default=500, metavar="N")
    parser.add_argument("--outage", type=float, default=5.0, metavar="SECONDS")
    options = parser.parse_args()
    given = os.environ.get("REDIS_URL")
    with embedded_server(url=given, appendonly=True) as server:
        app.conf.update(broker_url=server.url, result_backend=server.url)
        print(
            f"{options.reports} reports, a bare message after each; "
            f"Celery {celery.__version__}, Python {platform.python_version()}, "
            f"{os.cpu_count()} cores\n"
        )
        with running_worker("benchmarks.reporting", server.url, processes=1):
            print(*table(measure(server.url, options.reports)), sep="\n", flush=True)
            if options.outage and not given:
                made, taken, arrived = survive(server, options.outage)
                print(
                    f"\n{options.outage:g} s without the server: {made} reports made, "
                    f"{taken} taken by the store, {arrived} of them arrived: "
                    f"{arrived / taken:.0%}"
                )


if __name__ == "__main__":
    main()
