"""``celery bgtask`` as an operator has it: a process, its words, its exit code."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery.__main__ import main

from tests.smoke.nodes import ROOT


#: Seconds in which a command has ended, on two slow cores.
PATIENCE = 45

#: Processes that have imported Celery before they start: it takes a second each.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["celery.bin.celery"])

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True)
class Said:
    """What a command has said.

    Attributes:
        code: Its exit code.
        out: What it has printed.
        err: What it has complained about.
    """

    code: int
    out: str
    err: str = ""

    @property
    def json(self) -> list[Any]:
        """The objects that it has printed, one a line."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def lines(self) -> list[str]:
        """The lines that it has printed, as a reader sees them."""
        return ESCAPES.sub("", self.out).replace("\r\n", "\n").splitlines()


@dataclass
class CommandLine:
    """Runs commands for one app.

    Attributes:
        name: Of the app.
        conf: Its settings.
        environment: What else its processes are to see.
        all_said: Everything that was printed by any of them.
    """

    name: str
    conf: dict[str, Any]
    environment: dict[str, str] = field(default_factory=dict)
    all_said: list[str] = field(default_factory=list)

    def __call__(self, *arguments: str, code: int | None = 0) -> Said:
        """Run a command without a terminal; fail if it ends with another *code*."""
        with tempfile.TemporaryDirectory() as folder:
            paths = Path(folder, "out"), Path(folder, "err")
            argv = ["celery", *self.command(*arguments)[3:]]
            process = FORKS.Process(target=_run, args=(argv, self.env(), paths))
            process.start()
            process.join(PATIENCE)
            assert process.exitcode is not None, f"{arguments} has not ended"
            texts = [path.read_text(encoding="utf-8") for path in paths]
        return self.checked(Said(process.exitcode, *texts), code)

    def on_terminal(
        self, *arguments: str, answer: str = "", columns: int = 80, code: int | None = 0
    ) -> Said:
        """Run a command on a terminal of 24 lines, and type *answer*."""
        ours, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            env=self.env(),
            stdin=its,
            stdout=its,
            stderr=its,
        )
        os.close(its)
        os.write(ours, answer.encode())
        said = b""
        try:
            while chunk := os.read(ours, 65536):
                said += chunk
        except OSError:  # the terminal has nobody at its other end any more
            pass
        os.close(ours)
        return self.checked(Said(process.wait(PATIENCE), said.decode()), code)

    def command(self, *arguments: str) -> list[str]:
        """Return the words of a command."""
        return [sys.executable, "-m", "celery", "-A", "tests.smoke.app", "bgtask",
                *arguments]  # fmt: skip

    def env(self) -> dict[str, str]:
        """Return the environment of a command."""
        names = {"SMOKE_APP": self.name, "SMOKE_CONF": json.dumps(self.conf)}
        # A terminal knows its size itself; the variables would win.
        ours = {n: v for n, v in os.environ.items() if n not in {"COLUMNS", "LINES"}}
        return {**ours, "TERM": "xterm-256color", **names, **self.environment}

    def checked(self, said: Said, code: int | None) -> Said:
        """Return what was said if it is what any command may say."""
        self.all_said += [said.out, said.err]
        assert code in {None, said.code}, said
        assert "Traceback" not in said.out + said.err, said
        return said


def _run(argv: list[str], environment: dict[str, str], paths: tuple[Path, ...]) -> None:
    """Be ``celery`` with the arguments *argv*, in a process of its own."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(paths, start=1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = argv
    main()
