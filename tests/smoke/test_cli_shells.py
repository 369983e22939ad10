"""Completion in real shells, where they are installed; bash is tested elsewhere."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import PATIENCE, wait_until
from tests.smoke.nodes import ROOT


def needs(shell: str) -> pytest.MarkDecorator:
    """Skip a test where there is no such shell."""
    return pytest.mark.skipif(not shutil.which(shell), reason=f"there is no {shell}")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of somebody who has the command on the path, and no settings of a shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    home = str(tmp_path)
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    return {**kept, "PATH": path, "HOME": home, "TERM": "dumb", "XDG_DATA_HOME": home}


class Typed:
    """An interactive shell, and what is on its screen.

    Args:
        command: The shell.
        environment: Its variables.
    """

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._ours, its = pty.openpty()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=its, stdout=its, stderr=its,
            start_new_session=True,
        )  # fmt: skip
        os.close(its)
        self._screen = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        self._screen = ""
        os.write(self._ours, text.encode())

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows *text*, since something was typed."""
        wait_until(lambda: text in self._read(), that=f"the shell shows {text!r}")

    def close(self) -> None:
        """End the shell."""
        self._process.kill()
        self._process.wait(PATIENCE)
        os.close(self._ours)

    def _read(self) -> str:
        while select.select([self._ours], [], [], 0)[0]:
            with contextlib.suppress(OSError):
                self._screen += os.read(self._ours, 65536).decode(errors="replace")
        return self._screen


@pytest.fixture
def zsh(environment: dict[str, str]) -> Iterator[Typed]:
    """A zsh without settings."""
    shell = Typed(["zsh", "-f", "-i"], environment)
    yield shell
    shell.close()


@needs("zsh")
def test_tab_completes_in_zsh(zsh: Typed) -> None:
    """As docs/reference/cli.md says; a line ends in what Tab has added."""
    zsh.type(
        "autoload -Uz compinit; compinit -u -D; "
        'eval "$(_CELERY_COMPLETE=zsh_source celery)"; echo all" set"\n'
    )
    zsh.wait_for("all set\r\n")

    zsh.type("celery -A proj bgtask unb\t")
    zsh.wait_for("unblock ")

    zsh.type("\x15celery -A proj bgtask top --so\t")
    zsh.wait_for("--sort ")


@needs("fish")
def test_tab_completes_in_fish(environment: dict[str, str]) -> None:
    """As docs/reference/cli.md says, by the file that it names."""
    fish = shutil.which("fish") or "fish"

    done = subprocess.run(
        [fish, "--no-config", "-c", """
            mkdir -p ~/.config/fish/completions
            _CELERY_COMPLETE=fish_source celery > ~/.config/fish/completions/celery.fish
            source ~/.config/fish/completions/celery.fish
            complete -C 'celery -A proj bgtask unb'
            complete -C 'celery -A proj bgtask top --so'
        """],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    words = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert words == ["unblock", "--sort"], done.stderr
