"""A task message as it was published, so that it can be published by others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from celery import Celery
from kombu import Producer, Queue
from kombu.compression import decompress
from kombu.serialization import loads, prepare_accept_content
from kombu.utils import json


__all__ = [
    "HEADER",
    "Message",
    "Unreadable",
    "as_request",
    "has_followers",
    "number_in",
    "queue_of",
    "retry_policy_of",
    "time_left",
]

#: The one header that this package adds: ``{"key", "attempt", "reply", "clock",
#: "start_by", "finish_by"}``, times in ms of the store's clock, 0 for none; *reply*
#: is the channel on which the submitter hears of the task.
HEADER = "bgtask"

#: What of a request says what follows from its end.
FOLLOWERS = ("chain", "chord", "errbacks")

#: What of a message's properties is kept. The rest is the transport's own, or
#: would be wrong later: a header says when the task expires, at any time, and the
#: ``user_id`` must be that of the connection which publishes.
PROPERTIES = (
    "correlation_id", "reply_to", "priority", "delivery_mode",
    "app_id", "message_id", "timestamp", "type",
)  # fmt: skip


#: What is in an envelope.
ENVELOPE = {
    "content_type": str,
    "content_encoding": str,
    "headers": dict,
    "properties": dict,
    "exchange": str,
    "routing_key": str,
}

#: Above this a number of Lua is not a whole one any more.
LARGEST = 2**53


class Unreadable(Exception):
    """What the store has kept is no message: somebody else has written it."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message body with all that its publishing takes.

    The body stays the bytes that were published: what was signed stays signed,
    what was compressed stays compressed.

    Attributes:
        body: As serialized.
        envelope: JSON: headers, properties, content type and routing.
    """

    body: bytes
    envelope: bytes

    @classmethod
    def pack(
        cls,
        body: bytes | str,
        *,
        content_type: str,
        content_encoding: str,
        headers: Mapping[str, Any],
        properties: Mapping[str, Any],
        exchange: str,
        routing_key: str,
    ) -> Message:
        """Return the message of these parts."""
        envelope = {
            "content_type": content_type,
            "content_encoding": content_encoding,
            "headers": headers,
            "properties": {
                name: properties[name]
                for name in PROPERTIES
                if properties.get(name) is not None
            },
            "exchange": exchange,
            "routing_key": routing_key,
        }
        raw = body.encode() if isinstance(body, str) else bytes(body)
        return cls(raw, json.dumps(envelope).encode())

    def publish(
        self, app: Celery, *, by: Producer | None = None, **header: int
    ) -> None:
        """Send the message by a producer or the app's; *header* goes into ours.

        Raises:
            Unreadable: If it is none.
            kombu.exceptions.OperationalError: If the broker does not take it.
        """
        envelope = self.opened()
        headers = envelope["headers"]
        headers[HEADER] = {**headers.get(HEADER, {}), **header}
        exchange, routing_key = envelope["exchange"], envelope["routing_key"]
        with app.producer_or_acquire(by) as producer:
            producer.publish(
                self.body,
                content_type=envelope["content_type"],
                content_encoding=envelope["content_encoding"],
                headers=headers,
                exchange=exchange,
                routing_key=routing_key,
                declare=declared_queue(app, exchange, routing_key),
                retry=True,
                retry_policy=retry_policy_of(app),
                expiration=time_left(headers.get("expires")),
                **envelope["properties"],
            )

    def opened(self) -> dict[str, Any]:
        """Return what is in the envelope.

        Raises:
            Unreadable: If something else is.
        """
        try:
            envelope = json.loads(self.envelope)
        except ValueError as exc:
            raise Unreadable(f"an envelope is no JSON: {exc}") from exc
        for name, kind in ENVELOPE.items():
            value = envelope.get(name) if isinstance(envelope, dict) else None
            if not isinstance(value, kind):
                raise Unreadable(f"an envelope has no {name}: {envelope!r:.200}")
        if not isinstance(envelope["headers"].get(HEADER, {}), dict):
            raise Unreadable(f"a header is none of ours: {envelope!r:.200}")
        return envelope  # type: ignore[no-any-return]

    def readdressed(self, task_id: str, header: Mapping[str, Any]) -> Message:
        """Return the same message as another call, with *header* as ours."""
        envelope = json.loads(self.envelope)
        envelope["headers"] |= {"id": task_id, HEADER: header}
        envelope["properties"]["correlation_id"] = task_id
        return Message(self.body, json.dumps(envelope).encode())

    def request(self, app: Celery) -> dict[str, Any]:
        """Return the message as a worker would see it.

        Raises:
            Unreadable: If it is none.
            kombu.exceptions.ContentDisallowed: If the app does not accept such
                content.
            kombu.exceptions.DecodeError: If it cannot be decoded.
        """
        envelope = self.opened()
        headers = envelope["headers"]
        body = self.body
        if headers.get("compression"):
            body = decompress(body, headers["compression"])
        accept = prepare_accept_content(app.conf.accept_content)
        content = loads(
            body, envelope["content_type"], envelope["content_encoding"], accept=accept
        )
        return as_request({**headers, **envelope["properties"]}, content)


def number_in(header: Mapping[str, Any], name: str) -> int:
    """Return a whole number of a header, 0 for anything else.

    Whoever can publish can write whatever it likes.
    """
    value = header.get(name)
    return value if type(value) is int and 0 <= value < LARGEST else 0


def as_request(headers: Mapping[str, Any], body: Any) -> dict[str, Any]:
    """Return a published message as a worker would see it.

    Protocol 2 has the call in the body and the rest in the headers; protocol 1
    has all of it in the body.
    """
    if isinstance(body, Mapping):
        return {**headers, **body}
    args, kwargs, embed = body
    return {**headers, "args": args, "kwargs": kwargs, **embed}


def has_followers(request: Mapping[str, Any]) -> bool:
    """Tell whether something follows from the end of *request*."""
    return any(request.get(name) for name in FOLLOWERS)


def time_left(expires: str | None) -> float | None:
    """Return the seconds until *expires*, as a header has it, ``None`` for never."""
    if not expires:
        return None
    left = datetime.fromisoformat(expires) - datetime.now(timezone.utc)
    return max(0.0, left.total_seconds())


def queue_of(app: Celery, exchange: str, routing_key: str) -> str:
    """Return the name of the queue that a message goes to, as far as it is known."""
    queues: Mapping[str, Queue] = app.amqp.queues
    if not exchange or routing_key in queues:
        return routing_key
    for name, queue in queues.items():
        if (queue.exchange.name, queue.routing_key) == (exchange, routing_key):
            return name
    return routing_key


def declared_queue(app: Celery, exchange: str, routing_key: str) -> list[Queue]:
    """Return the queue to declare first: an undeclared one drops messages."""
    if exchange:
        return [q for q in app.amqp.queues.values() if q.exchange.name == exchange]
    return [app.amqp.queues[routing_key]]


def retry_policy_of(app: Celery) -> dict[str, Any]:
    """Return how often and how long a refused publish is tried again."""
    return dict(app.conf.task_publish_retry_policy)
