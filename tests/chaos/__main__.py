"""Chaos by seed; see the driver. Ends with 1 if a promise was not kept.

::

    make chaos SEED=7 MINUTES=60 BROKER=rabbitmq
    python -m tests.chaos --seed 7 --minutes 60 --broker rabbitmq
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests.chaos.driver import run_chaos


AMQP = "amqp://guest:guest@127.0.0.1:5672//"


def main() -> int:
    """Run as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))  # noqa: S311
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--broker", choices=["redis", "rabbitmq"], default="redis")
    parser.add_argument("--mild", action="store_true", help="as the short test")
    asked = parser.parse_args()
    amqp = os.environ.get("BGTASK_TEST_AMQP_URL", AMQP)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = run_chaos(
        asked.seed,
        asked.minutes * 60,
        folder,
        mild=asked.mild,
        amqp=amqp if asked.broker == "rabbitmq" else None,
        say=lambda line: print(line, flush=True),
    )
    print(report)
    if report.violations:
        print(f"logs: {folder}")
        print(f"again: make chaos SEED={asked.seed} MINUTES={asked.minutes:g}")
    else:
        shutil.rmtree(folder)
    return bool(report.violations)


if __name__ == "__main__":
    sys.exit(main())
