"""A call as the message that is published of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kombu import Producer
from kombu.compression import compress
from kombu.serialization import dumps

from .exceptions import PayloadTooLarge
from .message import Message
from .subscribing import Quiet


__all__ = ["Unsent", "serialize"]

#: What publishing takes beside the message's properties.
PUBLISHING = frozenset(
    {
        "compression", "confirm_timeout", "declare", "exchange", "expiration",
        "headers", "retry", "retry_policy", "routing_key", "serializer", "timeout",
    }
)  # fmt: skip


def serialize(
    name: str, producer: Any, body: Any, publishing: dict[str, Any], *, max_size: int
) -> tuple[Message, dict[str, Any]]:
    """Return the message of *body*, and what the producer takes beside its body.

    Raises:
        PayloadTooLarge: If the body is larger than *max_size* bytes.
    """
    serializer = publishing.pop("serializer", None) or producer.serializer
    # Any: the stub knows no serializer that makes bytes.
    dumped: tuple[str, str, Any] = dumps(body, serializer=serializer)
    content_type, content_encoding, data = dumped
    raw = data.encode(content_encoding) if isinstance(data, str) else bytes(data)
    if len(raw) > max_size:
        raise PayloadTooLarge(name, len(raw), max_size)
    compression = publishing.pop("compression", None) or producer.compression
    if compression:
        raw, publishing["headers"]["compression"] = compress(raw, compression)
    publishing |= {"content_type": content_type, "content_encoding": content_encoding}
    exchange = publishing.get("exchange")
    message = Message.pack(
        raw,
        content_type=content_type,
        content_encoding=content_encoding,
        headers=publishing["headers"],
        properties={k: v for k, v in publishing.items() if k not in PUBLISHING},
        exchange=getattr(exchange, "name", exchange) or "",
        routing_key=publishing.get("routing_key") or "",
    )
    return message, publishing


@dataclass(slots=True)
class Unsent(Quiet):
    """A producer for Celery that keeps the one message it is given.

    Attributes:
        producer: Celery's own.
        name: Of the task.
        max_size: Bytes that the body may have.
        message: The message, once there is one.
    """

    producer: Producer
    name: str
    max_size: int
    message: Message | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.producer, name)

    def publish(self, body: Any, **publishing: Any) -> None:
        """Keep the message of *body*; Celery's task-sent event is dropped."""
        if self.message is None:
            publishing["headers"] = dict(publishing.get("headers") or {})
            self.message, _ = serialize(
                self.name, self.producer, body, publishing, max_size=self.max_size
            )
