"""``celery bgtask`` on a terminal: what it draws, what it asks, what Tab gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from celery_bgtask.cli import bgtask
from tests.smoke.cli_tasks import MODULE
from tests.smoke.command_line import CommandLine
from tests.smoke.nodes import ROOT, SmokeSetup


EXPORT = ("--task", "export")

UUID = "0d1f9a52-5b1c-4c39-9a63-0f8b7a0c9a11"


@pytest.fixture(scope="module")
def smoke_workers() -> tuple[()]:
    """None is needed: what is submitted stays where it is."""
    return ()


@pytest.fixture
def cli(cli: CommandLine) -> CommandLine:
    """The command line of an app with its tasks, though no worker runs them."""
    cli.conf["imports"] = [MODULE]
    return cli


@pytest.fixture
def waiting(smoke: SmokeSetup) -> Any:
    """The results of five tasks of one key, three of which wait."""
    export = smoke.app.tasks[f"{MODULE}.export"]
    results = [export.delay(UUID) for _ in range(5)]
    yield results
    for result in reversed(results):
        result.cancel()
    smoke.app.control.purge()
    smoke.store.flushdb()


def test_purge_asks_and_does_nothing_without_a_yes(
    cli: CommandLine, waiting: list[Any]
) -> None:
    """Exit code 1 after a no; a yes does it."""
    asked = cli.on_terminal("purge", UUID, *EXPORT, answer="n\n", code=1)
    question = f"End 3 waiting tasks of key {UUID} of {MODULE}.export as REVOKED?"
    assert question in asked.out
    assert waiting[4].phase == "waiting"

    agreed = cli.on_terminal("purge", UUID, *EXPORT, answer="y\n")
    assert "3 waiting tasks" in agreed.lines[-1]
    assert waiting[4].state == "REVOKED"


def test_drain_asks_and_does_nothing_without_a_yes(
    cli: CommandLine, waiting: list[Any]
) -> None:
    """It names what it would go beyond; Return alone is a no."""
    question = f"Publish all that waits of {MODULE}.export, beyond every limit? [y/N]"
    asked = cli.on_terminal("drain", *EXPORT, answer="\n", code=1)
    assert question in asked.out
    assert waiting[4].phase == "waiting"

    cli.on_terminal("drain", *EXPORT, answer="y\n")

    assert waiting[4].phase == "dispatched"


def test_release_asks_and_does_nothing_without_a_yes(
    cli: CommandLine, waiting: list[Any]
) -> None:
    """It says what may be lost."""
    holder, first = waiting[0], waiting[2]

    asked = cli.on_terminal("release", UUID, holder.id, *EXPORT, answer="n\n", code=1)
    assert f"Free the slot of {holder.id} on key {UUID}" in asked.out
    assert "its result is lost and another starts beside it. [y/N]" in asked.out
    assert first.phase == "waiting"

    agreed = cli.on_terminal("release", UUID, holder.id, *EXPORT, answer="y\n")
    assert agreed.lines[-1].endswith(f"{holder.id}: its slot on key {UUID} is free")
    assert first.phase == "dispatched"


@pytest.mark.parametrize("columns", [80, 50])
def test_top_draws_a_table_that_fits(
    cli: CommandLine, waiting: list[Any], columns: int
) -> None:
    """With rich: at 80 columns each key has one line; narrower it is folded."""
    drawn = cli.on_terminal(
        "top", "--count", "2", "--every", "0.1", *EXPORT, columns=columns
    )

    assert "\x1b[" in drawn.out
    assert max(len(line.rstrip()) for line in drawn.lines) <= columns
    rows = [line for line in drawn.lines if "2/2" in line]
    assert rows
    for row in rows:
        assert row.split()[:3] == ["2/2", "0", "3"]
        assert (row.split()[-1] == UUID) == (columns == 80)


def test_without_rich_top_writes_one_table_after_the_other(
    cli: CommandLine, waiting: list[Any], tmp_path: Path
) -> None:
    """The extra `cli` is an extra."""
    # The first rich that Python finds is one that is not there.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['rich'] = None\n", encoding="utf-8"
    )
    cli.environment["PYTHONPATH"] = str(tmp_path)

    drawn = cli.on_terminal("top", "--count", "2", "--every", "0.1", *EXPORT)

    assert len([line for line in drawn.lines if line.endswith(UUID)]) == 2
    assert max(map(len, drawn.lines)) <= 80


def test_colours_are_for_terminals_that_want_them(
    cli: CommandLine, waiting: list[Any]
) -> None:
    """NO_COLOR, as everywhere in Celery."""
    assert "\x1b[36mfull" in cli.on_terminal("keys", *EXPORT).out
    cli.environment["NO_COLOR"] = "1"
    assert "\x1b[" not in cli.on_terminal("keys", *EXPORT).out


def test_tab_completes_commands_and_options() -> None:
    """In bash, as docs/reference/cli.md says; by click, through Celery."""
    script = """
        eval "$(_CELERY_COMPLETE=bash_source celery)"
        press_tab() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _celery_completion celery
            echo "${COMPREPLY[@]}"
        }
        press_tab celery -A proj bgtask un
        press_tab celery -A proj bgtask top --so
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    done = subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=ROOT, env={**os.environ, "PATH": path}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip

    assert done.stdout.split() == ["unblock", "--sort"], done.stderr


@pytest.mark.parametrize("name", bgtask.commands)
def test_help_fits_the_terminal_and_says_what_it_does(name: str) -> None:
    """Also before an app is there to be asked."""
    env = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "celery", "bgtask", name, "--help"]

    text = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout

    assert max(map(len, text.splitlines())) <= 80
    summary = (bgtask.commands[name].help or "").splitlines()[0]
    assert len(summary) <= 62
    assert summary in text
