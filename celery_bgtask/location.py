"""Which server holds the state, and how it is connected to."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import redis
from celery import Celery
from kombu.utils.url import maybe_sanitize_url
from redis.sentinel import Sentinel

from .exceptions import ImproperlyConfigured


__all__ = ["broker_url", "connection_pool", "store_url", "without_password"]

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
