"""From a report to the callback of who follows the task."""

from __future__ import annotations

from collections.abc import Iterator

from ..report_latency import measure as measure_reports
from ..reporting import app
from ..row import Row, at_most
from ..workers import running_worker
from ..world import World


__all__ = ["ROWS"]

#: Reports in a round.
REPORTS, SHORT_REPORTS = 60, 30


def measure(world: World, rounds: int) -> Iterator[float]:
    """Yield our time by that of a bare publish to its receiver, p50."""
    app.conf.update(broker_url=world.url, result_backend=world.url)
    with running_worker("benchmarks.reporting", world.url, processes=1):
        for _ in range(rounds):
            count = SHORT_REPORTS if world.short else REPORTS
            bare, ours = measure_reports(world.url, count).values()
            yield ours.quantile(0.5) / bare.quantile(0.5)
    world.close(app)


ROWS = (
    Row(
        "progress",
        "progress report to callback, p50",
        "bare Redis publish to receive",
        at_most(2.0),
        measure,
        rounds=(7, 2),
    ),
)
