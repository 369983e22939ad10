"""The calls of tasks as a test sees them: values, and lists that explain themselves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


__all__ = ["Call", "Calls"]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a task.

    Attributes:
        task: Name of the task.
        id: Its id.
        args: The positional arguments.
        kwargs: The keyword arguments.
        arguments: Both by the names of the task's parameters, defaults among them;
            empty if they do not fit the task.
        key: The task key; ``None`` if the task has none, or is no bgtask.
        state: ``waiting``, ``dispatched``, ``offered``, ``running`` or ``ended``, as
            :attr:`.BgResult.phase`; or ``refused``: ``delay()`` has raised.
    """

    task: str
    id: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    arguments: dict[str, Any]
    key: str | None
    state: str

    def __str__(self) -> str:
        given = [
            *map(repr, self.args),
            *(f"{name}={value!r}" for name, value in self.kwargs.items()),
        ]
        key = "" if self.key is None else f"key {self.key!r} "
        return f"{self.task}({', '.join(given)}): {key}{self.state}"


class Calls(list[Call]):
    """The calls that a test has asked for, oldest first; a list.

    Where it is not what the test expects, its text says what there was instead.

    Args:
        found: The calls.
        wanted: What was asked for, in words.
        others: All calls there were.
    """

    def __init__(self, found: Iterable[Call], wanted: str, others: list[Call]) -> None:
        super().__init__(found)
        self._wanted = wanted
        self._others = others

    def one(self) -> Call:
        """Return the only call.

        Raises:
            AssertionError: If there is none, or more than one.
        """
        __tracebackhide__ = True  # pytest shows the test, where it went wrong
        if len(self) == 1:
            return self[0]
        raise AssertionError(
            f"expected one {self._wanted}, found {len(self) or 'none'}; "
            + ("all calls:\n" if self._others else "there were no calls at all")
            + "\n".join(f"  {call}" for call in self._others)
        )

    def __repr__(self) -> str:
        if self:
            return super().__repr__()
        there = "; ".join(map(str, self._others)) or "no calls at all"
        return f"<no {self._wanted}; there were: {there}>"
