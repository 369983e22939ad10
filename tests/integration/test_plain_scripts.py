"""What a plain script sees that has set nothing up but its app."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery
from redis import Redis

from tests.helpers import our_keys


ROOT = Path(__file__).parents[2]

TASKS = """
from celery import shared_task
from celery_bgtask import bgtask

@bgtask(task_key="key", max_per_key=1, when_full="wait")
def job(key):
    return key
"""

APP = """
from celery import Celery
app = Celery("plain", broker=URL, backend=URL)
app.conf.imports = IMPORTS
app.conf.bgtask_key_prefix = "plain-script"
"""

#: Submits a task, from where its module is known.
SUBMIT = """
import plain_tasks
plain_tasks.job.apply_async(("k",), task_id="one")
plain_tasks.job.apply_async(("k",), task_id="two")
"""

#: Asks for it, where it is not.
ASK = """
import sys
from celery_bgtask import BgResult
result = BgResult("two", app=app)
assert "plain_tasks" not in sys.modules
print(result.phase, result.key, result.cancel("by its id").was)
BgResult("one", app=app).cancel()
"""

RAISE = """
import threading
told = threading.Event()

def fall(result):
    told.set()
    raise ValueError("a callback of mine")

@app.task(base=__import__("celery_bgtask").BgTask)
def job():
    pass

result = job.delay()
result.on_done(fall)
result.on_done(lambda _: told.set())
result.cancel()
assert told.wait(PATIENCE)
app.close()
"""


@pytest.fixture
def script(
    app: Celery, redis: Redis, tmp_path: Path
) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """Runs lines of Python in a process of their own, with an app as ``app``."""
    (tmp_path / "plain_tasks.py").write_text(TASKS)

    def run(code: str, *imports: str) -> subprocess.CompletedProcess:
        given = f"PATIENCE = 30\nURL = {app.conf.broker_url!r}\nIMPORTS = {imports!r}\n"
        path = f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        return subprocess.run(
            [sys.executable, "-c", path + given + APP + code],
            capture_output=True,
            text=True,
            check=False,
        )

    yield run
    for name in our_keys(redis):
        redis.delete(name)  # without a worker it would be owed for ever


def test_a_result_is_known_by_its_id_before_its_module_is(
    script: Callable[..., subprocess.CompletedProcess],
) -> None:
    """The app says where its tasks are; nobody has made any of them yet."""
    submitted = script(SUBMIT, "plain_tasks")
    assert submitted.returncode == 0, submitted.stderr

    asked = script(ASK, "plain_tasks")

    assert asked.stdout == "waiting k waiting\n", asked.stderr


def test_a_callback_that_raises_is_seen_on_standard_error(
    script: Callable[..., subprocess.CompletedProcess],
) -> None:
    """As the warnings of any library where nobody has set logging up."""
    done = script(RAISE)

    assert done.returncode == 0, done.stderr
    assert "A callback for task" in done.stderr
    assert "ValueError: a callback of mine" in done.stderr
