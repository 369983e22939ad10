"""For pytest: makes every task of Celery's tests a BgTask, and notes outcomes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import celery
import pytest

from celery_bgtask import BgTask


#: Where the outcomes go: a line of JSON for each test.
REPORT = "CELERY_INTEGRATION_REPORT"

#: Set for the run with BgTask: the tasks' limit, 0 for none.
LIMIT = "CELERY_INTEGRATION_LIMIT"

#: Seconds after which a test hangs.
TIMEOUT = 300


class EveryTask(BgTask):
    """The base of every task, Celery's own built-in ones included."""

    abstract = True
    max_per_key = int(os.environ.get(LIMIT, "0")) or None
    when_full = "wait"


def pytest_configure(config: pytest.Config) -> None:
    """Take the place of ``Task`` before any app or task is made."""
    del config
    if LIMIT in os.environ:
        package: Any = celery
        package.Task = EveryTask  # what class-based tasks derive from
        package.Celery.task_cls = EveryTask


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say so if the checkout's own Celery would be tested by mistake."""
    if str(session.config.rootpath) in str(celery.__file__):
        pytest.exit(f"this is not the installed Celery: {celery.__file__}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test time enough: its own limit may be too short for this machine.

    Whether it is kept would be the difference of the two runs then.
    """
    for item in items:
        item.add_marker(pytest.mark.timeout(TIMEOUT), append=False)


def pytest_runtest_logreport(report: Any) -> None:
    """Write the outcome of each phase down; the worst one counts."""
    if report.when == "call" or report.outcome != "passed":
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        # The first line of an error is enough to tell two causes apart.
        cause = getattr(getattr(report.longrepr, "reprcrash", None), "message", "")
        line = {
            "test": report.nodeid,
            "outcome": outcome if report.when == "call" else f"{outcome} {report.when}",
            "cause": str(cause).split("\n", 1)[0],
            "seconds": report.duration,
        }
        with Path(os.environ[REPORT]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
