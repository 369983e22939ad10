"""What becomes of a task class when it is declared."""

from __future__ import annotations

from typing import Any

from celery import Task

from .options import OPTIONS, check_options


__all__ = ["call_of", "lift_options"]


def call_of(cls: type, own: type) -> Any:
    """Return the ``__call__`` that Celery would use of *cls* without *own*.

    An app's own Task class may stand behind BgTask in the order of bases, and
    its ``__call__`` (a Flask app's context) must not be passed by.
    """
    owners = [base for base in cls.__mro__ if "__call__" in vars(base)]
    if owners[0] is own and owners[1] is not Task:
        return owners[1].__call__
    return owners[0].__call__


def lift_options(cls: Any) -> None:
    """Take this package's options off *cls*, and check them.

    Raises:
        ImproperlyConfigured: If one will not do.
    """
    own = {name: vars(cls)[name] for name in OPTIONS if name in vars(cls)}
    for name, value in own.items():
        delattr(cls, name)
        own[name] = value.__func__ if isinstance(value, staticmethod) else value
    check_options(own, cls.__name__)
    if own:
        cls.bgtask_declared = {**cls.bgtask_declared, **own}
