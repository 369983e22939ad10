"""A message that has arrived in a pool, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from celery import Task
from kombu.serialization import dumps

from ..conclusion import has_result, is_kept
from ..message import HEADER, Message, has_followers, number_in
from ..options import Options
from ..scripts.replies import Deadlines
from ..taskkey import WHOLE_TASK, key_text


__all__ = ["DELIVERY", "Arrival"]

#: Where a request carries its delivery to the pool: the worker's id, then
#: headers, body, content type and encoding of the message as it came.
DELIVERY = "bgtask_delivery"

#: What of a request was a header, for a worker that passed no delivery.
HEADERS = (
    "lang", "task", "id", "shadow", "eta", "expires", "group", "group_index", "retries",
    "timelimit", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin",
    "ignore_result", "replaced_task_nesting", "stamped_headers", "stamps", HEADER,
)  # fmt: skip


@dataclass(slots=True)
class Arrival:
    """A message that has arrived in a pool.

    Attributes:
        task: That is called.
        options: Of the task.
        request: As Celery passes it to the tracer.
        delivery: The message as it came, or ``None``.
        worker: The worker's id.
    """

    task: Task[Any, Any]
    options: Options
    request: dict[str, Any]
    delivery: tuple[Mapping[str, Any], Any, str, str] | None
    worker: str

    @property
    def task_id(self) -> str:
        """The id of the call."""
        return str(self.request["id"])

    @property
    def retries(self) -> int:
        """How often Celery has tried it before."""
        return number_in(self.request, "retries")

    @property
    def header(self) -> Mapping[str, Any]:
        """What the submitter wrote, or nothing."""
        headers = self.delivery[0] if self.delivery else self.request
        header = headers.get(HEADER)
        return header if isinstance(header, Mapping) else {}

    @property
    def attempt(self) -> int:
        """The attempt that this message is for."""
        return number_in(self.header, "attempt") or self.retries + 1

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What the submitter wanted to travel along."""
        metadata = self.header.get("metadata")
        return metadata if isinstance(metadata, Mapping) else {}

    @property
    def reply(self) -> str:
        """The channel on which the submitter hears of it, "" if it named none."""
        reply = self.header.get("reply")
        return reply if isinstance(reply, str) and reply.isascii() else ""

    @property
    def priority(self) -> int | None:
        """The priority that the message was sent with."""
        return (self.request.get("delivery_info") or {}).get("priority")

    def key(self, args: Any, kwargs: Any) -> str:
        """Return the key that the submitter computed, else compute it.

        Raises:
            MissingTaskKey: If there is none.
        """
        key = self.header.get("key")
        if isinstance(key, str):
            return key_text(key, task=self.task.name) if key else WHOLE_TASK
        return self.options.key.of(args, kwargs)

    def message(self, args: Any, kwargs: Any) -> Message:
        """Return the message, to be stored and published again."""
        info = self.request.get("delivery_info") or {}
        properties = dict(self.request.get("properties") or {}, priority=self.priority)
        headers, body, content_type, encoding = self.delivery or self._rebuilt(
            args, kwargs
        )
        return Message.pack(
            body,
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
            properties=properties,
            exchange=info.get("exchange") or "",
            routing_key=info.get("routing_key") or "",
        )

    def may_have_copies(self) -> bool:
        """Tell whether a copy may be left that only a stored result will stop."""
        info = self.request.get("delivery_info") or {}
        return bool(
            self.task.acks_late or self.request.get("eta") or info.get("redelivered")
        )

    def keeps_result(self) -> bool:
        """Tell whether a final state of the task can be looked up."""
        return is_kept(self.request, self.task)

    def has_ended(self) -> bool:
        """Tell whether the result backend has a final state of the task."""
        return self.keeps_result() and has_result(self.task.backend, self.task_id)

    @property
    def deadlines(self) -> Deadlines:
        """Until when the task must have started and ended."""
        return Deadlines(*(number_in(self.header, name) for name in Deadlines._fields))

    def keep(self) -> bool:
        """Tell whether its message is owed to what follows, or to a rerun."""
        return self.options.max_lost > 0 or has_followers(self.request)

    def _rebuilt(self, args: Any, kwargs: Any) -> tuple[dict[str, Any], Any, str, str]:
        embed = ("callbacks", "errbacks", "chain", "chord")
        body = (args, kwargs, {name: self.request.get(name) for name in embed})
        content_type, encoding, data = dumps(body, serializer=self.task.serializer)
        headers = {name: self.request[name] for name in HEADERS if name in self.request}
        return headers, data, content_type, encoding
