"""The options of a task: declared, checked, and completed from the settings."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from celery import Task

from .config import SETTINGS, Setting, Settings
from .exceptions import ImproperlyConfigured
from .taskkey import TaskKey
from .validity import COUNT, is_count, is_limit, is_text


__all__ = [
    "CALL_OPTIONS",
    "OPTIONS",
    "Options",
    "check_options",
    "complete_options",
    "options_of",
]

#: Every option of :func:`.bgtask`, by name.
OPTIONS: dict[str, Setting] = {
    setting.name: setting for setting in SETTINGS if setting.option
} | {
    "task_key": Setting(
        "task_key",
        None,
        lambda value: is_text(value) or callable(value),
        "the name of a parameter, or a callable(arguments)",
        "where the key of a call is",
    ),
    "when_lost": Setting(
        "when_lost",
        None,
        lambda value: value in ("fail", "rerun", None),
        '"fail" or "rerun"',
        "what becomes of a task whose worker vanishes; "
        'by default "rerun" with acks_late',
    ),
    "max_lost": Setting(
        "max_lost", 1, is_count, COUNT, 'how often "rerun" runs it again; then it fails'
    ),
    "delivery": Setting(
        "delivery",
        "queue",
        lambda value: value in ("queue", "offer"),
        '"queue" or "offer"',
        'who gets a task: "queue": whom the broker picks; "offer": of the workers, '
        "which are told, the first that wants it",
    ),
    "scope": Setting(
        "scope",
        None,
        is_text,
        "a text",
        "tasks of one scope share keys; by default the task's name",
    ),
}


def is_metadata(value: Any) -> bool:
    """Tell whether *value* is a small dict; that it is JSON shows later."""
    return isinstance(value, dict) and len(repr(value)) <= METADATA_SIZE


#: Characters that the metadata of a call may have.
METADATA_SIZE = 4096

#: What a call may say otherwise than its task.
CALL_OPTIONS = {
    name: OPTIONS[name] for name in ("accept_timeout", "finish_timeout", "when_full")
} | {
    "metadata": Setting(
        "metadata",
        None,
        is_metadata,
        f"a dict of at most {METADATA_SIZE} characters",
        "travels with the announcement of the call, and to the body",
    )
}

#: What Celery's decorators take beside the attributes of a task class.
CELERY_OPTIONS = frozenset(
    {
        "autoretry_for", "base", "bind", "compression", "delivery_mode",
        "dont_autoretry_for", "exchange", "exchange_type", "immediate", "lazy",
        "mandatory", "name", "pydantic", "pydantic_context", "pydantic_dump_kwargs",
        "pydantic_strict", "queue", "retry_backoff", "retry_backoff_max",
        "retry_jitter", "retry_kwargs", "routing_key", "shared",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one task, complete.

    Attributes:
        key: Finds the key of a call.
        max_per_key: Slots per key, or a callable ``key -> int``.
        wait: Whether a full key parks a task; otherwise it refuses it.
        max_waiting_per_key: Tasks that may wait per key.
        max_payload_size: Bytes a message body may have.
        accept_timeout: Seconds in which a worker must start a call, or ``None``.
        finish_timeout: Seconds in which it must have ended, or ``None``.
        block_threshold: Bad tasks that a key may have.
        block_interval: Seconds in which they are counted.
        block_for: Seconds for which a key with more is blocked.
        max_lost: How often it runs again when its worker vanishes.
        scope: The tasks that share keys.
        offered: Whether workers are told and the first takes it; else by the broker.
    """

    key: TaskKey
    max_per_key: int | Callable[[str], Any] | None
    wait: bool
    max_waiting_per_key: int
    max_payload_size: int
    accept_timeout: float | None
    finish_timeout: float | None
    block_threshold: int
    block_interval: float
    block_for: float
    max_lost: int
    scope: str
    offered: bool = False

    def limit_of(self, key: str) -> int:
        """Return the slots of *key*, -1 for no limit.

        Raises:
            ImproperlyConfigured: If the callable returns anything else.
        """
        if not callable(self.max_per_key):
            return -1 if self.max_per_key is None else self.max_per_key
        try:
            limit: Any = self.max_per_key(key)
        except Exception as exc:
            raise ImproperlyConfigured(
                f"{self.key.task}: its max_per_key callable raised {exc!r} for {key!r}"
            ) from exc
        if callable(limit) or not is_limit(limit):
            raise ImproperlyConfigured(
                f"{self.key.task}: max_per_key({key!r}) returned {limit!r}; it must "
                "return a whole number above 0, or -1 or None for no limit"
            )
        slots: int = -1 if limit is None else limit
        return slots


def options_of(task: Task[Any, Any]) -> Options:
    """Return the options of *task*, which is a BgTask: a class above this module."""
    options: Options = cast("Any", task).bgtask
    return options


def check_options(declared: Mapping[str, Any], where: str) -> None:
    """Check the values of *declared*.

    Raises:
        ImproperlyConfigured: If one will not do.
    """
    for name, value in declared.items():
        OPTIONS[name].checked(value, f"{where}: {name}")


def check_names(names: Iterable[str], known: type, where: str) -> None:
    """Check that Celery knows the options *names*, beside ours.

    Raises:
        ImproperlyConfigured: For the first that is unknown, with what is near.
    """
    for name in names:
        if name not in CELERY_OPTIONS and not hasattr(known, name):
            near = difflib.get_close_matches(
                name, [*OPTIONS, *CELERY_OPTIONS, *dir(Task)], n=1
            )
            if name.removeprefix("bgtask_") in {setting.name for setting in SETTINGS}:
                short = name.removeprefix("bgtask_")
                raise ImproperlyConfigured(
                    f"{where}: {name} is no option of a task but a setting: "
                    f"app.conf.bgtask_{short}"
                )
            hint = (
                f"; did you mean {near[0]}?"
                if near
                else "; a base= class may define it"
            )
            raise ImproperlyConfigured(f"{where}: unknown option {name}{hint}")


def complete_options(
    task: type[Task[Any, Any]],
    name: str,
    declared: Mapping[str, Any],
    settings: Settings,
) -> Options:
    """Return the options of *task*, called *name*: *declared*, or as the settings say.

    Raises:
        ImproperlyConfigured: If they do not fit the task.
    """
    check_options(declared, name)

    def value(option: str) -> Any:
        return declared[option] if option in declared else getattr(settings, option)

    when_lost = declared.get("when_lost") or ("rerun" if task.acks_late else "fail")
    return Options(
        key=TaskKey(name, declared.get("task_key"), signature_of(task)),
        max_per_key=value("max_per_key"),
        wait=value("when_full") == "wait",
        max_waiting_per_key=value("max_waiting_per_key"),
        max_payload_size=value("max_payload_size"),
        accept_timeout=value("accept_timeout"),
        finish_timeout=value("finish_timeout"),
        block_threshold=value("block_threshold"),
        block_interval=value("block_interval"),
        block_for=value("block_for"),
        max_lost=declared.get("max_lost", 1) if when_lost == "rerun" else 0,
        scope=declared.get("scope") or name,
        offered=declared.get("delivery") == "offer",
    )


def signature_of(task: type[Task[Any, Any]]) -> inspect.Signature:
    """Return the signature of the body of *task*, without ``self``."""
    if isinstance(inspect.getattr_static(task, "run"), staticmethod):
        return inspect.signature(task.run)
    return without_first(inspect.signature(task.run))


def without_first(signature: inspect.Signature) -> inspect.Signature:
    """Return *signature* without its first parameter, which is ``self``."""
    return signature.replace(parameters=list(signature.parameters.values())[1:])
