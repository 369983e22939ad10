"""How-to pages as a new user follows them: their files in an empty folder."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import wait_until
from tests.smoke.nodes import BOOT, ROOT


#: What the pages call their server.
STORE = "redis://127.0.0.1:6379/0"

#: A block whose first line names a file; two of one name are two parts of it.
FILE = re.compile(
    r"^```\w+\n(?:# |<!-- )([\w/]+\.\w+)(?:, [^\n]*)?(?: -->)?\n(.*?)^```$",
    re.MULTILINE | re.DOTALL,
)

#: Runs the tests of a page.
PYTEST = ("pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly")

#: Seconds in which a command ends.
LONG = 60.0


def text_of(page: str) -> str:
    """Return a page of ``docs/howto``."""
    return (ROOT / "docs" / "howto" / page).read_text(encoding="utf-8")


def write_files(page: str, folder: Path, url: str = STORE) -> None:
    """Write the files of a page into *folder*, with the server *url* in them."""
    for name, text in FILE.findall(text_of(page)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text.replace(STORE, url))


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Where the modules of the page and this package are found."""
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", **more}


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module with arguments in *folder*."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment(folder),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        timeout=LONG, check=False,
    )  # fmt: skip


@contextmanager
def started(
    folder: Path,
    *command: str,
    ready: str,
    end: signal.Signals = signal.SIGTERM,
    **more: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a module with arguments in *folder* until the end of the block.

    Args:
        folder: Where its files are; its output goes to ``<module>.log`` there.
        command: The module and its arguments.
        ready: What it prints when it is ready.
        end: By what it is ended.
        more: Variables of its environment.
    """
    log = folder / f"{'-'.join(command).replace('/', '_')[:80]}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder,
            env=environment(folder, **more), stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until(
            lambda: ready in log.read_text() or process.poll() is not None,
            within=BOOT,
            that=f"{command} prints {ready!r}",
        )
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.send_signal(end)
        try:
            process.wait(LONG)
        finally:
            process.kill()


@contextmanager
def worker_of(app: str, folder: Path) -> Iterator[None]:
    """Run a worker of *app*, as the pages start it."""
    command = ("celery", "-A", app, "worker", "-l", "INFO", "-c", "2")
    with started(folder, *command, ready=" ready."):
        yield
