"""Apply each defect to a copy of the package, and see that a test fails.

::

    make mutants [MUTANTS="part of a name"]
    python -m tests.mutation [part of a name]

Ends with 1 if a defect is not found. Tests that fail without any defect would find
them all: each test is run once in the copy as it is, first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutation.defects import DEFECTS, EQUIVALENT, Defect


ROOT = Path(__file__).parents[2]

#: Of the model: all of its mutants, also those that take long.
MODEL = "tests/property/test_mutants.py"

PYTEST = (
    "-m", "pytest", "-q", "-x", "-p", "no:randomly", "-p", "no:cacheprovider",
    "--no-header", "--tb=no",
)  # fmt: skip

#: Seconds, for one test.
PATIENCE = 600


def main() -> int:
    """Try the defects whose name has the given part; print the score."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("part", nargs="?", default="", help="of a name")
    part = parser.parse_args().part
    chosen = [defect for defect in DEFECTS if part in defect.name]
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Path(folder)
        make_copy(copy)
        sound = run_whole(copy, sorted({defect.test for defect in chosen}))
        if not sound:
            print("These tests fail without any defect.")
            return 1
        lived = [
            defect.name
            for number, defect in enumerate(chosen, 1)
            if not is_found(copy, defect, f"{number}/{len(chosen)}")
        ]
        model, model_lived = run_model(copy, part)
    total = len(chosen) + model
    found = total - len(lived) - model_lived
    for name in lived:
        print(f"not found: {name}")
    print(f"{found} of {total} defects found", end="; ")
    print(f"{len(EQUIVALENT)} more are equivalent to what is right")
    return 0 if found == total else 1


def make_copy(folder: Path) -> None:
    """Copy what the tests need."""
    ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
    for name in ("celery_bgtask", "tests", "example_project", "benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, folder / name)


def is_found(folder: Path, defect: Defect, progress: str) -> bool:
    """Tell whether the test of *defect* fails with it."""
    path = folder / "celery_bgtask" / defect.file
    right = path.read_text(encoding="utf-8")
    path.write_text(right.replace(defect.line, defect.wrong), encoding="utf-8")
    begun = time.monotonic()
    try:
        found = run(folder, defect.test) != 0
    finally:
        path.write_text(right, encoding="utf-8")
    seconds = time.monotonic() - begun
    print(f"[{progress}] {bar(progress)} {seconds:4.0f} s ", end="")
    print(f"{'found' if found else 'NOT FOUND'}: {defect.name}", flush=True)
    return found


def bar(progress: str, width: int = 20) -> str:
    """Return how far it has come, as a bar."""
    done, total = map(int, progress.split("/"))
    full = width * done // total
    return "#" * full + "." * (width - full)


def run_whole(folder: Path, tests: list[str]) -> bool:
    """Tell whether *tests* pass without a defect."""
    return not tests or run(folder, *tests) == 0


def run(folder: Path, *arguments: str) -> int:
    """Run tests in *folder*, and return pytest's exit code: 1 if some failed."""
    try:
        code = subprocess.run(
            [sys.executable, *PYTEST, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(folder)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
            timeout=PATIENCE,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        return 1  # with this defect something never ends
    if code not in {0, 1}:
        raise SystemExit(f"pytest could not run {arguments}: it ends with {code}")
    return code


def run_model(folder: Path, part: str) -> tuple[int, int]:
    """Try the mutants of the model; return how many there are and how many live."""
    command = [sys.executable, *PYTEST, "--maxfail=1000", MODEL]
    if part:
        command += ["-k", part.replace(" ", " and ")]
    process = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), "BGTASK_TEST_SLOW": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    print(process.stdout)
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (\w+)", process.stdout)}
    lived = counts.get("failed", 0) + counts.get("skipped", 0)
    return counts.get("passed", 0) + lived, lived


if __name__ == "__main__":
    sys.exit(main())
