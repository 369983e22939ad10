"""A message that was compressed is stored as it was received, and runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.smoke.nodes import SmokeSetup, WorkerSpec


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[WorkerSpec, ...]:
    """One is enough."""
    return (WorkerSpec("threads", 4),)


@pytest.mark.parametrize("name", ["single", "strict"])
def test_a_compressed_message_that_waits_runs_in_its_turn(
    smoke: SmokeSetup, key: str, name: str
) -> None:
    """Sent by name, it is stored by the worker, which has decompressed it."""
    calls: list[Any] = [
        smoke.app.send_task(
            f"tests.smoke.tasks.{name}", (key, 0.05), compression="zlib"
        )
        for _ in range(5)
    ]
    calls.append(
        smoke.task("single").apply_async((key, 0.05), compression="zlib")
        if name == "single"
        else calls[-1]
    )

    assert {result.get(timeout=30) for result in calls} == {key}
    assert smoke.ledger.peak(key) == 1
