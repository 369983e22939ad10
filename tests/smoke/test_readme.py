"""The README's code does what the README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import PATIENCE


ROOT = Path(__file__).parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE = re.compile(r"^```python\n# (\w+\.py)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUT = re.compile(r"^    \$ python client\.py\n((?:    .*\n)+)", re.MULTILINE)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, EmbeddedServer]]:
    """The README's files in a folder, on a server of their own."""
    folder = tmp_path_factory.mktemp("readme")
    with embedded_server() as server:
        for name, text in CODE.findall(README):
            here = text.replace("redis://127.0.0.1:6379/0", server.url)
            (folder / name).write_text(here, encoding="utf-8")
        yield folder, server


@pytest.mark.worker
def test_the_fifteen_lines_print_what_the_readme_shows(
    folder: tuple[Path, EmbeddedServer], tmp_path: Path
) -> None:
    """Worker and client run as written, and the output is the one shown."""
    path, _ = folder
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    log = tmp_path / "worker.log"
    with log.open("w") as file:
        worker = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "shop", "worker", "--concurrency=4"],
            cwd=path, env=environment, stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        client = subprocess.run(
            [sys.executable, "client.py"],
            cwd=path, env=environment, capture_output=True, text=True, timeout=90,
            check=False,
        )  # fmt: skip
    finally:
        worker.terminate()
        worker.wait(PATIENCE)

    shown = re.sub(r"^    ", "", OUTPUT.search(README)[1], flags=re.MULTILINE)  # type: ignore[index]
    assert (client.stdout, client.stderr) == (shown, ""), log.read_text()
