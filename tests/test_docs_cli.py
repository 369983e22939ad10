"""What the pages say of the command line is what it does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from celery_bgtask.cli import bgtask


ROOT = Path(__file__).parent.parent
REFERENCE = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
PLAYED = (
    "tutorial",
    "howto/add-to-your-app",
    "howto/block-a-key",
    "howto/bound-the-wait",
    "howto/change-limits",
    "howto/limit-per-customer",
    "howto/move-from-bullmq",
    "howto/move-from-celery-once",
    "howto/operate",
    "howto/react-to-available-work",
    "howto/run-in-production",
    "howto/run-on-every-worker",
    "howto/share-a-limit",
    "howto/show-progress",
    "howto/wait-or-refuse",
)


def test_the_reference_has_every_command_and_option() -> None:
    """It is what tools/cli_reference.py --write makes of the commands."""
    made = subprocess.run(
        [sys.executable, "tools/cli_reference.py"],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=True,
    ).stdout  # fmt: skip

    assert made == REFERENCE


def test_every_command_has_its_json_in_the_reference() -> None:
    """Each prints something, and the page says what."""
    table = REFERENCE.partition("| command | an object |")[2].partition("\n\n")[0]
    cells = re.findall(r"^\| (.+?) \|", table, re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(\S+?)`", cell)}

    with_json = {
        name
        for name, command in bgtask.commands.items()
        if any(parameter.name == "as_json" for parameter in command.params)
    }
    assert named == with_json == set(bgtask.commands)


@pytest.mark.worker
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PLAYED)
def test_a_page_prints_what_it_shows(page: str) -> None:
    """Its code and commands run as written, with a real server and worker."""
    played = subprocess.run(
        [sys.executable, "tools/run_page.py", f"docs/{page}.md"],
        cwd=ROOT, capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip

    assert played.stdout + played.stderr == ""
    assert played.returncode == 0
