"""Run the code and the commands of a page, and compare or record what they print.

    .venv/bin/python tools/run_page.py docs/howto/operate.md            # compare
    .venv/bin/python tools/run_page.py --record docs/howto/operate.md   # record anew

A block of Python whose first line is ``# shop.py`` becomes that file; with ``# shop.py,
further down`` it is added to it. In a block of
``console`` each ``$ command`` is run, on a terminal of 80 columns, and is followed by
what it prints; a line ``...`` there stands for any others. A command that ends with
``&`` goes on to the end of the page, or a ``kill``. What makes a place to work in, up
to ``pip install``, is left out: the page is run where all of that is there. The page
has a server of its own in place of redis://127.0.0.1:6379/0. Times differ from run to
run, and are not compared. Exit code 1, and the difference, if anything else does.
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
FILE = re.compile(r"# ([\w/]+\.py)(, further down)?\n")
STORE = "redis://127.0.0.1:6379/0"

#: Seconds in which a command ends, a worker is ready, what was sent runs.
PATIENCE = 60.0

#: What a command has in it after which tasks may start.
STARTING = ("python ", " limit ", " resume", " unblock ", " release ")

#: Begins commands that a page tells a reader and a test has no use for.
LEFT_OUT = ("mkdir ", "cd ", "python3 -m venv ", ". .venv/", "pip install ")

#: What differs from run to run, and what is compared in its place.
MASKS = (
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d{4}", "<moment>"),
    (r"\b\d\d:\d\d:\d\d\b", "<clock>"),
    (r" *\b(\d+d\d\dh|\d+h\d\dm|\d+m\d\ds|\d+s|\d+ (s|min|h|days))\b", " <span>"),
    (r"@shop/[0-9a-f]+", "@shop/<process>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<id>"),
)


class Stage:
    """Where a page is played: a folder with its files, and what it has started."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.url = url
        self.started: list[subprocess.Popen[bytes]] = []
        self.workers: list[str] = []
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "PYTHONUNBUFFERED": "1",
            "NO_COLOR": "1",
            "TERM": "dumb",
        }

    def write(self, code: str) -> None:
        """Write a block of Python into its file."""
        name = FILE.match(code)
        if name:
            text = code.replace(STORE, self.url)
            path = self.folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a" if name[2] else "w", encoding="utf-8") as file:
                file.write(text)

    def play(self, block: str) -> str:
        """Run the commands of a block, and return it with what they print."""
        played = []
        for command, shown in commands_of(block):
            printed = self.run(command)
            played += [f"$ {command}", *(shown if fits(shown, printed) else printed)]
        return "".join(f"{line}\n" for line in played)

    def run(self, command: str) -> list[str]:
        """Run one command and return what it prints."""
        if command.startswith(LEFT_OUT):
            return []
        if command.startswith("kill "):
            self.close()
            return []
        if command.endswith("&"):
            self.start(command[:-1])
            return []
        self.meet()
        lines = on_terminal(shlex.split(command), self.folder, self.environment)
        if self.started and any(word in command for word in STARTING):
            self.settle()
        return lines

    def start(self, command: str) -> None:
        """Start a worker; when it is ready it runs what was sent before."""
        path = self.folder / f"{len(self.started)}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                shlex.split(command), cwd=self.folder, env=self.environment,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        self.workers += re.findall(r" worker .*--hostname (\S+)", command)
        wait_until(lambda: path.stat().st_size > 0, f"{command} says something")

    def meet(self) -> None:
        """Wait until all workers hear each other, where there are several."""
        names = [name for name in self.workers if len(self.workers) > 1]
        self.workers.clear()
        for name in names:
            ping = ["celery", "-A", "shop", "inspect", "ping", "-t", "5", "-d", name]

            def answers(command: list[str] = ping) -> bool:
                asked = subprocess.run(
                    command, cwd=self.folder, env=self.environment, check=False,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
                return asked.returncode == 0

            wait_until(answers, f"{name} answers")

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
        self.started.clear()


def commands_of(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a block, each with what is shown below it."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif commands:
            commands[-1][1].append(line)
    return commands


def fits(shown: list[str], printed: list[str]) -> bool:
    """Tell whether what is *shown*, with a line ``...``, is part of what is printed."""
    lines = [line.strip() for line in shown]
    if "..." not in lines:
        return False
    known = {unlike(line.strip()) for line in printed}
    return known.issuperset(unlike(line) for line in lines if line != "...")


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


def unlike(text: str) -> str:
    """Return *text* without what differs from run to run."""
    for pattern, mask in MASKS:
        text = re.sub(pattern, mask, text)
    return text


def masked(text: str) -> list[str]:
    """Return the lines of *text* without what differs from run to run.

    The lines of a block come sorted: of two tasks that start in the same moment
    either may be shown first.
    """
    text = unlike(text)
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
