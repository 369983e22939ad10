"""The scripts that take a task through its life."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..keys import quote, unquote
from ..message import Message
from .base import ScopedScripts, ms
from .replies import (
    NO_DEADLINES,
    NO_TERMS,
    Accepted,
    Blocked,
    Cancelled,
    Deadlines,
    Decided,
    Granted,
    Lost,
    Phase,
    Released,
    Standing,
    Submitted,
    Swept,
    Terms,
    granted_of,
    lost_of,
    owed_of,
)


__all__ = ["LifeScripts"]


class LifeScripts(ScopedScripts):
    """From a task's submission to its settlement."""

    def submit(
        self,
        task_id: str,
        key: str,
        *,
        limit: int,
        wait: bool,
        max_waiting: int,
        rank: int,
        retries: int,
        token: str,
        delay: float,
        nonce: str,
        message: Message,
        terms: Terms = NO_TERMS,
        reply: str = "",
        offer: str = "",
        news: str = "",
    ) -> Submitted:
        """Give a submitted task a slot, park it, or refuse it."""
        args: tuple[Any, ...] = (task_id, quote(key), limit, int(wait), max_waiting)
        args += (self._max_bytes, rank, retries, token, ms(delay))
        args += (self._dispatch, self._grace, self._tombstone)
        args += (nonce, message.envelope, message.body, *map(ms, terms[:3]))
        keep_sent = self._keep_sent and limit != -1
        args += (terms.max_lost, int(terms.keep), int(keep_sent), reply)
        args += (quote(offer), news)
        status, attempt, held, waiting, limit, *rest = self._run("submit", *args)
        return Submitted(
            status.decode(),
            attempt,
            held,
            waiting,
            limit,
            Deadlines(*rest[:3]),
            granted_of(rest[3:]) if status != b"blocked" else [],
            Blocked.of(*rest[3:]) if status == b"blocked" else None,
        )

    def accept(
        self,
        task_id: str,
        attempt: int,
        key: str,
        *,
        limit: int,
        token: str,
        worker: str,
        fresh: bool,
        rank: int,
        retries: int,
        deadlines: Deadlines = NO_DEADLINES,
        max_lost: int = 0,
        keep: bool = False,
        message: Message | None = None,
        reply: str = "",
    ) -> Accepted:
        """Decide whether a task whose message has arrived starts now."""
        args: tuple[Any, ...] = (task_id, attempt, quote(key), limit, token, worker)
        args += (int(fresh), rank, retries)
        args += (self._lease, self._tombstone, *deadlines, max_lost, int(keep))
        parts = (message.envelope, message.body) if message else ("", "")
        status, attempt = self._run(
            "accept", *args, *parts, self._dispatch, self._grace, reply
        )
        return Accepted(status.decode(), attempt)

    def release(
        self,
        task_id: str,
        *,
        token: str,
        worker: str,
        attempt: int,
        requeue: bool = False,
    ) -> Released:
        """End a run: its slot goes to the key's next waiting task."""
        args = (task_id, token, worker, attempt, int(requeue))
        status, *granted = self._run(
            "release", *args, self._dispatch, self._grace, self._tombstone
        )
        return Released(status.decode(), granted_of(granted))

    def forfeit(self, task_id: str, *, worker: str, attempt: int) -> None:
        """Let the lease of a run that was killed run out now, not later."""
        self._run("forfeit", task_id, worker, attempt)

    def settle(
        self,
        task_id: str,
        *,
        token: str,
        worker: str,
        attempt: int,
        remember: bool,
        event: str,
        owed: bool,
    ) -> None:
        """Forget a run whose result is stored; the reply is not waited for."""
        args = (task_id, token, worker, attempt, self._tombstone, int(remember))
        self._send("settle", *args, event, *self._log, int(owed))

    def withdraw(
        self, task_id: str, attempt: int, event: str = "", *, owed: bool = False
    ) -> list[Granted]:
        """Forget a task that was not published, or was revoked before its start.

        With an *event*, those who follow it are told.
        """
        args = (task_id, attempt, self._dispatch, self._grace, self._tombstone)
        return granted_of(self._run("withdraw", *args, event, *self._log, int(owed)))

    def confirm(self, granted: Iterable[Granted]) -> None:
        """Note that *granted* are with the broker; the reply is not waited for."""
        pairs = [part for task in granted for part in (task.task_id, task.attempt)]
        self._send("confirm", int(self._keep_sent), *pairs)

    def renew(self, worker: str, task_ids: Iterable[str]) -> list[Lost]:
        """Renew the leases of what *worker* runs; return what it has lost."""
        lost = self._run("renew", worker, self._lease, self._tombstone, *task_ids)
        return lost_of(lost)

    def sweep(self, worker: str) -> Swept:
        """Free what dead workers held; find what was not published."""
        args = (worker, self._interval, self._lease, self._dispatch, self._grace)
        mine, lost, granted, owed = self._run("sweep", *args, self._tombstone)
        return Swept(
            bool(mine),
            lost_of(lost),
            granted_of(granted),
            owed_of(owed),
        )

    def decide(self, task_id: str) -> Decided:
        """End a task whose deadline has passed, unless it was in time."""
        verdict, due, *granted = self._run(
            "decide", task_id, self._dispatch, self._grace
        )
        return Decided(verdict.decode(), due / 1000, granted_of(granted))

    def cancel(self, task_id: str, *, reason: str, terminate: bool) -> Cancelled:
        """End a task because somebody wants it to end."""
        args = (
            task_id,
            reason,
            int(terminate),
            self._dispatch,
            self._grace,
            self._tombstone,
        )
        was, worker, *granted = self._run("cancel", *args)
        return Cancelled(was.decode(), worker.decode(), granted_of(granted))

    def conclude(self, task_id: str, attempt: int, event: str, *, owed: bool) -> bool:
        """Note that all that a verdict entails has been done; tell if nobody had."""
        args = (task_id, attempt, self._tombstone, event, *self._log, int(owed))
        return bool(self._run("conclude", *args))

    def again(self, task_id: str, attempt: int, *, limit: int) -> list[Granted]:
        """Run a task again whose body has ended and whose result was not stored."""
        args = (task_id, attempt, limit, self._dispatch, self._grace)
        return granted_of(self._run("again", *args))

    def standing(self, task_id: str, token: str) -> Standing:
        """Tell a run whether it is still valid."""
        valid, verdict = self._run("standing", task_id, token)
        return Standing(bool(valid), verdict.decode())

    def phase(self, task_id: str) -> Phase:
        """Tell where a task is."""
        state, key, due = self._run("phase", task_id)
        return Phase(state.decode(), unquote(key.decode()), due / 1000)
