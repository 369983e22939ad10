"""Run the code and the commands of a page, and compare or record what they print.

    .venv/bin/python tools/run_page.py docs/howto/operate.md            # compare
    .venv/bin/python tools/run_page.py --record docs/howto/operate.md   # record anew

A block of Python whose first line is ``# shop.py`` becomes that file. In a block of
``console`` each ``$ command`` is run, on a terminal of 80 columns, and is followed by
what it prints; one that ends with ``&`` goes on to the end of the page. The page has a
server of its own in place of redis://127.0.0.1:6379/0. Times differ from run to run,
and are not compared. Exit code 1, and the difference, if anything else does.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from celery_bgtask.testing import embedded_server


ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.py)\n")
STORE = "redis://127.0.0.1:6379/0"

#: Seconds in which a command ends, a worker is ready, what was sent runs.
PATIENCE = 60.0

#: What a command has in it after which tasks may start.
STARTING = ("python ", " limit ", " resume", " unblock ", " release ")

#: What differs from run to run, and what is compared in its place.
MASKS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}", "<moment>"),
    (r"\b\d\d:\d\d:\d\d\b", "<clock>"),
    (r" *\b(\d+d\d\dh|\d+h\d\dm|\d+m\d\ds|\d+s|\d+ (s|min|h|days))\b", " <span>"),
    (r"@shop/[0-9a-f]+", "@shop/<process>"),
)


class Stage:
    """Where a page is played: a folder with its files, and what it has started."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.started: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def write(self, code: str) -> None:
        """Write a block of Python into its file."""
        name = FILE.match(code)
        if name:
            text = code.replace(STORE, self.url)
            (self.folder / name[1]).write_text(text, encoding="utf-8")

    def play(self, block: str) -> str:
        """Run the commands of a block, and return it with what they print."""
        played = []
        for line in block.splitlines():
            if line.startswith("$ "):
                played += [line, *self.run(line[2:])]
        return "".join(f"{line}\n" for line in played)

    def run(self, command: str) -> list[str]:
        """Run one command and return what it prints."""
        if command.endswith("&"):
            self.start(command[:-1])
            return []
        lines = on_terminal(shlex.split(command), self.folder, self.environment)
        if self.started and any(word in command for word in STARTING):
            self.settle()
        return lines

    def start(self, command: str) -> None:
        """Start a worker; when it is ready it runs what was sent before."""
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)

    def settle(self) -> None:
        """Wait until what has a slot runs, and a sweep has come by."""
        command = ["celery", "-A", "shop", "bgtask", "keys", "--json"]

        def nothing_is_on_its_way() -> bool:
            listed = subprocess.run(
                command, cwd=self.folder, env=self.environment, check=True,
                stdout=subprocess.PIPE,
            ).stdout  # fmt: skip
            keys = [json.loads(line) for line in listed.splitlines()]
            return not any(
                key["dispatched"] or (key["waiting"] and key["capacity"])
                for key in keys
            )

        wait_until(nothing_is_on_its_way, "what was dispatched runs")

    def close(self) -> None:
        """End what was started."""
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(holds: Callable[[], bool], what: str) -> None:
    """Return when a condition holds."""
    give_up = time.monotonic() + PATIENCE
    while not holds():
        if time.monotonic() > give_up:
            raise SystemExit(f"waited {PATIENCE:g} s in vain: {what}")
        time.sleep(0.1)


def on_terminal(command: list[str], folder: Path, env: dict[str, str]) -> list[str]:
    """Run *command* on a terminal of 80 columns and return its lines."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        command, cwd=folder, env=env, stdin=its, stdout=its, stderr=its
    )
    os.close(its)
    said = b""
    with contextlib.suppress(OSError):  # nobody is at the other end any more
        while chunk := os.read(ours, 65536):
            said += chunk
    os.close(ours)
    process.wait(PATIENCE)
    text = said.decode().replace("\r\n", "\n").rstrip("\n")
    return [line.rstrip() for line in text.splitlines()]


@contextlib.contextmanager
def stage() -> Iterator[Stage]:
    """Give a page its folder and its server."""
    with tempfile.TemporaryDirectory() as folder, embedded_server() as server:
        place = Stage(Path(folder), server.url)
        try:
            yield place
        finally:
            place.close()


def played(text: str) -> str:
    """Return a page with what its commands print now."""
    with stage() as place:

        def play(match: re.Match[str]) -> str:
            if match[1] == "python":
                place.write(match[2])
                return match[0]
            return f"```console\n{place.play(match[2])}```"

        return BLOCK.sub(play, text)


def masked(text: str) -> list[str]:
    """Return the lines of *text* without what differs from run to run.

    The lines of a block come sorted: of two tasks that start in the same moment
    either may be shown first.
    """
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    text = BLOCK.sub(lambda m: "".join(sorted(m[0].splitlines(keepends=True))), text)
    return text.splitlines(keepends=True)


def main() -> int:
    """Run the page that the command line names."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--record"]
    page = Path(arguments[0])
    written = page.read_text(encoding="utf-8")
    now = played(written)
    if "--record" in sys.argv:
        page.write_text(now, encoding="utf-8")
        return 0
    difference = list(
        difflib.unified_diff(
            masked(written), masked(now), "the page", "what is printed"
        )
    )
    sys.stdout.writelines(difference)
    return bool(difference)


if __name__ == "__main__":
    raise SystemExit(main())
