"""The page for those who come from node-background-task does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_bgtask.testing import embedded_server


ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/howto/move-from-node-background-task.md").read_text("utf-8")
CODE = re.compile(
    r"^```python\n# (\w+\.py)(?:, [^\n]*)?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)

pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files of the page, and a worker that runs."""
    folder = tmp_path_factory.mktemp("migration")
    with embedded_server() as server:
        for name, text in CODE.findall(PAGE):
            here = text.replace("redis://127.0.0.1:6379/0", server.url)
            with (folder / name).open("a", encoding="utf-8") as file:
                file.write(here)
        with (folder / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "work", "worker", "-c", "2"],
                cwd=folder, env=environment(folder), stdout=log,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield folder
        finally:
            worker.terminate()
            worker.wait(60)


def environment(folder: Path) -> dict[str, str]:
    """Where the page's modules and this package are found."""
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def run(folder: Path, name: str) -> list[str]:
    """Return what a program of the page prints."""
    done = subprocess.run(
        [sys.executable, name], cwd=folder, env=environment(folder),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    log = (folder / "worker.log").read_text()
    assert (done.returncode, done.stderr) == (0, ""), log
    return done.stdout.splitlines()


def test_who_creates_a_task_hears_of_it(place: Path) -> None:
    """Progress comes, then the end, and the value."""
    lines = run(place, "create.py")

    assert "value: {'converted': 2}" in lines
    reports = [line for line in lines if line.endswith("%")]
    assert reports == sorted(reports, key=lambda line: int(line.split()[0]))


def test_a_service_takes_what_workers_ignore(place: Path) -> None:
    """And is told in words what it cannot have."""
    assert run(place, "service.py") == [
        "{'done by': 'a service', 'key': 'k'}",
        "task no such id: the store does not know it",
    ]
