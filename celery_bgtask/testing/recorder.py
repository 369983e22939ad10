"""What a test may know of the calls that the code under test has made."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from celery import Celery, Task
from celery.signals import after_task_publish, before_task_publish, task_prerun
from celery.utils.dispatch import Signal

from ..exceptions import MissingTaskKey
from ..message import HEADER, as_request
from ..task import BgTask
from ..taskkey import WHOLE_TASK
from .calls import Call, Calls


__all__ = ["Recorder"]


@dataclass(slots=True)
class _Noted:
    """What the signals of Celery have said of one call."""

    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    headers: Mapping[str, Any] = field(default_factory=dict)
    is_sent: bool = False


class Recorder:
    """The calls of tasks that this process makes, by ``delay()`` or otherwise.

    Of this process: what a worker elsewhere submits is not seen, what one in a
    thread does is. A retry is the call that it repeats.

    Args:
        app: Whose tasks they are.
        is_eager: Whether they run where they are called.
    """

    def __init__(self, app: Celery, *, is_eager: bool = False) -> None:
        self.app = app
        self.is_eager = is_eager
        self._noted: dict[str, _Noted] = {}

    def submitted(
        self, task: Any = None, key: Any = None, /, **arguments: Any
    ) -> Calls:
        """Return the calls that were submitted, those that have ended, too.

        Args:
            task: Only of this task, or of the task of this name.
            key: Only with this key.
            **arguments: Only with these arguments, whether they were given by
                position, by name, or are defaults.
        """
        calls = [call for call in self._calls() if call.state != "refused"]
        return self._select("submitted call", calls, task, key, arguments)

    def parked(self, task: Any = None, key: Any = None, /, **arguments: Any) -> Calls:
        """Return the calls that wait for a slot of their key, at this moment.

        The arguments are those of :meth:`submitted`.

        Raises:
            RuntimeError: In eager mode, which knows no limits.
        """
        self._needs_limits("parked")
        calls = [call for call in self._calls() if call.state == "waiting"]
        return self._select("parked call", calls, task, key, arguments)

    def refused(self, task: Any = None, key: Any = None, /, **arguments: Any) -> Calls:
        """Return the calls whose ``delay()`` has raised: the key was full or blocked.

        The arguments are those of :meth:`submitted`.

        Raises:
            RuntimeError: In eager mode, which knows no limits.
        """
        self._needs_limits("refused")
        calls = [call for call in self._calls() if call.state == "refused"]
        return self._select("refused call", calls, task, key, arguments)

    def clear(self) -> None:
        """Forget all calls so far; they go on."""
        self._noted.clear()

    @contextlib.contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Record for the time of a ``with`` block; what was recorded stays."""
        receivers: dict[Signal, Callable[..., None]] = (
            {task_prerun: self._note_eager}
            if self.is_eager
            else {
                before_task_publish: self._note_attempt,
                after_task_publish: self._note_sent,
            }
        )
        for signal, receiver in receivers.items():
            signal.connect(receiver, weak=False)
        try:
            yield self
        finally:
            for signal, receiver in receivers.items():
                signal.disconnect(receiver)

    def _note_attempt(
        self, sender: str, body: Any, headers: Mapping[str, Any], **_: Any
    ) -> None:
        request = as_request(headers, body)
        noted = _Noted(sender, tuple(request["args"]), dict(request["kwargs"]), headers)
        known = self._noted.get(request["id"])
        if known is None or not known.is_sent:
            self._noted[request["id"]] = noted

    def _note_sent(self, body: Any, headers: Mapping[str, Any], **_: Any) -> None:
        self._noted[as_request(headers, body)["id"]].is_sent = True

    def _note_eager(
        self, sender: Any, task_id: str, args: Any, kwargs: Any, **_: Any
    ) -> None:
        if sender.request.is_eager:
            noted = _Noted(sender.name, tuple(args), dict(kwargs), is_sent=True)
            self._noted.setdefault(task_id, noted)

    def _calls(self) -> list[Call]:
        return [self._call(task_id, noted) for task_id, noted in self._noted.items()]

    def _call(self, task_id: str, noted: _Noted) -> Call:
        task = self.app.tasks.get(noted.task)
        return Call(
            noted.task,
            task_id,
            noted.args,
            noted.kwargs,
            {} if task is None else arguments_of(task, noted.args, noted.kwargs),
            key_of(task, noted),
            self._state(task_id, task, noted),
        )

    def _state(self, task_id: str, task: Task[Any, Any] | None, noted: _Noted) -> str:
        if not noted.is_sent:
            return "refused"
        if self.is_eager:
            return "ended"
        if isinstance(task, BgTask):
            return str(task.AsyncResult(task_id).phase)
        return "ended" if self.app.AsyncResult(task_id).ready() else "dispatched"

    def _select(
        self,
        what: str,
        calls: list[Call],
        task: Any,
        key: Any,
        arguments: dict[str, Any],
    ) -> Calls:
        name = getattr(task, "name", task)
        found = [
            call
            for call in calls
            if (name is None or call.task == name)
            and (key is None or call.key == str(key))
            and arguments.items() <= call.arguments.items()
        ]
        wanted = what + (f" of {name}" if name else "")
        wanted += f" of key {str(key)!r}" if key is not None else ""
        with_ = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        wanted += f" with {with_}" if with_ else ""
        return Calls(found, wanted, self._calls())

    def _needs_limits(self, what: str) -> None:
        if self.is_eager:
            raise RuntimeError(
                f"in eager mode there are no limits, so nothing is {what}: use the "
                "fixture bgtasks, or celery_bgtask.testing.connected"
            )


def arguments_of(
    task: Task[Any, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name; nothing if they do not fit."""
    try:
        bound = inspect.signature(task.run).bind(*args, **kwargs)
    except TypeError:
        return {}
    bound.apply_defaults()
    return dict(bound.arguments)


def key_of(task: Task[Any, Any] | None, noted: _Noted) -> str | None:
    """Return the key of a call: as it was sent, or else as it would be."""
    own = noted.headers.get(HEADER)
    if own is not None:
        key = str(own["key"])
    elif isinstance(task, BgTask):
        try:
            key = task.bgtask.key.of(noted.args, noted.kwargs)
        except MissingTaskKey:
            return None
    else:
        return None
    return None if key == WHOLE_TASK else key
