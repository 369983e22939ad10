"""The server that holds the state: which one it is, and the way to it."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery
from kombu.utils.url import maybe_sanitize_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.sentinel import Sentinel

from .exceptions import ImproperlyConfigured, StoreUnavailable


__all__ = ["Link", "Script", "store_url"]

#: What redis-py calls a scheme that Celery spells otherwise.
SCHEMES = {
    "redis": "redis",
    "rediss": "rediss",
    "valkey": "redis",
    "valkeys": "rediss",
    "redis+socket": "unix",
    "socket": "unix",
    "unix": "unix",
    "sentinel": "sentinel",
}

#: Seconds in which a script must be answered: they take microseconds.
ANSWER_TIMEOUT = 10.0

#: What a connection of ours is like: its answers are bytes, and only who waits for
#: them reads. With a health check redis-py would ask, and read, where it sends.
OWN_OPTIONS: dict[str, Any] = {"decode_responses": False, "health_check_interval": 0}

#: The first redis-py that may be told which protocol to speak.
PROTOCOL_SINCE = 5


def store_url(app: Celery, declared: str | None) -> str:
    """Return the URL of the store of *app*.

    Raises:
        ImproperlyConfigured: If none is set and neither the result backend nor
            the broker is Redis or Valkey.
    """
    if declared:
        candidates = [declared]
    else:
        candidates = [first_url(app.conf.result_backend), broker_url(app)]
    for url in candidates:
        if urlsplit(url).scheme in SCHEMES:
            return url
    if declared:
        raise ImproperlyConfigured(
            f"bgtask_redis_url is {without_password(declared)!r}, which is no URL of "
            "Redis or Valkey: redis://127.0.0.1:6379/0 is one"
        )
    raise ImproperlyConfigured(
        "celery_bgtask keeps its slots in Redis or Valkey, and neither the result "
        "backend nor the broker is one: set bgtask_redis_url, for example to "
        "redis://127.0.0.1:6379/0" + advice_on_threads(app)
    )


def advice_on_threads(app: Celery) -> str:
    """Return what else may be wrong if *app* is the one that Celery makes itself."""
    if app.main != "default":
        return ""
    return (
        ". This is Celery's default app: in this thread none of yours is current; "
        "call its set_default(), and every thread will find it"
    )


def broker_url(app: Celery) -> str:
    """Return the broker that *app* publishes to."""
    return first_url(app.conf.broker_write_url or app.conf.broker_url)


def first_url(urls: Any) -> str:
    """Return the first of several URLs, in one text or a list; sentinels are one."""
    if isinstance(urls, (list, tuple)):
        urls = urls[0] if urls else ""
    if not isinstance(urls, str):
        return ""
    return urls if urls.startswith("sentinel:") else urls.split(";")[0]


def without_password(url: str) -> str:
    """Return *url* as it may be shown."""
    return ";".join(maybe_sanitize_url(part) for part in url.split(";"))


def connection_pool(app: Celery, url: str) -> redis.ConnectionPool:
    """Return what knows how to connect to *url*."""
    options: dict[str, Any] = {
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_connect_timeout": ANSWER_TIMEOUT,
        "socket_keepalive": True,
    }
    own = dict(OWN_OPTIONS)
    if int(redis.__version__.split(".")[0]) >= PROTOCOL_SINCE:
        own["protocol"] = 2
    options |= own
    scheme = SCHEMES[urlsplit(url).scheme]
    if scheme == "sentinel":
        return sentinel_pool(app, url, options)
    if scheme == "unix":
        options.pop("socket_keepalive")
    if scheme == "rediss":
        options |= tls_options(app, url)
    pool = redis.ConnectionPool.from_url(redis_url(url), **options)
    pool.connection_kwargs |= own  # whatever the URL says
    return pool


def tls_options(app: Celery, url: str) -> dict[str, Any]:
    """Return what Celery's settings say of TLS with the server at *url*."""
    is_backend = url == first_url(app.conf.result_backend)
    declared = app.conf.redis_backend_use_ssl if is_backend else app.conf.broker_use_ssl
    if not isinstance(declared, dict):
        return {}
    return {name: value for name, value in declared.items() if name.startswith("ssl_")}


def redis_url(url: str) -> str:
    """Return *url* as redis-py spells it; Celery has names of its own."""
    scheme, rest = url.split("://", 1)
    path, mark, query = rest.partition("?")
    if SCHEMES[scheme] == "unix":
        query = query.replace("virtual_host=", "db=")
    for name in ("CERT_REQUIRED", "CERT_OPTIONAL", "CERT_NONE"):
        query = query.replace(
            f"ssl_cert_reqs={name}", f"ssl_cert_reqs={name[5:].lower()}"
        )
    return f"{SCHEMES[scheme]}://{path}{mark}{query}"


def sentinel_pool(
    app: Celery, url: str, options: dict[str, Any]
) -> redis.ConnectionPool:
    """Return a pool to the primary that the sentinels in *url* name."""
    hosts = [urlsplit(part) for part in url.split(";")]
    extra = {
        **(app.conf.broker_transport_options or {}),
        **(app.conf.result_backend_transport_options or {}),
    }
    if "master_name" not in extra:
        raise ImproperlyConfigured(
            "a sentinel:// store needs master_name in result_backend_transport_options"
        )
    last = hosts[-1]
    database = last.path.strip("/") or parse_qs(last.query).get("db", ["0"])[0]
    sentinel = Sentinel(
        [(host.hostname, host.port or 26379) for host in hosts],
        sentinel_kwargs=extra.get("sentinel_kwargs"),
        **options,
    )
    primary = sentinel.master_for(
        extra["master_name"],
        db=int(database),
        username=last.username,
        password=last.password,
    )
    pool: redis.ConnectionPool = primary.connection_pool
    return pool


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
