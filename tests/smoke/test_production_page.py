"""The set-up of docs/howto/run-in-production.md works as it is written.

RabbitMQ is the broker, and the users of the store may do what the page lets them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from celery_bgtask.testing import EmbeddedServer, embedded_server
from tests.helpers import PATIENCE, wait_until
from tests.smoke.nodes import BOOT, ROOT, AmqpContainer


pytestmark = [pytest.mark.rabbitmq, pytest.mark.worker]

PAGE = (ROOT / "docs/howto/run-in-production.md").read_text(encoding="utf-8")

#: The app of the page is written for one server; this one takes all from the page's
#: configuration, and does what needs most rights.
SHOP = """
from celery import Celery
from celery_bgtask import bgtask

app = Celery("shop")
app.config_from_object("celeryconfig")

@bgtask(task_key="customer_id", max_per_key=1, when_full="wait", finish_timeout=600)
def export(self, customer_id):
    for _ in self.track(range(2)):
        pass
    return self.key

@bgtask(task_key="customer_id", delivery="offer")
def render(customer_id):
    return "rendered"
"""

CLIENT = """
import threading
from shop import export, render

results = [export.delay(42) for _ in range(3)]
done = [result.get(timeout=60) for result in results]
heard = []
over = threading.Event()
results[-1].on_progress(lambda progress: heard.append(progress.percent))
results[-1].on_done(lambda result: over.set())
over.wait()
print(done, render.delay(1).get(timeout=60), export.broadcast((7,)).get(timeout=60))
print(export.control.set_limit(42, 0).limit, export.delay(42).cancel().was)
export.control.reset_limit(42)
print(heard)
"""


@pytest.fixture
def store() -> Iterator[EmbeddedServer]:
    """A server with the users that the page makes, and no other way in."""
    with embedded_server(appendonly=True) as server:
        with Redis.from_url(server.url) as client:
            commands = re.findall(r"^ACL SETUSER .+$", PAGE, re.MULTILINE)
            assert len(commands) == 2
            for command in commands:
                client.execute_command(*command.split())
        yield server


@pytest.fixture
def folder(
    tmp_path: Path, store: EmbeddedServer, amqp: AmqpContainer
) -> Iterator[Path]:
    """The files of the page, with the names of machines that there are."""
    queue = f"production-{uuid.uuid4().hex[:8]}"
    config = re.search(r"# celeryconfig\.py\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert config is not None
    text = config[1].replace("redis:6379", f"127.0.0.1:{store.port}")
    text = re.sub(r"amqp://[^\"]+", amqp.url, text)
    (tmp_path / "celeryconfig.py").write_text(f"{text}task_default_queue = {queue!r}\n")
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "client.py").write_text(CLIENT)
    yield tmp_path
    amqp.forget(queue)


def run(folder: Path, *command: str) -> str:
    """Return what a command prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment(folder),
        capture_output=True, encoding="utf-8", timeout=2 * PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(folder: Path) -> dict[str, str]:
    """Where the modules and this package are found."""
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.fixture
def _worker(folder: Path) -> Iterator[None]:
    """A worker, as the page starts it."""
    log = folder / "worker.log"
    command = [
        "celery",
        "-A",
        "shop",
        "worker",
        "-l",
        "INFO",
        "-c",
        "2",
        "-n",
        "one@shop",
    ]
    with log.open("wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=folder, env=environment(folder),
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until(
            lambda: " ready." in log.read_text() or worker.poll() is not None,
            within=BOOT,
            that="the worker is ready",
        )
        yield
    finally:
        worker.terminate()
        try:
            worker.wait(PATIENCE)
        finally:
            worker.kill()


@pytest.mark.usefixtures("_worker")
def test_the_users_of_the_store_may_do_what_is_needed(
    folder: Path, store: EmbeddedServer
) -> None:
    """Limits, progress, offers, broadcasts and operators work; nothing is refused."""
    assert run(folder, "client").splitlines() == [
        "['42', '42', '42'] rendered {'one@shop': None}",
        "0 waiting",
        "[0.0, 100.0]",
    ]
    checked = run(folder, "celery", "-A", "shop", "bgtask", "check")
    assert checked.startswith("nothing is wrong")
    with Redis.from_url(store.url) as admin:
        assert admin.execute_command("ACL", "LOG") == []
