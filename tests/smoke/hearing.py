"""What a test hears of a task that it follows."""

from __future__ import annotations

import json
from typing import Any

from celery_bgtask import Ended, Progress
from tests.helpers import wait_until


#: A loaded machine may stall for seconds.
PATIENCE = 30.0


class Heard:
    """All that one follower hears, in order."""

    def __init__(self, result: Any) -> None:
        self.events: list[Any] = []
        self.done: list[Any] = []
        result.follow(self.events.append)
        result.on_done(self.done.append)

    @property
    def reports(self) -> list[Progress]:
        """The reports."""
        return [event for event in self.events if isinstance(event, Progress)]

    @property
    def numbers(self) -> list[Any]:
        """What was done, as the reports said."""
        return [report.current for report in self.reports]

    @property
    def end(self) -> Ended:
        """The end; wait for it, and see that it came once and last."""
        wait_until(
            lambda: self.done and isinstance(self.events[-1], Ended),
            within=PATIENCE,
            that=f"the end was heard after {self.events}",
        )
        assert len(self.done) == 1
        (end,) = (event for event in self.events if isinstance(event, Ended))
        assert self.events[-1] is end
        numbers = [(event.attempt, event.seq) for event in self.reports]
        assert numbers == sorted(set(numbers))
        return end

    def wait_for(self, *numbers: Any) -> None:
        """Wait until exactly these reports have been heard."""
        wait_until(
            lambda: self.numbers == list(numbers),
            within=PATIENCE,
            that=f"{numbers} were heard; it was {self.numbers}",
        )


#: In a process of its own: follow some ids, and print what is heard of each when all
#: have ended.
FOLLOW = """
import json, threading
from celery_bgtask import BgResult, Ended
from tests.smoke import progress_tasks
ids = json.loads(IDS)
heard = {one: [] for one in ids}
over = threading.Semaphore(0)
def follow(one):
    def hear(event):
        ended = isinstance(event, Ended)
        heard[one].append("end" if ended else event.current)
        if ended:
            over.release()
    BgResult(one, app=app).follow(hear)
for one in ids:
    follow(one)
print("following", flush=True)
for one in ids:
    assert over.acquire(timeout=60), heard
print(json.dumps(heard), flush=True)
"""


def following(ids: list[str]) -> str:
    """The program of a process that follows *ids*."""
    return f"IDS = {json.dumps(ids)!r}\n{FOLLOW}"
