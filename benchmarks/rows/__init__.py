"""The rows of the table, a module for what belongs together."""

from __future__ import annotations

from ..row import Row
from . import (
    delays,
    hand_off,
    jobs,
    latency,
    memory,
    quiet_key,
    reports,
    server_time,
    throughput,
)


__all__ = ["ROWS"]

MODULES = (
    throughput, latency, delays, jobs, hand_off, reports, quiet_key, server_time,
    memory,
)  # fmt: skip

ROWS: tuple[Row, ...] = tuple(row for module in MODULES for row in module.ROWS)
