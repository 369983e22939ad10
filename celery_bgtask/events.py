"""What is told of a running task over Redis, and its wire form.

An event travels as ``<seq> <ms> <json>``: the script that publishes it counts it
and takes the server's time; the rest is made here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import states
from celery.utils.saferepr import saferepr


__all__ = [
    "Announcement",
    "Answer",
    "Ended",
    "Event",
    "Progress",
    "Told",
    "decode",
    "decode_announcement",
    "encode_answer",
    "encode_end",
    "encode_news",
    "encode_progress",
]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task has come, as it has reported.

    Attributes:
        task_id: The task.
        attempt: The attempt that reports: retries and reruns count up.
        seq: Counts the reports of the task from 1; a gap is a report that was
            dropped from the log before anybody read it.
        current: What is done, in units of the task's own; ``None``: not said.
        total: What there is to do; ``None`` while it is unknown.
        description: For people.
        data: What else the task has said, as JSON carries it.
        timestamp: When it was reported: seconds since 1970, the server's clock.
    """

    task_id: str
    attempt: int
    seq: int
    current: float | None
    total: float | None
    description: str
    data: Mapping[str, Any] = field(default_factory=dict)
    timestamp: float = 0.0

    @property
    def percent(self) -> float:
        """Hundredths of the work that are done; 0.0 while the total is unknown."""
        return 100.0 * (self.current or 0) / self.total if self.total else 0.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a task; its value is in the result backend.

    Attributes:
        task_id: The task.
        attempt: The last attempt.
        seq: Comes after those of all reports.
        state: Celery's final state, or IGNORED, REJECTED, of which it stores none.
        error: Name of the error's type, "" without one.
        text: What the error says.
        timestamp: When: seconds since 1970, the server's clock.
    """

    task_id: str
    attempt: int
    seq: int
    state: str
    error: str = ""
    text: str = ""
    timestamp: float = 0.0

    @classmethod
    def of(cls, task_id: str, *, state: str, error: BaseException | None) -> Ended:
        """Return the end of a task of which only the result is known."""
        name = "" if error is None else type(error).__name__
        return cls(task_id, 0, 0, state, name, "" if error is None else text_of(error))

    @property
    def is_success(self) -> bool:
        """Whether the task has returned a value."""
        return self.state == states.SUCCESS


@dataclass(frozen=True, slots=True)
class Answer:
    """What one worker says to a broadcast.

    Attributes:
        task_id: The broadcast.
        attempt: Always 0.
        seq: Counts what all workers have said.
        worker: Node name of the worker.
        state: STARTED when it takes part; then the final state.
    """

    task_id: str
    attempt: int
    seq: int
    worker: str
    state: str


#: What is told of an available task, as it is made at its submission.
NEWS = {"task": str, "queue": str, "metadata": dict, "offered": bool}


@dataclass(frozen=True, slots=True)
class Announcement:
    """A task has become available to workers.

    Attributes:
        task_id: The task.
        key: Its key, quoted.
        round: Which time it is that the task is available.
        task: Name of the task that is called.
        queue: That it goes through, or is offered to.
        metadata: What the submitter wanted to be told along.
        offered: Whether a worker may take it; else the broker delivers it.
    """

    task_id: str
    key: str
    round: str
    task: str
    queue: str
    metadata: Mapping[str, Any]
    offered: bool

    @classmethod
    def of(cls, task_id: bytes, key: bytes, which: bytes, news: bytes) -> Announcement:
        """Return the announcement of these parts.

        Raises:
            ValueError: If it is none.
        """
        facts = json.loads(news)
        if not isinstance(facts, dict) or not all(
            isinstance(facts.get(name), kind) for name, kind in NEWS.items()
        ):
            raise ValueError(f"no announcement: {facts!r:.100}")
        return cls(
            task_id.decode(),
            key.decode(),
            which.decode(),
            facts["task"],
            facts["queue"],
            facts["metadata"],
            facts["offered"],
        )


#: What is in an event, by name.
FACTS: dict[str, tuple[Any, ...]] = {
    "id": (str,),
    "attempt": (int,),
    "worker": (str,),
    "state": (str,),
    "error": (str,),
    "text": (str,),
    "current": (float, int, type(None)),
    "total": (float, int, type(None)),
    "description": (str,),
    "data": (dict,),
}

Event = Progress | Ended

#: What a follower may be told.
Told = Event | Answer

#: The state of an :class:`Ended` that says: another task goes on under this id.
REPLACED = "REPLACED"


def encode_progress(
    task_id: str,
    attempt: int,
    *,
    current: float | None,
    total: float | None,
    description: str,
    data: Mapping[str, Any],
) -> str:
    """Return the JSON of a report.

    Raises:
        TypeError: If something in it is not JSON.
        ValueError: If a number in it is not finite.
    """
    for name, value in (("current", current), ("total", total)):
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"progress: {name} must be a number, not {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"progress: {name} must be finite, not {value!r}")
    if not isinstance(description, str):
        raise TypeError(f"progress: description must be a text, not {description!r}")
    report = {
        "id": task_id,
        "attempt": attempt,
        "current": current,
        "total": total,
        "description": description,
        "data": data,
    }
    try:
        text = json.dumps(report, allow_nan=False, ensure_ascii=False)
        text.encode()  # half of a surrogate pair would be no UTF-8
    except (TypeError, ValueError) as exc:
        kind = TypeError if isinstance(exc, TypeError) else ValueError
        shown = saferepr(dict(data), maxlen=300)
        raise kind(
            f"progress: what is reported must be JSON: {exc} in {shown}"
        ) from exc
    return text


def encode_end(
    task_id: str, attempt: int, *, state: str, error: BaseException | None = None
) -> str:
    """Return the JSON of the end of a task."""
    end = {"id": task_id, "attempt": attempt, "state": state}
    if error is not None:
        end |= {"error": type(error).__name__, "text": text_of(error)}
    return json.dumps(end, ensure_ascii=False)


def encode_answer(broadcast_id: str, worker: str, *, state: str) -> str:
    """Return the JSON of what *worker* says to a broadcast."""
    return json.dumps({"id": broadcast_id, "worker": worker, "state": state})


def text_of(error: BaseException, limit: int = 1000) -> str:
    """Return what *error* says, whatever a user's class makes of it."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - anything may be in there
        text = "(the error cannot say)"
    # Half of a surrogate pair would be no UTF-8.
    text = text.encode("utf-8", "replace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def encode_news(
    task: str, queue: str, metadata: Mapping[str, Any], *, offered: bool
) -> str:
    """Return the JSON that announces a task.

    Raises:
        TypeError: If *metadata* is not JSON.
        ValueError: If a number in it is not finite.
    """
    news = {"task": task, "queue": queue, "metadata": metadata, "offered": offered}
    try:
        return json.dumps(news, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as exc:
        raise type(exc)(f"metadata must be JSON: {exc} in {metadata!r}") from exc


def decode_announcement(raw: bytes) -> Announcement:
    """Return the announcement of a message: ``<length> <id> <key> <round> <json>``."""
    length, rest = raw.split(b" ", 1)
    task_id, rest = rest[: int(length)], rest[int(length) + 1 :]
    key, which, news = rest.split(b" ", 2)
    return Announcement.of(task_id, key, which, news)


def decode(raw: bytes) -> Told:
    """Return the event of a message or a line of the log.

    Raises:
        ValueError: If it is none: whoever reaches the server can write anything.
    """
    seq, ms, text = raw.split(b" ", 2)
    facts = json.loads(text)
    if not is_event(facts):
        raise ValueError(f"no event: {facts!r:.100}")
    if "worker" in facts:
        return Answer(facts["id"], 0, int(seq), facts["worker"], facts["state"])
    task_id, attempt = facts["id"], facts["attempt"]
    timestamp = int(ms) / 1000
    if "state" in facts:
        return Ended(
            task_id,
            attempt,
            int(seq),
            facts["state"],
            facts.get("error", ""),
            facts.get("text", ""),
            timestamp,
        )
    return Progress(
        task_id,
        attempt,
        int(seq),
        facts["current"],
        facts["total"],
        facts["description"],
        facts["data"],
        timestamp,
    )


def is_event(facts: Any) -> bool:
    """Tell whether *facts* has all that an event needs, as it should be."""
    if not isinstance(facts, dict):
        return False
    needed: tuple[str, ...] = (
        "id",
        "attempt",
        "current",
        "total",
        "description",
        "data",
    )
    if "worker" in facts:
        needed = ("id", "worker", "state")
    elif "state" in facts:
        needed = ("id", "attempt", "state")
    return all(name in facts for name in needed) and all(
        isinstance(facts[name], FACTS[name]) for name in facts.keys() & FACTS.keys()
    )
