"""A worker played by hand: each step of a run when the test says so."""

from __future__ import annotations

import itertools
from typing import Any

from celery import states

from celery_bgtask import Progress
from celery_bgtask.events import encode_end, encode_progress
from celery_bgtask.extension import extension_of
from celery_bgtask.scripts import Scripts


_tokens = itertools.count()


class Acted:
    """A run of which every step is taken by the test, on the real scripts.

    Args:
        task: That was called.
        task_id: Of the call.
        attempt: That begins.
        reply: The channel of the submitter, as the message of a retry has it.
    """

    def __init__(
        self, task: Any, task_id: str, *, attempt: int = 1, reply: str = ""
    ) -> None:
        self.id = task_id
        self.attempt = attempt
        self.token = f"token-{next(_tokens)}"
        self.task = task
        self.scripts: Scripts = extension_of(task.app).scripts(task.bgtask.scope)
        self.kept = not task.ignore_result
        status = self.scripts.accept(
            task_id,
            attempt,
            "0",
            limit=-1,
            token=self.token,
            worker="w",
            fresh=True,
            rank=0,
            retries=attempt - 1,
            reply=reply,
        ).status
        assert status == "started", status

    def report(self, current: float | None = None, **facts: Any) -> bool:
        """Report as the body would; return whether the run is valid."""
        event = encode_progress(
            self.id,
            self.attempt,
            current=current,
            total=facts.pop("total", None),
            description=facts.pop("description", ""),
            data=facts,
        )
        return self.scripts.report(self.id, self.token, event).valid

    def end(self, value: Any = None) -> None:
        """Return *value*, or raise it."""
        failed = isinstance(value, Exception)
        named: dict[str, Any] = {
            "token": self.token,
            "worker": "w",
            "attempt": self.attempt,
        }
        self.scripts.release(self.id, **named)
        if self.kept and failed:
            self.task.backend.mark_as_failure(self.id, value)
        elif self.kept:
            self.task.backend.mark_as_done(self.id, value)
        event = encode_end(
            self.id,
            self.attempt,
            state=states.FAILURE if failed else states.SUCCESS,
            error=value if failed else None,
        )
        self.scripts.settle(
            self.id, **named, remember=False, event=event, owed=not self.kept
        )


class Heard:
    """Notes what a follower hears: numbers of its progress, then ``"end"``."""

    def __init__(self, result: Any) -> None:
        self.events: list[Any] = []
        self.reports: list[Progress] = []
        result.on_progress(self._note)
        result.on_done(lambda _: self.events.append("end"))

    def _note(self, progress: Progress) -> None:
        self.events.append(progress.current)
        self.reports.append(progress)

    @property
    def is_over(self) -> bool:
        """Whether it has heard of the end."""
        return "end" in self.events
