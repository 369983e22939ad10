"""Run Celery's own integration tests without and with BgTask under every task.

::

    make test-celery-integration CELERY=path/to/celery
    python -m tests.celery_integration path/to/celery [--limit N] [pytest arguments]

The path is of Celery's source of the installed release, with its tests, from either::

    git clone --branch v5.7.0 --depth 1 https://github.com/celery/celery
    pip download celery==5.7.0 --no-deps --no-binary :all:  # a tar archive

The installed Celery is what runs; of the path only ``t/integration`` is used. Broker,
results and slots are in an embedded Valkey, or in ``REDIS_URL``, whose data the tests
change; ``TEST_BROKER`` names another broker. Tests whose outcomes differ are run again,
alone: some of Celery's tests depend on time. Ends with 1 if a difference stays.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from redis import Redis

from celery_bgtask.testing import embedded_server
from tests.celery_integration.plugin import LIMIT, REPORT


ROOT = Path(__file__).parents[2]
MODULES = ("test_tasks.py", "test_canvas.py")

#: How often a test is run again, in each way, whose outcomes differ.
RERUNS = 3

#: Tests that ask for what a bgtask is there to prevent.
BY_DESIGN = {
    "test_chord_header_id_duplicated_on_rabbitmq_msg_duplication": (
        "it publishes a message twice and wants both copies to run"
    ),
}


class Outcome(NamedTuple):
    """How a test ended."""

    word: str
    cause: str = ""


class Runner:
    """Runs tests of a Celery source in the one way or the other.

    Args:
        source: Celery's source.
        url: Of the Redis server.
        limit: ``max_per_key`` of every task, 0 for none.
        options: For pytest.
    """

    def __init__(self, source: Path, url: str, limit: int, options: list[str]) -> None:
        self._source = source
        self._url = url
        self._limit = limit
        self._options = options

    def run(self, tests: list[str], *, limited: bool) -> dict[str, Outcome]:
        """Run *tests* and return their outcomes."""
        with Redis.from_url(self._url) as client:
            client.flushdb()
        with tempfile.NamedTemporaryFile() as report:
            subprocess.run(
                [
                    *(sys.executable, "-m", "pytest", "-q", "--import-mode=append"),
                    *("-p", "tests.celery_integration.plugin", "-p", "no:randomly"),
                    *("-c", str(self._source / "pyproject.toml")),
                    *("--tb=short", *self._options, *tests),
                ],
                cwd=ROOT,
                env=self._environment(report.name, limited=limited),
                check=False,  # its outcomes are what we compare
            )
            lines = Path(report.name).read_text(encoding="utf-8").splitlines()
        return {
            line["test"]: Outcome(line["outcome"], line["cause"])
            for line in map(json.loads, lines)
        }

    def _environment(self, report: str, *, limited: bool) -> dict[str, str]:
        server = urlsplit(self._url)
        environment = {
            "TEST_BROKER": self._url,
            **os.environ,
            "TEST_BACKEND": self._url,
            "REDIS_HOST": server.hostname or "127.0.0.1",
            "REDIS_PORT": str(server.port or 6379),
            REPORT: report,
        }
        return environment | {LIMIT: str(self._limit)} if limited else environment


def differences(
    plain: dict[str, Outcome], limited: dict[str, Outcome]
) -> dict[str, tuple[Outcome, Outcome]]:
    """Return the tests that did not end alike, with both outcomes."""
    missing = Outcome("not run")
    return {
        test: (plain.get(test, missing), limited.get(test, missing))
        for test in [*plain, *(limited.keys() - plain.keys())]
        if plain.get(test, missing).word != limited.get(test, missing).word
    }


def by_design(test: str) -> str:
    """Return why *test* must end otherwise with BgTask, nothing if it must not."""
    reason = BY_DESIGN.get(test.rpartition("::")[2].partition("[")[0], "")
    return reason and f"by design, {reason}"


def stays(runner: Runner, source: Path, test: str) -> bool:
    """Tell whether *test* differs when it is run alone, again and again."""
    words = []
    for limited in (False, True):
        ends = [
            runner.run([str(source / test)], limited=limited).get(test)
            for _ in range(RERUNS)
        ]
        words.append({end.word if end else "not run" for end in ends})
    print(f"{test} alone: {words[0]} without, {words[1]} with")
    return words[0] != words[1]


def summary(name: str, outcomes: dict[str, Outcome]) -> None:
    """Print how many tests ended in which way."""
    counted = collections.Counter(end.word for end in outcomes.values())
    print(f"{name:>8}:", ", ".join(f"{n} {word}" for word, n in counted.most_common()))


def main() -> int:
    """Run the tests twice and print the difference."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="of Celery, with its tests")
    parser.add_argument("--limit", type=int, default=0, help="max_per_key, 0: none")
    parsed, options = parser.parse_known_args()
    source: Path = parsed.source.resolve()
    tests = [str(source / "t" / "integration" / module) for module in MODULES]
    for test in tests:
        if not Path(test).exists():
            parser.error(f"there is no {test}")

    with embedded_server(url=os.environ.get("REDIS_URL")) as server:
        runner = Runner(source, server.url, parsed.limit, options)
        plain = runner.run(tests, limited=False)
        limited = runner.run(tests, limited=True)
        differing = differences(plain, limited)
        staying = [
            test
            for test in differing
            if not by_design(test) and stays(runner, source, test)
        ]

    print()
    summary("without", plain)
    summary("with", limited)
    for test, (before, after) in differing.items():
        mark = "DIFFERS" if test in staying else by_design(test) or "differed once"
        print(
            f"{mark}: {test}", *(" ".join(end) for end in (before, after)), sep="\n  "
        )
    return 1 if staying or not plain else 0


if __name__ == "__main__":
    sys.exit(main())
