"""What must hold after a task has ended, however it did."""

from __future__ import annotations

from tests.helpers import PATIENCE, wait_until, wait_until_drained
from tests.smoke.nodes import SmokeSetup


def assert_free(smoke: SmokeSetup, key: str) -> None:
    """The key has no slot taken, its next task runs, and nothing is left."""
    ending = smoke.task("ending")

    def nothing_held() -> bool:
        stats = ending.control.stats(key)
        return not (stats.running or stats.dispatched or stats.waiting)

    wait_until(nothing_held, that="the slot is free")
    assert ending.delay(key, "succeed").get(timeout=PATIENCE) == "done"
    assert smoke.ledger.peak(key) == 1
    wait_until_drained(smoke.store, prefix=smoke.prefix)


def wait_for_start(smoke: SmokeSetup, task_id: str) -> None:
    """Wait until the body of a task has started."""
    wait_until(lambda: smoke.ledger.starts(task_id), that="it has started")
