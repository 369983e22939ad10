"""Both schedulers of beat send limited tasks, as the page says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from celery_bgtask.testing import embedded_server
from tests.helpers import wait_until
from tests.smoke.pages import LONG, started, text_of, write_files


#: Each scheduler has a prefix and a queue of its own, and a call without a key.
OWN = """
import os
app.conf.bgtask_key_prefix = app.conf.task_default_queue = os.environ["NAME"]
app.conf.redbeat_key_prefix = os.environ["NAME"]
app.conf.redbeat_redis_url = {url!r}
app.conf.redbeat_lock_timeout = 300
app.conf.beat_schedule["wrong"] = dict(
    task="shop.sync", schedule=1.0, kwargs=dict(shop="")
)
"""

PAGE = "schedule.md"

SCHEDULERS = {
    "default": ("-s", "default.db"),
    "redbeat": ("-S", "redbeat.RedBeatScheduler"),
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of the module's own."""
    with embedded_server() as server:
        yield server.url


@pytest.fixture(scope="module")
def shop(url: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page."""
    folder = tmp_path_factory.mktemp("beat")
    write_files(PAGE, folder, url)
    with (folder / "shop.py").open("a") as file:
        file.write(OWN.format(url=url))
    return folder


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_beat_sends_what_has_a_slot_and_leaves_out_the_rest(
    shop: Path, url: str, scheduler: str
) -> None:
    """A line for each turn that is left out; beat goes on."""
    command = ("celery", "-A", "shop", "beat", "-l", "INFO", "--max-interval", "1")
    options = SCHEDULERS[scheduler]
    ready = "beat: Starting..."
    with started(shop, *command, *options, ready=ready, NAME=scheduler) as beat:
        log = next(shop.glob(f"*{options[1][:7]}*.log"))

        def lines(part: str) -> list[str]:
            return [line for line in log.read_text().splitlines() if part in line]

        def left_out(task: str) -> bool:
            return len(lines(f"shop.{task} is not sent by beat")) > 1

        wait_until(
            lambda: left_out("sync") and left_out("tidy"),
            within=LONG,
            that="both are left out twice",
        )
        assert beat.poll() is None
    (line,) = re.findall(r"^ +(shop.sync is not sent .+)$", text_of(PAGE), re.MULTILINE)
    assert lines("shop.sync is not sent")[0].endswith(line)
    assert all("task key" in wrong for wrong in lines("Message Error"))
    assert len(lines("Message Error")) >= 2
    with Redis.from_url(url) as client:
        assert client.llen(scheduler) == 2  # one of each: the others wait, or are not
