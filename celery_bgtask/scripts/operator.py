"""The scripts by which an operator sees and steers a scope."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from kombu.utils import json

from ..keys import quote, unquote
from .base import ScopedScripts, ms
from .readings import (
    EVERYWHERE,
    AuditRow,
    BlockRow,
    HolderRow,
    KeyRow,
    Situation,
    audit_of,
    holders_of,
    situation_of,
)
from .replies import GRANT_PARTS, Granted, granted_of


__all__ = ["BATCH", "OperatorScripts"]

#: Publishes what a script has granted.
Publish = Callable[[list[Granted]], None]

#: Tasks or keys in one call.
BATCH = 100

#: The indexes that keys are in.
INDEXES = ("limits", "overrides", "blocked")

#: The zsets of the scope whose members are ids of tasks.
TASK_INDEXES = frozenset({"leases", "outbox", "deadlines", "owed"})

#: Those whose members are the tasks of one key.
KEY_INDEXES = frozenset({"slots", "waiting"})


class OperatorScripts(ScopedScripts):
    """Limits, blocks, views and remedies.

    What starts tasks takes *publish* and calls it after each step, for a scope
    may have more to start than one step may grant.
    """

    @property
    def sweep_ms(self) -> int:
        """The time between two sweeps, in ms."""
        return self._interval

    def set_limit(self, key: str, limit: int | None, publish: Publish) -> None:
        """Set the limit of *key*, ``None``: as declared; start what may start."""
        args = (quote(key), "" if limit is None else limit)
        while True:
            granted = self._run("set_limit", *args, self._dispatch, self._grace)
            if not granted:
                return
            publish(granted_of(granted))

    def pause(self) -> bool:
        """Start nothing more of any key; tell whether that is news."""
        return bool(self._run("pause"))

    def resume(self, publish: Publish) -> bool:
        """End a pause: start what may start; tell whether there was one."""
        cursor: Any = b"0"
        was_paused = False
        while cursor:
            was, cursor, *granted = self._run(
                "resume", cursor, self._dispatch, self._grace
            )
            was_paused = was_paused or bool(was)
            publish(granted_of(granted))
        return was_paused

    def drain(self, publish: Publish) -> int:
        """Publish all that waits; return how many tasks that are."""
        cursor: Any = b"0"
        count = 0
        while cursor:
            cursor, *granted = self._run("drain", cursor, self._dispatch, self._grace)
            count += len(granted) // GRANT_PARTS
            publish(granted_of(granted))
        return count

    def block(
        self, key: str, *, reason: str, by: str, seconds: float | None, log_keep: int
    ) -> bool:
        """Block *key*, for ever without *seconds*; tell whether that is news."""
        block_ms = -1 if seconds is None else ms(seconds)
        facts = json.dumps({"reason": reason, "by": by})
        args = (quote(key), facts, block_ms, log_keep, self._tombstone)
        return bool(self._run("block", *args))

    def strike(
        self,
        key: str,
        *,
        threshold: int,
        interval: float,
        reason: str,
        by: str,
        seconds: float,
        log_keep: int,
    ) -> str:
        """Count a strike against *key*; return what ``lua/strike.lua`` does."""
        facts = json.dumps({"reason": reason, "by": by})
        args = (quote(key), secrets.token_hex(6), threshold, ms(interval), facts)
        answer = self._run("strike", *args, ms(seconds), log_keep, self._tombstone)
        return str(answer.decode())

    def unblock(self, key: str, publish: Publish) -> bool:
        """End the block of *key*; tell whether there was one."""
        args = (quote(key), self._dispatch, self._grace)
        was, *granted = self._run("unblock", *args)
        while granted:
            publish(granted_of(granted))
            _, *granted = self._run("unblock", *args)
        return bool(was)

    def blocks(self, page: int = BATCH) -> Iterator[tuple[int, str, BlockRow]]:
        """Yield the moment, key and block of all that are blocked."""
        cursor: Any = b"0"
        while True:
            cursor, now, *flat = self._run("blocks", cursor, page)
            for key, ends, facts in zip(flat[::3], flat[1::3], flat[2::3], strict=True):
                yield now, unquote(key.decode()), BlockRow.of(facts, ends)
            if cursor == b"0":
                return

    def block_log(self, key: str) -> tuple[int, list[BlockRow]]:
        """Return the moment, and the latest blocks of *key*."""
        now, *log = self._run("block_log", quote(key))
        return now, [BlockRow.of(facts) for facts in log]

    def stats(self, key: str) -> KeyRow:
        """Count what runs and waits of *key*."""
        (row,) = self.stats_of([key])
        return row

    def stats_of(self, keys: Iterable[str]) -> Iterator[KeyRow]:
        """Count what runs and waits of each of *keys*."""
        rest = iter(keys)
        while batch := list(islice(rest, BATCH)):
            now, *rows = self._run("stats", *map(quote, batch))
            yield from (KeyRow.of(now, row) for row in rows)

    def all_keys(self, page: int = BATCH) -> Iterator[KeyRow]:
        """Yield every key that is in use, blocked or has a limit of its own, once."""
        seen: set[str] = set()
        for index in INDEXES:
            cursor: Any = b"0"
            while True:
                cursor, now, *rows = self._run("keys", index, cursor, page)
                for row in (KeyRow.of(now, row) for row in rows):
                    if row.key not in seen:
                        seen.add(row.key)
                        yield row
                if cursor == b"0":
                    break

    def holders(self, key: str, most: int = BATCH) -> tuple[int, list[HolderRow]]:
        """Read the moment, and who holds the slots of *key*."""
        now, *flat = self._run("holders", quote(key), most)
        return now, holders_of(flat)

    def explain(self, task_id: str) -> Situation:
        """Read all that tells why a task is not running."""
        return situation_of(self._run("explain", task_id, BATCH))

    def free(self, key: str, task_id: str, verdict: str) -> tuple[str, list[Granted]]:
        """Force a slot free; return what held it, as ``lua/free.lua`` does."""
        args = (quote(key), task_id, verdict, self._dispatch, self._grace)
        was, *granted = self._run("free", *args, self._tombstone)
        return was.decode(), granted_of(granted)

    def redispatch(self, task_id: str, limit: int) -> tuple[str, list[Granted]]:
        """Publish a task again; return what ``lua/redispatch.lua`` does."""
        args = (task_id, limit, self._dispatch, self._grace)
        was, *granted = self._run("redispatch", *args)
        return was.decode(), granted_of(granted)

    def purge(self, key: str, verdict: str) -> tuple[list[str], list[Granted]]:
        """End some tasks that wait for *key*; return their ids."""
        args = (quote(key), verdict, self._dispatch, self._grace)
        purged, granted = self._run("purge", *args)
        return [task_id.decode() for task_id in purged], granted_of(granted)

    def audit(self, places: Iterable[tuple[str, str]]) -> Iterator[AuditRow]:
        """Read all that the store has of tasks, each given with its key, quoted.

        For :data:`EVERYWHERE` as key it is the one of the task's record.
        """
        rest = iter(places)
        while batch := list(islice(rest, BATCH)):
            now, *rows = self._run(
                "audit", *(part for place in batch for part in place)
            )
            for row in rows:
                yield audit_of(now, row)

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield key and id of all that is found anywhere in the scope.

        The id is "" where a key is found; a place may come more than once.
        """
        for name in self._names():
            part, _, rest = name.removeprefix(self._tag + ":").partition(":")
            if part == "task":
                yield EVERYWHERE, rest
            elif part in TASK_INDEXES:
                for task_id in self._members(name):
                    yield EVERYWHERE, task_id
            elif part in KEY_INDEXES:
                yield rest, ""
                for task_id in self._members(name):
                    yield rest, task_id

    def repair(self, key: str, task_id: str, limit: int) -> list[Granted]:
        """Put right what the store has of *key*, quoted, and of a task, if given."""
        args = (key, task_id, limit, self._lease, self._dispatch)
        return granted_of(self._run("repair", *args, self._grace, self._tombstone))

    def recount(self, drift: int = 0) -> int:
        """Correct the count of the bytes that wait by *drift*, and return it."""
        return int(self._run("recount", drift))

    def _names(self) -> Iterator[str]:
        """Yield the names of the scope: a walk through the database, in steps.

        No quoted text has a meaning in a pattern.
        """
        cursor: Any = b"0"
        while True:
            cursor, names = self._link.ask(
                "SCAN", cursor, "MATCH", self._tag + ":*", "COUNT", 10 * BATCH
            )
            yield from (name.decode() for name in names)
            if cursor == b"0":
                return

    def _members(self, name: str) -> Iterator[str]:
        """Yield the members of a zset."""
        cursor: Any = b"0"
        while True:
            cursor, pairs = self._link.ask("ZSCAN", name, cursor, "COUNT", BATCH)
            yield from (member.decode() for member in pairs[::2])
            if cursor == b"0":
                return
