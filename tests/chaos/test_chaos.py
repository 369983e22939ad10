"""A short chaos run with a fixed seed; ``make chaos`` has the long ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.driver import run_chaos
from tests.smoke.nodes import KOMBU


pytestmark = [
    pytest.mark.chaos,
    pytest.mark.slow,
    pytest.mark.worker,
    pytest.mark.timeout(600),
    pytest.mark.skipif(KOMBU < (5, 7), reason="this kombu gives back too late"),
]

SEED = 20
SECONDS = 15.0


def test_what_is_promised_holds_whatever_dies(tmp_path: Path) -> None:
    """Workers and producers are killed and stopped; store and network are slow."""
    report = run_chaos(SEED, SECONDS, tmp_path, rate=6.0, mild=True)

    assert not report.violations, f"{report}\nlogs in {tmp_path}"
    assert report.figures["runs"]
