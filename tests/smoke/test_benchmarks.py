"""The benchmarks run and print what they promise; how fast is another question."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.smoke.nodes import ROOT


@pytest.mark.timeout(180)
def test_the_latency_of_reports_is_printed_beside_a_bare_publish() -> None:
    """A table with its ratios, and that no report was lost over an outage."""
    environment = {name: os.environ[name] for name in os.environ if name != "REDIS_URL"}
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.report_latency"),
            *("--reports", "20", "--outage", "1"),
        ],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )

    assert shown.returncode == 0, shown.stderr
    numbers = r"(\s+\d+\.\d{2,3}){3}$"
    for name in ("bare publish to receive", "report to callback", "ratio"):
        assert re.search(f"^{name}{numbers}", shown.stdout, re.MULTILINE), shown.stdout
    told = re.search(
        r"(\d+) reports made, (\d+) taken by the store, (\d+) of them arrived: 100%",
        shown.stdout,
    )
    assert told, shown.stdout
    made, taken, arrived = map(int, told.groups())
    assert made >= taken == arrived >= 10
