"""The scripts that report how far a task has come, and tell who follows it."""

from __future__ import annotations

from collections.abc import Sequence

from .base import ScopedScripts
from .replies import Known, Standing, known_of


__all__ = ["FollowingScripts"]


class FollowingScripts(ScopedScripts):
    """From a report to those who follow the task."""

    def report(self, task_id: str, token: str, event: str) -> Standing:
        """Tell how far a run has come; return whether it is still valid."""
        valid, verdict = self._run("report", task_id, token, event, *self._log)
        return Standing(bool(valid), verdict.decode())

    def announce(
        self, task_id: str, event: str, *, owed: bool, reply: str = ""
    ) -> None:
        """Tell that a task has ended of which the store knows no run."""
        self._run("announce", task_id, event, *self._log, int(owed), reply)

    def history(self, task_ids: Sequence[str]) -> list[Known]:
        """Tell what is known of each task, and what it has reported."""
        return known_of(self._run("history", *task_ids))

    def channel(self, task_id: str) -> str:
        """Return the channel on which the events of a task are published."""
        return f"{self._channels}:events:{task_id}"
