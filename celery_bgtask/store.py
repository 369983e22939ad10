"""The way to the server that holds the state: one connection, and scripts."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

from celery import Celery
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .exceptions import StoreUnavailable
from .location import connection_pool, without_password


__all__ = ["Link", "Script"]


class Script:
    """A Lua script, known to the server by its hash."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str, sha: str) -> None:
        self.name = name
        self.source = source
        self.sha = sha


#: All links of this process; a forked child must not write to their sockets.
_links: weakref.WeakSet[Link] = weakref.WeakSet()


class Link:
    """One connection to the store, shared by the threads of a process.

    Made at its first use and again after a fork or a loss. Calls are short
    scripts, so threads take turns; all scripts may be repeated, so a call whose
    connection was lost is made once more.

    Args:
        app: Whose store it is.
        url: The store.
    """

    def __init__(self, app: Celery, url: str) -> None:
        self.url = without_password(url)
        self._pool = connection_pool(app, url)
        self.db = int(self._pool.connection_kwargs.get("db") or 0)
        _links.add(self)
        self.reset()

    def reset(self) -> None:
        """Forget the connection without closing it: it belongs to the parent."""
        self._lock = threading.RLock()
        self._connection: Any = None
        self._loaded: set[str] = set()

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        with self._lock:
            connection, self._connection = self._connection, None
            self._loaded.clear()
            if connection is not None:
                connection.disconnect()

    def run(self, script: Script, keys: Sequence[str], args: Iterable[Any]) -> Any:
        """Run *script* on *keys* and return its reply.

        Raises:
            StoreUnavailable: If the store does not answer or refuses.
        """
        call = (len(keys), *keys, *args)
        try:
            with self._lock:
                try:
                    return self._run_once(script, call)
                except (RedisConnectionError, RedisTimeoutError, OSError):
                    self.close()
                    return self._run_once(script, call)
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(self.url, f"{type(exc).__name__}: {exc}") from exc

    def send(self, script: Script, keys: Sequence[str], args: Iterable[Any]) -> None:
        """Run *script* without waiting for it; a failure is not reported."""
        try:
            with self._lock:
                connection = self._connected()
                packed = connection.pack_command("CLIENT", "REPLY", "SKIP")
                call = (len(keys), *keys, *args)
                packed += connection.pack_command(*self._eval(script), *call)
                connection.send_packed_command(packed)
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(self.url, f"{type(exc).__name__}: {exc}") from exc
        except BaseException:
            self.close()  # half of it may be sent
            raise

    def eviction_policy(self) -> str:
        """Return what the server does when its memory is full.

        Raises:
            StoreUnavailable: If the store does not answer or refuses.
        """
        info = self.ask("INFO", "memory").decode()
        policy = re.search(r"^maxmemory_policy:(\S+)", info, re.MULTILINE)
        return policy[1] if policy else "noeviction"

    def ask(self, *command: Any) -> Any:
        """Return the reply to a command that changes nothing.

        Raises:
            StoreUnavailable: If the store does not answer or refuses.
        """
        try:
            with self._lock:
                connection = self._connected()
                connection.send_command(*command)
                return connection.read_response()
        except (RedisError, OSError) as exc:
            self.close()
            raise StoreUnavailable(self.url, f"{type(exc).__name__}: {exc}") from exc

    def _run_once(self, script: Script, call: tuple[Any, ...]) -> Any:
        try:
            try:
                return self._ask(script, call)
            except NoScriptError:
                self._loaded.clear()
                return self._ask(script, call)
        except ResponseError:
            raise
        except BaseException:
            self.close()  # a reply may be left unread
            raise

    def _ask(self, script: Script, call: tuple[Any, ...]) -> Any:
        connection = self._connected()
        connection.send_command(*self._eval(script), *call)
        return connection.read_response()

    def _eval(self, script: Script) -> tuple[str, str]:
        if script.sha in self._loaded:
            return "EVALSHA", script.sha
        self._loaded.add(script.sha)
        return "EVAL", script.source

    def connect(self) -> Any:
        """Return a new connection of redis-py, the caller's own."""
        # Not the pool's own way, which would count what is never given back.
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        connection.connect()
        return connection

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self.connect()
        return self._connection


def _forget_links() -> None:
    for link in list(_links):
        link.reset()


os.register_at_fork(after_in_child=_forget_links)
