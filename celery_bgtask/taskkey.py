"""From a call's arguments to its task key."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from celery.utils.saferepr import saferepr

from .exceptions import ImproperlyConfigured, MissingTaskKey


__all__ = ["WHOLE_TASK", "TaskKey", "key_text"]

#: The key of a task that declares none: its limit holds for the task as a whole.
WHOLE_TASK = ""

#: Bytes a key may have in UTF-8: it stands in several names in Redis.
MAX_KEY_BYTES = 512

_POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
)
_ABSENT = object()


def key_text(value: Any, *, task: str) -> str:
    """Return *value* as the text of a key.

    Raises:
        MissingTaskKey: If *value* is no str, int, UUID, Decimal, date or Enum
            of such, is empty, or is too long.
    """
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, bool) or not isinstance(
        value, (str, int, UUID, Decimal, date)
    ):
        raise MissingTaskKey(
            task,
            f"a task key cannot be a {type(value).__name__} ({saferepr(value, 80)}); "
            "it is a str, int, UUID, Decimal, Enum value or date, or make one with a "
            "callable",
        )
    try:
        text = str(value)
        size = len(text.encode())
    except ValueError as exc:  # a lone surrogate, a number of thousands of digits
        raise MissingTaskKey(task, f"the task key is no valid text: {exc}") from exc
    if not 0 < size <= MAX_KEY_BYTES:
        raise MissingTaskKey(
            task,
            f"the task key {text!r:.80} has {size} bytes; it must have 1 to "
            f"{MAX_KEY_BYTES}",
        )
    return text


class TaskKey:
    """Finds the key of each call of one task.

    Args:
        task: Name of the task, for errors.
        declared: The option ``task_key``: ``None``, the name of a parameter, or
            of a field of the only argument, or a callable of the arguments.
        signature: Of the task's body, without ``self``.

    Raises:
        ImproperlyConfigured: If no call could have such a key.
    """

    def __init__(
        self,
        task: str,
        declared: str | Callable[[dict[str, Any]], Any] | None,
        signature: inspect.Signature,
    ) -> None:
        self.task = task
        self.declared = declared
        self.signature = signature
        if declared is None or callable(declared):
            return
        if not isinstance(declared, str):
            raise ImproperlyConfigured(
                f"{task}: task_key must be the name of a parameter or a callable, "
                f"not {declared!r}"
            )
        if not self._possible(declared):
            raise ImproperlyConfigured(
                f"{task}: task_key={declared!r} is no parameter of {task}{signature}"
            )

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        """Return the key of the call with *args* and *kwargs*.

        Raises:
            MissingTaskKey: If the call has none, or an unusable one.
        """
        if self.declared is None:
            return WHOLE_TASK
        arguments = self.bind(args, kwargs)
        if callable(self.declared):
            try:
                value = self.declared(arguments)
            except Exception as exc:
                raise MissingTaskKey(
                    self.task, f"its task_key callable raised {exc!r}"
                ) from exc
        else:
            value = self._named(self.declared, arguments)
        return key_text(value, task=self.task)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call by name, defaults among them.

        Raises:
            MissingTaskKey: If they do not fit the task.
        """
        try:
            bound = self.signature.bind(*args, **kwargs)
        except TypeError as exc:
            raise MissingTaskKey(self.task, f"the arguments do not fit: {exc}") from exc
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        for parameter in self.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name)
        return arguments

    def _named(self, name: str, arguments: dict[str, Any]) -> Any:
        value = arguments.get(name, _ABSENT)
        if value is _ABSENT and len(arguments) == 1:
            value = field_of(next(iter(arguments.values())), name)
        if value is _ABSENT:
            raise MissingTaskKey(
                self.task, f"the call has no {name!r}, which is its task_key"
            )
        return value

    def _possible(self, name: str) -> bool:
        parameters = self.signature.parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        return name in parameters or open_ended or len(parameters) == 1


def field_of(value: Any, name: str) -> Any:
    """Return field *name* of a mapping or pydantic model, or a mark of absence."""
    if isinstance(value, tuple) and len(value) == 1:  # what *args has collected
        value = value[0]
    if isinstance(value, Mapping):
        return value.get(name, _ABSENT)
    if name in getattr(type(value), "model_fields", ()):
        return getattr(value, name)
    return _ABSENT
