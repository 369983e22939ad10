"""The matrix: each release of Celery with each Python, broker and server.

`nox` runs what continuous integration does; `nox -l` lists all sessions, and their
names say what they are. Some of them: `nox -k "py312 and celery56 and embedded"`. What
follows `--` are tests and options for pytest. What a machine does not have (a Python,
RabbitMQ, a server in REDIS_URL) is skipped with a word.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import nox


nox.needs_version = ">=2024.10.9"
nox.options.sessions = ["check", "oldest", "newest"]
nox.options.default_venv_backend = "none"  # tools/venv makes them: as `make` does

PYTHON = ("3.10", "3.11", "3.12", "3.13")
CELERY = ("5.5", "5.6", "5.7")
AMQP = os.environ.get("BGTASK_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672//")


def named(what: str, release: str) -> str:
    """Return a name that ``nox -k`` can ask for: it takes no dots."""
    return what + release.replace(".", "")


@nox.session
def check(session: nox.Session) -> None:
    """Format, lint, types, layers, Lua and spelling."""
    session.run("make", "check", external=True)


@nox.session
def oldest(session: nox.Session) -> None:
    """The tests that depend most on Celery, with its oldest release."""
    session.run("make", "test-oldest", external=True)


@nox.session
def newest(session: nox.Session) -> None:
    """All tests with the newest of everything."""
    session.run("make", "test", external=True)


@nox.session
@nox.parametrize("server", ["embedded", "redis_url"], ids=["embedded", "redis_url"])
@nox.parametrize("broker", ["redis", "rabbitmq"], ids=["redis_broker", "rabbitmq"])
@nox.parametrize("celery", CELERY, ids=[named("celery", one) for one in CELERY])
@nox.parametrize("version", PYTHON, ids=[named("py", one) for one in PYTHON])
def tests(
    session: nox.Session, version: str, celery: str, broker: str, server: str
) -> None:
    """Run the tests of one place in the matrix."""
    python = interpreter(version)
    if python is None:
        session.skip(f"there is no Python {version} here")
    env = dict(os.environ)
    if server == "embedded":
        env.pop("REDIS_URL", None)
    elif not env.get("REDIS_URL"):
        session.skip("REDIS_URL names no server")
    if broker == "rabbitmq":
        if not answers(AMQP):
            session.skip("no RabbitMQ answers where BGTASK_TEST_AMQP_URL says")
        env["BGTASK_TEST_AMQP_URL"] = AMQP
    venv = f".venv-{version}-celery-{celery}"
    session.run(
        *("tools/venv", venv, "test", f"celery=={celery}.*"),
        env={"PYTHON": python},
        external=True,
    )
    jobs = "0" if server == "redis-url" else env.get("JOBS", "2")
    session.run(
        *(f"{venv}/bin/python", "-m", "pytest"),
        *("-m", "rabbitmq" if broker == "rabbitmq" else "not rabbitmq"),
        *(f"--numprocesses={jobs}", "--dist=loadfile"),
        *session.posargs,
        env=env,
        include_outer_env=False,
        external=True,
    )


def interpreter(version: str) -> str | None:
    """Return the Python of a *version* that runs, on the path or of pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    installed = map(str, sorted(pyenv.glob(f"{version}.*/bin/python"), reverse=True))
    for candidate in (shutil.which(f"python{version}"), *installed):
        if (
            candidate
            and not subprocess.run(
                [candidate, "--version"], check=False, capture_output=True
            ).returncode
        ):
            return candidate
    return None


def answers(url: str) -> bool:
    """Tell whether something listens where *url* points."""
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port or 5672), timeout=3):
            return True
    except OSError:
        return False
