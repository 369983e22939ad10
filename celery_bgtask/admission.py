"""Take a slot, park or refuse, at the moment a task is published.

A submission runs through all of Celery's own ``apply_async``: routing, signals,
serialization, tracing headers. Only the producer at its end is ours: it asks
the store first, then publishes, keeps or refuses the finished message.

::

    delay() -> Celery: route, before_task_publish, ... -> Submission.publish
                                                            | one script
    LimitReached, KeyBlocked <- refused --------------------+
          a result     <- parked: the message is in the store
          a result     <- dispatched: the message goes to the broker
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from celery import Task
from celery.utils.time import maybe_iso8601, maybe_make_aware
from kombu import Producer
from kombu.utils.functional import retry_over_time

from . import outbox
from .events import encode_news
from .exceptions import KeyBlocked, LimitReached, StoreUnavailable
from .extension import Extension
from .message import (
    HEADER,
    Message,
    as_request,
    has_followers,
    queue_of,
    retry_policy_of,
    time_left,
)
from .options import Options
from .packing import serialize
from .scripts import Scripts
from .scripts.replies import NO_DEADLINES, Deadlines, Submitted, Terms
from .subscribing import Quiet


__all__ = ["Submission"]

#: In place of a message that the store would not keep.
NOTHING = Message(b"", b"")


@dataclass(slots=True)
class Submission(Quiet):
    """One call of a task on its way to the broker: a producer for Celery.

    Attributes:
        producer: Celery's own, which publishes what is admitted.
        task: That is called.
        options: Of the task.
        extension: Of the task's app.
        key: Of the call; a callable, for a call may turn out to be wrong.
        wait: Whether it waits if the key is full.
        token: Of the run that submits, by the id of the task it runs.
        reply: The channel on which the submitter hears of the task of this id.
        accept_timeout: Seconds in which a worker must start it.
        finish_timeout: Seconds in which it must have ended.
        deadlines: What has become of these.
        due_in: Seconds until the first time at which it may have to end; 0: never.
        metadata: What workers are told of it, and the body may read.
        is_own: Whether the store took it from this call, and not from another.
        request: The message as a request, once it is known.
    """

    producer: Producer
    task: Task[Any, Any]
    options: Options
    extension: Extension
    key: Callable[[], str]
    wait: bool
    token: Callable[[str], str]
    reply: Callable[[str], str]
    accept_timeout: float | None = None
    finish_timeout: float | None = None
    request: dict[str, Any] | None = None
    deadlines: Deadlines = NO_DEADLINES
    due_in: float = 0.0
    metadata: Mapping[str, Any] = field(default_factory=dict)
    is_own: bool = False
    sent: bool = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.producer, name)

    def publish(self, body: Any, **publishing: Any) -> Any:
        """Submit the message of *body*; anything after it is published as it is.

        Raises:
            KeyBlocked: If the key is blocked.
            LimitReached: If the key is full.
            MissingTaskKey: If the call has no usable key.
            PayloadTooLarge: If the body is larger than the task allows.
            StoreUnavailable: If the store does not answer.
        """
        if self.sent:  # Celery's task-sent event, by the same producer
            return self.producer.publish(body, **publishing)
        headers = publishing.get("headers") or {}
        self.request = as_request(headers, body)
        key = self.key()
        headers[HEADER] = {"key": key, "attempt": 1, "reply": self._reply}
        if self.metadata:
            headers[HEADER]["metadata"] = self.metadata
        news = self._news(publishing)
        message, ready = serialize(
            self.task.name,
            self.producer,
            body,
            {**publishing, "headers": headers},
            max_size=self.options.max_payload_size,
        )
        result = self._submit(key, self._terms(), message, ready, news)
        self.sent = True
        return result

    @property
    def task_id(self) -> str:
        """The id of the call, once its message is known."""
        return str((self.request or {})["id"])

    def _news(self, publishing: Mapping[str, Any]) -> dict[str, str]:
        """Return what workers are told, and to whom it is offered.

        Raises:
            TypeError: If the metadata is not JSON.
            ValueError: If a number in it is not finite.
        """
        exchange = publishing.get("exchange")
        queue = queue_of(
            self.task.app,
            getattr(exchange, "name", exchange) or "",
            publishing.get("routing_key") or "",
        )
        offered = self.options.offered
        news = encode_news(self.task.name, queue, self.metadata, offered=offered)
        return {"offer": queue if offered else "", "news": news}

    @property
    def _reply(self) -> str:
        return self.reply(self.task_id)

    @property
    def _retries(self) -> int:
        return int((self.request or {}).get("retries") or 0)

    @property
    def _is_first(self) -> bool:
        """Whether it is no retry, nor anything else that its own run submits."""
        return self._retries == 0 and not self.token(self.task_id)

    def _terms(self) -> Terms:
        request = self.request or {}
        left = time_left(request.get("expires"))
        expires = 0.0 if left is None else max(left, 0.001)
        accept = (self.accept_timeout or 0.0) if self._is_first else 0.0
        if self.options.offered and self._is_first and not accept:
            accept = self.extension.settings.offer_timeout
        finish = (self.finish_timeout or 0.0) if self._is_first else 0.0
        max_lost = self.options.max_lost
        # Whoever ends it in a worker's place must know whose result it is.
        keep = bool(accept or finish or expires or max_lost) or has_followers(request)
        keep = keep or self.options.offered
        return Terms(accept, finish, expires, max_lost, keep)

    def _submit(
        self,
        key: str,
        terms: Terms,
        message: Message,
        ready: dict[str, Any],
        news: Mapping[str, str],
    ) -> Any:
        scripts = self.extension.scripts(self.options.scope)
        answer = self._ask(scripts, key, terms, message, ready=ready, news=news)
        self.deadlines = answer.deadlines
        self.is_own = answer.status in {"dispatched", "offered", "parked"}
        self.due_in = min((time for time in terms[:3] if time), default=0.0)
        outbox.publish(self.task.app, scripts, answer.granted, by=self.producer)
        if answer.block:
            raise KeyBlocked(key or self.task.name, *answer.block)
        if answer.status in {"refused", "crowded"}:
            raise LimitReached(
                key or self.task.name, answer.limit, answer.held, answer.waiting
            )
        if answer.status != "dispatched":
            return None
        ready["headers"][HEADER] |= {
            "attempt": answer.attempt,
            **answer.deadlines._asdict(),
        }
        try:
            return self.producer.publish(message.body, **ready)
        except Exception:
            self._withdraw(scripts, answer.attempt)
            raise

    def _ask(
        self,
        scripts: Scripts,
        key: str,
        terms: Terms,
        message: Message,
        *,
        ready: Mapping[str, Any],
        news: Mapping[str, str],
    ) -> Submitted:
        """Run the script, as often as Celery would try to publish."""
        policy = retry_policy_of(self.task.app)
        limit = self.options.limit_of(key)
        arguments: dict[str, Any] = {
            "limit": limit,
            "wait": self.wait,
            "max_waiting": self.options.max_waiting_per_key,
            "rank": self.extension.rank(ready.get("priority")),
            "retries": self._retries,
            "token": self.token(self.task_id),
            "delay": self._delay(),
            "nonce": secrets.token_hex(6),
            "message": message if self._may_be_stored(terms, limit) else NOTHING,
            "terms": terms,
            "reply": self._reply,
            **news,
        }
        retries = policy.get("max_retries") if ready.get("retry") else 0
        if retries == 0:
            return scripts.submit(self.task_id, key, **arguments)
        answer: Submitted = retry_over_time(
            scripts.submit,
            StoreUnavailable,
            args=(self.task_id, key),
            kwargs=arguments,
            max_retries=retries,
            interval_start=policy.get("interval_start", 0),
            interval_step=policy.get("interval_step", 0.2),
            interval_max=policy.get("interval_max", 1),
        )
        return answer

    def _may_be_stored(self, terms: Terms, limit: int) -> bool:
        """Tell whether the store could need the message: to park, defer or keep it."""
        if self.wait or terms.keep or not self._is_first:
            return True
        return self.extension.settings.keep_dispatched and limit != -1

    def _withdraw(self, scripts: Scripts, attempt: int) -> None:
        try:
            granted = scripts.withdraw(self.task_id, attempt)
        except StoreUnavailable:
            return  # the dispatch lease gives the slot back
        outbox.publish(self.task.app, scripts, granted, by=self.producer)

    def _delay(self) -> float:
        """Return the seconds until the message's ETA, 0 without one."""
        eta = maybe_iso8601((self.request or {}).get("eta"))
        if eta is None:
            return 0.0
        when = maybe_make_aware(eta, self.task.app.timezone)
        return max(0.0, float((when - datetime.now(timezone.utc)).total_seconds()))
