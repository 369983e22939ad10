"""What this package keeps for a Celery app: its settings and its store."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from celery import Celery

from .config import Settings, read_settings
from .exceptions import ImproperlyConfigured
from .keys import reply_channel
from .location import broker_url, store_url
from .scripts import Scripts
from .store import Link


__all__ = ["Extension", "extension_of"]

#: Highest priority a broker knows; ranks count from 0, the lowest starts first.
TOP_PRIORITY = 255


class Extension:
    """The settings of one app, and the scripts of each of its scopes.

    Nothing is read or connected before it is used, for apps are configured
    late.

    Args:
        app: The Celery app.
    """

    def __init__(self, app: Celery) -> None:
        self._app = weakref.ref(app)
        self._settings: Settings | None = None
        self._link: Link | None = None
        self._scripts: dict[str, Scripts] = {}
        self._limits: dict[str, tuple[str, Any]] = {}
        self._channels: dict[str, str] = {}
        self._closing: list[Callable[[], None]] = []

    @property
    def settings(self) -> Settings:
        """The settings, read once."""
        if self._settings is None:
            self._settings = read_settings(self.app)
        return self._settings

    @property
    def app(self) -> Celery:
        """The Celery app."""
        app = self._app()
        assert app is not None, "the app is gone"  # noqa: S101 - who asks has it
        return app

    @property
    def prefix(self) -> str:
        """What all names in Redis begin with."""
        return self.settings.key_prefix or f"bgtask:{self.app.main or 'app'}"

    @property
    def reply_channel(self) -> str:
        """The channel on which this process hears of the tasks it submits."""
        if "reply" not in self._channels:
            # Threads may be here at once; of a dict, all get the same.
            self._channels.setdefault("reply", reply_channel(self.prefix, self.link.db))
        return self._channels["reply"]

    def forget_process(self) -> None:
        """Be another process: a child that was forked off hears of its own tasks."""
        self._channels = {}

    @property
    def scopes(self) -> list[str]:
        """The scopes that tasks of this app were declared with.

        Where none is known yet, what the app says it imports is imported, as by a
        worker: who has only the id of a task need not have met its module.
        """
        self.app.finalize(auto=True)  # what was declared is made into tasks only then
        if not self._limits:
            self.app.loader.import_default_modules()
        return list(self._limits)

    @property
    def link(self) -> Link:
        """The way to the store.

        Raises:
            ImproperlyConfigured: If no store is configured.
        """
        if self._link is None:
            self._link = Link(self.app, store_url(self.app, self.settings.redis_url))
        return self._link

    def scripts(self, scope: str) -> Scripts:
        """Return the scripts of *scope*.

        Raises:
            ImproperlyConfigured: If no store is configured.
        """
        if scope not in self._scripts:
            self._scripts[scope] = Scripts(
                self.link, prefix=self.prefix, scope=scope, settings=self.settings
            )
        return self._scripts[scope]

    def declare(self, task: str, scope: str, limit: Any) -> None:
        """Note that *task* is of *scope*.

        Raises:
            ImproperlyConfigured: If another task of it has another limit.
        """
        first, known = self._limits.setdefault(scope, (task, limit))
        if first == task:
            self._limits[scope] = (task, limit)
        elif known != limit:
            raise ImproperlyConfigured(
                f"tasks of one scope have one limit: in scope {scope!r}, {first} has "
                f"max_per_key={known!r} and {task} has max_per_key={limit!r}"
            )

    def rank(self, priority: int | None) -> int:
        """Return the rank of a message's *priority*, in the sense of the broker."""
        known = min(max(int(priority or 0), 0), TOP_PRIORITY)
        return known if self._lowest_first else TOP_PRIORITY - known

    @cached_property
    def _lowest_first(self) -> bool:
        """Whether the broker takes a low priority for an urgent one."""
        scheme = urlsplit(broker_url(self.app)).scheme
        return scheme.startswith(("redis", "valkey", "sentinel", "socket"))

    def on_close(self, close: Callable[[], None]) -> None:
        """Call *close* when this is closed."""
        self._closing.append(close)

    def reconfigure(self) -> None:
        """Read the settings anew, for they have changed, and go to the store they name.

        What tasks have made of them when they were declared stays.
        """
        self.close()
        self._settings = self._link = None
        self._scripts = {}
        self._channels = {}

    def close(self) -> None:
        """Close the connections to the store; they are made again when needed."""
        for close in self._closing:
            close()
        if self._link is not None:
            self._link.close()


_extensions: weakref.WeakKeyDictionary[Celery, Extension] = weakref.WeakKeyDictionary()


def extension_of(app: Celery) -> Extension:
    """Return the extension of *app*, the same each time."""
    extension = _extensions.get(app)
    if extension is None:
        extension = _extensions.setdefault(app, Extension(app))
    return extension


def _forget_process() -> None:
    for extension in list(_extensions.values()):
        extension.forget_process()


os.register_at_fork(after_in_child=_forget_process)
